//! What a server leaves in the file system.
//!
//! Invariant: nothing is removed but what still is the file that we made.

use super::lock;
use crate::Fd;
use crate::sys::file::{self, FileId};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// What a server leaves in the file system, for whoever removes it: the server itself, or its owner after it was
/// killed.
#[derive(Debug)]
pub(crate) struct Footprint {
    pub(super) directory: OwnedFd,
    pub(super) name: PathBuf,
    pub(super) id: FileId,
    pub(super) kind: FootprintKind,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum FootprintKind {
    /// The directory, at this path, is ours too.
    Private(PathBuf),
    /// The lock file of this name is ours too.
    Locked(PathBuf),
}

/// A footprint on its way to the owner of a launched server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FootprintParts {
    directory: Fd,
    name: PathBuf,
    id: (u64, u64, i64),
    kind: FootprintKind,
}

impl Footprint {
    fn into_parts(self) -> FootprintParts {
        let FileId {
            device,
            inode,
            modified,
        } = self.id;
        FootprintParts {
            directory: Fd::from(self.directory),
            name: self.name,
            id: (device, inode, modified),
            kind: self.kind,
        }
    }

    pub(crate) fn from_parts(parts: FootprintParts) -> std::io::Result<Footprint> {
        let (device, inode, modified) = parts.id;
        Ok(Footprint {
            directory: parts.directory.into_owned()?,
            name: parts.name,
            id: FileId {
                device,
                inode,
                modified,
            },
            kind: parts.kind,
        })
    }

    pub(super) fn try_clone(&self) -> std::io::Result<Footprint> {
        let Footprint { name, id, kind, .. } = self;
        Ok(Footprint {
            directory: self.directory.try_clone()?,
            name: name.clone(),
            id: *id,
            kind: kind.clone(),
        })
    }

    pub(super) fn directory(&self) -> RawFd {
        self.directory.as_raw_fd()
    }

    /// Gives the socket another name, so that nobody finds it, or its own again. Doing it twice is doing it once.
    ///
    /// # Errors
    /// `AlreadyExists`: a file that is not ours has its name.
    pub(super) fn set_hidden(&self, hidden: bool) -> std::io::Result<()> {
        let other = hidden_name(&self.name);
        let (from, to) = match hidden {
            true => (&self.name, &other),
            false => (&other, &self.name),
        };
        match file::look(&self.directory, to) {
            Ok(info) if info.id == self.id => Ok(()),
            _ => file::rename_new(&self.directory, from, to),
        }
    }

    fn remove_socket(&self) {
        for name in [&self.name, &hidden_name(&self.name)] {
            let _ = file::remove_if(&self.directory, name, self.id);
        }
    }

    /// Removes the socket, if it still is ours. What cannot be removed stays: a later start at the same path
    /// finds it dead.
    fn remove(&self) {
        match &self.kind {
            FootprintKind::Private(path) => {
                let _ = file::remove_if(&self.directory, &self.name, self.id);
                // It is empty then, unless the socket has its other name.
                if file::remove_directory(path).is_err() {
                    self.remove_socket();
                    let _ = file::remove_directory(path);
                }
            }
            FootprintKind::Locked(name) => {
                self.remove_socket();
                // Whoever has the lock may be a successor; a server removes its own while it still has it.
                if let Ok(lock) = file::open(&self.directory, name) {
                    if file::try_lock(&lock).unwrap_or(false) {
                        let _ = lock::remove(&self.directory, &lock, name);
                    }
                }
            }
        }
    }

    /// Whether nothing is left that [`Footprint::remove`] would remove: the server has done it.
    fn is_gone(&self) -> bool {
        let is_missing = |name: &Path| match file::look(&self.directory, name) {
            Err(err) => err.kind() == ErrorKind::NotFound,
            Ok(_) => false,
        };
        match &self.kind {
            // A directory can be removed only when it is empty.
            FootprintKind::Private(_) => {
                file::look_at(&self.directory).is_ok_and(|info| info.links == 0)
            }
            FootprintKind::Locked(lock) => {
                is_missing(&self.name) && is_missing(&hidden_name(&self.name)) && is_missing(lock)
            }
        }
    }

    /// As [`Footprint::remove`], for several processes at a time that have no lock: what is at a given path stays, because a
    /// successor may be putting its own there.
    pub(super) fn remove_private(&self) {
        if let FootprintKind::Private(_) = &self.kind {
            self.remove();
        }
    }

    /// As [`Footprint::remove`], for the server, which has the lock.
    pub(super) fn remove_own(&self, lock: Option<&OwnedFd>) {
        if let (FootprintKind::Locked(name), Some(lock)) = (&self.kind, lock) {
            self.remove_socket();
            let _ = lock::remove(&self.directory, lock, name);
        } else {
            self.remove();
        }
    }
}

/// What a socket is called while its listener is stopped.
pub(super) fn hidden_name(name: &Path) -> PathBuf {
    let mut hidden = name.as_os_str().to_owned();
    hidden.push(".stopped");
    hidden.into()
}

/// What all listeners of a server leave.
#[derive(Debug, Default)]
pub(crate) struct Footprints(Vec<Footprint>);

impl Footprints {
    pub(crate) fn add(&mut self, footprint: Option<Footprint>) {
        self.0.extend(footprint);
    }

    /// Removes what is left.
    pub(crate) fn remove(self) {
        self.0.iter().for_each(Footprint::remove);
    }

    /// Lets go of what is gone.
    pub(crate) fn forget_gone(&mut self) {
        self.0.retain(|footprint| !footprint.is_gone());
    }

    pub(crate) fn into_parts(self) -> impl Iterator<Item = FootprintParts> {
        self.0.into_iter().map(Footprint::into_parts)
    }
}
