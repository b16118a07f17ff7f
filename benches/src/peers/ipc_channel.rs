//! ipc-channel: a channel there and one back, which is what its documentation makes a call of.
//!
//! Fairness: one server process for each client, because a one-shot server accepts one. Byte strings go as `ByteBuf`; those
//! of 1 MiB as shared memory, which is three times as fast there, and whose echo is not copied. It passes no descriptors
//! but those of its own channels, and has no connection that could be made for each call.

use super::served::{Program, Served, Server, ready};
use crate::contestant::{Connect, Contestant, Kind, Rounds, timed};
use crate::task::{BATCH, Task};
use ipc_channel::ipc::{self, IpcOneShotServer, IpcReceiver, IpcSender, IpcSharedMemory};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use std::path::Path;

#[derive(Serialize, Deserialize)]
enum Request {
    Hello(String, String),
    Add(u32, u32),
    Echo(ByteBuf),
    EchoShared(IpcSharedMemory),
}

#[derive(Serialize, Deserialize)]
enum Reply {
    Text(String),
    Sum(u32),
    Echo(ByteBuf),
    EchoShared(IpcSharedMemory),
}

/// What the server sends to begin with: where requests go, and where replies come from.
type Ends = (IpcSender<Request>, IpcReceiver<Reply>);

pub const SERVER: Server = Server {
    name: NAME,
    run: serve,
};

const NAME: &str = "ipc-channel";

fn serve(name: &Path, _: usize) {
    let (client, requests) = ipc::channel().expect("a channel");
    let (replies, receiver) = ipc::channel().expect("a channel");
    let name = name.to_str().expect("a name").into();
    let ends: Ends = (client, receiver);
    IpcSender::connect(name)
        .expect("the client")
        .send(ends)
        .expect("it waits");
    ready();
    while let Ok(request) = requests.recv() {
        let reply = match request {
            Request::Hello(first, last) => Reply::Text(format!("{first} {last}")),
            Request::Add(a, b) => Reply::Sum(a + b),
            Request::Echo(bytes) => Reply::Echo(bytes),
            Request::EchoShared(bytes) => Reply::EchoShared(bytes),
        };
        if replies.send(reply).is_err() {
            return;
        }
    }
}

/// A server with its only client.
struct Client {
    requests: IpcSender<Request>,
    replies: IpcReceiver<Reply>,
    _server: Served,
}

impl Client {
    fn start() -> Client {
        let (server, name) = IpcOneShotServer::<Ends>::new().expect("a one-shot server");
        let process = Served::start(Program::Own(NAME), name.as_ref(), 1);
        let (_, (requests, replies)) = server.accept().expect("the server's ends");
        Client {
            requests,
            replies,
            _server: process,
        }
    }

    fn call(&self, request: Request) -> Reply {
        self.requests.send(request).expect("a request");
        self.replies.recv().expect("a reply")
    }

    fn hello(&self) {
        match self.call(Request::Hello("Joe".into(), "Dalton".into())) {
            Reply::Text(text) => assert_eq!(text.len(), 10),
            _ => unreachable!("a greeting"),
        }
    }

    fn echo(&self, bytes: &[u8]) {
        let len = match bytes.len() {
            ..1_000_000 => match self.call(Request::Echo(ByteBuf::from(bytes))) {
                Reply::Echo(bytes) => bytes.len(),
                _ => unreachable!("an echo"),
            },
            _ => match self.call(Request::EchoShared(IpcSharedMemory::from_bytes(bytes))) {
                Reply::EchoShared(bytes) => bytes.len(),
                _ => unreachable!("an echo"),
            },
        };
        assert_eq!(len, bytes.len());
    }

    fn batch(&self) {
        let send = |n| self.requests.send(Request::Add(n, 1)).expect("a request");
        (0..BATCH).for_each(send);
        for n in 0..BATCH {
            match self.replies.recv().expect("a reply") {
                Reply::Sum(sum) => assert_eq!(sum, n + 1),
                _ => unreachable!("a sum"),
            }
        }
    }
}

pub struct IpcChannel;

impl Contestant for IpcChannel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let operation: fn(Client, Task) -> Rounds = match task {
            Task::Hello => |client, _| timed(move || client.hello()),
            Task::Add { .. } => |client, _| {
                timed(move || match client.call(Request::Add(1, 2)) {
                    Reply::Sum(sum) => assert_eq!(sum, 3),
                    _ => unreachable!("a sum"),
                })
            },
            Task::Batch => |client, _| timed(move || client.batch()),
            Task::Echo(_) => |client, task| {
                let Task::Echo(size) = task else {
                    unreachable!("{task:?} is no echo")
                };
                let bytes = vec![7; size];
                timed(move || client.echo(&bytes))
            },
            Task::Lifetime => {
                return Some(Box::new(|_| timed(|| Client::start().hello())));
            }
            _ => return None,
        };
        let clients: Vec<_> = (0..task.clients()).map(|_| Some(Client::start())).collect();
        let clients = std::cell::RefCell::new(clients);
        Some(Box::new(move |place| {
            let client = clients.borrow_mut()[place].take();
            operation(client.expect("one client each"), task)
        }))
    }
}
