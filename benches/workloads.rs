//! What is compared, and what it is to reach.

use crate::bare;
use crate::{Placement, Side, Workload};
use Placement::{Free, OneCore, TwoCores};
use forkserver::{Bytes, Client, Fd, Server, ServerHandle};
use std::fs::File;

/// The calls that each of eight clients makes in a round.
pub const CALLS: u32 = 200;

pub const ALL: &[Workload] = &[
    Workload {
        name: "call",
        target: 1.15,
        placements: &[OneCore],
        sides: call,
        starts: 1,
    },
    Workload {
        name: "call across",
        target: 1.10,
        placements: &[TwoCores],
        sides: call,
        starts: 1,
    },
    Workload {
        name: "connect, call, close",
        target: 1.35,
        placements: &[Free],
        sides: connect,
        starts: 1,
    },
    Workload {
        name: "connect, call, close",
        target: 1.40,
        placements: &[OneCore],
        sides: connect,
        starts: 1,
    },
    Workload {
        name: "connect with identity on both",
        target: 1.15,
        placements: &[Free],
        sides: connect_known,
        starts: 1,
    },
    Workload {
        name: "connect with identity on both",
        target: 1.25,
        placements: &[OneCore],
        sides: connect_known,
        starts: 1,
    },
    Workload {
        name: "descriptor",
        target: 1.20,
        placements: &[OneCore],
        sides: descriptor,
        starts: 1,
    },
    Workload {
        name: "echo 64 KiB",
        target: 1.05,
        placements: &[Free, OneCore],
        sides: |p| echo(p, 64 << 10),
        starts: 1,
    },
    Workload {
        name: "echo 1 MiB",
        target: 1.15,
        placements: &[Free, OneCore],
        sides: |p| echo(p, 1 << 20),
        starts: 1,
    },
    Workload {
        name: "8 clients",
        target: 1.20,
        placements: &[Free],
        sides: eight_clients,
        starts: 10,
    },
    Workload {
        name: "64 in flight",
        target: 3.00,
        placements: &[Free, OneCore],
        sides: in_flight,
        starts: 1,
    },
    Workload {
        name: "start, call, stop",
        target: 3.50,
        placements: &[Free],
        sides: start_stop,
        starts: 1,
    },
];

pub fn server() -> Server {
    Server::new()
        .handle("hello", |_, (first, last): (String, String)| {
            Ok(format!("{first} {last}"))
        })
        .handle("add", |_, (a, b): (u32, u32)| Ok(a + b))
        .handle("echo", |_, bytes: Bytes| Ok(bytes))
}

pub fn start(definition: &Server, placement: Placement) -> ServerHandle {
    placement.pin_server();
    let server = definition.start().expect("a server");
    placement.pin_client();
    server
}

/// The bare side, whose child is pinned as the server is.
pub fn pinned<F: FnMut() + 'static>(placement: Placement, make: impl FnOnce() -> F) -> Side {
    placement.pin_server();
    let side = make();
    placement.pin_client();
    Box::new(side)
}

fn call(placement: Placement) -> (Side, Side) {
    // The sizes of what we send and receive.
    let bare = pinned(placement, || bare::ping_pong(40, 31));
    (bare, our_call(start(&server(), placement)))
}

pub fn our_call(server: ServerHandle) -> Side {
    let mut client = Client::connect(server.address()).expect("a client");
    Box::new(move || {
        let _keep = &server;
        let reply: String = client.call("hello", &("Joe", "Dalton")).expect("a reply");
        assert_eq!(reply.len(), 10);
    })
}

fn connect_to(placement: Placement, identity: bool) -> (Side, Side) {
    let path = std::env::temp_dir().join(format!("bench.{}.{identity}", std::process::id()));
    let bare = pinned(placement, || bare::connect_each(path, identity));
    (bare, our_connect(start(&server(), placement)))
}

pub fn our_connect(server: ServerHandle) -> Side {
    Box::new(move || {
        let client = Client::connect(server.address()).expect("a client");
        let reply: String = client
            .call_last("hello", &("Joe", "Dalton"))
            .expect("a reply");
        assert_eq!(reply.len(), 10);
    })
}

fn connect(placement: Placement) -> (Side, Side) {
    connect_to(placement, false)
}

fn connect_known(placement: Placement) -> (Side, Side) {
    connect_to(placement, true)
}

fn descriptor(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, bare::pass_descriptor);
    let null = File::open("/dev/null").expect("a file");
    // The bare side opens nothing either: an `Fd` may be returned by reference.
    let fd = std::sync::Arc::new(Fd::from(null.try_clone().expect("a descriptor")));
    let definition = Server::new()
        .keep_fd(&*fd)
        .handle("fd", move |_, (): ()| Ok(Shared(fd.clone())));
    let server = start(&definition, placement);
    let mut client = Client::connect(server.address()).expect("a client");
    let ours = move || {
        let _keep = &server;
        let fd: Fd = client.call("fd", &()).expect("a descriptor");
        drop(fd);
    };
    (bare, Box::new(ours))
}

/// A descriptor that its handler keeps.
struct Shared(std::sync::Arc<Fd>);

impl serde::Serialize for Shared {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

fn echo(placement: Placement, size: usize) -> (Side, Side) {
    let bare = pinned(placement, || bare::ping_pong(size, size));
    (bare, our_echo(start(&server(), placement), size))
}

pub fn our_echo(server: ServerHandle, size: usize) -> Side {
    let mut client = Client::connect(server.address()).expect("a client");
    let bytes = Bytes::from(vec![7; size]);
    Box::new(move || {
        let _keep = &server;
        let back: Bytes = client.call("echo", &bytes).expect("an echo");
        assert_eq!(back.len(), size);
    })
}

fn eight_clients(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::eight_pairs(CALLS));
    (bare, our_eight(start(&server(), placement)))
}

pub fn our_eight(server: ServerHandle) -> Side {
    let address = server.address().clone();
    let mut ours = bare::eight(CALLS, move |_, calls| {
        let mut client = Client::connect(&address).expect("a client");
        Box::new(move || {
            for n in 0..calls {
                let sum: u32 = client.call("add", &(n, 1_u32)).expect("a sum");
                assert_eq!(sum, n + 1);
            }
        })
    });
    Box::new(move || {
        let _keep = &server;
        ours();
    })
}

fn in_flight(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::batched(64, 32));
    (bare, our_in_flight(start(&server(), placement)))
}

pub fn our_in_flight(server: ServerHandle) -> Side {
    let mut client = Client::connect(server.address()).expect("a client");
    Box::new(move || {
        let _keep = &server;
        let calls: Vec<_> = (0..64_u32)
            .map(|n| client.begin::<_, u32>("add", &(n, 1_u32)).expect("begun"))
            .collect();
        for (n, call) in (0..).zip(calls) {
            assert_eq!(client.finish(call).expect("a sum"), n + 1);
        }
    })
}

fn start_stop(placement: Placement) -> (Side, Side) {
    placement.pin_server();
    let definition = server();
    let ours = move || {
        let server = definition.start().expect("a server");
        let mut client = server.connect().expect("a client");
        let reply: String = client.call("hello", &("Joe", "Dalton")).expect("a reply");
        assert_eq!(reply.len(), 10);
        server.stop().expect("a stop");
    };
    (Box::new(bare::fork_and_wait), Box::new(ours))
}
