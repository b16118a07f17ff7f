use super::{Error, MessageChannel};
use crate::StopReason;
use crate::channel::StopToken;
use crate::sys::{rights, socket};
use bytes::BytesMut;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// A handler's end with what the session has left over, the other end, and what stops the handler.
fn served(received: &[u8]) -> (MessageChannel, MessageChannel, StopToken) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let token = StopToken::new().unwrap();
    let ours = MessageChannel::serve(
        Arc::new(OwnedFd::from(ours).into()),
        BytesMut::from(received),
        Duration::from_secs(30),
        token.clone(),
    );
    (ours, theirs.into(), token)
}

#[test]
fn what_the_session_left_over_comes_first_at_whatever_place_it_ends() {
    let bytes = b"\x00\x03a\x00\x00\x00\x00\x00\x02bc";
    for len in 0..=bytes.len() {
        let (mut ours, theirs, _) = served(&bytes[..len]);
        let theirs = UnixStream::from(theirs.as_fd().try_clone_to_owned().unwrap());
        (&theirs).write_all(&bytes[len..]).unwrap();
        assert_eq!(ours.has_buffered(), len > 0);
        assert_eq!(ours.read().unwrap().unwrap(), [&b"a"[..], b""]);
        assert_eq!(ours.read_scalar(2).unwrap().unwrap(), b"bc");
        assert!(!ours.has_buffered());
    }
}

#[test]
fn no_descriptor_is_asked_for_while_something_else_comes_first() {
    let (mut ours, mut theirs, _) = served(b"\x00\x01\x00");
    assert!(matches!(ours.recv_io(), Err(Error::Buffered { count: 3 })));
    assert!(matches!(
        ours.recv_io_without_negotiation(),
        Err(Error::Buffered { count: 3 })
    ));
    theirs.set_timeout(Some(Duration::ZERO));
    assert!(matches!(theirs.read(), Err(Error::TimedOut(_))));
    assert_eq!(ours.read().unwrap().unwrap(), [b""]);
    ours.write(&["still in order"]).unwrap();
    assert!(theirs.read().unwrap().is_some());
}

#[test]
fn what_has_come_is_read_before_a_handler_is_told_to_stop() {
    let (mut ours, mut theirs, token) = served(b"");
    theirs.write(&["last words"]).unwrap();
    theirs.write_scalar(b"and more").unwrap();
    token.stop(StopReason::ServerStopping);
    assert_eq!(ours.read().unwrap().unwrap(), [b"last words"]);
    assert_eq!(ours.read_scalar(8).unwrap().unwrap(), b"and more");
    let is_told = |err| matches!(err, Error::Stopped(StopReason::ServerStopping));
    assert!(is_told(ours.read().unwrap_err()));
    assert!(is_told(ours.read_scalar(8).unwrap_err()));
    assert!(is_told(ours.send_io(std::io::stdin()).unwrap_err()));
    // It can still answer, and go on after that.
    ours.write(&["bye"]).unwrap();
    assert_eq!(theirs.read().unwrap().unwrap(), [b"bye"]);
    assert!(is_told(ours.recv_io().unwrap_err()));
    assert!(matches!(ours.read(), Err(Error::OutOfStep)));
}

#[test]
fn a_handler_gets_a_descriptor_where_its_listener_refuses_them() {
    let (mut ours, mut theirs, _) = served(b"");
    let refused = socket::allow_rights(&ours, false).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    // As it would come without having been asked for.
    let too_early = rights::send(
        &theirs,
        &[IoSlice::new(&[0])],
        &[Arc::new(null.as_fd())],
        true,
    );
    assert_eq!(
        too_early.is_err(),
        refused,
        "where the kernel can refuse it"
    );
    if !refused {
        return;
    }
    let sender = std::thread::spawn(move || theirs.send_io(null));
    assert!(ours.recv_io().is_ok());
    assert!(sender.join().unwrap().is_ok());
}
