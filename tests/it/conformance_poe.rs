//! What was asserted of POE's `Server::TCP`, or seen of it, as far as it makes sense here.
//!
//! * CP1: `sessions::an_acceptor_has_the_connection_from_its_first_byte`.
//! * CP2, CP9, CP33: `conformance_order::each_event_comes_in_its_place`, `sessions::callbacks_come_in_order_and_the_end_once`,
//!   `drain::a_stop_by_the_owner_is_seen_in_each_state`, `listeners::a_listener_is_told_as_stopped_behind_its_last_connection`.
//! * CP3: `events::a_connection_is_told_in_order`, `passenger::the_end_between_messages_is_none_and_within_one_an_error`.
//! * CP4: `sessions::what_is_malformed_ends_the_session_unless_its_handler_goes_on`, whose framing is its own.
//! * CP5: left out, types do that; what they cannot, `lifecycle::wrong_definitions_are_refused` does.
//! * CP6, CP7, CP16, CP28: `conformance_gate::no_more_than_the_limit_are_served_at_once_and_all_are`, `conformance_gate::who_is_let_in_is_what_the_model_says`.
//! * CP8, CP29: a permit is a value, so that it cannot be given back twice, or not at all; that the count comes back:
//!   `conformance_order::whoever_dies_at_any_stage_is_told_once_and_leaves_no_place_taken`.
//! * CP10: `events::a_connection_is_told_in_order` at a path of the server's choice, `listeners::*` at given ones.
//! * CP11: `lifecycle::hooks_run_in_order_and_share_their_state`, `calls::a_session_keeps_its_state`.
//! * CP12: left out, a listener has no events of its own that could be posted.
//! * CP13: [`a_server_that_had_nothing_to_complain_of_wrote_nothing`].
//! * CP14: [`what_is_queued_is_counted_to_the_byte`], `sessions::records_are_the_same_however_they_come`.
//! * CP15: `listeners::a_stop_behind_a_call_in_a_handler_is_obeyed`, `drain::a_stop_by_a_handler_is_seen_in_each_state`.
//! * CP17: [`whoever_connects_where_nobody_listens_learns_it_at_once`].
//! * CP18: `limits::watermarks_may_meet_and_not_cross`; that there are two of them is a matter of types.
//! * CP19: left out, handlers cannot be replaced while a session lives.
//! * CP20: `sessions::a_paused_session_receives_nothing_until_it_resumes`.
//! * CP21: the unit tests of `protocol::server::batch`, at random;
//!   `sessions::a_client_that_does_not_read_is_pressed_and_relieved`,
//!   `conformance_order::each_event_comes_in_its_place`. Left out: marks do not change while a server runs.
//! * CP22: left out, there is no driver to be had; what it would count is in CP14.
//! * CP23: [`each_record_is_read_by_the_framing_at_its_place`].
//! * CP24: `sessions::records_are_the_same_however_they_come`, `sessions::lines_are_answered_line_by_line`.
//! * CP25: left out, framings do not stack.
//! * CP26, CP27: `conformance_gate::who_is_let_in_is_what_the_model_says` (the rule alone: the unit tests of `gate`).
//! * CP30: `admit::a_refusal_is_seen_as_the_end_and_told_with_its_text`, `admit::the_count_is_right_whatever_the_hooks_do`,
//!   `sessions::a_handler_that_cannot_be_made_refuses_its_client`, `events::another_user_is_told_as_not_admitted`.
//! * CP31: [`a_start_that_fails_is_an_error_and_no_event`].
//! * CP32: `conformance_gate::a_full_table_is_not_told_without_end`, `events::a_full_descriptor_table_is_told_with_call_and_number`.
//! * CP34, CP35: [`ten_megabytes_arrive_before_the_end`], `sessions::a_closed_session_flushes_ten_megabytes_first`,
//!   `sessions::a_client_that_never_reads_is_cut_off_when_its_time_is_over`.
//! * CP36: [`a_client_that_breaks_off_while_it_is_answered_is_told_once`].
//! * CP37: [`behind_a_last_call_nothing_is_begun`], `sessions::behind_a_close_nothing_is_delivered`.
//! * CP38: `calls::frames_at_the_limit_pass_and_beyond_it_do_not`,
//!   `sessions::a_record_as_long_as_the_limit_passes_and_a_longer_one_ends_its_session_only`.
//! * CP39: `calls::a_thousand_panics_are_survived`, `sessions::a_panicking_callback_ends_its_session_only`.
//! * CP40: `closing::errors_keep_the_connection_otherwise`, [`who_goes_on_behind_errors_ends_with_its_client`].
//! * CP41: `sessions::two_clients_that_interleave_halves_of_records_do_not_mix`.
//! * CP42: `conformance_gate::a_thousand_connections_leave_no_descriptor`.

