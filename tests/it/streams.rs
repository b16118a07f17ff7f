//! Streams: items both ways, errors at the right end, two threads, and how they end.

use crate::calls::gate;
use crate::hostile::{Raw, call_frame, frame, hello_frame};
use crate::processes::{Helper, Watched, readable};
use forkserver::{
    Bytes, CallError, Channel, Client, Delivery, Exit, Fd, Limits, Server, StopReason, StreamError,
};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

crate::tests![
    items_go_both_ways_and_the_client_comes_back,
    items_carry_descriptors_and_byte_strings,
    what_goes_wrong_before_the_switch_arrives_at_open,
    as_many_streams_as_the_limit_and_not_one_more,
    arguments_that_panic_when_a_stream_is_refused_hurt_nobody,
    a_fault_or_a_panic_ends_the_stream,
    each_direction_can_be_finished_alone,
    both_directions_can_be_busy_at_once,
    halves_of_two_channels_do_not_fit,
    what_the_handler_did_not_read_is_dropped,
    calls_begun_before_a_stream_are_finished_after_it,
    items_of_another_type_are_refused_one_by_one,
    a_wait_ends_in_time_and_the_channel_lives,
    what_has_arrived_needs_no_time,
    queued_items_leave_together,
    streams_take_no_thread_from_calls,
    threads_of_streams_do_not_pile_up,
    a_client_that_dies_is_told_from_one_that_finishes,
    a_half_that_is_dropped_breaks_off,
    what_a_streams_handler_puts_off_comes_before_the_next_call,
    whatever_does_not_belong_into_a_stream_ends_the_connection,
    a_stop_tells_streams_last,
    a_stop_tells_streams_in_time_even_if_a_call_hangs,
    what_a_handler_said_at_last_is_heard_after_a_stop,
    a_handler_polls_its_stop_token_and_its_channel,
    a_stream_that_does_not_listen_is_killed_with_the_server,
    run_ends_streams_that_do_not_listen,
    a_forked_copy_cannot_use_a_channel,
    the_server_counts_streams,
];

/// `upper` answers each item with the same in capitals; `echo` is a call.
fn upper() -> Server {
    crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .handle_stream("upper", |_, prefix: String, mut channel: Channel| {
            while let Some(text) = channel.recv::<String>()? {
                channel.send(&format!("{prefix}{}", text.to_uppercase()))?;
            }
            Ok(())
        })
}

/// `wait` waits for an item, says how the wait ended, and does what the item says.
fn waiting() -> Server {
    upper().handle_stream("wait", |_, (): (), mut channel: Channel| {
        channel.send("open")?;
        match channel.recv::<String>() {
            Ok(Some(item)) if item == "fault" => {
                Err(forkserver::Fault::new("as asked").with_code(7))
            }
            Ok(Some(item)) if item == "panic" => panic!("as asked"),
            Err(StreamError::Stopped(reason)) => {
                channel.send(&format!("{reason}, {}", channel.stop_token().is_stopped()))?;
                Ok(())
            }
            other => {
                channel.send(&format!("{other:?}"))?;
                Ok(())
            }
        }
    })
}

