//! What was asserted of tänzer, or seen of it, as far as it makes sense here.
//!
//! * CT1 to CT4: left out, there are no headers.
//! * CT5: left out, types do that.
//! * CT6: `hostile::a_silent_client_is_closed_at_the_deadline`, `abuse::each_kind_of_delay_ends_at_its_own_deadline`.
//! * CT7, CT11: `hostile::a_slow_client_is_closed_at_the_deadline`, `hostile::half_a_frame_is_closed_at_the_deadline`.
//! * CT8: [`the_idle_time_begins_anew_behind_each_answer`].
//! * CT9, CT10: [`a_handler_may_take_longer_than_any_deadline`].
//! * CT12, CT17: `conformance_qore::each_call_has_one_answer_whatever_becomes_of_it`; a second answer is a matter of types.
//! * CT13 to CT15: [`calls_are_the_same_wherever_they_are_cut`], and the unit test `every_fragmentation_gives_the_same_answers` of
//!   `protocol`.
//! * CT16: `calls::an_unknown_name_is_answered_with_the_nearest`, `calls::a_fault_carries_code_message_and_causes`; behind the
//!   answer, `events::panics_are_told_wherever_they_happen`. What a handler says is told, other than there: its caller is the owner.
//! * CT18: `hostile::garbage_ends_the_connection_and_nothing_else`, `hostile::a_huge_length_costs_nothing`,
//!   `auth::another_version_or_codec_is_refused`.
//! * CT19: [`an_end_within_a_frame_hurts_nobody_and_is_told`].
//! * CT20: [`what_was_put_off_is_done_once_whatever_happens`], `calls::deferred_tasks_run_after_the_answer_in_order`. Left out: taking
//!   back what was put off.
//! * CT21: left out, a call does not change its handler; `calls::a_fallback_answers_every_other_name`.
//! * CT22: `calls::a_session_keeps_its_state`; what belongs to a call is its handler's own.
//! * CT23: [`names_match_to_the_last_byte_or_not_at_all`].
//! * CT24: `streams::items_go_both_ways_and_the_client_comes_back`.
//! * CT25: the harness looks behind each test; `drain::a_dropped_handle_is_seen_in_each_state`.
//! * CT26: `events::an_observer_that_panics_hurts_nobody`.
//! * CT27: `calls::bytes_of_every_size_come_back`.

use crate::conformance_order::{Trace, becomes_empty, note};
use crate::hostile::{Raw, call_frame, hello_frame, still_answers};
use crate::lifecycle::echo;
use crate::processes::readable;
use forkserver::{Bytes, CallError, Client, Fault, Limits};
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

crate::tests![
    the_idle_time_begins_anew_behind_each_answer,
    a_handler_may_take_longer_than_any_deadline,
    calls_are_the_same_wherever_they_are_cut,
    an_end_within_a_frame_hurts_nobody_and_is_told,
    what_was_put_off_is_done_once_whatever_happens,
    names_match_to_the_last_byte_or_not_at_all,
];

fn the_idle_time_begins_anew_behind_each_answer() {
    let idle = Duration::from_millis(200);
    let mut limits = Limits::default();
    limits.idle_timeout = Some(idle);
    let server = echo().limits(limits).start().unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&hello_frame(&server));
    let begun = Instant::now();
    let mut since = begun;
    for id in 1..=6 {
        // The answer itself has 22 bytes, and a welcome of 24 comes with the first.
        raw.write(&call_frame(id, "echo", b"\x01x"));
        let len = if id == 1 { 24 + 22 } else { 22 };
        let mut stream = raw.stream();
        stream.read_exact(&mut vec![0; len]).unwrap();
        since = Instant::now();
        if id < 6 {
            let is_late = begun.elapsed() > idle * (id + 1) / 2;
            assert!(is_late || !readable(raw.stream(), idle / 4), "too early");
        }
    }
    assert!(
        begun.elapsed() > idle,
        "it was longer there than it may be idle"
    );
    assert_eq!(raw.read_to_end(), b"");
    let took = since.elapsed();
    assert!(
        took >= idle - Duration::from_millis(10) && took < 10 * idle,
        "{took:?}"
    );
}

fn a_handler_may_take_longer_than_any_deadline() {
    let deadline = Duration::from_millis(50);
    let mut limits = Limits::default();
    limits.auth_timeout = deadline;
    limits.frame_timeout = deadline;
    limits.write_timeout = deadline;
    limits.idle_timeout = Some(deadline);
    let server = echo()
        .limits(limits)
        .handle("slow", |_, (): ()| {
            let (silent, _end) = std::io::pipe()?;
            Ok(readable(&silent, Duration::from_millis(150)))
        })
        .start()
        .unwrap();
    let slow = |id| call_frame(id, "slow", b"");
    let mut raw = Raw::connect(&server);
    let batch = [
        hello_frame(&server),
        slow(1),
        call_frame(2, "echo", b"\x01x"),
        slow(3),
        slow(4),
        call_frame(5, "echo", b"\x05after"),
    ];
    raw.write(&batch.concat());
    let said = raw.read_to_end();
    assert!(said.ends_with(b"\x05after"), "{said:?}");
    let mut client = Client::connect(server.address()).unwrap();
    assert!(!client.call::<_, bool>("slow", &()).unwrap());
}

