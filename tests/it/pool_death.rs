//! The ends of a monitor, its workers and their owner: who goes with whom, and how soon.

use crate::prefork::{all_serve, pids, server, until};
use crate::processes::{Helper, Watched};
use forkserver::{CallError, Client, Exit, Listener, Prefork, ServerHandle, StopError};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::io::{PipeReader, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

crate::tests![
    idle_workers_go_with_their_monitor,
    busy_workers_of_a_killed_monitor_end_with_the_grace,
    all_of_a_killed_owner_end_within_one_grace,
    a_stopped_worker_ends_when_it_goes_on,
    the_socket_of_a_killed_monitor_is_removed,
    the_path_of_a_killed_monitor_can_be_used_at_once,
    a_stop_answers_what_is_under_way,
    a_stop_that_has_no_patience_kills_the_workers,
    a_kill_ends_all_at_once,
    a_signal_ends_all_and_is_told,
    a_signal_at_any_moment_leaves_nothing,
    a_stop_while_workers_start_leaves_nothing,
    a_start_that_takes_too_long_leaves_nothing,
    a_stop_during_a_reload_leaves_nothing,
    a_monitor_may_be_the_callers_own_process,
    a_program_that_a_handler_has_started_keeps_nobody_alive,
    workers_do_not_keep_each_other_alive,
    a_thousand_deaths_leave_no_descriptor,
    a_caller_whom_nobody_can_tell_how_its_worker_died_is_disconnected,
    an_owners_connection_is_not_given_to_a_dead_worker,
    a_call_that_was_not_sent_keeps_no_descriptor,
];

const GRACE: Duration = Duration::from_millis(400);
const SLACK: Duration = Duration::from_millis(50);

/// An owner of three workers, two of which never end what they do.
struct Tree {
    owner: Helper,
    monitor: Watched,
    busy: Vec<Watched>,
    idle: Vec<Watched>,
    path: PathBuf,
}

fn tree() -> Tree {
    let mut owner = Helper::start(|test| {
        let (mut entered, enter) = std::io::pipe().unwrap();
        let server = server(3)
            .grace(GRACE)
            .keep_fd(&enter)
            .handle("hang", move |_, spins: bool| {
                (&enter).write_all(b"!")?;
                if spins {
                    loop {
                        std::hint::spin_loop();
                    }
                }
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            })
            .start()
            .unwrap();
        test.say(server.pid());
        test.say(server.address().path().display());
        let mut clients: Vec<_> = (0..3).map(|_| server.connect().unwrap()).collect();
        for client in &mut clients {
            test.say(client.call::<_, i32>("pid", &()).unwrap());
        }
        let hang =
            |client: &mut Client, spins: bool| client.begin::<_, ()>("hang", &spins).unwrap();
        let calls = (hang(&mut clients[0], true), hang(&mut clients[1], false));
        entered.read_exact(&mut [0; 2]).unwrap();
        test.say("busy");
        test.wait();
        drop((calls, clients, server));
    });
    let monitor = owner.hear_pid();
    let path = owner.hear().into();
    let busy = vec![owner.hear_pid(), owner.hear_pid()];
    let idle = vec![owner.hear_pid()];
    assert_eq!(owner.hear(), "busy");
    Tree {
        owner,
        monitor,
        busy,
        idle,
        path,
    }
}

/// All workers of a server.
fn workers_of(server: &ServerHandle) -> Vec<Watched> {
    let pids = pids(server).into_iter();
    pids.map(|pid| Watched::open(pid as i32)).collect()
}

/// Waits for the ends of orphans, which have become ours, unless their monitor has reaped them.
fn end_within(processes: Vec<Watched>, limit: Duration) {
    let begun = Instant::now();
    for process in &processes {
        process.ends_within(limit.saturating_sub(begun.elapsed()));
    }
    for process in processes {
        // It becomes ours when its parent is gone, which may be a moment after its own end.
        let is_there = || std::path::Path::new(&format!("/proc/{}", process.pid)).exists();
        while nix::sys::wait::waitpid(process.pid, None).is_err() && is_there() {
            assert!(begun.elapsed() < limit + Duration::from_secs(2));
        }
    }
}

fn idle_workers_go_with_their_monitor() {
    let Tree {
        owner,
        monitor,
        busy,
        idle,
        ..
    } = tree();
    kill(monitor.pid, Signal::SIGKILL).unwrap();
    end_within(idle, SLACK * 2);
    end_within(busy, GRACE + SLACK);
    owner.kill();
    monitor.reap();
}

fn busy_workers_of_a_killed_monitor_end_with_the_grace() {
    let Tree {
        owner,
        monitor,
        busy,
        idle,
        ..
    } = tree();
    let begun = Instant::now();
    kill(monitor.pid, Signal::SIGKILL).unwrap();
    end_within(busy, GRACE + SLACK);
    assert!(
        begun.elapsed() >= GRACE - Duration::from_millis(20),
        "{:?}",
        begun.elapsed()
    );
    end_within(idle, Duration::from_secs(1));
    owner.kill();
    monitor.reap();
}

fn all_of_a_killed_owner_end_within_one_grace() {
    let Tree {
        owner,
        monitor,
        busy,
        idle,
        path,
    } = tree();
    owner.kill();
    end_within(
        vec![monitor].into_iter().chain(busy).chain(idle).collect(),
        GRACE + SLACK * 2,
    );
    assert!(!path.exists() && !path.parent().unwrap().exists());
}

fn a_stopped_worker_ends_when_it_goes_on() {
    let Tree {
        owner,
        monitor,
        busy,
        mut idle,
        ..
    } = tree();
    let stopped = idle.remove(0);
    kill(stopped.pid, Signal::SIGSTOP).unwrap();
    owner.kill();
    end_within(busy, GRACE + SLACK * 2);
    monitor.ends_within(Duration::from_secs(1));
    monitor.reap();
    // The monitor has killed it, if it was quicker than its own end.
    let _ = kill(stopped.pid, Signal::SIGCONT);
    end_within(vec![stopped], GRACE + Duration::from_millis(500));
}

fn the_socket_of_a_killed_monitor_is_removed() {
    let Tree {
        owner,
        monitor,
        busy,
        idle,
        path,
    } = tree();
    kill(monitor.pid, Signal::SIGKILL).unwrap();
    end_within(idle, Duration::from_secs(1));
    assert!(!path.exists() && !path.parent().unwrap().exists());
    end_within(busy, GRACE + SLACK);
    owner.kill();
    monitor.reap();
}

fn the_path_of_a_killed_monitor_can_be_used_at_once() {
    let path = std::env::temp_dir().join("socket");
    let definition = server(2).listen(Listener::at(&path)).grace(GRACE);
    let first = definition.start().unwrap();
    let workers = workers_of(&first);
    let mut client = Client::connect(first.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    kill(Pid::from_raw(first.pid() as i32), Signal::SIGKILL).unwrap();
    let watched = Watched::server(&first);
    watched.ends_within(Duration::from_secs(1));
    let second = definition.start().unwrap();
    let mut client = Client::connect(second.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    end_within(workers, GRACE + SLACK);
    // What the first leaves is not the second's.
    drop(first);
    let mut client = Client::connect(second.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    second.stop().unwrap();
    assert!(!path.exists());
}

/// A server whose calls take as long as they are told to, and what says so when one has begun.
pub fn slow(workers: usize) -> (forkserver::Server, PipeReader) {
    let (entered, enter) = std::io::pipe().unwrap();
    let server = server(workers).keep_fd(&enter);
    let server = server.handle("slow", move |_, millis: u64| {
        (&enter).write_all(b"!")?;
        std::thread::sleep(Duration::from_millis(millis));
        Ok(millis)
    });
    (server, entered)
}

fn a_stop_answers_what_is_under_way() {
    let (definition, mut entered) = slow(2);
    let server = definition.start().unwrap();
    let mut clients: Vec<_> = (0..2).map(|_| server.connect().unwrap()).collect();
    for client in &mut clients {
        client.call::<_, i32>("pid", &()).unwrap();
    }
    let calls: Vec<_> = clients
        .iter_mut()
        .map(|client| client.begin::<_, u64>("slow", &300_u64).unwrap())
        .collect();
    entered.read_exact(&mut [0; 2]).unwrap();
    let begun = Instant::now();
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    for (client, call) in clients.iter_mut().zip(calls) {
        assert_eq!(client.finish(call).unwrap(), 300);
        let err = client.call::<_, i32>("pid", &()).unwrap_err();
        assert_eq!(err.delivery(), forkserver::Delivery::NotSent, "{err:?}");
    }
}

fn a_stop_that_has_no_patience_kills_the_workers() {
    let (definition, mut entered) = slow(2);
    let server = definition.start().unwrap();
    let workers = workers_of(&server);
    let mut client = server.connect().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    let call = client.begin::<_, u64>("slow", &60_000_u64).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    let exit = server.stop_within(Duration::from_millis(300)).unwrap();
    assert!(
        begun.elapsed() < Duration::from_millis(500),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(exit, Exit::Code(1), "something was not finished");
    for worker in workers {
        worker.ends_within(Duration::ZERO);
    }
    client.finish(call).unwrap_err();
}

fn a_kill_ends_all_at_once() {
    let (definition, mut entered) = slow(3);
    let server = definition.grace(Duration::from_secs(30)).start().unwrap();
    let path = server.address().path().to_owned();
    let workers = workers_of(&server);
    let mut client = server.connect().unwrap();
    let call = client.begin::<_, u64>("slow", &60_000_u64).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    server.kill().unwrap();
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "{:?}",
        begun.elapsed()
    );
    for worker in workers {
        worker.ends_within(Duration::ZERO);
    }
    assert!(!path.exists());
    client.finish(call).unwrap_err();
}

fn a_signal_ends_all_and_is_told() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let server = server(3).start().unwrap();
        let workers = workers_of(&server);
        kill(Pid::from_raw(server.pid() as i32), signal).unwrap();
        assert_eq!(server.wait(), Exit::Signal(signal as i32));
        for worker in workers {
            worker.ends_within(Duration::ZERO);
        }
        assert!(!server.address().path().exists());
    }
}

fn a_signal_at_any_moment_leaves_nothing() {
    for delay in 0..60 {
        let server = server(3).grace(GRACE).start().unwrap();
        let mut client = Client::connect(server.address()).unwrap();
        let monitor = Pid::from_raw(server.pid() as i32);
        match delay % 3 {
            0 => {}
            1 => kill(monitor, Signal::SIGHUP).unwrap(),
            _ => drop(client.call::<_, ()>("abort", &())),
        }
        // Not an event that could be waited for: any moment will do.
        std::thread::sleep(Duration::from_micros(100 * delay));
        kill(monitor, Signal::SIGTERM).unwrap();
        assert_eq!(server.wait(), Exit::Signal(15), "after {delay}");
        assert!(!server.address().path().exists());
        let err = client.call::<_, i32>("pid", &());
        assert!(err.is_err(), "{err:?}");
    }
    // The harness sees that no child and no file is left.
}

fn a_stop_while_workers_start_leaves_nothing() {
    let file = std::env::temp_dir().join("slow");
    for delay in [0, 1, 5, 20, 100] {
        let server = crate::supervision::slow_while(&file, 2).start().unwrap();
        std::fs::write(&file, "").unwrap();
        server.set_workers(4).unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let begun = Instant::now();
        let exit = server.stop_within(Duration::from_millis(500)).unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{exit} after {took:?}");
        std::fs::remove_file(&file).unwrap();
    }
}

fn a_start_that_takes_too_long_leaves_nothing() {
    let begun = Instant::now();
    let err = server(3)
        .start_timeout(Duration::from_millis(200))
        .grace(GRACE)
        .worker_started(|_| {
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        })
        .start()
        .unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    let text = err.to_string();
    assert!(
        text.contains("not ready") || text.contains("died before"),
        "{text}"
    );
    // Those that the monitor has left, if it was killed itself, end with their grace.
    let begun = Instant::now();
    loop {
        match nix::sys::wait::waitpid(None, None) {
            Err(nix::errno::Errno::ECHILD) => break,
            _ => assert!(begun.elapsed() < GRACE + Duration::from_secs(1)),
        }
    }
}

fn a_stop_during_a_reload_leaves_nothing() {
    for delay in 0..20 {
        let server = server(3).start().unwrap();
        kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
        std::thread::sleep(Duration::from_micros(300 * delay));
        assert_eq!(server.stop().unwrap(), Exit::Code(0), "after {delay}");
    }
}

fn a_monitor_may_be_the_callers_own_process() {
    let path = std::env::temp_dir().join("address");
    let save = path.clone();
    let mut host = Helper::start(move |test| {
        let exit = server(2)
            .initialize(move |control| Ok(control.address().save(&save)?))
            .run()
            .unwrap();
        test.say(format_args!("{exit}"));
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
        test.say(format_args!("left: {children:?}"));
    });
    let begun = Instant::now();
    let mut client = loop {
        match forkserver::Address::load(&path).and_then(|address| Client::connect(&address)) {
            Ok(client) => break client,
            Err(err) => assert!(begun.elapsed() < Duration::from_secs(10), "{err}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let worker: i32 = client.call("pid", &()).unwrap();
    assert_ne!(worker, host.pid.as_raw());
    let err = client.call::<_, ()>("abort", &()).unwrap_err();
    assert!(matches!(err, CallError::WorkerDied { .. }), "{err:?}");
    client.call::<_, i32>("pid", &()).unwrap();
    kill(host.pid, Signal::SIGTERM).unwrap();
    assert_eq!(host.hear(), "ended by signal 15");
    assert_eq!(host.hear(), "left: \"\"");
    host.finish();
    std::fs::remove_file(path).unwrap();
}

fn a_program_that_a_handler_has_started_keeps_nobody_alive() {
    let mut owner = Helper::start(|test| {
        let server = server(2)
            .grace(GRACE)
            .handle("start", |_, (): ()| {
                let child = std::process::Command::new("sleep").arg("30").spawn()?;
                Ok(child.id())
            })
            .start()
            .unwrap();
        test.say(server.pid());
        let mut client = server.connect().unwrap();
        test.say(client.call::<_, u32>("start", &()).unwrap());
        test.wait();
        drop(server);
    });
    let monitor = owner.hear_pid();
    let program = owner.hear_pid();
    owner.kill();
    monitor.ends_within(GRACE + SLACK * 2);
    assert!(program.is_alive());
    kill(program.pid, Signal::SIGKILL).unwrap();
    assert!(matches!(program.reap(), WaitStatus::Signaled(..)));
    monitor.reap();
}

fn workers_do_not_keep_each_other_alive() {
    // Those that were forked later must not hold the lines of those before them.
    let server = server(4).grace(GRACE).start().unwrap();
    let mut clients: Vec<_> = (0..4).map(|_| server.connect().unwrap()).collect();
    for client in &mut clients {
        client.call::<_, ()>("abort", &()).unwrap_err();
    }
    until(&server, "all are replaced", all_serve(4));
    let workers = workers_of(&server);
    // One is stopped, and holds whatever it holds.
    kill(workers[0].pid, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGKILL).unwrap();
    for worker in &workers[1..] {
        worker.ends_within(SLACK * 4);
    }
    kill(workers[0].pid, Signal::SIGCONT).unwrap();
    end_within(workers, GRACE + SLACK);
    assert!(matches!(
        server.stop(),
        Ok(Exit::Signal(9)) | Err(StopError::Io { .. })
    ));
}

fn a_thousand_deaths_leave_no_descriptor() {
    let server = server(4)
        .prefork(Prefork::new(4).min_uptime(Duration::ZERO))
        .start()
        .unwrap();
    let count = || crate::harness::descriptors(&server.pid().to_string()).len();
    let before = count();
    let mut deaths = 0;
    while deaths < 1_000 {
        let pids = pids(&server);
        for pid in &pids {
            deaths += 1;
            let _ = kill(Pid::from_raw(*pid as i32), Signal::SIGKILL);
        }
        until(&server, "they are replaced", |pool| {
            all_serve(4)(pool)
                && pool
                    .workers
                    .iter()
                    .all(|worker| !pids.contains(&worker.pid))
        });
    }
    assert_eq!(count(), before);
}

/// Waits until a process does nothing because it was told to stop.
fn until_stopped(pid: Pid) {
    let begun = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, state) = stat.rsplit_once(") ").unwrap();
        if state.starts_with('T') {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{stat}");
        std::thread::yield_now();
    }
}

/// Only the monitor learns of the death, and there is no other worker that could be asked.
fn a_caller_whom_nobody_can_tell_how_its_worker_died_is_disconnected() {
    // So long it asks; others would have told it in that time.
    const PATIENCE: Duration = Duration::from_millis(100);
    let server = server(1).start().unwrap();
    let before = pids(&server);
    let monitor = Pid::from_raw(server.pid() as i32);
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    kill(monitor, Signal::SIGSTOP).unwrap();
    until_stopped(monitor);
    let begun = Instant::now();
    let err = client.call::<_, ()>("abort", &()).unwrap_err();
    let took = begun.elapsed();
    kill(monitor, Signal::SIGCONT).unwrap();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err:?}");
    assert_eq!(err.delivery(), forkserver::Delivery::MaybeExecuted);
    assert!(took >= PATIENCE && took < PATIENCE * 4, "{took:?}");
    // The monitor makes up for it, and the same client goes on.
    until(&server, "it is replaced", |pool| {
        all_serve(1)(pool) && !before.contains(&pool.workers[0].pid)
    });
    client.call::<_, i32>("pid", &()).unwrap();
}

/// The monitor hears of the first connection before it sees that a worker is dead.
fn an_owners_connection_is_not_given_to_a_dead_worker() {
    let server = server(2).start().unwrap();
    let monitor = Pid::from_raw(server.pid() as i32);
    for _ in 0..20 {
        let status = until(&server, "both serve", all_serve(2));
        kill(monitor, Signal::SIGSTOP).unwrap();
        let clients: Vec<_> = (0..4).map(|_| server.connect().unwrap()).collect();
        let victim = Watched::open(status.workers[0].pid as i32);
        kill(victim.pid, Signal::SIGKILL).unwrap();
        victim.ends_within(Duration::from_secs(5));
        kill(monitor, Signal::SIGCONT).unwrap();
        for mut client in clients {
            // A call that has been begun does not turn to another worker by itself.
            let call = client.begin::<_, i32>("pid", &()).unwrap();
            client.finish(call).unwrap();
        }
    }
}

fn a_call_that_was_not_sent_keeps_no_descriptor() {
    let server = server(1)
        .handle("swallow", |_, _: forkserver::Fd| Ok(()))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    server.kill().unwrap();
    let (read, write) = std::io::pipe().unwrap();
    let fd = forkserver::Fd::from(std::os::fd::OwnedFd::from(write));
    let err = client.call::<_, ()>("swallow", &fd).unwrap_err();
    assert_eq!(err.delivery(), forkserver::Delivery::NotSent, "{err:?}");
    drop(fd);
    let is_closed = crate::processes::readable(&read, Duration::from_secs(2));
    assert!(is_closed, "the client keeps what it cannot send any more");
}