use crate::conformance_gate::Random;
use crate::conformance_order::{Notes, Trace, becomes_empty, note};
use crate::hostile::{Raw, call_frame, hello_frame, still_answers};
use crate::lifecycle::echo;
use crate::processes::{Helper, readable};
use forkserver::{
    Bytes, Client, ConnectError, Context, Ending, EventHandler, Fault, Found, Framing,
    FramingError, Item, LengthPrefixed, Lines, Listener, Server, Session, StartError,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

crate::tests![
    a_server_that_had_nothing_to_complain_of_wrote_nothing,
    what_is_queued_is_counted_to_the_byte,
    whoever_connects_where_nobody_listens_learns_it_at_once,
    each_record_is_read_by_the_framing_at_its_place,
    a_start_that_fails_is_an_error_and_no_event,
    ten_megabytes_arrive_before_the_end,
    a_client_that_breaks_off_while_it_is_answered_is_told_once,
    behind_a_last_call_nothing_is_begun,
    who_goes_on_behind_errors_ends_with_its_client,
];

/// What stands for "at once" on a machine with much else to do.
pub const SOON: Duration = Duration::from_secs(5);

pub fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(name)
}

/// Answers each record with itself.
pub struct Echo;

impl EventHandler for Echo {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        Ok(session.write(item)?)
    }
}

fn a_server_that_had_nothing_to_complain_of_wrote_nothing() {
    let (file, told) = (path("stderr"), path("told"));
    Helper::start(|_| {
        let stderr = std::fs::File::create(&file).unwrap();
        nix::unistd::dup2_stderr(&stderr).unwrap();
        for listener in [Listener::private(), Listener::at(path("s"))] {
            let server = echo().listen(listener).start().unwrap();
            let mut client = server.connect().unwrap();
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
            server.stop().unwrap();
        }
        std::fs::write(&told, "through").unwrap();
    })
    .finish();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "through");
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(told).unwrap();
}

fn what_is_queued_is_counted_to_the_byte() {
    struct Counting;
    impl EventHandler for Counting {
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            let mut counts = vec![session.queued()];
            for _ in 0..3 {
                session.write(&item)?;
                counts.push(session.queued());
            }
            assert_eq!(
                counts,
                [0, 1, 2, 3].map(|n| n * (item.as_slice().len() + 1))
            );
            Ok(())
        }
        fn flushed(&mut self, session: &mut Session) -> Result<(), Fault> {
            assert_eq!(session.queued(), 0);
            session.close();
            Ok(())
        }
    }
    let listener = Listener::at(path("s")).handle_events(Lines::default, |_| Ok(Counting));
    let _server = crate::server().listen(listener).start().unwrap();
    for text in ["", "x", "eighteen long text"] {
        let mut stream = UnixStream::connect(path("s")).unwrap();
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, format!("{text}\n").repeat(3));
    }
}

