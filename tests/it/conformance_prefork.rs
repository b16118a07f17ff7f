//! What was asserted of preforking servers, or missed in them (84 assertions), as far as it makes sense here. Where less is tested
//! than was asserted, so many runs or so little time, the reason stands there; "time" is that of the whole suite, which runs with
//! both engines, and "load" that of a machine which has other things to do.
//!
//! * 1, 2: `pool_death::all_of_a_killed_owner_end_within_one_grace`,
//!   `pool_death::busy_workers_of_a_killed_monitor_end_with_the_grace`.
//! * 3: `pool_death::workers_do_not_keep_each_other_alive`; where the owner is killed and not the monitor,
//!   `pool_death::a_stopped_worker_ends_when_it_goes_on`.
//! * 4: [`a_monitor_killed_at_any_moment_of_its_start_leaves_nobody`],
//!   `death::an_owner_killed_at_any_system_call_leaves_no_orphan`. Left out: a point of the code at which it dies. It is killed
//!   after 120 different times instead.
//! * 5, 13: left out, no life hangs on a thread or on the number of a parent, but on a pipe.
//! * 6, 7, 79 to 83: left out, there is no mold: all workers are forks of the monitor, which serves nobody.
//! * 8: `pool_death::a_stop_answers_what_is_under_way`, `lifecycle::dropping_the_handle_stops_the_server`, which is the same stop.
//! * 9: [`an_owner_that_becomes_another_program_has_no_server_any_more`].
//! * 10, 11: `pool_death::a_program_that_a_handler_has_started_keeps_nobody_alive`,
//!   `sockets::a_child_of_the_server_does_not_take_the_socket_along`.
//! * 12: `prefork::workers_have_no_descriptor_that_is_not_theirs`.
//! * 14 to 19, 21 to 24: `sockets::the_mode_is_never_wider_at_any_system_call`, `auth::*`, `hostile::*`, `sockets::*`. Not
//!   measured: how long the comparison of 15 takes, which is another crate's promise; the load would hide it. Left out of 22: a
//!   status that tells of a file that was replaced, nobody looks at it before the end. 20: left out, there is no handshake to be
//!   replayed.
//! * 25: `lifecycle::threads_make_start_refuse`, `prefork::threads_left_by_initialize_fail_the_start`; how many threads, not which.
//! * 26: `inherit::descriptors_are_poisoned_and_objects_can_be_dropped`; what is not on the list refuses no start.
//! * 27: `prefork::each_worker_has_random_numbers_of_its_own`, of 8 workers and not of 200: time.
//! * 28: [`a_workers_signals_are_those_of_the_list`], [`a_workers_signals_are_those_of_the_list_whatever_its_owner_has`].
//! * 29: left out, the kernel gives no timers to a fork.
//! * 30: [`what_initialize_prints_is_printed_once`].
//! * 31: [`a_panic_in_a_workers_hook_is_told_with_its_text`], [`a_worker_whose_hook_panics_ends_with_the_status_of_a_panic`],
//!   `prefork::a_worker_that_cannot_start_fails_the_start`, `conformance_qore::a_finalize_that_panics_holds_up_nothing_behind_it`.
//! * 32: `signals::the_parents_handlers_never_run_in_the_child`, and as 71.
//! * 33: [`a_fork_that_is_refused_is_tried_again`]. 34: left out, a control group cannot be made everywhere.
//! * 35: `engine::a_full_descriptor_table_costs_no_time_and_ends`,
//!   `engine::who_waits_for_a_full_descriptor_table_is_told_so_if_that_lasts`; a worker's engine is the same.
//! * 36: `prefork::every_kind_of_death_is_named_to_the_caller`, `prefork::a_killed_worker_costs_its_own_calls_and_is_replaced`
//!   (slot and generation), `supervision::a_worker_is_replaced_within_moments`: the best of ten within 100 ms, because of the load.
//! * 37: as 36, and `pool_death::a_caller_whom_nobody_can_tell_how_its_worker_died_is_disconnected`. Left out: repeating what may
//!   have been executed, which is the caller's choice.
//! * 38, 39: `supervision::a_hung_call_is_traced_and_its_worker_killed`, `supervision::a_looping_call_is_killed_too`,
//!   `supervision::a_neighbour_of_a_hung_worker_does_not_notice`. Left out: the state D, which cannot be made at will.
//! * 40: `supervision::a_call_that_says_that_it_goes_on_is_not_hung`; one extension is never longer than the timeout. Left out: a
//!   most that all of them may come to, there is none.
//! * 41: `supervision::a_monitor_that_was_stopped_blames_nobody`; no clock is looked at that can be set.
//! * 42: `supervision::a_worker_that_takes_too_long_to_start_is_killed`.
//! * 43: [`workers_that_all_panic_at_their_start_are_tried_with_pauses_until_it_goes_well`],
//!   `supervision::workers_that_die_young_are_started_with_pauses`, `news::a_crash_loop_and_its_end_are_told_to_the_owner`. Pauses
//!   beyond the first four, up to half a minute: the unit tests of `prefork`, because of the time.
//! * 44: `supervision::a_worker_whose_hook_fails_is_not_tried_again`, `supervision::a_server_whose_workers_all_fail_ends`.
//! * 45: `supervision::a_crash_loop_heals`, and the unit tests of `prefork`.
//! * 46, 48, 49: `death::only_our_own_child_is_reaped`; nobody is waited for or signalled by number, but a thread of a child that
//!   has not been reaped. Not tested: numbers that are used again, which takes rights to a namespace of its own.
//! * 47: `supervision::two_hundred_deaths_at_once_leave_no_zombie`, and not of a thousand: a server has 255 workers at most.
//!   `pool_death::a_thousand_deaths_leave_no_descriptor`, four at a time.
//! * 50: `supervision::garbage_on_the_board_hurts_the_worker_alone`.
//! * 51, 52, 57: left out, the pool has the size that it is told.
//! * 53: [`as_many_serve_as_shall_while_the_worn_out_are_replaced`], `supervision::a_worker_is_replaced_after_its_calls`; limits
//!   lie as far apart as that many can within a fifth, see the unit tests of `prefork`: 2 % would take more room than there is. 54:
//!   left out, there is no limit on a worker's age.
//! * 55: `supervision::a_worker_that_takes_too_much_memory_is_replaced`, `supervision::shared_memory_counts_for_nobody`.
//! * 56: [`signals_in_any_order_make_as_many_workers_as_they_say`], one by one, because those of a kind that come at once are one:
//!   what is true of those, [`a_storm_of_signals_for_more_and_fewer_workers_disturbs_nobody`]. 300 each and not 500: time. The
//!   least: `supervision::signals_change_the_number_of_workers`.
//! * 58: `prefork::sixteen_lasting_connections_are_spread_evenly`: from 3 to 5 each where one thread serves, because whoever waits
//!   for a processor gets none meanwhile. 59: `prefork::ten_thousand_short_connections_are_spread_evenly`, over 4 workers and not
//!   8, and by 1.5 and not 1.2: load.
//! * 60: [`idle_workers_are_not_woken_for_others`].
//! * 61: [`nobody_waits_for_a_busy_worker_while_another_is_idle`], with a bound of 50 ms and not 5: load. Who waits for the busy
//!   one waits for ten times as long at least.
//! * 62, 63: left out, connections are not lent.
//! * 64: `calls::connections_at_the_limit_wait_in_the_backlog`, `passenger::a_client_waits_no_longer_than_it_was_told`: all clients
//!   wait for a place in it by the same connect, this one for 50 ms; the 10 s of the others are not waited for: time.
//! * 65, 66: `fds::descriptors_travel_both_ways_in_every_number`, `fds::one_more_than_the_limit_is_refused`,
//!   `fds::a_received_descriptor_is_close_on_exec`, `fds::near_the_limit_of_descriptors_nothing_is_lost`,
//!   `abuse::hostile_descriptors_leave_nothing_behind`, `prefork::descriptors_pass_both_ways`.
//! * 67, 68: `calls::a_timeout_ends_the_call_and_not_the_connection`, `hostile::a_server_that_lies_is_a_protocol_error`.
//! * 69: `pool_death::a_stop_answers_what_is_under_way`, `pool_death::a_stop_that_has_no_patience_kills_the_workers`,
//!   `sockets::the_backlog_is_told_that_the_server_stops`.
//! * 70: [`a_second_signal_ends_the_monitor_at_once`]; so there is no third.
//! * 71: `pool_death::a_signal_at_any_moment_leaves_nothing`, at 60 moments and not 1000, which are told in order and need no seed:
//!   time.
//! * 72: `pool_death::a_stop_while_workers_start_leaves_nothing`, `pool_death::a_stop_during_a_reload_leaves_nothing`.
//! * 73: `reload::a_hundred_hangups_during_calls_lose_none`, and not a thousand: time; `reload::no_call_is_lost_in_ten_reloads`.
//! * 74: `reload::a_reload_replaces_all_one_after_the_other`, `reload::no_call_is_lost_in_ten_reloads`. The samples are those of
//!   53: who wears out is replaced as by a reload. Given up: `reload::a_reload_whose_workers_hang_is_given_up` and its neighbours.
//! * 75 to 78: left out, a server does not replace its program. 84: left out, there are no logs.
//! * The property test: `chaos::whoever_is_killed_the_others_go_on`, and the unit tests of `prefork`, against a model.