fn open_waiting(client: Client) -> Channel<Client> {
    let mut channel = client.open("wait", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    channel
}

fn items_go_both_ways_and_the_client_comes_back() {
    let server = upper().start().unwrap();
    for client in [
        server.connect().unwrap(),
        Client::connect(server.address()).unwrap(),
    ] {
        let mut client = client;
        for round in 0..3 {
            let mut channel = client.open("upper", &format!("{round}: ")).unwrap();
            for text in ["one", "two"] {
                channel.send(text).unwrap();
                let answer: String = channel.recv().unwrap().unwrap();
                assert_eq!(answer, format!("{round}: {}", text.to_uppercase()));
            }
            channel.finish().unwrap();
            channel.finish().expect("once more is harmless");
            assert!(matches!(channel.send("three"), Err(StreamError::Finished)));
            assert!(channel.recv::<String>().unwrap().is_none());
            assert!(channel.recv::<String>().unwrap().is_none());
            client = channel.into_client().unwrap();
            assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
        }
    }
}

fn items_carry_descriptors_and_byte_strings() {
    let server = crate::server()
        .handle_stream("fill", |_, first: Fd, mut channel: Channel| {
            std::fs::File::from(first).write_all(b"0")?;
            let mut number = 0_u8;
            while let Some((fd, bytes)) = channel.recv::<(Fd, Bytes)>()? {
                number += 1;
                std::fs::File::from(fd).write_all(&[b'0' + number])?;
                let (reader, mut writer) = std::io::pipe()?;
                writer.write_all(&bytes[..1])?;
                channel.send(&(Fd::from(std::os::fd::OwnedFd::from(reader)), bytes))?;
            }
            Ok(())
        })
        .start()
        .unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let fd = || Fd::from(std::os::fd::OwnedFd::from(writer.try_clone().unwrap()));
    let mut channel = server.connect().unwrap().open("fill", &fd()).unwrap();
    for size in [1, 5_000, 1 << 20] {
        let bytes = Bytes::from(vec![b'a'; size]);
        channel.send(&(fd(), bytes.clone())).unwrap();
        let (back, same) = channel.recv::<(Fd, Bytes)>().unwrap().unwrap();
        assert!(same == bytes);
        let mut text = String::new();
        std::fs::File::from(back).read_to_string(&mut text).unwrap();
        assert_eq!(text, "a");
    }
    channel.into_client().unwrap();
    drop(writer);
    let mut written = String::new();
    reader.read_to_string(&mut written).unwrap();
    assert_eq!(written, "0123");
}

fn what_goes_wrong_before_the_switch_arrives_at_open() {
    let server = upper().start().unwrap();
    let open = |name: &str| server.connect().unwrap().open(name, &()).unwrap_err();
    let err = open("uper");
    assert!(
        matches!(&err, CallError::UnknownName { similar: Some(similar), .. } if similar == "upper"),
        "{err}"
    );
    let err = open("upper");
    assert!(matches!(err, CallError::TypeMismatch { .. }), "{err}");
    let err = open("echo");
    assert!(matches!(&err, CallError::WrongForm { name, is_stream: false } if name == "echo"));
    assert_eq!(err.to_string(), "\"echo\" is no stream: use `Client::call`");
    let mut client = server.connect().unwrap();
    let err = client.call::<_, ()>("upper", "x").unwrap_err();
    assert!(matches!(
        err,
        CallError::WrongForm {
            is_stream: true,
            ..
        }
    ));
    assert_eq!(err.delivery(), Delivery::NotSent);
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn as_many_streams_as_the_limit_and_not_one_more() {
    let mut limits = Limits::default();
    limits.max_dedicated = 2;
    let server = upper().limits(limits).start().unwrap();
    let open = || server.connect().unwrap().open("upper", "");
    let (first, second) = (open().unwrap(), open().unwrap());
    let err = open().unwrap_err();
    assert!(
        matches!(&err, CallError::Busy { limit } if limit == "max_dedicated"),
        "{err}"
    );
    assert_eq!(err.delivery(), Delivery::NotSent);
    let mut client = first.into_client().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let third = open().unwrap();
    drop((second, third));
}

/// Panics when it is dropped.
#[derive(serde::Serialize, serde::Deserialize)]
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

fn arguments_that_panic_when_a_stream_is_refused_hurt_nobody() {
    let mut limits = Limits::default();
    (limits.max_dedicated, limits.max_threads) = (0, 1);
    let server = upper()
        .limits(limits)
        .handle_stream("bomb", |_, _: Bomb, _: Channel| Ok(()))
        .start()
        .unwrap();
    let bomb = std::mem::ManuallyDrop::new(Bomb);
    for _ in 0..3 {
        let err = server.connect().unwrap().open("bomb", &*bomb).unwrap_err();
        assert!(matches!(err, CallError::Busy { .. }), "{err}");
    }
    // The only thread is still there.
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn a_fault_or_a_panic_ends_the_stream() {
    let server = waiting().start().unwrap();
    for at_the_end in [false, true] {
        let mut faulty = open_waiting(server.connect().unwrap());
        faulty.send("fault").unwrap();
        let err = match at_the_end {
            false => faulty.recv::<String>().unwrap_err(),
            true => faulty.into_client().unwrap_err(),
        };
        assert!(
            matches!(&err, StreamError::Fault(fault) if fault.code() == 7 && fault.message() == "as asked"),
            "{err}"
        );
        let mut panicking = open_waiting(server.connect().unwrap());
        panicking.send("panic").unwrap();
        let err = match at_the_end {
            false => panicking.recv::<String>().unwrap_err(),
            true => panicking.into_client().unwrap_err(),
        };
        assert!(
            matches!(&err, StreamError::Panicked { message, location }
                if message == "as asked" && location.contains("streams.rs")),
            "{err}"
        );
    }
    let mut faulty = open_waiting(server.connect().unwrap());
    faulty.send("fault").unwrap();
    assert!(faulty.recv::<String>().is_err());
    assert!(faulty.recv::<String>().unwrap().is_none(), "told once");
    let mut client = faulty.into_client().expect("the connection is in order");
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn each_direction_can_be_finished_alone() {
    let server = crate::server()
        .handle_stream("sum", |_, (): (), mut channel: Channel| {
            channel.send("begin")?;
            channel.finish()?;
            assert!(matches!(channel.send("more"), Err(StreamError::Finished)));
            let mut sum = 0;
            while let Some(n) = channel.recv::<u64>()? {
                sum += n;
            }
            Err(forkserver::Fault::new(format!("the sum is {sum}")))
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("sum", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("begin"));
    assert!(channel.recv::<String>().unwrap().is_none());
    (1..=100_u64).for_each(|n| channel.send(&n).unwrap());
    assert_eq!(
        channel.into_client().unwrap_err().to_string(),
        "the sum is 5050"
    );
}

fn both_directions_can_be_busy_at_once() {
    const COUNT: u32 = 300;
    let exchange = |channel: Channel| -> Result<(), StreamError> {
        let (mut send, mut receive) = channel.split();
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let bytes = Bytes::from(vec![1; 64 << 10]);
                (0..COUNT).try_for_each(|_| send.send(&bytes))?;
                send.finish()
            });
            let mut count = 0;
            while receive.recv::<Bytes>()?.is_some() {
                count += 1;
            }
            assert_eq!(count, COUNT);
            sender.join().unwrap()
        })
    };
    let server = crate::server()
        .handle_stream("flood", move |_, (): (), channel: Channel| {
            Ok(exchange(channel)?)
        })
        .start()
        .unwrap();
    let channel = server.connect().unwrap().open("flood", &()).unwrap();
    let (mut send, mut receive) = channel.split();
    let sender = std::thread::spawn(move || {
        let bytes = Bytes::from(vec![2; 64 << 10]);
        (0..COUNT).for_each(|_| send.send(&bytes).unwrap());
        send.finish().unwrap();
        send
    });
    let mut count = 0;
    while receive.recv::<Bytes>().unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, COUNT);
    let channel = Channel::unite(sender.join().unwrap(), receive).unwrap();
    channel.into_client().unwrap();
}

fn halves_of_two_channels_do_not_fit() {
    let server = upper().start().unwrap();
    let open = || server.connect().unwrap().open("upper", "").unwrap();
    let ((send, _receive), (_send, receive)) = (open().split(), open().split());
    assert!(Channel::unite(send, receive).is_err());
}

fn what_the_handler_did_not_read_is_dropped() {
    let server = upper()
        .handle_stream("deaf", |_, (): (), mut channel: Channel| {
            channel.recv::<u32>()?;
            Ok(())
        })
        .start()
        .unwrap();
    let null = || Fd::from(std::fs::File::open("/dev/null").unwrap());
    let before = crate::harness::descriptors(&server.pid().to_string()).len();
    let mut channel = server.connect().unwrap().open("deaf", &()).unwrap();
    for n in 0..50_u32 {
        // The handler may be gone by now: what it does not read is dropped, with its descriptors.
        channel.queue(&n).unwrap();
        channel.send(&(null(), null())).unwrap();
    }
    let mut client = channel.into_client().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let during = crate::harness::descriptors(&server.pid().to_string()).len();
    assert_eq!(during, before + 1, "the connection, and nothing else");
}

fn calls_begun_before_a_stream_are_finished_after_it() {
    let server = upper().start().unwrap();
    let mut client = server.connect().unwrap();
    let first = client.begin::<_, String>("echo", "first").unwrap();
    let second = client.begin::<_, String>("echo", "second").unwrap();
    let mut channel = client.open("upper", "").unwrap();
    channel.send("x").unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("X"));
    let mut client = channel.into_client().unwrap();
    assert_eq!(client.finish(second).unwrap(), "second");
    assert_eq!(client.finish(first).unwrap(), "first");
}