fn whoever_connects_where_nobody_listens_learns_it_at_once() {
    let server = echo().listen(Listener::at(path("s"))).start().unwrap();
    let address = server.address().clone();
    server.stop().unwrap();
    // First there is nothing, and then a socket that nobody serves.
    for is_stale in [false, true] {
        if is_stale {
            drop(std::os::unix::net::UnixListener::bind(path("s")).unwrap());
        }
        let begun = Instant::now();
        let err = Client::connect(&address).unwrap_err();
        assert!(
            matches!(&err, ConnectError::NotRunning { path: named } if *named == path("s")),
            "{err}"
        );
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    std::fs::remove_file(path("s")).unwrap();
}

/// Numbers in decimal, a colon, so many bytes, a comma.
struct Netstrings;

impl Framing for Netstrings {
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError> {
        let Some(colon) = received.iter().position(|byte| *byte == b':') else {
            return Ok(Found::Partial);
        };
        let number = std::str::from_utf8(&received[..colon]).ok();
        let Some(size) = number.and_then(|text| text.parse::<usize>().ok()) else {
            let reason = "no number".into();
            return Err(FramingError::Malformed { reason, skip: 0 });
        };
        let end = colon + 1 + size;
        match received.len() > end {
            false => Ok(Found::Partial),
            true => Ok(Found::Record {
                content: colon + 1..end,
                len: end + 1,
            }),
        }
    }
    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        write!(out, "{}:", record.len()).expect("memory");
        out.extend_from_slice(record);
        out.push(b',');
        Ok(())
    }
}

fn framing(number: usize) -> Box<dyn Framing> {
    match number {
        0 => Box::new(Lines::default()),
        1 => Box::new(LengthPrefixed::new(1000)),
        _ => Box::new(Netstrings),
    }
}

/// A record says which framing comes behind it; it is answered in the old one.
struct Switching;

impl EventHandler for Switching {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        session.write(&item)?;
        match item.as_slice()[0] {
            b'0' => session.set_framing(Lines::default()),
            b'1' => session.set_framing(LengthPrefixed::new(1000)),
            _ => session.set_framing(Netstrings),
        }
        Ok(())
    }
}

fn each_record_is_read_by_the_framing_at_its_place() {
    let listener = Listener::at(path("s")).handle_events(Lines::default, |_| Ok(Switching));
    let _server = crate::server().listen(listener).start().unwrap();
    let mut random = Random(1);
    let (mut current, mut sent) = (0, Vec::new());
    // Enough for all nine pairs to come many times.
    for _ in 0..150 {
        let next = random.below(3);
        // A line must not have a line's end inside; the others' signs may stand in any.
        let filler = ["", ",", "1:", "\r-", "\0\0\0\x07"][random.below(5)];
        let record = format!("{next}{filler}");
        framing(current)
            .write(record.as_bytes(), &mut sent)
            .unwrap();
        current = next;
    }
    for step in [sent.len(), 7, 1] {
        let mut stream = UnixStream::connect(path("s")).unwrap();
        let mut writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let pieces = sent.chunks(step);
                pieces.for_each(|piece| writer.write_all(piece).unwrap());
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).unwrap();
            assert!(seen == sent, "in pieces of {step}");
        });
    }
}

fn a_start_that_fails_is_an_error_and_no_event() {
    let _live = echo().listen(Listener::at(path("s"))).start().unwrap();
    let (definition, trace) = Trace::of(|_| {
        echo()
            .listen(Listener::private().name("other"))
            .listen(Listener::at(path("s")))
    });
    let err = definition.start().unwrap_err();
    assert!(
        matches!(&err, StartError::AddressInUse { path: named, .. } if *named == path("s")),
        "{err}"
    );
    drop(definition);
    assert_eq!(trace.all(), [] as [String; 0]);
}

/// Ten million bytes, as a number in the codec's words.
const TEN_MILLION: &[u8] = &[252, 0x80, 0x96, 0x98, 0];

/// A traced server of large answers.
fn large() -> (Server, Trace) {
    Trace::of(|notes| {
        let (notes, large) = (Arc::clone(notes), Arc::clone(notes));
        crate::server()
            .handle("echo", move |_, text: String| {
                note(&notes, &text);
                Ok(text)
            })
            .handle("large", move |_, size: usize| {
                note(&large, "large");
                Ok(Bytes::from(vec![7; size]))
            })
    })
}

