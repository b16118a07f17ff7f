//! What a server tells its owner unasked, and what is said to those who are not listening.

use crate::entries;
use crate::prefork::{all_serve, pool, server, until};
use crate::supervision::spoilt_by;
use forkserver::{Client, ControlError, PoolEvent, Prefork, ServerHandle};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use std::time::Duration;

crate::tests![
    a_crash_loop_and_its_end_are_told_to_the_owner,
    a_launched_server_tells_its_owner_of_a_crash_loop,
    a_worker_that_cannot_be_started_is_told_to_the_owner,
    one_thread_may_wait_for_news_while_others_ask,
    who_waits_for_news_hears_of_the_end,
    no_news_is_no_error,
    a_worker_that_was_not_listening_obeys_all_the_same,
    a_worker_that_never_listens_is_replaced,
    a_monitor_that_was_not_listening_does_what_all_want,
];

const LONG: Option<Duration> = Some(Duration::from_secs(20));

/// Kills the only worker eight times.
fn crash_again_and_again(server: &ServerHandle) {
    for deaths in 1..=8 {
        let victims = until(server, "one is there", all_serve(1));
        let victim = Pid::from_raw(victims.workers[0].pid as i32);
        kill(victim, Signal::SIGKILL).unwrap();
        until(server, "its death is seen", |pool| pool.deaths >= deaths);
    }
}

fn a_crash_loop_and_its_end_are_told_to_the_owner() {
    let server = server(1)
        .prefork(Prefork::new(1).min_uptime(Duration::from_millis(300)))
        .start()
        .unwrap();
    crash_again_and_again(&server);
    let told = |timeout| server.next_event(timeout).unwrap();
    assert_eq!(told(LONG), Some(PoolEvent::CrashLoop { deaths: 8 }));
    assert_eq!(told(LONG), Some(PoolEvent::Recovered));
    assert_eq!(told(Some(Duration::ZERO)), None, "each is told once");
}

fn a_launched_server_tells_its_owner_of_a_crash_loop() {
    let server = entries::FRAGILE.start(&()).unwrap();
    crash_again_and_again(&server);
    let told = server.next_event(LONG).unwrap();
    assert_eq!(told, Some(PoolEvent::CrashLoop { deaths: 8 }));
}

fn a_worker_that_cannot_be_started_is_told_to_the_owner() {
    let file = std::env::temp_dir().join("spoilt");
    let server = spoilt_by(&file, 2).start().unwrap();
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let told = server.next_event(LONG).unwrap();
    assert!(
        matches!(&told, Some(PoolEvent::NotStarted { reason, .. }) if reason.contains("spoilt")),
        "{told:?}"
    );
    std::fs::remove_file(&file).unwrap();
}

fn one_thread_may_wait_for_news_while_others_ask() {
    let server = server(1)
        .prefork(Prefork::new(1).min_uptime(Duration::from_secs(30)))
        .start()
        .unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| server.next_event(None).unwrap());
        let asks = || (0..300).for_each(|_| drop(server.status().unwrap()));
        let askers = [scope.spawn(asks), scope.spawn(asks)];
        crash_again_and_again(&server);
        for asker in askers {
            asker.join().unwrap();
        }
        let told = waits.join().unwrap();
        assert_eq!(told, Some(PoolEvent::CrashLoop { deaths: 8 }));
    });
}

fn who_waits_for_news_hears_of_the_end() {
    let server = server(1).start().unwrap();
    std::thread::scope(|scope| {
        let waiting = [(), ()].map(|()| scope.spawn(|| server.next_event(None)));
        kill(Pid::from_raw(server.pid() as i32), Signal::SIGTERM).unwrap();
        for waiting in waiting {
            let result = waiting.join().unwrap();
            assert!(
                matches!(result, Err(ControlError::NotRunning)),
                "{result:?}"
            );
        }
    });
    assert!(matches!(
        server.next_event(None),
        Err(ControlError::NotRunning)
    ));
}

fn no_news_is_no_error() {
    let with = server(1).start().unwrap();
    assert_eq!(with.next_event(Some(Duration::ZERO)).unwrap(), None);
    assert_eq!(
        with.next_event(Some(Duration::from_millis(20))).unwrap(),
        None
    );
    let without = crate::server().start().unwrap();
    assert_eq!(without.next_event(Some(Duration::ZERO)).unwrap(), None);
    without.stop().unwrap();
    with.stop().unwrap();
}

/// Two workers, and a client of each. Handlers may limit the connections, again and again.
fn two_with_clients() -> (ServerHandle, [(Pid, Client); 2]) {
    let server = server(2)
        .handle("limit", |ctx, times: usize| {
            (1..=times).for_each(|n| ctx.control().set_max_connections(Some(n)));
            Ok(())
        })
        .handle("limit of yours", |ctx, (): ()| {
            Ok(ctx.control().status().max_connections)
        })
        .prefork(Prefork::new(2).min_uptime(Duration::ZERO))
        .start()
        .unwrap();
    let client = |_| {
        let mut client = server.connect().unwrap();
        let pid = client.call::<_, i32>("pid", &()).unwrap();
        (Pid::from_raw(pid), client)
    };
    let clients = [0, 1].map(client);
    assert_ne!(clients[0].0, clients[1].0, "they take turns");
    (server, clients)
}

fn wait_for_limit(client: &mut Client, limit: usize) {
    while client.call::<_, usize>("limit of yours", &()).unwrap() != limit {
        std::thread::yield_now();
    }
}

/// More than a line of the kernel's takes, and less than is kept besides.
const MANY: usize = 900;

fn a_worker_that_was_not_listening_obeys_all_the_same() {
    let (server, [(_, mut mine), (other, mut theirs)]) = two_with_clients();
    kill(other, Signal::SIGSTOP).unwrap();
    mine.call::<_, ()>("limit", &MANY).unwrap();
    // The monitor hears of them one by one, and of this question when it is through.
    assert_eq!(until_limit(&server, MANY), MANY);
    kill(other, Signal::SIGCONT).unwrap();
    wait_for_limit(&mut theirs, MANY);
    assert_eq!(pool(&server).deaths, 0);
}

fn until_limit(server: &ServerHandle, limit: usize) -> usize {
    loop {
        let seen = server.status().unwrap().max_connections;
        if seen == limit {
            return seen;
        }
    }
}

fn a_worker_that_never_listens_is_replaced() {
    let (server, [(_, mut mine), (other, _theirs)]) = two_with_clients();
    kill(other, Signal::SIGSTOP).unwrap();
    mine.call::<_, ()>("limit", &(4 * MANY)).unwrap();
    let is_gone = |pool: &forkserver::PoolStatus| {
        let mut workers = pool.workers.iter();
        all_serve(2)(pool) && workers.all(|worker| worker.pid != other.as_raw() as u32)
    };
    until(&server, "another is in its place", is_gone);
}

fn a_monitor_that_was_not_listening_does_what_all_want() {
    let (server, [(_, mut mine), (_, mut theirs)]) = two_with_clients();
    let monitor = Pid::from_raw(server.pid() as i32);
    kill(monitor, Signal::SIGSTOP).unwrap();
    let stopped = nix::sys::wait::waitpid(monitor, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(monitor, Signal::SIGSTOP));
    mine.call::<_, ()>("limit", &MANY).unwrap();
    kill(monitor, Signal::SIGCONT).unwrap();
    wait_for_limit(&mut theirs, MANY);
}
