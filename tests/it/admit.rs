//! Hooks that see a connection first: what they see, what they refuse, what they put in its place.

use crate::hostile::{Raw, call_frame, hello_frame};
use crate::lifecycle::echo;
use forkserver::{
    Bytes, CallError, Client, Event, EventHandler, Fault, Item, Limits, Listener, Server,
    ServerHandle, Session,
};
use std::io::{BufRead, BufReader, ErrorKind, Lines, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;

crate::tests![
    a_hook_sees_who_connects_and_where,
    a_refusal_is_seen_as_the_end_and_told_with_its_text,
    hooks_are_asked_in_order_up_to_the_first_refusal,
    a_panic_is_a_refusal_and_is_told,
    an_owners_connection_is_not_asked_about,
    the_count_is_right_whatever_the_hooks_do,
    a_filter_stands_between_client_and_server,
    the_server_talks_to_the_socket_that_was_put_in_place,
    what_is_no_connected_stream_is_not_put_in_place,
    a_refusal_ends_a_socket_that_was_put_in_place_too,
    a_stop_ends_connections_whose_socket_was_replaced,
    hooks_are_asked_whatever_a_listener_speaks,
];

/// A definition whose hooks and events write to the lines that are returned.
fn told(
    server: Server,
    hook: impl Fn(&mut forkserver::Arrival, &dyn Fn(String)) -> Result<(), Fault>
    + Send
    + Sync
    + 'static,
) -> (Server, Lines<BufReader<PipeReader>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = Arc::new(writer);
    let for_events = Arc::clone(&writer);
    let server = server
        .keep_fd(&*writer)
        .admit(move |arrival| hook(arrival, &|line| writeln!(&*writer, "{line}").unwrap()))
        .observe(move |event| {
            let line = match event {
                Event::Connected { session, .. } => format!("{session} connected"),
                Event::Disconnected { session, .. } => format!("{session} gone"),
                Event::Refused { peer, reason, .. } => {
                    format!("refused {}: {reason:?}", peer.is_some())
                }
                Event::Panicked { what, message, .. } => format!("{what}: {message}"),
                _ => return,
            };
            writeln!(&*for_events, "{line}").unwrap();
        });
    (server, BufReader::new(reader).lines())
}

fn expect(lines: &mut Lines<BufReader<PipeReader>>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(lines.next().unwrap().unwrap(), *expected);
    }
}

fn try_echo(server: &ServerHandle) -> Result<String, CallError> {
    let mut client = Client::connect(server.address()).unwrap();
    client.call("echo", "x")
}

fn is_refused(server: &ServerHandle) {
    let err = try_echo(server).unwrap_err();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
}

fn a_hook_sees_who_connects_and_where() {
    let definition = echo().listen(Listener::private().name("door"));
    let (definition, mut lines) = told(definition, |arrival, tell| {
        let socket = UnixStream::from(arrival.as_fd().try_clone_to_owned()?);
        let path = socket.local_addr()?.as_pathname().map(ToOwned::to_owned);
        let address = arrival.control().address();
        assert_eq!(path.as_deref(), Some(address.path()));
        let peer = arrival.peer();
        tell(format!("{} {} {}", arrival.listener(), peer.pid, peer.uid));
        Ok(())
    });
    let server = definition.start().unwrap();
    assert_eq!(try_echo(&server).unwrap(), "x");
    let (pid, uid) = (std::process::id(), nix::unistd::geteuid());
    expect(
        &mut lines,
        &[&format!("door {pid} {uid}"), "1 connected", "1 gone"],
    );
}

fn a_refusal_is_seen_as_the_end_and_told_with_its_text() {
    let (definition, mut lines) = told(echo(), |_, _| Err(Fault::new("not today")));
    let server = definition.start().unwrap();
    for _ in 0..3 {
        is_refused(&server);
        expect(&mut lines, &["refused true: Rejected(\"not today\")"]);
    }
    // Not a byte is sent.
    let mut raw = Raw::connect(&server);
    assert!(raw.read_to_end().is_empty());
    expect(&mut lines, &["refused true: Rejected(\"not today\")"]);
    assert_eq!(server.status().unwrap().connections, 0);
}

