//! Bytes that carry descriptors.
//!
//! Invariant: every descriptor that the kernel installs here becomes an `OwnedFd` before anything else happens,
//! with `CLOEXEC` set, however the control data looks. (`nix`'s `cmsgs()` loses them when the data was cut short.)

use super::retry;
use bytes::{BufMut, BytesMut};
use nix::libc;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// The kernel's own bound, `SCM_MAX_FD`.
const MAX_RIGHTS: usize = 253;
/// Control data for that many descriptors, in words so that it is aligned: `CMSG_SPACE(253 * 4)` is 1 032.
const CONTROL_WORDS: usize = 129;

/// What one receive brought.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// How many bytes were appended to the buffer. None: the other side has finished.
    pub(crate) len: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// The kernel had more descriptors than it could install.
    pub(crate) lost: bool,
}

/// Whether to take descriptors. Those that are not taken, the kernel closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    Accept,
    Discard,
}

/// Receives into the free capacity of `buffer`, once. With `now` it does not wait for anything to come. A signal may interrupt it: the caller knows how long it still
/// wants to wait.
pub(crate) fn receive(
    socket: &impl AsFd,
    buffer: &mut BytesMut,
    rights: Rights,
    now: bool,
) -> io::Result<Received> {
    receive_at_most(socket, buffer, usize::MAX, rights, now)
}

/// As [`receive`], and no more than `limit` bytes, however much room there is.
pub(crate) fn receive_at_most(
    socket: &impl AsFd,
    buffer: &mut BytesMut,
    limit: usize,
    rights: Rights,
    now: bool,
) -> io::Result<Received> {
    let room = buffer.spare_capacity_mut();
    let mut part = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len().min(limit),
    };
    let mut control = MaybeUninit::<[usize; CONTROL_WORDS]>::uninit();
    // SAFETY: all zeroes are a valid msghdr.
    let mut message = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if rights == Rights::Accept {
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
    }
    let flags = libc::MSG_CMSG_CLOEXEC | if now { libc::MSG_DONTWAIT } else { 0 };
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the message describes the free capacity of `buffer` and the control array, both alive.
    let len = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
    let len = if len < 0 {
        return Err(io::Error::last_os_error());
    } else {
        len as usize
    };
    let fds = installed(&message);
    // SAFETY: recvmsg has filled that many bytes of the free capacity.
    unsafe { buffer.advance_mut(len) };
    Ok(Received {
        len,
        fds,
        lost: rights == Rights::Accept && message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// How long the next message is that has come to a socket which keeps them apart; it stays there. 0: the other side has
/// finished.
pub(crate) fn next_len(socket: &impl AsFd) -> io::Result<usize> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: no byte is to be written, so that no buffer is needed.
    let len = unsafe { libc::recv(fd, std::ptr::null_mut(), 0, flags) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

/// All descriptors in the control data of a received message.
fn installed(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    if message.msg_controllen == 0 {
        return fds;
    }
    // SAFETY: the message was filled in by recvmsg and its control data is alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: the CMSG functions return null or a header within the control data.
    while let Some(control) = unsafe { header.as_ref() } {
        if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the header is valid, and its data follows.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            let offset = data as usize - header as usize;
            let count = control.cmsg_len.saturating_sub(offset) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: `index` is below the number of descriptors in the data.
                let place = unsafe { data.add(index) };
                // SAFETY: the kernel wrote a descriptor there; the data need not be aligned for it.
                let fd = unsafe { place.read_unaligned() };
                // SAFETY: the kernel has just installed this descriptor, and nobody else knows it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `header` is a valid header of this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    fds
}

/// Sends some of `parts`, and with the first byte all of `fds`. With `now` it does not wait for room.
pub(crate) fn send(
    socket: &impl AsFd,
    parts: &[IoSlice<'_>],
    fds: &[Arc<impl AsFd>],
    now: bool,
) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | if now { libc::MSG_DONTWAIT } else { 0 };
    let fd = socket.as_fd().as_raw_fd();
    if let ([part], true) = (parts, fds.is_empty()) {
        // The usual case, and the kernel has less to look at.
        return retry(|| {
            // SAFETY: `part` is alive, and is read for its length.
            let len = unsafe { libc::send(fd, part.as_ptr().cast(), part.len(), flags) };
            if len < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(len as usize)
            }
        });
    }
    if fds.len() > MAX_RIGHTS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = MaybeUninit::<[usize; CONTROL_WORDS]>::uninit();
    // SAFETY: all zeroes are a valid msghdr.
    let mut message = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    // The kernel only reads through this pointer; an IoSlice has the layout of an iovec.
    message.msg_iov = parts.as_ptr().cast_mut().cast();
    message.msg_iovlen = parts.len() as _;
    if !fds.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        write_rights(&mut message, fds);
    }
    retry(|| {
        // SAFETY: the message describes `parts` and the control array, both alive.
        let len = unsafe { libc::sendmsg(fd, &raw const message, flags) };
        if len < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(len as usize)
        }
    })
}

/// Fills in control data that carries `fds`; the message's control pointer has room for [`MAX_RIGHTS`] of them.
fn write_rights(message: &mut libc::msghdr, fds: &[Arc<impl AsFd>]) {
    let size = fds.len() * size_of::<RawFd>();
    // SAFETY: CMSG_SPACE only computes.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(size as u32) } as _;
    // SAFETY: the control data has room for at least one header.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: CMSG_LEN only computes.
    let cmsg_len = unsafe { libc::CMSG_LEN(size as u32) } as _;
    let control = libc::cmsghdr {
        cmsg_len,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    // SAFETY: `header` points into the control data, which is aligned for it.
    unsafe { header.write(control) };
    // SAFETY: the header is valid, and its data follows.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
    for (index, fd) in fds.iter().enumerate() {
        // SAFETY: `msg_controllen` was computed for this many descriptors.
        let place = unsafe { data.add(index) };
        let number = fd.as_fd().as_raw_fd();
        // SAFETY: the place is within the control data.
        unsafe { place.write_unaligned(number) };
    }
}
