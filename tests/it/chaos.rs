//! Processes of a server killed at random, again and again: who is left must not notice, and nothing may stay behind.
//!
//! Each run takes some seconds; `scripts/chaos` makes as many as fit into ten minutes, each with another seed.

use crate::harness::kinds;
use crate::prefork::all_serve;
use crate::processes::{Helper, Test, Watched, readable};
use forkserver::{Address, CallError, Client, ConnectError, Fault, Fd, Listener, Prefork, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeMap;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

crate::tests![whoever_is_killed_the_others_go_on];

const RUN: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_millis(300);
/// How long a client may wait for any answer, or error.
const PATIENCE: Duration = Duration::from_secs(8);
const WORKERS: usize = 3;
const CLIENTS: usize = 3;
/// Every so many calls, one passes a descriptor both ways.
const WITH_DESCRIPTOR: u64 = 4;

/// How many descriptors of each kind a process has.
type Kinds = BTreeMap<String, usize>;

/// A server at a path that all have, with its owner.
struct Tree {
    owner: Helper,
    monitor: Watched,
    address: PathBuf,
    /// What owner and monitor had when all served.
    at_the_start: [Kinds; 2],
}

fn definition(directory: &Path) -> forkserver::Server {
    crate::server()
        .listen(Listener::at(directory.join("socket")))
        .handle("twice", |_, number: u64| Ok(number.wrapping_mul(2)))
        .handle("write twice", |_, (number, fd): (u64, Fd)| {
            let mut file = std::fs::File::from(fd.as_fd().try_clone_to_owned()?);
            file.write_all(&number.wrapping_mul(2).to_ne_bytes())?;
            Ok::<_, Fault>(fd)
        })
        .grace(GRACE)
        .prefork(
            Prefork::new(WORKERS)
                .min_uptime(Duration::ZERO)
                .max_calls(2_000),
        )
}

impl Tree {
    fn start(directory: &Path) -> Tree {
        let address = directory.join("address");
        let directory = directory.to_owned();
        let mut owner = Helper::start(move |test| match definition(&directory).start() {
            Ok(server) => {
                server.address().save(directory.join("address")).unwrap();
                test.say(server.pid());
                test.wait();
                server.stop().unwrap();
            }
            Err(err) => test.say(format_args!("cannot start: {err}")),
        });
        let said = owner.hear();
        let pid = said.parse().unwrap_or_else(|_| panic!("{said}"));
        let monitor = Watched::open(pid);
        let at_the_start = [owner.pid, monitor.pid].map(kinds);
        Tree {
            owner,
            monitor,
            address,
            at_the_start,
        }
    }

    /// When nobody calls any more, nobody has more than at the start.
    fn has_kept_nothing(&self, of_worker: &Kinds) {
        let workers = self.idle_workers();
        let [of_owner, of_monitor] = &self.at_the_start;
        has_no_more(of_owner, || kinds(self.owner.pid));
        has_no_more(of_monitor, || kinds(self.monitor.pid));
        for worker in workers {
            has_no_more(of_worker, || kinds_of_worker(worker));
        }
    }

    /// Waits until nobody but this test has a connection, and all workers are there that shall.
    fn idle_workers(&self) -> Vec<i32> {
        let begun = Instant::now();
        let address = Address::load(&self.address).unwrap();
        let mut client = Client::connect(&address).unwrap();
        loop {
            let status: Status = client.call("forkserver.status", &()).unwrap();
            let pool = status.pool.expect("it has workers");
            let connections: usize = pool.workers.iter().map(|worker| worker.connections).sum();
            if all_serve(WORKERS)(&pool) && connections == 1 {
                return pool
                    .workers
                    .iter()
                    .map(|worker| worker.pid as i32)
                    .collect();
            }
            assert!(begun.elapsed() < PATIENCE, "{pool:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What a worker has, but for poison: that is as much as its monitor had when it was forked. One that was worn out has left
/// perhaps, and has nothing.
fn kinds_of_worker(pid: i32) -> Kinds {
    let mut kinds = kinds(pid);
    kinds.remove("/dev/null");
    kinds
}

/// Whoever served a client sees a moment later that it is gone.
fn has_no_more(expected: &Kinds, now: impl Fn() -> Kinds) {
    let begun = Instant::now();
    let is_more = |(kind, count): (&String, &usize)| expected.get(kind) < Some(count);
    while now().iter().any(is_more) {
        assert!(
            begun.elapsed() < PATIENCE,
            "{expected:#?} at the start, now {:#?}",
            now()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A client that calls for as long as it is not told to end, and says how often that went well.
fn client(address: PathBuf, test: &mut Test) {
    let (mut answers, mut errors) = (0_u64, 0_u64);
    let mut number = u64::from(std::process::id());
    'connecting: while !test.may_go(Duration::ZERO) {
        let connected = Address::load(&address).and_then(|address| Client::connect(&address));
        let mut client = match connected {
            Ok(client) => client.with_timeout(PATIENCE),
            // There is no server for a moment.
            Err(
                ConnectError::Impostor { .. }
                | ConnectError::NotRunning { .. }
                | ConnectError::Io { .. },
            ) => {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            }
            Err(err) => panic!("{err:?}"),
        };
        while !test.may_go(Duration::ZERO) {
            number = number.wrapping_add(1);
            let mut pipe = None;
            match call(&mut client, number, &mut pipe) {
                Ok(twice) => assert_eq!(twice, number.wrapping_mul(2), "a wrong answer"),
                Err(CallError::WorkerDied { .. }) => {
                    drop(pipe.map(read_to_the_end));
                    errors += 1;
                    continue;
                }
                Err(
                    CallError::Disconnected { .. }
                    | CallError::Stopping
                    | CallError::Io { .. }
                    | CallError::Denied(_),
                ) => {
                    // What was not sent, it may still have.
                    drop(client);
                    drop(pipe.map(read_to_the_end));
                    errors += 1;
                    continue 'connecting;
                }
                Err(err) => panic!("{err:?}"),
            }
            answers += 1;
        }
    }
    test.say(format_args!("{answers} {errors}"));
}

/// A call that may pass a descriptor. If it fails, all copies of that are soon closed: there is an end in `pipe` then.
fn call(client: &mut Client, number: u64, pipe: &mut Option<PipeReader>) -> Result<u64, CallError> {
    if number % WITH_DESCRIPTOR > 0 {
        return client.call("twice", &number);
    }
    let (read, write) = std::io::pipe().unwrap();
    let fd = Fd::from(OwnedFd::from(write));
    let read = pipe.insert(read);
    let back: Fd = client.call("write twice", &(number, &fd))?;
    drop(fd);
    // It is the same pipe, which nobody else keeps open.
    let mut back = std::fs::File::from(back.into_owned().unwrap());
    back.write_all(b"!").unwrap();
    drop(back);
    let bytes = read_to_the_end(read);
    let (twice, mark) = bytes.split_first_chunk().expect("a number");
    assert_eq!(mark, b"!");
    Ok(u64::from_ne_bytes(*twice))
}

/// Reads until nobody can write any more.
fn read_to_the_end(mut read: impl Read + AsFd) -> Vec<u8> {
    let (mut bytes, mut some) = (Vec::new(), [0; 64]);
    loop {
        assert!(readable(&read, PATIENCE), "somebody keeps a descriptor");
        match read.read(&mut some).unwrap() {
            0 => return bytes,
            count => bytes.extend_from_slice(&some[..count]),
        }
    }
}

fn children(of: Pid) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
    let children = children.unwrap_or_default();
    children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

/// Reaps orphans that have ended.
fn reap(known: &[Pid]) {
    for pid in children(nix::unistd::getpid()) {
        let pid = Pid::from_raw(pid);
        if !known.contains(&pid) {
            let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        }
    }
}

/// One run.
struct Chaos {
    random: StdRng,
    directory: PathBuf,
    tree: Tree,
    clients: Vec<Helper>,
    /// What a worker had before any client came.
    of_worker: Kinds,
    trees: u32,
    kills: u32,
}

impl Chaos {
    fn begin(seed: u64) -> Chaos {
        let directory = std::env::temp_dir().join("chaos");
        std::fs::create_dir(&directory).unwrap();
        let tree = Tree::start(&directory);
        let mut chaos = Chaos {
            random: StdRng::seed_from_u64(seed),
            of_worker: kinds_of_worker(children(tree.monitor.pid)[0]),
            tree,
            directory,
            clients: Vec::new(),
            trees: 1,
            kills: 0,
        };
        for _ in 0..CLIENTS {
            let client = chaos.start_client();
            chaos.clients.push(client);
        }
        chaos
    }

    fn start_client(&self) -> Helper {
        let address = self.tree.address.clone();
        Helper::start(|test| client(address, test))
    }

    fn kill_somebody(mut self) -> Chaos {
        let workers = children(self.tree.monitor.pid);
        match self.random.random_range(0..14) {
            0 => self = self.kill_tree(false, &workers),
            1 => self = self.kill_tree(true, &workers),
            2 | 3 => {
                let client = self.random.random_range(0..CLIENTS);
                self.clients.swap_remove(client).kill();
                let another = self.start_client();
                self.clients.push(another);
            }
            _ if workers.is_empty() => return self,
            _ => {
                let victim = workers[self.random.random_range(0..workers.len())];
                // It may be gone, and its number is its own until its monitor has reaped it.
                let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            }
        }
        self.kills += 1;
        self
    }

    /// Kills the owner, and the monitor before it if that is to be, and starts another server.
    fn kill_tree(mut self, monitor_first: bool, workers: &[i32]) -> Chaos {
        let open = |pid: &i32| std::panic::catch_unwind(|| Watched::open(*pid)).ok();
        let workers: Vec<Watched> = workers.iter().filter_map(open).collect();
        let Tree { owner, monitor, .. } = self.tree;
        let died = Instant::now();
        if monitor_first {
            kill(monitor.pid, Signal::SIGKILL).unwrap();
        }
        owner.kill();
        // The next one is there at once, at the same place; a monitor that drains holds it for as long as that takes.
        monitor.ends_within(GRACE + Duration::from_millis(500));
        self.tree = Tree::start(&self.directory);
        self.trees += 1;
        for worker in workers {
            worker.ends_within((GRACE + Duration::from_secs(1)).saturating_sub(died.elapsed()));
        }
        let clients = self.clients.iter().map(|client| client.pid);
        let known: Vec<Pid> = clients.chain([self.tree.owner.pid]).collect();
        reap(&known);
        self
    }

    /// Has the clients say how often it went well, and how often not.
    fn hear_clients(&mut self) -> (u64, u64) {
        let (mut answers, mut errors) = (0, 0);
        for mut client in self.clients.drain(..) {
            client.go();
            let said = client.hear();
            let (ours, theirs) = said
                .split_once(' ')
                .unwrap_or_else(|| panic!("a client failed: {said:?}"));
            answers += ours.parse::<u64>().unwrap();
            errors += theirs.parse::<u64>().unwrap();
            client.finish();
        }
        (answers, errors)
    }

    /// Stops the server; nobody and nothing is left.
    fn end(self) {
        let monitor = self.tree.monitor;
        self.tree.owner.finish();
        monitor.ends_within(Duration::ZERO);
        let begun = Instant::now();
        while !children(nix::unistd::getpid()).is_empty() {
            assert!(
                begun.elapsed() < GRACE + Duration::from_secs(1),
                "somebody is left"
            );
            reap(&[]);
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::remove_file(self.tree.address).unwrap();
        // Nothing but that was there.
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

fn whoever_is_killed_the_others_go_on() {
    let seed = std::env::var("FORKSERVER_CHAOS_SEED");
    let seed = seed
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::rng().random());
    println!("FORKSERVER_CHAOS_SEED={seed}");
    let mut chaos = Chaos::begin(seed);
    let begun = Instant::now();
    while begun.elapsed() < RUN {
        std::thread::sleep(PAUSE);
        chaos = chaos.kill_somebody();
    }
    let (answers, errors) = chaos.hear_clients();
    let Chaos { kills, trees, .. } = chaos;
    println!("{kills} kills, {trees} servers, {answers} answers, {errors} errors");
    assert!(answers > 1_000, "{answers}");
    chaos.tree.has_kept_nothing(&chaos.of_worker);
    chaos.end();
}
