//! Signals: what a server does with them, and what it inherits and hands on.

use crate::lifecycle::{echo, run};
use crate::processes::Helper;
use forkserver::{Client, Exit, Server, ServerHandle, Signal};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, kill, sigaction};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

crate::tests![
    dispositions_and_mask_are_exactly_as_listed,
    programs_that_a_handler_starts_get_defaults,
    the_parents_handlers_never_run_in_the_child,
    int_and_term_drain_and_then_kill,
    a_second_signal_ends_at_once,
    other_signals_have_their_default_action,
    hup_and_pipe_do_nothing,
    a_handled_signal_runs_its_handler,
    a_handler_of_a_signal_can_stop_the_server,
    a_panicking_signal_handler_is_survived,
    an_owner_that_uses_signal_hook_notices_nothing,
    run_gives_the_signals_back,
    run_ends_with_the_signal,
    run_keeps_the_hosts_actions_alive,
    signals_interrupt_nothing,
    run_hears_a_signal_once_for_each_handler,
    two_servers_in_one_process_share_signals,
    a_server_started_by_an_ending_server_is_not_ending,
];

fn send(server: &ServerHandle, signal: Signal) {
    kill(Pid::from_raw(server.pid() as i32), signal).unwrap();
}

/// A set of signals of `/proc/PID/status`.
pub fn set(process: &str, name: &str) -> Vec<u32> {
    set_in(
        &std::fs::read_to_string(format!("/proc/{process}/status")).unwrap(),
        name,
    )
}

fn set_in(status: &str, name: &str) -> Vec<u32> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    let bits = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap();
    // 32 and 33 are the C library's own.
    let set = |n: &u32| bits & (1 << (n - 1)) != 0 && ![32, 33].contains(n);
    (1..=64).filter(set).collect()
}

extern "C" fn nothing(_: nix::libc::c_int) {}

fn install(signal: Signal, handler: SigHandler) -> SigAction {
    // SAFETY: the handlers of these tests do nothing, or add to an atomic number.
    unsafe {
        sigaction(
            signal,
            &SigAction::new(handler, SaFlags::empty(), SigSet::empty()),
        )
    }
    .unwrap()
}

fn dispositions_and_mask_are_exactly_as_listed() {
    Helper::start(|_| {
        // As odd a parent as can be.
        install(Signal::SIGCHLD, SigHandler::SigIgn);
        install(Signal::SIGTERM, SigHandler::SigIgn);
        install(Signal::SIGUSR1, SigHandler::Handler(nothing));
        install(Signal::SIGQUIT, SigHandler::Handler(nothing));
        SigSet::all().thread_block().unwrap();
        let server = echo()
            .handle_signal(Signal::SIGUSR2, |_| ())
            .start()
            .unwrap();
        // A new thread blocks all signals until it runs; a call shows that one does.
        let mut client = Client::connect(server.address()).unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        let pid = server.pid().to_string();
        let mut expected = [
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGBUS,
            Signal::SIGSEGV,
            Signal::SIGPIPE,
            Signal::SIGTERM,
            Signal::SIGIO,
            Signal::SIGUSR2,
        ]
        .map(|signal| signal as u32);
        expected.sort_unstable();
        assert_eq!(set(&pid, "SigCgt"), expected);
        assert_eq!(set(&pid, "SigIgn"), []);
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().file_name();
            let task = format!("{pid}/task/{}", task.to_str().unwrap());
            // On a busy machine the watchdog may have started one more thread, which does not run yet.
            while !set(&task, "SigBlk").is_empty() {
                std::thread::yield_now();
            }
        }
        // The parent is as odd as before.
        assert!(set("self", "SigIgn").contains(&(Signal::SIGTERM as u32)));
        assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1));
    })
    .finish();
}

fn programs_that_a_handler_starts_get_defaults() {
    let server = echo()
        .handle("cat", |_, (): ()| {
            let output = std::process::Command::new("cat")
                .arg("/proc/self/status")
                .output()?;
            Ok(String::from_utf8(output.stdout)?)
        })
        .start()
        .unwrap();
    let status: String = server.connect().unwrap().call("cat", &()).unwrap();
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(set_in(&status, name), []);
    }
}

