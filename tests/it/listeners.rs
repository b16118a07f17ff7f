//! Several ways into one server: each with its own address, password, handlers and limits, stopped and started alone.

use crate::processes::{Helper, readable};
use forkserver::{
    CallError, Channel, Client, ConnectError, ControlError, Event, Limits, Listener, Server,
    ServerHandle, StartError, StreamError,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

crate::tests![
    each_listener_has_its_own_address_and_password,
    a_listener_shows_only_the_handlers_that_it_was_given,
    a_listener_has_limits_of_its_own,
    one_full_listener_keeps_nobody_out_of_another,
    definitions_that_contradict_themselves_are_refused,
    a_path_in_use_starts_none_of_the_listeners,
    a_stopped_listener_lets_nobody_in_and_others_go_on,
    a_stopped_listener_starts_again_at_the_same_address,
    a_stop_behind_a_call_in_a_handler_is_obeyed,
    idle_clients_of_a_stopped_listener_are_closed_and_others_are_not,
    streams_of_a_stopped_listener_are_told_and_others_are_not,
    a_stream_that_does_not_listen_is_cut_off_when_the_grace_is_over,
    a_stopped_listener_without_connections_stops_nothing_else,
    an_earlier_stop_does_not_touch_those_who_come_after_the_start,
    two_stops_within_a_grace_cut_each_time_off_for_itself,
    a_listener_whose_place_was_taken_stays_stopped,
    a_listener_is_told_as_stopped_behind_its_last_connection,
    unknown_listeners_are_errors,
    what_a_killed_server_had_stopped_is_removed_by_its_owner,
];

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn two() -> Server {
    crate::server()
        .listen(Listener::at(path("a")).name("a"))
        .listen(Listener::at(path("b")).name("b"))
        .handle("echo", |_, text: String| Ok(text))
        .handle("where", |ctx, (): ()| Ok(ctx.listener().to_owned()))
        .handle("stop", |ctx, name: String| {
            Ok(ctx.control().stop_listener(&name))
        })
        .handle_stream("wait", |_, (): (), mut channel: Channel| {
            channel.send("here")?;
            match channel.recv::<String>() {
                Err(StreamError::Stopped(reason)) => Ok(channel.send(&reason.to_string())?),
                other => Ok(channel.send(&format!("{other:?}"))?),
            }
        })
}

fn client(server: &ServerHandle, listener: &str) -> Client {
    Client::connect(server.address_of(listener).unwrap()).unwrap()
}

fn echoes(client: &mut Client) {
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn is_unreachable(server: &ServerHandle, listener: &str) {
    let err = Client::connect(server.address_of(listener).unwrap()).unwrap_err();
    assert!(matches!(err, ConnectError::NotRunning { .. }), "{err}");
}

/// The connection ends, without a word.
fn is_closed(client: &mut Client) {
    let err = client.call::<_, String>("echo", "x").unwrap_err();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
}

fn each_listener_has_its_own_address_and_password() {
    let server = two().start().unwrap();
    for name in ["a", "b"] {
        let place: String = client(&server, name).call("where", &()).unwrap();
        assert_eq!(place, name);
        assert!(path(name).exists());
    }
    let (a, b) = (
        server.address_of("a").unwrap(),
        server.address_of("b").unwrap(),
    );
    assert_eq!(server.address().path(), a.path());
    assert_ne!(a.password().as_bytes(), b.password().as_bytes());
    assert!(server.address_of("c").is_none());
    let names: Vec<_> = server.status().unwrap().listeners;
    let names: Vec<_> = names.into_iter().map(|listener| listener.name).collect();
    assert_eq!(names, ["a", "b"]);
    server.stop().unwrap();
    assert!(!path("a").exists() && !path("b").exists());
}

fn a_listener_shows_only_the_handlers_that_it_was_given() {
    let server = crate::server()
        .listen(Listener::private().name("all"))
        .listen(Listener::private().name("few").only(["echo"]))
        .handle("echo", |_, text: String| Ok(text))
        .handle("echoes", |_, text: String| Ok(text))
        .fallback(|_, _, raw| Ok(raw))
        .start()
        .unwrap();
    let (mut all, mut few) = (client(&server, "all"), client(&server, "few"));
    for name in ["echo", "echoes", "anything"] {
        assert_eq!(all.call::<_, String>(name, "x").unwrap(), "x");
    }
    echoes(&mut few);
    for name in ["echoes", "anything"] {
        match few.call::<_, String>(name, "x").unwrap_err() {
            CallError::UnknownName {
                similar: nearest, ..
            } if name == "echoes" => {
                assert_eq!(nearest.as_deref(), Some("echo"), "and not itself");
            }
            CallError::UnknownName { .. } => {}
            err => panic!("{err}"),
        }
    }
    echoes(&mut few);
}

fn a_listener_has_limits_of_its_own() {
    let mut small = Limits::default();
    small.max_frame = 100;
    let server = crate::server()
        .listen(Listener::private().name("large"))
        .listen(Listener::private().name("small").limits(small))
        .handle("echo", |_, text: String| Ok(text))
        .start()
        .unwrap();
    let text = "x".repeat(200);
    let mut large = client(&server, "large");
    assert_eq!(large.call::<_, String>("echo", &text).unwrap(), text);
    let err = client(&server, "small").call::<_, String>("echo", &text);
    assert!(matches!(err, Err(CallError::Protocol(_))), "{err:?}");
}

fn one_full_listener_keeps_nobody_out_of_another() {
    let mut one = Limits::default();
    one.max_connections = 1;
    let server = crate::server()
        .listen(Listener::private().name("one").limits(one))
        .listen(Listener::private().name("many"))
        .handle("echo", |_, text: String| Ok(text))
        .start()
        .unwrap();
    let mut first = client(&server, "one");
    echoes(&mut first);
    let mut second = client(&server, "one");
    let pending = second.begin::<_, String>("echo", "y").unwrap();
    second.flush().unwrap();
    let mut others: Vec<_> = (0..3).map(|_| client(&server, "many")).collect();
    others.iter_mut().for_each(echoes);
    let listeners = server.status().unwrap().listeners;
    let counts: Vec<_> = listeners
        .iter()
        .map(|listener| listener.connections)
        .collect();
    assert_eq!(counts, [1, 3]);
    assert_eq!(listeners[0].max_connections, 1);
    drop(first);
    assert_eq!(second.finish(pending).unwrap(), "y");
}

fn definitions_that_contradict_themselves_are_refused() {
    let err = crate::server()
        .listen(Listener::private())
        .listen(Listener::private())
        .start()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::DuplicateListener { name } if name == "default"),
        "{err}"
    );
    let err = crate::server()
        .listen(Listener::private().only(["nothing"]))
        .start()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::NoSuchHandler { name } if name == "nothing"),
        "{err}"
    );
}