fn items_of_another_type_are_refused_one_by_one() {
    let server = upper().start().unwrap();
    let mut channel = server.connect().unwrap().open("upper", "").unwrap();
    channel.send("x").unwrap();
    let err = channel.recv::<u32>().unwrap_err();
    assert!(matches!(err, StreamError::TypeMismatch(_)), "{err}");
    channel.send("y").unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("Y"));
    let too_large = Bytes::from(vec![0; (16 << 20) + 1]);
    let err = channel.send(&too_large).unwrap_err();
    assert!(matches!(err, StreamError::TooLarge(_)), "{err}");
    channel.send(&300_u16).unwrap();
    let err = channel.recv::<String>().unwrap_err();
    assert!(
        matches!(&err, StreamError::Fault(fault) if fault.message().contains("does not have the expected type")),
        "{err}"
    );
}

fn a_wait_ends_in_time_and_the_channel_lives() {
    let server = crate::server()
        .handle_stream("slow", |_, go: Fd, mut channel: Channel| {
            std::fs::File::from(go).read_exact(&mut [0])?;
            let mut size = 0;
            while let Some(bytes) = channel.recv::<Bytes>()? {
                size += bytes.len();
            }
            channel.send(&size)?;
            Ok(())
        })
        .start()
        .unwrap();
    let (theirs, mut go) = std::io::pipe().unwrap();
    let client = server
        .connect()
        .unwrap()
        .with_timeout(Duration::from_secs(20));
    let go_fd = Fd::from(std::os::fd::OwnedFd::from(theirs));
    let mut channel = client.open("slow", &go_fd).unwrap();
    channel.set_timeout(Some(Duration::from_millis(50)));
    let begun = Instant::now();
    let err = channel.recv::<usize>().unwrap_err();
    assert!(matches!(err, StreamError::TimedOut(_)), "{err}");
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let large = Bytes::from(vec![1; 4 << 20]);
    let err = channel.send(&large).unwrap_err();
    assert!(matches!(err, StreamError::TimedOut(_)), "{err}");
    go.write_all(b"!").unwrap();
    channel.set_timeout(Some(Duration::from_secs(20)));
    channel.finish().expect("the rest leaves");
    assert_eq!(channel.recv::<usize>().unwrap(), Some(4 << 20));
    channel.into_client().unwrap();
}