static SEEN: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: nix::libc::c_int) {
    SEEN.fetch_add(1, Ordering::SeqCst);
    if nix::unistd::getpid().as_raw() as u32 != OWNER.load(Ordering::SeqCst) {
        STRAYED.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whose handler it is, and how often it has run elsewhere.
static OWNER: AtomicU32 = AtomicU32::new(0);
static STRAYED: AtomicU32 = AtomicU32::new(0);

fn the_parents_handlers_never_run_in_the_child() {
    OWNER.store(std::process::id(), Ordering::SeqCst);
    install(Signal::SIGUSR1, SigHandler::Handler(count));
    let target = nix::unistd::getpid();
    // A storm over the whole process group, which a server is in until it has left it.
    let storm = Helper::start(|_| {
        while nix::unistd::getppid() == target {
            let _ = nix::sys::signal::killpg(nix::unistd::getpgrp(), Signal::SIGUSR1);
        }
    });
    let definition = crate::server()
        .handle_signal(Signal::SIGUSR1, |_| ())
        .handle("strayed", |_, (): ()| Ok(STRAYED.load(Ordering::SeqCst)));
    for _ in 0..200 {
        let server = definition.start().unwrap();
        let strayed: u32 = server.connect().unwrap().call("strayed", &()).unwrap();
        assert_eq!(strayed, 0, "the owner's handler ran in the server");
    }
    storm.kill();
    assert!(SEEN.load(Ordering::SeqCst) > 200, "there was a storm");
}

/// A server in the middle of a call that waits for a byte.
fn busy() -> (ServerHandle, std::io::PipeReader, std::io::PipeWriter) {
    let (definition, entered, leave) = waiting();
    (definition.start().unwrap(), entered, leave)
}

fn waiting() -> (Server, std::io::PipeReader, std::io::PipeWriter) {
    let (entered, enter) = std::io::pipe().unwrap();
    let (wait, leave) = std::io::pipe().unwrap();
    let definition = echo()
        .keep_fd(&enter)
        .keep_fd(&wait)
        .handle("wait", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            (&wait).read_exact(&mut [0])?;
            Ok("answered")
        });
    (definition, entered, leave)
}

fn int_and_term_drain_and_then_kill() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (server, mut entered, mut leave) = busy();
        let mut client = server.connect().unwrap();
        let pending = client.begin::<_, String>("wait", &()).unwrap();
        entered.read_exact(&mut [0]).unwrap();
        let path = server.address().path().to_owned();
        send(&server, signal);
        while path.exists() {
            std::thread::yield_now();
        }
        assert!(server.is_running());
        leave.write_all(b"x").unwrap();
        assert_eq!(client.finish(pending).unwrap(), "answered");
        assert_eq!(server.wait(), Exit::Signal(signal as i32));
        assert_eq!(server.stop().unwrap(), Exit::Signal(signal as i32));
    }
}