use crate::prefork::{all_serve, pid, pids, pool, server, until};
use crate::processes::{Helper, Watched};
use crate::reload::calling;
use forkserver::{
    Client, Event, Exit, PoolEvent, PoolStatus, Prefork, ServerHandle, StartError, WorkerPhase,
};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

crate::tests![
    a_monitor_killed_at_any_moment_of_its_start_leaves_nobody,
    a_workers_signals_are_those_of_the_list,
    a_workers_signals_are_those_of_the_list_whatever_its_owner_has,
    what_initialize_prints_is_printed_once,
    a_panic_in_a_workers_hook_is_told_with_its_text,
    a_worker_whose_hook_panics_ends_with_the_status_of_a_panic,
    workers_that_all_panic_at_their_start_are_tried_with_pauses_until_it_goes_well,
    an_owner_that_becomes_another_program_has_no_server_any_more,
    a_fork_that_is_refused_is_tried_again,
    idle_workers_are_not_woken_for_others,
    nobody_waits_for_a_busy_worker_while_another_is_idle,
    a_second_signal_ends_the_monitor_at_once,
    as_many_serve_as_shall_while_the_worn_out_are_replaced,
    signals_in_any_order_make_as_many_workers_as_they_say,
    a_storm_of_signals_for_more_and_fewer_workers_disturbs_nobody,
];

