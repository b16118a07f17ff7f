//! Unix sockets: made private, connected, and asked who is at the other end.
//!
//! Invariant: every descriptor made here is `CLOEXEC` from its first instant.

use super::pidfd::PidFd;
use super::{check, retry};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::Mode;
use nix::sys::time::{TimeVal, TimeValLike};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How long a path may be that is to be a socket's address: `sun_path` without its final zero byte.
pub(crate) const MAX_PATH: usize = 107;

/// Who made a connection, as the kernel saw it when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// 0 if the process is in a pid namespace that this one cannot see.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

fn stream(flags: SockFlag) -> io::Result<OwnedFd> {
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    Ok(socket::socket(
        AddressFamily::Unix,
        SockType::Stream,
        flags,
        None,
    )?)
}

/// A socket to listen on, whose operations fail where they would wait.
pub(crate) fn listener() -> io::Result<OwnedFd> {
    stream(SockFlag::SOCK_NONBLOCK)
}

/// A connected pair of stream sockets.
pub(crate) fn stream_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// A connected pair of sockets that keeps messages apart.
pub(crate) fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// A pipe.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Binds to a path. The file has mode 0700, less what the umask takes away, from its first instant: the kernel
/// takes the mode of the socket itself.
pub(crate) fn bind(socket: &OwnedFd, path: &Path) -> io::Result<()> {
    nix::sys::stat::fchmod(socket, Mode::S_IRWXU)?;
    Ok(socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?)
}

/// How many connections may wait to be accepted. Further clients wait in `connect`, where the kernel lets one of them in
/// for each that is accepted: a flood by one client is so never longer than this before another one's turn.
const BACKLOG: i32 = 1024;

/// Starts to listen, or listens anew: the kernel attests the process that did it last to clients.
pub(crate) fn listen(socket: &impl AsFd) -> io::Result<()> {
    Ok(socket::listen(&socket.as_fd(), Backlog::new(BACKLOG)?)?)
}

/// Lets descriptors be sent to this socket, or refuses them at the sender (since Linux 6.16). `false`: this
/// kernel cannot refuse them.
pub(crate) fn allow_rights(socket: &impl AsFd, allow: bool) -> io::Result<bool> {
    let value = libc::c_int::from(allow);
    // SAFETY: an open descriptor, and a value of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSRIGHTS,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    match check(result) {
        Ok(_) => Ok(true),
        Err(err) if err.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        Err(err) => Err(err),
    }
}

/// Of the kernel's `include/uapi/asm-generic/socket.h`, for all architectures that Rust's std runs on but sparc.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Lets urgent bytes come in their turn. Otherwise the kernel drops them as they are passed by, within a receive,
/// and closes there what has come with them, however long that takes.
pub(crate) fn keep_urgent_bytes(socket: &impl AsFd) -> io::Result<()> {
    Ok(socket::setsockopt(
        &socket.as_fd(),
        sockopt::OobInline,
        &true,
    )?)
}

/// Takes a connection. `None`: there is none after all.
pub(crate) fn accept(listener: &impl AsFd) -> io::Result<Option<OwnedFd>> {
    let fd = listener.as_fd().as_raw_fd();
    match retry(|| Ok(socket::accept4(fd, SockFlag::SOCK_CLOEXEC)?)) {
        // SAFETY: accept4 has just made this descriptor, and nobody else knows it.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(err)
            if matches!(
                err.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(err) => Err(err),
    }
}

/// Connects; waits `patience` at most for a place in the listener's queue.
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let socket = stream(SockFlag::empty())?;
    let address = UnixAddr::new(path)?;
    set_send_timeout(&socket, Some(patience))?;
    retry(|| Ok(socket::connect(socket.as_raw_fd(), &address)?))?;
    Ok(socket)
}

/// How long a receive may wait. `None`: for ever.
pub(crate) fn set_receive_timeout(socket: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    Ok(socket::setsockopt(
        &socket.as_fd(),
        sockopt::ReceiveTimeout,
        &time_value(timeout),
    )?)
}

/// How long a send, or a connect, may wait. `None`: for ever.
pub(crate) fn set_send_timeout(socket: &impl AsFd, timeout: Option<Duration>) -> io::Result<()> {
    Ok(socket::setsockopt(
        &socket.as_fd(),
        sockopt::SendTimeout,
        &time_value(timeout),
    )?)
}

/// Zero means "for ever" to the kernel, so that the shortest timeout is a microsecond.
fn time_value(timeout: Option<Duration>) -> TimeVal {
    let micros = timeout.map_or(0, |timeout| {
        timeout.as_micros().clamp(1, i64::MAX as u128 / 2) as i64
    });
    TimeVal::microseconds(micros)
}

/// Lets the other side, and whoever waits here, see the end of the stream in the direction towards us.
pub(crate) fn shut_down_reading(socket: &impl AsFd) {
    // It fails only if the connection is gone already.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), socket::Shutdown::Read);
}

/// Lets the other side see the end of the stream, whoever else has the socket.
pub(crate) fn shut_down_writing(socket: &impl AsFd) {
    // As above.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), socket::Shutdown::Write);
}

/// Ends both directions, whoever else has the socket.
pub(crate) fn shut_down(socket: &impl AsFd) {
    // As above.
    let _ = socket::shutdown(socket.as_fd().as_raw_fd(), socket::Shutdown::Both);
}

/// Who is at the other end: for a server, who connected; for a client, who listened.
pub(crate) fn peer_credentials(socket: &impl AsFd) -> io::Result<Credentials> {
    let credentials = socket::getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(Credentials {
        pid: credentials.pid(),
        uid: credentials.uid(),
        gid: credentials.gid(),
    })
}

/// Whether it is a Unix stream socket that is, or was, connected.
pub(crate) fn is_connected_stream(socket: &impl AsFd) -> bool {
    let is_stream = socket::getsockopt(&socket.as_fd(), sockopt::SockType) == Ok(SockType::Stream);
    is_stream && socket::getpeername::<UnixAddr>(socket.as_fd().as_raw_fd()).is_ok()
}

/// Why it cannot be listened on at a path. `None`: it can.
pub(crate) fn why_no_listener(socket: &impl AsFd) -> Option<&'static str> {
    let name = socket::getsockname::<UnixAddr>(socket.as_fd().as_raw_fd());
    let is_stream = socket::getsockopt(&socket.as_fd(), sockopt::SockType) == Ok(SockType::Stream);
    match name {
        Ok(_) if !is_stream => Some("it is no stream socket"),
        Ok(_) if is_connected_stream(socket) => Some("it is connected"),
        Ok(name) if name.path().is_none() => Some("it is not bound to a path"),
        Ok(_) => None,
        Err(_) => Some("it is no Unix socket"),
    }
}

/// The process at the other end, where the kernel can name it (since Linux 6.5).
pub(crate) fn peer_process(socket: &impl AsFd) -> io::Result<Option<PidFd>> {
    match socket::getsockopt(&socket.as_fd(), sockopt::PeerPidfd) {
        Ok(pidfd) => Ok(Some(PidFd::from_fd(pidfd))),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(err) => Err(err.into()),
    }
}
