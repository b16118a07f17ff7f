//! What a monitor does about workers that hang, wear out, or die as soon as they are there.

use crate::pool_death::slow;
use crate::prefork::{all_serve, pid, pids, pool, server, until};
use forkserver::{
    CallError, Client, ControlError, Engine, Event, Exit, Fault, PoolEvent, PoolStatus, Prefork,
    ReplaceReason, Worker, WorkerPhase,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    a_hung_call_is_traced_and_its_worker_killed,
    a_looping_call_is_killed_too,
    a_hung_call_is_told_with_its_own_trace,
    a_hung_deferred_task_is_killed_too,
    a_neighbour_of_a_hung_worker_does_not_notice,
    a_call_that_says_that_it_goes_on_is_not_hung,
    a_call_that_ends_within_the_grace_after_all_kills_nobody,
    a_monitor_that_was_stopped_blames_nobody,
    a_traced_worker_is_not_killed,
    a_worker_is_replaced_after_its_calls,
    a_worker_that_takes_too_much_memory_is_replaced,
    shared_memory_counts_for_nobody,
    the_number_of_workers_can_be_changed,
    signals_change_the_number_of_workers,
    a_handler_may_change_the_number_of_workers,
    a_worker_is_replaced_within_moments,
    two_hundred_deaths_at_once_leave_no_zombie,
    workers_that_die_young_are_started_with_pauses,
    a_crash_loop_heals,
    a_worker_whose_hook_fails_is_not_tried_again,
    what_the_system_refuses_a_new_worker_is_tried_again,
    a_server_whose_workers_all_fail_ends,
    a_worker_that_takes_too_long_to_start_is_killed,
    the_status_says_who_does_what,
    any_client_may_ask_for_the_status,
    a_worker_tells_what_memory_the_others_have,
    garbage_on_the_board_hurts_the_worker_alone,
    the_monitor_has_one_thread_and_no_client,
];

const TIMEOUT: Duration = Duration::from_millis(200);
const KILL_AFTER: Duration = Duration::from_millis(200);

fn strict() -> Prefork {
    strict_with(2)
}

fn strict_with(workers: usize) -> Prefork {
    Prefork::new(workers)
        .call_timeout(TIMEOUT)
        .kill_after(KILL_AFTER)
        .min_uptime(Duration::ZERO)
}

fn hung_server() -> forkserver::Server {
    server(2)
        .handle("sleep", |_, millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(())
        })
        .handle("loop", |_, (): ()| -> Result<(), Fault> { never_ends() })
        .handle("go on", |ctx, millis: u64| {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(millis) {
                ctx.extend();
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        })
        .prefork(strict())
}

#[inline(never)]
fn never_ends() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// A call's worker was killed.
fn was_killed(err: &CallError) {
    let exit = Exit::Signal(9);
    assert!(
        matches!(err, CallError::WorkerDied { exit: how, .. } if *how == exit),
        "{err:?}"
    );
}

/// The hung call's event, if one was killed for it.
fn hung(events: &[(Duration, PoolEvent)]) -> Option<&PoolEvent> {
    let mut events = events.iter().map(|(_, event)| event);
    events.find(|event| matches!(event, PoolEvent::Hung { .. }))
}

fn a_hung_call_is_traced_and_its_worker_killed() {
    let server = hung_server().start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let begun = Instant::now();
    let err = client.call::<_, ()>("sleep", &60_000_u64).unwrap_err();
    let took = begun.elapsed();
    was_killed(&err);
    assert!(took >= TIMEOUT + KILL_AFTER, "{took:?}");
    assert!(
        took < TIMEOUT + KILL_AFTER + Duration::from_millis(250),
        "{took:?}"
    );
    let status = until(&server, "it is replaced", all_serve(2));
    let Some(PoolEvent::Hung {
        name,
        call,
        age,
        trace,
        ..
    }) = hung(&status.events)
    else {
        panic!("{:?}", status.events);
    };
    assert_eq!((name.as_deref(), *call), (Some("sleep"), 1));
    assert!(
        *age >= TIMEOUT + KILL_AFTER && *age < took + Duration::from_millis(20),
        "{age:?}"
    );
    if cfg!(target_env = "gnu") {
        assert!(trace.len() > 1, "{trace:?}");
        let own = std::env::current_exe().unwrap();
        let own = own.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            trace.iter().any(|frame| frame.starts_with(&own)),
            "{trace:?}"
        );
        assert!(trace.iter().all(|frame| frame.contains("+0x")), "{trace:?}");
    }
}

