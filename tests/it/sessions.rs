//! Sessions that are served by callbacks: streams that stay with the engine, listeners that speak another protocol, events
//! that are posted, and connections that are given away.

use crate::hostile::Raw;
use crate::processes::readable;
use forkserver::{
    Bytes, CallError, Client, Context, Ending, EventHandler, Fault, Fd, Framing, FramingError,
    Item, LengthPrefixed, Limits, Lines, Listener, PostError, Server, ServerHandle, Session,
    SessionHandle, StopReason, StreamError, Unframed,
};
use std::any::Any;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

crate::tests![
    a_stream_is_served_by_callbacks_and_the_connection_goes_on,
    an_error_of_a_callback_is_the_streams_answer,
    a_panic_of_a_callback_is_the_streams_answer,
    descriptors_travel_through_sessions,
    a_clients_end_is_told_behind_its_last_item,
    a_stream_that_its_client_abandons_is_told_as_disconnected,
    lines_are_answered_line_by_line,
    records_are_the_same_however_they_come,
    a_server_may_speak_first,
    bytes_without_a_framing_come_as_they_are,
    two_clients_that_interleave_halves_of_records_do_not_mix,
    a_record_as_long_as_the_limit_passes_and_a_longer_one_ends_its_session_only,
    a_framing_can_be_changed_between_two_records,
    what_is_malformed_ends_the_session_unless_its_handler_goes_on,
    a_handler_that_cannot_be_made_refuses_its_client,
    posted_events_come_in_order_from_any_thread,
    one_session_reaches_another,
    a_signals_handler_reaches_sessions,
    a_session_that_is_over_takes_no_events,
    as_many_events_wait_as_may_and_not_one_more,
    a_closed_session_flushes_ten_megabytes_first,
    a_session_closed_now_sends_nothing_more,
    behind_a_close_nothing_is_delivered,
    a_client_that_does_not_read_is_pressed_and_relieved,
    a_client_that_never_reads_is_cut_off_at_the_hard_cap,
    a_client_that_never_reads_is_cut_off_when_its_time_is_over,
    a_paused_session_receives_nothing_until_it_resumes,
    a_half_closed_client_is_answered_to_the_end,
    callbacks_come_in_order_and_the_end_once,
    every_end_is_told_to_the_handler_once,
    a_panicking_callback_ends_its_session_only,
    whatever_is_the_users_may_panic_when_it_is_asked_or_dropped,
    descriptors_that_no_framing_has_a_place_for_are_not_kept,
    silence_and_slowness_end_a_session_at_their_deadlines,
    sessions_are_told_when_the_server_stops,
    sessions_of_a_stopped_listener_are_told_alone,
    a_session_that_does_not_end_is_cut_off_with_the_grace,
    an_acceptor_has_the_connection_from_its_first_byte,
    a_permit_counts_its_connection_until_it_is_dropped,
    an_acceptor_that_panics_lets_both_go,
];

fn path() -> std::path::PathBuf {
    std::env::temp_dir().join("s")
}

fn connect() -> UnixStream {
    let stream = UnixStream::connect(path()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end_matches('\n').to_owned()
}

/// A server whose only listener speaks lines.
fn speaking<H: EventHandler>(
    make: impl Fn(&mut Context) -> Result<H, Fault> + Send + Sync + 'static,
) -> Server {
    crate::server().listen(Listener::at(path()).handle_events(Lines::default, make))
}

/// Answers each line with itself.
struct Echo;

impl EventHandler for Echo {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        Ok(session.write(item)?)
    }
}

/// A running sum.
struct Sum(u64);

impl EventHandler for Sum {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        let number: i64 = item.decode()?;
        match number {
            0 => session.close(),
            -1 => return Err(Fault::new("no negative numbers").with_code(7)),
            -2 => panic!("far too negative"),
            number => {
                self.0 += number as u64;
                session.send(&self.0)?;
            }
        }
        Ok(())
    }
}

fn summing() -> ServerHandle {
    crate::server()
        .handle_events("sum", |_, start: u64| Ok(Sum(start)))
        .handle("echo", |_, text: String| Ok(text))
        .start()
        .unwrap()
}