fn calls_are_the_same_wherever_they_are_cut() {
    let server = echo()
        .handle("length", |_, bytes: Bytes| Ok(bytes.len()))
        .start()
        .unwrap();
    let calls = [
        call_frame(1, "echo", b"\x05first"),
        call_frame(2, "length", b"\x05hello"),
        call_frame(3, "echo", b"\x04last"),
    ]
    .concat();
    let answer = |cut: usize| {
        let mut raw = Raw::connect(&server);
        raw.write(&[&hello_frame(&server)[..], &calls[..cut]].concat());
        // It has been read when the first answer is there, or else may be.
        let first = call_frame(1, "echo", b"\x05first").len();
        if cut >= first && cut < calls.len() {
            assert!(readable(raw.stream(), Duration::from_secs(5)));
        } else {
            std::thread::yield_now();
        }
        raw.write(&calls[cut..]);
        raw.finish_writing();
        raw.read_to_end()
    };
    let whole = answer(calls.len());
    assert!(whole.ends_with(b"\x04last"));
    for cut in 0..calls.len() {
        assert_eq!(answer(cut), whole, "cut at {cut}");
    }
}

fn an_end_within_a_frame_hurts_nobody_and_is_told() {
    let (definition, mut trace) = Trace::of(|_| echo());
    let server = definition.start().unwrap();
    trace.expect(&["started"]);
    let call = call_frame(1, "echo", b"\x01x");
    for (number, cut) in (1..).zip(1..call.len()) {
        let mut raw = Raw::connect(&server);
        raw.write(&[&hello_frame(&server)[..], &call, &call[..cut]].concat());
        raw.finish_writing();
        assert_eq!(raw.read_to_end().len(), 24 + 22, "the first is answered");
        let told = |what: &str| format!("{number} {what}");
        trace.expect(&[&told("connected"), &told("flushed")]);
        let end = trace.next().unwrap();
        assert_eq!(
            end,
            told("disconnected: the connection broke"),
            "cut at {cut}"
        );
    }
    still_answers(&server);
    becomes_empty(&server);
}

fn what_was_put_off_is_done_once_whatever_happens() {
    let (definition, mut trace) = Trace::of(|notes| {
        let notes = Arc::clone(notes);
        crate::server().handle("later", move |ctx, how: String| {
            for number in 1..=3 {
                let notes = Arc::clone(&notes);
                ctx.defer(move || note(&notes, &format!("task {number}")));
            }
            match how.as_str() {
                "panic" => panic!("as asked"),
                "fault" => Err(Fault::new("as asked")),
                "large" => Ok(Bytes::from(vec![0; 4 << 20])),
                _ => Ok(Bytes::from(vec![])),
            }
        })
    });
    let server = definition.start().unwrap();
    drop(definition);
    for how in ["", "fault", "panic"] {
        let mut client = server.connect().unwrap();
        let answer = client.call::<_, Bytes>("later", how);
        assert_eq!(answer.is_ok(), how.is_empty());
    }
    // Nobody takes this answer.
    let mut raw = Raw::connect(&server);
    raw.write(&[hello_frame(&server), call_frame(1, "later", b"\x05large")].concat());
    assert!(readable(raw.stream(), Duration::from_secs(5)));
    drop(raw);
    let tasks = std::iter::from_fn(|| trace.next()).filter(|line| line.starts_with("task"));
    let told: Vec<_> = tasks.take(4 * 3).collect();
    assert_eq!(told, ["task 1", "task 2", "task 3"].repeat(4));
    becomes_empty(&server);
    let left = trace.rest(server);
    assert!(
        !left.iter().any(|line| line.starts_with("task")),
        "{left:?}"
    );
}

fn names_match_to_the_last_byte_or_not_at_all() {
    let names = ["get", "get.a", "GET", "gets", ".get", "get|post"];
    let mut definition = crate::server();
    for name in names {
        definition = definition.handle(name, move |_, (): ()| Ok(name));
    }
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    for name in names {
        assert_eq!(client.call::<_, String>(name, &()).unwrap(), name);
    }
    for other in [
        "ge", "xget", "Get", "get ", "get.", "get.a.b", "get\0", "post", "get|", "",
    ] {
        let err = client.call::<_, String>(other, &()).unwrap_err();
        assert!(
            matches!(&err, CallError::UnknownName { name, .. } if name == other),
            "{other:?}: {err}"
        );
    }
    assert_eq!(client.call::<_, String>("get", &()).unwrap(), "get");
}
