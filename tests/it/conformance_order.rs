//! What becomes of connections: in which order, how often, and who gets what was read already. The order is that of the
//! catalogue of hooks; the conflicts X1 to X23 between the servers that were studied are resolved as listed here.
//!
//! * X1, one thread or several: every test of `with_both_engines`.
//! * X2, how long a connection lives: `calls::the_last_call_of_a_client_closes_the_connection`,
//!   `closing::as_many_calls_are_answered_as_the_limit_and_not_one_more`, and kept otherwise.
//! * X3, X4, the limit and those beyond it: `conformance_gate`.
//! * X5, a deadline for each state: `abuse::each_kind_of_delay_ends_at_its_own_deadline`.
//! * X6, a stop has an end: `drain::a_stop_by_the_owner_cuts_off_what_is_not_finished_in_time`.
//! * X7, half-close: `conformance_poe::ten_megabytes_arrive_before_the_end`, `calls::a_half_closed_client_gets_its_answer`.
//! * X8, what ends a call and what ends a connection: [`each_event_comes_in_its_place`],
//!   `hostile::garbage_ends_the_connection_and_nothing_else`, `closing::any_error_closes_the_connection_if_that_is_wanted`.
//! * X9, errors of accept: `events::a_full_descriptor_table_is_told_with_call_and_number`,
//!   `engine::a_full_descriptor_table_costs_no_time_and_ends`, `conformance_gate::a_full_table_is_not_told_without_end`.
//! * X10, who may take the connection: `sessions::an_acceptor_has_the_connection_from_its_first_byte`,
//!   `streams::items_go_both_ways_and_the_client_comes_back`.
//! * X11, X22, bytes and descriptors that were read before: [`what_was_read_before_a_stream_began_is_the_streams`],
//!   [`answers_keep_their_descriptors_when_they_leave_together`].
//! * X12, watermarks: [`each_event_comes_in_its_place`], `sessions::a_client_that_does_not_read_is_pressed_and_relieved`,
//!   `sessions::a_client_that_never_reads_is_cut_off_at_the_hard_cap`, `limits::watermarks_may_meet_and_not_cross`.
//! * X13, the order of hooks, and that they come once: [`each_event_comes_in_its_place`],
//!   [`whoever_dies_at_any_stage_is_told_once_and_leaves_no_place_taken`].
//! * X14, names: `conformance_tanzer::names_match_to_the_last_byte_or_not_at_all`.
//! * X15, where state lives: `lifecycle::hooks_run_in_order_and_share_their_state`, `calls::a_session_keeps_its_state`.
//! * X16, how far a stop reaches: `listeners::streams_of_a_stopped_listener_are_told_and_others_are_not`.
//! * X17, the socket's file: `sockets::what_is_not_ours_is_not_removed`, `sockets::a_dead_servers_socket_is_replaced`.
//! * X18, what is asked for in a callback holds before the next record: `sessions::behind_a_close_nothing_is_delivered`.
//! * X19, panics: `events::panics_are_told_wherever_they_happen`.
//! * X20, errors of the start: `lifecycle::an_error_in_initialize_is_the_starts`,
//!   `conformance_poe::a_start_that_fails_is_an_error_and_no_event`.
//! * X21, the password is shown once for each connection: `auth::only_the_right_password_opens`.
//! * X23, contradictory definitions: `lifecycle::wrong_definitions_are_refused`,
//!   `listeners::definitions_that_contradict_themselves_are_refused`, `limits::watermarks_may_meet_and_not_cross`.

use crate::hostile::{Raw, call_frame, frame, hello_frame, still_answers};
use crate::processes::Helper;
use forkserver::{
    Bytes, Channel, Client, Event, EventHandler, Fault, Fd, Item, Listener, Server, ServerHandle,
    Session,
};
use nix::sys::signal::{Signal, kill};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Lines, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

crate::tests![
    each_event_comes_in_its_place,
    whoever_dies_at_any_stage_is_told_once_and_leaves_no_place_taken,
    what_was_read_before_a_stream_began_is_the_streams,
    answers_keep_their_descriptors_when_they_leave_together,
];

/// What has happened, a line each.
pub struct Trace(Lines<BufReader<PipeReader>>);

/// Where a handler of the test notes that it runs, among the events.
pub type Notes = Arc<PipeWriter>;