const GRACE: Duration = Duration::from_millis(200);

fn children() -> Vec<i32> {
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn a_monitor_killed_at_any_moment_of_its_start_leaves_nobody() {
    for delay in 0..120_u64 {
        let mut owner = Helper::start(|test| {
            test.wait_for_go();
            let started = server(3).grace(GRACE).start();
            test.say(started.is_ok());
            test.wait();
        });
        owner.go();
        let list = format!("/proc/{0}/task/{0}/children", owner.pid);
        let begun = Instant::now();
        let monitor = loop {
            let text = std::fs::read_to_string(&list).unwrap_or_default();
            match text.split_whitespace().next() {
                Some(pid) => break Pid::from_raw(pid.parse().unwrap()),
                None => assert!(begun.elapsed() < Duration::from_secs(5)),
            }
        };
        // Any moment will do.
        std::thread::sleep(Duration::from_micros(delay * 40));
        let _ = kill(monitor, Signal::SIGKILL);
        owner.hear();
        owner.finish();
        // Its workers are ours now, if there were any, and end at once: they have nothing to do.
        let begun = Instant::now();
        while !children().is_empty() {
            let _ = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
            assert!(
                begun.elapsed() < GRACE + Duration::from_millis(500),
                "after {delay}"
            );
        }
        let left = std::fs::read_dir(std::env::temp_dir()).unwrap().next();
        assert!(left.is_none(), "{left:?} is left after {delay}");
    }
}

fn a_workers_signals_are_those_of_the_list() {
    the_signals_are_those_of_the_list();
}

fn a_workers_signals_are_those_of_the_list_whatever_its_owner_has() {
    Helper::start(|_| {
        for ignored in [Signal::SIGPIPE, Signal::SIGCHLD] {
            unsafe { nix::sys::signal::signal(ignored, SigHandler::SigIgn) }.unwrap();
        }
        SigSet::from(Signal::SIGUSR1).thread_block().unwrap();
        the_signals_are_those_of_the_list();
        // The owner has what it had.
        let of_owner = |set| crate::signals::set("self", set);
        assert_eq!(of_owner("SigBlk"), [Signal::SIGUSR1 as u32]);
        let ignored = [Signal::SIGPIPE as u32, Signal::SIGCHLD as u32];
        assert_eq!(of_owner("SigIgn"), ignored);
    })
    .finish();
}

/// Signals that are handled come by a descriptor, so that none has to be blocked in any thread.
fn the_signals_are_those_of_the_list() {
    let server = server(1)
        .handle_signal(Signal::SIGUSR2, |_| {})
        .start()
        .unwrap();
    // A new thread blocks all signals until it runs; a call shows that one does.
    server
        .connect()
        .unwrap()
        .call::<_, i32>("pid", &())
        .unwrap();
    let worker = pids(&server).first().unwrap().to_string();
    let mut expected = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGPIPE,
        Signal::SIGTERM,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGIO,
        Signal::SIGUSR2,
    ]
    .map(|signal| signal as u32);
    expected.sort_unstable();
    assert_eq!(crate::signals::set(&worker, "SigCgt"), expected);
    assert_eq!(crate::signals::set(&worker, "SigIgn"), []);
    assert_eq!(crate::signals::set(&worker, "SigBlk"), []);
    for task in std::fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
        let task = task.unwrap().file_name();
        let task = format!("{worker}/task/{}", task.to_str().unwrap());
        // On a busy machine one more thread may have been started that does not run yet.
        let begun = Instant::now();
        while !crate::signals::set(&task, "SigBlk").is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{task}");
            std::thread::yield_now();
        }
    }
    let monitor = server.pid().to_string();
    let mut expected = [
        &expected[..],
        &[Signal::SIGTTIN as u32, Signal::SIGTTOU as u32],
    ]
    .concat();
    expected.sort_unstable();
    assert_eq!(crate::signals::set(&monitor, "SigCgt"), expected);
    assert_eq!(crate::signals::set(&monitor, "SigIgn"), []);
    assert_eq!(crate::signals::set(&monitor, "SigBlk"), []);
}