fn a_stream_is_served_by_callbacks_and_the_connection_goes_on() {
    let server = summing();
    let mut client = server.connect().unwrap();
    for start in [100_u64, 200] {
        let mut channel = client.open("sum", &start).unwrap();
        for (number, sum) in [(1_i64, 1), (2, 3), (3, 6)] {
            channel.send(&number).unwrap();
            assert_eq!(channel.recv::<u64>().unwrap(), Some(start + sum));
        }
        channel.send(&0_i64).unwrap();
        assert_eq!(channel.recv::<u64>().unwrap(), None);
        client = channel.into_client().unwrap();
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
    let err = client.call::<_, u64>("sum", &1_u64).unwrap_err();
    assert!(
        matches!(
            err,
            CallError::WrongForm {
                is_stream: true,
                ..
            }
        ),
        "{err}"
    );
    let err = client.open("sum", "text").unwrap_err();
    assert!(matches!(err, CallError::TypeMismatch { .. }), "{err}");
}

fn an_error_of_a_callback_is_the_streams_answer() {
    let server = summing();
    let mut channel = server.connect().unwrap().open("sum", &0_u64).unwrap();
    channel.send(&-1_i64).unwrap();
    match channel.recv::<u64>().unwrap_err() {
        StreamError::Fault(fault) => {
            assert_eq!(
                (fault.code(), fault.to_string().as_str()),
                (7, "no negative numbers")
            );
        }
        err => panic!("{err}"),
    }
    let mut client = channel.into_client().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let mut channel = client.open("sum", &0_u64).unwrap();
    channel.send("no number").unwrap();
    let err = channel.recv::<u64>().unwrap_err();
    assert!(matches!(err, StreamError::Fault(_)), "{err}");
}

fn a_panic_of_a_callback_is_the_streams_answer() {
    let server = summing();
    let mut channel = server.connect().unwrap().open("sum", &0_u64).unwrap();
    channel.send(&-2_i64).unwrap();
    match channel.recv::<u64>().unwrap_err() {
        StreamError::Panicked { message, location } => {
            assert_eq!(message, "far too negative");
            assert!(location.contains("sessions.rs"), "{location}");
        }
        err => panic!("{err}"),
    }
    let mut client = channel.into_client().unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

fn descriptors_travel_through_sessions() {
    struct Reader;
    impl EventHandler for Reader {
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            let mut text = String::new();
            std::fs::File::from(item.decode::<Fd>()?.into_owned()?).read_to_string(&mut text)?;
            let (read, write) = std::io::pipe()?;
            (&write).write_all(text.to_uppercase().as_bytes())?;
            Ok(session.send(&Fd::from(std::os::fd::OwnedFd::from(read)))?)
        }
    }
    let server = crate::server()
        .handle_events("read", |_, (): ()| Ok(Reader))
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("read", &()).unwrap();
    for _ in 0..3 {
        let (read, write) = std::io::pipe().unwrap();
        (&write).write_all(b"text").unwrap();
        drop(write);
        channel
            .send(&Fd::from(std::os::fd::OwnedFd::from(read)))
            .unwrap();
        let fd: Fd = channel.recv().unwrap().unwrap();
        let mut text = String::new();
        let mut file = std::fs::File::from(fd.into_owned().unwrap());
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "TEXT");
    }
}

fn a_clients_end_is_told_behind_its_last_item() {
    struct Last(Vec<u8>);
    impl EventHandler for Last {
        fn received(&mut self, _: &mut Session, item: Item) -> Result<(), Fault> {
            self.0.push(item.decode()?);
            Ok(())
        }
        fn finished(&mut self, session: &mut Session) -> Result<(), Fault> {
            session.send(&self.0)?;
            session.close();
            Ok(())
        }
    }
    let server = crate::server()
        .handle_events("last", |_, (): ()| Ok(Last(Vec::new())))
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("last", &()).unwrap();
    (1..=3_u8).for_each(|item| channel.queue(&item).unwrap());
    channel.finish().unwrap();
    assert_eq!(channel.recv::<Vec<u8>>().unwrap().unwrap(), [1, 2, 3]);
    assert_eq!(channel.recv::<Vec<u8>>().unwrap(), None);
}

/// Writes what happens to it into a pipe, a word each.
struct Diary(Arc<PipeWriter>, &'static str);

impl Diary {
    fn note(&self, text: &str) {
        (&*self.0)
            .write_all(format!("{text}\n").as_bytes())
            .unwrap();
    }
}

impl EventHandler for Diary {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        self.note("connected");
        match self.1 {
            "greets" => Ok(session.write("hello")?),
            _ => Ok(()),
        }
    }
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(item.as_slice()).into_owned();
        self.note(&format!("received {text}"));
        match text.as_str() {
            "close" => session.close(),
            "now" => session.close_now(),
            "fail" => return Err(Fault::new("failed")),
            "panic" => panic!("panicked"),
            _ => session.write(item)?,
        }
        Ok(())
    }
    fn finished(&mut self, session: &mut Session) -> Result<(), Fault> {
        self.note("finished");
        session.close();
        Ok(())
    }
    fn flushed(&mut self, _: &mut Session) -> Result<(), Fault> {
        self.note("flushed");
        Ok(())
    }
    fn posted(&mut self, session: &mut Session, event: Box<dyn Any + Send>) -> Result<(), Fault> {
        let text = *event.downcast::<String>().unwrap();
        self.note(&format!("posted {text}"));
        Ok(session.write(text)?)
    }
    fn stopping(&mut self, session: &mut Session, reason: StopReason) {
        self.note(&format!("stopping: {reason}"));
        match self.1 {
            "stays" => {}
            _ => session.close(),
        }
    }
    fn disconnected(&mut self, _: &mut Context, reason: &Ending) {
        self.note(&format!("disconnected {reason:?}"));
    }
}

/// A server of diaries, and what they say.
fn diaries(
    kind: &'static str,
    define: impl FnOnce(Server) -> Server,
) -> (ServerHandle, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = Arc::new(writer);
    let theirs = Arc::clone(&writer);
    let server = speaking(move |_| Ok(Diary(Arc::clone(&theirs), kind)));
    let server = define(server.keep_fd(&*writer)).start().unwrap();
    (server, BufReader::new(reader))
}

