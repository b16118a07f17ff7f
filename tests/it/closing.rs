//! How a connection is closed from the server's side: after so many calls, by a handler, after an error.

use crate::hostile::{Raw, call_frame, frame, hello_frame};
use forkserver::{
    Bytes, CallError, Channel, Client, Delivery, Ending, Event, Fault, Limits, Server,
    ServerHandle, StreamError,
};
use std::io::{BufRead, BufReader, Lines, PipeReader, Write};

crate::tests![
    as_many_calls_are_answered_as_the_limit_and_not_one_more,
    calls_behind_the_limit_are_refused_in_order,
    a_stream_counts_as_a_call,
    a_limit_of_none_refuses_the_first_call,
    a_call_behind_the_limit_is_refused_in_these_bytes,
    a_handler_closes_the_connection_behind_its_answer,
    a_large_answer_leaves_before_the_connection_is_closed,
    a_handler_closes_the_connection_without_an_answer,
    a_streams_handler_closes_the_connection,
    a_handler_that_panics_has_closed_all_the_same,
    any_error_closes_the_connection_if_that_is_wanted,
    errors_keep_the_connection_otherwise,
    a_failed_call_ends_a_batch,
    tasks_put_off_run_although_the_connection_is_closed,
];

/// A definition that tells how each connection ends.
fn told(server: Server) -> (Server, Lines<BufReader<PipeReader>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let server = server.keep_fd(&writer).observe(move |event| {
        if let Event::Disconnected { reason, .. } = event {
            writeln!(&writer, "{reason:?}").unwrap();
        }
    });
    (server, BufReader::new(reader).lines())
}

fn ends_as(lines: &mut Lines<BufReader<PipeReader>>, ending: &Ending) {
    assert_eq!(lines.next().unwrap().unwrap(), format!("{ending:?}"));
}

fn echo() -> Server {
    crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .handle_stream("upper", |_, (): (), mut channel: Channel| {
            while let Some(text) = channel.recv::<String>()? {
                channel.send(&text.to_uppercase())?;
            }
            Ok(())
        })
}

fn with_max_calls(most: u64) -> Server {
    let mut limits = Limits::default();
    limits.max_calls = Some(most);
    echo().limits(limits)
}

/// Both ways to a server.
fn clients(server: &ServerHandle) -> [Client; 2] {
    [
        server.connect().unwrap(),
        Client::connect(server.address()).unwrap(),
    ]
}

