//! What one handler grants: at each limit all is well, and one beyond it is a typed error that says which.

use crate::hostile::{Raw, call_frame, frame, hello_frame};
use forkserver::{
    Bytes, CallError, Channel, Client, Delivery, Event, EventHandler, Fault, Item, Listener,
    Password, Restrictions, Server, ServerHandle, Session, StartError, passenger,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

crate::tests![
    as_many_streams_of_a_handler_are_open_as_the_limit_and_not_one_more,
    as_many_calls_of_a_handler_run_as_the_limit_and_not_one_more,
    a_panic_gives_its_slot_back,
    arguments_at_the_limit_pass_and_beyond_it_do_not,
    a_refusal_has_these_bytes,
    a_handler_sees_the_earlier_of_both_deadlines,
    an_answer_in_time_passes_and_a_late_one_is_replaced,
    users_that_are_listed_may_call_and_others_may_not,
    a_rule_of_ones_own_decides_and_its_panic_is_a_refusal,
    restrictions_on_nothing_are_an_error_at_the_start,
    the_last_restrictions_of_a_name_hold,
    a_conversation_by_callbacks_has_its_slot_to_its_end,
    requests_in_passengers_format_are_restricted_too,
];

fn refused(result: Result<(), CallError>, words: &str) {
    let err = result.unwrap_err();
    assert_eq!(err.delivery(), Delivery::NotSent);
    match &err {
        CallError::Refused { reason, .. } => assert!(reason.contains(words), "{reason}"),
        err => panic!("{err}"),
    }
}

fn busy(err: &CallError) {
    assert_eq!(err.delivery(), Delivery::NotSent);
    let CallError::Busy { limit } = err else {
        panic!("{err}");
    };
    assert!(limit.contains("max_concurrent"), "{limit}");
}

fn uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn streams() -> Server {
    crate::server()
        .handle_stream("wait", |_, panics: bool, mut channel: Channel| {
            channel.send("here")?;
            let item = channel.recv::<String>();
            assert!(!panics, "as asked");
            item.map(drop)?;
            Ok(())
        })
        .restrict("wait", Restrictions::new().max_concurrent(2))
}

fn open(server: &ServerHandle, panics: bool) -> Result<Channel<Client>, CallError> {
    let mut channel = server.connect().unwrap().open("wait", &panics)?;
    assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
    Ok(channel)
}

fn as_many_streams_of_a_handler_are_open_as_the_limit_and_not_one_more() {
    let server = streams().start().unwrap();
    let (mut first, _second) = (open(&server, false).unwrap(), open(&server, true).unwrap());
    busy(&open(&server, false).unwrap_err());
    first.finish().unwrap();
    assert!(first.recv::<String>().unwrap().is_none());
    // The place is free before the answer is there.
    let mut third = open(&server, true).unwrap();
    busy(&open(&server, false).unwrap_err());
    third.send("x").unwrap();
    third.recv::<String>().unwrap_err();
    let _fourth = open(&server, false).unwrap();
    busy(&open(&server, false).unwrap_err());
}

fn as_many_calls_of_a_handler_run_as_the_limit_and_not_one_more() {
    let (mut entered, enter) = std::io::pipe().unwrap();
    let (wait, mut leave) = std::io::pipe().unwrap();
    let definition = crate::server()
        .keep_fd(&enter)
        .keep_fd(&wait)
        .handle("gate", move |_, (): ()| {
            (&enter).write_all(b"x")?;
            (&wait).read_exact(&mut [0])?;
            Ok(())
        })
        .handle("free", |_, (): ()| Ok(()))
        .restrict("gate", Restrictions::new().max_concurrent(2));
    let server = definition.start().unwrap();
    let mut clients = [server.connect().unwrap(), server.connect().unwrap()];
    let begin = |client: &mut Client| client.begin::<_, ()>("gate", &()).unwrap();
    let pending = clients.each_mut().map(begin);
    entered.read_exact(&mut [0; 2]).unwrap();
    let mut third = server.connect().unwrap();
    busy(&third.call::<_, ()>("gate", &()).unwrap_err());
    third.call::<_, ()>("free", &()).unwrap();
    leave.write_all(b"xxx").unwrap();
    for (client, pending) in clients.iter_mut().zip(pending) {
        client.finish(pending).unwrap();
    }
    third.call::<_, ()>("gate", &()).unwrap();
}

fn a_panic_gives_its_slot_back() {
    let one = Restrictions::new().max_concurrent(1);
    let server = crate::server()
        .handle("panic", |_, (): ()| -> Result<(), _> { panic!("as asked") })
        .handle("none", |_, (): ()| Ok(()))
        .restrict("panic", one)
        .restrict("none", Restrictions::new().max_concurrent(0))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    for _ in 0..3 {
        let err = client.call::<_, ()>("panic", &()).unwrap_err();
        assert!(matches!(err, CallError::Panicked { .. }), "{err}");
    }
    busy(&client.call::<_, ()>("none", &()).unwrap_err());
}

fn arguments_at_the_limit_pass_and_beyond_it_do_not() {
    let server = crate::server()
        .handle("length", |_, bytes: Bytes| Ok(bytes.len()))
        .restrict("length", Restrictions::new().max_payload(101))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let mut length = |len: usize| {
        let bytes = Bytes::from(vec![1; len]);
        client.call::<_, usize>("length", &bytes)
    };
    // One byte says how many there are.
    assert_eq!(length(100).unwrap(), 100);
    refused(
        length(101).map(drop),
        "102 bytes, more than max_payload, 101",
    );
    assert_eq!(length(0).unwrap(), 0);
}

fn a_refusal_has_these_bytes() {
    let server = crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .restrict("echo", Restrictions::new().max_payload(4))
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&[hello_frame(&server), call_frame(2, "echo", b"\x04abcd")].concat());
    raw.finish_writing();
    let text = b"the arguments have 5 bytes, more than max_payload, 4";
    let body = [&[11, 0, 0, 0, 0, 1, 52, 0, 0, 0], &text[..]].concat();
    assert_eq!(raw.read_to_end()[24..], frame(6, 0, 0, 2, &body));
}