fn says(diary: &mut BufReader<PipeReader>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(line(diary), *expected);
    }
}

fn a_stream_that_its_client_abandons_is_told_as_disconnected() {
    let (reader, writer) = std::io::pipe().unwrap();
    let (writer, mut diary) = (Arc::new(writer), BufReader::new(reader));
    let theirs = Arc::clone(&writer);
    let server = crate::server()
        .keep_fd(&*writer)
        .handle_events("diary", move |_, (): ()| Ok(Diary(Arc::clone(&theirs), "")))
        .start()
        .unwrap();
    let channel = server.connect().unwrap().open("diary", &()).unwrap();
    says(&mut diary, &["connected", "flushed"]);
    drop(channel);
    says(&mut diary, &["disconnected Broken"]);
}

fn lines_are_answered_line_by_line() {
    let _server = speaking(|_| Ok(Echo)).start().unwrap();
    let mut stream = connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for text in ["one", "", "\u{1F980}", &"x".repeat(100_000)] {
        stream.write_all(format!("{text}\n").as_bytes()).unwrap();
        assert_eq!(line(&mut reader), text);
    }
    stream.write_all(b"a\nb\r\nc").unwrap();
    assert_eq!([line(&mut reader), line(&mut reader)], ["a", "b"]);
    stream.write_all(b"d\n").unwrap();
    assert_eq!(line(&mut reader), "cd");
}

fn records_are_the_same_however_they_come() {
    let framing = || LengthPrefixed::new(1 << 20);
    let _server = crate::server()
        .listen(Listener::at(path()).handle_events(framing, |_| Ok(Echo)))
        .start()
        .unwrap();
    let records: Vec<Vec<u8>> = [0, 1, 4095, 4096, 65_537]
        .map(|len: usize| (0..len).map(|n| n as u8).collect())
        .to_vec();
    let mut bytes = Vec::new();
    for record in &records {
        framing().write(record, &mut bytes).unwrap();
    }
    for step in [1, 10, 4096, bytes.len()] {
        let part = if step == 1 { 5000 } else { bytes.len() };
        let mut stream = connect();
        let mut writer = stream.try_clone().unwrap();
        let sent = bytes.clone();
        let sending = std::thread::spawn(move || {
            sent[..part]
                .chunks(step)
                .for_each(|piece| writer.write_all(piece).unwrap());
            writer.write_all(&sent[part..]).unwrap();
        });
        let mut seen = vec![0; bytes.len()];
        stream.read_exact(&mut seen).unwrap();
        assert!(seen == bytes, "in pieces of {step}");
        sending.join().unwrap();
    }
}

fn a_server_may_speak_first() {
    let (_server, mut diary) = diaries("greets", |server| server);
    let mut reader = BufReader::new(connect());
    assert_eq!(line(&mut reader), "hello");
    says(&mut diary, &["connected", "flushed"]);
}

fn bytes_without_a_framing_come_as_they_are() {
    let _server = crate::server()
        .listen(Listener::at(path()).handle_events(|| Unframed, |_| Ok(Echo)))
        .start()
        .unwrap();
    let mut stream = connect();
    for bytes in [&b"a"[..], b"\0\xff\n", &[7; 1000]] {
        stream.write_all(bytes).unwrap();
        let mut seen = vec![0; bytes.len()];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(seen, bytes);
    }
}

fn two_clients_that_interleave_halves_of_records_do_not_mix() {
    let _server = speaking(|_| Ok(Echo)).start().unwrap();
    let (mut a, mut b) = (connect(), connect());
    for part in [("a", "b"), ("a", "b"), ("a\n", "b\n")] {
        a.write_all(part.0.as_bytes()).unwrap();
        b.write_all(part.1.as_bytes()).unwrap();
    }
    assert_eq!(line(&mut BufReader::new(a)), "aaa");
    assert_eq!(line(&mut BufReader::new(b)), "bbb");
}

fn a_record_as_long_as_the_limit_passes_and_a_longer_one_ends_its_session_only() {
    let mut limits = Limits::default();
    limits.max_frame = 5000;
    let _server = speaking(|_| Ok(Echo)).limits(limits).start().unwrap();
    let mut other = connect();
    for (len, passes) in [(5000, true), (5001, false)] {
        let mut stream = connect();
        let mut text = vec![b'x'; len];
        text.push(b'\n');
        stream.write_all(&text).unwrap();
        let mut seen = Vec::new();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut seen);
        assert_eq!(seen == text, passes, "{len}");
    }
    other.write_all(b"x\n").unwrap();
    assert_eq!(line(&mut BufReader::new(other)), "x");
}

