//! What was asserted of Qore's HTTP server and its dedicated connections, or follows from their text, as far as it makes
//! sense here.
//!
//! * CQ1: [`whoever_was_closed_as_idle_may_come_again`]. Left out: a client that connects again by itself, there is none.
//! * CQ2: `sockets::a_live_server_keeps_its_path`, `listeners::a_path_in_use_starts_none_of_the_listeners`.
//! * CQ3: [`a_directory_that_is_none_is_an_error_before_anything_is_begun`], `sockets::paths_of_every_length_work_or_fail_early`,
//!   `sockets::unsafe_directories_are_refused`, `lifecycle::an_address_can_be_saved_and_handed_on`.
//! * CQ4: `rotation::later_clients_need_the_new_password_and_sessions_go_on`.
//! * CQ5: `calls::wrong_arguments_are_a_mismatch_and_the_server_lives`, `calls::deferred_tasks_run_after_the_answer_in_order`
//!   (an empty answer, and a call behind it).
//! * CQ6: `closing::a_large_answer_leaves_before_the_connection_is_closed`,
//!   `conformance_poe::ten_megabytes_arrive_before_the_end`.
//! * CQ7: `calls::an_unknown_name_is_answered_with_the_nearest`. Left out: handlers do not come while a server runs.
//! * CQ8: `lifecycle::several_servers_in_one_owner`.
//! * CQ9: [`a_name_and_its_arguments_arrive_as_they_were`].
//! * CQ10, CQ11: left out, names are exact and there are no prefixes;
//!   `conformance_tanzer::names_match_to_the_last_byte_or_not_at_all`.
//! * CQ12: `calls::a_fault_carries_code_message_and_causes`, `types::what_bincode_cannot_do_is_an_error_and_not_a_wrong_value`.
//! * CQ13: `calls::bytes_of_every_size_come_back`.
//! * CQ14: `auth::the_password_is_nowhere_to_be_read`.
//! * CQ15: left out, addresses are paths and no URLs.
//! * CQ16, CQ17, CQ25: left out, there is no heartbeat: the kernel tells both sides of the other's end.
//! * CQ18: [`a_session_whose_beginning_fails_is_told_once`], `sessions::a_handler_that_cannot_be_made_refuses_its_client`.
//! * CQ19: `closing::a_handler_closes_the_connection_behind_its_answer`, `sessions::every_end_is_told_to_the_handler_once`.
//! * CQ20: left out, a message is one frame; that it may come in pieces: `sessions::records_are_the_same_however_they_come`.
//! * CQ21, CQ24: `streams::queued_items_leave_together`, `conformance_order::what_was_read_before_a_stream_began_is_the_streams`.
//! * CQ22: `conformance_order::each_event_comes_in_its_place` (no event but these),
//!   `conformance_poe::a_server_that_had_nothing_to_complain_of_wrote_nothing`.
//! * CQ23: [`a_server_starts_at_the_path_that_it_has_just_left`], `listeners::a_stopped_listener_starts_again_at_the_same_address`.
//! * CQ26: `streams::a_half_that_is_dropped_breaks_off`, `sessions::a_session_closed_now_sends_nothing_more`.
//! * CQ27: [`a_stream_that_is_refused_never_enters_its_handler`].
//! * CQ28: `listeners::a_stopped_listener_without_connections_stops_nothing_else`.
//! * CQ29: `listeners::streams_of_a_stopped_listener_are_told_and_others_are_not`.
//! * CQ30: `listeners::an_earlier_stop_does_not_touch_those_who_come_after_the_start`.
//! * CQ31: [`streams_are_counted_down_however_they_end`].
//! * CQ32: [`a_stream_opened_while_its_listener_stops_is_refused_or_told`].
//! * CQ33: `streams::a_stop_tells_streams_last`.
//! * CQ34: [`stops_from_all_sides_are_one_stop`].
//! * CQ35: `lifecycle::a_handler_that_ignores_everything_is_killed_after_the_patience`. Left out: a wait that gives up and leaves
//!   the server as it is, `try_wait` and the handle's descriptor do that.
//! * CQ36: [`a_finalize_that_panics_holds_up_nothing_behind_it`], `lifecycle::finalize_runs_after_the_last_answer`.
//! * CQ37: left out, a server without a listener that listens still serves its owner.
//! * CQ38: left out, handlers do not go while a server runs.
//! * CQ39: [`a_stream_knows_no_idle_time_and_behind_it_time_counts_again`].
//! * CQ40: `calls::a_session_keeps_its_state`.
//! * CQ41: [`each_call_has_one_answer_whatever_becomes_of_it`].

