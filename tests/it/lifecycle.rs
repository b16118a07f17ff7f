//! Definition, start, stop, restart, owners and copies.

use crate::processes::{Helper, Watched, with_thread};
use forkserver::{
    Client, ConnectError, Control, Exit, Fault, Listener, Server, ServerHandle, StartError,
    StopError,
};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

crate::tests![
    starts_and_stops_three_times_in_a_row,
    each_start_has_another_password,
    an_idle_server_stops_at_once,
    several_servers_in_one_owner,
    dropping_the_handle_stops_the_server,
    a_call_in_progress_is_answered_before_the_stop,
    calls_behind_it_are_told_that_the_server_stops,
    a_handler_that_ignores_everything_is_killed_after_the_patience,
    an_error_in_initialize_is_the_starts,
    a_panic_in_initialize_is_the_starts,
    a_hung_initialize_ends_in_a_timeout_with_nothing_left,
    an_error_in_before_fork_is_the_starts,
    a_server_that_dies_in_initialize_says_how,
    hooks_run_in_order_and_share_their_state,
    finalize_runs_after_the_last_answer,
    threads_make_start_refuse,
    a_thread_that_was_just_joined_does_not,
    start_unchecked_does_not_look,
    wrong_definitions_are_refused,
    a_released_server_lives_while_somebody_has_a_share,
    a_forked_copy_of_a_handle_is_of_no_use,
    run_serves_here_until_a_handler_stops_it,
    run_reports_a_failed_hook,
    an_address_can_be_saved_and_handed_on,
    stdout_is_written_once,
    the_handle_is_the_servers_pidfd,
    the_server_becomes_what_it_is_told_to_be,
    a_full_control_line_holds_nobody_up,
    an_order_that_finds_no_room_costs_nothing_else,
    endless_durations_are_no_mistake,
    a_kept_descriptor_must_still_be_there,
    a_saved_address_replaces_nothing_else,
    what_was_handed_over_and_not_looked_at_is_refused,
];

pub fn echo() -> Server {
    crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .handle("pid", |_, (): ()| Ok(std::process::id()))
}

/// The server answers.
pub fn call_echo(server: &ServerHandle) {
    let reply: String = server
        .connect()
        .expect("a connection")
        .call("echo", "hi")
        .expect("a reply");
    assert_eq!(reply, "hi");
}

fn starts_and_stops_three_times_in_a_row() {
    let definition = echo();
    for _ in 0..3 {
        let server = definition.start().expect("a server");
        call_echo(&server);
        assert!(server.is_running());
        let path = server.address().path().to_owned();
        assert_eq!(server.stop().expect("a stop"), Exit::Code(0));
        assert!(!path.exists() && !path.parent().expect("a directory").exists());
    }
}

fn each_start_has_another_password() {
    let definition = echo().handle("random", |_, (): ()| Ok(rand_number()));
    let passwords: Vec<_> = (0..3)
        .map(|_| {
            let server = definition.start().expect("a server");
            let random: u64 = server.connect().unwrap().call("random", &()).unwrap();
            (server.address().password().as_bytes().to_vec(), random)
        })
        .collect();
    for (i, (password, random)) in passwords.iter().enumerate() {
        assert_eq!(password.len(), 32);
        assert!(
            passwords[..i]
                .iter()
                .all(|(other, number)| other != password && number != random)
        );
    }
}

/// A number from `rand`'s generator, whose state every fork copies.
fn rand_number() -> u64 {
    rand::random()
}

fn an_idle_server_stops_at_once() {
    let server = echo().start().expect("a server");
    let mut client = server.connect().expect("a connection");
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let start = Instant::now();
    server.stop().expect("a stop");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "an idle connection does not hold the stop up"
    );
}

fn several_servers_in_one_owner() {
    let servers: Vec<_> = (0..3).map(|_| echo().start().expect("a server")).collect();
    let pids: Vec<u32> = servers
        .iter()
        .map(|s| s.connect().unwrap().call("pid", &()).unwrap())
        .collect();
    assert_eq!(
        pids,
        servers.iter().map(ServerHandle::pid).collect::<Vec<_>>()
    );
    // The first can be stopped although later ones were forked with its lines open.
    for server in servers {
        assert_eq!(server.stop().unwrap(), Exit::Code(0));
    }
}

