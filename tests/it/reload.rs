//! Replacing workers while clients call.

use crate::prefork::{all_serve, pids, pool, server, until};
use crate::supervision::slow_while;
use forkserver::{CallError, Client, ControlError, Fault, PoolEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    no_call_is_lost_in_ten_reloads,
    new_connections_do_not_notice_ten_reloads,
    a_reload_replaces_all_one_after_the_other,
    a_hangup_reloads,
    a_handler_may_reload,
    a_reload_whose_workers_fail_is_given_up,
    a_reload_whose_workers_die_is_given_up,
    a_reload_whose_workers_hang_is_given_up,
    a_call_in_progress_is_answered_by_its_old_worker,
    a_hundred_hangups_during_calls_lose_none,
    a_stopped_listener_stays_stopped_in_new_workers,
    a_new_password_holds_in_new_workers,
    streams_are_told_to_stop_by_a_reload,
];

/// Has so many clients call in a loop while `meanwhile` runs; nothing may go wrong for them. How many calls there were.
pub fn calling(
    server: &forkserver::ServerHandle,
    clients: usize,
    keeps: bool,
    meanwhile: impl FnOnce(),
) -> u64 {
    let (done, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = server.address();
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut client = Client::connect(address).unwrap();
                while !done.load(Ordering::SeqCst) {
                    if !keeps {
                        client = Client::connect(address).unwrap();
                    }
                    client.call::<_, i32>("pid", &()).unwrap();
                    calls.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _end = Raised(&done);
        meanwhile();
    });
    calls.into_inner()
}

/// A flag that is raised in the end, also by a panic, so that nobody goes on for ever.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn no_call_is_lost_in_ten_reloads() {
    let server = server(2).start().unwrap();
    let before = pids(&server);
    let calls = calling(&server, 8, true, || {
        for _ in 0..10 {
            server.reload().unwrap();
        }
    });

    assert!(calls > 100, "{calls}");
    assert!(pids(&server).is_disjoint(&before));
}

fn new_connections_do_not_notice_ten_reloads() {
    let server = server(2).start().unwrap();
    let calls = calling(&server, 4, false, || {
        for _ in 0..10 {
            server.reload().unwrap();
        }
    });

    assert!(calls > 100, "{calls}");
}

