//! The engine with one thread, against one thread that does no more than it must.

use crate::bare;
use crate::workloads::{
    CALLS, our_call, our_connect, our_echo, our_eight, our_in_flight, pinned, server, start,
};
use crate::{Placement, Side, Workload};
use Placement::{Free, OneCore, TwoCores};
use forkserver::{Client, Engine, Limits, ServerHandle};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub const ALL: &[Workload] = &[
    Workload {
        name: "evented: call",
        target: 1.10,
        placements: &[OneCore, TwoCores],
        sides: call,
        starts: 1,
    },
    Workload {
        name: "evented: 8 blocking clients",
        target: 1.15,
        placements: &[Free],
        sides: blocking_clients,
        starts: 10,
    },
    Workload {
        name: "evented: 8 connections of one client",
        target: 1.15,
        placements: &[Free],
        sides: one_client,
        starts: 10,
    },
    Workload {
        name: "evented: 64 in flight",
        target: 3.00,
        placements: &[Free, OneCore],
        sides: in_flight,
        starts: 1,
    },
    Workload {
        name: "evented: call, 10 000 idle / none",
        target: 1.10,
        placements: &[OneCore, TwoCores],
        sides: among_idle,
        starts: 1,
    },
    Workload {
        name: "evented: connect, call, close",
        target: 1.35,
        placements: &[Free, OneCore],
        sides: connect,
        starts: 1,
    },
    Workload {
        name: "evented: echo 1 MiB",
        target: 1.15,
        placements: &[Free, OneCore],
        sides: echo,
        starts: 1,
    },
];

fn evented(placement: Placement) -> ServerHandle {
    let mut limits = Limits::default();
    limits.max_connections = 20_000;
    start(&server().engine(Engine::Evented).limits(limits), placement)
}

fn call(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::epoll::ping_pong(40, 31));
    (bare, our_call(evented(placement)))
}

fn blocking_clients(placement: Placement) -> (Side, Side) {
    // The sizes of what is sent and received.
    let bare = pinned(placement, || bare::epoll::eight_clients(CALLS, 26, 21));
    (bare, our_eight(evented(placement)))
}

/// One thread that has a call under way on each of eight connections, against as many pairs of processes.
fn one_client(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::eight_pairs(CALLS));
    let server = evented(placement);
    let connect = |_| Client::connect(server.address()).expect("a client");
    let mut clients: Vec<_> = (0..8).map(connect).collect();
    let ours = move || {
        let _keep = &server;
        for n in 0..CALLS {
            let begin = |client: &mut Client| client.begin("add", &(n, 1_u32)).expect("begun");
            let calls: Vec<_> = clients.iter_mut().map(begin).collect();
            for (client, call) in clients.iter_mut().zip(calls) {
                let sum: u32 = client.finish(call).expect("a sum");
                assert_eq!(sum, n + 1);
            }
        }
    };
    (bare, Box::new(ours))
}

fn in_flight(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::batched(64, 32));
    (bare, our_in_flight(evented(placement)))
}

/// The same server, with nobody else and with as many idle clients as the limit of descriptors allows.
fn among_idle(placement: Placement) -> (Side, Side) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a limit");
    let alone = our_call(evented(placement));
    let server = evented(placement);
    let idle: Vec<_> = (0..hard.saturating_sub(500).min(10_000))
        .map(|_| {
            let mut client = Client::connect(server.address()).expect("a client");
            client.authenticate().expect("a welcome");
            client
        })
        .collect();
    let mut among_them = our_call(server);
    let ours = move || {
        let _keep = &idle;
        among_them();
    };
    (alone, Box::new(ours))
}

fn connect(placement: Placement) -> (Side, Side) {
    let path = std::env::temp_dir().join(format!("bench.{}.epoll", std::process::id()));
    let bare = pinned(placement, || bare::epoll::connect_each(path));
    (bare, our_connect(evented(placement)))
}

fn echo(placement: Placement) -> (Side, Side) {
    let bare = pinned(placement, || bare::epoll::ping_pong(1 << 20, 1 << 20));
    (bare, our_echo(evented(placement), 1 << 20))
}