fn ten_megabytes_arrive_before_the_end() {
    let (definition, mut trace) = large();
    let server = definition.start().unwrap();
    trace.expect(&["started"]);
    // One says that nothing follows, the other by half-closing; and one by both.
    for (number, (flags, finishes)) in (1..).zip([(4, false), (0, true), (4, true)]) {
        let mut raw = Raw::connect(&server);
        let mut call = call_frame(1, "large", TEN_MILLION);
        call[2] = flags;
        raw.write(&[hello_frame(&server), call].concat());
        if finishes {
            raw.finish_writing();
        }
        let said = raw.read_to_end();
        // The welcome; the answer's header, hash and length.
        assert_eq!(said.len(), 24 + 12 + 8 + 5 + 10_000_000);
        trace.expect(&[&format!("{number} connected"), "large"]);
        let end = format!("{number} disconnected: the client has finished");
        let told: Vec<_> = std::iter::from_fn(|| trace.next())
            .take_while(|line| *line != end)
            .collect();
        let marks = ["high", "low", "flushed"].map(|what| format!("{number} {what}"));
        assert_eq!(told, marks);
    }
    becomes_empty(&server);
}

fn a_client_that_breaks_off_while_it_is_answered_is_told_once() {
    let (definition, trace) = large();
    let server = definition.start().unwrap();
    drop(definition);
    for _ in 0..10 {
        let mut raw = Raw::connect(&server);
        raw.write(&[hello_frame(&server), call_frame(1, "large", TEN_MILLION)].concat());
        assert!(readable(raw.stream(), SOON));
    }
    still_answers(&server);
    becomes_empty(&server);
    let told = trace.rest(server);
    let count = |what: &str| told.iter().filter(|line| line.contains(what)).count();
    assert_eq!((count("disconnected"), count("connected")), (11, 22));
    assert_eq!(count("panicked"), 0, "{told:?}");
    assert!(count("failed") <= 10, "{told:?}");
}

fn behind_a_last_call_nothing_is_begun() {
    let (definition, trace) = large();
    let server = definition.start().unwrap();
    drop(definition);
    let mut raw = Raw::connect(&server);
    let mut last = call_frame(1, "echo", b"\x04last");
    last[2] = 4;
    let behind = call_frame(2, "echo", b"\x06behind");
    raw.write(&[hello_frame(&server), last, behind].concat());
    let said = raw.read_to_end();
    assert!(said.ends_with(b"\x04last"), "{said:?}");
    becomes_empty(&server);
    let told = trace.rest(server);
    assert!(!told.iter().any(|line| line == "behind"), "{told:?}");
}

/// Finds every record wrong, goes on, and notes its end.
struct Forgiving(Notes);

impl EventHandler for Forgiving {
    fn received(&mut self, _: &mut Session, _: Item) -> Result<(), Fault> {
        Ok(())
    }
    fn malformed(&mut self, _: &mut Session, _: &FramingError) -> bool {
        note(&self.0, "malformed");
        true
    }
    fn disconnected(&mut self, _: &mut Context, reason: &Ending) {
        note(&self.0, &reason.to_string());
    }
}

struct Nonsense;

impl Framing for Nonsense {
    fn find(&mut self, _: &[u8]) -> Result<Found, FramingError> {
        let reason = "all of it".into();
        Err(FramingError::Malformed { reason, skip: 1 })
    }
    fn write(&mut self, _: &[u8], _: &mut Vec<u8>) -> Result<(), FramingError> {
        Ok(())
    }
}

fn who_goes_on_behind_errors_ends_with_its_client() {
    let (definition, mut trace) = Trace::of(|notes| {
        let notes = Arc::clone(notes);
        let make = move |_: &mut Context| Ok(Forgiving(Arc::clone(&notes)));
        let listener = Listener::at(path("s")).handle_events(|| Nonsense, make);
        crate::server().listen(listener)
    });
    let server = definition.start().unwrap();
    trace.expect(&["started"]);
    for number in 1..=3 {
        let mut stream = UnixStream::connect(path("s")).unwrap();
        stream.write_all(b"ab").unwrap();
        drop(stream);
        let told = |what: &str| format!("{number} {what}");
        let end = "the client has finished";
        trace.expect(&[&told("connected"), "malformed", "malformed", end]);
        trace.expect(&[&told(&format!("disconnected: {end}"))]);
    }
    becomes_empty(&server);
}
