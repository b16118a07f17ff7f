//! Connecting to a path.
//!
//! Invariant: a path of any length works, and waiting for a place in the backlog has a bound.

use crate::address::Address;
use crate::error::ConnectError;
use crate::listener::short_path;
use crate::sys::{file, socket};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

/// How long a connect waits for a place in the server's backlog.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to a server, and asks the kernel whether it is the one that the address names.
pub(super) fn connect_to(address: &Address) -> Result<OwnedFd, ConnectError> {
    let connection = connect(&address.path)?;
    match address.identity.is_peer_of(&connection) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(ConnectError::Impostor {
            path: address.path.clone(),
        }),
        Err(source) => Err(ConnectError::Io {
            action: "ask who listens",
            source,
        }),
    }
}

/// Connects to the socket at a path of any length.
fn connect(path: &Path) -> Result<OwnedFd, ConnectError> {
    let try_connect = || match path
        .parent()
        .filter(|_| path.as_os_str().len() > socket::MAX_PATH)
    {
        Some(parent) => {
            socket::connect(&short_path(&file::open_directory(parent)?, path), PATIENCE)
        }
        None => socket::connect(path, PATIENCE),
    };
    try_connect().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ConnectError::NotRunning { path: path.into() }
        }
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectError::TimedOut(PATIENCE),
        _ => ConnectError::Io {
            action: "connect",
            source,
        },
    })
}
