//! What a server tells about itself: once, in order, and without harm.

use crate::auth::{drop_rights, is_root};
use crate::hostile::{Raw, call_frame, hello, hello_frame};
use crate::lifecycle::echo;
use crate::processes::Helper;
use forkserver::{Bytes, Channel, Client, Event, Limits, Server, ServerHandle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines, PipeReader, Write};
use std::time::Duration;

crate::tests![
    a_connection_is_told_in_order,
    who_is_not_let_in_is_told_with_the_reason,
    an_end_is_told_with_its_reason,
    another_user_is_told_as_not_admitted,
    pauses_and_resumptions_take_turns,
    a_full_descriptor_table_is_told_with_call_and_number,
    panics_are_told_wherever_they_happen,
    an_observer_that_panics_hurts_nobody,
    a_stream_is_told_when_it_opens_and_closes,
    what_a_stream_leaves_unsent_is_told_as_any_other,
    whoever_was_connected_is_disconnected_once,
];

/// A definition that tells, a line each, what happens; numbers and names are left out where they do not matter.
fn told(server: Server) -> (Server, Lines<BufReader<PipeReader>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let server = server.keep_fd(&writer).observe(move |event| {
        let text = line(event);
        (&writer)
            .write_all(text.as_bytes())
            .expect("the test reads");
    });
    (server, BufReader::new(reader).lines())
}

fn line(event: &Event) -> String {
    match event {
        // Those of listeners are looked at where there are several.
        Event::ListenerStarted { .. } | Event::ListenerStopped { .. } => String::new(),
        Event::Connected {
            session, listener, ..
        } => format!("{session} connected {listener}\n"),
        Event::Refused { peer, reason, .. } => format!("refused {}: {reason:?}\n", peer.is_some()),
        Event::Flushed { session } => format!("{session} flushed\n"),
        Event::Disconnected {
            session, reason, ..
        } => format!("{session} {reason:?}\n"),
        Event::Paused { reason, .. } => format!("paused: {reason:?}\n"),
        Event::Resumed { .. } => "resumed\n".into(),
        Event::Failed {
            call, errno, text, ..
        } => format!("{call} {errno:?} {text}\n"),
        Event::Panicked {
            session,
            what,
            message,
            location,
        } => {
            let place = location.contains("events.rs");
            format!("{} {what}: {message} {place}\n", session.is_some())
        }
        Event::StreamOpened { session } => format!("{session} opened\n"),
        Event::StreamClosed { session } => format!("{session} closed\n"),
        other => format!("{other:?}\n"),
    }
}

fn expect(lines: &mut Lines<BufReader<PipeReader>>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(lines.next().unwrap().unwrap(), *expected);
    }
}

/// All that is left to be told when the server has stopped.
fn rest(server: ServerHandle, lines: Lines<BufReader<PipeReader>>) -> Vec<String> {
    server.stop().unwrap();
    lines.map(Result::unwrap).collect()
}

fn a_connection_is_told_in_order() {
    let (definition, mut lines) = told(echo());
    let server = definition.start().unwrap();
    drop(definition);
    let mut client = server.connect().unwrap();
    for _ in 0..2 {
        client.call::<_, String>("echo", "x").unwrap();
    }
    drop(client);
    expect(
        &mut lines,
        &[
            "1 connected default",
            "1 flushed",
            "1 flushed",
            "1 Finished",
        ],
    );
    let client = Client::connect(server.address()).unwrap();
    client.call_last::<_, String>("echo", "x").unwrap();
    expect(
        &mut lines,
        &["2 connected default", "2 flushed", "2 Finished"],
    );
    assert_eq!(rest(server, lines), ["paused: Stopping"]);
}

fn who_is_not_let_in_is_told_with_the_reason() {
    let mut limits = Limits::default();
    limits.max_unauthenticated = 1;
    limits.auth_timeout = Duration::from_millis(300);
    let (definition, mut lines) = told(echo().limits(limits));
    let server = definition.start().unwrap();
    drop(definition);
    for bytes in [&hello(&[0; 32])[..], b"GET / HTTP/1.1\r\n\r\n", b""] {
        let mut raw = Raw::connect(&server);
        raw.write(bytes);
        raw.finish_writing();
        raw.read_to_end();
        expect(&mut lines, &["refused true: Denied"]);
    }
    let first = Raw::connect(&server);
    let mut second = Raw::connect(&server);
    expect(&mut lines, &["refused true: Crowded"]);
    second.read_to_end();
    expect(&mut lines, &["refused true: TimedOut"]);
    drop(first);
    server.pause().unwrap();
    let _waiting = Raw::connect(&server);
    expect(&mut lines, &["paused: Requested"]);
    assert_eq!(rest(server, lines), ["refused true: Stopping"]);
}

