//! A stream: a call during which both sides send items, until each has said that it sends no more.
//!
//! Invariant: the two directions know nothing of each other. Items come between the call and its answer, in both
//! directions, and the answer ends the one from the server whatever was said before.

use super::frame::{Header, Kind, Outgoing, ProtocolError};
use super::inbox::Inbox;
use super::message::{EncodedValue, ErrorBody, Value};
use super::outbox::Outbox;

/// Which end of the stream this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// What the other side says.
#[derive(Debug)]
pub(crate) enum Incoming {
    Item(EncodedValue),
    /// It sends no more items.
    End,
    /// The handler is through. A client hears this once, and a server never.
    Result(Result<EncodedValue, ErrorBody>),
}

/// The direction towards us.
#[derive(Debug)]
pub(crate) struct StreamIn {
    pub(crate) inbox: Inbox,
    id: u32,
    side: Side,
    ended: bool,
    answered: bool,
    broken: Option<ProtocolError>,
}

impl StreamIn {
    pub(crate) fn new(inbox: Inbox, id: u32, side: Side) -> StreamIn {
        StreamIn {
            inbox,
            id,
            side,
            ended: false,
            answered: false,
            broken: None,
        }
    }

    /// The next thing among what has been received.
    ///
    /// # Errors
    /// The other side broke the protocol, now or before; the connection is of no use any more.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>, ProtocolError> {
        if let Some(err) = &self.broken {
            return Err(err.clone());
        }
        let next = self.read();
        self.broken = next.as_ref().err().cloned();
        next
    }

    /// The other side sends no more items.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended || self.answered
    }

    /// The client has heard the answer.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn broken(&self) -> Option<&ProtocolError> {
        self.broken.as_ref()
    }

    fn read(&mut self) -> Result<Option<Incoming>, ProtocolError> {
        // What follows the end of a client's items is its next call, and is not ours.
        if self.answered || self.ended && self.side == Side::Server {
            return Ok(None);
        }
        let Some(mut frame) = self.inbox.next_frame()? else {
            return Ok(None);
        };
        let ours = frame.header.id == self.id;
        Ok(Some(match (frame.header.kind, self.side) {
            (Kind::Item, _) if ours && !self.ended => Incoming::Item(EncodedValue::read(frame)?),
            (Kind::End, _) if ours && !self.ended => {
                self.ended = true;
                Incoming::End
            }
            (Kind::Reply, Side::Client) if ours => {
                self.answered(EncodedValue::read(frame).map(Ok))?
            }
            (Kind::Error, Side::Client) if ours || frame.header.id == 0 => {
                let content = Value::shared(&frame.payload, &mut frame.fds);
                self.answered(ErrorBody::read(content).map(Err))?
            }
            _ => return Err(ProtocolError::Unexpected("only items belong into a stream")),
        }))
    }

    fn answered(
        &mut self,
        answer: Result<Result<EncodedValue, ErrorBody>, ProtocolError>,
    ) -> Result<Incoming, ProtocolError> {
        self.answered = true;
        answer.map(Incoming::Result)
    }
}

/// The direction away from us.
#[derive(Debug)]
pub(crate) struct StreamOut {
    pub(crate) outbox: Outbox,
    id: u32,
    /// Whether the other side takes descriptors.
    fds: bool,
    ended: bool,
}

