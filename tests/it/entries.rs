//! Servers that are launched, from programs with threads.

use crate::harness::descriptors;
use crate::lifecycle::echo;
use crate::processes::{Helper, Watched, with_thread};
use forkserver::{
    AnyEntry, Bytes, CallError, Client, Entry, Exit, Fault, Fd, Listener, Prefork, Signal,
    StartError,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    an_entry_starts_in_a_program_with_threads,
    a_launched_server_may_have_workers,
    two_hundred_starts_among_busy_threads,
    an_entry_that_is_not_listed_is_refused_before_anything,
    the_entrys_own_error_is_the_starts,
    arguments_of_any_size_and_kind_arrive,
    nothing_is_inherited_but_the_standard_streams,
    what_a_launched_server_executes_is_not_marked,
    signals_are_as_in_a_forked_server,
    it_ends_with_its_owner,
    it_ends_with_its_owner_even_if_there_is_no_definition_yet,
    it_is_killed_and_leaves_nothing,
    the_image_may_be_replaced_or_removed,
    the_thread_that_starts_it_may_end,
    it_becomes_what_its_definition_says,
    a_launch_that_takes_too_long_is_given_up,
    a_launch_that_is_given_up_at_any_time_leaves_nothing,
    a_start_that_is_refused_says_what_to_do,
    a_launched_server_may_launch_others,
];

/// What `main` lists before anything else.
pub const ALL: &[&dyn AnyEntry] = &[
    &ECHO, &PICKY, &TAKES, &LOOK, &SLOW, &OTHER, &PLACE, &BUSY, &STUCK, &POOL, &FRAGILE,
];

static ECHO: Entry<()> = Entry::new("echo", |()| Ok(echo()));
/// With so many workers, of which each fails if that is none.
static POOL: Entry<usize> = Entry::new("pool", |workers| {
    let server = crate::prefork::server(workers.max(1));
    Ok(server.worker_started(move |_| match workers {
        0 => Err(Fault::new("as asked")),
        _ => Ok(()),
    }))
});
/// With one worker, which dies young if it dies within half a minute.
pub static FRAGILE: Entry<()> = Entry::new("fragile", |()| {
    let patient = Prefork::new(1).min_uptime(Duration::from_secs(30));
    Ok(crate::prefork::server(1).prefork(patient))
});
/// Fails in the way that it is told to.
static PICKY: Entry<String> = Entry::new("picky", |how| match how.as_str() {
    "fault" => Err(Fault::new("as asked")),
    "panic" => panic!("as asked"),
    "initialize" => Ok(echo().initialize(|_| Err::<(), _>(Fault::new("as asked")))),
    "twice" => Ok(echo().handle("echo", |_, (): ()| Ok(()))),
    "before" => Ok(echo().before_fork(|| Err(Fault::new("as asked")))),
    path => Ok(echo().listen(Listener::at(path))),
});
static TAKES: Entry<(Bytes, Vec<Fd>, Option<u8>)> = Entry::new("takes", |(bytes, fds, number)| {
    for fd in fds {
        std::fs::File::from(fd).write_all(b"!")?;
    }
    Ok(crate::server().handle("size", move |_, (): ()| Ok((bytes.len(), number))))
});
static LOOK: Entry<()> = Entry::new("look", |()| {
    Ok(echo()
        .handle_signal(Signal::SIGUSR1, |_| {})
        .handle("status", |_, (): ()| {
            Ok(std::fs::read_to_string("/proc/self/status")?)
        })
        .handle("run", |_, program: String| {
            let output = Command::new("/bin/sh").args(["-c", &program]).output()?;
            Ok(String::from_utf8(output.stdout)?)
        }))
});
static SLOW: Entry<()> = Entry::new("slow", |()| {
    Ok(echo().initialize(|_| {
        std::thread::park();
        Ok(())
    }))
});
/// Takes so many microseconds before it does anything.
static BUSY: Entry<u64> = Entry::new("busy", |micros| {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
    Ok(echo())
});
/// Says who it is, and never has a definition.
static STUCK: Entry<Fd> = Entry::new("stuck", |say| {
    writeln!(std::fs::File::from(say), "{}", std::process::id())?;
    loop {
        std::thread::park();
    }
});
static OTHER: Entry<()> = Entry::new("other", |()| {
    Ok(crate::server().handle("pid", |_, (): ()| {
        let server = ECHO.start(&())?;
        crate::lifecycle::call_echo(&server);
        Ok(server.pid())
    }))
});
static PLACE: Entry<PathBuf> = Entry::new("place", |path| {
    Ok(crate::server()
        .chdir(path)
        .umask(0o027)
        .user(65_534, 65_534)
        .process_name("launched")
        .handle("where", |_, (): ()| {
            let status = std::fs::read_to_string("/proc/self/status")?;
            Ok((std::env::current_dir()?, status))
        }))
});
static UNLISTED: Entry<()> = Entry::new("unlisted", |()| Ok(echo()));