/// Two calls hang in one worker, and the one that began first is told.
fn a_hung_call_is_told_with_its_own_trace() {
    if crate::harness::engine() == Engine::Evented {
        return;
    }
    let (entered, enter) = std::io::pipe().unwrap();
    let server = server(1)
        .keep_fd(&enter)
        .handle("sleep here", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            sleeps_here();
            Ok(())
        })
        .handle("loop", |_, (): ()| -> Result<(), Fault> { never_ends() })
        .prefork(strict_with(1))
        .start()
        .unwrap();
    let mut clients = [(), ()].map(|()| server.connect().unwrap());
    let first = clients[0].begin::<_, ()>("sleep here", &()).unwrap();
    (&entered).read_exact(&mut [0]).unwrap();
    // It has been asked by the time at which the second one is.
    std::thread::sleep(TIMEOUT / 4);
    let second = clients[1].begin::<_, ()>("loop", &()).unwrap();
    let [one, other] = &mut clients;
    one.finish(first).unwrap_err();
    other.finish(second).unwrap_err();
    let status = until(&server, "it is replaced", all_serve(1));
    let Some(PoolEvent::Hung { name, trace, .. }) = hung(&status.events) else {
        panic!("{:?}", status.events);
    };
    assert_eq!(name.as_deref(), Some("sleep here"));
    if cfg!(target_env = "gnu") {
        let here = symbols(trace);
        assert!(here.contains("sleeps_here"), "{trace:?}: {here}");
        assert!(!here.contains("never_ends"), "{trace:?}: {here}");
    }
}

#[inline(never)]
fn sleeps_here() {
    std::thread::sleep(Duration::from_secs(60));
    std::hint::black_box(());
}