fn an_end_is_told_with_its_reason() {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(Duration::from_millis(200));
    limits.frame_timeout = Duration::from_millis(100);
    let (definition, mut lines) = told(echo().limits(limits));
    let server = definition.start().unwrap();
    drop(definition);
    let endings = [
        (vec![], "Idle"),
        (b"\x04\0\0".to_vec(), "TimedOut"),
        (vec![0; 12], "Protocol(UnknownKind(0))"),
    ];
    for (number, (bytes, ending)) in (1..).zip(endings) {
        let mut raw = Raw::connect(&server);
        raw.write(&[hello_frame(&server), call_frame(1, "echo", b"\x01x"), bytes].concat());
        raw.read_to_end();
        expect(
            &mut lines,
            &[
                &format!("{number} connected default"),
                &format!("{number} flushed"),
            ],
        );
        expect(&mut lines, &[&format!("{number} {ending}")]);
    }
    let mut open = server.connect().unwrap();
    open.call::<_, String>("echo", "x").unwrap();
    expect(&mut lines, &["4 connected default", "4 flushed"]);
    assert_eq!(rest(server, lines), ["paused: Stopping", "4 Stopping"]);
}

fn another_user_is_told_as_not_admitted() {
    if !is_root() {
        return;
    }
    let (definition, mut lines) = told(echo());
    let server = definition.start().unwrap();
    drop(definition);
    let path = server.address().path().to_owned();
    // The mode of the directory keeps others out; somebody has changed it.
    for place in [path.parent().unwrap(), &path] {
        chmod(place, 0o777);
    }
    chmod(&std::env::temp_dir(), 0o755);
    Helper::start(|_| {
        drop_rights();
        Raw::connect(&server).read_to_end();
    })
    .finish();
    expect(&mut lines, &["refused true: NotAdmitted"]);
    assert_eq!(rest(server, lines), ["paused: Stopping"]);
}

fn chmod(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn pauses_and_resumptions_take_turns() {
    let (definition, mut lines) = told(echo());
    let server = definition.start().unwrap();
    drop(definition);
    server.pause().unwrap();
    expect(&mut lines, &["paused: Requested"]);
    server.pause().unwrap();
    server.set_max_connections(Some(0)).unwrap();
    server.resume().unwrap();
    server.set_max_connections(None).unwrap();
    expect(&mut lines, &["resumed"]);
    server.set_max_connections(Some(0)).unwrap();
    expect(&mut lines, &["paused: MaxConnections"]);
    server.set_max_connections(Some(1)).unwrap();
    expect(&mut lines, &["resumed"]);
    let mut only = Client::connect(server.address()).unwrap();
    only.call::<_, String>("echo", "x").unwrap();
    let mut told: Vec<_> = lines.by_ref().take(3).map(Result::unwrap).collect();
    told.sort();
    assert_eq!(
        told,
        ["1 connected default", "1 flushed", "paused: MaxConnections"]
    );
    drop(only);
    expect(&mut lines, &["1 Finished", "resumed"]);
    assert_eq!(rest(server, lines), ["paused: Stopping"]);
}

fn a_full_descriptor_table_is_told_with_call_and_number() {
    let (definition, mut lines) = told(echo());
    let server = definition
        .handle("limit", |_, limit: u64| {
            let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?)
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("limit", &10_u64).unwrap();
    expect(&mut lines, &["1 connected default", "1 flushed"]);
    let mut late = Client::connect(server.address()).unwrap();
    let pending = late.begin::<_, String>("echo", "late").unwrap();
    expect(
        &mut lines,
        &[
            "accept4 Some(24) Too many open files (os error 24)",
            "paused: NoResources",
        ],
    );
    client.call::<_, ()>("limit", &1000_u64).unwrap();
    drop(client);
    assert_eq!(late.finish(pending).unwrap(), "late");
    drop(late);
}

fn panics_are_told_wherever_they_happen() {
    #[derive(Default)]
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in a drop");
        }
    }
    let (definition, mut lines) = told(echo());
    let server = definition
        .handle("bad", |_, (): ()| -> Result<(), forkserver::Fault> {
            panic!("in a handler")
        })
        .handle("later", |ctx, (): ()| {
            ctx.defer(|| panic!("in a task"));
            ctx.session::<Bomb>();
            Ok(())
        })
        .handle_stream("stream", |_, (): (), _: Channel| panic!("in a stream"))
        .fallback(|_, name, _| panic!("in the fallback for {name}"))
        .handle_signal(Signal::SIGUSR1, |_| panic!("in a signal's"))
        .finalize(|_| panic!("in finalize"))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("bad", &()).unwrap_err();
    expect(
        &mut lines,
        &[
            "1 connected default",
            "true bad: in a handler true",
            "1 flushed",
        ],
    );
    client.call::<_, ()>("unknown", &()).unwrap_err();
    expect(
        &mut lines,
        &[
            "true unknown: in the fallback for unknown true",
            "1 flushed",
        ],
    );
    client.call::<_, ()>("later", &()).unwrap();
    expect(
        &mut lines,
        &["1 flushed", "true a deferred task: in a task true"],
    );
    client
        .open("stream", &())
        .unwrap()
        .into_client()
        .unwrap_err();
    expect(
        &mut lines,
        &["1 opened", "true stream: in a stream true", "1 closed"],
    );
    let mut told: Vec<_> = lines.by_ref().take(2).map(Result::unwrap).collect();
    if told[0] == "1 flushed" {
        told = vec![told[1].clone(), lines.next().unwrap().unwrap()];
    }
    assert_eq!(told[0], "true a value kept in the session: in a drop true");
    assert!(told[1].starts_with("1 "), "{told:?}");
    kill(
        nix::unistd::Pid::from_raw(server.pid() as i32),
        Signal::SIGUSR1,
    )
    .unwrap();
    expect(
        &mut lines,
        &["false a signal's handler: in a signal's true"],
    );
    drop(server);
    expect(
        &mut lines,
        &["paused: Stopping", "false finalize: in finalize true"],
    );
}