fn an_entry_starts_in_a_program_with_threads() {
    if let Some(own) = std::env::var_os("FORKSERVER_REMOVE") {
        std::fs::remove_file(own).unwrap();
    }
    with_thread(|| {
        let server = ECHO.start(&()).unwrap();
        assert!(server.is_running());
        crate::lifecycle::call_echo(&server);
        let mut by_path = forkserver::Client::connect(server.address()).unwrap();
        assert_eq!(by_path.call::<_, String>("echo", "x").unwrap(), "x");
        assert_eq!(server.status().unwrap().accepted, 2);
        assert_eq!(server.stop().unwrap(), Exit::Code(0));
    });
}

/// Does something while eight threads hammer standard output, the environment's lock and the allocator.
fn among_busy_threads(work: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    let null = std::fs::File::create("/dev/null").unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (stop, null) = (&stop, &null);
            scope.spawn(move || {
                let mut kept = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match n % 4 {
                        0 => drop(std::io::stdout().lock()),
                        1 => drop(std::env::var_os("HOME")),
                        2 => {
                            kept.push(vec![0_u8; 1 + kept.len() % 5000]);
                            kept.truncate(50);
                        }
                        // SAFETY: all who look at the environment here do so by std, which has a lock for it.
                        _ => unsafe { std::env::set_var("FORKSERVER_BUSY", "yes") },
                    }
                    let _ = (&mut &*null).write(b"x");
                }
            });
        }
        work();
        stop.store(true, Ordering::Relaxed);
    });
    // A joined thread may still be on its way out.
    while std::fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
}

fn a_launched_server_may_have_workers() {
    among_busy_threads(|| {
        let server = POOL.start(&3).unwrap();
        let before = crate::prefork::pids(&server);
        assert_eq!(before.len(), 3);
        let mut client = Client::connect(server.address()).unwrap();
        let err = client.call::<_, ()>("abort", &()).unwrap_err();
        assert!(matches!(err, CallError::WorkerDied { .. }), "{err:?}");
        client.call::<_, i32>("pid", &()).unwrap();
        server.reload().unwrap();
        client.call::<_, i32>("pid", &()).unwrap();
        assert!(crate::prefork::pids(&server).is_disjoint(&before));
        assert_eq!(server.stop().unwrap(), Exit::Code(0));
        let err = POOL.start(&0).unwrap_err();
        assert!(err.to_string().contains("as asked"), "{err}");
    });
}

fn two_hundred_starts_among_busy_threads() {
    among_busy_threads(|| {
        for round in 0..200 {
            let server = ECHO.start(&()).unwrap();
            crate::lifecycle::call_echo(&server);
            match round % 2 {
                0 => assert_eq!(server.kill().unwrap(), Exit::Signal(9)),
                _ => assert_eq!(server.stop().unwrap(), Exit::Code(0)),
            }
        }
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fd = Fd::from(std::os::fd::OwnedFd::from(writer));
        let server = TAKES.start(&(Bytes::default(), vec![fd], None)).unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"!");
        server.stop().unwrap();
    });
    let mut owner = Helper::start(|test| {
        among_busy_threads(|| {
            let server = ECHO.start(&()).unwrap();
            crate::lifecycle::call_echo(&server);
            test.say(server.pid());
            test.wait();
        });
    });
    let server = owner.hear_pid();
    owner.kill();
    server.ends_within(Duration::from_secs(2));
    server.reap();
}

fn an_entry_that_is_not_listed_is_refused_before_anything() {
    let err = UNLISTED.start(&()).unwrap_err();
    assert!(
        matches!(err, StartError::NotInitialised { entry: "unlisted" }),
        "{err}"
    );
    let text =
        "`forkserver::init` must be called first thing in main, and list the entry \"unlisted\"";
    assert_eq!(err.to_string(), text);
}

