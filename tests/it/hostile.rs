//! Whatever a stranger sends: the server answers the next call, and has lost nothing.

use crate::engine::cpu_time;
use crate::lifecycle::echo;
use forkserver::{Address, Bytes, CallError, Client, Delivery, Limits, ServerHandle};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

crate::tests![
    garbage_ends_the_connection_and_nothing_else,
    a_hello_must_be_within_its_first_bytes,
    a_silent_client_is_closed_at_the_deadline,
    a_slow_client_is_closed_at_the_deadline,
    half_a_frame_is_closed_at_the_deadline,
    a_silent_connection_is_closed_when_idle_for_too_long,
    a_client_that_never_reads_is_cut_off,
    a_huge_length_costs_nothing,
    what_kills_plain_bincode_is_refused_quickly,
    limits_of_values_hold_at_the_limit_and_one_beyond,
    a_server_that_lies_is_a_protocol_error,
    strangers_keep_nobody_out,
];

/// A connection without manners.
pub struct Raw(UnixStream);

impl From<UnixStream> for Raw {
    fn from(stream: UnixStream) -> Raw {
        Raw(stream)
    }
}

impl Raw {
    pub fn connect(server: &ServerHandle) -> Raw {
        Raw::connect_to(server.address())
    }

    pub fn connect_to(address: &Address) -> Raw {
        let stream = UnixStream::connect(address.path()).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Raw(stream)
    }

    /// A connection that has been told that it may send descriptors.
    pub fn welcomed(server: &ServerHandle) -> Raw {
        let mut raw = Raw::connect(server);
        let mut hello = hello_frame(server);
        // Descriptors, and a welcome at once.
        hello[18] = 3;
        raw.write(&hello);
        let mut welcome = [0; 24];
        raw.0.read_exact(&mut welcome).unwrap();
        assert_eq!((welcome[0], welcome[14]), (2, 1), "{welcome:?}");
        raw
    }

    /// A server that hangs up early is no mistake of the test.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    pub fn finish_writing(&mut self) {
        self.0.shutdown(std::net::Shutdown::Write).unwrap();
    }

    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(err) if err.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(err) => panic!("{err}"),
        }
        bytes
    }

    pub fn stream(&self) -> &UnixStream {
        &self.0
    }
}

pub fn frame(kind: u8, fds: u8, flags: u16, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, fds];
    frame.extend(flags.to_le_bytes());
    frame.extend(id.to_le_bytes());
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(payload);
    frame
}

pub fn hello(password: &[u8]) -> Vec<u8> {
    frame(1, 0, 0, 0, &[b"FKSV\x01\x00\x01\x00", password].concat())
}

pub fn hello_frame(server: &ServerHandle) -> Vec<u8> {
    hello_frame_to(server.address())
}

pub fn hello_frame_to(address: &Address) -> Vec<u8> {
    hello(address.password().as_bytes())
}

/// A call without a type hash.
pub fn call_frame(id: u32, name: &str, args: &[u8]) -> Vec<u8> {
    frame(
        4,
        0,
        0,
        id,
        &[&[name.len() as u8], name.as_bytes(), args].concat(),
    )
}

pub fn still_answers(server: &ServerHandle) {
    let mut client = server.connect().unwrap();
    assert_eq!(client.call::<_, String>("echo", "alive").unwrap(), "alive");
}

fn garbage_ends_the_connection_and_nothing_else() {
    let server = echo().start().unwrap();
    let hello = hello_frame(&server);
    let good = call_frame(1, "echo", b"\x01x");
    let after_hello: [Vec<u8>; 10] = [
        frame(0, 0, 0, 0, b""),
        frame(255, 0, 0, 0, b""),
        frame(4, 0, 0x80, 1, b"\x04echo\x01x"),
        frame(4, 200, 0, 1, b"\x04echo\x01x"),
        frame(4, 254, 0, 1, b"\x04echo\x01x"),
        frame(4, 0, 0, 1, b"\x09echo"),
        frame(4, 0, 0, 1, b"\x02\xff\xfe"),
        frame(4, 0, 0, 1, b""),
        frame(5, 0, 0, 1, b"a reply from a client"),
        hello.clone(),
    ];
    for bad in &after_hello {
        let mut raw = Raw::connect(&server);
        raw.write(&[&hello[..], bad, &good].concat());
        let answer = raw.read_to_end();
        // Welcome, an error that says why, and the end.
        assert_eq!(
            (answer[0], answer[24], answer[36]),
            (2, 6, 7),
            "{bad:?}: {answer:?}"
        );
    }
    for seed in 0..200_u32 {
        let mut raw = Raw::connect(&server);
        let noise: Vec<u8> = (0..seed * 3)
            .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed) as u8)
            .collect();
        raw.write(&noise);
        raw.finish_writing();
        assert!(raw.read_to_end().is_empty());
    }
    still_answers(&server);
}