fn what_initialize_prints_is_printed_once() {
    let (mut read, write) = std::io::pipe().unwrap();
    let mut owner = Helper::start(|test| {
        nix::unistd::dup2_stdout(&write).unwrap();
        drop(write);
        let server = server(3)
            .initialize(|_| {
                print!("once");
                Ok(())
            })
            .start()
            .unwrap();
        server.stop().unwrap();
        std::io::stdout().flush().unwrap();
        test.say("stopped");
    });
    assert_eq!(owner.hear(), "stopped");
    owner.finish();
    let mut text = String::new();
    // The test has the pipe's end, too: what is there is all there will be.
    let mut bytes = [0; 64];
    let len = read.read(&mut bytes).unwrap();
    text.push_str(std::str::from_utf8(&bytes[..len]).unwrap());
    assert_eq!(text, "once");
}

fn a_panic_in_a_workers_hook_is_told_with_its_text() {
    let err = server(2)
        .worker_started(|_| match pid() {
            0 => Ok(()),
            _ => panic!("no tea"),
        })
        .start()
        .unwrap_err();
    let StartError::Hook { hook, message } = &err else {
        panic!("{err:?}");
    };
    assert!(
        hook == "worker_started" && message.contains("no tea"),
        "{err:?}"
    );
    assert!(message.contains("conformance_prefork.rs"), "{err:?}");
}