impl Trace {
    /// A definition whose events are traced. Whoever defines it may note more.
    pub fn of(define: impl FnOnce(&Notes) -> Server) -> (Server, Trace) {
        let (reader, writer) = std::io::pipe().unwrap();
        let notes = Arc::new(writer);
        let server = define(&notes).keep_fd(&*notes);
        let server = server.observe(move |event| note(&notes, &line(event)));
        (server, Trace(BufReader::new(reader).lines()))
    }

    pub fn next(&mut self) -> Option<String> {
        self.0.next().map(Result::unwrap)
    }

    pub fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            assert_eq!(self.next().as_deref(), Some(*expected));
        }
    }

    /// What is left when the server has stopped.
    pub fn rest(self, server: ServerHandle) -> Vec<String> {
        server.stop().unwrap();
        self.all()
    }

    /// Up to the end, when nobody is left who could tell anything.
    pub fn all(self) -> Vec<String> {
        self.0.map(Result::unwrap).collect()
    }
}

pub fn note(notes: &Notes, text: &str) {
    (&**notes)
        .write_all(format!("{text}\n").as_bytes())
        .unwrap();
}

fn line(event: &Event) -> String {
    match event {
        Event::ListenerStarted { .. } => "started".into(),
        Event::ListenerStopped { .. } => "stopped".into(),
        Event::Connected { session, .. } => format!("{session} connected"),
        Event::Refused { reason, .. } => format!("refused {reason:?}"),
        Event::Flushed { session } => format!("{session} flushed"),
        Event::HighWatermark { session, .. } => format!("{session} high"),
        Event::LowWatermark { session, .. } => format!("{session} low"),
        Event::StreamOpened { session } => format!("{session} opened"),
        Event::StreamClosed { session } => format!("{session} closed"),
        Event::Disconnected {
            session, reason, ..
        } => format!("{session} disconnected: {reason}"),
        Event::Paused { reason, .. } => format!("paused {reason:?}"),
        Event::Resumed { .. } => "resumed".into(),
        Event::Failed { call, .. } => format!("failed {call}"),
        Event::Panicked { what, .. } => format!("panicked {what}"),
        other => format!("{other:?}"),
    }
}

/// Until nobody is served any more.
pub fn becomes_empty(server: &ServerHandle) {
    let begun = Instant::now();
    loop {
        let status = server.status().unwrap();
        let of_listeners: usize = status.listeners.iter().map(|one| one.connections).sum();
        if status.connections + status.streams + of_listeners == 0 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{status:?}");
        std::thread::yield_now();
    }
}

fn each_event_comes_in_its_place() {
    const LARGE: usize = 4 << 20;
    let (definition, mut trace) = Trace::of(|notes| {
        let define = |server: Server, name: &'static str, size: usize| {
            let notes = Arc::clone(notes);
            server.handle(name, move |ctx, panics: bool| {
                note(&notes, name);
                let notes = Arc::clone(&notes);
                ctx.defer(move || note(&notes, "deferred"));
                match panics {
                    true => panic!("as asked"),
                    false => Ok(Bytes::from(vec![0; size])),
                }
            })
        };
        let admitting = Arc::clone(notes);
        define(define(crate::server(), "small", 1), "large", LARGE).admit(move |_| {
            note(&admitting, "admitted");
            Ok(())
        })
    });
    let server = definition.start().unwrap();
    drop(definition);
    trace.expect(&["started"]);
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, Bytes>("small", &false).unwrap();
    trace.expect(&["admitted", "1 connected", "small", "1 flushed", "deferred"]);
    for _ in 0..2 {
        let large = client.begin::<_, Bytes>("large", &false).unwrap();
        client.flush().unwrap();
        trace.expect(&["large", "1 high"]);
        assert_eq!(client.finish(large).unwrap().len(), LARGE);
        trace.expect(&["1 low", "1 flushed", "deferred"]);
    }
    client.call::<_, Bytes>("small", &true).unwrap_err();
    trace.expect(&["small", "panicked small", "1 flushed", "deferred"]);
    drop(client);
    trace.expect(&["1 disconnected: the client has finished"]);
    // What the client does wrong comes behind its calls, and the end behind that, once.
    let mut raw = Raw::connect(&server);
    let call = call_frame(1, "small", b"\0");
    raw.write(&[hello_frame(&server), call, vec![0; 12]].concat());
    raw.read_to_end();
    trace.expect(&["admitted", "2 connected", "small"]);
    let told: Vec<_> = std::iter::from_fn(|| trace.next())
        .take_while(|line| !line.starts_with("2 disconnected: "))
        .collect();
    assert_eq!(told.iter().filter(|line| *line == "deferred").count(), 1);
    assert!(
        told.iter()
            .all(|line| line == "deferred" || line == "2 flushed")
    );
    let mut rest = trace.rest(server);
    rest.sort();
    assert_eq!(rest, ["paused Stopping", "stopped"]);
}

