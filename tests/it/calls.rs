//! Calls: results, faults, mistakes, panics, order, time.

use crate::lifecycle::echo;
use forkserver::{Bytes, CallError, Client, Delivery, Fault, Limits, Raw, Server};
use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    a_fault_carries_code_message_and_causes,
    an_unknown_name_is_answered_with_the_nearest,
    wrong_arguments_are_a_mismatch_and_the_server_lives,
    a_panic_comes_back_with_message_and_place,
    a_thousand_panics_are_survived,
    a_client_that_leaves_before_the_reply_hurts_nobody,
    calls_can_be_finished_in_any_order,
    a_pending_that_is_dropped_is_forgotten,
    a_pending_of_another_client_is_refused,
    many_calls_in_flight_with_large_answers_do_not_block,
    a_timeout_ends_the_call_and_not_the_connection,
    a_handler_sees_its_deadline_and_a_client_that_left,
    a_half_closed_client_gets_its_answer,
    the_last_call_of_a_client_closes_the_connection,
    a_fallback_answers_every_other_name,
    a_session_keeps_its_state,
    deferred_tasks_run_after_the_answer_in_order,
    frames_at_the_limit_pass_and_beyond_it_do_not,
    a_reply_beyond_the_limit_is_an_error,
    bytes_of_every_size_come_back,
    connections_at_the_limit_wait_in_the_backlog,
    eight_clients_are_served_at_once,
    an_authenticated_client_knows_it,
    errors_convert_into_the_crates_own,
    a_call_that_ran_is_not_called_unsent,
    a_call_that_was_not_sent_does_not_run_later,
    large_answers_are_read_while_calls_are_begun,
    a_panic_hook_of_ones_own_is_kept_out,
    a_client_may_take_its_time_before_the_first_call,
];

fn a_fault_carries_code_message_and_causes() {
    let server = crate::server()
        .handle("own", |_, (): ()| {
            Err::<(), _>(Fault::new("not today").with_code(-7))
        })
        .handle("parse", |_, text: String| Ok(text.parse::<u8>()?))
        .handle("chain", |_, (): ()| {
            let inner = std::io::Error::other("inner".parse::<f32>().unwrap_err());
            Err::<(), _>(Fault::from(inner))
        })
        .handle("boxed", |_, (): ()| {
            Err::<(), _>(Fault::from_boxed("plain text"))
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let mut fault = |name: &str, text: &str| match client.call::<_, u8>(name, text).unwrap_err() {
        CallError::Fault(fault) => fault,
        err => panic!("{err}"),
    };
    let chain = fault("parse", "300");
    assert_eq!(chain.message(), "number too large to fit in target type");
    drop(chain);
    let mut client = server.connect().unwrap();
    let err = client.call::<_, ()>("own", &()).unwrap_err();
    assert_eq!(err.delivery(), Delivery::Executed);
    let CallError::Fault(own) = err else {
        panic!("{err}")
    };
    assert_eq!((own.message(), own.code()), ("not today", -7));
    let CallError::Fault(boxed) = client.call::<_, ()>("boxed", &()).unwrap_err() else {
        panic!()
    };
    assert_eq!(boxed.to_string(), "plain text");
    let err = client.call::<_, ()>("chain", &()).unwrap_err();
    let texts: Vec<String> = std::iter::successors(err.source(), |err| (*err).source())
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        texts.first().map(String::as_str),
        Some("invalid float literal")
    );
}

fn an_unknown_name_is_answered_with_the_nearest() {
    let server = echo().handle("status", |_, (): ()| Ok(())).start().unwrap();
    let mut client = server.connect().unwrap();
    let mut similar = |name: &str| match client.call::<_, ()>(name, &()).unwrap_err() {
        CallError::UnknownName {
            name: called,
            similar,
        } => {
            assert_eq!(called, name);
            similar
        }
        err => panic!("{err}"),
    };
    assert_eq!(similar("ehco").as_deref(), Some("echo"));
    assert_eq!(similar("statsu").as_deref(), Some("status"));
    assert_eq!(similar("completely different"), None);
    assert_eq!(similar(""), None);
    assert_eq!(similar("\0\x1b[2J"), None);
    assert_eq!(similar(&"x".repeat(255)), None);
    assert_eq!(similar(&"x".repeat(256)), None);
    assert_eq!(client.call::<_, String>("echo", "still").unwrap(), "still");
}

fn wrong_arguments_are_a_mismatch_and_the_server_lives() {
    let server = crate::server()
        .handle("add", |_, (a, b): (u64, u64)| Ok(a + b))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let refused = |err: CallError| {
        assert!(matches!(err, CallError::TypeMismatch { .. }), "{err}");
        assert_eq!(err.delivery(), Delivery::NotSent);
    };
    refused(client.call::<_, u64>("add", &(2_i32, 3_i32)).unwrap_err());
    refused(client.call::<_, u64>("add", &(2_u64,)).unwrap_err());
    refused(
        client
            .call::<_, u64>("add", &(2_u64, 3_u64, 4_u64))
            .unwrap_err(),
    );
    refused(client.call::<_, u64>("add", &()).unwrap_err());
    refused(client.call::<_, u64>("add", "2, 3").unwrap_err());
    let err = client.call::<_, i64>("add", &(2_u64, 3_u64)).unwrap_err();
    assert!(
        matches!(
            err,
            CallError::TypeMismatch {
                delivery: Delivery::Executed,
                ..
            }
        ),
        "{err}"
    );
    assert_eq!(client.call::<_, u64>("add", &(2_u64, 3_u64)).unwrap(), 5);
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("while being dropped");
    }
}