fn a_framing_can_be_changed_between_two_records() {
    struct Switch;
    impl EventHandler for Switch {
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            match item.as_slice() {
                b"records" => session.set_framing(LengthPrefixed::new(100)),
                b"lines" => session.set_framing(Lines::default()),
                b"bytes" => session.set_framing(Unframed),
                _ => session.write(item)?,
            }
            Ok(())
        }
    }
    let _server = speaking(|_| Ok(Switch)).start().unwrap();
    let mut stream = connect();
    let mut sent = b"one\nrecords\n".to_vec();
    sent.extend_from_slice(b"\0\0\0\x03two\0\0\0\x05lines");
    sent.extend_from_slice(b"three\nbytes\n");
    sent.extend_from_slice(b"\0rest");
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert_eq!(seen, b"one\n\0\0\0\x03twothree\n\0rest");
}

fn what_is_malformed_ends_the_session_unless_its_handler_goes_on() {
    /// Digits, one by one.
    struct Digits;
    impl Framing for Digits {
        fn find(&mut self, received: &[u8]) -> Result<forkserver::Found, FramingError> {
            match received[0] {
                b' ' => Ok(forkserver::Found::Skip(1)),
                b'0'..=b'9' => Ok(forkserver::Found::Record {
                    content: 0..1,
                    len: 1,
                }),
                b'!' => Ok(forkserver::Found::Record {
                    content: 0..9,
                    len: 9,
                }),
                other => Err(FramingError::Malformed {
                    reason: format!("{other} is no digit"),
                    skip: 1,
                }),
            }
        }
        fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
            out.extend_from_slice(record);
            Ok(())
        }
    }
    struct Careful(bool);
    impl EventHandler for Careful {
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            Ok(session.write(item)?)
        }
        fn malformed(&mut self, session: &mut Session, error: &FramingError) -> bool {
            session.write(format!("<{error}>")).unwrap();
            self.0
        }
    }
    let listener = |name: &'static str, goes_on| {
        Listener::at(std::env::temp_dir().join(name))
            .name(name)
            .handle_events(|| Digits, move |_| Ok(Careful(goes_on)))
    };
    let _server = crate::server()
        .listen(listener("goes-on", true))
        .listen(listener("ends", false))
        .start()
        .unwrap();
    let answer = |name: &str, bytes: &[u8]| {
        let mut stream = UnixStream::connect(std::env::temp_dir().join(name)).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut seen = String::new();
        let _ = stream.read_to_string(&mut seen);
        seen
    };
    assert_eq!(answer("goes-on", b"1 x2"), "1<120 is no digit>2");
    assert_eq!(answer("ends", b"1 x2"), "1<120 is no digit>");
    assert_eq!(
        answer("goes-on", b"1!"),
        "1",
        "a framing that finds what is not there"
    );
}

fn a_handler_that_cannot_be_made_refuses_its_client() {
    let server = speaking(|context| match context.session_id() % 3 {
        0 => Ok(Echo),
        1 => Err(Fault::new("not today")),
        _ => panic!("not today"),
    })
    .start()
    .unwrap();
    for answers in [false, false, true, false] {
        let mut stream = connect();
        let _ = stream.write_all(b"x\n");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut seen = String::new();
        let _ = stream.read_to_string(&mut seen);
        assert_eq!(seen == "x\n", answers);
    }
    is_empty(&server);
    assert_eq!(server.status().unwrap().streams, 0);
}

/// Where sessions leave their handles.
type Register = Arc<Mutex<Vec<SessionHandle>>>;

/// Writes what is posted; what it receives, it posts to all others.
struct Chat;

impl EventHandler for Chat {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        let handle = session.handle();
        let register: &Register = session.context().state();
        register.lock().unwrap().push(handle);
        Ok(session.write("welcome")?)
    }
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(item.as_slice()).into_owned();
        let own = session.handle().session_id();
        let register: &Register = session.context().state();
        for other in register.lock().unwrap().iter() {
            if other.session_id() != own {
                let _ = other.post(text.clone());
            }
        }
        Ok(())
    }
    fn posted(&mut self, session: &mut Session, event: Box<dyn Any + Send>) -> Result<(), Fault> {
        Ok(session.write(*event.downcast::<String>().unwrap())?)
    }
}

fn chatting() -> Server {
    speaking(|_| Ok(Chat))
        .listen(Listener::private().name("calls"))
        .initialize(|_| Ok(Register::default()))
        .handle("post", |ctx, (from, count): (u32, u32)| {
            let handle = ctx.state::<Register>().lock().unwrap()[0].clone();
            for number in from..from + count {
                handle.post(number.to_string())?;
            }
            Ok(())
        })
        .handle("try", |ctx, count: u32| {
            let handle = ctx.state::<Register>().lock().unwrap()[0].clone();
            let results = (0..count).map(|number| handle.post(number.to_string()));
            let failed: Vec<String> = results
                .filter_map(Result::err)
                .map(|err: PostError| err.to_string())
                .collect();
            Ok(failed)
        })
        .handle("close", |ctx, now: bool| {
            let handle = ctx.state::<Register>().lock().unwrap()[0].clone();
            match now {
                true => handle.close_now(),
                false => handle.close(),
            }
            Ok(())
        })
}

/// A client of the chat that was welcomed.
fn chatter() -> (UnixStream, BufReader<UnixStream>) {
    let stream = connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    assert_eq!(line(&mut reader), "welcome");
    (stream, reader)
}