fn hooks_are_asked_in_order_up_to_the_first_refusal() {
    let (definition, mut lines) = told(echo(), |_, tell| {
        tell("first".into());
        Ok(())
    });
    let (definition, mut later) = told(definition, |_, tell| {
        tell("second".into());
        Err(Fault::new("no"))
    });
    let server = definition.admit(|_| panic!("nobody asks")).start().unwrap();
    is_refused(&server);
    let refused = "refused true: Rejected(\"no\")";
    expect(&mut lines, &["first", refused]);
    expect(&mut later, &["second", refused]);
}

fn a_panic_is_a_refusal_and_is_told() {
    let (definition, mut lines) = told(echo(), |_, _| panic!("as asked"));
    let server = definition.start().unwrap();
    for _ in 0..2 {
        is_refused(&server);
        expect(&mut lines, &["admit: as asked"]);
        let refused = lines.next().unwrap().unwrap();
        assert!(
            refused.starts_with("refused true: Rejected(\"panicked at"),
            "{refused}"
        );
        assert!(refused.ends_with(": as asked\")"), "{refused}");
    }
}

fn an_owners_connection_is_not_asked_about() {
    let server = echo().admit(|_| Err(Fault::new("no"))).start().unwrap();
    is_refused(&server);
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn the_count_is_right_whatever_the_hooks_do() {
    let mut limits = Limits::default();
    limits.max_connections = 1;
    let count = std::sync::atomic::AtomicUsize::new(0);
    let (definition, mut lines) = told(echo().limits(limits), move |arrival, _| {
        match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 4 {
            0 => Err(Fault::new("no")),
            1 => panic!("as asked"),
            2 => Ok(filter(arrival)?),
            _ => Ok(()),
        }
    });
    let server = definition.start().unwrap();
    for session in [3, 7, 11] {
        is_refused(&server);
        is_refused(&server);
        assert_eq!(try_echo(&server).unwrap(), "x");
        assert_eq!(try_echo(&server).unwrap(), "x");
        let [filtered, plain] = [session, session + 1];
        let seen: Vec<_> = lines.by_ref().take(7).map(Result::unwrap).collect();
        let gone = [filtered, plain].map(|session| format!("{session} gone"));
        assert!(gone.iter().all(|line| seen.contains(line)), "{seen:?}");
    }
    let status = server.status().unwrap();
    assert_eq!((status.connections, status.accepted), (0, 12));
    assert_eq!(status.listeners[0].connections, 0);
}

/// Has everything go through two threads of its own.
fn filter(arrival: &mut forkserver::Arrival) -> std::io::Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let client = arrival.replace(theirs)?;
    for (from, to) in [(client.try_clone()?, ours.try_clone()?), (ours, client)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut &from, &mut &to);
            let _ = (from.shutdown(Shutdown::Read), to.shutdown(Shutdown::Write));
        });
    }
    Ok(())
}

fn a_filter_stands_between_client_and_server() {
    let (definition, mut lines) = told(echo(), |arrival, tell| {
        filter(arrival)?;
        tell("filtered".into());
        Ok(())
    });
    let server = definition
        .handle("double", |ctx, bytes: Bytes| {
            let peer = ctx.peer();
            Ok((peer.pid, Bytes::from([&bytes[..], &bytes[..]].concat())))
        })
        .start()
        .unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    for size in [1, 100, 1 << 20] {
        let bytes = Bytes::from(vec![7; size]);
        let (pid, double): (i32, Bytes) = client.call("double", &bytes).unwrap();
        assert_eq!(double.len(), 2 * size);
        assert_eq!(pid.unsigned_abs(), std::process::id(), "and not the filter");
    }
    drop(client);
    expect(&mut lines, &["filtered", "1 connected", "1 gone"]);
}

