//! A listener that is bound: what a server has of it, to the end.
//!
//! Invariant: its path is the server's for as long as this lives.

use super::{Footprint, Wire};
use crate::StartError;
use crate::error::Context as _;
use crate::limits::Limits;
use crate::password::Password;
use crate::sys::socket;
use std::collections::HashSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

/// A listener that is bound to its path. The server holds it; the owner forgets it after the fork.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) socket: OwnedFd,
    pub(crate) path: PathBuf,
    pub(crate) name: Arc<str>,
    pub(crate) password: Arc<Password>,
    /// Users whose processes may connect.
    pub(crate) admitted: Vec<u32>,
    /// The listener's own limits, if it has any.
    pub(crate) limits: Option<Arc<Limits>>,
    /// The only handlers that can be called through it.
    pub(crate) only: Option<Arc<HashSet<String>>>,
    /// What is spoken behind it.
    pub(crate) wire: Wire,
    pub(super) lock: Option<OwnedFd>,
    pub(super) footprint: Option<Footprint>,
    pub(super) refuses_rights: bool,
    /// Its path is another process's, of which this one is a worker.
    pub(super) is_lent: bool,
}

impl Bound {
    /// The rest of the socket's set-up, and a copy of the footprint for the owner.
    pub(super) fn finish(&mut self) -> Result<Option<Footprint>, StartError> {
        // Descriptors are refused until the password was right. An older kernel cannot refuse them; there, they
        // are discarded on arrival.
        let refused = socket::allow_rights(&self.socket, false).start("refuse descriptors")?;
        // Who has connected before, to a socket that was handed in, could send them.
        self.refuses_rights = refused && self.footprint.is_some();
        self.footprint
            .as_ref()
            .map(Footprint::try_clone)
            .transpose()
            .start("copy a descriptor")
    }

    /// Its name, path and password.
    pub(crate) fn place(&self) -> (Arc<str>, PathBuf, Password) {
        let (name, path) = (Arc::clone(&self.name), self.path.clone());
        (name, path, (*self.password).clone())
    }

    /// Whether clients of ours can speak with it.
    pub(crate) fn is_native(&self) -> bool {
        matches!(self.wire, Wire::Native)
    }

    /// Whether the kernel refuses descriptors that are sent before the password.
    pub(crate) fn refuses_rights(&self) -> bool {
        self.refuses_rights
    }

    /// Lets clients connect. The kernel attests the process that calls this to them.
    pub(crate) fn listen(&self) -> std::io::Result<()> {
        socket::listen(&self.socket)
    }

    /// This process serves the listener of another, which has the path.
    pub(crate) fn lend(&mut self) {
        self.is_lent = true;
    }

    /// Whether others accept from the same socket, and another process has the path.
    pub(crate) fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Gives the socket's file another name, so that nobody finds it, or its own again. One that is not ours stays.
    ///
    /// # Errors
    /// `AlreadyExists`: something else has the name now.
    pub(crate) fn set_hidden(&self, hidden: bool) -> std::io::Result<()> {
        match &self.footprint {
            Some(footprint) if !self.is_lent => footprint.set_hidden(hidden),
            _ => Ok(()),
        }
    }

    /// Removes the socket's file, and what belongs to it.
    pub(crate) fn remove_file(&self) {
        if let Some(footprint) = self.footprint.as_ref().filter(|_| !self.is_lent) {
            footprint.remove_own(self.lock.as_ref());
        }
    }

    /// Removes what nobody else can have taken over, for the process whose it was and that is gone.
    pub(crate) fn remove_orphaned(&self) {
        if let Some(footprint) = &self.footprint {
            footprint.remove_private();
        }
    }

    /// The lock on its path, of which a worker has no share.
    pub(crate) fn lock(&self) -> Option<RawFd> {
        self.lock.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The descriptors that the server must keep.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let lock = self.lock.as_ref().map(AsRawFd::as_raw_fd);
        let directory = self.footprint.as_ref().map(Footprint::directory);
        [Some(self.socket.as_raw_fd()), lock, directory]
            .into_iter()
            .flatten()
    }
}
