//! Pools at their edges: no time at all, names without end, workers that begin while something is said to all.

use crate::engine::cpu_time;
use crate::hostile::Raw;
use crate::pool_death::slow;
use crate::prefork::{all_serve, pids, pool, server, until};
use crate::processes::readable;
use forkserver::{Client, Exit, Fault, Listener, PoolEvent, Prefork, ServerHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

crate::tests![
    a_server_without_grace_reloads,
    a_hung_call_without_patience_is_told_once,
    a_call_timeout_without_end_blames_nobody,
    a_pause_holds_for_workers_that_are_starting,
    a_new_password_holds_for_workers_that_are_starting,
    an_event_with_a_long_text_is_kept_cut,
    six_hundred_long_calls_do_not_keep_the_status_back,
    a_worker_that_dies_while_the_server_ends_does_not_keep_it_from_finalizing,
    a_handler_that_exits_while_the_server_ends_does_not_keep_it_from_finalizing,
    a_worker_that_has_become_another_program_is_replaced,
    a_worker_that_stops_the_server_and_dies_has_stopped_it,
    other_threads_may_ask_while_one_reloads,
    a_stopped_listener_of_workers_turns_everybody_away_and_costs_no_time,
];

fn sleepy(prefork: Prefork) -> forkserver::Server {
    server(2)
        .handle("sleep", |_, millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(())
        })
        .prefork(prefork.min_uptime(Duration::ZERO))
}

fn monitor(server: &ServerHandle) -> Pid {
    Pid::from_raw(server.pid() as i32)
}

fn a_server_without_grace_reloads() {
    let server = server(2).grace(Duration::ZERO).start().unwrap();
    let before = pids(&server);
    kill(monitor(&server), Signal::SIGHUP).unwrap();
    until(&server, "all are new", |pool| {
        let is_new = |worker: &forkserver::WorkerStatus| !before.contains(&worker.pid);
        all_serve(2)(pool) && pool.workers.iter().all(is_new)
    });
}

fn a_hung_call_without_patience_is_told_once() {
    let impatient = Prefork::new(2)
        .call_timeout(Duration::ZERO)
        .kill_after(Duration::ZERO);
    let server = sleepy(impatient).start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, ()>("sleep", &60_000_u64).unwrap_err();
    let status = until(&server, "it is replaced", all_serve(2));
    let is_hung = |event: &&(Duration, PoolEvent)| matches!(event.1, PoolEvent::Hung { .. });
    assert_eq!(status.events.iter().filter(is_hung).count(), 1);
    let before = cpu_time(server.pid());
    // Nothing is to happen for a while; there is no event to wait for.
    assert!(!readable(&server, Duration::from_millis(500)));
    let spent = cpu_time(server.pid()) - before;
    assert!(spent < Duration::from_millis(50), "{spent:?}");
}

fn a_call_timeout_without_end_blames_nobody() {
    let time = Duration::from_nanos(u64::MAX);
    let patient = Prefork::new(2).call_timeout(time).kill_after(time);
    let server = sleepy(patient).start().unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("sleep", &50_u64).unwrap();
}

/// A server whose only worker is being replaced by one that takes its time, while `act` runs.
fn reloaded_while(act: impl FnOnce(&mut ServerHandle)) -> ServerHandle {
    let mut server = server(1)
        .worker_started(|_| {
            std::thread::sleep(Duration::from_millis(400));
            Ok(())
        })
        .start()
        .unwrap();
    let before = pids(&server);
    kill(monitor(&server), Signal::SIGHUP).unwrap();
    until(&server, "another is starting", |pool| {
        pool.workers.len() == 2
    });
    act(&mut server);
    until(&server, "it is there", |pool| {
        all_serve(1)(pool) && !before.contains(&pool.workers[0].pid)
    });
    server
}

fn a_pause_holds_for_workers_that_are_starting() {
    let server = reloaded_while(|server| server.pause().unwrap());
    let client = Client::connect(server.address()).unwrap();
    let mut client = client.with_timeout(Duration::from_millis(200));
    client.call::<_, i32>("pid", &()).unwrap_err();
    server.resume().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
}

