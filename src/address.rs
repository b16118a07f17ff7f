//! All that a client needs: path, password, and who must be listening there.
//!
//! Invariant: written down, it is readable by its owner only; read back, it is refused if others could read it.

use crate::error::Context as _;
use crate::listener::short_path;
use crate::sys::{file, socket};
use crate::{ConnectError, Password};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first line of an address that is written down.
const MAGIC: &str = "forkserver 1";
/// An address is never longer: a path has 4 096 bytes, each written as two.
const MAX_TEXT: u64 = 16 << 10;

/// Where a running server is, its password, and its identity.
///
/// Get it from [`ServerHandle::address`](crate::ServerHandle::address). Another program can be given it in a file
/// or through a descriptor.
#[derive(Clone, Debug)]
pub struct Address {
    pub(crate) path: Arc<Path>,
    pub(crate) password: Password,
    pub(crate) identity: Identity,
    /// The server has workers, who know what became of each other.
    pub(crate) has_workers: bool,
}

/// The process that must be listening: the one that called `listen` last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// The kernel's name for the process, which is never used again, where there is one.
    pub(crate) inode: Option<u64>,
}

impl Identity {
    /// Whether whoever listens at the other end of `connection` is this process.
    pub(crate) fn is_peer_of(&self, connection: &impl AsFd) -> io::Result<bool> {
        let peer = socket::peer_credentials(connection)?;
        if peer.uid != self.uid {
            return Ok(false);
        }
        let Some(process) = socket::peer_process(connection)? else {
            return Ok(peer.pid as u32 == self.pid);
        };
        let same = match (self.inode, process.identity()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => peer.pid as u32 == self.pid,
        };
        // A listener that was handed in may outlive its server, and keep clients waiting for ever.
        Ok(same && !process.wait(Some(Instant::now()))?)
    }
}

/// Connects to the socket at a path of any length; waits `patience` at most for a place in the listener's queue.
pub(crate) fn connect_to_path(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    if path.as_os_str().len() <= socket::MAX_PATH {
        return socket::connect(path, patience);
    }
    match path.parent() {
        Some(parent) => {
            socket::connect(&short_path(&file::open_directory(parent)?, path), patience)
        }
        None => socket::connect(path, patience),
    }
}

impl Address {
    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The password. It is the same for all clients of a listener.
    pub fn password(&self) -> &Password {
        &self.password
    }