fn a_handler_sees_the_earlier_of_both_deadlines() {
    let left = |ctx: &mut forkserver::Context, (): ()| {
        let left = ctx
            .deadline()
            .map(|at| at.saturating_duration_since(Instant::now()));
        Ok(left.map(|left| left.as_secs()))
    };
    let server = crate::server()
        .handle("free", left)
        .handle("bound", left)
        .restrict(
            "bound",
            Restrictions::new().deadline(Duration::from_secs(1000)),
        )
        .start()
        .unwrap();
    let mut patient = server.connect().unwrap();
    let mut call = |name: &str| patient.call::<_, Option<u64>>(name, &()).unwrap();
    assert_eq!(call("free"), None);
    assert!((900..=1000).contains(&call("bound").unwrap()));
    let mut hasty = server
        .connect()
        .unwrap()
        .with_timeout(Duration::from_secs(500));
    for name in ["free", "bound"] {
        let left = hasty.call::<_, Option<u64>>(name, &()).unwrap().unwrap();
        assert!((400..=500).contains(&left), "{left}");
    }
}

fn an_answer_in_time_passes_and_a_late_one_is_replaced() {
    let limit = Duration::from_millis(400);
    let server = crate::server()
        .handle("late", |ctx, late: bool| {
            while late && !ctx.is_cancelled() {
                std::thread::yield_now();
            }
            Ok("an answer")
        })
        .handle_stream("stream", |ctx, (): (), mut channel: Channel| {
            while !ctx.is_cancelled() {
                std::thread::yield_now();
            }
            channel.send("late")?;
            Ok(())
        })
        .restrict("late", Restrictions::new().deadline(limit))
        .restrict("stream", Restrictions::new().deadline(limit))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    for late in [false, true, false] {
        let result = client.call::<_, String>("late", &late);
        match (late, result) {
            (false, Ok(answer)) => assert_eq!(answer, "an answer"),
            (true, Err(err)) => {
                assert_eq!(err.delivery(), Delivery::Executed);
                assert!(
                    matches!(err, CallError::TimedOut { after, .. } if after == limit),
                    "{err}"
                );
            }
            (_, result) => panic!("{result:?}"),
        }
    }
    let mut channel = client.open("stream", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().unwrap(), "late");
    assert!(channel.recv::<String>().unwrap().is_none());
}

fn users_that_are_listed_may_call_and_others_may_not() {
    let server = crate::server()
        .handle("ours", |_, (): ()| Ok(()))
        .handle("theirs", |_, (): ()| Ok(()))
        .handle_stream("stream", |_, (): (), _: Channel| Ok(()))
        .restrict("ours", Restrictions::new().users([uid() + 1, uid()]))
        .restrict("theirs", Restrictions::new().users([uid() + 1]))
        .restrict("stream", Restrictions::new().users([]))
        .start()
        .unwrap();
    for mut client in [
        server.connect().unwrap(),
        Client::connect(server.address()).unwrap(),
    ] {
        client.call::<_, ()>("ours", &()).unwrap();
        let who = format!("user {} may not", uid());
        refused(client.call("theirs", &()), &who);
        client.call::<_, ()>("ours", &()).unwrap();
        refused(client.open("stream", &()).map(drop), &who);
    }
}

