//! Several workers behind one socket: what they share, who gets which connection, and what a crash costs.

use forkserver::{
    CallError, Client, Delivery, Engine, Exit, Fault, Fd, Limits, Listener, PoolEvent, PoolStatus,
    Prefork, Server, ServerHandle, StartError, WorkerPhase,
};
use nix::libc;
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

crate::tests![
    workers_serve_what_was_preloaded_once,
    sixteen_lasting_connections_are_spread_evenly,
    connections_that_come_at_once_are_spread_evenly,
    ten_thousand_short_connections_are_spread_evenly,
    an_owners_connections_are_served_in_turn,
    a_full_worker_keeps_nobody_from_the_others,
    an_owner_whose_first_listener_speaks_otherwise_is_served,
    a_killed_worker_costs_its_own_calls_and_is_replaced,
    every_kind_of_death_is_named_to_the_caller,
    a_call_that_was_not_begun_is_said_to_be_not_sent,
    others_do_not_notice_a_crash,
    a_handler_without_memory_takes_its_worker_alone,
    a_fork_bomb_is_contained,
    a_fork_bomb_that_survives_its_worker_is_contained,
    threads_left_by_initialize_fail_the_start,
    a_worker_that_cannot_start_fails_the_start,
    a_worker_that_dies_at_the_start_fails_the_start,
    hooks_run_where_they_belong,
    without_workers_the_same_hooks_run_in_the_server,
    workers_have_no_descriptor_that_is_not_theirs,
    each_worker_has_random_numbers_of_its_own,
    sessions_have_numbers_of_their_own,
    a_number_of_workers_that_cannot_be_had_is_refused,
    signals_with_handlers_are_passed_on_to_all_workers,
    a_handler_may_stop_the_whole_server,
    what_a_handler_says_of_listeners_holds_for_all_workers,
    descriptors_pass_both_ways,
];

pub fn pid() -> i32 {
    Pid::this().as_raw()
}

/// A server that tells which process answers, and whose handlers do whatever kills a process.
pub fn server(workers: usize) -> Server {
    crate::server()
        .handle("pid", |_, (): ()| Ok(pid()))
        .handle("worker", |ctx, (): ()| {
            Ok(ctx.worker().map(|worker| (worker.slot, worker.generation)))
        })
        .handle("signal", |_, number: i32| {
            let signal = Signal::try_from(number)?;
            raise(signal)?;
            Ok(())
        })
        .handle("fault", |_, (): ()| {
            let nowhere = std::ptr::without_provenance_mut::<u8>(8);
            unsafe { std::hint::black_box(nowhere).write_volatile(1) };
            Ok(())
        })
        .handle("exit", |_, status: i32| -> Result<(), Fault> {
            std::process::exit(status)
        })
        .handle("abort", |_, (): ()| -> Result<(), Fault> {
            std::process::abort()
        })
        .handle("overflow", |_, (): ()| Ok(recurse(0)))
        .prefork(Prefork::new(workers).min_uptime(Duration::ZERO))
}

#[expect(unconditional_recursion)]
fn recurse(depth: u64) -> u64 {
    let block = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + block[(depth % 64) as usize]
}

pub fn pool(server: &ServerHandle) -> PoolStatus {
    server.status().unwrap().pool.expect("it has workers")
}

pub fn pids(server: &ServerHandle) -> BTreeSet<u32> {
    pool(server)
        .workers
        .iter()
        .map(|worker| worker.pid)
        .collect()
}

