//! What a server's process becomes.
//!
//! Invariant: these are wishes about a process of its own, so that [`Server::run`] passes them over.

use super::Server;
use crate::Resource;
use crate::sys::file;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;

/// What its process becomes. `Server::run` changes nothing of this, because its process is the caller's.
impl Server {
    /// Gives up all rights but those of this user and group, for good, before `initialize`. Supplementary groups
    /// go as well.
    pub fn user(mut self, uid: u32, gid: u32) -> Server {
        self.become_user = Some((uid, gid));
        self
    }

    /// Its working directory. Default: the owner's.
    pub fn chdir(mut self, directory: impl Into<PathBuf>) -> Server {
        self.directory = Some(directory.into());
        self
    }

    /// Its umask. Default: the owner's.
    pub fn umask(mut self, mode: u32) -> Server {
        self.umask = Some(mode);
        self
    }

    /// How much of a resource it may have, or, if it has workers, each of those: see setrlimit(2). What it is told here holds for
    /// the programs that it starts as well. `RLIMIT_NPROC` counts the processes of its user, and does not hold for root: so a
    /// handler that forks without end takes what room its user has, and its worker's successors are tried until there is some again.
    /// What a handler has forked lives as long as it likes, with or without the server.
    pub fn rlimit(mut self, resource: Resource, limit: u64) -> Server {
        self.rlimits.push((resource, limit));
        self
    }

    /// A descriptor of the owner that it keeps, under the same number. All others but 0, 1 and 2 are replaced by
    /// ones that refuse every use: the objects that own them may be dropped in the server, but not used. It must
    /// still be open at the start.
    pub fn keep_fd(mut self, fd: &impl AsFd) -> Server {
        let id = file::look_at(fd).ok().map(|info| info.id);
        self.keep.push((fd.as_fd().as_raw_fd(), id));
        self
    }

    /// The name that `ps -o comm` and `top` show, cut to 15 bytes. Default: the owner's.
    pub fn process_name(mut self, name: impl Into<String>) -> Server {
        self.process_name = Some(name.into());
        self
    }

    /// Whether it leaves the owner's process group, so that Ctrl-C reaches the owner alone. Default: yes.
    pub fn own_process_group(mut self, own: bool) -> Server {
        self.own_group = own;
        self
    }

    /// The numbers of the descriptors that it keeps.
    pub(super) fn kept_numbers(&self) -> Vec<RawFd> {
        self.keep.iter().map(|(fd, _)| *fd).collect()
    }
}