use crate::conformance_order::{Trace, becomes_empty, note};
use crate::hostile::{Raw, call_frame, frame, hello_frame, still_answers};
use crate::lifecycle::echo;
use forkserver::{
    Bytes, CallError, Channel, Client, ConnectError, EventHandler, Exit, Fault, Item, Limits,
    Lines, Listener, Raw as RawValue, Server, Session, StartError, StreamError,
};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

crate::tests![
    whoever_was_closed_as_idle_may_come_again,
    a_directory_that_is_none_is_an_error_before_anything_is_begun,
    a_name_and_its_arguments_arrive_as_they_were,
    a_session_whose_beginning_fails_is_told_once,
    a_server_starts_at_the_path_that_it_has_just_left,
    a_stream_that_is_refused_never_enters_its_handler,
    streams_are_counted_down_however_they_end,
    a_stream_opened_while_its_listener_stops_is_refused_or_told,
    stops_from_all_sides_are_one_stop,
    a_finalize_that_panics_holds_up_nothing_behind_it,
    a_stream_knows_no_idle_time_and_behind_it_time_counts_again,
    each_call_has_one_answer_whatever_becomes_of_it,
];

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

fn idle_after(time: Duration) -> Limits {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(time);
    limits
}

/// A stream says that it is here, and what its first wait ends with.
fn waiting(server: Server) -> Server {
    server.handle_stream("wait", |_, (): (), mut channel: Channel| {
        channel.send("here")?;
        match channel.recv::<String>() {
            Err(StreamError::Stopped(reason)) => Ok(channel.send(&reason.to_string())?),
            Ok(Some(text)) if text == "fault" => Err(Fault::new("as asked")),
            Ok(Some(text)) if text == "panic" => panic!("as asked"),
            _ => Ok(()),
        }
    })
}

fn open(client: Client) -> Channel<Client> {
    let mut channel = client.open("wait", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("here"));
    channel
}

fn whoever_was_closed_as_idle_may_come_again() {
    let limits = idle_after(Duration::from_millis(1));
    let server = echo().limits(limits).start().unwrap();
    for text in ["a", "b", "c", "d", "e", "f"] {
        let mut client = Client::connect(server.address()).unwrap();
        assert_eq!(client.call::<_, String>("echo", text).unwrap(), text);
        becomes_empty(&server);
        let err = client.call::<_, String>("echo", text).unwrap_err();
        assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
    }
    // The end is no error frame.
    let mut raw = Raw::connect(&server);
    raw.write(&[hello_frame(&server), call_frame(1, "echo", b"\x01x")].concat());
    assert_eq!(raw.read_to_end().len(), 24 + 12 + 8 + 2);
}

fn a_directory_that_is_none_is_an_error_before_anything_is_begun() {
    std::fs::write(path("file"), "").unwrap();
    for (directory, kind) in [
        ("missing", ErrorKind::NotFound),
        ("file", ErrorKind::NotADirectory),
    ] {
        let listener = Listener::at(path(directory).join("s"));
        match echo().listen(listener).start().unwrap_err() {
            StartError::Io { action, source } => {
                assert_eq!(
                    (action, source.kind()),
                    ("open the socket's directory", kind)
                );
            }
            err => panic!("{err}"),
        }
    }
    std::fs::remove_file(path("file")).unwrap();
}