fn a_path_in_use_starts_none_of_the_listeners() {
    std::fs::write(path("b"), "somebody's").unwrap();
    let err = two().start().unwrap_err();
    assert!(
        matches!(&err, StartError::AddressInUse { path: used, .. } if *used == path("b")),
        "{err}"
    );
    let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    std::fs::remove_file(path("b")).unwrap();
}

fn a_stopped_listener_lets_nobody_in_and_others_go_on() {
    let server = two().start().unwrap();
    server.stop_listener("a").unwrap();
    is_unreachable(&server, "a");
    echoes(&mut client(&server, "b"));
    echoes(&mut server.connect().unwrap());
    let listeners = server.status().unwrap().listeners;
    let stopped: Vec<_> = listeners.iter().map(|listener| listener.stopped).collect();
    assert_eq!(stopped, [true, false]);
    server.stop_listener("a").unwrap();
    server.stop().unwrap();
    let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn a_stopped_listener_starts_again_at_the_same_address() {
    let server = two().start().unwrap();
    for _ in 0..3 {
        server.stop_listener("a").unwrap();
        is_unreachable(&server, "a");
        server.start_listener("a").unwrap();
        echoes(&mut client(&server, "a"));
    }
    server.start_listener("a").unwrap();
    echoes(&mut client(&server, "a"));
}

fn a_stop_behind_a_call_in_a_handler_is_obeyed() {
    let server = two().start().unwrap();
    let mut caller = client(&server, "a");
    let known: bool = caller.call("stop", "a").unwrap();
    assert!(known, "and who asked is answered");
    let begun = Instant::now();
    while path("a").exists() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
    is_unreachable(&server, "a");
    is_closed(&mut caller);
    let known: bool = client(&server, "b").call("stop", "c").unwrap();
    assert!(!known);
}

fn idle_clients_of_a_stopped_listener_are_closed_and_others_are_not() {
    let server = two().start().unwrap();
    let (mut a, mut b) = (client(&server, "a"), client(&server, "b"));
    let mut owners = server.connect().unwrap();
    [&mut a, &mut b, &mut owners].into_iter().for_each(echoes);
    server.stop_listener("a").unwrap();
    is_closed(&mut a);
    [&mut b, &mut owners].into_iter().for_each(echoes);
}

fn streams_of_a_stopped_listener_are_told_and_others_are_not() {
    let server = two().start().unwrap();
    let open = |name| {
        let mut channel = client(&server, name).open("wait", &()).unwrap();
        assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
        channel
    };
    let (mut a, mut b) = (open("a"), open("b"));
    server.stop_listener("a").unwrap();
    assert_eq!(
        a.recv::<String>().unwrap().unwrap(),
        "the listener is stopping"
    );
    assert!(a.recv::<String>().unwrap().is_none());
    assert!(!readable(&b, Duration::from_millis(50)), "not told");
    b.send("x").unwrap();
    assert_eq!(b.recv::<String>().unwrap().unwrap(), "Ok(Some(\"x\"))");
}

fn a_stream_that_does_not_listen_is_cut_off_when_the_grace_is_over() {
    let grace = Duration::from_millis(200);
    let (wait, leave) = std::io::pipe().unwrap();
    let server = two()
        .grace(grace)
        .keep_fd(&wait)
        .handle_stream("deaf", move |_, (): (), mut channel: Channel| {
            channel.send("here")?;
            (&wait).read_exact(&mut [0])?;
            Ok(())
        })
        .start()
        .unwrap();
    let mut channel = client(&server, "a").open("deaf", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
    let begun = Instant::now();
    server.stop_listener("a").unwrap();
    let err = channel.recv::<String>().unwrap_err();
    assert!(matches!(err, StreamError::Disconnected), "{err}");
    let took = begun.elapsed();
    assert!(took >= grace && took < grace * 10, "{took:?}");
    echoes(&mut client(&server, "b"));
    (&leave).write_all(b"x").unwrap();
}

fn a_stopped_listener_without_connections_stops_nothing_else() {
    let server = two().start().unwrap();
    let mut b = client(&server, "b").open("wait", &()).unwrap();
    assert_eq!(b.recv::<String>().unwrap().unwrap(), "here");
    server.stop_listener("a").unwrap();
    assert!(!readable(&b, Duration::from_millis(50)), "not told");
}

fn an_earlier_stop_does_not_touch_those_who_come_after_the_start() {
    let server = two().grace(Duration::from_millis(150)).start().unwrap();
    let mut before = client(&server, "a");
    echoes(&mut before);
    server.stop_listener("a").unwrap();
    server.start_listener("a").unwrap();
    let mut channel = client(&server, "a").open("wait", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
    let mut after = client(&server, "a");
    echoes(&mut after);
    is_closed(&mut before);
    assert!(
        !readable(&channel, Duration::from_millis(400)),
        "neither told, nor cut off when the grace of the others is over"
    );
    echoes(&mut after);
}

fn two_stops_within_a_grace_cut_each_time_off_for_itself() {
    let grace = Duration::from_millis(300);
    let server = two()
        .grace(grace)
        .handle_stream("deaf", |_, (): (), mut channel: Channel| {
            channel.send("here")?;
            // Told to stop, it does not.
            while channel.send("still here").is_ok() {
                std::thread::yield_now();
            }
            Ok(())
        })
        .start()
        .unwrap();
    let open = || {
        let mut channel = client(&server, "a").open("deaf", &()).unwrap();
        assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
        channel
    };
    let is_cut = |mut channel: Channel<Client>| while let Ok(Some(_)) = channel.recv::<String>() {};
    let first = open();
    let begun = Instant::now();
    server.stop_listener("a").unwrap();
    server.start_listener("a").unwrap();
    let second = open();
    assert!(
        begun.elapsed() < grace,
        "the test is quick enough to say anything"
    );
    while begun.elapsed() < grace / 2 {
        std::thread::yield_now();
    }
    let later = Instant::now();
    server.stop_listener("a").unwrap();
    is_cut(first);
    let took = begun.elapsed();
    assert!(took >= grace && took < grace * 3 / 2 + grace, "{took:?}");
    is_cut(second);
    assert!(later.elapsed() >= grace, "{:?}", later.elapsed());
}

fn a_listener_whose_place_was_taken_stays_stopped() {
    let server = two().start().unwrap();
    server.stop_listener("a").unwrap();
    std::fs::write(path("a"), "somebody's").unwrap();
    let err = server.start_listener("a").unwrap_err();
    assert!(
        matches!(&err, ControlError::NotStarted(name) if name == "a"),
        "{err}"
    );
    assert!(server.status().unwrap().listeners[0].stopped);
    std::fs::remove_file(path("a")).unwrap();
    server.start_listener("a").unwrap();
    echoes(&mut client(&server, "a"));
}

fn a_listener_is_told_as_stopped_behind_its_last_connection() {
    let (reader, writer) = std::io::pipe().unwrap();
    let definition = two().keep_fd(&writer).observe(move |event| {
        let text = match event {
            Event::ListenerStarted { listener } => format!("started {listener}\n"),
            Event::ListenerStopped { listener } => format!("stopped {listener}\n"),
            Event::Disconnected { session, .. } => format!("{session} gone\n"),
            Event::Resumed { listener } => format!("resumed {listener}\n"),
            Event::Paused { listener, reason } => format!("paused {listener}: {reason:?}\n"),
            _ => return,
        };
        (&writer).write_all(text.as_bytes()).unwrap();
    });
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let server = definition.start().unwrap();
    drop(definition);
    let mut expect = |expected: &[&str]| {
        let seen: Vec<_> = lines.by_ref().take(expected.len()).collect();
        assert_eq!(seen, expected);
    };
    expect(&["started a", "started b"]);
    let mut a = client(&server, "a");
    echoes(&mut a);
    server.stop_listener("a").unwrap();
    expect(&["paused a: Stopping", "1 gone", "stopped a"]);
    server.start_listener("a").unwrap();
    expect(&["started a", "resumed a"]);
    server.stop_listener("a").unwrap();
    expect(&["paused a: Stopping", "stopped a"]);
    server.stop().unwrap();
    expect(&["paused b: Stopping", "stopped b"]);
    assert_eq!(lines.next(), None, "the end of a is not told again");
}

fn unknown_listeners_are_errors() {
    let server = two().start().unwrap();
    for result in [server.stop_listener("c"), server.start_listener("c")] {
        let err = result.unwrap_err();
        assert!(
            matches!(&err, ControlError::NoSuchListener(name) if name == "c"),
            "{err}"
        );
    }
}

fn what_a_killed_server_had_stopped_is_removed_by_its_owner() {
    let server = two().listen(Listener::private().name("c")).start().unwrap();
    let private = server.address_of("c").unwrap().path().to_owned();
    for name in ["a", "c"] {
        server.stop_listener(name).unwrap();
    }
    assert!(!private.exists() && private.parent().unwrap().exists());
    server.kill().unwrap();
    let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    // Where nobody could remove it, the next server at the path does.
    let mut owner = Helper::start(|test| {
        let server = two().start().unwrap();
        server.stop_listener("a").unwrap();
        test.say(server.pid());
        test.wait();
    });
    let watched = owner.hear_pid();
    nix::sys::signal::kill(watched.pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    owner.kill();
    watched.ends_within(Duration::from_secs(5));
    watched.reap();
    let server = two().start().unwrap();
    echoes(&mut client(&server, "a"));
    server.stop().unwrap();
    let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}