fn echoes(client: &mut Client) {
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

/// A call is not begun any more, and its client knows it.
fn is_over(client: &mut Client) {
    let err = client.call::<_, String>("echo", "x").unwrap_err();
    assert_eq!(err.delivery(), Delivery::NotSent, "{err}");
    assert!(
        matches!(err, CallError::Closing | CallError::Disconnected { .. }),
        "{err}"
    );
}

fn as_many_calls_are_answered_as_the_limit_and_not_one_more() {
    let (definition, mut ends) = told(with_max_calls(3));
    let server = definition.start().unwrap();
    for mut client in clients(&server) {
        (0..3).for_each(|_| echoes(&mut client));
        is_over(&mut client);
        is_over(&mut client);
        ends_as(&mut ends, &Ending::CallLimit);
    }
    let mut client = server.connect().unwrap();
    (0..2).for_each(|_| echoes(&mut client));
    drop(client);
    ends_as(&mut ends, &Ending::Finished);
    // A mistake is a call, too.
    let mut client = server.connect().unwrap();
    for _ in 0..3 {
        let err = client.call::<_, ()>("nothing", &()).unwrap_err();
        assert!(matches!(err, CallError::UnknownName { .. }), "{err}");
    }
    is_over(&mut client);
}

fn calls_behind_the_limit_are_refused_in_order() {
    let server = with_max_calls(3).start().unwrap();
    for mut client in clients(&server) {
        let begin = |_| client.begin::<_, String>("echo", "x").unwrap();
        let mut pending: Vec<_> = (0..5).map(begin).collect();
        client.flush().unwrap();
        for behind in pending.split_off(3) {
            let err = client.finish(behind).unwrap_err();
            assert!(matches!(err, CallError::Closing), "{err}");
            assert_eq!(err.delivery(), Delivery::NotSent);
        }
        for call in pending {
            assert_eq!(client.finish(call).unwrap(), "x");
        }
    }
}

fn a_stream_counts_as_a_call() {
    let (definition, mut ends) = told(with_max_calls(2));
    let server = definition.start().unwrap();
    for mut client in clients(&server) {
        echoes(&mut client);
        let mut channel = client.open("upper", &()).unwrap();
        for _ in 0..3 {
            channel.send("x").unwrap();
            assert_eq!(channel.recv::<String>().unwrap().unwrap(), "X");
        }
        is_over(&mut channel.into_client().unwrap());
        ends_as(&mut ends, &Ending::CallLimit);
    }
}

fn a_limit_of_none_refuses_the_first_call() {
    let server = with_max_calls(0).start().unwrap();
    for mut client in clients(&server) {
        is_over(&mut client);
    }
}

fn a_call_behind_the_limit_is_refused_in_these_bytes() {
    let server = with_max_calls(1).start().unwrap();
    let mut raw = Raw::connect(&server);
    let [first, second] = [1, 2].map(|id| call_frame(id, "echo", b"\x01x"));
    raw.write(&[hello_frame(&server), first, second].concat());
    let answers = raw.read_to_end();
    let refused = frame(6, 0, 0, 2, &[10, 0, 0, 0, 0, 0]);
    // The welcome, and the reply with its hash.
    assert_eq!(answers[24 + 12 + 8 + 2..], refused);
}

fn with_bye() -> Server {
    echo()
        .handle("bye", |ctx, (): ()| {
            ctx.close();
            Ok("see you")
        })
        .handle("hang up", |ctx, (): ()| {
            ctx.close_now();
            assert!(ctx.is_cancelled());
            Ok("never seen")
        })
        .handle("panic", |ctx, (): ()| -> Result<(), _> {
            ctx.close();
            panic!("as asked")
        })
        .handle("large", |ctx, size: usize| {
            ctx.close();
            Ok(Bytes::from(vec![7; size]))
        })
        .handle_stream("bye stream", |ctx, now: bool, mut channel: Channel| {
            channel.send("first")?;
            match now {
                true => ctx.close_now(),
                false => ctx.close(),
            }
            let last = channel.send("last");
            assert_eq!(last.is_err(), now);
            Ok(())
        })
}

fn a_handler_closes_the_connection_behind_its_answer() {
    let (definition, mut ends) = told(with_bye());
    let server = definition.start().unwrap();
    for mut client in clients(&server) {
        let before = client.begin::<_, String>("echo", "x").unwrap();
        let bye = client.begin::<_, String>("bye", &()).unwrap();
        let behind = client.begin::<_, String>("echo", "x").unwrap();
        client.flush().unwrap();
        assert_eq!(client.finish(before).unwrap(), "x");
        assert_eq!(client.finish(bye).unwrap(), "see you");
        let err = client.finish(behind).unwrap_err();
        assert!(matches!(err, CallError::Closing), "{err}");
        is_over(&mut client);
        ends_as(&mut ends, &Ending::Closed);
    }
}

fn a_large_answer_leaves_before_the_connection_is_closed() {
    let server = with_bye().start().unwrap();
    for mut client in clients(&server) {
        let size = 4 << 20;
        assert_eq!(client.call::<_, Bytes>("large", &size).unwrap().len(), size);
        is_over(&mut client);
    }
}

fn a_handler_closes_the_connection_without_an_answer() {
    let (definition, mut ends) = told(with_bye());
    let server = definition.start().unwrap();
    for mut client in clients(&server) {
        // The first leaves alone, the others together.
        let first = client.begin::<_, String>("echo", "x").unwrap();
        let hang_up = client.begin::<_, String>("hang up", &()).unwrap();
        let behind = client.begin::<_, String>("echo", "x").unwrap();
        client.flush().unwrap();
        for pending in [hang_up, behind] {
            let err = client.finish(pending).unwrap_err();
            assert!(matches!(err, CallError::Disconnected { .. }), "{err}");
            assert_eq!(err.delivery(), Delivery::MaybeExecuted);
        }
        drop(first);
        ends_as(&mut ends, &Ending::Closed);
    }
    echoes(&mut server.connect().unwrap());
}

fn a_streams_handler_closes_the_connection() {
    let (definition, mut ends) = told(with_bye());
    let server = definition.start().unwrap();
    for client in clients(&server) {
        let mut channel = client.open("bye stream", &false).unwrap();
        for expected in [Some("first"), Some("last"), None] {
            assert_eq!(channel.recv::<String>().unwrap().as_deref(), expected);
        }
        let err = channel.into_client().unwrap_err();
        assert!(matches!(err, StreamError::Disconnected), "{err}");
        ends_as(&mut ends, &Ending::Closed);
    }
    for client in clients(&server) {
        let mut channel = client.open("bye stream", &true).unwrap();
        assert_eq!(channel.recv::<String>().unwrap().unwrap(), "first");
        let err = channel.recv::<String>().unwrap_err();
        assert!(matches!(err, StreamError::Disconnected), "{err}");
        ends_as(&mut ends, &Ending::Closed);
    }
}

fn a_handler_that_panics_has_closed_all_the_same() {
    let server = with_bye().start().unwrap();
    for mut client in clients(&server) {
        let err = client.call::<_, ()>("panic", &()).unwrap_err();
        assert!(matches!(err, CallError::Panicked { .. }), "{err}");
        is_over(&mut client);
    }
}

fn tasks_put_off_run_although_the_connection_is_closed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let definition = echo()
        .keep_fd(&writer)
        .handle("close", move |ctx, now: bool| {
            let writer = writer.try_clone()?;
            ctx.defer(move || writeln!(&writer, "done").unwrap());
            match now {
                true => ctx.close_now(),
                false => ctx.close(),
            }
            Ok(())
        });
    let server = definition.start().unwrap();
    drop(definition);
    let mut lines = BufReader::new(reader).lines();
    for now in [true, false] {
        let result = server.connect().unwrap().call::<_, ()>("close", &now);
        assert_eq!(result.is_err(), now);
        assert_eq!(lines.next().unwrap().unwrap(), "done");
    }
}

