//! Messages between two related processes, over a socket that keeps them apart.
//!
//! Invariant: what is not a whole, well-formed message ends the channel; neither side trusts the other with its
//! memory.

mod post;

pub(crate) use self::post::Post;

use crate::Fd;
use crate::descriptor::Descriptor;
use crate::gate::Status;
use crate::limits::{Bounds, Limits, MAX_FDS};
use crate::listener::FootprintParts;
use crate::password::Secret;
use crate::protocol::codec;
use crate::protocol::frame::{HEADER_LEN, ProtocolError};
use crate::protocol::inbox::Inbox;
use crate::protocol::message::{EncodedValue, write_reply};
use crate::scoreboard::{PoolEvent, ReplaceReason};
use crate::sys::rights::{self, Rights};
use crate::sys::{file, poll, socket};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What an owner says to its server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Finish what is under way, then end. Whoever says so waits as long as this, and then kills.
    Stop { patience: Duration },
    /// Serve this connection as if it had been accepted.
    Serve(Fd),
    /// Somebody may have been woken for a connection and not have taken it: look whether one waits.
    Look,
    /// Do something and say how things are then, with the same number.
    Ask { number: u64, request: Request },
}

/// What an owner may ask for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    SetMaxConnections(Option<usize>),
    Pause,
    Resume,
    StopListener(String),
    StartListener(String),
    RotatePassword(String, Secret),
    SetWorkers(usize),
    Reload,
}

/// What a worker wants of its monitor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Wish {
    /// The server shall stop.
    Stop,
    /// All others shall do it, too.
    Do(Request),
    /// It has done enough, and shall be replaced.
    Retire(ReplaceReason),
    /// It accepts nobody, for now or for good: the others shall look whether somebody waits.
    Look,
}

/// What a server says to its owner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Clients can connect.
    Ready,
    /// What its owner has to remove if it dies; clients cannot connect yet.
    Bound(FootprintParts),
    /// Clients can connect, there.
    ReadyAt(Place),
    /// It could not be set up, and ends.
    Failed(Failure),
    /// What was asked for has been done, or could not be done.
    Answer {
        number: u64,
        result: Result<Status, Refusal>,
    },
    /// To a pool, and its owner should know.
    Happened(PoolEvent),
    /// Of a worker.
    Wish(Wish),
}

/// Why something has not been done that was asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    NoSuchListener(String),
    NotStarted(String),
    NoWorkers,
    WorkerCount(usize),
    NotReloaded,
}

/// Where a server is that its owner knows nothing of yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// By listener, as [`Address::to_fd`](crate::Address::to_fd) makes it.
    pub(crate) addresses: Vec<(String, Fd)>,
    pub(crate) grace: Duration,
}

/// What a launched process is to be.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) entry: String,
    pub(crate) arguments: ArgumentsFile,
}

/// Arguments of any size, in a file in memory, with their descriptors beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ArgumentsFile {
    bytes: Fd,
    hash: u64,
    fds: Vec<Fd>,
}

impl ArgumentsFile {
    pub(crate) fn encode<A: Serialize>(args: &A) -> io::Result<ArgumentsFile> {
        let (mut frame, slot) = write_reply(0);
        let hash = codec::encode(args, &mut frame, &Limits::default()).map_err(io::Error::other)?;
        slot.fill(&mut frame, hash);
        let fds: Vec<Fd> = std::mem::take(&mut frame.fds)
            .into_iter()
            .map(Fd::from_shared)
            .collect();
        let mut file = File::from(file::memory_file(c"forkserver arguments")?);
        frame
            .value_parts()
            .try_for_each(|part| file.write_all(part))?;
        file.rewind()?;
        Ok(ArgumentsFile {
            bytes: file.into(),
            hash,
            fds,
        })
    }

    pub(crate) fn read(self) -> io::Result<EncodedValue> {
        let mut bytes = Vec::new();
        File::from(self.bytes.into_owned()?).read_to_end(&mut bytes)?;
        Ok(EncodedValue {
            hash: Some(self.hash),
            bytes: bytes.into(),
            fds: self
                .fds
                .into_iter()
                .map(|fd| fd.into_owned().map(Descriptor::from))
                .collect::<io::Result<_>>()?,
        })
    }
}

