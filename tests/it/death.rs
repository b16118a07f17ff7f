//! Who outlives whom, and for how long.

use crate::lifecycle::echo;
use crate::processes::{Helper, Watched};
use forkserver::{CallError, Exit, Server, ServerHandle};
use nix::sys::ptrace;
use nix::sys::signal::{SigHandler, SigSet, Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::Read;
use std::time::{Duration, Instant};

crate::tests![
    an_idle_server_goes_with_its_owner,
    a_spinning_handler_ends_with_the_grace,
    a_blocked_handler_ends_with_the_grace,
    a_handler_that_blocks_all_signals_ends_with_the_grace,
    a_hung_finalize_ends_with_the_grace,
    a_stray_sigio_kills_nobody,
    only_the_last_owner_counts,
    a_later_server_does_not_keep_an_earlier_one_alive,
    an_owner_killed_at_any_system_call_leaves_no_orphan,
    a_killed_server_is_seen_at_once,
    a_host_that_ignores_its_children_learns_the_status,
    a_host_that_reaps_everything_is_not_hung,
    only_our_own_child_is_reaped,
    more_signals_do_not_put_the_end_off,
];

const GRACE: Duration = Duration::from_millis(300);
const SLACK: Duration = Duration::from_millis(50);

/// An owner with a server whose handlers misbehave. It says the server's pid and path, and stays.
fn owner(misbehave: Option<&'static str>) -> (Helper, Watched, std::path::PathBuf) {
    let mut owner = Helper::start(|test| {
        let (mut entered, enter) = std::io::pipe().unwrap();
        let signal_entry = move || std::io::Write::write_all(&mut &enter, b"!");
        let keep = std::sync::Arc::new(signal_entry);
        let (a, b, c) = (keep.clone(), keep.clone(), keep);
        let server = crate::server()
            .grace(GRACE)
            .keep_fd(&entered)
            .handle("spin", move |_, (): ()| {
                a()?;
                Ok(spin())
            })
            .handle("read", move |_, (): ()| {
                let (mut never, _writer) = std::io::pipe()?;
                b()?;
                Ok(never.read(&mut [0])? as u32)
            })
            .handle("blocked", move |_, (): ()| {
                SigSet::all().thread_block()?;
                c()?;
                Ok(spin())
            });
        let server = keep_all(server).start().unwrap();
        test.say(server.pid());
        test.say(server.address().path().display());
        let mut client = server.connect().unwrap();
        let pending = misbehave.map(|name| {
            let pending = client.begin::<_, u32>(name, &()).unwrap();
            entered.read_exact(&mut [0]).unwrap();
            pending
        });
        test.say("busy");
        test.wait();
        drop((pending, server));
    });
    let server = owner.hear_pid();
    let path = owner.hear().into();
    assert_eq!(owner.hear(), "busy");
    (owner, server, path)
}

/// Keeps every descriptor that is open now: the handlers' pipes are among them.
fn keep_all(mut server: Server) -> Server {
    use std::os::fd::{BorrowedFd, RawFd};
    for (number, _) in crate::harness::descriptors("self") {
        let number: RawFd = number.parse().unwrap();
        // SAFETY: the descriptor is open.
        server = server.keep_fd(&unsafe { BorrowedFd::borrow_raw(number) });
    }
    server
}

fn spin() -> u32 {
    loop {
        std::hint::spin_loop();
    }
}

fn an_idle_server_goes_with_its_owner() {
    let (owner, server, path) = owner(None);
    owner.kill();
    server.ends_within(SLACK);
    assert!(!path.exists() && !path.parent().unwrap().exists());
    assert!(matches!(server.reap(), WaitStatus::Exited(_, 0)));
}

fn busy_until_the_grace(misbehave: &'static str) {
    let (owner, server, path) = owner(Some(misbehave));
    let start = Instant::now();
    owner.kill();
    server.ends_within(GRACE + SLACK);
    assert!(
        start.elapsed() >= GRACE - Duration::from_millis(20),
        "{:?}",
        start.elapsed()
    );
    assert!(!path.exists() && !path.parent().unwrap().exists());
    server.reap();
}

fn a_spinning_handler_ends_with_the_grace() {
    busy_until_the_grace("spin");
}

fn a_blocked_handler_ends_with_the_grace() {
    busy_until_the_grace("read");
}

fn a_handler_that_blocks_all_signals_ends_with_the_grace() {
    busy_until_the_grace("blocked");
}

fn a_hung_finalize_ends_with_the_grace() {
    // The control thread itself is stuck: the kernel does it.
    let mut owner = Helper::start(|test| {
        let server = echo()
            .grace(GRACE)
            .finalize(|_| {
                spin();
            })
            .start()
            .unwrap();
        test.say(server.pid());
        test.say(server.address().path().display());
        test.wait();
    });
    let (server, path) = (owner.hear_pid(), std::path::PathBuf::from(owner.hear()));
    owner.kill();
    server.ends_within(GRACE + SLACK);
    assert!(!path.exists());
    assert!(matches!(
        server.reap(),
        WaitStatus::Signaled(_, Signal::SIGKILL, _)
    ));
}

fn a_stray_sigio_kills_nobody() {
    let server = echo().grace(Duration::from_millis(1)).start().unwrap();
    let mut client = server.connect().unwrap();
    for _ in 0..20 {
        kill(Pid::from_raw(server.pid() as i32), Signal::SIGIO).unwrap();
        assert_eq!(client.call::<_, String>("echo", "alive").unwrap(), "alive");
    }
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

fn only_the_last_owner_counts() {
    let server = echo().start().unwrap();
    let watched = Watched::server(&server);
    let address = server.address().clone();
    // Three forked copies, each of which has a share of its own.
    let owners: Vec<_> = (0..3)
        .map(|_| {
            let share = server.share().unwrap();
            let mut owner = Helper::start(|test| {
                test.say("here");
                test.wait();
            });
            assert_eq!(owner.hear(), "here");
            drop(share);
            owner
        })
        .collect();
    server.release();
    for owner in owners {
        let mut client =
            forkserver::Client::connect(&address).expect("somebody still owns the server");
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        assert!(watched.is_alive());
        owner.kill();
    }
    watched.ends_within(Duration::from_secs(1));
    watched.reap();
    // The next start forgets what was released.
    echo().start().unwrap().stop().unwrap();
}

fn a_later_server_does_not_keep_an_earlier_one_alive() {
    let mut owner = Helper::start(|test| {
        let servers: Vec<ServerHandle> = (0..5).map(|_| echo().start().unwrap()).collect();
        servers.iter().for_each(|server| test.say(server.pid()));
        test.wait();
    });
    let servers: Vec<_> = (0..5).map(|_| owner.hear_pid()).collect();
    // Every server was forked with the lifelines of all earlier ones open, and must have let go of them.
    let pipes_of = |server: &Watched| -> std::collections::BTreeSet<_> {
        let all = crate::harness::descriptors(&server.pid.to_string()).into_iter();
        let own = all
            .filter(|(number, _)| number.parse::<u32>().unwrap() > 2)
            .map(|(_, target)| target);
        own.filter(|target| target.to_string_lossy().starts_with("pipe:"))
            .collect()
    };
    for (i, server) in servers.iter().enumerate() {
        assert_eq!(
            pipes_of(server).len(),
            2,
            "the lifeline and the signals' pipe"
        );
        assert!(
            servers[..i]
                .iter()
                .all(|other| pipes_of(other).is_disjoint(&pipes_of(server)))
        );
    }
    owner.kill();
    for server in servers {
        server.ends_within(Duration::from_millis(200));
        server.reap();
    }
}

fn an_owner_killed_at_any_system_call_leaves_no_orphan() {
    let grace = Duration::from_millis(100);
    let mut forked = 0;
    for stops in 1.. {
        let owner = Helper::start(|test| {
            ptrace::traceme().unwrap();
            raise(Signal::SIGSTOP).unwrap();
            let server = echo().grace(grace).start().unwrap();
            test.say("ready");
            std::mem::forget(server);
        });
        waitpid(owner.pid, None).expect("the owner stops by itself");
        let finished = (0..stops).any(|_| {
            ptrace::syscall(owner.pid, None).expect("a stopped owner");
            !matches!(
                waitpid(owner.pid, None),
                Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceSyscall(_))
            )
        });
        if !finished {
            kill(owner.pid, Signal::SIGKILL).expect("the owner");
            waitpid(owner.pid, None).expect("the owner");
        }
        // Whatever it has forked is ours now, and must be gone soon.
        let server = any_child_within(grace + Duration::from_secs(1));
        forked += usize::from(server);
        for entry in std::fs::read_dir(std::env::temp_dir()).unwrap() {
            let path = entry.unwrap().path();
            assert!(
                !server,
                "after {stops} stops, with a server forked, {path:?} is left"
            );
            std::fs::remove_dir_all(&path).unwrap();
        }
        if finished {
            assert!(stops > 40, "the owner was stepped through");
            assert!(forked > 10, "many of the system calls come after the fork");
            return;
        }
    }
}

/// Waits for the end of all children there are, at most one. `false`: there is none.
fn any_child_within(limit: Duration) -> bool {
    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    let Some(pid) = children.split_whitespace().next() else {
        return false;
    };
    let server = Watched::open(pid.parse().unwrap());
    server.ends_within(limit);
    server.reap();
    let more = waitpid(None, Some(WaitPidFlag::WNOHANG));
    assert_eq!(
        more,
        Err(nix::errno::Errno::ECHILD),
        "one server and nothing else"
    );
    true
}

fn a_killed_server_is_seen_at_once() {
    let (entered_read, enter) = std::io::pipe().unwrap();
    let mut entered_read = entered_read;
    let definition = crate::server()
        .keep_fd(&enter)
        .handle("echo", |_, x: u8| Ok(x))
        .handle("spin", move |_, (): ()| {
            std::io::Write::write_all(&mut &enter, b"!")?;
            Ok(spin())
        });
    for _ in 0..2 {
        let server = definition.start().expect("start works again");
        let mut client = server.connect().unwrap();
        assert_eq!(client.call::<_, u8>("echo", &1_u8).unwrap(), 1);
        let pending = client.begin::<_, u32>("spin", &()).unwrap();
        entered_read.read_exact(&mut [0]).unwrap();
        kill(Pid::from_raw(server.pid() as i32), Signal::SIGKILL).unwrap();
        let start = Instant::now();
        let err = client.finish(pending).unwrap_err();
        assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
        assert_eq!(err.delivery(), forkserver::Delivery::MaybeExecuted);
        assert!(start.elapsed() < Duration::from_millis(100));
        let err = client.call::<_, u8>("echo", &1_u8).unwrap_err();
        assert_eq!(err.delivery(), forkserver::Delivery::NotSent, "{err}");
        let path = server.address().path().to_owned();
        assert_eq!(server.wait(), Exit::Signal(9));
        assert!(!server.is_running());
        let gone = forkserver::Client::connect(server.address()).unwrap_err();
        assert!(
            matches!(gone, forkserver::ConnectError::NotRunning { .. }),
            "{gone}"
        );
        assert!(matches!(
            server.connect(),
            Err(forkserver::ConnectError::NotRunning { .. })
        ));
        assert!(path.exists(), "a killed server cannot remove its socket");
        assert_eq!(server.stop().unwrap(), Exit::Signal(9));
        assert!(!path.exists() && !path.parent().unwrap().exists());
    }
}

/// Since Linux 6.15 the kernel remembers how a process ended that somebody else has reaped.
fn is_clean_or_unknown(exit: Exit) {
    assert!(matches!(exit, Exit::Code(0) | Exit::Unknown), "{exit}");
}

fn a_host_that_ignores_its_children_learns_the_status() {
    // SAFETY: no handler is installed.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigIgn) }.unwrap();
    let server = echo().start().unwrap();
    crate::lifecycle::call_echo(&server);
    is_clean_or_unknown(server.stop().unwrap());
    // SAFETY: no handler is installed.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::SigDfl) }.unwrap();
}

extern "C" fn reap_everything(_: nix::libc::c_int) {
    while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
    {
    }
}

fn a_host_that_reaps_everything_is_not_hung() {
    // SAFETY: waitpid is async-signal-safe.
    unsafe { nix::sys::signal::signal(Signal::SIGCHLD, SigHandler::Handler(reap_everything)) }
        .unwrap();
    let start = Instant::now();
    for _ in 0..5 {
        let server = echo().start().unwrap();
        crate::lifecycle::call_echo(&server);
        is_clean_or_unknown(server.stop().unwrap());
    }
    assert!(start.elapsed() < Duration::from_secs(3));
}

fn only_our_own_child_is_reaped() {
    let other = Helper::start(|_| ());
    let server = echo().start().unwrap();
    server.stop().unwrap();
    // Its status is still there.
    other.finish();
}

fn more_signals_do_not_put_the_end_off() {
    let mut owner = Helper::start(|test| {
        let server = echo()
            .grace(GRACE)
            .finalize(|_| {
                spin();
            })
            .start()
            .unwrap();
        test.say(server.pid());
        test.wait();
    });
    let server = owner.hear_pid();
    owner.kill();
    let start = Instant::now();
    while server.is_alive() {
        let _ = kill(server.pid, Signal::SIGIO);
        assert!(start.elapsed() < GRACE + Duration::from_millis(500));
    }
    server.reap();
}