fn the_entrys_own_error_is_the_starts() {
    let start = |how: &str| PICKY.start(&how.to_owned()).unwrap_err();
    for how in ["fault", "panic"] {
        let err = start(how);
        assert!(
            matches!(&err, StartError::Hook { hook, message }
                if hook == "entry picky" && message.contains("as asked")),
            "{err}"
        );
    }
    for (how, expected) in [("initialize", "initialize"), ("before", "before_fork")] {
        let err = start(how);
        assert!(
            matches!(&err, StartError::Hook { hook, message } if hook == expected && message == "as asked"),
            "{err}"
        );
    }
    let err = start("twice");
    assert!(
        err.to_string().contains("two handlers for \"echo\""),
        "{err}"
    );
    let path = std::env::temp_dir()
        .join("socket")
        .to_str()
        .unwrap()
        .to_owned();
    let server = PICKY.start(&path).unwrap();
    crate::lifecycle::call_echo(&server);
    let err = start(&path);
    assert!(err.to_string().contains("is in use"), "{err}");
    server.stop().unwrap();
}

fn arguments_of_any_size_and_kind_arrive() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fds = || (0..20).map(|_| Fd::from(std::os::fd::OwnedFd::from(writer.try_clone().unwrap())));
    let args = (Bytes::from(vec![7; 3 << 20]), fds().collect(), Some(9));
    let server = TAKES.start(&args).unwrap();
    drop((args, writer));
    let answer: (usize, Option<u8>) = server.connect().unwrap().call("size", &()).unwrap();
    assert_eq!(answer, (3 << 20, Some(9)));
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(written, "!".repeat(20), "and no copy is left in the server");
}

fn nothing_is_inherited_but_the_standard_streams() {
    let file = std::fs::File::open("/etc/passwd").unwrap();
    // SAFETY: an open descriptor.
    let leaked = unsafe { nix::libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), 77) };
    assert_eq!(leaked, 77, "without CLOEXEC");
    let server = ECHO.start(&()).unwrap();
    crate::lifecycle::call_echo(&server);
    let pid = server.pid().to_string();
    let theirs = descriptors(&pid);
    let strange: Vec<_> = theirs
        .iter()
        .filter(|(number, to)| {
            let to = to.to_string_lossy();
            let known = ["socket:", "pipe:", "anon_inode:"]
                .iter()
                .any(|kind| to.starts_with(kind));
            let place = to.contains("/forkserver.");
            number.parse::<u32>().unwrap() > 2 && !known && !place
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    let secret: String = server
        .address()
        .password()
        .as_bytes()
        .iter()
        .map(|b| *b as char)
        .collect();
    for place in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{pid}/{place}")).unwrap();
        let text: String = bytes.iter().map(|b| *b as char).collect();
        assert!(!text.contains(&secret));
    }
    // SAFETY: our own number.
    unsafe { nix::libc::close(leaked) };
}

fn what_a_launched_server_executes_is_not_marked() {
    let server = LOOK.start(&()).unwrap();
    let mut client = server.connect().unwrap();
    let environment: String = client.call("run", "env").unwrap();
    assert!(environment.contains("FORKSERVER_TEST=") && !environment.contains("LAUNCHED"));
    let open: String = client.call("run", "ls -l /proc/self/fd").unwrap();
    assert!(
        !open.contains("socket:") && !open.contains("anon_inode"),
        "{open}"
    );
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", server.pid())).unwrap();
    assert_eq!(
        comm.trim_end(),
        "exe",
        "the name of the command line, which the harness has so"
    );
}

fn signals_are_as_in_a_forked_server() {
    use nix::sys::signal::{SigHandler, SigSet, signal};
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGUSR2, SigHandler::SigIgn) }.unwrap();
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGTERM);
    blocked.thread_block().unwrap();
    let launched = LOOK.start(&()).unwrap();
    let forked = echo()
        .handle_signal(Signal::SIGUSR1, |_| {})
        .handle("status", |_, (): ()| {
            Ok(std::fs::read_to_string("/proc/self/status")?)
        })
        .start()
        .unwrap();
    let look = |server: &forkserver::ServerHandle| -> Vec<String> {
        let status: String = server.connect().unwrap().call("status", &()).unwrap();
        let sets = status.lines().filter(|line| {
            ["SigBlk", "SigIgn", "SigCgt"]
                .iter()
                .any(|set| line.starts_with(set))
        });
        sets.map(String::from).collect()
    };
    assert_eq!(look(&launched), look(&forked));
    let watched = Watched::server(&launched);
    nix::sys::signal::kill(watched.pid, Signal::SIGTERM).unwrap();
    watched.ends_within(Duration::from_secs(5));
    assert_eq!(launched.wait(), Exit::Signal(15));
}

