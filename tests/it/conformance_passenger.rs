//! What was asserted of Passenger's servers, beside what is about bytes alone.
//!
//! * `abstract_server_spec`, 1: `lifecycle::each_start_has_another_password`, which also compares random numbers. 2:
//!   `abstract_server::nothing_is_said_without_the_password`.
//! * `shared/abstract_server_spec`, 3: `lifecycle::starts_and_stops_three_times_in_a_row`. 4: left out, a running server is of
//!   another type than its definition; two at one path: `sockets::a_live_server_keeps_its_path`.
//! * `spawn_server_spec`, 5, 6: `abstract_server::a_killed_server_is_replaced_at_the_same_path`.
//! * `message_channel_spec`, `MessageChannelTest`, `MessageIOTest`, `MessageReadersWritersTest`: the head of `passenger` has the
//!   list.
//! * `abstract_server_collection_spec`: left out, there are no collections of servers that end when nobody has asked for them
//!   for a while: a handle is a value, and may be kept in whatever collection.
//! * `abstract_request_handler_spec`: the owner's end: `death::an_idle_server_goes_with_its_owner`. Connections without data:
//!   `abstract_server::what_killed_the_original_is_survived`. The socket's file: `sockets::the_mode_is_never_wider_at_any_system_call`.
//!   Too large a request: `abstract_server::the_longest_request_passes_and_a_longer_one_cannot_be_said`. The password:
//!   `auth::only_the_right_password_opens`. Left out: HTTP, and a server that ends some time after its last client.
//! * `utils_spec`: descriptors: `inherit::descriptors_are_poisoned_and_objects_can_be_dropped`. Reseeding:
//!   `lifecycle::each_start_has_another_password`. How a start fails: `lifecycle::an_error_in_initialize_is_the_starts`. Its directory:
//!   `sockets::the_runtime_directory_is_used_if_it_is_safe`.
//! * `EventedClientTest`, 1, 2: `sessions::a_paused_session_receives_nothing_until_it_resumes`. 3, 12 to 14: left out, a session
//!   does not give its descriptor away; `accept_with` gives connections that have none. 4, 5, 15 to 17:
//!   [`output_leaves_in_its_order_and_is_told_when_it_has_left`]. 6: `sessions::a_client_that_does_not_read_is_pressed_and_relieved`.
//!   7, 8: `sessions::a_closed_session_flushes_ten_megabytes_first`. 9: `sessions::a_session_closed_now_sends_nothing_more`.
//!   10, 11: [`nothing_is_written_behind_a_close`]. 18, 19: `conformance_poe::a_client_that_breaks_off_while_it_is_answered_is_told_once`. 20, 21:
//!   left out, whoever takes no more answers has its connection closed.
//! * `MessageServerTest`, 1, 2, 4, 5: `auth::only_the_right_password_opens`, `limits::passwords_of_both_extreme_lengths_open_and_no_others_can_be_written`;
//!   there are no accounts. 3: `abuse::each_kind_of_delay_ends_at_its_own_deadline`. 6, 11:
//!   `conformance_order::whoever_dies_at_any_stage_is_told_once_and_leaves_no_place_taken`. 7, 8: left out, a name has one handler.
//!   9: `closing::any_error_closes_the_connection_if_that_is_wanted`. 10: `calls::a_session_keeps_its_state`.
//! * `IOUtilsTest`: left out as such, the kernel's functions are called in one place; that a part may be written:
//!   `conformance_poe::ten_megabytes_arrive_before_the_end`; descriptors: `passenger::passing_a_descriptor_has_the_originals_bytes`.
//! * `ApplicationPool_ServerTest`, rights: `restrictions::users_that_are_listed_may_call_and_others_may_not`,
//!   `listeners::a_listener_shows_only_the_handlers_that_it_was_given`.
//! * `LoggingTest`, 14 to 17: `sessions::every_end_is_told_to_the_handler_once`. 23: CQ21. 25: left out, a stop refuses newcomers at once.
//!   26: `drain::a_stop_by_a_handler_is_seen_in_each_state`. 27: `drain::a_stop_by_a_handler_cuts_off_what_is_not_finished_in_time`.
//! * `FileDescriptorTest`: `types::a_descriptor_is_never_a_number`, and the harness, which counts. `ServerInstanceDirTest`: `sockets::*`.
//! * What nobody had tested there, an unknown message, an error in a handler, a stop that takes too long, `kill -9`, the owner's
//!   death, modes, signals, half a request, an oversized one: `abstract_server::what_killed_the_original_is_survived`, `death::*`,
//!   `signals::*`, `sockets::*`, `hostile::*`.

