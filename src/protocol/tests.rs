//! The core in memory: every fragmentation, garbage, deadlines, golden bytes.

use super::Step;
use super::client::{Answer, ClientSession};
use super::codec;
use super::ending::Ending;
use super::greeting::{Denied, Hello, Welcome};
use super::inbox::Inbox;
use super::message::{Class, ErrorBody, Form, write_call, write_reply};
use super::outbox::Outbox;
use super::server::{Happening, ServerSession};
use crate::Fd;
use crate::descriptor::Descriptor;
use crate::limits::Limits;
use crate::password::Password;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) fn password() -> Password {
    Password::new([b'p'; 32]).unwrap()
}

pub(super) fn server_with(limits: Limits, now: Instant) -> ServerSession {
    ServerSession::new(Arc::new(password()), Arc::new(limits), now)
}

pub(super) fn server(now: Instant) -> ServerSession {
    server_with(Limits::default(), now)
}

pub(super) fn client() -> ClientSession {
    ClientSession::new(password(), Limits::default().bounds())
}

/// Moves at most `most` bytes, as the kernel would: descriptors go with the first byte of what carries them, and
/// nothing behind them comes with them.
pub(super) fn carry(from: &mut Outbox, to: &mut Inbox, most: usize) -> usize {
    let Some(transmit) = from.transmit() else {
        return 0;
    };
    let bytes: Vec<u8> = transmit
        .slices()
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .take(most)
        .collect();
    let fds: Vec<OwnedFd> = transmit
        .fds
        .iter()
        .map(|fd| fd.as_fd().try_clone_to_owned().unwrap())
        .collect();
    from.transmitted(bytes.len());
    feed(to, &bytes, fds);
    bytes.len()
}

pub(super) fn feed(inbox: &mut Inbox, bytes: &[u8], fds: Vec<OwnedFd>) {
    inbox.receive_buffer().extend_from_slice(bytes);
    let fds = fds.into_iter().map(Descriptor::from).collect();
    inbox.received(bytes.len(), fds);
}

pub(super) fn null() -> Fd {
    std::fs::File::open("/dev/null").unwrap().into()
}

/// Serves a session: doubles numbers, and counts descriptors.
fn serve(session: &mut ServerSession, now: Instant) -> bool {
    loop {
        match session.poll(|| now) {
            Step::Event(Happening::Authenticated { fds, .. }) => session.welcome(Welcome {
                fds,
                worker: (0, 0),
            }),
            Step::Event(Happening::Call) => {
                let mut call = session.call().unwrap();
                let id = call.id;
                let answer = match call.name() {
                    "double" => codec::decode::<u64>(call.take_value(), &Limits::default())
                        .map(|n| (n * 2, vec![])),
                    "count" => codec::decode::<Vec<Fd>>(call.take_value(), &Limits::default())
                        .map(|fds| (fds.len() as u64, fds)),
                    _ => Err("unknown".into()),
                };
                session.finish(match answer {
                    Ok(value) => {
                        let (mut frame, slot) = write_reply(id);
                        let hash = codec::encode(&value, &mut frame, &Limits::default()).unwrap();
                        slot.fill(&mut frame, hash);
                        frame
                    }
                    Err(text) => ErrorBody::new(Class::Fault, vec![text]).write(id),
                });
            }
            Step::Transmit | Step::Receive => return true,
            Step::Closed => return false,
        }
    }
}

pub(super) fn send<T: serde::Serialize>(
    client: &mut ClientSession,
    id: u32,
    name: &str,
    value: &T,
) {
    let (mut frame, slot) = write_call(id, name, None, Form::Call);
    let hash = codec::encode(value, &mut frame, &Limits::default()).unwrap();
    slot.fill(&mut frame, hash);
    client.send(id, frame).unwrap();
}

#[test]
fn every_fragmentation_gives_the_same_answers() {
    let now = Instant::now();
    for most in (1..100).chain([1000, 1 << 20]) {
        let (mut client, mut server) = (client(), server(now));
        for id in 1..=3_u32 {
            send(&mut client, id, "double", &(u64::from(id) * 100_000));
        }
        send(&mut client, 4, "count", &vec![null(), null(), null()]);
        send(&mut client, 5, "double", &5_u64);
        send(&mut client, 6, "nothing", &());
        let mut answers = Vec::new();
        while answers.len() < 6 {
            let mut moved = carry(&mut client.outbox, &mut server.inbox, most);
            assert!(serve(&mut server, now), "the session lives");
            moved += carry(&mut server.outbox, &mut client.inbox, most);
            while let Some(answer) = client.next_answer().unwrap() {
                answers.push(match answer {
                    Answer::Value(id) => {
                        let value = codec::decode(client.value(), &Limits::default());
                        let (n, fds): (u64, Vec<Fd>) = value.unwrap();
                        (id, Ok((n, fds.len())))
                    }
                    Answer::Failed(id, body) => (id, Err(body.texts)),
                    _ => continue,
                });
            }
            assert!(moved > 0, "something moves, in parts of {most}");
        }
        let expected = [
            (1, Ok((200_000, 0))),
            (2, Ok((400_000, 0))),
            (3, Ok((600_000, 0))),
            (4, Ok((3, 3))),
            (5, Ok((10, 0))),
            (6, Err(vec!["unknown".to_owned()])),
        ];
        assert_eq!(answers, expected, "in parts of {most}");
    }
}

