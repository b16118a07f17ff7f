//! Sessions that wait: they cost nothing, they end when there is nothing to wait for, and keep nobody else waiting.

use crate::processes::Helper;
use forkserver::{
    Client, Context, EventHandler, Fault, Framing, Item, Listener, Server, Session, Unframed,
};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

crate::tests![
    who_waits_in_vain_to_speak_another_protocol_is_told_nothing_in_ours,
    a_listener_that_is_started_at_once_lets_everybody_in,
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