fn caller(server: &ServerHandle) -> Client {
    Client::connect(server.address_of("calls").unwrap()).unwrap()
}

fn posted_events_come_in_order_from_any_thread() {
    let server = chatting().start().unwrap();
    let (_stream, mut reader) = chatter();
    let mut caller = caller(&server);
    for round in 0..20_u32 {
        caller.call::<_, ()>("post", &(round * 50, 50_u32)).unwrap();
    }
    for number in 0..1000 {
        assert_eq!(line(&mut reader), number.to_string());
    }
}

fn one_session_reaches_another() {
    let _server = chatting().start().unwrap();
    let mut clients: Vec<_> = (0..5).map(|_| chatter()).collect();
    clients[2].0.write_all(b"hello\nall\n").unwrap();
    for (number, (_, reader)) in clients.iter_mut().enumerate() {
        if number != 2 {
            assert_eq!([line(reader), line(reader)], ["hello", "all"]);
        }
    }
    assert!(!readable(&clients[2].0, Duration::from_millis(20)));
}

fn a_signals_handler_reaches_sessions() {
    let server = chatting()
        .handle_signal(forkserver::Signal::SIGUSR1, |control| {
            let register: &Register = control.state().unwrap();
            for session in register.lock().unwrap().iter() {
                session.post("signal".to_owned()).unwrap();
            }
        })
        .start()
        .unwrap();
    let (_stream, mut reader) = chatter();
    let pid = nix::unistd::Pid::from_raw(server.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR1).unwrap();
    assert_eq!(line(&mut reader), "signal");
}

fn a_session_that_is_over_takes_no_events() {
    let server = chatting().start().unwrap();
    let (stream, reader) = chatter();
    drop((stream, reader));
    is_empty(&server);
    let failed: Vec<String> = caller(&server).call("try", &2_u32).unwrap();
    assert_eq!(failed, ["the session is over", "the session is over"]);
    caller(&server).call::<_, ()>("close", &true).unwrap();
}

fn as_many_events_wait_as_may_and_not_one_more() {
    let mut limits = Limits::default();
    limits.max_posted = 3;
    let server = chatting().limits(limits).start().unwrap();
    let (_stream, mut reader) = chatter();
    if crate::harness::engine() == forkserver::Engine::Evented {
        // With threads, another one may take them out meanwhile.
        let failed: Vec<String> = caller(&server).call("try", &5_u32).unwrap();
        assert_eq!(failed, ["3 events wait already (max_posted)"; 2]);
    } else {
        caller(&server)
            .call::<_, ()>("post", &(0_u32, 3_u32))
            .unwrap();
    }
    assert_eq!(line(&mut reader), "0");
    assert_eq!([line(&mut reader), line(&mut reader)], ["1", "2"]);
}

/// Sends a lot, and closes.
struct Flood(usize, bool);

impl EventHandler for Flood {
    fn received(&mut self, session: &mut Session, _: Item) -> Result<(), Fault> {
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..self.0 {
            session.write(&piece)?;
        }
        match self.1 {
            true => session.close_now(),
            false => session.close(),
        }
        Ok(())
    }
}

fn flooding(count: usize, now: bool) -> ServerHandle {
    let mut limits = Limits::default();
    limits.write_timeout = Duration::from_millis(300);
    crate::server()
        .limits(limits)
        .listen(Listener::at(path()).handle_events(|| Unframed, move |_| Ok(Flood(count, now))))
        .start()
        .unwrap()
}

fn a_closed_session_flushes_ten_megabytes_first() {
    let server = flooding(10, false);
    let mut stream = connect();
    stream.write_all(b"go").unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), 10 << 20);
    assert!(server.is_running());
}

fn a_session_closed_now_sends_nothing_more() {
    let _server = flooding(10, true);
    let mut stream = connect();
    stream.write_all(b"go").unwrap();
    let mut seen = Vec::new();
    let _ = stream.read_to_end(&mut seen);
    assert!(seen.is_empty());
}

fn behind_a_close_nothing_is_delivered() {
    let (_server, mut diary) = diaries("", |server| server);
    for (word, seen) in [("close", "a\n"), ("now", "")] {
        let mut stream = connect();
        stream
            .write_all(format!("a\n{word}\nb\n").as_bytes())
            .unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert_eq!(text, seen);
        says(&mut diary, &["connected", "received a"]);
        says(
            &mut diary,
            &[&format!("received {word}"), "disconnected Finished"],
        );
    }
}