/// Waits until the pool is as it shall be.
pub fn until(server: &ServerHandle, what: &str, is_so: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
    let begun = Instant::now();
    loop {
        let status = pool(server);
        if is_so(&status) {
            return status;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{what}: {status:#?}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn all_serve(count: usize) -> impl Fn(&PoolStatus) -> bool {
    move |pool| {
        let serving = pool
            .workers
            .iter()
            .filter(|worker| worker.phase == WorkerPhase::Serving);
        serving.count() == count && pool.workers.len() == count
    }
}

fn workers_serve_what_was_preloaded_once() {
    let server = server(3)
        .initialize(|_| Ok((pid(), vec![7_u8; 1 << 20])))
        .handle("state", |ctx, (): ()| {
            let (pid, table) = ctx.state::<(i32, Vec<u8>)>();
            Ok((*pid, table.iter().map(|byte| u64::from(*byte)).sum::<u64>()))
        })
        .start()
        .unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..12 {
        let mut client = Client::connect(server.address()).unwrap();
        let (made_by, sum): (i32, u64) = client.call("state", &()).unwrap();
        assert_eq!(made_by, server.pid() as i32, "the monitor preloads");
        assert_eq!(sum, 7 << 20);
        let worker: i32 = client.call("pid", &()).unwrap();
        assert_ne!(worker, server.pid() as i32, "the monitor runs no handler");
        seen.insert(worker as u32);
    }
    assert_eq!(seen, pids(&server), "all workers serve");
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

/// How many connections each of four workers has.
fn spread(server: &ServerHandle, mut clients: Vec<Client>) -> Vec<usize> {
    let mut counts: BTreeMap<i32, usize> = pids(server)
        .into_iter()
        .map(|pid| (pid as i32, 0))
        .collect();
    for client in &mut clients {
        *counts.entry(client.call("pid", &()).unwrap()).or_default() += 1;
    }
    counts.into_values().collect()
}

/// Waits until no thread of these processes has anything to do.
fn until_asleep(processes: &BTreeSet<u32>) {
    let state = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    let is_asleep = |process: &u32| {
        let mut tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
        tasks.all(|task| state(task) == Some('S'))
    };
    while !processes.iter().all(is_asleep) {
        std::thread::yield_now();
    }
}

fn sixteen_lasting_connections_are_spread_evenly() {
    let server = server(4).start().unwrap();
    let workers = pids(&server);
    let mut clients = Vec::new();
    for _ in 0..16 {
        // Whoever waits for a processor because others use it gets no client meanwhile, which is as it should be.
        until_asleep(&workers);
        let mut client = Client::connect(server.address()).unwrap();
        client.call::<_, i32>("pid", &()).unwrap();
        clients.push(client);
    }
    let counts = spread(&server, clients);
    // With threads, whoever has just served a newcomer stays with it for a moment, and looks at no others.
    let (least, most) = match crate::harness::engine() {
        Engine::Evented => (3, 5),
        _ => (1, 9),
    };
    let is_even = |count: &usize| (least..=most).contains(count);
    assert!(counts.iter().all(is_even), "{counts:?}");
}

fn connections_that_come_at_once_are_spread_evenly() {
    for _ in 0..5 {
        let server = server(4).start().unwrap();
        // All are there before anybody has said anything.
        let connect = |_| Client::connect(server.address()).unwrap();
        let counts = spread(&server, (0..16).map(connect).collect());
        assert!(
            counts.iter().all(|count| (1..=8).contains(count)),
            "{counts:?}"
        );
    }
}

fn ten_thousand_short_connections_are_spread_evenly() {
    let server = server(4).start().unwrap();
    let workers = pids(&server);
    let mut counts = BTreeMap::<i32, usize>::new();
    for _ in 0..10_000 {
        until_asleep(&workers);
        let client = Client::connect(server.address()).unwrap();
        *counts
            .entry(client.call_last("pid", &()).unwrap())
            .or_default() += 1;
    }
    let most = *counts.values().max().unwrap() as f64;
    let least = *counts.values().min().unwrap() as f64;
    assert!(counts.len() == 4 && most / least <= 1.5, "{counts:?}");
}

fn an_owners_connections_are_served_in_turn() {
    let server = server(4).start().unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect().unwrap()).collect();
    let mut counts = BTreeMap::<i32, usize>::new();
    for client in &mut clients {
        *counts.entry(client.call("pid", &()).unwrap()).or_default() += 1;
    }
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [2, 2, 2, 2]);
}

fn a_full_worker_keeps_nobody_from_the_others() {
    let mut limits = Limits::default();
    limits.max_connections = 1;
    let server = server(2).limits(limits).start().unwrap();
    let connect = || {
        let client = Client::connect(server.address()).unwrap();
        let mut client = client.with_timeout(Duration::from_secs(5));
        client.call::<_, i32>("pid", &()).unwrap();
        client
    };
    let (mut one, mut other) = (connect(), connect());
    for _ in 0..50 {
        // Whoever is full was told of the next one, too, if it was its turn.
        one = connect_behind(one, &connect);
        other = connect_behind(other, &connect);
    }
    drop((one, other));
}

/// A connection in the place of one that ends.
fn connect_behind(former: Client, connect: &impl Fn() -> Client) -> Client {
    drop(former);
    let begun = Instant::now();
    let client = connect();
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    client
}

fn an_owner_whose_first_listener_speaks_otherwise_is_served() {
    let server = server(2)
        .listen(Listener::private().name("old").passenger())
        .listen(Listener::private())
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    server.reload().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    let err = client.call::<_, ()>("abort", &()).unwrap_err();
    assert!(matches!(err, CallError::WorkerDied { .. }), "{err:?}");
    server.kill().unwrap();
}

fn a_killed_worker_costs_its_own_calls_and_is_replaced() {
    let server = server(2).start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let victim: i32 = client.call("pid", &()).unwrap();
    let worker = client.worker().expect("the welcome names it");
    let begun = Instant::now();
    let err = client
        .call::<_, ()>("signal", &(Signal::SIGKILL as i32))
        .unwrap_err();
    let told = begun.elapsed();
    let CallError::WorkerDied {
        worker: dead,
        exit,
        delivery,
    } = err
    else {
        panic!("{err:?}");
    };
    assert_eq!((dead, exit), (worker, Exit::Signal(9)));
    assert_eq!(delivery, Delivery::MaybeExecuted);
    assert!(told < Duration::from_millis(100), "{told:?}");
    let pool = until(&server, "it is replaced", |pool| {
        all_serve(2)(pool)
            && pool
                .workers
                .iter()
                .all(|worker| worker.pid != victim as u32)
    });
    let heir = pool
        .workers
        .iter()
        .find(|status| status.worker.slot == worker.slot)
        .unwrap();
    assert!(
        heir.worker.generation > worker.generation,
        "the slot is the same"
    );
    assert!(pool.events.iter().any(|(_, event)| {
        *event
            == PoolEvent::Died {
                worker,
                exit: Exit::Signal(9),
            }
    }));
    // The same client goes on, with another worker.
    let other: i32 = client.call("pid", &()).unwrap();
    assert_ne!(other, victim);
}

fn every_kind_of_death_is_named_to_the_caller() {
    let server = server(2).start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let mut death = |name: &str, arg: Option<i32>| {
        let result: Result<(), CallError> = match arg {
            Some(arg) => client.call(name, &arg),
            None if name == "overflow" => client.call::<_, u64>(name, &()).map(drop),
            None => client.call(name, &()),
        };
        match result {
            Err(CallError::WorkerDied { exit, .. }) => exit,
            other => panic!("{name}: {other:?}"),
        }
    };
    assert_eq!(death("fault", None), Exit::Signal(libc::SIGSEGV));
    assert_eq!(
        death("signal", Some(libc::SIGILL)),
        Exit::Signal(libc::SIGILL)
    );
    assert_eq!(
        death("signal", Some(libc::SIGKILL)),
        Exit::Signal(libc::SIGKILL)
    );
    assert_eq!(death("exit", Some(0)), Exit::Code(0));
    assert_eq!(death("exit", Some(7)), Exit::Code(7));
    assert_eq!(death("abort", None), Exit::Signal(libc::SIGABRT));
    assert_eq!(death("overflow", None), Exit::Signal(libc::SIGABRT));
    until(&server, "all are replaced", all_serve(2));
}

fn a_call_that_was_not_begun_is_said_to_be_not_sent() {
    let (mut entered, enter) = std::io::pipe().unwrap();
    let server = server(1)
        .keep_fd(&enter)
        .handle("wait", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            std::thread::sleep(Duration::from_secs(30));
            Ok(())
        })
        .start()
        .unwrap();
    let victim = *pids(&server).first().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let first = client.begin::<_, ()>("wait", &()).unwrap();
    let second = client.begin::<_, i32>("pid", &()).unwrap();
    client.flush().unwrap();
    entered.read_exact(&mut [0]).unwrap();
    kill(Pid::from_raw(victim as i32), Signal::SIGKILL).unwrap();
    let err = client.finish(second).unwrap_err();
    assert!(matches!(err, CallError::WorkerDied { .. }), "{err:?}");
    assert_eq!(err.delivery(), Delivery::NotSent);
    let err = client.finish(first).unwrap_err();
    assert_eq!(err.delivery(), Delivery::MaybeExecuted, "it was begun");
}

fn others_do_not_notice_a_crash() {
    let server = server(2).start().unwrap();
    let mut clients: Vec<_> = (0..2).map(|_| server.connect().unwrap()).collect();
    let pids: Vec<i32> = clients
        .iter_mut()
        .map(|client| client.call("pid", &()).unwrap())
        .collect();
    assert_ne!(pids[0], pids[1]);
    clients[0].call::<_, ()>("abort", &()).unwrap_err();
    let same: i32 = clients[1].call("pid", &()).unwrap();
    assert_eq!(same, pids[1]);
    until(&server, "it is replaced", all_serve(2));
}

fn a_handler_without_memory_takes_its_worker_alone() {
    let server = server(2)
        .rlimit(forkserver::Resource::RLIMIT_AS, 1 << 30)
        .handle("eat", |_, (): ()| {
            Ok(std::hint::black_box(vec![1_u8; 2 << 30]).len() as u64)
        })
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let err = client.call::<_, u64>("eat", &()).unwrap_err();
    assert!(
        matches!(
            err,
            CallError::WorkerDied {
                exit: Exit::Signal(libc::SIGABRT),
                ..
            }
        ),
        "{err:?}"
    );
    client.call::<_, i32>("pid", &()).unwrap();
    until(&server, "it is replaced", all_serve(2));
}

fn a_fork_bomb_is_contained() {
    // A user that nobody else is: the limit counts all processes of a user.
    const NOBODY_ELSE: u32 = 54_321;
    let server = server(2)
        .user(NOBODY_ELSE, NOBODY_ELSE)
        .rlimit(forkserver::Resource::RLIMIT_NPROC, 60)
        .handle("bomb", |_, (): ()| {
            let mut children = 0_u32;
            loop {
                match unsafe { libc::fork() } {
                    0 => {
                        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                        std::thread::sleep(Duration::from_secs(20));
                        unsafe { libc::_exit(0) }
                    }
                    child if child < 0 => return Ok(children),
                    _ => children += 1,
                }
            }
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let children: u32 = client.call("bomb", &()).unwrap();
    assert!(children < 60, "{children}");
    // The other worker is there, and so is this one.
    for _ in 0..4 {
        server
            .connect()
            .unwrap()
            .call::<_, i32>("pid", &())
            .unwrap();
    }
    drop(client);
    server.stop().unwrap();
    // The children went with their parent, and are reaped by the test.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
}

/// What a handler has forked, and what that has, is not the server's to end: it takes the room that its user has, for as long
/// as it lives.
fn a_fork_bomb_that_survives_its_worker_is_contained() {
    // A user that nobody else is, nor this test with the other engine.
    let nobody_else = match crate::harness::engine() {
        Engine::Evented => 54_322,
        _ => 54_323,
    };
    fn bomb(lives: &std::io::PipeReader) -> u32 {
        for children in 0.. {
            match unsafe { libc::fork() } {
                0 => {
                    bomb(lives);
                    let _ = (&*lives).read(&mut [0]);
                    unsafe { libc::_exit(0) }
                }
                child if child < 0 => return children,
                _ => {}
            }
        }
        0
    }
    let (lives, ends) = std::io::pipe().unwrap();
    // It sees the end when this process lets go, and not before.
    let server = server(2)
        .user(nobody_else, nobody_else)
        .rlimit(forkserver::Resource::RLIMIT_NPROC, 40)
        .keep_fd(&lives)
        .handle("bomb", move |_, (): ()| Ok(bomb(&lives)))
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    assert!(client.call::<_, u32>("bomb", &()).unwrap() > 0);
    // Whether their successors can begin while there is no room is up to the engine; the server lives.
    for pid in &before {
        kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).unwrap();
    }
    until(&server, "both have died", |pool| {
        pool.workers
            .iter()
            .all(|worker| !before.contains(&worker.pid))
    });
    drop(ends);
    until(&server, "there is room again", |pool| {
        // Whom nobody has reaped takes room, and this process is who the orphans have.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        all_serve(2)(pool)
    });
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    server.stop().unwrap();
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
}

fn threads_left_by_initialize_fail_the_start() {
    let err = server(2)
        .initialize(|_| {
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
            Ok(())
        })
        .start()
        .unwrap_err();
    assert!(
        matches!(err, StartError::MultiThreaded { threads: 2 }),
        "{err:?}"
    );
}

fn a_worker_that_cannot_start_fails_the_start() {
    let err = server(2)
        .worker_started(|control| match control.status().connections {
            0 => Err(Fault::new("no luck")),
            _ => Ok(()),
        })
        .start()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::Hook { hook, message } if hook == "worker_started" && message == "no luck"),
        "{err:?}"
    );
}