/// Numbers that differ from run to run of the loop, and not from run to run of the test.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    /// Bytes that look like frames often enough to get far.
    fn bytes(&mut self, valid: &[u8]) -> Vec<u8> {
        let mut bytes = match self.below(3) {
            0 => Vec::new(),
            _ => valid.to_vec(),
        };
        for _ in 0..self.below(4) {
            let place = self.below(bytes.len() + 1);
            match self.below(4) {
                0 => bytes.truncate(place),
                1 => bytes.insert(place, self.below(256) as u8),
                2 if place < bytes.len() => bytes[place] = [0, 1, 4, 255][self.below(4)],
                _ => bytes.extend((0..self.below(40)).map(|_| self.0.to_le_bytes()[3])),
            }
        }
        bytes
    }
}

#[test]
fn a_hundred_thousand_random_inputs_panic_nobody() {
    let now = Instant::now();
    let mut random = Random(1);
    let mut valid = client();
    send(&mut valid, 1, "double", &1_u64);
    send(&mut valid, 2, "count", &Vec::<Fd>::new());
    let to_server = valid.outbox.transmit().unwrap().slices()[0].to_vec();
    let mut answering = server(now);
    feed(&mut answering.inbox, &to_server, Vec::new());
    let mut to_client = Vec::new();
    while serve(&mut answering, now) && answering.outbox.queued() > 0 {
        to_client.extend_from_slice(&answering.outbox.transmit().unwrap().slices()[0]);
        let len = answering.outbox.queued();
        answering.outbox.transmitted(len);
    }
    assert!(to_client.len() > 60);
    for _ in 0..100_000 {
        let mut server = server(now);
        feed(&mut server.inbox, &random.bytes(&to_server), Vec::new());
        if serve(&mut server, now) {
            feed(&mut server.inbox, &random.bytes(&to_server), Vec::new());
            serve(&mut server, now);
        }
        let mut client = client();
        feed(&mut client.inbox, &random.bytes(&to_client), Vec::new());
        while let Ok(Some(_)) = client.next_answer() {}
    }
}