use crate::conformance_order::{Notes, Trace, becomes_empty, note};
use forkserver::{EventHandler, Fault, Item, Lines, Listener, Session, StreamError};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

crate::tests![
    output_leaves_in_its_order_and_is_told_when_it_has_left,
    nothing_is_written_behind_a_close,
];

fn path() -> PathBuf {
    std::env::temp_dir().join("s")
}

/// Writes what it has received, so many times, a number in front.
struct Repeating(Notes);

const COUNT: usize = 64;

impl EventHandler for Repeating {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(item.as_slice()).into_owned();
        note(&self.0, &format!("received {}", text.len()));
        for number in 0..COUNT {
            session.write(format!("{number} {text}"))?;
        }
        Ok(())
    }
    fn flushed(&mut self, session: &mut Session) -> Result<(), Fault> {
        assert_eq!(session.queued(), 0);
        note(&self.0, "flushed");
        Ok(())
    }
}

fn output_leaves_in_its_order_and_is_told_when_it_has_left() {
    let (definition, mut trace) = Trace::of(|notes| {
        let notes = Arc::clone(notes);
        let listener = Listener::at(path());
        crate::server().listen(
            listener.handle_events(Lines::default, move |_| Ok(Repeating(Arc::clone(&notes)))),
        )
    });
    let _server = definition.start().unwrap();
    trace.expect(&["started"]);
    let mut stream = UnixStream::connect(path()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    trace.expect(&["1 connected"]);
    // Little, which leaves at once; and more than a socket takes.
    for size in [1, 100_000] {
        let text = "x".repeat(size);
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        trace.expect(&[&format!("received {size}")]);
        if size > 1 {
            trace.expect(&["1 high"]);
        }
        for number in 0..COUNT {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            assert!(line == format!("{number} {text}\n"), "{number} of {size}");
        }
        if size > 1 {
            trace.expect(&["1 low"]);
        }
        let mut told = [trace.next().unwrap(), trace.next().unwrap()];
        told.sort();
        assert_eq!(told, ["1 flushed", "flushed"]);
    }
}

/// Closes first, and then tries to write.
struct Closing;

impl EventHandler for Closing {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        session.write(&item)?;
        match item.as_slice() {
            b"now" => session.close_now(),
            _ => session.close(),
        }
        for _ in 0..2 {
            let queued = session.queued();
            let written = session.write("behind it");
            assert!(matches!(written, Err(StreamError::Finished)));
            assert_eq!(session.queued(), queued);
        }
        Ok(())
    }
}

fn nothing_is_written_behind_a_close() {
    let listener = Listener::at(path()).handle_events(Lines::default, |_| Ok(Closing));
    let (definition, trace) = Trace::of(|_| crate::server().listen(listener));
    let server = definition.start().unwrap();
    drop(definition);
    for (text, seen) in [("flush\n", "flush\n"), ("now\n", "")] {
        let mut stream = UnixStream::connect(path()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert_eq!(said, seen);
    }
    becomes_empty(&server);
    let told = trace.rest(server);
    assert!(
        !told.iter().any(|line| line.starts_with("panicked")),
        "{told:?}"
    );
}