fn a_worker_that_dies_at_the_start_fails_the_start() {
    let err = server(2)
        .worker_started(|_| -> Result<(), Fault> { std::process::abort() })
        .start()
        .unwrap_err();
    assert!(err.to_string().contains("signal 6"), "{err}");
}

fn hooks_run_where_they_belong() {
    let (read, write) = std::io::pipe().unwrap();
    let write = std::sync::Arc::new(write);
    let say = |text: &'static str| {
        let write = std::sync::Arc::clone(&write);
        // In one write: two workers say it at the same time.
        move |_: &forkserver::Control| {
            let line = format!("{text} {}\n", pid());
            (&*write).write_all(line.as_bytes()).unwrap();
        }
    };
    let (initialize, started, exiting, finalize) = (
        say("initialize"),
        say("started"),
        say("exiting"),
        say("finalize"),
    );
    let server = server(2)
        .keep_fd(&*write)
        .initialize(move |control| {
            initialize(control);
            Ok(())
        })
        .worker_started(move |control| {
            started(control);
            Ok(pid())
        })
        .worker_exiting(exiting)
        .finalize(finalize)
        .handle("made by", |ctx, (): ()| {
            Ok((*ctx.worker_state::<i32>(), pid()))
        })
        .start()
        .unwrap();
    let (made_by, asked): (i32, i32) = server.connect().unwrap().call("made by", &()).unwrap();
    assert_eq!(made_by, asked);
    let (monitor, workers) = (server.pid(), pids(&server));
    server.stop().unwrap();
    drop(write);
    let mut text = String::new();
    std::io::BufReader::new(read)
        .read_to_string(&mut text)
        .unwrap();
    let by = |what: &str| -> Vec<u32> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.map(|pid| pid.trim().parse().unwrap()).collect()
    };
    assert_eq!(by("initialize"), [monitor]);
    assert_eq!(by("started").into_iter().collect::<BTreeSet<_>>(), workers);
    assert_eq!(by("exiting").into_iter().collect::<BTreeSet<_>>(), workers);
    assert_eq!(by("finalize"), [monitor]);
    assert!(
        text.starts_with("initialize") && text.trim_end().ends_with(&format!("finalize {monitor}"))
    );
}