/// Goes one way of many, and says no good-bye.
fn die(server: &ServerHandle, stage: usize) -> Option<Raw> {
    let mut raw = Raw::connect(server);
    let hello = hello_frame(server);
    let echo = call_frame(1, "echo", b"\x01x");
    // 1 MiB, as a number in the codec's words.
    let large = call_frame(2, "large", &[252, 0, 0, 16, 0]);
    let open = frame(4, 0, 8, 3, b"\x05items");
    match stage % 13 {
        0 => {}
        1 => raw.write(&hello[..hello.len() / 2]),
        2 => raw.write(&hello),
        3 => raw.write(&[hello, echo].concat()),
        4 => raw.write(&[&hello[..], &echo, &echo[..7]].concat()),
        5 => raw.write(&[hello, large].concat()),
        6 => {
            raw.write(&[hello, large].concat());
            raw.stream().read_exact(&mut [0; 5000]).unwrap();
        }
        7 => raw.write(&[hello, open].concat()),
        8 => {
            raw.write(&[&hello[..], &open, &frame(8, 0, 0, 3, b"\x02hi")[..13]].concat());
            raw.stream().read_exact(&mut [0; 36]).unwrap();
        }
        9 => raw.write(&[hello, vec![0; 12]].concat()),
        10 => raw.write(&[hello, echo.repeat(20), large].concat()),
        11 => raw.write(&crate::hostile::hello(&[7; 32])),
        _ => {
            raw.write(&[hello, echo].concat());
            raw.finish_writing();
            raw.read_to_end();
        }
    }
    // Some live a little longer.
    (stage % 3 == 0).then_some(raw)
}

fn whoever_dies_at_any_stage_is_told_once_and_leaves_no_place_taken() {
    const CLIENTS: usize = 130;
    let (definition, trace) = Trace::of(|_| {
        crate::server()
            .handle("echo", |_, text: String| Ok(text))
            .handle("large", |_, size: usize| Ok(Bytes::from(vec![0; size])))
            .handle_stream("items", |_, (): (), mut channel: Channel| {
                while let Some(item) = channel.recv::<String>()? {
                    channel.send(&item)?;
                }
                Ok(())
            })
    });
    let server = definition.start().unwrap();
    drop(definition);
    let telling = std::thread::spawn(move || trace.0.map(Result::unwrap).collect::<Vec<_>>());
    // Two processes are killed with what they have open, while a third one closes.
    let mut killed: Vec<_> = (0..2)
        .map(|_| {
            Helper::start(|test| {
                let _open: Vec<_> = (0..CLIENTS).map(|stage| die(&server, stage)).collect();
                test.say("open");
                test.wait();
            })
        })
        .collect();
    for stage in 0..CLIENTS {
        drop(die(&server, stage));
    }
    killed
        .iter_mut()
        .for_each(|helper| assert_eq!(helper.hear(), "open"));
    killed.into_iter().for_each(Helper::kill);
    still_answers(&server);
    becomes_empty(&server);
    let accepted = server.status().unwrap().accepted as usize;
    assert_eq!(accepted, 3 * CLIENTS + 1);
    server.stop().unwrap();
    let told = telling.join().unwrap();
    let refused = told.iter().filter(|line| line.starts_with("refused"));
    let mut connected: HashMap<&str, usize> = HashMap::new();
    for (session, what) in told.iter().filter_map(|line| line.split_once(' ')) {
        match what.split(':').next().unwrap() {
            "connected" => assert_eq!(connected.insert(session, 0), None, "{session}"),
            "disconnected" => *connected.get_mut(session).unwrap() += 1,
            // Between the two.
            "flushed" | "high" | "low" | "opened" | "closed" => {
                assert_eq!(connected.get(session), Some(&0), "{session} {what}");
            }
            _ => {}
        }
    }
    assert_eq!(refused.count() + connected.len(), accepted);
    assert!(connected.values().all(|ends| *ends == 1), "{connected:?}");
}