fn panicking() -> Server {
    echo()
        .handle("text", |_, (): ()| -> Result<(), Fault> {
            panic!("just text")
        })
        .handle("format", |_, n: u32| -> Result<(), Fault> {
            panic!("number {n}")
        })
        .handle("custom", |_, (): ()| -> Result<(), Fault> {
            std::panic::panic_any(17_u64)
        })
        .handle("bomb", |_, (): ()| -> Result<(), Fault> {
            std::panic::panic_any(Bomb)
        })
}

fn a_panic_comes_back_with_message_and_place() {
    let server = panicking().start().unwrap();
    let mut client = server.connect().unwrap();
    let mut said = |name: &str| match client.call::<_, ()>(name, &()).unwrap_err() {
        CallError::Panicked { message, location } => {
            assert!(location.contains("calls.rs:"), "{location}");
            message
        }
        err => panic!("{err}"),
    };
    assert_eq!(said("text"), "just text");
    assert_eq!(said("custom"), "(a value that is no text)");
    assert_eq!(said("bomb"), "(a value that is no text)");
    let err = client.call::<_, ()>("format", &5_u32).unwrap_err();
    assert!(err.to_string().contains("number 5"), "{err}");
    assert_eq!(err.delivery(), Delivery::Executed);
    assert_eq!(client.call::<_, String>("echo", "alive").unwrap(), "alive");
}

fn a_thousand_panics_are_survived() {
    let server = panicking().start().unwrap();
    let mut client = server.connect().unwrap();
    for _ in 0..1000 {
        assert!(matches!(
            client.call::<_, ()>("bomb", &()).unwrap_err(),
            CallError::Panicked { .. }
        ));
    }
    assert_eq!(client.call::<_, String>("echo", "alive").unwrap(), "alive");
}

fn a_client_that_leaves_before_the_reply_hurts_nobody() {
    let (mut entered, enter) = std::io::pipe().unwrap();
    let (wait, mut leave) = std::io::pipe().unwrap();
    let definition = echo()
        .keep_fd(&enter)
        .keep_fd(&wait)
        .handle("slow", move |_, (): ()| {
            (&enter).write_all(b"!")?;
            (&wait).read_exact(&mut [0])?;
            Ok(Bytes::from(vec![0; 1 << 20]))
        });
    let server = definition.start().unwrap();
    for _ in 0..5 {
        let mut client = server.connect().unwrap();
        let _pending = client.begin::<_, Bytes>("slow", &()).unwrap();
        entered.read_exact(&mut [0]).unwrap();
        drop(client);
        leave.write_all(b"x").unwrap();
        let mut next = server.connect().unwrap();
        assert_eq!(next.call::<_, String>("echo", "next").unwrap(), "next");
    }
}

fn numbers() -> Server {
    crate::server()
        .handle("double", |_, n: u64| Ok(n * 2))
        .handle("large", |_, size: usize| Ok(Bytes::from(vec![7; size])))
}

fn calls_can_be_finished_in_any_order() {
    let server = numbers().start().unwrap();
    let mut client = server.connect().unwrap();
    let mut pending: Vec<_> = (0..64_u64)
        .map(|n| (n, client.begin::<_, u64>("double", &n).unwrap()))
        .collect();
    while !pending.is_empty() {
        let (n, call) = pending.swap_remove(pending.len() / 2);
        assert_eq!(client.finish(call).unwrap(), n * 2);
    }
    assert_eq!(client.call::<_, u64>("double", &1_u64).unwrap(), 2);
}

