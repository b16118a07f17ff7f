//! A conversation in Passenger's format over a connected socket.
//!
//! Invariant: no more is received than the message at hand needs, so that the byte which carries a descriptor is
//! never received without it; what was left over by the session before comes first.

use super::Error;
use crate::channel::StopToken;
use crate::connection::{is_gone, is_timeout};
use crate::descriptor::Descriptor;
use crate::protocol::passenger::{
    Front, MAX_BODY, TooLong, find_array, find_scalar, scalar_head, take_array, take_scalar,
    write_array,
};
use crate::sys::linger::Socket;
use crate::sys::rights::{self, Received, Rights};
use crate::sys::{poll, process, socket};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Room for a long message grows in steps of this many bytes, and doubles from there.
const STEP: usize = 64 << 10;

const NO_FDS: [Arc<Socket>; 0] = [];

/// The keys and values of [`MessageChannel::read_hash`].
pub type Hash = HashMap<Vec<u8>, Vec<u8>>;

/// What one receive brought. No bytes: the other side has finished, or the connection broke.
#[derive(Default)]
pub(super) struct Arrived {
    pub(super) len: usize,
    pub(super) fds: Vec<Descriptor>,
    /// There was no room for all descriptors.
    pub(super) lost: bool,
}

/// A conversation in Passenger's format, over a connected Unix stream socket.
///
/// Each operation waits until it is done, or for its timeout at most. One side must read what the other writes, in
/// the same order and by the counterpart of the same method: nothing in the format tells an array from a scalar.
///
/// ```
/// use forkserver::passenger::MessageChannel;
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (ours, theirs) = UnixStream::pair()?;
/// let (mut ours, mut theirs) = (MessageChannel::from(ours), MessageChannel::from(theirs));
/// ours.write(&["hello", "world"])?;
/// ours.write_scalar(b"any bytes, \0 too")?;
/// drop(ours);
/// assert_eq!(theirs.read()?, Some(vec![b"hello".to_vec(), b"world".to_vec()]));
/// assert_eq!(theirs.read_scalar(100)?.unwrap(), b"any bytes, \0 too");
/// assert_eq!(theirs.read()?, None);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct MessageChannel {
    pub(super) socket: Arc<Socket>,
    /// Received and not read yet: what a session left over, or a part of a message.
    pub(super) buffer: BytesMut,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
    stop: Option<StopToken>,
    generation: u32,
    /// The kernel lets descriptors through, as far as it could have refused them.
    pub(super) allows_rights: bool,
    /// It is not known where the next message begins: of those that come,
    pub(super) lost_in: bool,
    /// and of those that leave.
    pub(super) lost_out: bool,
}

impl MessageChannel {
    /// A handler's end of a connection, with what has been `received` behind the request. Writes wait for
    /// `write_timeout` at most, and reads until the handler is told to `stop`.
    pub(crate) fn serve(
        socket: Arc<Socket>,
        received: BytesMut,
        write_timeout: Duration,
        stop: StopToken,
    ) -> MessageChannel {
        MessageChannel {
            buffer: received,
            write_timeout: Some(write_timeout),
            stop: Some(stop),
            ..MessageChannel::over(socket)
        }
    }

    pub(super) fn over(socket: Arc<Socket>) -> MessageChannel {
        // Otherwise the kernel passes such a byte by, and what came with it. It cannot fail with these sockets.
        let _ = socket::keep_urgent_bytes(&socket);
        MessageChannel {
            socket,
            buffer: BytesMut::new(),
            read_timeout: None,
            write_timeout: None,
            stop: None,
            generation: process::generation(),
            allows_rights: false,
            lost_in: false,
            lost_out: false,
        }
    }