fn it_ends_with_its_owner() {
    let mut owner = Helper::start(|test| {
        let server = ECHO.start(&()).unwrap();
        crate::lifecycle::call_echo(&server);
        test.say(server.pid());
        test.wait();
    });
    let server = owner.hear_pid();
    let begun = Instant::now();
    owner.kill();
    server.ends_within(Duration::from_secs(2));
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    server.reap();
}

fn it_ends_with_its_owner_even_if_there_is_no_definition_yet() {
    let (said, say) = std::io::pipe().unwrap();
    let owner = Helper::start(|_| {
        let say = Fd::from(std::os::fd::OwnedFd::from(say));
        STUCK.start(&say).unwrap_err();
    });
    let mut pid = String::new();
    BufReader::new(said).read_line(&mut pid).unwrap();
    let server = Watched::open(pid.trim_end().parse().unwrap());
    owner.kill();
    let outlives = server.lives_on_for(Duration::from_secs(4));
    // It would keep the test's own output open for ever.
    let _ = nix::sys::signal::kill(server.pid, Signal::SIGKILL);
    server.reap();
    assert!(!outlives);
}

fn it_is_killed_and_leaves_nothing() {
    let server = ECHO.start(&()).unwrap();
    let path = server.address().path().to_owned();
    assert!(path.exists());
    assert_eq!(server.kill().unwrap(), Exit::Signal(9));
    assert!(!path.parent().unwrap().exists());
}

fn the_image_may_be_replaced_or_removed() {
    let copy = std::env::temp_dir().join("copy");
    std::fs::copy("/proc/self/exe", &copy).unwrap();
    let output = Command::new(&copy)
        .env(
            "FORKSERVER_TEST",
            "it::entries::an_entry_starts_in_a_program_with_threads",
        )
        .env("FORKSERVER_REMOVE", &copy)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!copy.exists());
}

fn the_thread_that_starts_it_may_end() {
    let server = std::thread::spawn(|| ECHO.start(&()).unwrap())
        .join()
        .unwrap();
    crate::lifecycle::call_echo(&server);
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

fn it_becomes_what_its_definition_says() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(std::env::temp_dir(), PermissionsExt::from_mode(0o755)).unwrap();
    let server = PLACE.start(&PathBuf::from("/usr")).unwrap();
    let (directory, status): (PathBuf, String) =
        server.connect().unwrap().call("where", &()).unwrap();
    assert_eq!(directory, PathBuf::from("/usr"));
    for line in [
        "Umask:\t0027",
        "Uid:\t65534\t65534\t65534\t65534",
        "Name:\tlaunched",
    ] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    server.stop().unwrap();
}

fn a_launch_that_takes_too_long_is_given_up() {
    let begun = Instant::now();
    let err = SLOW
        .start_within(&(), Duration::from_millis(300))
        .unwrap_err();
    assert!(matches!(err, StartError::TimedOut(_)), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

fn a_launch_that_is_given_up_at_any_time_leaves_nothing() {
    let timeout = Duration::from_millis(4);
    let mut given_up = 0;
    // A wait ends with a tick of a millisecond: what moves against it is the server.
    for busy in (0..6000).step_by(30) {
        match BUSY.start_within(&busy, timeout) {
            Ok(server) => drop(server.stop().unwrap()),
            Err(err) => {
                assert!(matches!(err, StartError::TimedOut(_)), "{err}");
                given_up += 1;
            }
        }
        let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
        assert!(left.is_empty(), "after {busy} microseconds: {left:?}");
    }
    assert!(given_up > 0);
}

fn a_start_that_is_refused_says_what_to_do() {
    let err = with_thread(|| echo().start().unwrap_err());
    let text = err.to_string();
    assert!(
        text.contains("`Entry`") && text.contains("forkserver::init"),
        "{text}"
    );
}

fn a_launched_server_may_launch_others() {
    let server = OTHER.start(&()).unwrap();
    let pid: u32 = server.connect().unwrap().call("pid", &()).unwrap();
    assert_ne!(pid, server.pid());
}
