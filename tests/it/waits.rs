//! Sessions that wait: they cost nothing, they end when there is nothing to wait for, and keep nobody else waiting.

use crate::processes::{Helper, readable};
use forkserver::{
    Client, Context, Ending, EventHandler, Fault, Found, Framing, FramingError, Item, Limits,
    Lines, Listener, Server, ServerHandle, Session, StopReason, Unframed, Wait,
};
use std::any::Any;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

crate::tests![
    a_paused_session_whose_client_is_gone_costs_no_time,
    a_session_ends_when_its_client_has_finished_and_gone,
    a_paused_session_is_cut_off_with_the_grace,
    what_is_sent_ahead_of_others_begins_no_deadline,
    a_session_that_posts_to_itself_for_ever_starves_nobody,
    a_client_whose_bytes_are_all_passed_over_starves_nobody,
    who_waits_in_vain_to_speak_another_protocol_is_told_nothing_in_ours,
    a_listener_that_is_started_at_once_lets_everybody_in,
    sides_that_look_again_and_again_have_the_same_answers,
    who_looks_in_vain_sleeps_in_the_end,
];

fn path() -> std::path::PathBuf {
    std::env::temp_dir().join("s")
}

fn connect() -> UnixStream {
    let stream = UnixStream::connect(path()).unwrap();
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).unwrap();
    stream
}

fn line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// A server whose first listener speaks in records, and whose second takes calls.
fn speaking<F: Framing, H: EventHandler>(
    framing: impl Fn() -> F + Send + Sync + 'static,
    make: impl Fn(&mut Context) -> Result<H, Fault> + Send + Sync + 'static,
) -> Server {
    crate::server()
        .listen(Listener::at(path()).handle_events(framing, make))
        .listen(Listener::private().name("calls"))
        .handle("echo", |_, text: String| Ok(text))
}

fn caller(server: &ServerHandle) -> Client {
    Client::connect(server.address_of("calls").unwrap()).unwrap()
}

fn echoes(client: &mut Client) {
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
}

/// Neither its client's end nor the server's moves it.
struct Stubborn {
    told: Arc<PipeWriter>,
    pauses: bool,
}

impl Stubborn {
    fn tell(&self, text: &str) -> std::io::Result<()> {
        (&*self.told).write_all(format!("{text}\n").as_bytes())
    }
}

impl EventHandler for Stubborn {
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        if self.pauses {
            session.pause_input();
        }
        Ok(self.tell("connected")?)
    }
    fn received(&mut self, _: &mut Session, _: Item) -> Result<(), Fault> {
        Ok(())
    }
    fn finished(&mut self, _: &mut Session) -> Result<(), Fault> {
        Ok(self.tell("finished")?)
    }
    fn stopping(&mut self, _: &mut Session, reason: StopReason) {
        self.tell(&format!("{reason}")).unwrap();
    }
    fn disconnected(&mut self, _: &mut Context, reason: &Ending) {
        self.tell(&format!("disconnected {reason:?}")).unwrap();
    }
}

/// A server of stubborn handlers, and what they tell.
fn stubborn(pauses: bool) -> (Server, BufReader<PipeReader>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let writer = Arc::new(writer);
    let told = Arc::clone(&writer);
    let make = move |_: &mut Context| {
        let told = Arc::clone(&told);
        Ok(Stubborn { told, pauses })
    };
    let server = speaking(Lines::default, make).keep_fd(&*writer);
    (server, BufReader::new(reader))
}

fn a_paused_session_whose_client_is_gone_costs_no_time() {
    let (server, mut told) = stubborn(true);
    let server = server.start().unwrap();
    let stream = connect();
    assert_eq!(line(&mut told), "connected");
    drop(stream);
    echoes(&mut caller(&server));
    let before = crate::engine::cpu_time(server.pid());
    assert!(!readable(told.get_ref(), Duration::from_millis(500)));
    let spent = crate::engine::cpu_time(server.pid()) - before;
    assert!(spent < Duration::from_millis(150), "{spent:?}");
}