fn a_name_and_its_arguments_arrive_as_they_were() {
    let server = crate::server()
        .fallback(|_, name, raw| {
            let args: Vec<Bytes> = raw.decode()?;
            RawValue::encode(&(name, args))
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let large = vec![7; 1 << 20];
    let lists: [Vec<&[u8]>; 6] = [
        vec![],
        vec![b""],
        vec![b"", b"", b"x", b""],
        vec![b"\0", b"a\0b", b"\xff\xfe"],
        vec![&large, b"behind"],
        vec![b"many"; 1000],
    ];
    for name in ["x", "a b", "a\0b", "\u{e9}\u{1F980}", "/route/a?b", "x\n"] {
        for list in &lists {
            let args: Vec<Bytes> = list.iter().map(|arg| Bytes::from(arg.to_vec())).collect();
            let (same, back): (String, Vec<Bytes>) = client.call(name, &args).unwrap();
            assert!(same == name && back == args, "{name}");
        }
    }
}

fn a_session_whose_beginning_fails_is_told_once() {
    struct Failing(u64);
    impl EventHandler for Failing {
        fn connected(&mut self, _: &mut Session) -> Result<(), Fault> {
            match self.0 % 3 {
                1 => panic!("not today"),
                2 => Err(Fault::new("nor tomorrow")),
                _ => Ok(()),
            }
        }
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            Ok(session.write(item)?)
        }
    }
    let (definition, trace) = Trace::of(|_| {
        let listener = Listener::at(path("s"));
        let make = |ctx: &mut forkserver::Context| Ok(Failing(ctx.session_id()));
        crate::server().listen(listener.handle_events(Lines::default, make))
    });
    let server = definition.start().unwrap();
    drop(definition);
    for works in [false, false, true] {
        let mut stream = UnixStream::connect(path("s")).unwrap();
        let _ = stream.write_all(b"x\n");
        let mut line = String::new();
        let _ = BufReader::new(stream).read_line(&mut line);
        assert_eq!(line == "x\n", works);
        becomes_empty(&server);
    }
    let told = trace.rest(server);
    let count = |what: &str| told.iter().filter(|line| line.contains(what)).count();
    let counts = ["panicked", "Unanswered", " connected", "disconnected"].map(count);
    assert_eq!(counts, [1, 1, 3, 3], "{told:?}");
}

fn a_server_starts_at_the_path_that_it_has_just_left() {
    let definition = waiting(echo()).listen(Listener::at(path("s")));
    for round in 0..20 {
        let server = definition.start().unwrap();
        let mut channel = open(Client::connect(server.address()).unwrap());
        match round % 2 {
            0 => {
                assert_eq!(server.stop().unwrap(), Exit::Code(0));
                let told: Option<String> = channel.recv().unwrap();
                assert_eq!(told.as_deref(), Some("the server is stopping"));
            }
            _ => {
                server.kill().unwrap();
                let err = channel.recv::<String>().unwrap_err();
                assert!(matches!(err, StreamError::Disconnected), "{err}");
            }
        }
    }
}

fn a_stream_that_is_refused_never_enters_its_handler() {
    let (definition, trace) = Trace::of(|notes| {
        let notes = Arc::clone(notes);
        let mut limits = Limits::default();
        limits.max_dedicated = 1;
        waiting(echo())
            .limits(limits)
            .listen(Listener::private())
            .listen(Listener::private().name("few").only(["echo"]))
            .handle_stream("noted", move |_, _: u8, _: Channel| {
                note(&notes, "entered");
                Ok(())
            })
    });
    let server = definition.start().unwrap();
    drop(definition);
    let connect = || server.connect().unwrap();
    connect().open("noted", "no number").unwrap_err();
    connect().open("notes", &1_u8).unwrap_err();
    connect().call::<_, ()>("noted", &1_u8).unwrap_err();
    let few = Client::connect(server.address_of("few").unwrap()).unwrap();
    few.open("noted", &1_u8).unwrap_err();
    let only = open(connect());
    let err = connect().open("noted", &1_u8).unwrap_err();
    assert!(matches!(err, CallError::Busy { .. }), "{err}");
    only.into_client().unwrap().open("noted", &1_u8).unwrap();
    let told = trace.rest(server);
    assert_eq!(told.iter().filter(|line| *line == "entered").count(), 1);
}

fn streams_are_counted_down_however_they_end() {
    let server = waiting(echo()).start().unwrap();
    for end in ["return", "fault", "panic", "drop", "finish", "give back"] {
        let mut channel = open(Client::connect(server.address()).unwrap());
        assert_eq!(server.status().unwrap().streams, 1, "{end}");
        match end {
            "drop" => drop(channel),
            "finish" => {
                channel.finish().unwrap();
                drop(channel);
            }
            "give back" => drop(channel.into_client().unwrap()),
            text => {
                channel.send(text).unwrap();
                assert_eq!(channel.recv::<String>().is_err(), text != "return");
                drop(channel);
            }
        }
        becomes_empty(&server);
    }
    // Whoever breaks the protocol, or breaks off within a frame.
    let broken = [
        frame(5, 0, 0, 1, b""),
        frame(8, 0, 0, 1, b"\x02hi")[..13].into(),
    ];
    for bytes in broken {
        let mut raw = Raw::connect(&server);
        raw.write(&[hello_frame(&server), frame(4, 0, 8, 1, b"\x04wait"), bytes].concat());
        raw.finish_writing();
        raw.read_to_end();
        becomes_empty(&server);
    }
    still_answers(&server);
}

fn a_stream_opened_while_its_listener_stops_is_refused_or_told() {
    let server = waiting(echo())
        .listen(Listener::at(path("s")))
        .start()
        .unwrap();
    let mut told = 0;
    for round in 0..60 {
        let address = server.address();
        let opening = || {
            let client = match Client::connect(address) {
                Ok(client) => client,
                Err(ConnectError::NotRunning { .. }) => return false,
                Err(err) => panic!("{err}"),
            };
            let mut channel = match client.open("wait", &()) {
                Ok(channel) => channel,
                Err(CallError::Stopping | CallError::Disconnected { .. }) => return false,
                Err(err) => panic!("{err}"),
            };
            for said in ["here", "the listener is stopping"] {
                assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some(said));
            }
            true
        };
        std::thread::scope(|scope| {
            let opening = scope.spawn(opening);
            (0..round * 20).for_each(|_| std::thread::yield_now());
            server.stop_listener("default").unwrap();
            told += usize::from(opening.join().unwrap());
        });
        server.start_listener("default").unwrap();
    }
    eprintln!("{told} of 60 were told");
    becomes_empty(&server);
}