fn dropping_the_handle_stops_the_server() {
    let server = echo().start().expect("a server");
    let watched = Watched::server(&server);
    drop(server);
    assert!(!watched.is_alive());
}

/// A server with a handler that tells on a pipe when it runs, and waits for the other pipe.
struct Gate {
    server: ServerHandle,
    entered: std::io::PipeReader,
    leave: Option<std::io::PipeWriter>,
}

fn gate() -> Gate {
    use std::io::{Read, Write};
    let (entered, enter) = std::io::pipe().unwrap();
    let (wait, leave) = std::io::pipe().unwrap();
    let definition = crate::server().keep_fd(&enter).keep_fd(&wait);
    let server = definition
        .handle("gate", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            (&wait).read_exact(&mut [0])?;
            Ok("through")
        })
        .handle("other", |_, (): ()| Ok(()))
        .start()
        .expect("a server");
    Gate {
        server,
        entered,
        leave: Some(leave),
    }
}

fn a_call_in_progress_is_answered_before_the_stop() {
    use std::io::{Read, Write};
    let mut gate = gate();
    let mut client = gate.server.connect().unwrap();
    let pending = client.begin::<_, String>("gate", &()).unwrap();
    gate.entered.read_exact(&mut [0]).unwrap();
    let helper = Helper::start(|test| {
        // Lets the handler go on once the socket is gone, which is the stop's first step.
        test.say("ready");
        test.wait();
        gate.leave.as_ref().unwrap().write_all(b"x").unwrap();
    });
    let mut helper = helper;
    assert_eq!(helper.hear(), "ready");
    std::thread::scope(|scope| {
        let path = gate.server.address().path().to_owned();
        let server = gate.server;
        let stop = scope.spawn(move || server.stop().unwrap());
        while path.exists() {
            std::thread::yield_now();
        }
        helper.finish();
        assert_eq!(client.finish(pending).unwrap(), "through");
        assert_eq!(stop.join().unwrap(), Exit::Code(0));
    });
}

fn calls_behind_it_are_told_that_the_server_stops() {
    use forkserver::{CallError, Delivery};
    use std::io::{Read, Write};
    let mut gate = gate();
    let mut client = gate.server.connect().unwrap();
    let first = client.begin::<_, String>("gate", &()).unwrap();
    let second = client.begin::<_, ()>("other", &()).unwrap();
    client.flush().unwrap();
    gate.entered.read_exact(&mut [0]).unwrap();
    let path = gate.server.address().path().to_owned();
    std::thread::scope(|scope| {
        let server = gate.server;
        let stop = scope.spawn(move || server.stop().unwrap());
        while path.exists() {
            std::thread::yield_now();
        }
        gate.leave.take().unwrap().write_all(b"x").unwrap();
        assert_eq!(client.finish(first).unwrap(), "through");
        let err = client.finish(second).unwrap_err();
        assert!(matches!(err, CallError::Stopping), "{err}");
        assert_eq!(err.delivery(), Delivery::NotSent);
        assert_eq!(stop.join().unwrap(), Exit::Code(0));
    });
}

