//! The lock file beside a socket of a given path.
//!
//! Invariant: who has it locked owns the path; it says which socket it was that its last owner made there.

use super::footprint::hidden_name;
use super::in_use;
use crate::StartError;
use crate::error::Context as _;
use crate::sys::file::{self, FileId};
use crate::sys::process;
use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a lock file of ours begins with.
const MAGIC: &str = "forkserver lock:";

/// A locked lock file.
pub(super) struct Lock {
    pub(super) file: OwnedFd,
    pub(super) name: PathBuf,
    is_new: bool,
}

impl Lock {
    pub(super) fn take(
        directory: &OwnedFd,
        socket: &OsStr,
        path: &Path,
    ) -> Result<Lock, StartError> {
        let mut name = socket.to_owned();
        name.push(".lock");
        let name = PathBuf::from(name);
        loop {
            let Some((file, is_new)) = Lock::open(directory, &name).start("open the lock file")?
            else {
                continue;
            };
            let opened = file::look_at(&file).start("look at the lock file")?;
            let uid = process::effective_user();
            if opened.uid != uid && opened.uid != 0 {
                return Err(in_use(path, "its lock file belongs to another user"));
            }
            // A server that ended between the two has removed it.
            if opened.links == 0 {
                continue;
            }
            // What has another name as well, or is no file, was not made by us.
            if !opened.is_file || opened.links != 1 || opened.mode != 0o600 {
                return Err(in_use(path, "its lock file is not ours"));
            }
            if !lock_soon(&file).start("lock the lock file")? {
                return Err(in_use(path, "a server is running there"));
            }
            // A server that ended between the two removed the file that we have locked.
            if file::look(directory, &name).is_ok_and(|info| info.id == opened.id) {
                return Ok(Lock { file, name, is_new });
            }
        }
    }

    /// `None`: the file was removed or made while we looked, look again.
    fn open(directory: &OwnedFd, name: &Path) -> std::io::Result<Option<(OwnedFd, bool)>> {
        match file::create(directory, name) {
            Ok(file) => return Ok(Some((file, true))),
            Err(err) if err.kind() == ErrorKind::AlreadyExists => {}
            Err(err) => return Err(err),
        }
        match file::open(directory, name) {
            Ok(file) => Ok(Some((file, false))),
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Removes a socket that a former server left there. It is known by the record that this server wrote.
    pub(super) fn remove_dead_socket(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<(), StartError> {
        let recorded = self.recorded();
        if !self.is_new && recorded.is_none() && !self.is_empty() {
            return Err(in_use(path, "its lock file is not ours"));
        }
        if let Some(recorded) = recorded {
            // It may have been stopped when it died.
            let _ = file::remove_if(directory, &hidden_name(Path::new(name)), recorded);
        }
        let Ok(info) = file::look(directory, Path::new(name)) else {
            return Ok(());
        };
        if !info.is_socket || recorded != Some(info.id) {
            self.undo(directory);
            return Err(in_use(
                path,
                "a file is there that is not the socket of a dead server",
            ));
        }
        file::remove_if(directory, Path::new(name), info.id).start("remove a dead server's socket")
    }

    fn is_empty(&self) -> bool {
        file::look_at(&self.file).is_ok_and(|info| info.size == 0)
    }

    fn recorded(&self) -> Option<FileId> {
        let mut file = std::fs::File::from(self.file.try_clone().ok()?);
        let mut text = String::new();
        file.rewind().ok()?;
        file.take(128).read_to_string(&mut text).ok()?;
        let mut numbers = text.strip_prefix(MAGIC)?.split_whitespace();
        let device = numbers.next()?.parse().ok()?;
        let inode = numbers.next()?.parse().ok()?;
        let modified = numbers.next()?.parse().ok()?;
        Some(FileId {
            device,
            inode,
            modified,
        })
    }

    /// Writes down which socket is ours.
    pub(super) fn record(&self, id: FileId) -> std::io::Result<()> {
        let mut file = std::fs::File::from(self.file.try_clone()?);
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{MAGIC} {} {} {}", id.device, id.inode, id.modified)
    }

    /// Removes a lock file that was made in vain.
    pub(super) fn undo(&self, directory: &OwnedFd) {
        if self.is_new {
            let _ = remove(directory, &self.file, &self.name);
        }
    }
}

/// Locks it, if nobody else has for long. A process that was just forked has a share in its parent's lock until it has let go
/// of all that is not its own, and may outlive it by that.
fn lock_soon(file: &OwnedFd) -> std::io::Result<bool> {
    const AT_MOST: Duration = Duration::from_millis(250);
    const NAP: Duration = Duration::from_millis(1);
    let begun = Instant::now();
    while !file::try_lock(file)? {
        if begun.elapsed() > AT_MOST {
            return Ok(false);
        }
        std::thread::sleep(NAP);
    }
    Ok(true)
}

/// Removes a lock file that we have locked.
pub(super) fn remove(directory: &OwnedFd, lock: &OwnedFd, name: &Path) -> std::io::Result<()> {
    file::remove_if(directory, name, file::look_at(lock)?.id)
}