/// Rust's own, for a program whose main thread panics.
const PANICKED: Exit = Exit::Code(101);

/// A server whose workers panic before they serve, for as long as a file is there.
fn panics_while(file: &std::path::Path) -> ServerHandle {
    let file = file.to_owned();
    let server = server(2).worker_started(move |_| match file.exists() {
        true => panic!("no tea"),
        false => Ok(()),
    });
    server.start().unwrap()
}

/// How those died that had not been told to abort.
fn deaths(pool: &PoolStatus) -> Vec<Exit> {
    let events = pool.events.iter();
    let deaths = events.filter_map(|(_, event)| match event {
        PoolEvent::Died { exit, .. } => Some(*exit),
        _ => None,
    });
    let aborted = Exit::Signal(Signal::SIGABRT as i32);
    deaths.filter(|exit| *exit != aborted).collect()
}

fn a_worker_whose_hook_panics_ends_with_the_status_of_a_panic() {
    let file = std::env::temp_dir().join("spoilt");
    let server = panics_while(&file);
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let has_died = |pool: &PoolStatus| !deaths(pool).is_empty();
    let status = until(&server, "its successor dies", has_died);
    assert_eq!(deaths(&status)[0], PANICKED, "{status:#?}");
    // It may go well another time, and is tried again.
    std::fs::remove_file(&file).unwrap();
    until(&server, "it is replaced", all_serve(2));
}

fn workers_that_all_panic_at_their_start_are_tried_with_pauses_until_it_goes_well() {
    let file = std::env::temp_dir().join("spoilt");
    let server = panics_while(&file);
    std::fs::write(&file, "").unwrap();
    let mut client = server.connect().unwrap();
    let begun = Instant::now();
    client.call::<_, ()>("abort", &()).unwrap_err();
    let status = until(&server, "it is a loop", |pool| pool.crash_loop);
    // Three for nothing, then 50 ms and half as much again each time, 20 % less at least.
    let pauses: f64 = (0..4).map(|n| 0.05 * 1.5_f64.powi(n) * 0.8).sum();
    let took = begun.elapsed();
    assert!(took.as_secs_f64() > pauses, "{took:?}");
    assert!(deaths(&status).len() >= 8, "{status:#?}");
    // The other one has served all the time.
    client.call::<_, i32>("pid", &()).unwrap();
    std::fs::remove_file(&file).unwrap();
    let status = until(&server, "it has healed", |pool| {
        all_serve(2)(pool) && !pool.crash_loop
    });
    let mut exits = deaths(&status).into_iter();
    assert!(exits.all(|exit| exit == PANICKED), "{status:#?}");
}

fn an_owner_that_becomes_another_program_has_no_server_any_more() {
    use std::os::unix::process::CommandExt;
    let mut owner = Helper::start(|test| {
        let server = server(2).grace(GRACE).start().unwrap();
        test.say(server.pid());
        for pid in pids(&server) {
            test.say(pid);
        }
        test.wait_for_go();
        panic!("{}", std::process::Command::new("sleep").arg("40").exec());
    });
    let monitor = owner.hear_pid();
    let workers = [owner.hear_pid(), owner.hear_pid()];
    owner.go();
    // Nobody has a call to finish.
    for process in workers.iter().chain([&monitor]) {
        process.ends_within(GRACE + Duration::from_millis(500));
    }
    assert!(Watched::open(owner.pid.as_raw()).is_alive());
    owner.kill();
    monitor.reap();
}