fn a_handler_that_ignores_everything_is_killed_after_the_patience() {
    use std::io::{Read, Write};
    let (mut entered, enter) = std::io::pipe().unwrap();
    let definition = crate::server().keep_fd(&enter);
    let server = definition
        .handle("spin", move |_, (): ()| -> Result<(), Fault> {
            (&enter).write_all(b"!")?;
            spin()
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let _pending = client.begin::<_, ()>("spin", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let path = server.address().path().to_owned();
    let start = Instant::now();
    assert_eq!(server.stop().unwrap(), Exit::Signal(9));
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < Duration::from_secs(5),
        "{took:?}"
    );
    assert!(!path.exists());
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

fn an_error_in_initialize_is_the_starts() {
    let definition =
        echo().initialize(|_| -> Result<(), Fault> { Err(Fault::new("no luck today")) });
    match definition.start() {
        Err(StartError::Hook { hook, message }) => {
            assert_eq!(
                (hook.as_str(), message.as_str()),
                ("initialize", "no luck today")
            );
        }
        other => panic!("{other:?}"),
    }
}

fn a_panic_in_initialize_is_the_starts() {
    let definition = echo().initialize(|_| -> Result<(), Fault> { panic!("boom {}", 1) });
    let err = definition.start().unwrap_err().to_string();
    assert!(
        err.contains("boom 1") && err.contains("lifecycle.rs"),
        "{err}"
    );
}

fn a_hung_initialize_ends_in_a_timeout_with_nothing_left() {
    let definition = echo()
        .initialize(|_| -> Result<(), Fault> { spin() })
        .start_timeout(Duration::from_millis(100));
    assert!(matches!(definition.start(), Err(StartError::TimedOut(_))));
}

fn an_error_in_before_fork_is_the_starts() {
    let err = echo()
        .before_fork(|| Err(Fault::new("not now")))
        .start()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::Hook { hook, .. } if hook == "before_fork"),
        "{err}"
    );
}

fn a_server_that_dies_in_initialize_says_how() {
    let err = echo()
        .initialize(|_| -> Result<(), Fault> { std::process::abort() })
        .start()
        .unwrap_err();
    assert!(matches!(err, StartError::Died(Exit::Signal(6))), "{err}");
    let err = echo()
        .initialize(|_| -> Result<(), Fault> { std::process::exit(3) })
        .start()
        .unwrap_err();
    assert!(matches!(err, StartError::Died(Exit::Code(3))), "{err}");
}

struct Numbers(Vec<u32>);

fn hooks_run_in_order_and_share_their_state() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let order = Arc::clone(&order);
        move || order.lock().unwrap().push(what)
    };
    let (before, first, second) = (note("before_fork"), note("first"), note("second"));
    let seen = Arc::clone(&order);
    let server = crate::server()
        .before_fork(move || {
            before();
            Ok(())
        })
        .initialize(move |_| {
            first();
            Ok(Numbers(vec![1, 2, 3]))
        })
        .initialize(move |_| {
            second();
            Ok(String::from("state"))
        })
        .handle("order", move |_, (): ()| Ok(seen.lock().unwrap().join(",")))
        .handle("sum", |ctx, (): ()| {
            Ok(ctx.state::<Numbers>().0.iter().sum::<u32>())
        })
        .handle("text", |ctx, (): ()| Ok(ctx.state::<String>().clone()))
        .handle("none", |ctx, (): ()| Ok(*ctx.state::<u8>()))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(
        client.call::<_, String>("order", &()).unwrap(),
        "before_fork,first,second"
    );
    assert_eq!(client.call::<_, u32>("sum", &()).unwrap(), 6);
    assert_eq!(client.call::<_, String>("text", &()).unwrap(), "state");
    let err = client.call::<_, u8>("none", &()).unwrap_err().to_string();
    assert!(err.contains("no initialize hook returned a u8"), "{err}");
    // What ran in the owner is seen there, and nothing else.
    assert_eq!(*order.lock().unwrap(), ["before_fork"]);
}