fn a_pending_that_is_dropped_is_forgotten() {
    let server = numbers().start().unwrap();
    let mut client = server.connect().unwrap();
    for n in 0..100_u64 {
        drop(client.begin::<_, u64>("double", &n).unwrap());
        assert_eq!(client.call::<_, u64>("double", &n).unwrap(), n * 2);
    }
}

fn a_pending_of_another_client_is_refused() {
    let server = numbers().start().unwrap();
    let (mut one, mut other) = (server.connect().unwrap(), server.connect().unwrap());
    let pending = one.begin::<_, u64>("double", &4_u64).unwrap();
    let _own = other.begin::<_, u64>("double", &5_u64).unwrap();
    let err = other.finish(pending).unwrap_err();
    assert!(matches!(err, CallError::NoSuchCall), "{err}");
    assert_eq!(other.call::<_, u64>("double", &6_u64).unwrap(), 12);
}

fn many_calls_in_flight_with_large_answers_do_not_block() {
    // Neither side could write if the other did not read.
    let server = echo()
        .handle("bytes", |_, bytes: Bytes| Ok(bytes))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let payload = Bytes::from(vec![3; 1 << 20]);
    let pending: Vec<_> = (0..16)
        .map(|_| client.begin::<_, Bytes>("bytes", &payload).unwrap())
        .collect();
    for call in pending {
        assert!(client.finish(call).unwrap() == payload);
    }
}

/// A handler that tells on a pipe when it runs, and waits on another.
pub fn gate(server: Server) -> (Server, std::io::PipeReader, std::io::PipeWriter) {
    let (entered, enter) = std::io::pipe().unwrap();
    let (wait, leave) = std::io::pipe().unwrap();
    let server = server
        .keep_fd(&enter)
        .keep_fd(&wait)
        .handle("gate", move |ctx, (): ()| {
            (&enter).write_all(b"!")?;
            (&wait).read_exact(&mut [0])?;
            Ok((ctx.deadline().is_some(), ctx.is_cancelled()))
        });
    (server, entered, leave)
}

fn a_timeout_ends_the_call_and_not_the_connection() {
    let (definition, mut entered, mut leave) = gate(echo());
    let server = definition.start().unwrap();
    let timeout = Duration::from_millis(50);
    let mut client = server.connect().unwrap().with_timeout(timeout);
    let start = Instant::now();
    let err = client.call::<_, (bool, bool)>("gate", &()).unwrap_err();
    assert!(start.elapsed() >= timeout && start.elapsed() < Duration::from_secs(2));
    assert!(
        matches!(err, CallError::TimedOut { after, .. } if after == timeout),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::MaybeExecuted);
    entered.read_exact(&mut [0]).unwrap();
    leave.write_all(b"x").unwrap();
    // The late reply comes first and is nobody's.
    let mut client = client.with_timeout(Duration::from_secs(10));
    assert_eq!(client.call::<_, String>("echo", "next").unwrap(), "next");
}

fn a_handler_sees_its_deadline_and_a_client_that_left() {
    let (definition, mut entered, mut leave) = gate(echo());
    let server = definition.start().unwrap();
    let mut patient = server.connect().unwrap();
    let pending = patient.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    leave.write_all(b"x").unwrap();
    assert_eq!(patient.finish(pending).unwrap(), (false, false));
    let mut hurried = server
        .connect()
        .unwrap()
        .with_timeout(Duration::from_secs(20));
    let pending = hurried.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    leave.write_all(b"x").unwrap();
    assert_eq!(hurried.finish(pending).unwrap(), (true, false));

    let (mut told, tell) = std::io::pipe().unwrap();
    let (wait, mut leave) = std::io::pipe().unwrap();
    let definition =
        crate::server()
            .keep_fd(&tell)
            .keep_fd(&wait)
            .handle("gone", move |ctx, (): ()| {
                (&tell).write_all(b"!")?;
                (&wait).read_exact(&mut [0])?;
                (&tell).write_all(&[u8::from(ctx.is_cancelled())])?;
                Ok(())
            });
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    let _pending = client.begin::<_, ()>("gone", &()).unwrap();
    let mut byte = [0];
    told.read_exact(&mut byte).unwrap();
    drop(client);
    leave.write_all(b"x").unwrap();
    told.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [1]);
}