fn failing() -> Server {
    echo()
        .handle("fault", |_, (): ()| Err::<(), _>(Fault::new("no")))
        .handle("panic", |_, (): ()| -> Result<(), _> { panic!("as asked") })
        .handle_stream("bad", |_, (): (), _: Channel| Err(Fault::new("no")))
}

/// Makes each mistake there is, on a client of its own.
fn mistakes(mut client: impl FnMut() -> Client, mut then: impl FnMut(Client)) {
    let mut fails = |name: &str, args: u8| {
        let mut client = client();
        let err = match args {
            0 => client.call::<_, ()>(name, &()).unwrap_err(),
            _ => client.call::<_, ()>(name, &args).unwrap_err(),
        };
        then(client);
        err
    };
    assert!(matches!(fails("fault", 0), CallError::Fault(_)));
    assert!(matches!(fails("panic", 0), CallError::Panicked { .. }));
    assert!(matches!(fails("nothing", 0), CallError::UnknownName { .. }));
    assert!(matches!(fails("echo", 1), CallError::TypeMismatch { .. }));
    assert!(matches!(fails("upper", 0), CallError::WrongForm { .. }));
    let mut channel = client().open("bad", &()).unwrap();
    let err = channel.recv::<String>().unwrap_err();
    assert!(matches!(err, StreamError::Fault(_)), "{err}");
}

fn any_error_closes_the_connection_if_that_is_wanted() {
    let (definition, mut ends) = told(failing().close_on_error(true));
    let server = definition.start().unwrap();
    let client = || {
        let mut client = Client::connect(server.address()).unwrap();
        (0..3).for_each(|_| echoes(&mut client));
        client
    };
    mistakes(client, |mut client| is_over(&mut client));
    for _ in 0..6 {
        ends_as(&mut ends, &Ending::CallFailed);
    }
}

fn errors_keep_the_connection_otherwise() {
    let server = failing().close_on_error(true).close_on_error(false).start();
    let server = server.unwrap();
    mistakes(
        || Client::connect(server.address()).unwrap(),
        |mut client| echoes(&mut client),
    );
}

fn a_failed_call_ends_a_batch() {
    let server = failing().close_on_error(true).start().unwrap();
    let mut client = server.connect().unwrap();
    let first = client.begin::<_, String>("echo", "x").unwrap();
    let second = client.begin::<_, ()>("fault", &()).unwrap();
    let third = client.begin::<_, String>("echo", "x").unwrap();
    assert_eq!(client.finish(first).unwrap(), "x");
    let err = client.finish(second).unwrap_err();
    assert!(matches!(err, CallError::Fault(_)), "{err}");
    let err = client.finish(third).unwrap_err();
    assert!(matches!(err, CallError::Closing), "{err}");
}