fn finalize_runs_after_the_last_answer() {
    use std::io::{Read, Write};
    let (mut read, write) = std::io::pipe().unwrap();
    let tell = Arc::new(write);
    let in_hook = Arc::clone(&tell);
    let server = crate::server()
        .keep_fd(&*tell)
        .initialize(|_| Ok(AtomicU32::new(0)))
        .handle("count", |ctx, (): ()| {
            Ok(ctx.state::<AtomicU32>().fetch_add(1, Ordering::Relaxed))
        })
        .finalize(move |control: &Control| {
            let count = control
                .state::<AtomicU32>()
                .expect("state")
                .load(Ordering::Relaxed);
            (&*in_hook)
                .write_all(format!("{count} {}", control.is_stopping()).as_bytes())
                .unwrap();
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    for number in 0..3_u32 {
        assert_eq!(client.call::<_, u32>("count", &()).unwrap(), number);
    }
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
    drop(tell);
    let mut text = [0; 32];
    let len = read.read(&mut text).unwrap();
    assert_eq!(&text[..len], b"3 true");
}

fn threads_make_start_refuse() {
    with_thread(|| {
        let err = echo().start().unwrap_err();
        assert!(
            matches!(err, StartError::MultiThreaded { threads: 2 }),
            "{err}"
        );
        assert!(
            err.to_string()
                .contains("start the server first thing in main"),
            "{err}"
        );
    });
}

fn a_thread_that_was_just_joined_does_not() {
    for _ in 0..50 {
        std::thread::spawn(|| ()).join().unwrap();
        echo().start().expect("a server").stop().unwrap();
    }
}

fn start_unchecked_does_not_look() {
    with_thread(|| {
        // SAFETY: the other thread waits for a channel and holds no lock.
        let server = unsafe { echo().start_unchecked() }.expect("a server");
        call_echo(&server);
        assert_eq!(server.stop().unwrap(), Exit::Code(0));
    });
}

fn wrong_definitions_are_refused() {
    use forkserver::Signal;
    let twice = echo().handle("echo", |_, (): ()| Ok(()));
    assert!(matches!(twice.start(), Err(StartError::DuplicateHandler { name }) if name == "echo"));
    let long = crate::server().handle("x".repeat(256), |_, (): ()| Ok(()));
    assert!(matches!(long.start(), Err(StartError::NameTooLong { .. })));
    let longest = "x".repeat(255);
    let server = crate::server()
        .handle(longest.clone(), |_, (): ()| Ok(5))
        .start()
        .unwrap();
    assert_eq!(
        server
            .connect()
            .unwrap()
            .call::<_, i32>(&longest, &())
            .unwrap(),
        5
    );
    use Signal::*;
    for signal in [SIGKILL, SIGSTOP, SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGIO] {
        let err = echo().handle_signal(signal, |_| ()).start().unwrap_err();
        assert!(
            matches!(err, StartError::ForbiddenSignal { signal: s, .. } if s == signal),
            "{err}"
        );
    }
}

fn a_released_server_lives_while_somebody_has_a_share() {
    let server = echo().start().unwrap();
    let watched = Watched::server(&server);
    let address = server.address().clone();
    let share = server.share().unwrap();
    server.release();
    for _ in 0..3 {
        let mut client = Client::connect(&address).unwrap();
        assert_eq!(client.call::<_, String>("echo", "still").unwrap(), "still");
    }
    drop(share);
    watched.ends_within(Duration::from_secs(1));
    // Reaped by the next start.
    drop(watched);
    echo().start().unwrap().stop().unwrap();
}

fn a_forked_copy_of_a_handle_is_of_no_use() {
    let server = echo().start().unwrap();
    let mut client = server.connect().unwrap();
    let (ours, theirs) = (&server, &mut client);
    Helper::start(|_| {
        assert!(matches!(ours.connect(), Err(ConnectError::WrongProcess)));
        let err = theirs.call::<_, String>("echo", "x").unwrap_err();
        assert!(matches!(err, forkserver::CallError::WrongProcess), "{err}");
    })
    .finish();
    let server = std::cell::Cell::new(Some(server));
    Helper::start(|_| {
        // Dropping a copy must not stop the server, nor stopping it.
        let server = server.take().unwrap();
        assert!(matches!(server.stop(), Err(StopError::WrongProcess)));
    })
    .finish();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    drop(client);
    assert_eq!(server.take().unwrap().stop().unwrap(), Exit::Code(0));
}

fn run_serves_here_until_a_handler_stops_it() {
    let definition = echo().handle("stop", |ctx, (): ()| {
        ctx.control().stop();
        Ok(())
    });
    let exit = run(definition, |mut client| {
        assert_eq!(
            client.call::<_, u32>("pid", &()).unwrap(),
            std::process::id()
        );
        client.call::<_, ()>("stop", &()).unwrap();
    });
    assert_eq!(exit, Exit::Code(0));
    assert_eq!(
        std::fs::read_dir(std::env::temp_dir()).unwrap().count(),
        0,
        "the socket is gone"
    );
}

/// Runs a server here, and `meanwhile` in a thread, with a client of it.
pub fn run(definition: Server, meanwhile: impl FnOnce(Client) + Send + 'static) -> Exit {
    let (addresses, address) = std::sync::mpsc::channel();
    let addresses = Mutex::new(addresses);
    let definition = definition
        .initialize(move |control| Ok(addresses.lock().unwrap().send(control.address())?));
    let thread = std::thread::spawn(move || {
        // The address is known before the server listens.
        let address = address.recv().unwrap();
        let client = loop {
            match Client::connect(&address) {
                Ok(client) => break client,
                Err(ConnectError::NotRunning { .. }) => std::thread::yield_now(),
                Err(err) => panic!("{err}"),
            }
        };
        meanwhile(client);
    });
    let exit = definition.run().unwrap();
    thread.join().unwrap();
    exit
}

fn run_reports_a_failed_hook() {
    let err = echo()
        .initialize(|_| -> Result<(), Fault> { Err(Fault::new("no")) })
        .run()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::Hook { hook, message } if hook == "initialize" && message == "no"),
        "{err}"
    );
}

