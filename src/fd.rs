//! A file descriptor as a value that may stand anywhere in arguments and replies.
//!
//! Invariant: outside our own codec it never becomes a number.

use crate::descriptor::Descriptor;
use crate::protocol::codec::handover;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// An open file descriptor that can be sent to the other side of a call.
///
/// The receiver gets a descriptor of its own, with `CLOEXEC` set; yours stays open until you drop it.
///
/// In a server that [`Server::start`](crate::Server::start) has forked, to drop one takes milliseconds at most, also
/// if it is a socket whose other holders want its last `close` to wait (`SO_LINGER`); what is unsent is sent all the
/// same. What [`Fd::into_owned`] and the conversions give you is closed in the ordinary way, and may wait.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use forkserver::Fd;
/// let fd = Fd::from(std::fs::File::open("/dev/null")?);
/// let file = std::fs::File::from(fd);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Fd(Arc<Descriptor>);

impl Fd {
    /// The descriptor itself. If a message that carries it is still waiting to be sent, you get a duplicate.
    ///
    /// # Errors
    /// The duplicate cannot be made, because the descriptor table is full.
    pub fn into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(own) => Ok(own.into_owned()),
            Err(shared) => shared.as_fd().try_clone_to_owned(),
        }
    }

    pub(crate) fn share(&self) -> Arc<Descriptor> {
        Arc::clone(&self.0)
    }

    pub(crate) fn from_shared(fd: Arc<Descriptor>) -> Fd {
        Fd(fd)
    }
}

/// Conversions from and into the standard library's owners of descriptors. `From<Fd>` panics where
/// [`Fd::into_owned`] returns an error.
macro_rules! owners {
    ($($owner:ty),*) => {$(
        impl From<$owner> for Fd {
            fn from(owner: $owner) -> Fd {
                Fd(Arc::new(OwnedFd::from(owner).into()))
            }
        }

        impl From<Fd> for $owner {
            /// # Panics
            /// A duplicate is needed and cannot be made; see [`Fd::into_owned`].
            fn from(fd: Fd) -> $owner {
                fd.into_owned().expect("the descriptor table has room for a duplicate").into()
            }
        }
    )*};
}

owners!(
    OwnedFd,
    std::fs::File,
    std::net::TcpListener,
    std::net::TcpStream,
    std::net::UdpSocket,
    std::os::unix::net::UnixDatagram,
    std::os::unix::net::UnixListener,
    std::os::unix::net::UnixStream
);

impl From<Fd> for std::process::Stdio {
    /// # Panics
    /// A duplicate is needed and cannot be made; see [`Fd::into_owned`].
    fn from(fd: Fd) -> std::process::Stdio {
        OwnedFd::from(fd).into()
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Serialize for Fd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(handover::FD, &Index(&self.0))
    }
}

/// What stands in the bytes in the place of a descriptor.
struct Index<'a>(&'a Arc<Descriptor>);

impl Serialize for Index<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match handover::send_fd(self.0) {
            Some(index) => serializer.serialize_u32(index),
            None => Err(S::Error::custom(
                "a descriptor can only be written by forkserver's own codec",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Fd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fd, D::Error> {
        struct IndexVisitor;
        impl<'de> Visitor<'de> for IndexVisitor {
            type Value = Fd;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a descriptor in a message of forkserver")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Fd, D::Error> {
                let index = u32::deserialize(deserializer)?;
                handover::take_fd(index)
                    .map(|fd| Fd(Arc::new(fd)))
                    .map_err(D::Error::custom)
            }
        }
        deserializer.deserialize_newtype_struct(handover::FD, IndexVisitor)
    }
}
