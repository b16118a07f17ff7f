//! The same events, as a subscriber of `tracing` sees them.

use crate::hostile::{Raw, hello};
use forkserver::{Channel, Client, Server};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Lines, PipeReader, PipeWriter, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

crate::tests![
    a_connection_is_a_span_and_what_happens_to_it_an_event_within,
    levels_tell_what_matters,
];

/// Writes a line for each span that begins or ends, and for each event.
struct Scribe {
    writer: PipeWriter,
    last: AtomicU64,
    /// How many handles each span has.
    spans: Mutex<HashMap<u64, usize>>,
}

/// The fields of something, in order; the message without its name.
#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?}").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for Scribe {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "forkserver"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let id = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        self.spans.lock().unwrap().insert(id, 1);
        let mut words = Words::default();
        span.record(&mut words);
        let (level, name) = (span.metadata().level(), span.metadata().name());
        writeln!(&self.writer, "{id}: {level} {name}{}", words.0).unwrap();
        Id::from_u64(id)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let parent = event.parent().map_or(0, Id::into_u64);
        let level = event.metadata().level();
        writeln!(&self.writer, "{parent}: {level}{}", words.0).unwrap();
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}

    fn clone_span(&self, id: &Id) -> Id {
        *self.spans.lock().unwrap().get_mut(&id.into_u64()).unwrap() += 1;
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let mut spans = self.spans.lock().unwrap();
        let handles = spans.get_mut(&id.into_u64()).unwrap();
        *handles -= 1;
        if *handles == 0 {
            writeln!(&self.writer, "{} ends", id.into_u64()).unwrap();
        }
        *handles == 0
    }
}

fn traced(server: Server) -> (Server, Lines<BufReader<PipeReader>>) {
    let (reader, writer) = std::io::pipe().unwrap();
    let server = server.keep_fd(&writer).traced().initialize(move |_| {
        let scribe = Scribe {
            writer: writer.try_clone()?,
            last: AtomicU64::new(0),
            spans: Mutex::default(),
        };
        Ok(tracing::subscriber::set_global_default(scribe)?)
    });
    (server, BufReader::new(reader).lines())
}

fn expect(lines: &mut Lines<BufReader<PipeReader>>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(lines.next().unwrap().unwrap(), *expected);
    }
}

fn a_connection_is_a_span_and_what_happens_to_it_an_event_within() {
    let (definition, mut lines) = traced(
        crate::server()
            .handle("echo", |_, text: String| Ok(text))
            .handle_stream("stream", |_, (): (), _: Channel| Ok(())),
    );
    let server = definition.start().unwrap();
    drop(definition);
    let uid = nix::unistd::geteuid();
    let span = format!(
        "INFO session session=1 listener=default peer.pid={} peer.uid={uid}",
        std::process::id()
    );
    let mut client = Client::connect(server.address()).unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    let mut other = server.connect().unwrap();
    expect(
        &mut lines,
        &[
            "0: INFO started listener=default",
            &format!("1: {span}"),
            "1: DEBUG connected",
            "1: TRACE flushed",
        ],
    );
    assert_eq!(other.call::<_, String>("echo", "x").unwrap(), "x");
    expect(
        &mut lines,
        &[
            &format!("2: {}", span.replace("session=1", "session=2")),
            "2: DEBUG connected",
            "2: TRACE flushed",
        ],
    );
    let client = client.open("stream", &()).unwrap().into_client().unwrap();
    drop(client);
    let seen: Vec<_> = lines.by_ref().take(5).map(Result::unwrap).collect();
    let expected = [
        "1: DEBUG stream opened",
        "1: DEBUG stream closed",
        "1: TRACE flushed",
        "1: DEBUG disconnected reason=the client has finished",
        "1 ends",
    ];
    assert_eq!(seen, expected);
    drop(other);
    expect(
        &mut lines,
        &[
            "2: DEBUG disconnected reason=the client has finished",
            "2 ends",
        ],
    );
    server.stop().unwrap();
    let rest: Vec<_> = lines.map(Result::unwrap).collect();
    assert_eq!(
        rest,
        [
            "0: INFO paused listener=default reason=the server is stopping",
            "0: INFO stopped listener=default"
        ]
    );
}

fn levels_tell_what_matters() {
    let (definition, mut lines) = traced(
        crate::server().handle("panic", |_, (): ()| -> Result<(), _> { panic!("as asked") }),
    );
    let server = definition.start().unwrap();
    drop(definition);
    lines.next().unwrap().unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&hello(&[7; 32]));
    raw.read_to_end();
    let refused = lines.next().unwrap().unwrap();
    assert!(
        refused.starts_with("0: WARN refused listener=default peer.pid=")
            && refused.ends_with("reason=no valid hello"),
        "{refused}"
    );
    let mut client = server.connect().unwrap();
    client.call::<_, ()>("panic", &()).unwrap_err();
    let seen: Vec<_> = lines.by_ref().take(4).map(Result::unwrap).collect();
    let panicked = "1: ERROR panicked what=\"panic\" error=\"as asked\" location=\"";
    assert!(seen[2].starts_with(panicked), "{seen:?}");
    server.pause().unwrap();
    expect(
        &mut lines,
        &["0: INFO paused listener=default reason=it was asked for"],
    );
    server.resume().unwrap();
    expect(&mut lines, &["0: INFO resumed listener=default"]);
    server.set_max_connections(Some(0)).unwrap();
    expect(
        &mut lines,
        &["0: WARN paused listener=default reason=max_connections is reached"],
    );
    // Whoever writes must not find the reader gone.
    server.stop().unwrap();
}