fn an_address_can_be_saved_and_handed_on() {
    use std::os::unix::fs::PermissionsExt;
    let server = echo().start().unwrap();
    let file = std::env::temp_dir().join("address");
    server.address().save(&file).unwrap();
    server
        .address()
        .save(&file)
        .expect("an address replaces an older one");
    assert_eq!(
        file.metadata().unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let loaded = forkserver::Address::load(&file).unwrap();
    assert_eq!(
        Client::connect(&loaded)
            .unwrap()
            .call::<_, String>("echo", "a")
            .unwrap(),
        "a"
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        forkserver::Address::load(&file),
        Err(ConnectError::BadAddress(_))
    ));
    std::fs::remove_file(&file).unwrap();
    let handed = forkserver::Address::from_fd(server.address().to_fd().unwrap()).unwrap();
    assert_eq!(
        Client::connect(&handed)
            .unwrap()
            .call::<_, String>("echo", "b")
            .unwrap(),
        "b"
    );
}

fn stdout_is_written_once() {
    use std::io::Write;
    let file = std::env::temp_dir().join("stdout");
    let output = Helper::start(|_| {
        let target = std::fs::File::create(&file).unwrap();
        nix::unistd::dup2_stdout(&target).unwrap();
        print!("owner ");
        let server = crate::server()
            .handle("say", |_, (): ()| {
                print!("server ");
                Ok(())
            })
            .start()
            .unwrap();
        server.connect().unwrap().call::<_, ()>("say", &()).unwrap();
        server.stop().unwrap();
        std::io::stdout().flush().unwrap();
    });
    output.finish();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "owner server ");
    std::fs::remove_file(&file).unwrap();
}

fn the_handle_is_the_servers_pidfd() {
    let server = echo().start().unwrap();
    assert!(!crate::processes::readable(&server.as_fd(), Duration::ZERO));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server.pid() as i32),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    assert!(crate::processes::readable(
        &server.as_fd(),
        Duration::from_secs(5)
    ));
    assert_eq!(server.try_wait(), Some(Exit::Signal(9)));
    assert_eq!(server.wait(), Exit::Signal(9));
    assert!(!server.is_running());
    assert_eq!(server.stop().unwrap(), Exit::Signal(9));
}

fn the_server_becomes_what_it_is_told_to_be() {
    let status =
        |_: &mut forkserver::Context, (): ()| Ok(std::fs::read_to_string("/proc/self/status")?);
    let server = crate::server()
        .process_name("greeter")
        .chdir("/")
        .umask(0o027)
        .listen(Listener::private().name("named"))
        .handle("status", status)
        .handle("listener", |ctx, (): ()| Ok(ctx.listener().to_owned()))
        .handle("peer", |ctx, (): ()| Ok((ctx.peer().pid, ctx.peer().uid)))
        .handle("directory", |_, (): ()| Ok(std::env::current_dir()?))
        .handle("group", |_, (): ()| Ok(nix::unistd::getpgrp().as_raw()))
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    let status: String = client.call("status", &()).unwrap();
    assert!(
        status.contains("Name:\tgreeter") && status.contains("Umask:\t0027"),
        "{status}"
    );
    assert_eq!(client.call::<_, String>("listener", &()).unwrap(), "named");
    let own = (std::process::id() as i32, nix::unistd::geteuid().as_raw());
    assert_eq!(client.call::<_, (i32, u32)>("peer", &()).unwrap(), own);
    assert_eq!(
        client
            .call::<_, std::path::PathBuf>("directory", &())
            .unwrap(),
        std::path::Path::new("/")
    );
    assert_eq!(
        client.call::<_, i32>("group", &()).unwrap(),
        server.pid() as i32
    );
    let group = echo()
        .own_process_group(false)
        .handle("group", |_, (): ()| Ok(nix::unistd::getpgrp().as_raw()));
    let server = group.start().unwrap();
    let group: i32 = server.connect().unwrap().call("group", &()).unwrap();
    assert_eq!(group, nix::unistd::getpgrp().as_raw());
}