    /// Writes the address to a new file of mode 0600, in the place of whatever has that name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let path = path.as_ref();
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        name.push(".new-XXXXXX");
        let (file, temporary) = file::make_temporary(&path.with_file_name(name))?;
        let written = File::from(file).write_all(self.to_text().as_bytes());
        written
            .and_then(|()| std::fs::rename(&temporary, path))
            .inspect_err(|_| {
                let _ = std::fs::remove_file(&temporary);
            })
    }

    /// Reads an address that was saved.
    ///
    /// # Errors
    /// The file cannot be read, belongs to somebody else than this user or root, can be used by others, or does
    /// not hold an address.
    pub fn load(path: impl AsRef<Path>) -> Result<Address, ConnectError> {
        let file = File::open(path).connect("open the address file")?;
        let info = file.metadata().connect("look at the address file")?;
        let uid = crate::sys::process::effective_user();
        if info.uid() != uid && info.uid() != 0 {
            return Err(ConnectError::BadAddress(
                "its file belongs to another user".into(),
            ));
        }
        if info.mode() & 0o077 != 0 {
            return Err(ConnectError::BadAddress(
                "its file can be used by other users".into(),
            ));
        }
        Address::read(file)
    }

    /// A descriptor from which [`Address::from_fd`] reads the address in another process. It is `CLOEXEC`: hand
    /// it on as a standard stream, for example.
    ///
    /// ```no_run
    /// # fn main() -> forkserver::Result<()> {
    /// # let server = forkserver::Server::new().start()?;
    /// let stdin = std::process::Stdio::from(server.address().to_fd()?);
    /// std::process::Command::new("client").stdin(stdin).spawn()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The file in memory that it is cannot be made.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(file::memory_file(c"forkserver address")?);
        file.write_all(self.to_text().as_bytes())?;
        io::Seek::rewind(&mut file)?;
        Ok(file.into())
    }

    /// Reads an address from a descriptor, from where it stands to its end.
    ///
    /// # Errors
    /// It cannot be read, or does not hold an address.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Address, ConnectError> {
        Address::read(File::from(fd.into()))
    }

    fn read(file: File) -> Result<Address, ConnectError> {
        let mut text = zeroize::Zeroizing::new(String::new());
        file.take(MAX_TEXT)
            .read_to_string(&mut text)
            .connect("read the address")?;
        Address::from_text(&text).ok_or_else(|| ConnectError::BadAddress("it is malformed".into()))
    }

    fn to_text(&self) -> zeroize::Zeroizing<String> {
        let Identity { pid, uid, inode } = self.identity;
        let mut text = zeroize::Zeroizing::new(format!("{MAGIC}\npid {pid}\nuid {uid}\n"));
        if let Some(inode) = inode {
            // Writing to a string does not fail.
            let _ = writeln!(text, "inode {inode}");
        }
        if self.has_workers {
            text.push_str("workers yes\n");
        }
        write_hex(&mut text, "path", self.path.as_os_str().as_bytes());
        write_hex(&mut text, "password", self.password.as_bytes());
        text
    }

    fn from_text(text: &str) -> Option<Address> {
        let mut lines = text.lines();
        if lines.next()? != MAGIC {
            return None;
        }
        let (mut pid, mut uid, mut inode, mut path, mut password) = (None, None, None, None, None);
        let mut has_workers = false;
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "pid" => pid = Some(value.parse().ok()?),
                "uid" => uid = Some(value.parse().ok()?),
                "inode" => inode = Some(value.parse().ok()?),
                "workers" => has_workers = value == "yes",
                "path" => {
                    path = Some(PathBuf::from(std::ffi::OsString::from_vec(read_hex(
                        value,
                    )?)))
                }
                "password" => {
                    password = Some(Password::new(zeroize::Zeroizing::new(read_hex(value)?)).ok()?)
                }
                // Later versions may know more.
                _ => {}
            }
        }
        Some(Address {
            path: path?.into(),
            password: password?,
            identity: Identity {
                pid: pid?,
                uid: uid?,
                inode,
            },
            has_workers,
        })
    }
}

fn write_hex(text: &mut String, key: &str, bytes: &[u8]) {
    text.push_str(key);
    text.push(' ');
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push('\n');
}

fn read_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16)
                .ok()
                .filter(|_| pair.len() == 2)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_being_written_down() {
        let identity = Identity {
            pid: 7,
            uid: 8,
            inode: Some(9),
        };
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/tmp/a b\n\xff".to_vec()));
        let address = Address {
            path: path.into(),
            password: Password::generate().unwrap(),
            identity,
            has_workers: true,
        };
        let read = Address::from_text(&address.to_text()).expect("what was written can be read");
        assert_eq!((read.path, read.identity), (address.path, identity));
        assert!(read.has_workers);
        assert!(read.password.matches(address.password.as_bytes()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let password = "00".repeat(16);
        let good = format!("forkserver 1\npid 1\nuid 2\npath 2f\npassword {password}\n");
        assert!(Address::from_text(&good).is_some());
        for bad in [
            "",
            "forkserver 2\n",
            "forkserver 1\n",
            "forkserver 1\npid 1\nuid 2\npath 2\npassword 00\n",
        ] {
            assert!(Address::from_text(bad).is_none(), "{bad:?}");
        }
        for missing in ["pid 1\n", "uid 2\n", "path 2f\n"] {
            assert!(
                Address::from_text(&good.replace(missing, "")).is_none(),
                "without {missing:?}"
            );
        }
        assert!(Address::from_text(&good.replace(&password, "0g")).is_none());
    }
}