fn a_half_closed_client_gets_its_answer() {
    use crate::hostile::{Raw, call_frame, hello_frame};
    let (definition, mut entered, mut leave) = gate(echo());
    let server = definition.start().unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&[hello_frame(&server), call_frame(1, "gate", &[])].concat());
    entered.read_exact(&mut [0]).unwrap();
    raw.finish_writing();
    leave.write_all(b"x").unwrap();
    let answer = raw.read_to_end();
    // Welcome, then a reply of two booleans: no deadline, and not cancelled.
    assert_eq!(answer[0], 2);
    assert_eq!((answer[24], &answer[answer.len() - 2..]), (5, &[0, 0][..]));
}

fn the_last_call_of_a_client_closes_the_connection() {
    let server = numbers().start().unwrap();
    for n in 0..10_u64 {
        let client = Client::connect(server.address()).unwrap();
        assert_eq!(client.call_last::<_, u64>("double", &n).unwrap(), 2 * n);
    }
    let mut raw = crate::hostile::Raw::connect(&server);
    raw.write(&crate::hostile::hello_frame(&server));
    let mut last = crate::hostile::call_frame(1, "large", &[5]);
    last[2] = 4;
    raw.write(&last);
    // The end comes without our closing anything.
    let answer = raw.read_to_end();
    assert_eq!((answer[0], answer[24]), (2, 5));
}

fn a_fallback_answers_every_other_name() {
    let server = echo()
        .fallback(|_, name, raw: Raw| match name {
            "relay" => Ok(raw),
            "twice" => Raw::encode(&(raw.decode::<u32>()? * 2)),
            _ => Err(Fault::new(format!("nobody knows {name}"))),
        })
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, u32>("twice", &21_u32).unwrap(), 42);
    assert_eq!(
        client
            .call::<_, (u8, String)>("relay", &(1_u8, "x"))
            .unwrap(),
        (1, "x".into())
    );
    assert!(matches!(
        client.call::<_, (i8, String)>("relay", &(1_u8, "x")),
        Err(CallError::TypeMismatch { .. })
    ));
    let fd = forkserver::Fd::from(std::fs::File::open("/dev/null").unwrap());
    let back: forkserver::Fd = client.call("relay", &fd).unwrap();
    drop((fd, back));
    assert_eq!(
        client.call::<_, ()>("this", &()).unwrap_err().to_string(),
        "nobody knows this"
    );
    assert_eq!(client.call::<_, String>("echo", "own").unwrap(), "own");
}

fn a_session_keeps_its_state() {
    let server = crate::server()
        .handle("next", |ctx, (): ()| {
            let count = ctx.session::<u32>();
            *count += 1;
            Ok((*count, ctx.session_id()))
        })
        .start()
        .unwrap();
    let (mut one, mut other) = (server.connect().unwrap(), server.connect().unwrap());
    let next = |client: &mut Client| client.call::<_, (u32, u64)>("next", &()).unwrap();
    let (first, id) = next(&mut one);
    let (second, same) = next(&mut one);
    let (others, another) = next(&mut other);
    assert_eq!((first, second, others), (1, 2, 1));
    assert!(id == same && id != another);
}

fn deferred_tasks_run_after_the_answer_in_order() {
    let (mut told, tell) = std::io::pipe().unwrap();
    let tell = Arc::new(tell);
    let definition = echo().keep_fd(&*tell).handle("later", move |ctx, (): ()| {
        for byte in [b"1", b"2", b"3"] {
            let tell = Arc::clone(&tell);
            ctx.defer(move || (&*tell).write_all(byte).unwrap());
        }
        ctx.defer(|| panic!("nobody hears this"));
        Ok(())
    });
    let server = definition.start().unwrap();
    let mut client = server.connect().unwrap();
    for _ in 0..2 {
        client.call::<_, ()>("later", &()).unwrap();
        assert_eq!(client.call::<_, String>("echo", "next").unwrap(), "next");
        let mut bytes = [0; 3];
        told.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"123");
    }
}

