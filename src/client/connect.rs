//! Connecting to an address.
//!
//! Invariant: nobody gets a connection to another process than the address names, and waiting for a place in the
//! backlog has a bound.

use crate::address::{Address, connect_to_path};
use crate::error::ConnectError;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long a connect waits for a place in the server's backlog.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a server, and asks the kernel whether it is the one that the address names. `patience`: for a place in its
/// backlog.
pub(super) fn connect_to(address: &Address, patience: Duration) -> Result<OwnedFd, ConnectError> {
    let connection = connect(&address.path, patience)?;
    match address.identity.is_peer_of(&connection) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(ConnectError::Impostor {
            path: address.path().into(),
        }),
        Err(source) => Err(ConnectError::Io {
            action: "ask who listens",
            source,
        }),
    }
}

/// Connects to the socket at a path.
fn connect(path: &Path, patience: Duration) -> Result<OwnedFd, ConnectError> {
    connect_to_path(path, patience).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::NotRunning { path: path.into() }
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectError::TimedOut(patience),
        _ => ConnectError::Io {
            action: "connect",
            source,
        },
    })
}