fn a_fork_that_is_refused_is_tried_again() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    // A user that nobody else is: the limit counts all processes and threads of a user.
    const NOBODY_ELSE: u32 = 54_322;
    // Nobody else may change the limits of a process that has given up its rights; an observer of the pool can, in the monitor.
    let limit = |least: bool| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NPROC).unwrap();
        let soft = if least { 1 } else { hard };
        setrlimit(Resource::RLIMIT_NPROC, soft, hard).unwrap();
    };
    let refusals = std::sync::atomic::AtomicU32::new(0);
    let server = server(2)
        .user(NOBODY_ELSE, NOBODY_ELSE)
        .observe(move |event| match event {
            Event::Pool(PoolEvent::Died { .. }) => limit(true),
            Event::Pool(PoolEvent::NotForked { .. })
                if refusals.fetch_add(1, Ordering::SeqCst) == 4 =>
            {
                limit(false);
            }
            _ => {}
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("abort", &()).unwrap_err();
    // The other worker serves meanwhile.
    for _ in 0..4 {
        let mut client = Client::connect(server.address()).unwrap();
        client.call::<_, i32>("pid", &()).unwrap();
    }
    let status = until(&server, "it is tried again", all_serve(2));
    let refused =
        |(_, event): &&(Duration, PoolEvent)| matches!(event, PoolEvent::NotForked { .. });
    assert_eq!(status.events.iter().filter(refused).count(), 5);
}

fn switches(pids: impl Iterator<Item = u32>) -> u64 {
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    };
    pids.flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap())
        .map(of_task)
        .sum()
}

fn idle_workers_are_not_woken_for_others() {
    let server = server(16).start().unwrap();
    let workers = pids(&server);
    let call = |count| {
        for _ in 0..count {
            let client = Client::connect(server.address()).unwrap();
            client.call_last::<_, i32>("pid", &()).unwrap();
        }
    };
    call(100);
    let before = switches(workers.iter().copied());
    call(2_000);
    let each = (switches(workers.iter().copied()) - before) as f64 / 2_000.0;
    // One that serves wakes up a few times for it; a herd would make sixteen of each.
    assert!(each <= 6.0, "{each}");
}

fn nobody_waits_for_a_busy_worker_while_another_is_idle() {
    let server = server(2)
        .handle("sleep", |_, millis: u64| {
            std::thread::sleep(Duration::from_millis(millis));
            Ok(())
        })
        .start()
        .unwrap();
    let mut busy = Client::connect(server.address()).unwrap();
    let call = busy.begin::<_, ()>("sleep", &1_500_u64).unwrap();
    busy.flush().unwrap();
    let mut took = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        let called = Instant::now();
        let client = Client::connect(server.address()).unwrap();
        client.call_last::<_, i32>("pid", &()).unwrap();
        took.push(called.elapsed());
    }
    took.sort_unstable();
    assert!(took.len() > 100);
    assert!(
        took[took.len() * 99 / 100] < Duration::from_millis(50),
        "{:?}",
        took.last()
    );
    busy.finish(call).unwrap();
}

fn a_second_signal_ends_the_monitor_at_once() {
    let (mut entered, enter) = std::io::pipe().unwrap();
    let server = server(1)
        .keep_fd(&enter)
        .grace(Duration::from_millis(500))
        .handle("sleep", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            std::thread::sleep(Duration::from_secs(60));
            Ok(())
        })
        .start()
        .unwrap();
    let worker = Watched::open(pool(&server).workers[0].pid as i32);
    let mut client = server.connect().unwrap();
    let call = client.begin::<_, ()>("sleep", &()).unwrap();
    client.flush().unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let monitor = Pid::from_raw(server.pid() as i32);
    kill(monitor, Signal::SIGTERM).unwrap();
    // It has begun to end when its socket is gone.
    while server.address().path().exists() {
        std::thread::yield_now();
    }
    let begun = Instant::now();
    kill(monitor, Signal::SIGTERM).unwrap();
    assert_eq!(server.wait(), Exit::Signal(15));
    assert!(
        begun.elapsed() < Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    worker.ends_within(Duration::from_millis(600));
    worker.reap();
    client.finish(call).unwrap_err();
}