fn a_new_password_holds_for_workers_that_are_starting() {
    let mut old = None;
    let server = reloaded_while(|server| {
        old = Some(server.address().clone());
        let password = forkserver::Password::generate().unwrap();
        server.rotate_password("default", password).unwrap();
    });
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    let mut client = Client::connect(&old.unwrap()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap_err();
}

fn an_event_with_a_long_text_is_kept_cut() {
    let file = std::env::temp_dir().join("spoilt");
    let looked_for = file.clone();
    let server = server(2)
        .worker_started(move |_| match looked_for.exists() {
            true => Err(Fault::new("no ".repeat(500))),
            false => Ok(()),
        })
        .start()
        .unwrap();
    std::fs::write(&file, "").unwrap();
    server.reload().unwrap_err();
    std::fs::remove_file(&file).unwrap();
    let events = pool(&server).events;
    let mut reasons = events.iter().filter_map(|(_, event)| match event {
        PoolEvent::NotStarted { reason, .. } => Some(reason),
        _ => None,
    });
    let reason = reasons.next().expect("it is kept");
    assert!(reason.contains("no no no"), "{reason}");
}

fn six_hundred_long_calls_do_not_keep_the_status_back() {
    const CALLS: usize = 600;
    let name = "n".repeat(250);
    let mut limits = forkserver::Limits::default();
    limits.max_threads = CALLS;
    let server = server(2)
        .engine(forkserver::Engine::Threaded)
        .limits(limits)
        .handle(name.clone(), |_, (): ()| {
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        })
        .start()
        .unwrap();
    let mut clients: Vec<_> = (0..CALLS).map(|_| server.connect().unwrap()).collect();
    let begin = |client: &mut Client| client.begin::<_, ()>(&name, &()).unwrap();
    let calls: Vec<_> = clients.iter_mut().map(begin).collect();
    let begun = Instant::now();
    while server.status().unwrap().calls < CALLS as u64 {
        assert!(begun.elapsed() < Duration::from_secs(15));
        std::thread::sleep(Duration::from_millis(50));
    }
    server.pause().unwrap();
    drop((calls, clients));
    server.kill().unwrap();
}

fn a_worker_that_dies_while_the_server_ends_does_not_keep_it_from_finalizing() {
    let file = std::env::temp_dir().join("finalized");
    let written = file.clone();
    let (server, mut entered) = slow(2);
    let server = server
        .finalize(move |_| std::fs::write(&written, "").unwrap())
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let worker: i32 = client.call("pid", &()).unwrap();
    let call = client.begin::<_, u64>("slow", &2_000_u64).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    kill(monitor(&server), Signal::SIGTERM).unwrap();
    // It ends: the first thing to go is its socket.
    while server.address().path().exists() {
        std::thread::yield_now();
    }
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    client.finish(call).unwrap_err();
    assert_eq!(server.wait(), Exit::Signal(15));
    std::fs::remove_file(file).expect("the hook has run");
}

fn a_handler_that_exits_while_the_server_ends_does_not_keep_it_from_finalizing() {
    let file = std::env::temp_dir().join("finalized");
    let written = file.clone();
    let (entered, enter) = std::io::pipe().unwrap();
    let (waits, go) = std::io::pipe().unwrap();
    let server = server(2)
        .keep_fd(&enter)
        .keep_fd(&waits)
        .handle("exit later", move |_, status: i32| -> Result<(), Fault> {
            (&enter).write_all(b"!")?;
            (&waits).read_exact(&mut [0])?;
            std::process::exit(status)
        })
        .finalize(move |_| std::fs::write(&written, "").unwrap())
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let call = client.begin::<_, ()>("exit later", &1_i32).unwrap();
    (&entered).read_exact(&mut [0]).unwrap();
    kill(monitor(&server), Signal::SIGTERM).unwrap();
    while server.address().path().exists() {
        std::thread::yield_now();
    }
    (&go).write_all(b"!").unwrap();
    client.finish(call).unwrap_err();
    assert_eq!(server.wait(), Exit::Signal(15));
    std::fs::remove_file(file).expect("the hook has run");
}

fn a_worker_that_has_become_another_program_is_replaced() {
    use std::os::unix::process::CommandExt;
    let server = server(1)
        .grace(Duration::from_millis(300))
        .handle("become", |_, (): ()| -> Result<(), Fault> {
            Err(std::process::Command::new("sleep").arg("20").exec().into())
        })
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("become", &()).unwrap_err();
    until(&server, "it is replaced", |pool| {
        all_serve(1)(pool) && !before.contains(&pool.workers[0].pid)
    });
}

fn a_worker_that_stops_the_server_and_dies_has_stopped_it() {
    let server = server(2)
        .handle("stop", |ctx, (): ()| -> Result<(), Fault> {
            for _ in 0..5 {
                ctx.control().pause();
            }
            ctx.control().stop();
            // Another thread tells the monitor, and nobody when it has.
            std::thread::sleep(Duration::from_millis(100));
            std::process::abort()
        })
        .engine(forkserver::Engine::Threaded)
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    // It sees all at once.
    kill(monitor(&server), Signal::SIGSTOP).unwrap();
    client.call::<_, ()>("stop", &()).unwrap_err();
    kill(monitor(&server), Signal::SIGCONT).unwrap();
    assert!(server.wait() != Exit::Unknown);
}

fn other_threads_may_ask_while_one_reloads() {
    let server = server(2)
        .worker_started(|_| {
            std::thread::sleep(Duration::from_millis(500));
            Ok(())
        })
        .start()
        .unwrap();
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| server.reload().unwrap());
        until(&server, "it has begun", |pool| pool.reloading);
        for _ in 0..10 {
            let begun = Instant::now();
            assert!(server.status().unwrap().pool.unwrap().reloading);
            assert!(begun.elapsed() < Duration::from_millis(400));
        }
        reload.join().unwrap();
    });
}

fn a_stopped_listener_of_workers_turns_everybody_away_and_costs_no_time() {
    let path = std::env::temp_dir().join("activated");
    let listener = UnixListener::bind(&path).unwrap();
    let server = server(2)
        .listen(Listener::from_fd(listener).name("main"))
        .listen(Listener::private().name("other"))
        .start()
        .unwrap();
    // Connections that last, one more in one worker than in the other: that one leaves newcomers to the other.
    let kept = [(), (), ()].map(|()| {
        let mut client = Client::connect(server.address_of("other").unwrap()).unwrap();
        client.call::<_, i32>("pid", &()).unwrap();
        client
    });
    server.stop_listener("main").unwrap();
    let burst = [(); 20].map(|()| Raw::from(UnixStream::connect(&path).unwrap()));
    for mut refused in burst {
        refused.read_to_end();
    }
    let workers = pids(&server);
    let spent = || workers.iter().map(|pid| cpu_time(*pid)).sum::<Duration>();
    let before = spent();
    // Nothing is to happen for a while; there is no event to wait for.
    assert!(!readable(&server, Duration::from_millis(300)));
    let spent = spent() - before;
    assert!(spent < Duration::from_millis(50), "{spent:?}");
    server.start_listener("main").unwrap();
    let mut newcomer = Client::connect(server.address_of("main").unwrap()).unwrap();
    newcomer.call::<_, i32>("pid", &()).unwrap();
    drop(kept);
    std::fs::remove_file(path).unwrap();
}