fn frames_at_the_limit_pass_and_beyond_it_do_not() {
    let mut limits = Limits::default();
    limits.max_frame = 4096;
    let server = crate::server()
        .limits(limits.clone())
        .handle("len", |_, b: Bytes| Ok(b.len()))
        .start()
        .unwrap();
    // Hash, length of the name, name, and the three bytes of this length are 15.
    let fits = Bytes::from(vec![0; 4096 - 15]);
    let larger = Bytes::from(vec![0; 4096 - 14]);
    let mut client = server.connect().unwrap().with_limits(limits);
    assert_eq!(client.call::<_, usize>("len", &fits).unwrap(), fits.len());
    let err = client.call::<_, usize>("len", &larger).unwrap_err();
    assert!(
        matches!(err, CallError::TooLarge(_)) && err.to_string().contains("4096"),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::NotSent);
    assert_eq!(
        client.call::<_, usize>("len", &fits).unwrap(),
        fits.len(),
        "nothing of it was sent"
    );
    // A client that thinks more is allowed is told, and the connection ends.
    let mut client = server.connect().unwrap();
    let err = client.call::<_, usize>("len", &larger).unwrap_err();
    assert!(
        matches!(&err, CallError::Protocol(text) if text.contains("4096")),
        "{err}"
    );
    assert!(matches!(
        client.call::<_, usize>("len", &fits),
        Err(CallError::Disconnected { .. })
    ));
}

fn a_reply_beyond_the_limit_is_an_error() {
    let mut limits = Limits::default();
    limits.max_frame = 4096;
    let server = numbers().limits(limits).start().unwrap();
    let mut client = server.connect().unwrap();
    let err = client.call::<_, Bytes>("large", &5000_usize).unwrap_err();
    assert!(
        matches!(&err, CallError::BadReply(text) if text.contains("4096")),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::Executed);
    assert_eq!(
        client.call::<_, Bytes>("large", &50_usize).unwrap().len(),
        50
    );
}

fn bytes_of_every_size_come_back() {
    let server = crate::server()
        .handle("echo", |_, (n, b): (u32, Bytes)| Ok((b, n)))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let powers = (0..24).map(|shift| 1_usize << shift);
    for size in powers
        .flat_map(|size| [size - 1, size, size + 1])
        .filter(|&size| size < (16 << 20) - 64)
    {
        let bytes = Bytes::from(
            (0..size)
                .map(|i| (i * 7 + i / 251) as u8)
                .collect::<Vec<_>>(),
        );
        let (back, n): (Bytes, u32) = client.call("echo", &(size as u32, bytes.clone())).unwrap();
        assert!(back == bytes && n == size as u32, "{size} bytes");
    }
}

fn connections_at_the_limit_wait_in_the_backlog() {
    let mut limits = Limits::default();
    limits.max_connections = 2;
    let server = echo().limits(limits).start().unwrap();
    let connect = || Client::connect(server.address()).unwrap();
    let (mut one, mut two) = (connect(), connect());
    for client in [&mut one, &mut two] {
        assert_eq!(client.call::<_, String>("echo", "in").unwrap(), "in");
    }
    let mut third = connect().with_timeout(Duration::from_millis(50));
    let pending = third.begin::<_, String>("echo", "waiting").unwrap();
    assert!(matches!(
        third.finish(pending),
        Err(CallError::TimedOut { .. })
    ));
    drop(one);
    let mut third = third.with_timeout(Duration::from_secs(10));
    assert_eq!(third.call::<_, String>("echo", "in").unwrap(), "in");
}

fn eight_clients_are_served_at_once() {
    let together = Arc::new((AtomicU32::new(0), std::sync::Barrier::new(8)));
    let server = crate::server()
        .handle("meet", move |_, (): ()| {
            together.0.fetch_add(1, Ordering::SeqCst);
            together.1.wait();
            Ok(together.0.load(Ordering::SeqCst))
        })
        .start()
        .unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| server.connect().unwrap()).collect();
    let pending: Vec<_> = clients
        .iter_mut()
        .map(|client| client.begin::<_, u32>("meet", &()).unwrap())
        .collect();
    for (client, call) in clients.iter_mut().zip(pending) {
        assert_eq!(client.finish(call).unwrap(), 8);
    }
}

fn an_authenticated_client_knows_it() {
    let server = echo().start().unwrap();
    let mut client = Client::connect(server.address()).unwrap();
    client.authenticate().unwrap();
    client.authenticate().expect("once more is harmless");
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let mut later = Client::connect(server.address()).unwrap();
    assert_eq!(later.call::<_, String>("echo", "x").unwrap(), "x");
    later.authenticate().unwrap();
}

fn errors_convert_into_the_crates_own() {
    fn all() -> forkserver::Result<()> {
        let server = echo().start()?;
        let mut client = server.connect()?;
        client.call::<_, String>("nothing", "x")?;
        server.stop()?;
        Ok(())
    }
    let err = all().unwrap_err();
    assert!(
        matches!(err, forkserver::Error::Call(CallError::UnknownName { .. })),
        "{err}"
    );
}