fn what_has_arrived_needs_no_time() {
    let server = waiting().start().unwrap();
    let mut channel = server.connect().unwrap().open("wait", &()).unwrap();
    channel.set_timeout(Some(Duration::ZERO));
    let seconds = Duration::from_secs(20);
    assert!(channel.has_buffered() || readable(&channel, seconds));
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    let err = channel.recv::<String>().unwrap_err();
    assert!(matches!(err, StreamError::TimedOut(_)), "{err}");
}

fn queued_items_leave_together() {
    let server = upper().start().unwrap();
    let mut limits = Limits::default();
    limits.high_watermark = 50_000;
    let client = server.connect().unwrap().with_limits(limits);
    let mut channel = client.open("upper", "").unwrap();
    (0..10).for_each(|n| channel.queue(&n.to_string()).unwrap());
    assert!(
        !readable(&channel, Duration::from_millis(50)),
        "nothing has left"
    );
    channel.flush().unwrap();
    for n in 0..10 {
        assert_eq!(channel.recv::<String>().unwrap(), Some(n.to_string()));
    }
    let long = "x".repeat(10_000);
    (0..6).for_each(|_| channel.queue(&long).unwrap());
    assert!(
        readable(&channel, Duration::from_secs(5)),
        "more than high_watermark leaves by itself"
    );
}