fn a_rule_of_ones_own_decides_and_its_panic_is_a_refusal() {
    let (reader, writer) = std::io::pipe().unwrap();
    let own = std::process::id();
    let definition = crate::server()
        .keep_fd(&writer)
        .observe(move |event| {
            if let Event::Panicked { what, message, .. } = event {
                writeln!(&writer, "{what}: {message}").unwrap();
            }
        })
        .handle("ours", |_, (): ()| Ok(()))
        .handle("both", |_, (): ()| Ok(()))
        .handle("panic", |_, (): ()| Ok(()))
        .restrict(
            "ours",
            Restrictions::new().peers(move |peer| peer.pid.unsigned_abs() == own),
        )
        .restrict(
            "both",
            Restrictions::new()
                .users([uid()])
                .peers(|peer| peer.pid < 0),
        )
        .restrict("panic", Restrictions::new().peers(|_| panic!("no idea")));
    let server = definition.start().unwrap();
    drop(definition);
    let mut client = Client::connect(server.address()).unwrap();
    client.call::<_, ()>("ours", &()).unwrap();
    refused(client.call("both", &()), "may not call it");
    refused(client.call("panic", &()), "may not call it");
    let mut lines = BufReader::new(reader).lines();
    let told = lines.next().unwrap().unwrap();
    assert_eq!(told, "the restrictions of \"panic\": no idea");
}

fn restrictions_on_nothing_are_an_error_at_the_start() {
    let err = crate::server()
        .restrict("nothing", Restrictions::new())
        .start()
        .unwrap_err();
    assert!(
        matches!(&err, StartError::NoSuchHandler { name } if name == "nothing"),
        "{err}"
    );
}

fn the_last_restrictions_of_a_name_hold() {
    let server = crate::server()
        .restrict("echo", Restrictions::new().max_payload(0))
        .handle("echo", |_, text: String| Ok(text))
        .restrict("echo", Restrictions::new().max_concurrent(1))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

/// Says that it is there, and ends with the first item.
struct One;

impl EventHandler for One {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        Ok(session.send("here")?)
    }

    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        assert_ne!(item.decode::<String>()?, "panic");
        session.close();
        Ok(())
    }
}

fn a_conversation_by_callbacks_has_its_slot_to_its_end() {
    let server = crate::server()
        .handle_events("one", |_, (): ()| Ok(One))
        .handle("echo", |_, text: String| Ok(text))
        .restrict("one", Restrictions::new().max_concurrent(1))
        .start()
        .unwrap();
    let open = || {
        let mut channel = server.connect().unwrap().open("one", &())?;
        assert_eq!(channel.recv::<String>().unwrap().unwrap(), "here");
        Ok(channel)
    };
    for item in ["end", "panic", "end"] {
        let mut channel = open().unwrap();
        busy(&open().unwrap_err());
        channel.send(item).unwrap();
        assert_eq!(channel.recv::<String>().is_err(), item == "panic");
        // Its connection goes on, and has the slot no more.
        let mut client = channel.into_client().unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
    // One that is left by its client is free as soon as the server has seen it.
    drop(open().unwrap());
    let begun = Instant::now();
    while let Err(err) = open() {
        busy(&err);
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

fn requests_in_passengers_format_are_restricted_too() {
    let path = std::env::temp_dir().join("p");
    let (reader, writer) = std::io::pipe().unwrap();
    let secret = b"a password of the original's kind";
    let listener = Listener::at(&path).password(Password::new(secret).unwrap());
    let definition = crate::server()
        .listen(listener.passenger())
        .keep_fd(&writer)
        .observe(move |event| {
            if let Event::Unanswered { name, reason, .. } = event {
                writeln!(&writer, "{name}: {reason}").unwrap();
            }
        })
        .handle("few", |_, text: String| Ok(text))
        .handle("theirs", |_, text: String| Ok(text))
        .handle_messages("wait", |_, _, mut channel| {
            channel.write(&["here"])?;
            channel.read()?;
            Ok(())
        })
        .restrict("few", Restrictions::new().max_payload(3))
        .restrict("theirs", Restrictions::new().users([uid() + 1]))
        .restrict("wait", Restrictions::new().max_concurrent(1));
    let _server = definition.start().unwrap();
    drop(definition);
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let client = passenger::Client::new(&path, secret).with_timeout(Duration::from_secs(10));
    let call = |name: &str, text: &str| client.open(name, &[text]).unwrap().read().unwrap();
    assert_eq!(call("few", "abc").unwrap(), [b"abc"]);
    assert_eq!(call("few", "abcd"), None);
    assert!(lines.next().unwrap().contains("max_payload, 3"));
    assert_eq!(call("theirs", "abc"), None);
    assert!(lines.next().unwrap().contains("may not call it"));
    let mut first = client.open("wait", &[""]).unwrap();
    assert_eq!(first.read().unwrap().unwrap(), [b"here"]);
    assert_eq!(call("wait", ""), None);
    assert!(lines.next().unwrap().contains("max_concurrent"));
    drop(first);
    let begun = Instant::now();
    while call("wait", "").is_none() {
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