fn counting() -> (Server, std::io::PipeReader, std::io::PipeWriter) {
    let (definition, entered, leave) = gate(echo());
    let count = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&count);
    let definition = definition
        .handle("inc", move |_, _: Bytes| {
            Ok(count.fetch_add(1, Ordering::SeqCst) + 1)
        })
        .handle("count", move |_, (): ()| Ok(counter.load(Ordering::SeqCst)));
    (definition, entered, leave)
}

fn a_call_that_ran_is_not_called_unsent() {
    let (definition, mut entered, mut leave) = counting();
    let server = definition.start().unwrap();
    let mut client = server
        .connect()
        .unwrap()
        .with_timeout(Duration::from_millis(100));
    let first = client.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    // This one is far too large for the socket's buffer while the server is busy.
    let _later = client.begin::<_, u32>("inc", &Bytes::from(vec![0; 4 << 20]));
    let err = client.finish(first).unwrap_err();
    assert!(matches!(err, CallError::TimedOut { .. }), "{err}");
    assert_eq!(err.delivery(), Delivery::MaybeExecuted, "it is running");
    leave.write_all(b"x").unwrap();
}

fn a_call_that_was_not_sent_does_not_run_later() {
    let (definition, mut entered, mut leave) = counting();
    let server = definition.start().unwrap();
    let mut client = server
        .connect()
        .unwrap()
        .with_timeout(Duration::from_millis(100));
    let first = client.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    let mut not_sent = 0;
    // Fills the socket until nothing of a call leaves any more.
    let small = Bytes::from(vec![0; 60_000]);
    for _ in 0..20 {
        let err = client.call::<_, u32>("inc", &small).unwrap_err();
        assert!(matches!(err, CallError::TimedOut { .. }), "{err}");
        not_sent += u32::from(err.delivery() == Delivery::NotSent);
    }
    assert!(not_sent > 0 && not_sent < 20, "{not_sent}");
    leave.write_all(b"x").unwrap();
    drop(first);
    let mut client = client.with_timeout(Duration::from_secs(10));
    let executed: u32 = client.call("count", &()).unwrap();
    assert_eq!(
        executed,
        20 - not_sent,
        "what was NotSent did not run, and everything else did"
    );
}

fn large_answers_are_read_while_calls_are_begun() {
    let server = crate::server()
        .handle("echo", |_, bytes: Bytes| Ok(bytes))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let bytes = Bytes::from(vec![1; 6000]);
    let calls: Vec<_> = (0..2000)
        .map(|_| client.begin::<_, Bytes>("echo", &bytes).unwrap())
        .collect();
    for call in calls {
        assert!(client.finish(call).unwrap() == bytes);
    }
}

fn a_panic_hook_of_ones_own_is_kept_out() {
    let server = panicking()
        .initialize(|_| {
            std::panic::set_hook(Box::new(|_| eprintln!("an error reporter")));
            Ok(())
        })
        .start()
        .unwrap();
    let err = server
        .connect()
        .unwrap()
        .call::<_, ()>("text", &())
        .unwrap_err();
    assert!(
        matches!(&err, CallError::Panicked { message, location } if message == "just text" && location.contains("calls.rs")),
        "{err}"
    );
}

fn a_client_may_take_its_time_before_the_first_call() {
    let mut limits = Limits::default();
    limits.auth_timeout = Duration::from_millis(1100);
    let server = echo().limits(limits).start().unwrap();
    let mut by_path = Client::connect(server.address()).unwrap();
    let mut by_path_too = Client::connect(server.address()).unwrap();
    let mut by_handle = server.connect().unwrap();
    // The server's patience with strangers ends; there is no event for that on this side.
    assert!(!crate::processes::readable(
        &server,
        Duration::from_millis(1300)
    ));
    assert_eq!(by_handle.call::<_, String>("echo", "late").unwrap(), "late");
    assert_eq!(by_path.call::<_, String>("echo", "late").unwrap(), "late");
    by_path_too.authenticate().unwrap();
    assert_eq!(
        by_path_too.call::<_, String>("echo", "late").unwrap(),
        "late"
    );
    let mut gone = Client::connect(server.address()).unwrap();
    server.stop().unwrap();
    let (quiet, _other_end) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(!crate::processes::readable(
        &quiet,
        Duration::from_millis(1100)
    ));
    let err = gone.call::<_, String>("echo", "too late").unwrap_err();
    assert_eq!(err.delivery(), Delivery::NotSent, "{err}");
}
