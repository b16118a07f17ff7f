//! The least that one thread with epoll needs: one wait, one receive and one send.

use super::accept::{connect_each, listen};
use super::ping_pong::{connect_to, exchange, sizes};
use crate::contestant::{Connect, Contestant, Kind, counted};
use crate::process::{Child, pair, proportional_kib};
use crate::task::Task;
use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The name of the listener's event; connections have the number of their descriptor.
const LISTENER: u64 = u64::MAX;

/// A server that knows its clients from the start.
pub struct PingPong;
/// One that accepts them, however many.
pub struct Accept;

impl Contestant for PingPong {
    fn name(&self) -> &'static str {
        "epoll ping-pong"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let (ask, answer) = sizes(task)?;
        if matches!(task, Task::Batch | Task::AddOnEight | Task::Burst) {
            return None;
        }
        let pairs = (0..task.clients()).map(|_| pair());
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.unzip();
        let child = Child::fork(|| serve(theirs, ask, answer));
        Some(connect_to(ours, vec![child], ask, answer))
    }
}

impl Contestant for Accept {
    fn name(&self) -> &'static str {
        "accept by epoll"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        if !matches!(task, Task::Connect | Task::Idle(_) | Task::IdleMemory(_)) {
            return None;
        }
        let (listener, path) = listen();
        let child = Child::fork(|| echo_and_close(&listener));
        let server = child.pid();
        Some(Box::new(move |_| {
            let _keep = &child;
            match task {
                Task::Idle(count) => {
                    let idle = connections(&path, count);
                    let mut rounds = exchange(connection(&path), 40, 40);
                    Box::new(move |count| {
                        let _keep = &idle;
                        rounds(count)
                    })
                }
                Task::IdleMemory(count) => {
                    let idle = connections(&path, count);
                    counted(move || {
                        let _keep = &idle;
                        proportional_kib(server) as f64 / 1024.0
                    })
                }
                _ => connect_each(path.clone(), false),
            }
        }))
    }
}

fn connection(path: &Path) -> UnixStream {
    UnixStream::connect(path).expect("a connection")
}

/// So many that have been answered once.
fn connections(path: &Path, count: usize) -> Vec<UnixStream> {
    use std::io::{Read, Write};
    let answered = |_| {
        let mut stream = connection(path);
        stream.write_all(b"!").expect("a message");
        stream.read_exact(&mut [0]).expect("an answer");
        stream
    };
    (0..count).map(answered).collect()
}

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
    let (bytes, len) = (buffer.as_mut_ptr().cast(), buffer.len());
    // SAFETY: the buffer is alive, and written to for no more than its length.
    unsafe { libc::recv(fd, bytes, len, libc::MSG_DONTWAIT) }
}

fn send(socket: &impl AsRawFd, bytes: &[u8]) -> isize {
    let (fd, flags) = (socket.as_raw_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    // SAFETY: the bytes are alive, and read for no more than their length.
    unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) }
}

/// Waits, and does something about each event, until it is told that there will be none.
fn each_event(set: &Epoll, mut act: impl FnMut(u64) -> bool) {
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match set.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            // Somebody has begun to trace us.
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if !events[..count].iter().all(|event| act(event.data())) {
            return;
        }
    }
}

/// Answers each message of `ask` bytes with one of `answer` bytes, until a client is gone.
fn serve(streams: Vec<UnixStream>, ask: usize, answer: usize) {
    let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("a set");
    let answer = vec![1; answer];
    let mut echoes = Vec::new();
    for (name, stream) in (0..).zip(streams) {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, name);
        set.add(&stream, event).expect("room");
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
        let Some(flags) = echo.go_on() else {
            return false;
        };
        if flags != *watched {
            *watched = flags;
            let mut event = EpollEvent::new(flags, name);
            set.modify(&echo.stream, &mut event)
                .expect("it is in the set");
        }
        true
    });
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
            return true;
        }
        let place = &mut streams[name as usize];
        let received = place
            .as_ref()
            .map(|stream| (stream, receive(stream, &mut buffer)));
        match received {
            Some((stream, len @ 1..)) => drop(send(stream, &buffer[..len as usize])),
            _ => *place = None,
        }
        true
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
