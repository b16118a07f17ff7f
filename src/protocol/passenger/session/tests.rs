use super::*;
use crate::protocol::tests::feed;
use std::time::Duration;

const PASSWORD: &[u8; 16] = b"sixteen bytes ..";

fn session(now: Instant) -> PassengerSession {
    session_with(Limits::default(), now)
}

fn session_with(limits: Limits, now: Instant) -> PassengerSession {
    let password = Password::new(PASSWORD).unwrap();
    PassengerSession::new(Arc::new(password), Arc::new(limits), now)
}

fn greeting(password: &[u8]) -> Vec<u8> {
    let len = (password.len() as u32).to_be_bytes();
    [&len[..], password].concat()
}

/// What a client sends in one write.
fn flight() -> Vec<u8> {
    [&greeting(PASSWORD)[..], b"\x00\x0aecho\x00a\x00\x00b\x00"].concat()
}

/// All that a session says to what it has, until it waits or is over. `None`: it is over.
fn run(session: &mut PassengerSession, now: Instant) -> (Vec<Happening>, Option<()>) {
    let mut happenings = Vec::new();
    loop {
        match session.poll(now) {
            Step::Event(happening) => happenings.push(happening),
            Step::Receive => return (happenings, Some(())),
            Step::Closed => return (happenings, None),
            Step::Transmit => panic!("there is nothing to be sent"),
        }
    }
}

fn eof(session: &mut PassengerSession) {
    session.inbox.received(0, Vec::new());
}

fn echo() -> Happening {
    Happening::Request {
        name: b"echo".to_vec(),
        args: vec![b"a".to_vec(), Vec::new(), b"b".to_vec()],
    }
}

#[test]
fn every_fragmentation_gives_the_same_request() {
    let (bytes, now) = (flight(), Instant::now());
    let expected = vec![Happening::Authenticated, echo()];
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let mut session = session(now);
            let mut seen = Vec::new();
            for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                if !part.is_empty() {
                    feed(&mut session.inbox, part, Vec::new());
                }
                seen.extend(run(&mut session, now).0);
            }
            assert_eq!(seen, expected, "cut at {first} and {second}");
            assert_eq!(
                session.deadline(),
                None,
                "a handler has all the time it wants"
            );
        }
    }
}

#[test]
fn every_prefix_followed_by_the_end_is_closed_in_silence() {
    let (bytes, now) = (flight(), Instant::now());
    for len in 0..bytes.len() {
        let mut session = session(now);
        feed(&mut session.inbox, &bytes[..len], Vec::new());
        eof(&mut session);
        let (seen, open) = run(&mut session, now);
        assert_eq!(open, None, "{len} bytes");
        let knows = len >= greeting(PASSWORD).len();
        assert_eq!(seen.len(), usize::from(knows), "{len} bytes");
        let ending = if knows {
            Ending::Finished
        } else {
            Ending::Denied
        };
        assert_eq!(session.ending(), Some(&ending), "{len} bytes");
        assert_eq!(session.outbox.queued(), 0);
    }
}

#[test]
fn a_wrong_password_ends_it_and_nothing_of_the_request_is_looked_at() {
    let now = Instant::now();
    let mut wrong = *PASSWORD;
    wrong[15] ^= 1;
    for given in [&wrong[..], b"", &PASSWORD[..15], &[7; 128]] {
        let mut session = session(now);
        // A request that would be refused if it were looked at.
        let bytes = [&greeting(given)[..], b"\x00\x00"].concat();
        feed(&mut session.inbox, &bytes, Vec::new());
        assert_eq!(run(&mut session, now), (Vec::new(), None));
        assert_eq!(session.ending(), Some(&Ending::Denied));
        assert_eq!(session.inbox.unread(), b"\x00\x00", "it lies where it lay");
        assert_eq!(session.outbox.queued(), 0);
    }
}