fn a_session_ends_when_its_client_has_finished_and_gone() {
    let (server, mut told) = stubborn(false);
    let server = server.start().unwrap();
    let stream = connect();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        [line(&mut told), line(&mut told)],
        ["connected", "finished"]
    );
    assert!(
        !readable(told.get_ref(), Duration::from_millis(50)),
        "it can still receive"
    );
    drop(stream);
    assert!(readable(told.get_ref(), Duration::from_secs(5)));
    assert_eq!(line(&mut told), "disconnected Broken");
    drop(server);
}

fn a_paused_session_is_cut_off_with_the_grace() {
    for goes_first in [false, true] {
        let (server, mut told) = stubborn(true);
        let server = server.grace(Duration::from_millis(200)).start().unwrap();
        let stream = connect();
        assert_eq!(line(&mut told), "connected");
        let stream = (!goes_first).then_some(stream);
        echoes(&mut caller(&server));
        server.stop_listener("default").unwrap();
        assert_eq!(line(&mut told), "the listener is stopping");
        assert!(!told.buffer().is_empty() || readable(told.get_ref(), Duration::from_secs(5)));
        assert_eq!(line(&mut told), "disconnected Stopping");
        drop(stream);
        server.stop().unwrap();
    }
}

/// Answers, and has much to do then.
struct Busy;

impl EventHandler for Busy {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        session.handle().post(10_u32)?;
        Ok(session.write(item)?)
    }
    fn posted(&mut self, session: &mut Session, event: Box<dyn Any + Send>) -> Result<(), Fault> {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2) {}
        match *event.downcast::<u32>().unwrap() {
            0 => Ok(()),
            left => Ok(session.handle().post(left - 1)?),
        }
    }
}

fn what_is_sent_ahead_of_others_begins_no_deadline() {
    let mut limits = Limits::default();
    limits.write_timeout = Duration::from_millis(200);
    let server = speaking(Lines::default, |_| Ok(Busy));
    let _server = server.limits(limits).start().unwrap();
    let mut reader = BufReader::new(connect());
    reader.get_mut().write_all(b"x\n").unwrap();
    assert_eq!(line(&mut reader), "x");
    assert!(
        !readable(reader.get_ref(), Duration::from_millis(500)),
        "silence is no slowness"
    );
}

/// Has always something to do.
struct Restless;

impl EventHandler for Restless {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        session.handle().post(())?;
        Ok(session.write(item)?)
    }
    fn posted(&mut self, session: &mut Session, _: Box<dyn Any + Send>) -> Result<(), Fault> {
        Ok(session.handle().post(())?)
    }
}

fn a_session_that_posts_to_itself_for_ever_starves_nobody() {
    let mut limits = Limits::default();
    limits.max_threads = 2;
    let server = speaking(Lines::default, |_| Ok(Restless));
    let server = server.limits(limits).start().unwrap();
    let mut readers = [connect(), connect(), connect()].map(BufReader::new);
    for reader in &mut readers {
        reader.get_mut().write_all(b"x\n").unwrap();
        assert_eq!(line(reader), "x", "what it has written leaves");
    }
    let mut caller = caller(&server);
    (0..20).for_each(|_| echoes(&mut caller));
    for mut reader in readers {
        reader.get_mut().write_all(b"y\n").unwrap();
        assert_eq!(line(&mut reader), "y", "what it is sent arrives");
    }
    let begun = Instant::now();
    while server.status().unwrap().connections > 1 {
        assert!(begun.elapsed() < Duration::from_secs(5), "their ends, too");
        std::thread::yield_now();
    }
    server.stop().unwrap();
}

/// Finds nothing but padding.
struct Padding;

impl Framing for Padding {
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError> {
        Ok(Found::Skip(received.len()))
    }
    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        out.extend_from_slice(record);
        Ok(())
    }
}