fn stops_from_all_sides_are_one_stop() {
    let server = echo()
        .handle("stop", |ctx, (): ()| {
            // Within a call, it cannot wait for the end.
            ctx.control().stop();
            ctx.control().stop();
            Ok(())
        })
        .start()
        .unwrap();
    let place = server.address().path().to_owned();
    let mut clients: Vec<_> = (0..3).map(|_| server.connect().unwrap()).collect();
    clients
        .iter_mut()
        .for_each(|client| client.authenticate().unwrap());
    std::thread::scope(|scope| {
        let waiting = [0; 2].map(|_| {
            scope.spawn(|| {
                let exit = server.wait();
                assert!(!place.exists() && !server.is_running());
                exit
            })
        });
        let asking = clients
            .iter_mut()
            .map(|client| scope.spawn(|| client.call::<_, ()>("stop", &())));
        let asking: Vec<_> = asking.collect();
        let answers: Vec<_> = asking.into_iter().map(|one| one.join().unwrap()).collect();
        assert!(answers.iter().any(|answer| answer.is_ok()));
        for answer in answers {
            assert!(
                matches!(
                    answer,
                    Ok(()) | Err(CallError::Stopping | CallError::Disconnected { .. })
                ),
                "{answer:?}"
            );
        }
        let exits = waiting.map(|one| one.join().unwrap());
        assert_eq!(exits, [Exit::Code(0), Exit::Code(0)]);
    });
    assert_eq!(
        server.stop().unwrap(),
        Exit::Code(0),
        "there is nothing to do"
    );
}

fn a_finalize_that_panics_holds_up_nothing_behind_it() {
    let (definition, trace) = Trace::of(|_| {
        echo()
            .listen(Listener::at(path("s")))
            .finalize(|_| panic!("at last"))
    });
    let server = definition.start().unwrap();
    drop(definition);
    still_answers(&server);
    let told = trace.rest(server);
    assert_eq!(
        told.iter()
            .filter(|line| *line == "panicked finalize")
            .count(),
        1
    );
    assert_eq!(told.last().unwrap(), "panicked finalize");
    let server = echo().listen(Listener::at(path("s"))).start().unwrap();
    still_answers(&server);
}

fn a_stream_knows_no_idle_time_and_behind_it_time_counts_again() {
    let idle = Duration::from_millis(60);
    let server = waiting(echo()).limits(idle_after(idle)).start().unwrap();
    let mut channel = open(Client::connect(server.address()).unwrap());
    channel.set_timeout(Some(4 * idle));
    let err = channel.recv::<String>().unwrap_err();
    assert!(matches!(err, StreamError::TimedOut(_)), "{err}");
    channel.set_timeout(None);
    let begun = Instant::now();
    let mut client = channel.into_client().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    becomes_empty(&server);
    assert!(begun.elapsed() >= idle);
    let err = client.call::<_, String>("echo", "y").unwrap_err();
    assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
}

fn each_call_has_one_answer_whatever_becomes_of_it() {
    let server = waiting(echo())
        .handle("fault", |_, (): ()| Err::<(), _>(Fault::new("no")))
        .handle("panic", |_, (): ()| -> Result<(), Fault> { panic!("no") })
        .handle("large", |_, size: usize| Ok(Bytes::from(vec![0; size])))
        .start()
        .unwrap();
    let kinds: [(&str, &[u8]); 8] = [
        ("echo", b"\x01x"),
        ("fault", b""),
        ("panic", b""),
        ("unknown", b""),
        ("echo", b"\x09short"),
        ("echo", b"\x01xlong"),
        ("wait", b""),
        ("large", &[252, 0, 0, 4, 0]),
    ];
    let mut calls = Vec::new();
    for id in 1..=200_u32 {
        let (name, args) = kinds[id as usize % kinds.len()];
        calls.extend(call_frame(id, name, args));
    }
    let mut raw = Raw::connect(&server);
    let mut reader = raw.stream().try_clone().unwrap();
    // Neither side can take all of it while the other only writes.
    let reading = std::thread::spawn(move || {
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut reader, &mut said).unwrap();
        said
    });
    raw.write(&[hello_frame(&server), calls].concat());
    raw.finish_writing();
    let said = reading.join().unwrap();
    let (mut rest, mut answered) = (&said[24..], Vec::new());
    while !rest.is_empty() {
        assert!(matches!(rest[0], 5 | 6), "a reply or an error");
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        answered.push(number(4));
        rest = &rest[12 + number(8) as usize..];
    }
    assert_eq!(answered, (1..=200).collect::<Vec<_>>(), "in their order");
}