fn a_reload_replaces_all_one_after_the_other() {
    let server = server(4).start().unwrap();
    let before = pids(&server);
    server.reload().unwrap();
    let status = pool(&server);
    assert!(all_serve(4)(&status) && !status.reloading, "{status:#?}");
    assert!(pids(&server).is_disjoint(&before));
    // Each successor was ready before its predecessor left, and the next one's turn came after that.
    let order: Vec<_> = status
        .events
        .iter()
        .skip_while(|(_, event)| !matches!(event, PoolEvent::Replaced { .. }))
        .map(|(_, event)| match event {
            PoolEvent::Replaced { .. } => 'x',
            PoolEvent::Ready { .. } => 'r',
            PoolEvent::Left { .. } => 'l',
            PoolEvent::Reloaded => 'e',
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(order.iter().collect::<String>(), "xrlxrlxrlxrle");
}

fn a_hangup_reloads() {
    let server = server(2).start().unwrap();
    let before = pids(&server);
    kill(Pid::from_raw(server.pid() as i32), Signal::SIGHUP).unwrap();
    until(&server, "all are new", |pool| {
        all_serve(2)(pool)
            && pool
                .workers
                .iter()
                .all(|worker| !before.contains(&worker.pid))
    });
}

fn a_handler_may_reload() {
    let server = server(2)
        .handle("reload", |ctx, (): ()| Ok(ctx.control().reload()))
        .start()
        .unwrap();
    let before = pids(&server);
    assert!(
        server
            .connect()
            .unwrap()
            .call::<_, bool>("reload", &())
            .unwrap()
    );
    until(&server, "all are new", |pool| {
        all_serve(2)(pool)
            && pool
                .workers
                .iter()
                .all(|worker| !before.contains(&worker.pid))
    });
}

fn a_reload_whose_workers_fail_is_given_up() {
    let file = std::env::temp_dir().join("spoilt");
    let spoilt = file.clone();
    let server = server(2)
        .worker_started(move |_| match spoilt.exists() {
            true => Err(Fault::new("spoilt")),
            false => Ok(()),
        })
        .start()
        .unwrap();
    let before = pids(&server);
    std::fs::write(&file, "").unwrap();
    let calls = calling(&server, 2, true, || {
        assert!(matches!(server.reload(), Err(ControlError::NotReloaded)));
    });
    assert!(calls > 0);
    std::fs::remove_file(&file).unwrap();
    let status = until(&server, "the failed one is gone", all_serve(2));
    assert_eq!(pids(&server), before, "nobody was replaced");
    assert!(
        status
            .events
            .iter()
            .any(|(_, event)| *event == PoolEvent::NotReloaded)
    );
    server.reload().unwrap();
    assert!(pids(&server).is_disjoint(&before));
}

fn a_reload_whose_workers_die_is_given_up() {
    let file = std::env::temp_dir().join("deadly");
    let deadly = file.clone();
    let server = server(2)
        .worker_started(move |_| match deadly.exists() {
            true => std::process::abort(),
            false => Ok(()),
        })
        .start()
        .unwrap();
    let before = pids(&server);
    std::fs::write(&file, "").unwrap();
    assert!(matches!(server.reload(), Err(ControlError::NotReloaded)));
    std::fs::remove_file(&file).unwrap();
    until(&server, "the others are there", all_serve(2));
    assert_eq!(pids(&server), before, "nobody was replaced");
}

fn a_reload_whose_workers_hang_is_given_up() {
    const PATIENCE: Duration = Duration::from_secs(1);
    let file = std::env::temp_dir().join("slow");
    let server = slow_while(&file, 2)
        .start_timeout(PATIENCE)
        .start()
        .unwrap();
    let before = pids(&server);
    std::fs::write(&file, "").unwrap();
    let begun = Instant::now();
    let calls = calling(&server, 2, true, || {
        assert!(matches!(server.reload(), Err(ControlError::NotReloaded)));
    });
    let took = begun.elapsed();
    assert!(took >= PATIENCE && took < PATIENCE * 3, "{took:?}");
    assert!(calls > 100, "{calls}");
    std::fs::remove_file(&file).unwrap();
    let status = until(&server, "the hung one is gone", all_serve(2));
    assert_eq!(pids(&server), before, "nobody was replaced");
    let count = |is_it: fn(&PoolEvent) -> bool| {
        let events = status.events.iter();
        events.filter(|(_, event)| is_it(event)).count()
    };
    assert_eq!(
        count(|event| matches!(event, PoolEvent::TooSlow { .. })),
        1,
        "the first that fails is the last"
    );
    assert_eq!(count(|event| *event == PoolEvent::NotReloaded), 1);
    server.reload().unwrap();
    assert!(pids(&server).is_disjoint(&before));
}

fn a_call_in_progress_is_answered_by_its_old_worker() {
    let server = server(1)
        .handle("slow", |_, millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(crate::prefork::pid())
        })
        .start()
        .unwrap();
    let old = *pids(&server).first().unwrap() as i32;
    let mut client = server.connect().unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
    let call = client.begin::<_, i32>("slow", &300_u64).unwrap();
    server.reload().unwrap();
    assert_eq!(client.finish(call).unwrap(), old);
    assert_ne!(client.call::<_, i32>("pid", &()).unwrap(), old);
}

fn a_hundred_hangups_during_calls_lose_none() {
    let server = server(2).start().unwrap();
    let monitor = Pid::from_raw(server.pid() as i32);
    let descriptors = || crate::harness::kinds(server.pid());
    let before = descriptors();
    let calls = calling(&server, 2, true, || {
        for _ in 0..100 {
            kill(monitor, Signal::SIGHUP).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
    });

    assert!(calls > 100, "{calls}");
    until(&server, "it is quiet again", |pool| {
        all_serve(2)(pool) && !pool.reloading
    });
    assert_eq!(descriptors(), before);
}

fn a_stopped_listener_stays_stopped_in_new_workers() {
    let server = server(2).start().unwrap();
    server.stop_listener("default").unwrap();
    server.reload().unwrap();
    assert!(
        Client::connect(server.address()).is_err(),
        "its file is hidden"
    );
    server.start_listener("default").unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
}

fn a_new_password_holds_in_new_workers() {
    let mut server = server(2).start().unwrap();
    let old = server.address().clone();
    let password = forkserver::Password::generate().unwrap();
    server.rotate_password("default", password).unwrap();
    for _ in 0..2 {
        for _ in 0..4 {
            let err = Client::connect(&old)
                .unwrap()
                .call::<_, i32>("pid", &())
                .unwrap_err();
            assert!(matches!(err, CallError::Denied(_)), "{err:?}");
            let mut client = Client::connect(server.address()).unwrap();
            client.call::<_, i32>("pid", &()).unwrap();
            server
                .connect()
                .unwrap()
                .call::<_, i32>("pid", &())
                .unwrap();
        }
        server.reload().unwrap();
    }
}

fn streams_are_told_to_stop_by_a_reload() {
    let server = server(1)
        .handle_stream("wait", |_, (): (), mut channel: forkserver::Channel| {
            channel.send(&"begun")?;
            match channel.recv::<String>() {
                Err(forkserver::StreamError::Stopped(_)) => Ok(channel.send(&"stopped")?),
                other => Err(Fault::new(format!("{other:?}"))),
            }
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("wait", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("begun"));
    server.reload().unwrap();
    assert_eq!(
        channel.recv::<String>().unwrap().as_deref(),
        Some("stopped")
    );
}