fn without_workers_the_same_hooks_run_in_the_server() {
    let (mut read, write) = std::io::pipe().unwrap();
    let write = std::sync::Arc::new(write);
    let said = std::sync::Arc::clone(&write);
    let server = crate::server()
        .keep_fd(&*write)
        .worker_started(|_| Ok(pid()))
        .worker_exiting(move |_| (&*said).write_all(b"exiting").unwrap())
        .handle("made by", |ctx, (): ()| {
            Ok((*ctx.worker_state::<i32>(), ctx.worker().is_some()))
        })
        .start()
        .unwrap();
    let made_by: (i32, bool) = server.connect().unwrap().call("made by", &()).unwrap();
    assert_eq!(made_by, (server.pid() as i32, false));
    server.stop().unwrap();
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "exiting");
}

fn workers_have_no_descriptor_that_is_not_theirs() {
    let server = server(3)
        .initialize(|_| Ok(std::fs::File::open("/dev/zero")?))
        .start()
        .unwrap();
    // One of a later generation sees most of the others.
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    // Whoever was asked what became of it may not have seen yet that nobody asks any more.
    let is_quiet = |pool: &PoolStatus| {
        all_serve(3)(pool) && pool.workers.iter().all(|worker| worker.connections == 0)
    };
    let pool = until(&server, "it is replaced", is_quiet);
    for worker in pool.workers {
        let open = crate::harness::descriptors(&worker.pid.to_string());
        let mut counts = BTreeMap::<String, usize>::new();
        for (number, target) in open {
            let is_poison = target == std::path::Path::new("/dev/null");
            if number.parse::<i32>().unwrap() > 2 && !is_poison {
                *counts.entry(crate::harness::kind(&target)).or_default() += 1;
            }
        }
        // Poison is /dev/null. Lifeline, and the signals' pipe with both ends.
        assert_eq!(counts.remove("pipe"), Some(3), "{counts:?}");
        // The listener, the control line.
        assert_eq!(counts.remove("socket"), Some(2), "{counts:?}");
        assert_eq!(
            counts.remove("/dev/zero"),
            Some(1),
            "what was preloaded stays"
        );
        // What wakes whom, and what one waits for; no timer, and nobody's process.
        counts.remove("anon_inode:[eventfd]");
        assert!(
            counts.remove("anon_inode:[eventpoll]") <= Some(2),
            "{counts:?}"
        );
        let directories = counts.keys().filter(|kind| kind.contains("forkserver"));
        assert_eq!(directories.count(), counts.len(), "{counts:?}");
    }
}