/// What went wrong in a child before it was ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) stage: String,
    pub(crate) message: String,
    /// A hook of the user's failed, and not the set-up around it.
    pub(crate) in_hook: bool,
    /// It panicked, so that it may go well another time.
    pub(crate) panicked: bool,
    /// It must not have threads, and has so many.
    pub(crate) threads: usize,
}

/// The longest message: longer texts are cut.
const MAX_MESSAGE: usize = 128 << 10;
const MAX_TEXT: usize = 8 << 10;

impl Failure {
    /// A process that is to be forked has threads.
    pub(crate) fn of_threads(threads: usize) -> Failure {
        Failure {
            threads,
            ..Failure::new("initialize", "it leaves threads behind", true)
        }
    }

    /// A hook has panicked.
    pub(crate) fn of_panic(hook: &str, message: String) -> Failure {
        Failure {
            panicked: true,
            ..Failure::new(hook, message, true)
        }
    }

    pub(crate) fn new(stage: impl Into<String>, message: impl ToString, in_hook: bool) -> Failure {
        let message = message.to_string().chars().take(MAX_TEXT / 4).collect();
        Failure {
            stage: stage.into(),
            message,
            in_hook,
            panicked: false,
            threads: 0,
        }
    }
}

/// One end of a control line.
#[derive(Debug)]
pub(crate) struct ControlLine(OwnedFd);

impl ControlLine {
    pub(crate) fn pair() -> io::Result<(ControlLine, ControlLine)> {
        let (a, b) = socket::message_pair()?;
        Ok((ControlLine(a), ControlLine(b)))
    }

    /// An end that was inherited.
    pub(crate) fn from_fd(fd: OwnedFd) -> ControlLine {
        ControlLine(fd)
    }

    /// Sends a message, and waits until the deadline for room: the other side may be slow to read.
    ///
    /// # Errors
    /// `TimedOut` at the deadline.
    pub(crate) fn send<T: Serialize>(
        &self,
        message: &T,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        let (mut frame, hash) = write_reply(0);
        let value =
            codec::encode(message, &mut frame, &Limits::default()).map_err(io::Error::other)?;
        hash.fill(&mut frame, value);
        let frame = frame.seal(MAX_MESSAGE, MAX_FDS).map_err(io::Error::other)?;
        loop {
            match rights::send(&self.0, &[IoSlice::new(&frame.buf)], &frame.fds, true) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(drop),
            }
            if !poll::writable(self.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// The next message, `None` at the end of the line.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `InvalidData` if what came is no message.
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<T>> {
        let len = self.next_len(deadline)?;
        let mut inbox = Inbox::new(Bounds::new(MAX_MESSAGE, MAX_FDS, 0));
        let buffer = inbox.receive_buffer();
        // No more: whoever has just been forked, or has just forked, pays for each page that is touched.
        buffer.reserve(len.min(HEADER_LEN + MAX_MESSAGE));
        let received = rights::receive(&self.0, buffer, Rights::Accept, true)?;
        if received.lost {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                ProtocolError::LostFds,
            ));
        }
        let fds = received.fds.into_iter().map(Into::into).collect();
        inbox.received(received.len, fds);
        if received.len == 0 {
            return Ok(None);
        }
        let value = inbox.next_frame().and_then(|frame| match frame {
            Some(frame) => EncodedValue::read(frame),
            None => Err(ProtocolError::Malformed("control message")),
        });
        let mut value = value.map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))?;
        let value = codec::decode(&mut value, &Limits::default());
        value
            .map(Some)
            .map_err(|err| io::Error::new(io::ErrorKind::InvalidData, err))
    }

    /// How long the next message is, 0 at the end of the line.
    fn next_len(&self, deadline: Option<Instant>) -> io::Result<usize> {
        loop {
            match rights::next_len(&self.0) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            if !poll::readable([Some(self.as_fd())], deadline)?[0] {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

impl AsFd for ControlLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