fn a_client_that_does_not_read_is_pressed_and_relieved() {
    /// Sends a number for each that comes, and says when it is pressed and relieved.
    struct Pressed(Arc<PipeWriter>);
    impl EventHandler for Pressed {
        fn received(&mut self, session: &mut Session, _: Item) -> Result<(), Fault> {
            assert!(!session.is_pressed(), "nothing is received meanwhile");
            session.send(&Bytes::from(vec![0; 100_000]))?;
            if session.is_pressed() {
                (&*self.0).write_all(b"pressed\n")?;
            }
            Ok(())
        }
        fn relieved(&mut self, session: &mut Session) -> Result<(), Fault> {
            assert!(!session.is_pressed());
            Ok((&*self.0).write_all(b"relieved\n")?)
        }
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let (writer, mut said) = (Arc::new(writer), BufReader::new(reader));
    let theirs = Arc::clone(&writer);
    let server = crate::server()
        .keep_fd(&*writer)
        .handle_events("press", move |_, (): ()| Ok(Pressed(Arc::clone(&theirs))))
        .start()
        .unwrap();
    let mut channel = server.connect().unwrap().open("press", &()).unwrap();
    for _ in 0..3 {
        (0..20).for_each(|_| channel.send(&()).unwrap());
        assert_eq!(line(&mut said), "pressed");
        for number in 0..20 {
            let bytes: Bytes = channel.recv().unwrap().unwrap();
            assert_eq!(bytes.len(), 100_000, "{number}");
        }
        // Each high mark is followed by a low one before the next.
        assert_eq!(line(&mut said), "relieved");
        while readable(said.get_ref(), Duration::from_millis(20)) || !said.buffer().is_empty() {
            assert_eq!(line(&mut said), "pressed");
            assert_eq!(line(&mut said), "relieved");
        }
    }
}

fn a_client_that_never_reads_is_cut_off_at_the_hard_cap() {
    struct Endless;
    impl EventHandler for Endless {
        fn received(&mut self, session: &mut Session, _: Item) -> Result<(), Fault> {
            let mut sent = 0;
            loop {
                match session.write(vec![b'x'; 10_000]) {
                    Ok(()) => sent += 10_000,
                    Err(StreamError::TooLarge(err)) => {
                        assert!((900_000..=1_000_000).contains(&sent), "{sent} {err}");
                        assert!(matches!(session.write("x"), Err(StreamError::Finished)));
                        return Ok(());
                    }
                    Err(err) => return Err(err.into()),
                }
            }
        }
    }
    let mut limits = Limits::default();
    limits.max_queued = 1_000_000;
    let server = speaking(|_| Ok(Endless)).limits(limits).start().unwrap();
    let mut other = connect();
    let mut stream = connect();
    stream.write_all(b"go\n").unwrap();
    let mut seen = Vec::new();
    let _ = stream.read_to_end(&mut seen);
    assert!(seen.len() < 1_000_000, "{}", seen.len());
    other.write_all(b"go\n").unwrap();
    let _ = other.read_to_end(&mut seen);
    is_empty(&server);
}

fn is_empty(server: &ServerHandle) {
    let begun = Instant::now();
    while server.status().unwrap().connections > 0 {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
}

fn a_client_that_never_reads_is_cut_off_when_its_time_is_over() {
    let server = flooding(20, false);
    let mut stream = connect();
    stream.write_all(b"go").unwrap();
    let begun = Instant::now();
    while server.status().unwrap().connections > 0 || begun.elapsed() < Duration::from_millis(50) {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(290),
        "{:?}",
        begun.elapsed()
    );
}

fn a_paused_session_receives_nothing_until_it_resumes() {
    struct Moody;
    impl EventHandler for Moody {
        fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
            let handle = session.handle();
            let register: &Register = session.context().state();
            register.lock().unwrap().push(handle);
            session.pause_input();
            Ok(())
        }
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            Ok(session.write(item)?)
        }
        fn posted(&mut self, session: &mut Session, _: Box<dyn Any + Send>) -> Result<(), Fault> {
            session.resume_input();
            Ok(())
        }
    }
    let server = speaking(|_| Ok(Moody))
        .listen(Listener::private().name("calls"))
        .initialize(|_| Ok(Register::default()))
        .handle("resume", |ctx, which: usize| {
            let handle = ctx.state::<Register>().lock().unwrap()[which].clone();
            Ok(handle.post(())?)
        })
        .start()
        .unwrap();
    let mut calls = caller(&server);
    for (number, gone) in [(0, false), (1, true)] {
        let mut stream = connect();
        stream.write_all(b"a\nb\n").unwrap();
        if gone {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        assert!(!readable(&stream, Duration::from_millis(30)));
        calls.call::<_, ()>("resume", &(number as usize)).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!([line(&mut reader), line(&mut reader)], ["a", "b"]);
    }
}

fn a_half_closed_client_is_answered_to_the_end() {
    let server = flooding(10, false);
    let mut stream = connect();
    stream.write_all(b"go").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), 10 << 20);
    drop(server);
}

fn callbacks_come_in_order_and_the_end_once() {
    let (server, mut diary) = diaries("greets", |server| server);
    let mut stream = connect();
    says(&mut diary, &["connected", "flushed"]);
    stream.write_all(b"a\n").unwrap();
    says(&mut diary, &["received a", "flushed"]);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    says(&mut diary, &["finished", "disconnected Finished"]);
    server.stop().unwrap();
    assert_eq!(line(&mut diary), "");
}