fn each_worker_has_random_numbers_of_its_own() {
    use rand::RngExt;
    let server = server(8)
        .initialize(|_| Ok(rand::rng().random::<u64>()))
        .handle("random", |_, (): ()| Ok(rand::rng().random::<u64>()))
        .start()
        .unwrap();
    let numbers: BTreeSet<u64> = (0..32)
        .map(|_| server.connect().unwrap().call("random", &()).unwrap())
        .collect();
    assert_eq!(numbers.len(), 32);
}

fn sessions_have_numbers_of_their_own() {
    let server = server(4)
        .handle("id", |ctx, (): ()| Ok(ctx.session_id()))
        .start()
        .unwrap();
    let ids: BTreeSet<u64> = (0..32)
        .map(|_| server.connect().unwrap().call("id", &()).unwrap())
        .collect();
    assert_eq!(ids.len(), 32);
}

fn a_number_of_workers_that_cannot_be_had_is_refused() {
    for count in [0, 256] {
        let err = server(count).start().unwrap_err();
        assert!(
            matches!(err, StartError::WorkerCount(wrong) if wrong == count),
            "{err:?}"
        );
    }
    let server = server(1).start().unwrap();
    for count in [0, 256] {
        let err = server.set_workers(count).unwrap_err();
        assert!(matches!(err, forkserver::ControlError::WorkerCount(wrong) if wrong == count));
    }
    let alone = crate::server().start().unwrap();
    assert!(matches!(
        alone.set_workers(2),
        Err(forkserver::ControlError::NoWorkers)
    ));
    assert!(matches!(
        alone.reload(),
        Err(forkserver::ControlError::NoWorkers)
    ));
    assert_eq!(alone.status().unwrap().pool, None);
}