/// Answers with what it was sent.
struct Echo;

impl EventHandler for Echo {
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault> {
        Ok(session.write(item)?)
    }
}

struct Nothing;

impl EventHandler for Nothing {
    fn received(&mut self, _: &mut Session, _: Item) -> Result<(), Fault> {
        Ok(())
    }
}

/// Sends as much as it can, until the server ends or it is told to.
fn flood() -> Helper {
    let mut stream = connect();
    Helper::start(move |_| {
        let piece = [b'\n'; 1 << 16];
        while stream.write_all(&piece).is_ok() {}
    })
}

/// How long so many calls take.
fn calls(client: &mut Client, count: usize) -> Duration {
    let begun = Instant::now();
    (0..count).for_each(|_| echoes(client));
    begun.elapsed()
}

fn a_client_whose_bytes_are_all_passed_over_starves_nobody() {
    let server = speaking(|| Padding, |_| Ok(Nothing)).start().unwrap();
    let floods = [flood(), flood()];
    let mut caller = caller(&server);
    let took = calls(&mut caller, 100);
    assert!(took < Duration::from_secs(2), "{took:?}");
    server.stop().unwrap();
    floods.into_iter().for_each(Helper::finish);
}

fn who_waits_in_vain_to_speak_another_protocol_is_told_nothing_in_ours() {
    for raw in [false, true] {
        let other = Listener::at(path());
        let other = match raw {
            false => other.handle_events(|| Unframed, |_| Ok(Nothing)),
            true => other.accept_with(|_, _| {}),
        };
        let server = crate::server().listen(other).start().unwrap();
        server.pause().unwrap();
        let mut stream = connect();
        server.stop().unwrap();
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen);
        assert_eq!(seen, b"", "bytes of no protocol that it knows");
    }
}

fn a_listener_that_is_started_at_once_lets_everybody_in() {
    let server = speaking(|| Unframed, |_| Ok(Echo)).start().unwrap();
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let address = server.address_of("calls").unwrap().clone();
            Helper::start(move |_| {
                let mut client = Client::connect(&address).unwrap();
                while client.call::<_, String>("echo", "x").is_ok() {}
            })
        })
        .collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        server.stop_listener("default").unwrap();
        server.start_listener("default").unwrap();
        let mut stream = connect();
        stream.write_all(b"x").unwrap();
        let mut seen = [0];
        stream.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"x");
    }
    server.stop().unwrap();
    floods.into_iter().for_each(Helper::finish);
}

const SPIN: Wait = Wait::Spin(Duration::from_micros(20));

fn sides_that_look_again_and_again_have_the_same_answers() {
    let server = crate::lifecycle::echo().wait(SPIN).start().unwrap();
    let mut client = server
        .connect()
        .unwrap()
        .with_wait(SPIN)
        .with_timeout(Duration::from_secs(5));
    let mut other = Client::connect(server.address()).unwrap();
    for number in 0..2_000 {
        let text = number.to_string().repeat(1 + number % 50);
        assert_eq!(client.call::<_, String>("echo", &text).unwrap(), text);
        if number % 100 == 0 {
            assert_eq!(other.call::<_, String>("echo", &text).unwrap(), text);
        }
    }
    let long = "x".repeat(1 << 20);
    assert_eq!(client.call::<_, String>("echo", &long).unwrap(), long);
}

fn who_looks_in_vain_sleeps_in_the_end() {
    let server = crate::lifecycle::echo().wait(SPIN).start().unwrap();
    let mut client = server.connect().unwrap().with_wait(SPIN);
    client.call::<_, String>("echo", "x").unwrap();
    let before = crate::engine::cpu_time(server.pid());
    assert!(
        !readable(&server, Duration::from_secs(1)),
        "it does not end"
    );
    let used = crate::engine::cpu_time(server.pid()) - before;
    assert!(used <= Duration::from_millis(30), "{used:?} of a second");
}