/// The names of the functions of this program that a trace goes through.
fn symbols(trace: &[String]) -> String {
    let own = std::env::current_exe().unwrap();
    let addresses = trace.iter().filter_map(|frame| frame.split_once('+'));
    let output = std::process::Command::new("addr2line")
        .args(["-Cfe", &own.to_string_lossy()])
        .args(addresses.map(|(_, address)| address))
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn a_hung_deferred_task_is_killed_too() {
    let server = server(1)
        .handle("later", |ctx, (): ()| {
            ctx.defer(|| std::thread::sleep(Duration::from_secs(60)));
            Ok(())
        })
        .prefork(strict_with(1))
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("later", &()).unwrap();
    let status = until(&server, "it is replaced", |pool| {
        all_serve(1)(pool) && !before.contains(&pool.workers[0].pid)
    });
    let Some(PoolEvent::Hung { name, .. }) = hung(&status.events) else {
        panic!("{:?}", status.events);
    };
    assert_eq!(name.as_deref(), Some("later"));
}

fn a_looping_call_is_killed_too() {
    let server = hung_server().start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let err = client.call::<_, ()>("loop", &()).unwrap_err();
    was_killed(&err);
    until(&server, "it is replaced", all_serve(2));
}

fn a_neighbour_of_a_hung_worker_does_not_notice() {
    let server = hung_server().start().unwrap();
    let (mut one, mut other) = (server.connect().unwrap(), server.connect().unwrap());
    let pid: i32 = other.call("pid", &()).unwrap();
    let call = one.begin::<_, ()>("loop", &()).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < TIMEOUT + KILL_AFTER * 2 {
        let called = Instant::now();
        assert_eq!(other.call::<_, i32>("pid", &()).unwrap(), pid);
        assert!(called.elapsed() < Duration::from_millis(100));
    }
    one.finish(call).unwrap_err();
}

fn a_call_that_says_that_it_goes_on_is_not_hung() {
    let server = hung_server().start().unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("go on", &1_000_u64).unwrap();
    assert_eq!(hung(&pool(&server).events), None);
}

fn a_call_that_ends_within_the_grace_after_all_kills_nobody() {
    let server = hung_server().start().unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    // It is asked where it is, and must not mind.
    client.call::<_, ()>("sleep", &300_u64).unwrap();
    client.call::<_, ()>("sleep", &300_u64).unwrap();
    assert_eq!((hung(&pool(&server).events), pids(&server)), (None, before));
}

fn a_monitor_that_was_stopped_blames_nobody() {
    const TIME: Duration = Duration::from_millis(500);
    let (server, mut entered) = slow(2);
    let strict = strict().call_timeout(TIME).kill_after(TIME);
    let server = server.prefork(strict).start().unwrap();
    let before = pids(&server);
    let monitor = Pid::from_raw(server.pid() as i32);
    let mut client = server.connect().unwrap();
    // It is stopped for three times as long, and would kill after four; all have their time once more, so that is five.
    let call = client.begin::<_, u64>("slow", &2_250_u64).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    kill(monitor, Signal::SIGSTOP).unwrap();
    std::thread::sleep(TIME * 3);
    kill(monitor, Signal::SIGCONT).unwrap();
    client.finish(call).unwrap();
    assert_eq!((hung(&pool(&server).events), pids(&server)), (None, before));
}

fn a_traced_worker_is_not_killed() {
    use nix::libc;
    use nix::sys::ptrace;
    let server = hung_server().start().unwrap();
    let mut client = server.connect().unwrap();
    let victim = client.call::<_, i32>("pid", &()).unwrap();
    ptrace::seize(Pid::from_raw(victim), ptrace::Options::empty()).unwrap();
    let call = client.begin::<_, ()>("sleep", &1_200_u64).unwrap();
    // Signals, real-time ones among them, stop a traced process until its tracer lets it go on.
    let wait = |flags| {
        let mut status = 0;
        let pid = unsafe { libc::waitpid(victim, &raw mut status, flags | libc::__WALL) };
        (pid == victim && libc::WIFSTOPPED(status)).then(|| libc::WSTOPSIG(status))
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_400) {
        if let Some(signal) = wait(libc::WNOHANG) {
            unsafe { libc::ptrace(libc::PTRACE_CONT, victim, 0, signal) };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    client.finish(call).unwrap();
    assert_eq!(hung(&pool(&server).events), None);
    // It must be stopped to be let go.
    ptrace::interrupt(Pid::from_raw(victim)).unwrap();
    assert!(wait(0).is_some());
    ptrace::detach(Pid::from_raw(victim), None).unwrap();
}

fn a_worker_is_replaced_after_its_calls() {
    let server = server(2)
        .prefork(Prefork::new(2).max_calls(100))
        .start()
        .unwrap();
    let before = pids(&server);
    let (mut seen, mut calls) = (BTreeSet::new(), 0);
    while seen.len() < 10 {
        let mut client = Client::connect(server.address()).unwrap();
        seen.insert(client.call::<_, i32>("pid", &()).unwrap());
        calls += 1;
    }
    // Eight have left, and each had served its 100, or 10 % less. How many more depends on how soon its successor is ready.
    assert!(calls >= 8 * 90, "{calls}");
    let status = until(&server, "they are replaced", |pool| {
        all_serve(2)(pool)
            && pool
                .workers
                .iter()
                .all(|worker| !before.contains(&worker.pid))
    });
    let reasons = status.events.iter().filter_map(|(_, event)| match event {
        PoolEvent::Replaced { reason, .. } => Some(*reason),
        PoolEvent::Died { .. } => panic!("nobody dies of it: {event:?}"),
        _ => None,
    });
    assert!(
        reasons
            .into_iter()
            .all(|reason| reason == ReplaceReason::Calls)
    );
}

fn a_worker_that_takes_too_much_memory_is_replaced() {
    let server = server(1)
        .prefork(Prefork::new(1).max_memory(64 << 20))
        .handle("leak", |_, bytes: u64| {
            std::mem::forget(std::hint::black_box(vec![1_u8; bytes as usize]));
            Ok(())
        })
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = Client::connect(server.address()).unwrap();
    let mut calls = 0;
    while pids(&server) == before {
        calls += 1;
        assert!(calls < 2_000, "{:#?}", pool(&server));
        client.call::<_, ()>("leak", &(1_u64 << 20)).unwrap();
    }
    let status = until(&server, "it is replaced", all_serve(1));
    let memory = |(_, event): &(Duration, PoolEvent)| {
        matches!(
            event,
            PoolEvent::Replaced {
                reason: ReplaceReason::Memory,
                ..
            }
        )
    };
    assert!(status.events.iter().any(memory));
}

fn shared_memory_counts_for_nobody() {
    let server = server(2)
        .prefork(Prefork::new(2).max_memory(48 << 20))
        .initialize(|_| Ok(vec![7_u8; 100 << 20]))
        .handle("sum", |ctx, (): ()| {
            let table = ctx.state::<Vec<u8>>();
            Ok(table.iter().map(|byte| u64::from(*byte)).sum::<u64>())
        })
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    client.call::<_, u64>("sum", &()).unwrap();
    for _ in 0..1_000 {
        client.call::<_, i32>("pid", &()).unwrap();
    }
    let status = pool(&server);
    assert_eq!(pids(&server), before);
    let worker = status
        .workers
        .iter()
        .max_by_key(|worker| worker.served)
        .unwrap();
    assert!(worker.shared_memory > 100 << 20, "{worker:?}");
    assert!(worker.private_memory < 48 << 20, "{worker:?}");
}

fn the_number_of_workers_can_be_changed() {
    let server = server(2).start().unwrap();
    server.set_workers(5).unwrap();
    until(&server, "there are more", all_serve(5));
    server.set_workers(1).unwrap();
    let status = until(&server, "there are fewer", all_serve(1));
    assert_eq!((status.wanted, status.workers[0].worker.slot), (1, 0));
    let died = |(_, event): &(Duration, PoolEvent)| matches!(event, PoolEvent::Died { .. });
    assert!(!status.events.iter().any(died));
}

fn signals_change_the_number_of_workers() {
    let server = server(2).start().unwrap();
    let monitor = Pid::from_raw(server.pid() as i32);
    for count in [3, 4] {
        kill(monitor, Signal::SIGTTIN).unwrap();
        until(&server, "one more", all_serve(count));
    }
    // No less than one.
    for count in [3, 2, 1, 1] {
        kill(monitor, Signal::SIGTTOU).unwrap();
        until(&server, "one less", all_serve(count));
    }
}

fn a_handler_may_change_the_number_of_workers() {
    let server = server(1)
        .handle("grow", |ctx, count: usize| {
            Ok((
                ctx.control().set_workers(count),
                ctx.control().set_workers(0),
            ))
        })
        .start()
        .unwrap();
    let grown: (bool, bool) = server.connect().unwrap().call("grow", &3_usize).unwrap();
    assert_eq!(grown, (true, false));
    until(&server, "there are more", all_serve(3));
}

fn a_worker_is_replaced_within_moments() {
    let server = server(2).start().unwrap();
    let mut best = Duration::MAX;
    for _ in 0..10 {
        let mut client = server.connect().unwrap();
        let err = client.call::<_, ()>("abort", &()).unwrap_err();
        let begun = Instant::now();
        assert!(matches!(err, CallError::WorkerDied { .. }), "{err:?}");
        until(&server, "it is replaced", all_serve(2));
        best = best.min(begun.elapsed());
    }
    assert!(best < Duration::from_millis(100), "{best:?}");
}

fn two_hundred_deaths_at_once_leave_no_zombie() {
    let server = server(200).start().unwrap();
    let before = pids(&server);
    assert_eq!(before.len(), 200);
    let monitor = Pid::from_raw(server.pid() as i32);
    kill(monitor, Signal::SIGSTOP).unwrap();
    for pid in &before {
        kill(Pid::from_raw(*pid as i32), Signal::SIGKILL).unwrap();
    }
    kill(monitor, Signal::SIGCONT).unwrap();
    until(&server, "all are replaced", |pool| {
        all_serve(200)(pool)
            && pool
                .workers
                .iter()
                .all(|worker| !before.contains(&worker.pid))
    });
    let children =
        std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children")).unwrap();
    assert_eq!(
        children.split_whitespace().count(),
        200,
        "no zombie is left"
    );
}

fn workers_that_die_young_are_started_with_pauses() {
    let server = server(1)
        .prefork(Prefork::new(1).min_uptime(Duration::from_secs(30)))
        .start()
        .unwrap();
    let begun = Instant::now();
    let mut deaths = 0;
    while !pool(&server).crash_loop {
        deaths += 1;
        let victims = until(&server, "one is there", all_serve(1));
        kill(
            Pid::from_raw(victims.workers[0].pid as i32),
            Signal::SIGKILL,
        )
        .unwrap();
        until(&server, "its death is seen", |pool| pool.deaths >= deaths);
    }
    assert_eq!(deaths, 8);
    // Three for nothing, then 50 ms and half as much again each time, 20 % less at least.
    let pauses: f64 = (0..4).map(|n| 0.05 * 1.5_f64.powi(n) * 0.8).sum();
    assert!(
        begun.elapsed().as_secs_f64() > pauses,
        "{:?}",
        begun.elapsed()
    );
    let status = pool(&server);
    let told = |(_, event): &(Duration, PoolEvent)| *event == PoolEvent::CrashLoop { deaths: 8 };
    assert_eq!(status.events.iter().filter(|event| told(event)).count(), 1);
}

fn a_crash_loop_heals() {
    let server = server(1)
        .prefork(Prefork::new(1).min_uptime(Duration::from_millis(300)))
        .start()
        .unwrap();
    for deaths in 1..=8 {
        let victims = until(&server, "one is there", all_serve(1));
        kill(
            Pid::from_raw(victims.workers[0].pid as i32),
            Signal::SIGKILL,
        )
        .unwrap();
        until(&server, "its death is seen", |pool| pool.deaths >= deaths);
    }
    assert!(pool(&server).crash_loop);
    let status = until(&server, "it heals", |pool| !pool.crash_loop);
    assert_eq!(status.deaths, 0);
    assert!(
        status
            .events
            .iter()
            .any(|(_, event)| *event == PoolEvent::Recovered)
    );
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, i32>("pid", &()).unwrap();
}

/// A server whose `worker_started` fails as soon as a file is there.
pub fn spoilt_by(file: &std::path::Path, workers: usize) -> forkserver::Server {
    let file = file.to_owned();
    server(workers).worker_started(move |_| match file.exists() {
        true => Err(Fault::new("spoilt")),
        false => Ok(()),
    })
}

/// A server whose workers do not begin for as long as a file is there.
pub fn slow_while(file: &std::path::Path, workers: usize) -> forkserver::Server {
    let file = file.to_owned();
    server(workers).worker_started(move |_| {
        if file.exists() {
            std::thread::sleep(Duration::from_secs(60));
        }
        Ok(())
    })
}

fn a_worker_whose_hook_fails_is_not_tried_again() {
    let file = std::env::temp_dir().join("spoilt");
    let server = spoilt_by(&file, 2).start().unwrap();
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let failed = |pool: &forkserver::PoolStatus| {
        pool.events.iter().any(|(_, event)| {
            matches!(event, PoolEvent::NotStarted { reason, .. } if reason == "spoilt")
        })
    };
    until(&server, "it fails", |pool| {
        failed(pool) && all_serve(1)(pool)
    });
    // The other serves, and a reload is given up, with it in its place.
    client.call::<_, i32>("pid", &()).unwrap();
    assert!(matches!(server.reload(), Err(ControlError::NotReloaded)));
    client.call::<_, i32>("pid", &()).unwrap();
    std::fs::remove_file(&file).unwrap();
    server.reload().unwrap();
    until(&server, "all are there again", all_serve(2));
}

/// The timer that ends a worker with its monitor cannot be had for a moment.
fn what_the_system_refuses_a_new_worker_is_tried_again() {
    let limit = |soft| {
        let (_, hard) = getrlimit(Resource::RLIMIT_SIGPENDING).unwrap();
        setrlimit(Resource::RLIMIT_SIGPENDING, soft, hard).unwrap();
        hard
    };
    let has_died = AtomicBool::new(false);
    let server = server(1)
        .observe(move |event| match event {
            Event::Pool(PoolEvent::Died { .. }) if !has_died.swap(true, Ordering::SeqCst) => {
                limit(0);
            }
            Event::Pool(PoolEvent::NotForked { .. }) => {
                let hard = limit(0);
                limit(hard);
            }
            _ => {}
        })
        .start()
        .unwrap();
    let before = pids(&server);
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let status = until(&server, "it is replaced", |pool| {
        all_serve(1)(pool) && !before.contains(&pool.workers[0].pid)
    });
    let is_refused = |(_, event): &&(Duration, PoolEvent)| matches!(event, PoolEvent::NotForked { reason } if reason.contains("temporarily"));
    assert_eq!(
        status.events.iter().filter(is_refused).count(),
        1,
        "{status:#?}"
    );
    let has_died = |(_, event): &&(Duration, PoolEvent)| matches!(event, PoolEvent::Died { .. });
    assert_eq!(
        status.events.iter().filter(has_died).count(),
        2,
        "{status:#?}"
    );
}

fn a_server_whose_workers_all_fail_ends() {
    let file = std::env::temp_dir().join("spoilt");
    let server = spoilt_by(&file, 1).start().unwrap();
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    assert_eq!(server.wait(), Exit::Code(1));
    std::fs::remove_file(&file).unwrap();
}

fn a_worker_that_takes_too_long_to_start_is_killed() {
    let file = std::env::temp_dir().join("slow");
    let server = slow_while(&file, 1)
        .start_timeout(Duration::from_millis(300))
        .start()
        .unwrap();
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let slow = |pool: &PoolStatus| -> Vec<Worker> {
        let events = pool.events.iter();
        let slow = events.filter_map(|(_, event)| match event {
            PoolEvent::TooSlow { worker } => Some(*worker),
            _ => None,
        });
        slow.collect()
    };
    let status = until(&server, "it is killed, and dead", |pool| {
        let has_died = |worker: &Worker| {
            let (worker, exit) = (*worker, Exit::Signal(9));
            let mut events = pool.events.iter();
            events.any(|(_, event)| *event == PoolEvent::Died { worker, exit })
        };
        slow(pool).first().is_some_and(has_died)
    });
    // Each is one young death, and not two. The abort is none: who has served is not young where there is no least uptime.
    assert_eq!(status.deaths as usize, slow(&status).len(), "{status:#?}");
    std::fs::remove_file(&file).unwrap();
    until(&server, "the next is quick", all_serve(1));
}

fn the_status_says_who_does_what() {
    let (mut entered, enter) = std::io::pipe().unwrap();
    let (leave, left) = std::io::pipe().unwrap();
    let (enter, leave) = (Arc::new(enter), Arc::new(leave));
    let (inner, waits) = (Arc::clone(&enter), Arc::clone(&leave));
    let server = server(2)
        .keep_fd(&*enter)
        .keep_fd(&*leave)
        .handle("busy", move |_, (): ()| {
            (&*inner).write_all(b"!")?;
            (&*waits).read_exact(&mut [0])?;
            Ok(())
        })
        .handle("fail", |_, (): ()| -> Result<(), Fault> {
            Err(Fault::new("no"))
        })
        .start()
        .unwrap();
    let (mut one, mut two) = (server.connect().unwrap(), server.connect().unwrap());
    for _ in 0..3 {
        one.call::<_, i32>("pid", &()).unwrap();
    }
    one.call::<_, ()>("fail", &()).unwrap_err();
    two.call::<_, i32>("pid", &()).unwrap();
    let call = one.begin::<_, ()>("busy", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let status = server.status().unwrap();
    assert_eq!(
        (status.connections, status.accepted, status.calls),
        (2, 2, 6)
    );
    let workers = status.pool.unwrap().workers;
    let is_busy = |worker: &&forkserver::WorkerStatus| !worker.calls.is_empty();
    let busy = workers.iter().find(is_busy).unwrap();
    assert_eq!((busy.served, busy.failed, busy.connections), (5, 1, 1));
    assert_eq!(busy.phase, WorkerPhase::Serving);
    let [doing] = &busy.calls[..] else {
        panic!("{busy:?}")
    };
    assert_eq!((doing.name.as_deref(), doing.id), (Some("busy"), 5));
    assert!(doing.age >= Duration::from_millis(40) && doing.age < Duration::from_secs(5));
    assert!(busy.private_memory > 0 && busy.shared_memory > 0);
    let idle = workers
        .iter()
        .find(|worker| worker.calls.is_empty())
        .unwrap();
    assert_eq!((idle.served, idle.failed), (1, 0));
    (&left).write_all(b"!").unwrap();
    one.finish(call).unwrap();
}

fn any_client_may_ask_for_the_status() {
    let server = server(3).start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let status: forkserver::Status = client.call("forkserver.status", &()).unwrap();
    let pool = status.pool.unwrap();
    assert_eq!(
        pool.workers
            .iter()
            .map(|worker| worker.pid)
            .collect::<BTreeSet<_>>(),
        pids(&server)
    );
    let asked = client.worker().unwrap();
    let own = pool
        .workers
        .iter()
        .find(|status| status.worker == asked)
        .unwrap();
    assert_eq!(own.calls[0].name.as_deref(), Some("forkserver.status"));
    assert_eq!(pool.wanted, 3);
}

fn a_worker_tells_what_memory_the_others_have() {
    const MUCH: u64 = 32 << 20;
    let server = server(2)
        .handle("keep", |_, (): ()| {
            std::mem::forget(vec![7_u8; MUCH as usize]);
            Ok(pid() as u32)
        })
        .start()
        .unwrap();
    // They take turns.
    let [mut large, mut other] = [(), ()].map(|()| server.connect().unwrap());
    let pid: u32 = large.call("keep", &()).unwrap();
    let status: forkserver::Status = other.call("forkserver.status", &()).unwrap();
    assert_ne!(large.worker(), other.worker());
    let workers = status.pool.unwrap().workers;
    let is_large = |worker: &forkserver::WorkerStatus| worker.private_memory > MUCH;
    let large: Vec<_> = workers.iter().filter(|worker| is_large(worker)).collect();
    assert!(large.len() == 1 && large[0].pid == pid, "{workers:#?}");
}

fn garbage_on_the_board_hurts_the_worker_alone() {
    // A worker that scribbles over all that is shared with it.
    let server = hung_server()
        .handle("scribble", |_, seed: u8| {
            let maps = std::fs::read_to_string("/proc/self/maps")?;
            let mut written = 0_u64;
            for line in maps
                .lines()
                .filter(|line| line.contains("rw-s") && line.contains("/dev/zero"))
            {
                let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let from = usize::from_str_radix(from, 16)?;
                let to = usize::from_str_radix(to, 16)?;
                for at in (from..to).step_by(8) {
                    let word = std::ptr::with_exposed_provenance_mut::<u64>(at);
                    let value = u64::from(seed)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .wrapping_add(at as u64 * 3);
                    unsafe { word.write_volatile(value) };
                    written += 1;
                }
            }
            Ok(written)
        })
        .start()
        .unwrap();
    let monitor = server.pid();
    for seed in 1..20_u8 {
        let mut client = server.connect().unwrap();
        match client.call::<_, u64>("scribble", &seed) {
            Ok(written) => assert!(written > 0),
            Err(CallError::WorkerDied { .. } | CallError::Disconnected { .. }) => {}
            Err(err) => panic!("{err:?}"),
        }
        let _ = pool(&server);
    }
    server.reload().unwrap();
    until(&server, "all are there", all_serve(2));
    assert_eq!(server.pid(), monitor);
    server
        .connect()
        .unwrap()
        .call::<_, i32>("pid", &())
        .unwrap();
}

fn the_monitor_has_one_thread_and_no_client() {
    let server = server(2).start().unwrap();
    let mut clients: Vec<_> = (0..8)
        .map(|_| Client::connect(server.address()).unwrap())
        .collect();
    for client in &mut clients {
        client.call::<_, i32>("pid", &()).unwrap();
    }
    let monitor = server.pid().to_string();
    let tasks = std::fs::read_dir(format!("/proc/{monitor}/task"))
        .unwrap()
        .count();
    assert_eq!(tasks, 1);
    let sockets = crate::harness::descriptors(&monitor).into_iter();
    let sockets = sockets.filter(|(_, target)| target.to_string_lossy().starts_with("socket"));
    // The listener, the owner's control line, and one line for each worker.
    assert_eq!(sockets.count(), 4);
}