#[test]
fn golden_bytes_of_a_conversation() {
    let now = Instant::now();
    let (mut client, mut server) = (client(), server(now));
    let (mut frame, slot) = write_call(
        7,
        "hello",
        Some(Duration::from_micros(1_000_500)),
        Form::LastCall,
    );
    let hash = codec::encode(&("Joe", 300_u32), &mut frame, &Limits::default()).unwrap();
    slot.fill(&mut frame, hash);
    client.send(7, frame).unwrap();
    let sent = client.outbox.transmit().unwrap().slices()[0].to_vec();
    let hello = [
        &[1, 0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0][..],
        b"FKSV\x01\x00\x01\x00pppppppppppppppppppppppppppppppp",
    ];
    let call = [
        &[4, 0, 7, 0, 7, 0, 0, 0, 25, 0, 0, 0][..],
        &[0xea, 0x35, 0xc7, 0xb8, 0xcc, 0x35, 0xc2, 0x73],
        &[0xe9, 3, 0, 0],
        b"\x05hello",
        b"\x03Joe\xfb\x2c\x01",
    ];
    assert_eq!(
        sent,
        [hello.concat(), call.concat()].concat(),
        "{sent:02x?}"
    );

    feed(&mut server.inbox, &sent, Vec::new());
    let Step::Event(Happening::Authenticated { fds: true, .. }) = server.poll(|| now) else {
        panic!()
    };
    server.welcome(Welcome {
        fds: true,
        worker: (0, 0),
    });
    let Step::Event(Happening::Call) = server.poll(|| now) else {
        panic!()
    };
    let call = server.call().unwrap();
    assert_eq!(
        (call.name(), call.timeout),
        ("hello", Some(Duration::from_millis(1001)))
    );
    let (mut reply, slot) = write_reply(7);
    let hash = codec::encode("hi", &mut reply, &Limits::default()).unwrap();
    slot.fill(&mut reply, hash);
    server.finish(reply);
    let Step::Transmit = server.poll(|| now) else {
        panic!("welcome and reply leave in one write")
    };
    let sent = server.outbox.transmit().unwrap().slices()[0].to_vec();
    let welcome = [
        2, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let reply = [
        &[5, 0, 1, 0, 7, 0, 0, 0, 11, 0, 0, 0][..],
        &[0x22, 0x0b, 0x02, 0x86, 0x4c, 0xee, 0x63, 0xaf],
        b"\x02hi",
    ];
    assert_eq!(
        sent,
        [&welcome[..], &reply.concat()].concat(),
        "{sent:02x?}"
    );
    let len = server.outbox.queued();
    server.transmitted(len, || now);
    assert!(
        matches!(server.poll(|| now), Step::Closed),
        "it was the last call"
    );
}

#[test]
fn golden_bytes_of_an_error() {
    let mut body = ErrorBody::new(Class::Fault, vec!["no".into(), "way".into()]);
    body.code = -2;
    let frame = body.write(9).seal(100, 0).unwrap();
    let expected = [
        &[
            6, 0, 0, 0, 9, 0, 0, 0, 19, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 2,
        ][..],
        b"\x02\0\0\0no\x03\0\0\0way",
    ];
    assert_eq!(frame.buf, expected.concat());
}

/// What the session wants until the deadline passes, and why it ends then.
fn ends_with(session: &mut ServerSession, now: Instant, limit: Duration) -> Ending {
    assert_eq!(session.deadline(), Some(now + limit));
    let almost = now + limit - Duration::from_nanos(1);
    assert!(matches!(
        session.poll(|| almost),
        Step::Receive | Step::Transmit
    ));
    assert!(matches!(session.poll(|| now + limit), Step::Closed));
    session.ending().cloned().unwrap()
}

#[test]
fn deadlines_are_absolute_and_belong_to_their_states() {
    let now = Instant::now();
    let limits = Limits {
        idle_timeout: Some(Duration::from_secs(5)),
        ..Limits::default()
    };
    let hello = Hello::write(&password(), false, true, 0)
        .seal(128, 0)
        .unwrap()
        .buf
        .clone();
    let step = Duration::from_millis(300);

    let mut silent = server_with(limits.clone(), now);
    assert!(matches!(silent.poll(|| now), Step::Receive));
    feed(&mut silent.inbox, &hello[..10], Vec::new());
    assert!(
        matches!(silent.poll(|| now + step), Step::Receive),
        "a byte does not move the deadline"
    );
    assert_eq!(
        ends_with(&mut silent, now, limits.auth_timeout),
        Ending::TimedOut
    );

    let welcomed = || {
        let mut session = server_with(limits.clone(), now);
        feed(&mut session.inbox, &hello, Vec::new());
        assert!(serve(&mut session, now));
        let len = session.outbox.queued();
        assert_eq!(len, 24);
        session.transmitted(len, || now);
        assert!(matches!(session.poll(|| now), Step::Receive));
        session
    };
    assert_eq!(
        ends_with(&mut welcomed(), now, Duration::from_secs(5)),
        Ending::Idle
    );

    let mut half = welcomed();
    feed(&mut half.inbox, &[4, 0], Vec::new());
    assert!(matches!(half.poll(|| now + step), Step::Receive));
    feed(&mut half.inbox, &[0, 0], Vec::new());
    assert!(matches!(half.poll(|| now + 2 * step), Step::Receive));
    assert_eq!(
        ends_with(&mut half, now + step, limits.frame_timeout),
        Ending::TimedOut
    );

    let mut unread = welcomed();
    let mut call = client();
    call.say_hello(false).unwrap();
    let len = call.outbox.queued();
    call.outbox.transmitted(len);
    send(&mut call, 1, "double", &1_u64);
    carry(&mut call.outbox, &mut unread.inbox, 1000);
    assert!(serve(&mut unread, now + step));
    unread.transmitted(1, || now + 2 * step);
    assert!(
        matches!(unread.poll(|| now + 2 * step), Step::Transmit),
        "progress moves this one"
    );
    assert_eq!(
        ends_with(&mut unread, now + 2 * step, limits.write_timeout),
        Ending::TimedOut
    );
}

#[test]
fn a_drain_refuses_what_has_not_begun_and_then_ends() {
    let now = Instant::now();
    let (mut client, mut server) = (client(), server(now));
    send(&mut client, 1, "double", &1_u64);
    send(&mut client, 2, "double", &2_u64);
    carry(&mut client.outbox, &mut server.inbox, 1000);
    let Step::Event(Happening::Authenticated { .. }) = server.poll(|| now) else {
        panic!()
    };
    server.welcome(Welcome {
        fds: true,
        worker: (0, 0),
    });
    let Step::Event(Happening::Call) = server.poll(|| now) else {
        panic!()
    };
    server.drain();
    let id = server.call_id();
    server.finish(ErrorBody::new(Class::Fault, vec![]).write(id));
    server.inbox.received(0, Vec::new());
    let mut classes = Vec::new();
    while !matches!(server.poll(|| now), Step::Closed) {
        carry(&mut server.outbox, &mut client.inbox, 1000);
        while let Some(answer) = client.next_answer().unwrap() {
            if let Answer::Failed(id, body) = answer {
                classes.push((id, body.class));
            }
        }
    }
    assert_eq!(classes, [(1, Class::Fault), (2, Class::Stopping)]);
    assert_eq!(server.ending(), Some(&Ending::Stopping));
}

#[test]
fn a_greeting_is_refused_while_draining() {
    let now = Instant::now();
    let mut server = server(now);
    server.drain();
    assert!(matches!(server.poll(|| now), Step::Transmit));
    let bytes = server.outbox.transmit().unwrap().slices()[0].to_vec();
    assert_eq!(bytes, Denied::Stopping.write().seal(100, 0).unwrap().buf);
}