impl StreamOut {
    pub(crate) fn new(outbox: Outbox, id: u32, fds: bool) -> StreamOut {
        StreamOut {
            outbox,
            id,
            fds,
            ended: false,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Queues an item, or what else belongs to the stream.
    ///
    /// # Errors
    /// It exceeds the limits, or carries descriptors and the other side takes none; nothing is queued then.
    pub(crate) fn send(&mut self, frame: Outgoing) -> Result<(), ProtocolError> {
        match frame.fds.len() {
            count @ 1.. if !self.fds => Err(ProtocolError::TooManyFds { count, limit: 0 }),
            _ => self.outbox.send(frame),
        }
    }

    /// Says, once, that no more items follow.
    pub(crate) fn end(&mut self) -> Result<(), ProtocolError> {
        match std::mem::replace(&mut self.ended, true) {
            true => Ok(()),
            false => self.outbox.send(Outgoing::new(Kind::End, self.id)),
        }
    }
}

/// What a server says when a stream begins.
pub(super) fn opened(id: u32) -> Outgoing {
    Outgoing::new(Kind::Opened, id)
}

/// Whether a frame is what is left of the stream of that id: `Some(true)` if it is the last of it.
pub(super) fn leftover(header: Header, id: u32) -> Option<bool> {
    match header.kind {
        Kind::Item if header.id == id => Some(false),
        Kind::End if header.id == id => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::protocol::codec;
    use crate::protocol::frame::ProtocolError;
    use crate::protocol::message::write_item;
    use std::os::fd::OwnedFd;

    fn item(id: u32, text: &str, hashed: bool) -> Outgoing {
        let (mut frame, slot) = write_item(id);
        if hashed {
            let hash = codec::encode(text, &mut frame, &Limits::default()).unwrap();
            slot.fill(&mut frame, hash);
        } else {
            slot.give_up(&mut frame);
            codec::encode(text, &mut frame, &Limits::default()).unwrap();
        }
        frame
    }

    fn bytes(frame: Outgoing) -> Vec<u8> {
        frame.seal(1 << 20, 253).unwrap().buf.clone()
    }

    fn hear(side: Side, bytes: &[u8]) -> StreamIn {
        let mut inbox = Inbox::new(Limits::default().bounds());
        inbox.receive_buffer().extend_from_slice(bytes);
        inbox.received(bytes.len(), Vec::new());
        StreamIn::new(inbox, 3, side)
    }

    #[test]
    fn the_golden_bytes_of_a_stream() {
        assert_eq!(bytes(opened(3)), [7, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let plain = bytes(item(3, "a", false));
        assert_eq!(plain, [8, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, b'a']);
        let mut hashed = vec![8, 0, 1, 0, 3, 0, 0, 0, 11, 0, 0, 0];
        hashed.extend([
            0x22, 0x0b, 0x02, 0x86, 0x4c, 0xee, 0x63, 0xaf, 2, b'-', b'A',
        ]);
        assert_eq!(bytes(item(3, "-A", true)), hashed);
        let mut output = StreamOut::new(Outbox::new(Limits::default().bounds()), 3, true);
        output.end().unwrap();
        output.end().unwrap();
        let transmit = output.outbox.transmit().unwrap();
        let [slice] = transmit.slices() else { panic!() };
        assert_eq!(**slice, [9, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_follows_a_clients_end_is_not_the_streams() {
        let call = [4, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 1, b'x'];
        let end = bytes(Outgoing::new(Kind::End, 3));
        let mut input = hear(Side::Server, &[&end[..], &call].concat());
        assert!(matches!(input.next(), Ok(Some(Incoming::End))));
        assert!(matches!(input.next(), Ok(None)));
        assert_eq!(input.inbox.unread(), call);
    }

    #[test]
    fn a_broken_rule_is_remembered() {
        for wrong in [
            bytes(item(4, "another stream's", true)),
            bytes(Outgoing::new(Kind::Reply, 3)),
            bytes(Outgoing::new(Kind::Opened, 3)),
        ] {
            let mut input = hear(Side::Server, &wrong);
            let rule = ProtocolError::Unexpected("only items belong into a stream");
            assert_eq!(input.next().err(), Some(rule.clone()));
            assert_eq!(input.next().err(), Some(rule));
        }
    }

    #[test]
    fn an_answer_ends_the_servers_direction() {
        let body = ErrorBody::new(crate::protocol::message::Class::Fault, vec!["no".into()]);
        let mut input = hear(Side::Client, &bytes(body.write(3)));
        assert!(matches!(input.next(), Ok(Some(Incoming::Result(Err(_))))));
        assert!(input.has_ended() && input.is_answered());
        assert!(matches!(input.next(), Ok(None)));
    }

    #[test]
    fn descriptors_go_only_where_they_are_taken() {
        let mut output = StreamOut::new(Outbox::new(Limits::default().bounds()), 3, false);
        let mut frame = item(3, "a", true);
        frame.fds.push(std::sync::Arc::new(
            OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).into(),
        ));
        let refused = ProtocolError::TooManyFds { count: 1, limit: 0 };
        assert_eq!(output.send(frame), Err(refused));
        assert_eq!(output.outbox.queued(), 0);
    }
}