fn a_hello_must_be_within_its_first_bytes() {
    let server = echo().start().unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&frame(1, 0, 0, 0, &[0; 117]));
    assert!(
        raw.read_to_end().is_empty(),
        "a header that announces more than 128 bytes in all"
    );
    let mut raw = Raw::connect(&server);
    raw.write(&frame(1, 0, 0, 0, &[0; 116]));
    assert!(raw.read_to_end().is_empty(), "no hello at all");
    still_answers(&server);
}

fn impatient() -> Limits {
    let mut limits = Limits::default();
    limits.auth_timeout = Duration::from_millis(200);
    limits.frame_timeout = Duration::from_millis(200);
    limits.write_timeout = Duration::from_millis(200);
    limits
}

/// The end comes after `limit`, and not much later.
fn ends_at(raw: &mut Raw, since: Instant, limit: Duration) {
    raw.read_to_end();
    let took = since.elapsed();
    assert!(
        took >= limit - Duration::from_millis(5) && took < limit + Duration::from_secs(2),
        "{took:?}"
    );
}

fn a_silent_client_is_closed_at_the_deadline() {
    let server = echo().limits(impatient()).start().unwrap();
    let since = Instant::now();
    let mut silent: Vec<_> = (0..10).map(|_| Raw::connect(&server)).collect();
    still_answers(&server);
    silent
        .iter_mut()
        .for_each(|raw| ends_at(raw, since, Duration::from_millis(200)));
    still_answers(&server);
}

/// Sends one byte whenever nothing has come for 20 ms, until the server hangs up.
fn drip(raw: &mut Raw, bytes: &[u8]) {
    for byte in bytes {
        raw.write(&[*byte]);
        if crate::processes::readable(raw.stream(), Duration::from_millis(20)) {
            return;
        }
    }
}

fn a_slow_client_is_closed_at_the_deadline() {
    let server = echo().limits(impatient()).start().unwrap();
    let mut raw = Raw::connect(&server);
    let since = Instant::now();
    // Each byte comes in time; all of them do not.
    drip(&mut raw, &hello_frame(&server));
    ends_at(&mut raw, since, Duration::from_millis(200));
    still_answers(&server);
}

fn half_a_frame_is_closed_at_the_deadline() {
    let server = echo().limits(impatient()).start().unwrap();
    for whole in [
        call_frame(1, "echo", b"\x01x"),
        frame(4, 0, 0, 1, &[4; 100_000]),
    ] {
        let mut raw = Raw::connect(&server);
        raw.write(&hello_frame(&server));
        let since = Instant::now();
        raw.write(&whole[..whole.len() - 1]);
        ends_at(&mut raw, since, Duration::from_millis(200));
    }
    let mut raw = Raw::connect(&server);
    raw.write(&hello_frame(&server));
    let since = Instant::now();
    drip(&mut raw, &frame(4, 0, 0, 1, &[4; 100]));
    ends_at(&mut raw, since, Duration::from_millis(200));
    still_answers(&server);
}

fn a_silent_connection_is_closed_when_idle_for_too_long() {
    let mut limits = Limits::default();
    limits.idle_timeout = Some(Duration::from_millis(100));
    let server = echo().limits(limits).start().unwrap();
    let mut raw = Raw::connect(&server);
    let since = Instant::now();
    raw.write(&hello_frame(&server));
    ends_at(&mut raw, since, Duration::from_millis(100));
    let mut client = server.connect().unwrap();
    for _ in 0..3 {
        assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    }
}

/// How much memory the server has.
pub fn resident(server: &ServerHandle) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        << 10
}

fn a_client_that_never_reads_is_cut_off() {
    let server = echo()
        .limits(impatient())
        .handle("large", |_, size: u32| {
            Ok(Bytes::from(vec![1; size as usize]))
        })
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&hello_frame(&server));
    let since = Instant::now();
    // 1 MiB, in the codec's words, again and again.
    for id in 1..=100 {
        raw.write(&call_frame(id, "large", &[252, 0, 0, 16, 0]));
    }
    still_answers(&server);
    let before = resident(&server);
    // When the server hangs up, there is nothing to be read beyond what the kernel holds.
    let mut hung_up = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(raw.stream()),
        nix::poll::PollFlags::empty(),
    )];
    assert_eq!(nix::poll::poll(&mut hung_up, 10_000_u16), Ok(1));
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(190) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert!(resident(&server) < before + (16 << 20));
    still_answers(&server);
}