fn an_observer_that_panics_hurts_nobody() {
    let (definition, mut lines) = told(echo().observe(|_| panic!("an observer")));
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    expect(&mut lines, &["1 connected default", "1 flushed"]);
    server.stop().unwrap();
}

fn a_stream_is_told_when_it_opens_and_closes() {
    let (definition, mut lines) = told(echo());
    let server = definition
        .handle_stream("once", |_, (): (), mut channel: Channel| {
            Ok(channel.send(&1_u8)?)
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("once", &()).unwrap();
    assert_eq!(channel.recv::<u8>().unwrap(), Some(1));
    drop(channel.into_client().unwrap());
    expect(
        &mut lines,
        &[
            "1 connected default",
            "1 opened",
            "1 closed",
            "1 flushed",
            "1 Finished",
        ],
    );
}

fn what_a_stream_leaves_unsent_is_told_as_any_other() {
    const LARGE: usize = 4 << 20;
    let (definition, mut lines) = told(echo());
    let server = definition
        .handle_stream("large", |_, (): (), mut channel: Channel| {
            channel.set_timeout(Some(Duration::from_millis(20)));
            channel.send(&Bytes::from(vec![0; LARGE])).unwrap_err();
            Ok(())
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("large", &()).unwrap();
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        line.split(' ').next().unwrap().to_owned()
    };
    let told: Vec<_> = std::iter::repeat_with(&mut next).take(4).collect();
    assert_eq!(told, ["1", "1", "1", "HighWatermark"]);
    assert_eq!(channel.recv::<Bytes>().unwrap().unwrap().len(), LARGE);
    assert_eq!(next(), "LowWatermark");
    channel.into_client().unwrap();
}

fn whoever_was_connected_is_disconnected_once() {
    let mut limits = Limits::default();
    limits.max_threads = 4;
    limits.idle_timeout = Some(Duration::from_millis(20));
    let (definition, lines) = told(
        echo()
            .limits(limits)
            .handle("large", |_, size: usize| Ok(Bytes::from(vec![0; size])))
            .handle_stream("items", |_, count: u32, mut channel: Channel| {
                (0..count).try_for_each(|n| channel.send(&n))?;
                Ok(())
            }),
    );
    let server = definition.start().unwrap();
    drop(definition);
    let reading = std::thread::spawn(move || lines.map(Result::unwrap).collect::<Vec<_>>());
    let clients: Vec<Helper> = (0..6)
        .map(|seed: usize| {
            Helper::start(|test| {
                for round in 0..40 {
                    let mut client = Client::connect(server.address()).unwrap();
                    // A connection that is idle for too long may be closed under any of these.
                    match (seed + round) % 8 {
                        0 => drop(client),
                        1 => drop(client.call::<_, String>("echo", "x")),
                        2 => drop(client.call_last::<_, String>("echo", "x")),
                        3 => drop(client.begin::<_, Bytes>("large", &(1_usize << 20))),
                        4 => drop(client.open("items", &1000_u32)),
                        5 => drop(client.open("items", &3_u32).map(Channel::into_client)),
                        6 => Raw::connect(&server)
                            .write(&[hello_frame(&server), vec![0; 12]].concat()),
                        _ => {
                            let _ = client.call::<_, String>("echo", "x");
                            std::mem::forget(client);
                        }
                    }
                }
                test.say("done");
                test.wait();
            })
        })
        .collect();
    for mut client in clients {
        assert_eq!(client.hear(), "done");
        client.kill();
    }
    server.stop().unwrap();
    let mut states: HashMap<u64, &str> = HashMap::new();
    let told = reading.join().unwrap();
    for line in &told {
        let Some((session, what)) = line
            .split_once(' ')
            .and_then(|(number, what)| Some((number.parse().ok()?, what)))
        else {
            continue;
        };
        let state = states.get(&session).copied();
        let next = match (state, what) {
            (None, "connected default") => "connected",
            (Some("connected"), "flushed" | "opened" | "closed") => "connected",
            (Some("connected"), _) => "disconnected",
            _ => panic!("session {session} was {state:?}, and then: {what}"),
        };
        states.insert(session, next);
    }
    assert!(states.len() > 100, "{} sessions", states.len());
    assert!(states.values().all(|state| *state == "disconnected"));
}