fn as_many_serve_as_shall_while_the_worn_out_are_replaced() {
    const WORKERS: usize = 3;
    const LIVES: usize = 4 * WORKERS;
    let server = server(WORKERS)
        .prefork(Prefork::new(WORKERS).max_calls(500))
        // A successor takes its time, so that it would be missed if its predecessor did not wait for it.
        .worker_started(|_| {
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        })
        .start()
        .unwrap();
    let (mut seen, mut while_replaced) = (BTreeSet::new(), 0);
    let calls = calling(&server, 4, true, || {
        let begun = Instant::now();
        while seen.len() < LIVES || while_replaced < 10 {
            let status = pool(&server);
            let workers = status.workers.iter();
            let serving = workers.filter(|worker| worker.phase == WorkerPhase::Serving);
            assert!(serving.count() >= WORKERS, "{status:#?}");
            while_replaced += usize::from(status.workers.len() > WORKERS);
            seen.extend(status.workers.iter().map(|worker| worker.pid));
            assert!(begun.elapsed() < Duration::from_secs(30), "{status:#?}");
        }
    });
    assert!(calls > 500 * (LIVES - WORKERS) as u64 / 2, "{calls}");
    until(&server, "it is quiet again", all_serve(WORKERS));
}

/// `true`: for one more worker.
fn send(server: &ServerHandle, more: bool) {
    let signal = if more {
        Signal::SIGTTIN
    } else {
        Signal::SIGTTOU
    };
    kill(Pid::from_raw(server.pid() as i32), signal).unwrap();
}

/// Random numbers whose seed is printed.
fn random() -> StdRng {
    let seed = rand::rng().random();
    println!("the seed is {seed}");
    StdRng::seed_from_u64(seed)
}

/// After all that, there are two if there shall be two, and nobody else.
fn settles_at_two(server: &ServerHandle) {
    server.set_workers(2).unwrap();
    until(server, "there are two", all_serve(2));
    let monitor = server.pid();
    let children = std::fs::read_to_string(format!("/proc/{monitor}/task/{monitor}/children"));
    let children = children.unwrap();
    let children: BTreeSet<u32> = children
        .split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect();
    assert_eq!(children, pids(server), "no zombie is left");
}

fn signals_in_any_order_make_as_many_workers_as_they_say() {
    let (server, mut random) = (server(2).start().unwrap(), random());
    let mut expected = 2;
    let calls = calling(&server, 4, true, || {
        for _ in 0..300 {
            let more = random.random();
            send(&server, more);
            // Not fewer than one.
            expected = if more {
                expected + 1
            } else {
                1.max(expected - 1)
            };
            // Two that come at once could be one.
            until(&server, "it is heeded", |pool| pool.wanted == expected);
        }
    });
    assert!(calls > 300, "{calls}");
    until(&server, "they are there", all_serve(expected));
    settles_at_two(&server);
}

fn a_storm_of_signals_for_more_and_fewer_workers_disturbs_nobody() {
    const SIGNALS: usize = 300;
    let (server, mut random) = (server(2).start().unwrap(), random());
    let mut client = server.connect().unwrap();
    calling(&server, 4, true, || {
        for _ in 0..SIGNALS {
            send(&server, random.random());
            client.call::<_, i32>("pid", &()).unwrap();
        }
    });
    let is_settled = |pool: &PoolStatus| all_serve(pool.wanted)(pool);
    let status = until(&server, "as many are there as shall", is_settled);
    assert!((1..=2 + SIGNALS).contains(&status.wanted), "{status:#?}");
    settles_at_two(&server);
}