fn signals_with_handlers_are_passed_on_to_all_workers() {
    let (mut read, write) = std::io::pipe().unwrap();
    let write = std::sync::Arc::new(write);
    let said = std::sync::Arc::clone(&write);
    let server = server(3)
        .keep_fd(&*write)
        .handle_signal(Signal::SIGUSR1, move |_| {
            (&*said).write_all(&pid().to_ne_bytes()).unwrap();
        })
        .start()
        .unwrap();
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGUSR1).unwrap();
    let mut seen = BTreeSet::new();
    for _ in 0..3 {
        let mut bytes = [0; 4];
        read.read_exact(&mut bytes).unwrap();
        seen.insert(i32::from_ne_bytes(bytes) as u32);
    }
    assert_eq!(seen, pids(&server));
}

fn a_handler_may_stop_the_whole_server() {
    let server = server(2)
        .handle("stop", |ctx, (): ()| {
            ctx.control().stop();
            Ok(())
        })
        .start()
        .unwrap();
    server
        .connect()
        .unwrap()
        .call::<_, ()>("stop", &())
        .unwrap();
    assert_eq!(server.wait(), Exit::Code(0));
}

fn what_a_handler_says_of_listeners_holds_for_all_workers() {
    let server = server(3)
        .handle("pause", |ctx, on: bool| {
            match on {
                true => ctx.control().pause(),
                false => ctx.control().resume(),
            }
            Ok(())
        })
        .start()
        .unwrap();
    let mut own = server.connect().unwrap();
    own.call::<_, ()>("pause", &true).unwrap();
    // The others are told by the monitor, which answers in order: when it has answered this, they have been told.
    server.pause().unwrap();
    let mut waiting = Client::connect(server.address())
        .unwrap()
        .with_timeout(Duration::from_millis(100));
    let err = waiting.call::<_, i32>("pid", &()).unwrap_err();
    assert!(matches!(err, CallError::TimedOut { .. }), "{err:?}");
    own.call::<_, ()>("pause", &false).unwrap();
    server.resume().unwrap();
    waiting.call::<_, i32>("pid", &()).unwrap();
}

fn descriptors_pass_both_ways() {
    let server = server(2)
        .handle("length", |_, file: Fd| {
            let mut text = String::new();
            std::fs::File::from(file.into_owned()?).read_to_string(&mut text)?;
            Ok(text.len() as u64)
        })
        .start()
        .unwrap();
    for _ in 0..4 {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"12345").unwrap();
        drop(write);
        let fd = Fd::from(std::os::fd::OwnedFd::from(read));
        let mut client = Client::connect(server.address()).unwrap();
        assert_eq!(client.call::<_, u64>("length", &fd).unwrap(), 5);
    }
}
