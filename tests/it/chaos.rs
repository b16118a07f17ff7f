//! Processes of a server killed at random, again and again: who is left must not notice, and nothing may stay behind.
//!
//! Each run takes some seconds; `scripts/chaos` makes as many as fit into ten minutes, each with another seed.

use crate::processes::{Helper, Test, Watched};
use forkserver::{Address, CallError, Client, ConnectError, Listener, Prefork};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

crate::tests![whoever_is_killed_the_others_go_on];

const RUN: Duration = Duration::from_secs(6);
const PAUSE: Duration = Duration::from_millis(50);
const GRACE: Duration = Duration::from_millis(300);
/// How long a client may wait for any answer, or error.
const PATIENCE: Duration = Duration::from_secs(8);

/// A server at a path that all have, with its owner.
struct Tree {
    owner: Helper,
    monitor: Watched,
}

fn start(directory: &Path) -> Tree {
    let directory = directory.to_owned();
    let mut owner = Helper::start(move |test| {
        let server = crate::server()
            .listen(Listener::at(directory.join("socket")))
            .handle("twice", |_, number: u64| Ok(number.wrapping_mul(2)))
            .grace(GRACE)
            .prefork(Prefork::new(3).min_uptime(Duration::ZERO).max_calls(2_000))
            .start();
        match server {
            Ok(server) => {
                server.address().save(directory.join("address")).unwrap();
                test.say(server.pid());
                test.wait();
                server.stop().unwrap();
            }
            Err(err) => test.say(format_args!("cannot start: {err}")),
        }
    });
    let said = owner.hear();
    let pid = said.parse().unwrap_or_else(|_| panic!("{said}"));
    Tree {
        owner,
        monitor: Watched::open(pid),
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
            match client.call::<_, u64>("twice", &number) {
                Ok(twice) => assert_eq!(twice, number.wrapping_mul(2), "a wrong answer"),
                Err(CallError::WorkerDied { .. }) => {
                    errors += 1;
                    continue;
                }
                Err(
                    CallError::Disconnected { .. }
                    | CallError::Stopping
                    | CallError::Io { .. }
                    | CallError::Denied(_),
                ) => {
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

fn whoever_is_killed_the_others_go_on() {
    let seed = std::env::var("FORKSERVER_CHAOS_SEED");
    let seed = seed
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| rand::rng().random());
    println!("FORKSERVER_CHAOS_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let directory = std::env::temp_dir().join("chaos");
    std::fs::create_dir(&directory).unwrap();
    let mut tree = start(&directory);
    let mut clients: Vec<_> = (0..3)
        .map(|_| {
            let address = directory.join("address");
            Helper::start(|test| client(address, test))
        })
        .collect();
    let known: Vec<Pid> = clients.iter().map(|client| client.pid).collect();
    let (begun, mut trees, mut kills) = (Instant::now(), 1, 0);
    while begun.elapsed() < RUN {
        std::thread::sleep(PAUSE);
        let workers = children(tree.monitor.pid);
        let victim = match random.random_range(0..12) {
            0 => tree.owner.pid,
            1 => tree.monitor.pid,
            _ if workers.is_empty() => continue,
            _ => Pid::from_raw(workers[random.random_range(0..workers.len())]),
        };
        kills += 1;
        if victim != tree.owner.pid && victim != tree.monitor.pid {
            // It may be gone, and its number is its own until its monitor has reaped it.
            let _ = kill(victim, Signal::SIGKILL);
            continue;
        }
        let open = |pid: &i32| std::panic::catch_unwind(|| Watched::open(*pid)).ok();
        let workers: Vec<Watched> = workers.iter().filter_map(open).collect();
        let died = Instant::now();
        if victim == tree.monitor.pid {
            kill(victim, Signal::SIGKILL).unwrap();
        }
        let Tree { owner, monitor } = tree;
        owner.kill();
        // The next one is there at once, at the same place; a monitor that drains holds it for as long as that takes.
        monitor.ends_within(GRACE + Duration::from_millis(500));
        tree = start(&directory);
        trees += 1;
        for worker in workers {
            worker.ends_within((GRACE + Duration::from_secs(1)).saturating_sub(died.elapsed()));
        }
        reap(&[&known[..], &[tree.owner.pid]].concat());
    }
    let (mut answers, mut errors) = (0, 0);
    for mut client in clients.drain(..) {
        client.go();
        let said = client.hear();
        let (ours, theirs) = said
            .split_once(' ')
            .unwrap_or_else(|| panic!("a client failed: {said:?}"));
        answers += ours.parse::<u64>().unwrap();
        errors += theirs.parse::<u64>().unwrap();
        client.finish();
    }
    println!("{kills} kills, {trees} servers, {answers} answers, {errors} errors");
    assert!(answers > 1_000, "{answers}");
    let monitor = tree.monitor;
    tree.owner.finish();
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
    std::fs::remove_file(directory.join("address")).unwrap();
    // Nothing but that was there.
    std::fs::remove_dir(&directory).unwrap();
}