fn a_huge_length_costs_nothing() {
    let server = echo().start().unwrap();
    still_answers(&server);
    let before = resident(&server);
    let mut raws = Vec::new();
    for length in [u32::MAX, (16 << 20) + 1, 16 << 20] {
        let mut raw = Raw::connect(&server);
        let mut header = frame(4, 0, 0, 1, b"");
        header[8..12].copy_from_slice(&length.to_le_bytes());
        raw.write(&[hello_frame(&server), header, vec![0; 100]].concat());
        raws.push(raw);
    }
    still_answers(&server);
    assert!(
        resident(&server) < before + (1 << 20),
        "{before} -> {}",
        resident(&server)
    );
    for raw in &mut raws[..2] {
        let answer = raw.read_to_end();
        assert_eq!((answer[24], answer[36]), (6, 7));
        assert!(String::from_utf8_lossy(&answer).contains("16777216"));
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Tree {
    Leaf,
    Node(Box<Tree>),
}

/// An enum in an enum: the leaf is on the level behind this.
pub fn tree(depth: usize) -> Tree {
    (0..depth).fold(Tree::Leaf, |tree, _| Tree::Node(Box::new(tree)))
}

fn what_kills_plain_bincode_is_refused_quickly() {
    const MAX: [u8; 9] = [253, 255, 255, 255, 255, 255, 255, 255, 255];
    const GIB: [u8; 5] = [252, 0, 0, 0, 64];
    let server = crate::server()
        .handle("echo", |_, text: String| Ok(text))
        .handle("numbers", |_, numbers: Vec<u64>| Ok(numbers.len()))
        .handle("units", |_, units: Vec<()>| Ok(units.len()))
        .handle("text", |_, text: String| Ok(text.len()))
        .handle("bytes", |_, bytes: Bytes| Ok(bytes.len()))
        .handle("buffer", |_, bytes: serde_bytes::ByteBuf| Ok(bytes.len()))
        .handle("map", |_, map: std::collections::HashMap<u8, u8>| {
            Ok(map.len())
        })
        .handle("large", |_, large: Vec<Option<Box<Large>>>| Ok(large.len()))
        .handle("inline", |_, large: Vec<Option<Large>>| Ok(large.len()))
        .handle("behind", |_, large: Vec<Option<Box<Option<Large>>>>| {
            Ok(large.len())
        })
        .handle("maps", |_, maps: Vec<BTreeMap<u8, Option<Large>>>| {
            Ok(maps.len())
        })
        .handle("tree", |_, tree: Tree| Ok(matches!(tree, Tree::Leaf)))
        .start()
        .unwrap();
    let mut raw = Raw::connect(&server);
    raw.write(&hello_frame(&server));
    still_answers(&server);
    let before = resident(&server);
    let nested = vec![1; 1 << 20];
    let nones = [&[252, 0, 0, 16, 0][..], &vec![0; 1 << 20]].concat();
    // Below the limit of elements, each of a byte: 900 000.
    let fewer = [&[252, 0xa0, 0xbb, 0x0d, 0][..], &vec![0; 900_000]].concat();
    // A map of one entry sets memory aside for eleven.
    let maps = [&[251, 0x58, 0x1b][..], &[1, 0, 0].repeat(7000)].concat();
    let boxed = [&[252, 0xe0, 0x93, 4, 0][..], &[1, 0].repeat(300_000)].concat();
    let cases: Vec<(&str, &[u8])> = ["numbers", "units", "text", "bytes", "buffer", "map"]
        .iter()
        .flat_map(|&name| [(name, &MAX[..]), (name, &GIB[..])])
        .chain([("tree", &nested[..]), ("inline", &nones), ("large", &nones)])
        .chain([("inline", &fewer[..]), ("behind", &boxed), ("maps", &maps)])
        .collect();
    for (id, (name, args)) in cases.into_iter().enumerate() {
        let before_call = cpu_time(server.pid());
        raw.write(&call_frame(id as u32 + 1, name, args));
        let mut header = [0; 12];
        // The welcome comes in front of the first answer.
        loop {
            raw.0.read_exact(&mut header).unwrap();
            let mut payload =
                vec![0; u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize];
            raw.0.read_exact(&mut payload).unwrap();
            if header[0] == 6 {
                assert_eq!(
                    payload[0],
                    2,
                    "{name}: {}",
                    String::from_utf8_lossy(&payload)
                );
                break;
            }
            assert_eq!(header[0], 2, "{name}");
        }
        // The server's own time: how long it is until it gets a processor is up to the machine's other users.
        let spent = cpu_time(server.pid()) - before_call;
        let limit = if cfg!(debug_assertions) { 100 } else { 10 };
        assert!(spent < Duration::from_millis(limit), "{name}: {spent:?}");
        assert!(
            resident(&server) < before + (16 << 20),
            "{name}: {before} -> {}",
            resident(&server)
        );
    }
    still_answers(&server);
}

/// An element of 1 KiB, of which a `None` takes as much as a `Some`.
#[derive(Serialize, Deserialize)]
struct Large([[u64; 16]; 8]);

fn limits_of_values_hold_at_the_limit_and_one_beyond() {
    let mut limits = Limits::default();
    limits.max_depth = 10;
    limits.max_elements = 100;
    limits.max_memory = 2000;
    let server = crate::server()
        .limits(limits)
        .handle("bytes", |_, bytes: Vec<u8>| Ok(bytes.len()))
        .handle("words", |_, words: Vec<u64>| Ok(words.len()))
        .handle("tree", |_, _: Tree| Ok(()))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    let refused = |result: Result<usize, CallError>, limit: &str| {
        let err = result.unwrap_err();
        assert_eq!(err.delivery(), Delivery::NotSent);
        assert!(
            matches!(&err, CallError::TypeMismatch { reason, .. } if reason.contains(limit)),
            "{err}"
        );
    };
    assert_eq!(
        client.call::<_, usize>("bytes", &vec![0_u8; 100]).unwrap(),
        100
    );
    refused(client.call("bytes", &vec![0_u8; 101]), "max_elements, 100");
    client.call::<_, ()>("tree", &tree(9)).unwrap();
    refused(
        client.call::<_, ()>("tree", &tree(10)).map(|()| 0),
        "max_depth, 10",
    );
    assert_eq!(
        client.call::<_, usize>("words", &vec![0_u64; 100]).unwrap(),
        100
    );
    refused(client.call("words", &vec![0_u64; 101]), "max_elements, 100");
    let mut limits = Limits::default();
    // The vector itself, and a hundred words, the first of which brings room for four.
    limits.max_memory = 848;
    let server = crate::server()
        .limits(limits)
        .handle("words", |_, words: Vec<u64>| Ok(words.len()))
        .start()
        .unwrap();
    let mut client = server.connect().unwrap();
    assert_eq!(
        client.call::<_, usize>("words", &vec![0_u64; 100]).unwrap(),
        100
    );
    refused(
        client.call("words", &vec![0_u64; 101]),
        "max_memory allows, 848",
    );
}

fn a_server_that_lies_is_a_protocol_error() {
    use std::os::unix::net::UnixListener;
    let path = std::env::temp_dir().join("liar");
    let answers: [Vec<u8>; 6] = [
        frame(99, 0, 0, 1, b""),
        frame(4, 0, 0, 1, b"\x04echo"),
        frame(5, 7, 0, 1, b"x"),
        frame(6, 0, 0, 1, &[0; 3]),
        frame(2, 0, 0, 0, b"?"),
        vec![5, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255],
    ];
    for answer in answers {
        let listener = UnixListener::bind(&path).unwrap();
        let text = format!(
            "forkserver 1\npid {}\nuid {}\npath {}\npassword {}\n",
            std::process::id(),
            nix::unistd::geteuid(),
            path.to_str()
                .unwrap()
                .bytes()
                .map(|b| format!("{b:02x}"))
                .collect::<String>(),
            "00".repeat(16),
        );
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(text.as_bytes()).unwrap();
        drop(write);
        let address = forkserver::Address::from_fd(read).unwrap();
        let mut client = Client::connect(&address).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let pending = client.begin::<_, u8>("echo", &1_u8).unwrap();
        stream.write_all(&answer).unwrap();
        let err = client.finish(pending).unwrap_err();
        assert!(matches!(err, CallError::Protocol(_)), "{answer:?}: {err}");
        std::fs::remove_file(&path).unwrap();
    }
}

fn strangers_keep_nobody_out() {
    let mut limits = Limits::default();
    limits.max_unauthenticated = 10;
    limits.max_connections = 30;
    limits.auth_timeout = Duration::from_secs(60);
    let server = echo().limits(limits).start().unwrap();
    let mut known = server.connect().unwrap();
    assert_eq!(known.call::<_, String>("echo", "x").unwrap(), "x");
    let mut strangers: Vec<_> = (0..40).map(|_| Raw::connect(&server)).collect();
    let start = Instant::now();
    still_answers(&server);
    let mut client = Client::connect(server.address()).unwrap();
    assert_eq!(client.call::<_, String>("echo", "x").unwrap(), "x");
    assert!(start.elapsed() < Duration::from_secs(2));
    // The oldest had to go.
    assert!(strangers[0].read_to_end().is_empty());
    assert_eq!(known.call::<_, String>("echo", "x").unwrap(), "x");
}
