//! Many calls in flight on one connection: answers that leave together, and what bounds them.

use crate::calls::gate;
use crate::hostile::{Raw, call_frame, hello_frame};
use crate::lifecycle::echo;
use crate::processes::readable;
use forkserver::{Bytes, CallError, Delivery, Event, Limits, ProtocolError, Server};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

crate::tests![
    the_answers_to_a_batch_leave_together,
    an_answer_does_not_wait_for_a_call_that_waits_for_it,
    no_call_is_taken_from_a_client_that_does_not_read,
    an_answer_may_be_as_large_as_max_queued,
    arguments_may_be_as_large_as_max_queued,
    a_further_call_waits_for_an_answer_to_those_in_flight,
];

fn the_answers_to_a_batch_leave_together() {
    let server = echo().start().unwrap();
    let calls: Vec<u8> = (1..=64)
        .flat_map(|id| call_frame(id, "echo", b"\x01x"))
        .collect();
    let first_read = || {
        // A stranger's first bytes are received by themselves.
        let mut raw = Raw::welcomed(&server);
        raw.write(&calls);
        // The kernel gives what came in one write to one read.
        raw.stream().read(&mut [0; 1 << 16]).unwrap()
    };
    // On a busy machine the server may be interrupted, so that the watchdog finds the batch to take too long.
    let most = (0..20).map(|_| first_read()).max();
    assert_eq!(most, Some(64 * (12 + 8 + 2)), "all answers");
}

fn an_answer_does_not_wait_for_a_call_that_waits_for_it() {
    let (definition, mut entered, mut leave) = gate(echo());
    let server = definition.start().unwrap();
    let mut raw = Raw::connect(&server);
    let calls = [call_frame(1, "echo", b"\x01x"), call_frame(2, "gate", b"")];
    raw.write(&[hello_frame(&server), calls.concat()].concat());
    entered.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    raw.stream().read_exact(&mut [0; 24 + 22]).unwrap();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(
        !readable(raw.stream(), Duration::ZERO),
        "the next one is under way"
    );
    leave.write_all(b"x").unwrap();
    raw.finish_writing();
    assert_eq!(raw.read_to_end().len(), 22);
}

/// A definition that says on a pipe, a line each, which call it begins and which watermark is crossed.
fn telling(limits: Limits) -> (Server, BufReader<std::io::PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let say = writer.try_clone().unwrap();
    let server = crate::server()
        .limits(limits)
        .keep_fd(&writer)
        .keep_fd(&say)
        .handle("large", move |_, size: usize| {
            (&say).write_all(b"call\n")?;
            Ok(Bytes::from(vec![0; size]))
        })
        .observe(move |event| {
            let _ = match event {
                Event::HighWatermark { .. } => (&writer).write_all(b"high\n"),
                Event::LowWatermark { .. } => (&writer).write_all(b"low\n"),
                _ => Ok(()),
            };
        });
    (server, BufReader::new(reader))
}

fn no_call_is_taken_from_a_client_that_does_not_read() {
    const SIZE: usize = 400_000;
    let mut limits = Limits::default();
    (limits.high_watermark, limits.low_watermark) = (1_000_000, 100_000);
    let (definition, mut said) = telling(limits);
    let server = definition.start().unwrap();
    drop(definition);
    let mut raw = Raw::connect(&server);
    let size = [&[0xfc][..], &(SIZE as u32).to_le_bytes()].concat();
    let calls: Vec<u8> = (1..=9)
        .flat_map(|id| call_frame(id, "large", &size))
        .collect();
    raw.write(&[hello_frame(&server), calls].concat());
    let mut next = || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    // Three are more than the mark; what the kernel's buffers take can make it one more.
    let mut begun = 0;
    while next() == "call" {
        begun += 1;
    }
    assert!((3..=4).contains(&begun), "{begun}");
    raw.finish_writing();
    assert!(raw.read_to_end().len() > 9 * SIZE);
    server.stop().unwrap();
    let others: Vec<_> =
        std::iter::from_fn(|| Some(next()).filter(|line| !line.is_empty())).collect();
    let (calls, marks): (Vec<_>, Vec<_>) = others.into_iter().partition(|line| line == "call");
    assert_eq!(calls.len(), 9 - begun);
    assert!(
        marks.len() % 2 == 1,
        "after `high` it is `low`'s turn: {marks:?}"
    );
    for (index, mark) in marks.iter().enumerate() {
        assert_eq!(*mark, ["low", "high"][index % 2], "{marks:?}");
    }
}

fn an_answer_may_be_as_large_as_max_queued() {
    let mut limits = Limits::default();
    limits.max_queued = 100_000;
    let (definition, _said) = telling(limits);
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    client.authenticate().unwrap();
    // Header, hash, and five bytes for the length.
    let largest = 100_000 - 12 - 8 - 5;
    let bytes: Bytes = client.call("large", &largest).unwrap();
    assert_eq!(bytes.len(), largest);
    let err = client
        .call::<_, Bytes>("large", &(largest + 1))
        .unwrap_err();
    let CallError::BadReply(reason) = &err else {
        panic!("{err}")
    };
    assert!(
        reason.contains("100001") && reason.contains("max_queued"),
        "{reason}"
    );
    let bytes: Bytes = client.call("large", &1_usize).unwrap();
    assert_eq!(bytes.len(), 1);
}

fn arguments_may_be_as_large_as_max_queued() {
    let mut limits = Limits::default();
    limits.max_queued = 100_000;
    let server = crate::server()
        .handle("size", |_, bytes: Bytes| Ok(bytes.len()))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap().with_limits(limits);
    client.authenticate().unwrap();
    let largest = 100_000 - 12 - 8 - 5 - 5;
    let size: usize = client.call("size", &Bytes::from(vec![0; largest])).unwrap();
    assert_eq!(size, largest);
    let err = client
        .call::<_, usize>("size", &Bytes::from(vec![0; largest + 1]))
        .unwrap_err();
    let limit = 100_000;
    let expected = ProtocolError::TooMuchQueued {
        size: limit + 1,
        limit,
    };
    assert!(
        matches!(&err, CallError::TooLarge(found) if *found == expected),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::NotSent);
}

fn a_further_call_waits_for_an_answer_to_those_in_flight() {
    let (definition, mut entered, mut leave) = gate(echo());
    let server = definition.start().unwrap();
    let mut limits = Limits::default();
    limits.max_in_flight = 2;
    let client = server.connect().unwrap().with_limits(limits);
    let mut client = client.with_timeout(Duration::from_millis(200));
    let first = client.begin::<_, (bool, bool)>("gate", &()).unwrap();
    let second = client.begin::<_, String>("echo", "second").unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let err = client.begin::<_, String>("echo", "third").unwrap_err();
    assert!(matches!(err, CallError::TimedOut { .. }), "{err}");
    assert_eq!(err.delivery(), Delivery::NotSent);
    let mut client = client.with_timeout(Duration::from_secs(20));
    leave.write_all(b"x").unwrap();
    let fourth = client.begin::<_, String>("echo", "fourth").unwrap();
    assert_eq!(client.finish(fourth).unwrap(), "fourth");
    assert_eq!(client.finish(second).unwrap(), "second");
    // Its own time is over, but its answer is there.
    client.finish(first).unwrap();
    for _ in 0..3 {
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
}