fn a_second_signal_ends_at_once() {
    let (server, mut entered, _leave) = busy();
    let mut client = server.connect().unwrap();
    let _pending = client.begin::<_, String>("wait", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let path = server.address().path().to_owned();
    send(&server, Signal::SIGINT);
    while path.exists() {
        std::thread::yield_now();
    }
    send(&server, Signal::SIGTERM);
    assert!(crate::processes::readable(&server, Duration::from_secs(1)));
    assert_eq!(server.stop().unwrap(), Exit::Signal(Signal::SIGTERM as i32));
}

fn other_signals_have_their_default_action() {
    for signal in [
        Signal::SIGUSR1,
        Signal::SIGQUIT,
        Signal::SIGALRM,
        Signal::SIGABRT,
    ] {
        let server = echo().start().unwrap();
        send(&server, signal);
        assert_eq!(server.wait(), Exit::Signal(signal as i32));
        server.stop().unwrap();
    }
}

fn hup_and_pipe_do_nothing() {
    let server = echo().start().unwrap();
    let mut client = server.connect().unwrap();
    for signal in [
        Signal::SIGHUP,
        Signal::SIGPIPE,
        Signal::SIGCHLD,
        Signal::SIGWINCH,
    ] {
        send(&server, signal);
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
}

fn a_handled_signal_runs_its_handler() {
    let (mut told, tell) = std::io::pipe().unwrap();
    let tell = std::sync::Arc::new(tell);
    let (one, two) = (tell.clone(), tell.clone());
    let server = echo()
        .keep_fd(&*tell)
        .handle_signal(Signal::SIGHUP, move |control| {
            // Normal context: anything is allowed here.
            let text = format!("hup {}\n", control.address().path().is_absolute());
            (&*one).write_all(text.as_bytes()).unwrap();
        })
        .handle_signal(Signal::SIGTERM, move |_| {
            (&*two).write_all(b"term\n").unwrap()
        })
        .start()
        .unwrap();
    let mut hear = |expected: &str| {
        let mut text = vec![0; expected.len()];
        told.read_exact(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    };
    for _ in 0..2 {
        send(&server, Signal::SIGHUP);
        hear("hup true\n");
        send(&server, Signal::SIGTERM);
        hear("term\n");
    }
    crate::lifecycle::call_echo(&server);
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

fn a_handler_of_a_signal_can_stop_the_server() {
    let server = echo()
        .handle_signal(Signal::SIGUSR1, |control| control.stop())
        .start()
        .unwrap();
    send(&server, Signal::SIGUSR1);
    assert_eq!(server.wait(), Exit::Code(0));
    server.stop().unwrap();
}

fn a_panicking_signal_handler_is_survived() {
    let server = echo()
        .handle_signal(Signal::SIGUSR1, |_| panic!("in a signal handler"))
        .start()
        .unwrap();
    for _ in 0..3 {
        send(&server, Signal::SIGUSR1);
        crate::lifecycle::call_echo(&server);
    }
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

fn an_owner_that_uses_signal_hook_notices_nothing() {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    let flag = Arc::new(AtomicBool::new(false));
    let id = signal_hook::flag::register(Signal::SIGUSR1 as i32, Arc::clone(&flag)).unwrap();
    let seen = Arc::clone(&flag);
    let server = echo()
        .handle_signal(Signal::SIGUSR1, |_| ())
        .handle("flag", move |_, (): ()| Ok(seen.load(Ordering::SeqCst)))
        .start()
        .unwrap();
    send(&server, Signal::SIGUSR1);
    let mut client = server.connect().unwrap();
    assert!(
        !client.call::<_, bool>("flag", &()).unwrap(),
        "the owner's action does not run in the child"
    );
    assert!(!flag.load(Ordering::SeqCst));
    nix::sys::signal::raise(Signal::SIGUSR1).unwrap();
    assert!(
        flag.load(Ordering::SeqCst),
        "the owner's action still runs in the owner"
    );
    signal_hook::low_level::unregister(id);
}

fn raw_action(signal: Signal) -> (usize, i32) {
    let mut action = std::mem::MaybeUninit::<nix::libc::sigaction>::zeroed();
    // SAFETY: room for one action; none is set.
    let action = unsafe {
        nix::libc::sigaction(signal as i32, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    // The C library adds a flag of its own to whatever is set.
    const SA_RESTORER: i32 = 0x0400_0000;
    (action.sa_sigaction, action.sa_flags & !SA_RESTORER)
}

fn run_gives_the_signals_back() {
    let signals = [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
        Signal::SIGPIPE,
    ];
    install(Signal::SIGUSR1, SigHandler::Handler(count));
    install(Signal::SIGTERM, SigHandler::SigIgn);
    let before = signals.map(raw_action);
    let mask = SigSet::thread_get_mask().unwrap();
    // Twice: signal-hook believes after the first time that its handler is still there.
    for _ in 0..2 {
        let noted = std::sync::Arc::new(AtomicU32::new(0));
        let in_handler = std::sync::Arc::clone(&noted);
        let definition = echo().handle_signal(Signal::SIGUSR1, move |control| {
            in_handler.fetch_add(1, Ordering::SeqCst);
            control.stop();
        });
        let exit = run(definition, |mut client| {
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
            kill(nix::unistd::getpid(), Signal::SIGUSR1).unwrap();
        });
        assert_eq!((exit, noted.load(Ordering::SeqCst)), (Exit::Code(0), 1));
        assert_eq!(signals.map(raw_action), before);
        assert_eq!(SigSet::thread_get_mask().unwrap(), mask);
    }
}

fn run_ends_with_the_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGTERM] {
        let exit = run(echo(), move |mut client| {
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
            kill(nix::unistd::getpid(), signal).unwrap();
        });
        assert_eq!(exit, Exit::Signal(signal as i32));
    }
}

fn run_keeps_the_hosts_actions_alive() {
    let host = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let id = signal_hook::flag::register_usize(Signal::SIGTERM as i32, host.clone(), 1).unwrap();
    let exit = run(echo(), |_| {
        kill(nix::unistd::getpid(), Signal::SIGTERM).unwrap()
    });
    assert_eq!(
        (exit, host.swap(0, Ordering::SeqCst)),
        (Exit::Signal(Signal::SIGTERM as i32), 1)
    );
    nix::sys::signal::raise(Signal::SIGTERM).unwrap();
    assert_eq!(host.load(Ordering::SeqCst), 1, "and afterwards");
    signal_hook::low_level::unregister(id);
}

fn signals_interrupt_nothing() {
    // A timer that interrupts system calls in owner and server all the time.
    let definition = echo().initialize(|_| {
        storm();
        Ok(())
    });
    let old = install(Signal::SIGALRM, SigHandler::SigDfl);
    nix::unistd::alarm::cancel();
    storm();
    for _ in 0..5 {
        let server = definition.start().unwrap();
        let mut client = server
            .connect()
            .unwrap()
            .with_timeout(Duration::from_secs(20));
        for _ in 0..200 {
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        }
        let mut other = Client::connect(server.address()).unwrap();
        assert_eq!(other.call::<_, String>("echo", "y").unwrap(), "y");
        assert_eq!(server.stop().unwrap(), Exit::Code(0));
    }
    calm();
    // SAFETY: the action was in force before.
    unsafe { sigaction(Signal::SIGALRM, &old) }.unwrap();
}

fn timer(micros: i64) {
    let every = nix::libc::timeval {
        tv_sec: 0,
        tv_usec: micros,
    };
    let value = nix::libc::itimerval {
        it_interval: every,
        it_value: every,
    };
    // SAFETY: a valid timer value.
    unsafe {
        nix::libc::setitimer(
            nix::libc::ITIMER_REAL,
            &raw const value,
            std::ptr::null_mut(),
        )
    };
}

fn storm() {
    install(Signal::SIGALRM, SigHandler::Handler(nothing));
    timer(500);
}

fn calm() {
    timer(0);
}

fn run_hears_a_signal_once_for_each_handler() {
    install(Signal::SIGUSR1, SigHandler::SigDfl);
    let before = raw_action(Signal::SIGUSR1);
    let sum = std::sync::Arc::new(AtomicU32::new(0));
    let (one, hundred) = (sum.clone(), sum.clone());
    let definition = echo()
        .handle_signal(Signal::SIGUSR1, move |_| {
            one.fetch_add(1, Ordering::SeqCst);
        })
        .handle_signal(Signal::SIGUSR1, move |control| {
            hundred.fetch_add(100, Ordering::SeqCst);
            control.stop();
        });
    let exit = run(definition, |_| {
        kill(nix::unistd::getpid(), Signal::SIGUSR1).unwrap()
    });
    assert_eq!((exit, sum.load(Ordering::SeqCst)), (Exit::Code(0), 101));
    assert_eq!(raw_action(Signal::SIGUSR1), before);
}

fn two_servers_in_one_process_share_signals() {
    let before = raw_action(Signal::SIGTERM);
    let (started, is_started) = std::sync::mpsc::channel();
    let stoppable = || {
        echo().handle("stop", |ctx, (): ()| {
            ctx.control().stop();
            Ok(())
        })
    };
    let first = std::thread::spawn(move || {
        run(stoppable(), move |mut client| {
            started.send(()).unwrap();
            client.call::<_, ()>("stop", &()).unwrap();
        })
    });
    is_started.recv().unwrap();
    let exit = run(stoppable(), move |mut client| {
        assert_eq!(first.join().unwrap(), Exit::Code(0));
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        assert_ne!(
            raw_action(Signal::SIGTERM),
            (0, 0),
            "the second still has the signal"
        );
        kill(nix::unistd::getpid(), Signal::SIGTERM).unwrap();
    });
    assert_eq!(exit, Exit::Signal(Signal::SIGTERM as i32));
    assert_eq!(raw_action(Signal::SIGTERM), before);
}

fn a_server_started_by_an_ending_server_is_not_ending() {
    let (mut told, tell) = std::io::pipe().unwrap();
    let server = echo()
        .keep_fd(&tell)
        .finalize(move |_| {
            let (definition, mut entered, mut leave) = waiting();
            let nested = definition.start().unwrap();
            let mut client = nested.connect().unwrap();
            let pending = client.begin::<_, String>("wait", &()).unwrap();
            entered.read_exact(&mut [0]).unwrap();
            send(&nested, Signal::SIGTERM);
            while nested.address().path().exists() {
                std::thread::yield_now();
            }
            leave.write_all(b"x").unwrap();
            let answer = client.finish(pending).unwrap_or_else(|err| err.to_string());
            (&tell).write_all(format!("{answer}\n").as_bytes()).unwrap();
            nested.stop().unwrap();
        })
        .start()
        .unwrap();
    send(&server, Signal::SIGTERM);
    let mut text = [0; 9];
    told.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"answered\n");
    assert_eq!(server.stop().unwrap(), Exit::Signal(Signal::SIGTERM as i32));
}