fn streams_take_no_thread_from_calls() {
    let mut limits = Limits::default();
    limits.max_threads = 1;
    let server = waiting().limits(limits).start().unwrap();
    let streams: Vec<_> = (0..20)
        .map(|_| open_waiting(server.connect().unwrap()))
        .collect();
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    for mut stream in streams {
        stream.send("go on").unwrap();
        let how = stream.recv::<String>().unwrap();
        assert_eq!(how.as_deref(), Some("Ok(Some(\"go on\"))"));
        client = stream.into_client().unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
}

fn threads_of_streams_do_not_pile_up() {
    let server = upper().start().unwrap();
    let tasks = format!("/proc/{}/task", server.pid());
    let count = || std::fs::read_dir(&tasks).unwrap().count();
    let mut client = server.connect().unwrap();
    for _ in 0..200 {
        client = client.open("upper", "").unwrap().into_client().unwrap();
    }
    client.call::<_, String>("echo", "x").unwrap();
    assert!(count() < 8, "{} threads", count());
}

fn a_client_that_dies_is_told_from_one_that_finishes() {
    let server = waiting()
        .handle_stream("report", |_, to: Fd, mut channel: Channel| {
            let how = format!("{:?}", channel.recv::<String>());
            std::fs::File::from(to).write_all(how.as_bytes())?;
            Ok(())
        })
        .start()
        .unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let to = Fd::from(std::os::fd::OwnedFd::from(writer));
    let mut helper = Helper::start(|test| {
        let client = Client::connect(server.address()).unwrap();
        let _channel = client.open("report", &to).unwrap();
        test.say("open");
        test.wait();
    });
    drop(to);
    assert_eq!(helper.hear(), "open");
    helper.kill();
    let mut how = String::new();
    reader.read_to_string(&mut how).unwrap();
    assert_eq!(how, "Err(Disconnected)");
    let mut finishing = open_waiting(server.connect().unwrap());
    finishing.finish().unwrap();
    assert_eq!(
        finishing.recv::<String>().unwrap().as_deref(),
        Some("Ok(None)")
    );
}

fn a_half_that_is_dropped_breaks_off() {
    let server = waiting().start().unwrap();
    let (send, mut receive) = open_waiting(server.connect().unwrap()).split();
    drop(send);
    assert_eq!(
        receive.recv::<String>().unwrap().as_deref(),
        Some("Err(Disconnected)")
    );
    assert!(receive.recv::<String>().unwrap().is_none());
    let (mut send, receive) = open_waiting(server.connect().unwrap()).split();
    drop(receive);
    send.finish()
        .expect("the connection is open as long as a half is");
}

fn what_a_streams_handler_puts_off_comes_before_the_next_call() {
    let done = Arc::new(AtomicBool::new(false));
    let (task, seen) = (Arc::clone(&done), done);
    let server = crate::server()
        .handle_stream("later", move |context, (): (), _: Channel| {
            let task = Arc::clone(&task);
            context.defer(move || task.store(true, Ordering::SeqCst));
            Ok(())
        })
        .handle("done", move |_, (): ()| Ok(seen.load(Ordering::SeqCst)))
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    let stream = [frame(4, 0, 8, 1, b"\x05later"), frame(9, 0, 0, 1, b"")];
    let call = call_frame(2, "done", b"");
    raw.write(&[hello_frame(&server), stream.concat(), call].concat());
    raw.finish_writing();
    assert_eq!(raw.read_to_end().last(), Some(&1));
}

fn whatever_does_not_belong_into_a_stream_ends_the_connection() {
    let server = waiting().start().unwrap();
    let open = frame(4, 0, 8, 1, b"\x04wait");
    let item = |id| frame(8, 0, 0, id, b"\x02hi");
    let end = |id| frame(9, 0, 0, id, b"");
    let bad = [
        call_frame(2, "echo", b"\x01x"),
        item(2),
        end(2),
        frame(7, 0, 0, 1, b""),
        frame(5, 0, 0, 1, b""),
        frame(8, 3, 0, 1, b""),
        frame(8, 0, 0x80, 1, b""),
        frame(8, 0, 1, 1, b"short"),
        [item(1), call_frame(2, "echo", b"\x01x")].concat(),
        [end(1), end(1)].concat(),
        [item(1), end(1), item(1)].concat(),
    ];
    for bytes in bad {
        let mut raw = Raw::connect(&server);
        raw.write(&[&hello_frame(&server)[..], &open, &bytes].concat());
        let said = raw.read_to_end();
        let protocol = said.windows(13).any(|part| part[0] == 6 && part[12] == 7);
        assert!(protocol, "{bytes:?} was answered {said:?}");
    }
    // A stream's frames without a stream.
    for bytes in [item(1), end(1)] {
        let mut raw = Raw::connect(&server);
        raw.write(&[hello_frame(&server), bytes].concat());
        assert!(raw.read_to_end().contains(&7));
    }
    // In order: a stream, and a call behind its end, in one write.
    let mut raw = Raw::connect(&server);
    let call = call_frame(2, "echo", b"\x05after");
    raw.write(&[&hello_frame(&server)[..], &open, &item(1), &end(1), &call].concat());
    raw.finish_writing();
    let said = raw.read_to_end();
    assert!(said.ends_with(b"\x05after"), "{said:?}");
}

fn a_stop_tells_streams_last() {
    let (definition, mut entered, mut leave) = gate(waiting());
    let server = definition.start().unwrap();
    let mut stream = open_waiting(server.connect().unwrap());
    let mut caller = server.connect().unwrap();
    let call = caller.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.stop().unwrap());
        stream.set_timeout(Some(Duration::from_millis(300)));
        let err = stream.recv::<String>().unwrap_err();
        assert!(
            matches!(err, StreamError::TimedOut(_)),
            "told too early: {err}"
        );
        leave.write_all(b"x").unwrap();
        caller.finish(call).unwrap();
        stream.set_timeout(None);
        let told = stream.recv::<String>().unwrap();
        assert_eq!(told.as_deref(), Some("the server is stopping, true"));
        assert!(stream.recv::<String>().unwrap().is_none());
        assert_eq!(stopping.join().unwrap(), Exit::Code(0));
    });
}