fn the_server_talks_to_the_socket_that_was_put_in_place() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let server = echo()
        .keep_fd(&theirs)
        .admit(move |arrival| {
            let other = UnixStream::from(theirs.try_clone()?);
            // One that would not wait is no different.
            other.set_nonblocking(true)?;
            let mut client = arrival.replace(other)?;
            Ok(client.write_all(b"not here")?)
        })
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    assert_eq!(raw.read_to_end(), b"not here");
    let mut raw = Raw::from(ours);
    raw.write(&[hello_frame(&server), call_frame(1, "echo", b"\x01x")].concat());
    let mut answer = [0; 46];
    raw.stream().read_exact(&mut answer).unwrap();
    assert_eq!(
        (answer[0], answer[24], &answer[44..]),
        (2, 5, &b"\x01x"[..])
    );
}

fn what_is_no_connected_stream_is_not_put_in_place() {
    let others: [fn() -> OwnedFd; 4] = [
        || std::io::pipe().unwrap().0.into(),
        || UnixDatagram::pair().unwrap().0.into(),
        || {
            let socket = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Unix,
                nix::sys::socket::SockType::Stream,
                nix::sys::socket::SockFlag::SOCK_CLOEXEC,
                None,
            );
            socket.unwrap()
        },
        || {
            let path = std::env::temp_dir().join("other");
            let listener = UnixListener::bind(&path).unwrap();
            std::fs::remove_file(path).unwrap();
            listener.into()
        },
    ];
    let server = echo()
        .admit(move |arrival| {
            for other in others {
                let err = arrival.replace(UnixStream::from(other())).unwrap_err();
                assert_eq!(err.kind(), ErrorKind::InvalidInput);
            }
            Ok(())
        })
        .start()
        .unwrap();
    assert_eq!(try_echo(&server).unwrap(), "x", "the client's own is used");
}

fn a_refusal_ends_a_socket_that_was_put_in_place_too() {
    let server = echo()
        .admit(|arrival| Ok(filter(arrival)?))
        .admit(|_| Err(Fault::new("no")))
        .start()
        .unwrap();
    is_refused(&server);
    let mut raw = Raw::connect(&server);
    assert!(raw.read_to_end().is_empty());
}

fn a_stop_ends_connections_whose_socket_was_replaced() {
    let (definition, _lines) = told(
        echo()
            .listen(Listener::private().name("a"))
            .listen(Listener::private().name("b")),
        |arrival, _| Ok(filter(arrival)?),
    );
    let server = definition.start().unwrap();
    let [mut a, mut b] = ["a", "b"].map(|name| {
        let mut client = Client::connect(server.address_of(name).unwrap()).unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        client
    });
    server.stop_listener("a").unwrap();
    let err = a.call::<_, String>("echo", "x").unwrap_err();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
    assert_eq!(b.call::<_, String>("echo", "x").unwrap(), "x");
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
}

/// Answers each line with itself.
struct Echo;

impl EventHandler for Echo {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        Ok(session.write(item)?)
    }
}

fn hooks_are_asked_whatever_a_listener_speaks() {
    let path = |name: &str| std::env::temp_dir().join(name);
    let listen = |name: &str| Listener::at(path(name)).name(name.to_owned());
    let definition = |refuse: bool| {
        crate::server()
            .listen(listen("lines").handle_events(forkserver::Lines::default, |_| Ok(Echo)))
            .listen(listen("raw").accept_with(|accepted, _permit| {
                let mut stream = accepted.into_stream();
                stream.write_all(b"x\n").unwrap();
            }))
            .admit(move |arrival| match refuse {
                true => Err(Fault::new("no")),
                false => Ok(filter(arrival)?),
            })
    };
    for refuse in [true, false] {
        let server = definition(refuse).start().unwrap();
        for name in ["lines", "raw"] {
            let mut stream = UnixStream::connect(path(name)).unwrap();
            let _ = stream.write_all(b"x\n");
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(err) if err.kind() == ErrorKind::ConnectionReset => {}
                read => drop(read.unwrap()),
            }
            let expected: &[u8] = if refuse { b"" } else { b"x\n" };
            assert_eq!(answer, expected, "{name}");
        }
        server.stop().unwrap();
    }
}