/// The same for a stream that is served by callbacks.
struct ByCallbacks(Option<String>);

impl EventHandler for ByCallbacks {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        match self.0.take() {
            None => self.0 = Some(item.decode()?),
            Some(first) => {
                let text = first + &read(item.decode()?)?;
                session.send(&text)?;
                session.close();
            }
        }
        Ok(())
    }
}

fn read(fd: Fd) -> Result<String, Fault> {
    let mut text = String::new();
    std::fs::File::from(fd.into_owned()?).read_to_string(&mut text)?;
    Ok(text)
}

/// A descriptor that can be read as text.
fn readable_as(text: &str) -> std::io::Result<Fd> {
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(text.as_bytes())?;
    Ok(Fd::from(OwnedFd::from(reader)))
}

fn what_was_read_before_a_stream_began_is_the_streams() {
    let server = crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .handle_stream("thread", |_, (): (), mut channel: Channel| {
            let first: Option<String> = channel.recv()?;
            let second: Option<Fd> = channel.recv()?;
            channel.send(&(first.unwrap_or_default() + &read(second.expect("sent"))?))?;
            Ok(())
        })
        .handle_events("events", |_, (): ()| Ok(ByCallbacks(None)))
        .start()
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(server.pid() as i32);
    for name in ["\x06thread", "\x06events"] {
        let raw = Raw::welcomed(&server);
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b" and second").unwrap();
        drop(writer);
        // While the server is stopped, all of it comes together.
        kill(pid, Signal::SIGSTOP).unwrap();
        let without = [
            call_frame(1, "echo", b"\x06before"),
            frame(4, 0, 8, 2, name.as_bytes()),
            frame(8, 0, 0, 2, b"\x05first"),
        ];
        raw.stream().write_all(&without.concat()).unwrap();
        let with = [
            frame(8, 1, 0, 2, b"\0"),
            frame(9, 0, 0, 2, b""),
            call_frame(3, "echo", b"\x06behind"),
        ];
        send_with(&raw, &with.concat(), &reader);
        kill(pid, Signal::SIGCONT).unwrap();
        raw.stream().shutdown(std::net::Shutdown::Write).unwrap();
        let mut raw = raw;
        let said = raw.read_to_end();
        let place = |text: &[u8]| said.windows(text.len()).position(|part| part == text);
        let places = [&b"\x06before"[..], b"\x10first and second", b"\x06behind"].map(place);
        assert!(
            places.is_sorted() && places[0].is_some(),
            "{name}: {said:?}"
        );
    }
    becomes_empty(&server);
}

fn send_with(raw: &Raw, bytes: &[u8], fd: &impl AsRawFd) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let bytes = [std::io::IoSlice::new(bytes)];
    let number = raw.stream().as_raw_fd();
    sendmsg::<()>(number, &bytes, &rights, MsgFlags::empty(), None).unwrap();
}

fn answers_keep_their_descriptors_when_they_leave_together() {
    const FILLER: usize = 20_000;
    let server = crate::server()
        .listen(Listener::private())
        .handle("open", |_, number: u32| {
            let fds = (0..number % 4).map(|n| readable_as(&format!("{number} {n}")));
            let fds: Vec<Fd> = fds.collect::<Result<_, _>>()?;
            Ok((Bytes::from(vec![number as u8; FILLER]), fds))
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let pending: Vec<_> = (0..60_u32)
        .map(|number| {
            client
                .begin::<_, (Bytes, Vec<Fd>)>("open", &number)
                .unwrap()
        })
        .collect();
    for (number, pending) in (0_u32..).zip(pending) {
        let (bytes, fds) = client.finish(pending).unwrap();
        assert!(bytes.iter().all(|byte| *byte == number as u8));
        assert_eq!((bytes.len(), fds.len()), (FILLER, number as usize % 4));
        for (n, fd) in fds.into_iter().enumerate() {
            assert_eq!(read(fd).unwrap(), format!("{number} {n}"));
        }
    }
}