fn a_stop_tells_streams_in_time_even_if_a_call_hangs() {
    let (definition, mut entered, leave) = gate(waiting());
    let server = definition.start().unwrap();
    let mut stream = open_waiting(server.connect().unwrap());
    let mut caller = server.connect().unwrap();
    let _call = caller.begin::<_, (bool, bool)>("gate", &()).unwrap();
    entered.read_exact(&mut [0]).unwrap();
    std::thread::scope(|scope| {
        let patience = Duration::from_millis(600);
        let stopping = scope.spawn(move || server.stop_within(patience).unwrap());
        let begun = Instant::now();
        let told = stream.recv::<String>().unwrap();
        assert_eq!(told.as_deref(), Some("the server is stopping, true"));
        assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
        assert_eq!(stopping.join().unwrap(), Exit::Signal(9));
    });
    drop(leave);
}

fn what_a_handler_said_at_last_is_heard_after_a_stop() {
    let server = waiting()
        .handle_stream("faulty", |_, (): (), mut channel: Channel| {
            channel.send("open")?;
            Ok(channel.recv().map(|_: Option<()>| ())?)
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("faulty", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    let orderly = open_waiting(server.connect().unwrap());
    server.stop().unwrap();
    let err = channel.into_client().unwrap_err();
    assert!(
        matches!(&err, StreamError::Fault(fault) if fault.message().contains("stopping")),
        "{err}"
    );
    // Nothing was wrong, but there is no connection any more.
    let err = orderly.into_client().unwrap_err();
    assert!(matches!(err, StreamError::Disconnected), "{err}");
}

fn a_handler_polls_its_stop_token_and_its_channel() {
    let server = crate::server()
        .handle_stream("poll", |_, (): (), mut channel: Channel| {
            let token = channel.stop_token().clone();
            channel.send("open")?;
            loop {
                let mut polled = [channel.as_fd(), token.as_fd()]
                    .map(|fd| nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN));
                nix::poll::poll(&mut polled, nix::poll::PollTimeout::NONE)?;
                let [item, told] = polled.map(|fd| fd.any().unwrap());
                if item || channel.has_buffered() {
                    let Some(text) = channel.recv::<String>()? else {
                        return Ok(());
                    };
                    channel.send(&text)?;
                }
                if told {
                    assert_eq!(token.reason(), Some(StopReason::ServerStopping));
                    channel.send("good-bye")?;
                    return Ok(());
                }
            }
        })
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("poll", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    channel.send("x").unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("x"));
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.stop().unwrap());
        assert_eq!(
            channel.recv::<String>().unwrap().as_deref(),
            Some("good-bye")
        );
        assert_eq!(stopping.join().unwrap(), Exit::Code(0));
    });
    assert!(channel.recv::<String>().unwrap().is_none());
    assert!(matches!(channel.send("x"), Err(StreamError::Disconnected)));
}