    /// Waits for the next array. `None`: the other side has finished. An array without elements, which no
    /// sender may send, is `Some` of none. Bytes behind the last element are dropped, as by the original.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(&mut self) -> Result<Option<Vec<Vec<u8>>>, Error> {
        self.check(self.lost_in)?;
        let deadline = self.read_deadline();
        let len = self.next(|bytes| find_array(bytes, MAX_BODY), deadline)?;
        Ok(len.map(|len| take_array(&mut self.buffer, len)))
    }

    /// Waits for the next array, and takes its elements for keys and values in turns. Where a key comes twice, its
    /// last value counts.
    ///
    /// # Errors
    /// As [`MessageChannel::read`], or [`Error::OddHash`].
    pub fn read_hash(&mut self) -> Result<Option<Hash>, Error> {
        let Some(elements) = self.read()? else {
            return Ok(None);
        };
        let count = elements.len();
        let mut hash = Hash::new();
        let mut elements = elements.into_iter();
        while let Some(key) = elements.next() {
            let value = elements.next().ok_or(Error::OddHash { count })?;
            hash.insert(key, value);
        }
        Ok(Some(hash))
    }

    /// Waits for the next scalar, of `max` bytes at most. `None`: the other side has finished.
    ///
    /// # Errors
    /// See [`Error`]. The limit is held against the header: with [`Error::OverLimit`], nothing else has been received.
    pub fn read_scalar(&mut self, max: usize) -> Result<Option<Vec<u8>>, Error> {
        self.check(self.lost_in)?;
        let deadline = self.read_deadline();
        let len = self.next(|bytes| find_scalar(bytes, max), deadline)?;
        Ok(len.map(|len| take_scalar(&mut self.buffer, len)))
    }

    /// Sends an array of at least one element, none of which has a zero byte, and which take 65 535 bytes at most, with
    /// one more for each.
    ///
    /// # Errors
    /// See [`Error`]. What cannot be said in this format is refused, and nothing of it sent.
    pub fn write<E: AsRef<[u8]>>(&mut self, elements: &[E]) -> Result<(), Error> {
        self.check(self.lost_out)?;
        let mut bytes = Vec::new();
        write_array(elements, &mut bytes)?;
        let deadline = self.write_deadline();
        self.send([&bytes, &[]], deadline)
    }

    /// Sends any bytes, 4 294 967 295 at most.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn write_scalar(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.check(self.lost_out)?;
        let head = scalar_head(bytes.len())?;
        let deadline = self.write_deadline();
        self.send([&head, bytes], deadline)
    }

    /// How long each operation may take from its beginning to its end. What has arrived is taken in any case, so that
    /// a timeout of zero takes what is there. `None`: for ever. Default: for ever; in a handler,
    /// [`Limits::write_timeout`](crate::Limits::write_timeout) for what is sent.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
        self.write_timeout = timeout;
    }

    /// Whether something has been received that [`MessageChannel::read`] would look at first. The descriptor tells only
    /// of what has not been received.
    pub fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// What tells the handler to stop, to be waited for together with the channel. `None`: this is no handler's.
    pub fn stop_token(&self) -> Option<&StopToken> {
        self.stop.as_ref()
    }

    /// Sends what comes before all else, and is whole messages.
    pub(super) fn send_first(
        &mut self,
        bytes: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        self.send([bytes, &[]], deadline)
    }

    /// Waits until a whole message is at the front of the buffer, and says how long it is. `None`: none comes.
    pub(super) fn next(
        &mut self,
        find: impl Fn(&[u8]) -> Result<Front, TooLong>,
        deadline: Option<Instant>,
    ) -> Result<Option<usize>, Error> {
        loop {
            let missing = match find(&self.buffer)? {
                Front::Whole(len) => return Ok(Some(len)),
                Front::Partial(least) => least - self.buffer.len(),
            };
            let room = missing.min(self.buffer.len().max(STEP));
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.reserve(room);
            let arrived = self.receive(&mut buffer, missing, deadline);
            self.buffer = buffer;
            // Descriptors that come with a message are nobody's, and closed.
            match arrived?.len {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => return Err(Error::EndOfStream),
                _ => {}
            }
        }
    }

    /// Receives once, `limit` bytes at most, and waits for something to come until the deadline, or until the handler
    /// is to stop. Descriptors are always taken: what the kernel closes within a receive may keep us waiting.
    pub(super) fn receive(
        &self,
        buffer: &mut BytesMut,
        limit: usize,
        deadline: Option<Instant>,
    ) -> Result<Arrived, Error> {
        loop {
            match rights::receive_at_most(&self.socket, buffer, limit, Rights::Accept, true) {
                Ok(Received { len, fds, lost }) => {
                    if len == 0 {
                        self.socket.set_may_hold_rights(false);
                    }
                    let fds = fds.into_iter().map(Descriptor::from).collect();
                    return Ok(Arrived { len, fds, lost });
                }
                Err(err) if is_timeout(&err) => self.wait(deadline)?,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                // The kernel says so where the other side has closed without having read everything.
                Err(err) if is_gone(&err) => return Ok(Arrived::default()),
                Err(source) => return Err(io("receive a message")(source)),
            }
        }
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let token = self.stop.as_ref();
        let waited = [Some(self.socket.as_fd()), token.map(AsFd::as_fd)];
        let [readable, told] =
            poll::readable(waited, deadline).map_err(io("wait for a message"))?;
        match token.and_then(StopToken::reason) {
            _ if readable => Ok(()),
            Some(reason) if told => Err(Error::Stopped(reason)),
            _ => Err(Error::TimedOut(self.read_timeout.unwrap_or_default())),
        }
    }

    /// Sends two parts as one. If not all of it leaves, the other side will not know where the next message begins.
    pub(super) fn send(
        &mut self,
        parts: [&[u8]; 2],
        deadline: Option<Instant>,
    ) -> Result<(), Error> {
        let [mut head, mut body] = parts;
        let mut left_some = false;
        while !head.is_empty() || !body.is_empty() {
            let both = [IoSlice::new(head), IoSlice::new(body)];
            let slices = if body.is_empty() { &both[..1] } else { &both };
            let sent = self.waiting_for_room(deadline, |socket| {
                rights::send(socket, slices, &NO_FDS, true)
            });
            let len = sent.inspect_err(|_| self.lost_out |= left_some)?;
            left_some = true;
            let of_head = len.min(head.len());
            head = &head[of_head..];
            body = &body[len - of_head..];
        }
        Ok(())
    }

    /// Repeats what would have to wait, when there is room, until the deadline.
    pub(super) fn waiting_for_room(
        &self,
        deadline: Option<Instant>,
        mut send: impl FnMut(&Arc<Socket>) -> std::io::Result<usize>,
    ) -> Result<usize, Error> {
        loop {
            match send(&self.socket) {
                Err(err) if is_timeout(&err) => {}
                Err(err) if is_gone(&err) => return Err(Error::Disconnected),
                result => return result.map_err(io("send a message")),
            }
            let is_writable = poll::writable(self.socket.as_fd(), deadline);
            if !is_writable.map_err(io("wait for room"))? {
                return Err(Error::TimedOut(self.write_timeout.unwrap_or_default()));
            }
        }
    }

    pub(super) fn read_deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.read_timeout?)
    }

    pub(super) fn write_deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.write_timeout?)
    }

    pub(super) fn check(&self, lost: bool) -> Result<(), Error> {
        match self.generation == process::generation() {
            false => Err(Error::WrongProcess),
            true if lost => Err(Error::OutOfStep),
            true => Ok(()),
        }
    }
}

pub(super) fn io(action: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::Io { action, source }
}

impl From<OwnedFd> for MessageChannel {
    /// A channel over a connected Unix stream socket. It may be blocking or not: the channel waits by itself.
    fn from(socket: OwnedFd) -> MessageChannel {
        MessageChannel::over(Arc::new(socket.into()))
    }
}

impl From<UnixStream> for MessageChannel {
    fn from(socket: UnixStream) -> MessageChannel {
        OwnedFd::from(socket).into()
    }
}

impl AsFd for MessageChannel {
    /// The socket, readable when something can be received, if nothing
    /// [is buffered](MessageChannel::has_buffered). For waiting: reading or writing it breaks the conversation.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
