//! Passing descriptors over a channel, with the original's negotiation: whoever wants one asks for it, and says that
//! it has come.
//!
//! Invariant: no descriptor stays open that is not the one that was asked for; one that is half passed leaves the
//! channel unusable, because there is no way back to where both sides agree.

use super::channel::{Arrived, io};
use super::{Error, MessageChannel};
use crate::fd::Fd;
use crate::protocol::passenger::{
    ARRAY_HEAD, Front, GOT_IO, PASS_IO, find_array, take_array, write_array,
};
use crate::sys::rights;
use crate::sys::socket;
use bytes::BytesMut;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

impl MessageChannel {
    /// Passes a descriptor to the other side, which must be about to take it. Returns when it has it; yours stays open.
    ///
    /// # Errors
    /// See [`Error`]. If the other side said something else than it must, or had not received the descriptor in
    /// time, the channel is out of step; if it had not asked by then, it is in order.
    pub fn send_io(&mut self, fd: impl AsFd) -> Result<(), Error> {
        self.check(self.lost_in || self.lost_out)?;
        let deadline = self.read_deadline();
        let asked = self.negotiated(PASS_IO, deadline);
        if let Err(Error::TimedOut(_) | Error::Stopped(_)) = asked {
            // What has come of the question is kept.
            return asked;
        }
        let result = asked.and_then(|()| {
            let byte = [IoSlice::new(&[0])];
            let fds = [Arc::new(fd.as_fd())];
            self.waiting_for_room(self.write_deadline(), |socket| {
                rights::send(socket, &byte, &fds, true)
            })?;
            self.negotiated(GOT_IO, deadline)
        });
        self.is_lost(result.is_err());
        result
    }

    /// Asks the other side for a descriptor, and waits until it has come. It has `CLOEXEC` set.
    ///
    /// # Errors
    /// See [`Error`]. Nothing that came with the wrong number of descriptors stays open, and the channel is out of step
    /// then. With [`Error::Buffered`], nothing has been asked for.
    pub fn recv_io(&mut self) -> Result<Fd, Error> {
        self.take_io(true)
    }

    /// As [`MessageChannel::recv_io`], from a sender that does not wait to be asked. (The original's
    /// sender in Ruby always does.)
    ///
    /// In a handler, what comes before this has been called may have been received with the request already, and its
    /// descriptor refused: the handler should say something first, and the other side wait for it.
    ///
    /// # Errors
    /// As [`MessageChannel::recv_io`].
    pub fn recv_io_without_negotiation(&mut self) -> Result<Fd, Error> {
        self.take_io(false)
    }

    fn take_io(&mut self, negotiate: bool) -> Result<Fd, Error> {
        self.check(self.lost_in || self.lost_out)?;
        if self.has_buffered() {
            let count = self.buffer.len();
            return Err(Error::Buffered { count });
        }
        self.allow_rights()?;
        let result = self.exchange_io(negotiate);
        // Without a word said, a wait that was given up has changed nothing.
        let is_whole = matches!(result, Err(Error::TimedOut(_) | Error::Stopped(_))) && !negotiate;
        self.is_lost(result.is_err() && !is_whole);
        result
    }

    fn exchange_io(&mut self, negotiate: bool) -> Result<Fd, Error> {
        let deadline = self.read_deadline();
        if negotiate {
            self.say(PASS_IO)?;
        }
        let mut byte = BytesMut::with_capacity(1);
        let Arrived { len, mut fds, lost } = self.receive(&mut byte, 1, deadline)?;
        let fd = match (len, lost, fds.len()) {
            (0, ..) => Err(Error::EndOfStream),
            (_, true, _) => Err(Error::LostDescriptor),
            (_, _, count @ 2..) => Err(Error::TooManyDescriptors { count }),
            _ => fds.pop().ok_or(Error::NoDescriptor),
        }?;
        if negotiate {
            self.say(GOT_IO)?;
        }
        Ok(Fd::from_shared(Arc::new(fd)))
    }

    /// Lets the other side send descriptors, which a server's listener has refused so far, where the kernel can.
    fn allow_rights(&mut self) -> Result<(), Error> {
        if !self.allows_rights {
            self.socket.set_may_hold_rights(true);
            socket::allow_rights(&self.socket, true).map_err(io("allow descriptors"))?;
            self.allows_rights = true;
        }
        Ok(())
    }

    fn say(&mut self, word: &str) -> Result<(), Error> {
        let deadline = self.write_deadline();
        let mut bytes = Vec::new();
        write_array(&[word], &mut bytes)?;
        self.send([&bytes, &[]], deadline)
    }

    /// The other side must say this, and nothing else.
    fn negotiated(
        &mut self,
        expected: &'static str,
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let max = expected.len() + 1;
        // Whatever is longer is something else, and need not be received.
        let find = |bytes: &[u8]| find_array(bytes, max).or(Ok(Front::Whole(0)));
        match self.next(find, deadline)? {
            None => Err(Error::EndOfStream),
            Some(len) if len >= ARRAY_HEAD => match take_array(&mut self.buffer, len).as_slice() {
                [word] if word == expected.as_bytes() => Ok(()),
                _ => Err(Error::NotNegotiated { expected }),
            },
            Some(_) => Err(Error::NotNegotiated { expected }),
        }
    }

    /// In the middle of passing a descriptor, both directions are lost or neither is.
    fn is_lost(&mut self, lost: bool) {
        self.lost_in |= lost;
        self.lost_out |= lost;
    }
}