fn every_end_is_told_to_the_handler_once() {
    let (server, mut diary) = diaries("", |server| server);
    for (word, ending) in [
        ("fail", "Faulted"),
        ("panic", "Faulted"),
        ("now", "Finished"),
    ] {
        let mut stream = connect();
        stream.write_all(format!("{word}\n").as_bytes()).unwrap();
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen);
        let end = format!("disconnected {ending}");
        says(
            &mut diary,
            &["connected", &format!("received {word}"), &end],
        );
    }
    let stream = connect();
    says(&mut diary, &["connected"]);
    drop(stream);
    says(&mut diary, &["finished", "disconnected Finished"]);
    let _open = connect();
    says(&mut diary, &["connected"]);
    server.stop().unwrap();
    says(
        &mut diary,
        &["stopping: the server is stopping", "disconnected Finished"],
    );
    assert_eq!(line(&mut diary), "");
}

fn a_panicking_callback_ends_its_session_only() {
    let (server, _diary) = diaries("", |server| server);
    let mut other = connect();
    for _ in 0..10 {
        let mut stream = connect();
        stream.write_all(b"panic\n").unwrap();
        let _ = stream.read(&mut [0]);
    }
    other.write_all(b"x\n").unwrap();
    assert_eq!(line(&mut BufReader::new(other)), "x");
    assert!(server.is_running());
}

fn whatever_is_the_users_may_panic_when_it_is_asked_or_dropped() {
    struct Bomb(&'static str);
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("{} is dropped", self.0);
        }
    }
    #[derive(Default)]
    struct Value(#[expect(dead_code)] Option<Bomb>);
    struct Bombs(Lines, #[expect(dead_code)] Bomb);
    impl Framing for Bombs {
        fn find(&mut self, received: &[u8]) -> Result<forkserver::Found, FramingError> {
            assert!(received[0] != b'!', "found");
            self.0.find(received)
        }
        fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
            assert!(record != b"?", "written");
            self.0.write(record, out)
        }
    }
    struct Bombed(#[expect(dead_code)] Bomb);
    impl EventHandler for Bombed {
        fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
            *session.context().session::<Value>() = Value(Some(Bomb("a value")));
            Ok(())
        }
        fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
            session.handle().post(Bomb("an event"))?;
            Ok(session.write(item)?)
        }
        fn disconnected(&mut self, _: &mut Context, _: &Ending) {
            panic!("disconnected");
        }
    }
    let framing = || Bombs(Lines::default(), Bomb("a framing"));
    let make = |_: &mut Context| Ok(Bombed(Bomb("a handler")));
    let server = crate::server()
        .listen(Listener::at(path()).handle_events(framing, make))
        .start()
        .unwrap();
    let before = crate::harness::descriptors(&server.pid().to_string()).len();
    for bytes in [&b"x\n"[..], b"!", b"?\n", b"", b"x\nx\n!"] {
        for _ in 0..20 {
            let mut stream = connect();
            stream.write_all(bytes).unwrap();
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut seen = Vec::new();
            let _ = stream.read_to_end(&mut seen);
        }
    }
    is_empty(&server);
    let after = crate::harness::descriptors(&server.pid().to_string()).len();
    assert_eq!(before, after);
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
}

fn descriptors_that_no_framing_has_a_place_for_are_not_kept() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd;
    // One listener's sockets refuse them, where the kernel can; those of one that was handed in do not.
    let handed = std::env::temp_dir().join("handed");
    let socket = std::os::unix::net::UnixListener::bind(&handed).unwrap();
    let listener = Listener::from_fd(socket).name("handed");
    let server = speaking(|_| Ok(Echo))
        .listen(listener.handle_events(Lines::default, |_| Ok(Echo)))
        .start()
        .unwrap();
    let count = || crate::harness::descriptors(&server.pid().to_string()).len();
    let before = count();
    let (read, _write) = std::io::pipe().unwrap();
    let fds = [read.as_raw_fd(); 100];
    for place in [path(), handed.clone()] {
        for _ in 0..20 {
            let stream = UnixStream::connect(&place).unwrap();
            let parts = [std::io::IoSlice::new(b"x\n")];
            let rights = [ControlMessage::ScmRights(&fds)];
            let (fd, flags) = (stream.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
            if sendmsg::<()>(fd, &parts, &rights, flags, None).is_err() {
                sendmsg::<()>(fd, &parts, &[], flags, None).unwrap();
            }
            assert_eq!(line(&mut BufReader::new(stream)), "x");
        }
    }
    is_empty(&server);
    assert_eq!(count(), before);
    drop(server);
    std::fs::remove_file(handed).unwrap();
}

fn silence_and_slowness_end_a_session_at_their_deadlines() {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(Duration::from_millis(300));
    limits.frame_timeout = Duration::from_millis(100);
    let (_server, mut diary) = diaries("", |server| server.limits(limits));
    for (bytes, limit, ending) in [
        (&b""[..], 300, "disconnected Idle"),
        (b"half a line", 100, "disconnected TimedOut"),
    ] {
        let mut stream = connect();
        let begun = Instant::now();
        stream.write_all(bytes).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        let took = begun.elapsed().as_millis();
        assert!((limit - 10..limit * 5).contains(&took), "{took}");
        says(&mut diary, &["connected", ending]);
    }
}