#[test]
fn a_password_that_is_too_long_is_refused_by_its_header_alone() {
    let now = Instant::now();
    for (size, is_waited_for) in [(128, true), (129, false), (u32::MAX, false)] {
        let mut session = session(now);
        feed(&mut session.inbox, &size.to_be_bytes(), Vec::new());
        let open = run(&mut session, now).1.is_some();
        assert_eq!(open, is_waited_for, "{size} bytes");
    }
    // A stranger makes us keep no more than this, whatever it announces.
    let mut session = session(now);
    assert!(session.inbox.receive_buffer().capacity() <= 1024);
}

#[test]
fn an_array_without_elements_ends_it_in_silence() {
    for empty in [&b"\x00\x00"[..], b"\x00\x07no zero"] {
        let now = Instant::now();
        let mut session = session(now);
        let bytes = [&greeting(PASSWORD)[..], empty].concat();
        feed(&mut session.inbox, &bytes, Vec::new());
        assert_eq!(
            run(&mut session, now),
            (vec![Happening::Authenticated], None)
        );
        assert!(matches!(session.ending(), Some(Ending::Protocol(_))));
        assert_eq!(session.outbox.queued(), 0);
    }
}

#[test]
fn a_request_at_the_limit_is_taken_and_one_past_it_is_refused_by_its_header() {
    let now = Instant::now();
    let limits = Limits {
        max_frame: 8,
        ..Limits::default()
    };
    for (request, passes) in [(&b"\x00\x08sevenby\x00"[..], true), (b"\x00\x09", false)] {
        let mut session = session_with(limits.clone(), now);
        let bytes = [&greeting(PASSWORD)[..], request].concat();
        feed(&mut session.inbox, &bytes, Vec::new());
        let (seen, open) = run(&mut session, now);
        assert_eq!(
            (seen.len(), open.is_some()),
            (1 + usize::from(passes), passes)
        );
        let refused = Ending::Protocol(ProtocolError::FrameTooLarge { size: 9, limit: 8 });
        assert_eq!(session.ending(), (!passes).then_some(&refused));
    }
    let mut session = session(now);
    let request = [&[0xff, 0xff], &[7; MAX_BODY - 1][..], &[0]].concat();
    let bytes = [&greeting(PASSWORD)[..], &request].concat();
    feed(&mut session.inbox, &bytes, Vec::new());
    assert_eq!(run(&mut session, now).0.len(), 2);
}

#[test]
fn room_for_a_long_request_grows_as_it_comes() {
    let now = Instant::now();
    let mut session = session(now);
    let bytes = [&greeting(PASSWORD)[..], &[0xff, 0xff]].concat();
    feed(&mut session.inbox, &bytes, Vec::new());
    run(&mut session, now);
    let room = session.inbox.receive_buffer().spare_capacity_mut().len();
    assert!((60_000..140_000).contains(&room), "{room}");
}

#[test]
fn what_comes_behind_the_request_goes_to_the_handler() {
    let now = Instant::now();
    let mut session = session(now);
    let bytes = [&flight()[..], b"\x00\x01\x00more"].concat();
    feed(&mut session.inbox, &bytes, Vec::new());
    assert_eq!(run(&mut session, now).0.last(), Some(&echo()));
    assert_eq!(&session.hand_over()[..], b"\x00\x01\x00more");
    assert!(matches!(session.poll(now), Step::Closed));
    assert_eq!(session.ending(), Some(&Ending::Finished));
}

#[test]
fn an_answer_is_flushed_before_the_end() {
    let now = Instant::now();
    let mut session = session(now);
    feed(&mut session.inbox, &flight(), Vec::new());
    run(&mut session, now);
    session.finish(b"\x00\x05ok\x006\x00".to_vec());
    assert!(matches!(session.poll(now), Step::Transmit));
    let sent = session.outbox.transmit().unwrap().slices()[0].to_vec();
    assert_eq!(sent, b"\x00\x05ok\x006\x00");
    session.transmitted(3, now);
    assert!(matches!(session.poll(now), Step::Transmit));
    session.transmitted(4, now);
    assert!(matches!(session.poll(now), Step::Closed));
    assert_eq!(session.ending(), Some(&Ending::Finished));
}

