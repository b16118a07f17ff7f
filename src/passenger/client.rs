//! Calling a server that speaks Passenger's format: one connection for each request.
//!
//! Invariant: password and request leave in one write, or nothing does; the password is erased when it is not
//! needed any more, and never shown.

use super::{Error, MessageChannel};
use crate::address::connect_to_path;
use crate::protocol::passenger::{scalar_head, write_array};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// How long a connect waits for a place in the server's backlog, where no timeout is given.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a server is that speaks Passenger's format, and its password. See [`passenger`](crate::passenger).
///
/// Who listens there is not verified, because the original has nothing to tell it by: the password goes to
/// whoever has the path. Cheap to keep; each request makes a connection of its own.
#[derive(Clone)]
pub struct Client {
    path: PathBuf,
    password: Zeroizing<Vec<u8>>,
    timeout: Option<Duration>,
}

impl Client {
    /// For the server at `path`, of any length. The password is any bytes, also none.
    pub fn new(path: impl AsRef<Path>, password: impl AsRef<[u8]>) -> Client {
        Client {
            path: path.as_ref().into(),
            password: Zeroizing::new(password.as_ref().to_vec()),
            timeout: None,
        }
    }

    /// How long it may take to connect and to send a request, together, and how long each operation of the channel
    /// may take then. Default: for ever, but not more than 10 s for a place in the server's backlog.
    pub fn with_timeout(mut self, timeout: Duration) -> Client {
        self.timeout = Some(timeout);
        self
    }

    /// Sends a request. What follows is between its handler and you.
    ///
    /// That the password is wrong, or the request unknown, shows when the channel is read: it is at its end.
    ///
    /// # Errors
    /// Nobody listens there; or the request cannot be sent: with its name it has the limits of
    /// [`MessageChannel::write`].
    pub fn open<A: AsRef<[u8]>>(&self, name: &str, args: &[A]) -> Result<MessageChannel, Error> {
        let mut elements = vec![name.as_bytes()];
        elements.extend(args.iter().map(AsRef::as_ref));
        // Room for all of it, so that no copy of the password is left behind where it was moved away from.
        let sizes = elements.iter().map(|element| element.len() + 1);
        let room = self.password.len() + sizes.sum::<usize>() + 8;
        let mut flight = Zeroizing::new(Vec::with_capacity(room));
        flight.extend_from_slice(&scalar_head(self.password.len())?);
        flight.extend_from_slice(&self.password);
        write_array(&elements, &mut flight)?;

        let deadline = self.timeout.and_then(|t| Instant::now().checked_add(t));
        let mut channel = self.connect()?;
        channel.set_timeout(self.timeout);
        channel.send_first(&flight, deadline)?;
        Ok(channel)
    }

    /// Sends a request whose handler answers with one array.
    ///
    /// # Errors
    /// As [`Client::open`]; and [`Error::NoAnswer`] if the server closes the connection instead.
    pub fn call<A: AsRef<[u8]>>(&self, name: &str, args: &[A]) -> Result<Vec<Vec<u8>>, Error> {
        self.open(name, args)?.read()?.ok_or(Error::NoAnswer)
    }

    fn connect(&self) -> Result<MessageChannel, Error> {
        let patience = self.timeout.unwrap_or(PATIENCE);
        let connected = connect_to_path(&self.path, patience);
        connected
            .map(MessageChannel::from)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NotRunning {
                    path: self.path.clone(),
                },
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::TimedOut(patience),
                _ => Error::Io {
                    action: "connect",
                    source,
                },
            })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("path", &self.path)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
