//! Files and directories, by descriptor wherever a name could be exchanged under us.
//!
//! Invariant: no name is followed, changed or removed before its file has been compared with what we know.

use super::check;
use nix::fcntl::{AtFlags, OFlag};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What tells a file from any other that has, or had, its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Last modification, in nanoseconds: inodes are used again, and nobody writes to a socket's.
    pub(crate) modified: i64,
}

/// What is known about a file, without following a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Info {
    pub(crate) id: FileId,
    pub(crate) uid: u32,
    /// Permissions alone.
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) is_socket: bool,
    pub(crate) is_file: bool,
    pub(crate) links: u64,
}

impl Info {
    pub(super) fn new(stat: &FileStat) -> Info {
        let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
        Info {
            id: FileId {
                device: stat.st_dev,
                inode: stat.st_ino,
                modified: stat.st_mtime * 1_000_000_000 + stat.st_mtime_nsec,
            },
            uid: stat.st_uid,
            mode: stat.st_mode & 0o7777,
            size: stat.st_size as u64,
            is_socket: kind == SFlag::S_IFSOCK,
            is_file: kind == SFlag::S_IFREG,
            #[allow(
                clippy::unnecessary_cast,
                reason = "it is narrower on some architectures"
            )]
            links: stat.st_nlink as u64,
        }
    }
}

/// Looks at a name in a directory.
pub(crate) fn look(directory: &impl AsFd, name: &Path) -> io::Result<Info> {
    Ok(Info::new(&nix::sys::stat::fstatat(
        directory,
        name,
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?))
}

/// Looks at an open file.
pub(crate) fn look_at(file: &impl AsFd) -> io::Result<Info> {
    Ok(Info::new(&nix::sys::stat::fstat(file)?))
}

/// Looks at what a path leads to, links followed. That needs no right to read it.
pub(crate) fn look_through(path: &Path) -> io::Result<Info> {
    Ok(Info::new(&nix::sys::stat::stat(path)?))
}

/// Opens a directory to work in.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(
        path,
        OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes a directory that nobody else can enter, with an unforeseeable name.
pub(crate) fn make_private_directory(parent: &Path, prefix: &str) -> io::Result<PathBuf> {
    let path = nix::unistd::mkdtemp(&parent.join(format!("{prefix}XXXXXX")))?;
    match require_mode(&nix::fcntl::AT_FDCWD, &path, 0o700) {
        Ok(_) => Ok(path),
        Err(err) => {
            let _ = remove_directory(&path);
            Err(err)
        }
    }
}

pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    std::fs::remove_dir(path)
}

/// Makes a new file that only its owner can use, whatever the umask.
pub(crate) fn create(directory: &impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let file = nix::fcntl::openat(directory, name, flags, mode)?;
    nix::sys::stat::fchmod(&file, mode)?;
    Ok(file)
}

/// Opens a file that is there, and is no link; it does not wait for a fifo's other end.
pub(crate) fn open(directory: &impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    Ok(nix::fcntl::openat(directory, name, flags, Mode::empty())?)
}

/// Locks an open file until its last descriptor is closed, in whatever process. `false`: somebody else has it.
pub(crate) fn try_lock(file: &impl AsFd) -> io::Result<bool> {
    // SAFETY: flock on an open descriptor.
    match check(unsafe { libc::flock(file.as_fd().as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(err) => Err(err),
    }
}

/// Makes sure that the file that `name` is now, and no other, has exactly this mode, whatever the umask has taken
/// away from it, and says which file that is.
pub(crate) fn require_mode(directory: &impl AsFd, name: &Path, mode: u32) -> io::Result<FileId> {
    let info = look(directory, name)?;
    if info.mode == mode {
        return Ok(info.id);
    }
    let pinned = pin(directory, name)?;
    let mode = Mode::from_bits_truncate(mode);
    let follow = nix::sys::stat::FchmodatFlags::FollowSymlink;
    nix::sys::stat::fchmodat(directory, &descriptor_path(&pinned), mode, follow)?;
    Ok(look_at(&pinned)?.id)
}

/// Gives the file that `name` is now, and no other, to a user.
pub(crate) fn give_to(directory: &impl AsFd, name: &Path, uid: u32, gid: u32) -> io::Result<()> {
    let pinned = pin(directory, name)?;
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(nix::unistd::fchownat(
        &pinned,
        "",
        uid,
        gid,
        AtFlags::AT_EMPTY_PATH,
    )?)
}

/// Gives an open directory to a user.
pub(crate) fn give_directory(directory: &impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(nix::unistd::fchown(
        directory,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )?)
}

fn pin(directory: &impl AsFd, name: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(directory, name, flags, Mode::empty())?)
}

/// Removes a name if it still is the file `id`.
pub(crate) fn remove_if(directory: &impl AsFd, name: &Path, id: FileId) -> io::Result<()> {
    if look(directory, name)?.id == id {
        nix::unistd::unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// Gives a file another name in its directory.
///
/// # Errors
/// `AlreadyExists`: something has that name.
pub(crate) fn rename_new(directory: &impl AsFd, from: &Path, to: &Path) -> io::Result<()> {
    let flags = nix::fcntl::RenameFlags::RENAME_NOREPLACE;
    Ok(nix::fcntl::renameat2(
        directory, from, directory, to, flags,
    )?)
}

/// A path to an open descriptor, short whatever the file's own path is.
pub(crate) fn descriptor_path(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// Makes a new file of mode 0600, whose name ends differently from all others: six `X` at the end of `template` are
/// replaced.
pub(crate) fn make_temporary(template: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (file, path) = nix::unistd::mkstemp(template)?;
    nix::fcntl::fcntl(
        &file,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    nix::sys::stat::fchmod(&file, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok((file, path))
}

/// A file in memory.
pub(crate) fn memory_file(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    Ok(nix::sys::memfd::memfd_create(
        name,
        nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
    )?)
}

/// `/dev/null`, for reading and writing.
pub(crate) fn open_null() -> io::Result<OwnedFd> {
    Ok(nix::fcntl::open(
        "/dev/null",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}