#[test]
fn an_answer_that_is_none_is_no_byte() {
    let now = Instant::now();
    let mut session = session(now);
    feed(&mut session.inbox, &flight(), Vec::new());
    run(&mut session, now);
    session.finish(Vec::new());
    assert!(matches!(session.poll(now), Step::Closed));
}

#[test]
fn each_wait_has_its_own_deadline() {
    let limits = Limits {
        idle_timeout: Some(Duration::from_secs(7)),
        ..Limits::default()
    };
    let (begin, auth, frame) = (Instant::now(), limits.auth_timeout, limits.frame_timeout);
    let mut session = session_with(limits.clone(), begin);
    // The password: absolute, however it trickles.
    feed(&mut session.inbox, &flight()[..5], Vec::new());
    let late = begin + auth;
    assert_eq!(
        run(&mut session, late - Duration::from_nanos(1)).1,
        Some(())
    );
    assert_eq!(session.deadline(), Some(late));
    assert_eq!(run(&mut session, late).1, None);
    assert_eq!(session.ending(), Some(&Ending::TimedOut));

    // Silence behind the password, and then a request that trickles.
    for (sent, limit, ending) in [
        (0, Duration::from_secs(7), Ending::Idle),
        (1, frame, Ending::TimedOut),
        (9, frame, Ending::TimedOut),
    ] {
        let mut session = session_with(limits.clone(), begin);
        let greeted = greeting(PASSWORD).len();
        feed(&mut session.inbox, &flight()[..greeted + sent], Vec::new());
        assert_eq!(run(&mut session, begin).1, Some(()));
        assert_eq!(session.deadline(), Some(begin + limit));
        assert_eq!(run(&mut session, begin + limit).1, None);
        assert_eq!(session.ending(), Some(&ending));
    }
}

#[test]
fn a_client_that_does_not_read_is_given_up() {
    let now = Instant::now();
    let mut session = session(now);
    feed(&mut session.inbox, &flight(), Vec::new());
    run(&mut session, now);
    session.finish(b"\x00\x01\x00".to_vec());
    assert!(matches!(session.poll(now), Step::Transmit));
    let patience = Limits::default().write_timeout;
    session.transmitted(1, now + patience / 2);
    assert_eq!(session.deadline(), Some(now + patience / 2 + patience));
    assert!(matches!(session.poll(now + 2 * patience), Step::Closed));
    assert_eq!(session.ending(), Some(&Ending::TimedOut));
}

#[test]
fn a_drain_ends_what_has_not_begun() {
    let now = Instant::now();
    for len in [0, 5, greeting(PASSWORD).len(), flight().len()] {
        let mut session = session(now);
        feed(&mut session.inbox, &flight()[..len], Vec::new());
        session.drain();
        assert_eq!(run(&mut session, now), (Vec::new(), None), "{len} bytes");
        assert_eq!(session.ending(), Some(&Ending::Stopping));
    }
    // One that has begun is answered.
    let mut session = session(now);
    feed(&mut session.inbox, &flight(), Vec::new());
    run(&mut session, now);
    session.drain();
    session.finish(b"\x00\x01\x00".to_vec());
    assert!(matches!(session.poll(now), Step::Transmit));
}

#[test]
fn no_garbage_is_answered_or_kept_waiting_for_ever() {
    let now = Instant::now();
    let mut random = 7_u64;
    for begin in [&b""[..], &greeting(PASSWORD)] {
        for _ in 0..20_000 {
            let mut session = session(now);
            feed(&mut session.inbox, begin, Vec::new());
            let bytes: Vec<u8> = (0..random % 40)
                .map(|_| {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    // Small numbers, so that some headers announce little.
                    (random >> 56) as u8 >> (random >> 40 & 7)
                })
                .collect();
            random = random.wrapping_add(1);
            feed(&mut session.inbox, &bytes, Vec::new());
            let mut open = run(&mut session, now).1.is_some();
            if open && session.state == State::Calling {
                session.finish(Vec::new());
                open = run(&mut session, now).1.is_some();
            }
            assert_eq!(session.outbox.queued(), 0);
            let waits = session.deadline().is_some() || session.patience.is_at_rest();
            assert!(!open || waits, "{bytes:?}");
        }
    }
}