fn a_full_control_line_holds_nobody_up() {
    use nix::sys::signal::{Signal, kill};
    let server = echo().start().unwrap();
    let watched = Watched::server(&server);
    kill(watched.pid, Signal::SIGSTOP).unwrap();
    // Nobody reads them; at some point there is no room for one more.
    let mut clients = Vec::new();
    let refused = loop {
        match server.connect() {
            Ok(client) => clients.push(client),
            Err(err) => break err,
        }
        assert!(clients.len() < 10_000);
    };
    assert!(matches!(refused, ConnectError::TimedOut(_)), "{refused}");
    let start = Instant::now();
    assert_eq!(
        server.stop_within(Duration::from_millis(100)).unwrap(),
        Exit::Signal(9)
    );
    assert!(
        start.elapsed() < Duration::from_millis(1200),
        "{:?}",
        start.elapsed()
    );
}

fn an_order_that_finds_no_room_costs_nothing_else() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let server = echo()
        .handle("limit", |_, full: bool| {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            if !full {
                return Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?);
            }
            // The lowest number that is free shall be beyond the limit.
            let used: Vec<u64> = crate::harness::descriptors("self")
                .iter()
                .map(|(n, _)| n.parse().unwrap())
                .collect();
            let limit = (0..).find(|n| !used.contains(n)).unwrap();
            Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?)
        })
        .start()
        .unwrap();
    let mut first = server.connect().unwrap();
    first.call::<_, ()>("limit", &true).unwrap();
    let err = server
        .connect()
        .unwrap()
        .call::<_, String>("echo", "x")
        .unwrap_err();
    assert!(
        matches!(err, forkserver::CallError::Disconnected { .. }),
        "{err}"
    );
    first.call::<_, ()>("limit", &false).unwrap();
    call_echo(&server);
    assert_eq!(server.stop().unwrap(), Exit::Code(0));
}

fn endless_durations_are_no_mistake() {
    let server = echo()
        .grace(Duration::MAX)
        .start_timeout(Duration::MAX)
        .start()
        .unwrap();
    let mut client = server.connect().unwrap().with_timeout(Duration::MAX);
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    assert_eq!(server.stop_within(Duration::MAX).unwrap(), Exit::Code(0));
}

fn a_kept_descriptor_must_still_be_there() {
    let (read, write) = std::io::pipe().unwrap();
    let definition = echo().keep_fd(&write);
    definition.start().unwrap().stop().unwrap();
    drop(write);
    assert!(matches!(
        definition.start(),
        Err(StartError::KeptFdClosed { .. })
    ));
    let other = std::fs::File::open("/dev/null").unwrap();
    assert!(
        matches!(definition.start(), Err(StartError::KeptFdClosed { .. })),
        "the number stands for another file"
    );
    drop((read, other));
}

fn a_saved_address_replaces_nothing_else() {
    let server = echo().start().unwrap();
    let directory = std::env::temp_dir().join("d");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("address");
    server.address().save(&path).unwrap();
    server.address().save(&path).unwrap();
    assert!(
        server
            .address()
            .save(directory.join("missing/address"))
            .is_err()
    );
    let names: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["address"]);
    std::fs::remove_dir_all(&directory).unwrap();
}

fn what_was_handed_over_and_not_looked_at_is_refused() {
    use forkserver::{CallError, Signal};
    use std::io::{Read, Write};
    let (mut entered, enter) = std::io::pipe().unwrap();
    let (wait, mut leave) = std::io::pipe().unwrap();
    let definition = echo().keep_fd(&enter).keep_fd(&wait);
    let server = definition
        .handle_signal(Signal::SIGUSR1, move |control| {
            (&enter).write_all(b"!").unwrap();
            (&wait).read_exact(&mut [0]).unwrap();
            control.stop();
        })
        .start()
        .unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(server.pid() as i32),
        Signal::SIGUSR1,
    )
    .unwrap();
    entered.read_exact(&mut [0]).unwrap();
    // The control thread is busy; it will stop before it looks at this.
    let mut client = server.connect().unwrap();
    let pending = client.begin::<_, String>("echo", "x").unwrap();
    leave.write_all(b"x").unwrap();
    match client.finish(pending) {
        Err(err) => assert!(matches!(err, CallError::Stopping), "{err}"),
        Ok(text) => assert_eq!(text, "x", "it was looked at after all"),
    }
    server.stop().unwrap();
}
