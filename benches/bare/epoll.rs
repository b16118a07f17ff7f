//! The least that one thread with epoll needs: one wait, one receive and one send.

use super::child;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// The name of the listener's event; connections have the number of their descriptor.
const LISTENER: u64 = u64::MAX;

/// The server's end of a connection.
struct Echo<'a> {
    stream: UnixStream,
    message: Vec<u8>,
    received: usize,
    answer: &'a [u8],
    sent: usize,
}

impl Echo<'_> {
    /// Goes on until there is nothing to be received, or no room; `None`: the client is gone.
    fn go_on(&mut self) -> Option<EpollFlags> {
        while self.received < self.message.len() {
            match receive(&self.stream, &mut self.message[self.received..]) {
                0 => return None,
                len @ 1.. => self.received += len as usize,
                _ => return Some(EpollFlags::EPOLLIN),
            }
        }
        while self.sent < self.answer.len() {
            match send(&self.stream, &self.answer[self.sent..]) {
                len @ 1.. => self.sent += len as usize,
                _ => return Some(EpollFlags::EPOLLOUT),
            }
        }
        (self.received, self.sent) = (0, 0);
        Some(EpollFlags::EPOLLIN)
    }
}

fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> isize {
    let fd = socket.as_raw_fd();
    // SAFETY: the buffer is alive, and written to for no more than its length.
    unsafe {
        libc::recv(
            fd,
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
        )
    }
}

fn send(socket: &impl AsRawFd, bytes: &[u8]) -> isize {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: the bytes are alive, and read for no more than their length.
    unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) }
}

/// Waits, and does something about each event.
fn each_event(set: &Epoll, mut act: impl FnMut(u64)) {
    let mut events = [EpollEvent::empty(); 64];
    while let Ok(count) = set.wait(&mut events, EpollTimeout::NONE) {
        events[..count].iter().for_each(|event| act(event.data()));
    }
}

/// Answers each message of `ask` bytes with one of `answer` bytes, until a client is gone.
fn serve(streams: Vec<UnixStream>, ask: usize, answer: usize) {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    let answer = vec![1; answer];
    let mut echoes = Vec::new();
    for (name, stream) in (0..).zip(streams) {
        set.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, name))
            .expect("room");
        let echo = Echo {
            stream,
            message: vec![0; ask],
            received: 0,
            answer: &answer,
            sent: 0,
        };
        echoes.push((echo, EpollFlags::EPOLLIN));
    }
    each_event(&set, |name| {
        let (echo, watched) = &mut echoes[name as usize];
        match echo.go_on() {
            Some(flags) if flags == *watched => {}
            Some(flags) => {
                *watched = flags;
                set.modify(&echo.stream, &mut EpollEvent::new(flags, name))
                    .expect("it is in the set");
            }
            // SAFETY: leaves without the parent's destructors.
            None => unsafe { libc::_exit(0) },
        }
    });
}

/// As [`super::ping_pong`], with a server that waits in epoll.
pub fn ping_pong(ask: usize, answer: usize) -> impl FnMut() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    child(move || serve(vec![theirs], ask, answer));
    super::exchange(ours, ask, answer)
}

/// Eight processes that play ping-pong with one server, `calls` each.
pub fn eight_clients(calls: u32, ask: usize, answer: usize) -> impl FnMut() {
    let pairs = (0..8).map(|_| UnixStream::pair().expect("a pair"));
    let (ours, theirs): (Vec<_>, Vec<_>) = pairs.unzip();
    child(|| serve(theirs, ask, answer));
    super::eight(calls, move |place, calls| {
        let stream = ours[place].try_clone().expect("a descriptor");
        let mut exchange = super::exchange(stream, ask, answer);
        Box::new(move || (0..calls).for_each(|_| exchange()))
    })
}

/// As [`super::connect_each`], with a server that waits in epoll.
pub fn connect_each(path: PathBuf) -> impl FnMut() {
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a listener");
    child(move || echo_and_close(&listener));
    super::connect_and_exchange(path, false)
}

fn echo_and_close(listener: &UnixListener) {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    let watched = |name| EpollEvent::new(EpollFlags::EPOLLIN, name);
    set.add(listener, watched(LISTENER)).expect("room");
    let mut streams: Vec<Option<OwnedFd>> = Vec::new();
    let mut buffer = [0; 4096];
    each_event(&set, |name| {
        if name == LISTENER {
            let stream = accept(listener);
            let number = stream.as_raw_fd() as usize;
            set.add(&stream, watched(number as u64)).expect("room");
            streams.resize_with(streams.len().max(number + 1), || None);
            streams[number] = Some(stream);
            return;
        }
        let place = &mut streams[name as usize];
        match place
            .as_ref()
            .map(|stream| (stream, receive(stream, &mut buffer)))
        {
            Some((stream, len @ 1..)) => drop(send(stream, &buffer[..len as usize])),
            _ => *place = None,
        }
    });
}

fn accept(listener: &UnixListener) -> OwnedFd {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let nobody = std::ptr::null_mut();
    // SAFETY: nothing is written, because there is no address to write to.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), nobody, nobody.cast(), flags) };
    assert!(fd >= 0, "a connection");
    // SAFETY: the kernel has just made it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