fn stubborn() -> Server {
    upper().handle_stream("stubborn", |_, (): (), mut channel: Channel| {
        channel.send("open")?;
        loop {
            // Does not mind being told, and reads until the connection ends.
            match channel.recv::<String>() {
                Err(StreamError::Stopped(_)) => {
                    channel.set_timeout(Some(Duration::from_millis(1)));
                    std::thread::yield_now();
                }
                Err(StreamError::TimedOut(_)) | Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    })
}

fn a_stream_that_does_not_listen_is_killed_with_the_server() {
    let server = stubborn().start().unwrap();
    let mut channel = server.connect().unwrap().open("stubborn", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    let patience = Duration::from_millis(300);
    let begun = Instant::now();
    assert_eq!(server.stop_within(patience).unwrap(), Exit::Signal(9));
    assert!(begun.elapsed() < patience + Duration::from_millis(300));
    assert!(matches!(
        channel.recv::<String>(),
        Err(StreamError::Disconnected)
    ));

    let server = stubborn().grace(patience).start().unwrap();
    let mut channel = server.connect().unwrap().open("stubborn", &()).unwrap();
    assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
    let watched = Watched::server(&server);
    nix::sys::signal::kill(watched.pid, nix::sys::signal::SIGTERM).unwrap();
    let took = watched.ends_within(patience + Duration::from_millis(300));
    assert!(took >= patience);
    assert_eq!(server.wait(), Exit::Signal(15));
}

fn run_ends_streams_that_do_not_listen() {
    let path = std::env::temp_dir().join("socket");
    let password = forkserver::Password::new([7; 32]).unwrap();
    let listener = forkserver::Listener::at(&path).password(password);
    let (tell, told) = std::sync::mpsc::channel();
    let definition = stubborn()
        .grace(Duration::from_millis(200))
        .initialize(move |control| {
            tell.send(control.clone())?;
            Ok(())
        })
        .listen(listener);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| definition.run().unwrap());
        let control = told.recv().unwrap();
        let mut client = loop {
            // Bound before `initialize`, listening soon after.
            match Client::connect(&control.address()) {
                Ok(client) => break client,
                Err(_) => std::thread::yield_now(),
            }
        };
        client.authenticate().unwrap();
        let mut channel = client.open("stubborn", &()).unwrap();
        assert_eq!(channel.recv::<String>().unwrap().as_deref(), Some("open"));
        control.stop();
        assert_eq!(
            running.join().unwrap(),
            Exit::Code(1),
            "not all had finished"
        );
        assert!(channel.recv::<String>().is_err());
    });
    // Its connection is cut, so that the handler returns by itself, soon after `run`.
    while std::fs::read_dir("/proc/self/task").unwrap().count() > 1 {
        std::thread::yield_now();
    }
}

fn a_forked_copy_cannot_use_a_channel() {
    let server = upper().start().unwrap();
    let mut channel = server.connect().unwrap().open("upper", "").unwrap();
    Helper::start(|_| {
        assert!(matches!(channel.send("x"), Err(StreamError::WrongProcess)));
        assert!(matches!(
            channel.recv::<String>(),
            Err(StreamError::WrongProcess)
        ));
        assert!(matches!(channel.finish(), Err(StreamError::WrongProcess)));
        drop(channel);
    })
    .finish();
}

fn the_server_counts_streams() {
    let server = waiting().start().unwrap();
    assert_eq!(server.status().unwrap().streams, 0);
    let first = open_waiting(server.connect().unwrap());
    let _second = open_waiting(server.connect().unwrap());
    let status = server.status().unwrap();
    assert_eq!((status.streams, status.connections), (2, 2));
    let _client = first.into_client().unwrap();
    let status = server.status().unwrap();
    assert_eq!((status.streams, status.connections), (1, 2));
}