fn sessions_are_told_when_the_server_stops() {
    let (server, mut diary) = diaries("", |server| server);
    let streams: Vec<_> = (0..3).map(|_| connect()).collect();
    says(&mut diary, &["connected"; 3]);
    let begun = Instant::now();
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
    assert!(begun.elapsed() < Duration::from_secs(1));
    let mut told: Vec<_> = diary.lines().map(Result::unwrap).collect();
    told.sort();
    let mut expected = vec!["disconnected Finished"; 3];
    expected.extend(["stopping: the server is stopping"; 3]);
    assert_eq!(told, expected);
    for mut stream in streams {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
}

fn sessions_of_a_stopped_listener_are_told_alone() {
    let (server, mut diary) = diaries("", |server| {
        server.listen(Listener::private().name("other"))
    });
    let mut stream = connect();
    says(&mut diary, &["connected"]);
    server.stop_listener("other").unwrap();
    stream.write_all(b"x\n").unwrap();
    says(&mut diary, &["received x", "flushed"]);
    server.stop_listener("default").unwrap();
    says(
        &mut diary,
        &[
            "stopping: the listener is stopping",
            "disconnected Finished",
        ],
    );
    server.start_listener("default").unwrap();
    let mut stream = connect();
    stream.write_all(b"y\n").unwrap();
    says(&mut diary, &["connected", "received y", "flushed"]);
}

fn a_session_that_does_not_end_is_cut_off_with_the_grace() {
    let grace = Duration::from_millis(200);
    let (server, mut diary) = diaries("stays", |server| server.grace(grace));
    let mut stream = connect();
    says(&mut diary, &["connected"]);
    let begun = Instant::now();
    server.stop_listener("default").unwrap();
    says(&mut diary, &["stopping: the listener is stopping"]);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(begun.elapsed() >= grace && begun.elapsed() < grace * 10);
    assert!(server.is_running());
}

fn accepting(take: impl Fn(UnixStream, forkserver::Permit) + Send + Sync + 'static) -> Server {
    let listener = Listener::at(path()).accept_with(move |accepted, permit| {
        assert_eq!(accepted.listener(), "default");
        assert_eq!(
            accepted.peer().pid,
            std::os::unix::process::parent_id() as i32
        );
        take(accepted.into_stream(), permit);
    });
    crate::server().listen(listener)
}

fn an_acceptor_has_the_connection_from_its_first_byte() {
    let server = accepting(|mut stream, permit| {
        std::thread::spawn(move || {
            let _permit = permit;
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                stream.write_all(&[byte[0] + 1]).unwrap();
            }
        });
    })
    .start()
    .unwrap();
    let mut clients: Vec<_> = (0..5).map(|_| connect()).collect();
    for stream in &mut clients {
        stream.write_all(b"abc").unwrap();
        let mut seen = [0; 3];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"bcd");
    }
    assert_eq!(server.status().unwrap().connections, 5);
    drop(clients);
    is_empty(&server);
    server.connect().unwrap().authenticate().unwrap();
}

fn a_permit_counts_its_connection_until_it_is_dropped() {
    let mut limits = Limits::default();
    limits.max_connections = 1;
    let server = accepting(|mut stream, permit| {
        std::thread::spawn(move || {
            let stop = permit.stop_token().clone();
            stream.write_all(b"!").unwrap();
            let waited = nix::poll::poll(
                &mut [
                    nix::poll::PollFd::new(
                        std::os::fd::AsFd::as_fd(&stop),
                        nix::poll::PollFlags::POLLIN,
                    ),
                    nix::poll::PollFd::new(
                        std::os::fd::AsFd::as_fd(&stream),
                        nix::poll::PollFlags::POLLIN,
                    ),
                ],
                nix::poll::PollTimeout::NONE,
            );
            waited.unwrap();
            if !stop.is_stopped() {
                stream.read_exact(&mut [0]).unwrap();
            }
            let text = stop
                .reason()
                .map_or("read".into(), |reason| reason.to_string());
            let _ = stream.write_all(text.as_bytes());
            drop(permit);
        });
    })
    .limits(limits)
    .start()
    .unwrap();
    let mut first = connect();
    first.read_exact(&mut [0]).unwrap();
    let mut second = connect();
    assert!(
        !readable(&second, Duration::from_millis(50)),
        "there is no room"
    );
    first.write_all(b"x").unwrap();
    let mut text = String::new();
    first.read_to_string(&mut text).unwrap();
    assert_eq!(text, "read");
    second.read_exact(&mut [0]).unwrap();
    let begun = Instant::now();
    assert_eq!(server.stop().unwrap(), forkserver::Exit::Code(0));
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    second.read_to_string(&mut text).unwrap();
    assert_eq!(text, "readthe server is stopping");
}

fn an_acceptor_that_panics_lets_both_go() {
    let server = accepting(|_, _| panic!("no")).start().unwrap();
    for _ in 0..20 {
        assert_eq!(connect().read(&mut [0]).unwrap(), 0);
    }
    is_empty(&server);
    // Whoever says hello to it is no client of its.
    let mut raw = Raw::connect(&server);
    raw.write(b"x");
    assert!(raw.read_to_end().is_empty());
}
