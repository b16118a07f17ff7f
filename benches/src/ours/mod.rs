//! forkserver, by its public interface and with its default limits: a server per engine, and who calls it. Another
//! engine is another line of [`all`].

mod busy;
mod spawn;
mod spinning;
mod tokio;
mod worker;

pub use spawn::ENTRIES;
#[cfg(feature = "peers")]
pub use worker::crash;

use crate::contestant::{Connect, Contestant, Kind, Rounds, after_silence, counted, timed};
use crate::process::{family, proportional_kib, served_mib};
use crate::task::{BATCH, CROWD, Task, WORKERS, table};
use forkserver::{Address, Bytes, Client, Engine, Fd, Limits, Prefork, Server, ServerHandle};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

pub fn all() -> Vec<Box<dyn Contestant>> {
    let with = |name, engine, workers| {
        Box::new(Forkserver {
            name,
            engine,
            workers,
        })
    };
    vec![
        with("forkserver", Engine::Threaded, 0),
        with("forkserver evented", Engine::Evented, 0),
        with("forkserver prefork", Engine::Threaded, WORKERS),
        Box::new(spinning::Spinning),
        Box::new(busy::Busy {
            name: "forkserver, 1 worker",
            workers: 1,
        }),
        Box::new(busy::Busy {
            name: "forkserver, 2 workers",
            workers: 2,
        }),
        Box::new(Alone),
        Box::new(ByHandle),
        Box::new(tokio::FromTokio),
        Box::new(spawn::Jobs),
        Box::new(spawn::Launched),
        Box::new(spawn::ForkedUnchecked),
    ]
}

/// A server with this engine, and blocking clients.
struct Forkserver {
    name: &'static str,
    engine: Engine,
    /// How many processes serve, if it is not the server's own.
    workers: usize,
}

impl Forkserver {
    fn definition(&self) -> Server {
        let definition = definition().engine(self.engine);
        match self.workers {
            0 => definition,
            workers => definition.prefork(Prefork::new(workers)),
        }
    }

    /// What a server with workers can do besides: one that crashes is replaced, and what has been loaded is there once.
    fn serve_by_workers(&self, task: Task) -> Option<Connect> {
        // No worker counts as one that crashes all the time: here they are made to.
        let workers = Prefork::new(self.workers).min_uptime(Duration::ZERO);
        let definition = definition().engine(self.engine).prefork(workers);
        match task {
            Task::Recovery => Some(serve(&definition, worker::recovery_of_worker)),
            Task::Loss => Some(serve(&definition, worker::loss_of_worker)),
            Task::Memory => {
                let server = definition.initialize(|_| Ok(table())).start();
                let server = server.expect("a server");
                Some(Box::new(move |_| {
                    let _keep = &server;
                    counted(served_mib)
                }))
            }
            _ => None,
        }
    }
}

impl Contestant for Forkserver {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        if self.workers > 0 && matches!(task, Task::Recovery | Task::Loss | Task::Memory) {
            return self.serve_by_workers(task);
        }
        let definition = self.definition();
        match task {
            Task::Lifetime => Some(Box::new(move |_| lifetime(definition.clone()))),
            Task::Recovery => Some(Box::new(move |_| worker::recovery(definition.clone()))),
            Task::Loss => Some(Box::new(move |_| worker::loss(definition.clone()))),
            Task::Descriptor => Some(serve(&with_descriptor(definition), descriptor)),
            Task::Idle(count) => Some(serve(&roomy(definition), move |server| {
                among(idle(server, count), hello(server.address()))
            })),
            Task::IdleMemory(count) => Some(serve(&roomy(definition), move |server| {
                let pid = server.pid();
                let own = counted(move || {
                    let kib = family(pid).into_iter().map(proportional_kib).sum::<u64>();
                    kib as f64 / 1024.0
                });
                among(idle(server, count), own)
            })),
            _ => operation(task).map(|operation| {
                serve(&definition, move |server| operation(server.address(), task))
            }),
        }
    }
}

/// What a client does that needs no more than an address.
fn operation(task: Task) -> Option<fn(&Address, Task) -> Rounds> {
    Some(match task {
        Task::Hello => |address, _| hello(address),
        Task::Add { .. } => |address, _| add(address),
        Task::AddOnEight => |address, _| timed(add_on_eight(address)),
        Task::Burst => |address, _| after_silence(add_on_eight(address)),
        Task::Echo(_) => echo,
        Task::Batch => |address, _| batch(address),
        Task::Connect | Task::ConnectKnown => |address, _| connect(address.clone()),
        _ => return None,
    })
}

pub fn definition() -> Server {
    Server::new()
        .handle("hello", |_, (first, last): (String, String)| {
            Ok(format!("{first} {last}"))
        })
        .handle("add", |_, (a, b): (u32, u32)| Ok(a + b))
        .handle("echo", |_, bytes: Bytes| Ok(bytes))
        .handle("crash", |_, (): ()| -> Result<(), _> { worker::crash() })
}

/// Room for all silent clients; they are no strangers.
fn roomy(definition: Server) -> Server {
    let mut limits = Limits::default();
    limits.max_connections = 20_000;
    definition.limits(limits)
}

/// Starts the server; it ends with whoever connects to it.
fn serve(definition: &Server, connect: impl Fn(&ServerHandle) -> Rounds + 'static) -> Connect {
    let server = definition.start().expect("a server");
    Box::new(move |_| connect(&server))
}

fn client(address: &Address) -> Client {
    Client::connect(address).expect("a client")
}

pub fn call_hello(client: &mut Client) {
    let reply: String = client.call("hello", &("Joe", "Dalton")).expect("a reply");
    assert_eq!(reply.len(), 10);
}

fn hello(address: &Address) -> Rounds {
    let mut client = client(address);
    timed(move || call_hello(&mut client))
}

fn add(address: &Address) -> Rounds {
    let (mut client, mut n) = (client(address), 0_u32);
    timed(move || {
        n += 1;
        let sum: u32 = client.call("add", &(n, 1_u32)).expect("a sum");
        assert_eq!(sum, n + 1);
    })
}

/// One thread that has a call under way on each of eight connections.
fn add_on_eight(address: &Address) -> impl FnMut() + 'static {
    let mut clients: Vec<_> = (0..CROWD).map(|_| client(address)).collect();
    let mut n = 0_u32;
    move || {
        n += 1;
        let begin = |client: &mut Client| client.begin("add", &(n, 1_u32)).expect("begun");
        let calls: Vec<_> = clients.iter_mut().map(begin).collect();
        for (client, call) in clients.iter_mut().zip(calls) {
            let sum: u32 = client.finish(call).expect("a sum");
            assert_eq!(sum, n + 1);
        }
    }
}

fn echo(address: &Address, task: Task) -> Rounds {
    let Task::Echo(size) = task else {
        unreachable!("{task:?} is no echo")
    };
    let (mut client, bytes) = (client(address), Bytes::from(vec![7; size]));
    timed(move || {
        let back: Bytes = client.call("echo", &bytes).expect("an echo");
        assert_eq!(back.len(), size);
    })
}

fn batch(address: &Address) -> Rounds {
    let mut client = client(address);
    timed(move || {
        let begin = |n| client.begin::<_, u32>("add", &(n, 1_u32)).expect("begun");
        let calls: Vec<_> = (0..BATCH).map(begin).collect();
        for (n, call) in (0..).zip(calls) {
            assert_eq!(client.finish(call).expect("a sum"), n + 1);
        }
    })
}

fn connect(address: Address) -> Rounds {
    timed(move || {
        let call = client(&address).call_last("hello", &("Joe", "Dalton"));
        let reply: String = call.expect("a reply");
        assert_eq!(reply.len(), 10);
    })
}

/// The bare side opens nothing for a call either: the handler returns what it has.
fn with_descriptor(definition: Server) -> Server {
    let null = File::open("/dev/null").expect("a file");
    let fd = Arc::new(Fd::from(null));
    let held = Shared(fd.clone());
    definition
        .keep_fd(&*fd)
        .handle("fd", move |_, (): ()| Ok(held.clone()))
}

/// A descriptor that its handler keeps.
#[derive(Clone)]
struct Shared(Arc<Fd>);

impl serde::Serialize for Shared {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

fn descriptor(server: &ServerHandle) -> Rounds {
    let mut client = client(server.address());
    timed(move || {
        let fd: Fd = client.call("fd", &()).expect("a descriptor");
        drop(fd);
    })
}

fn idle(server: &ServerHandle, count: usize) -> Vec<Client> {
    let welcome = |_| {
        let mut client = client(server.address());
        client.authenticate().expect("a welcome");
        client
    };
    (0..count).map(welcome).collect()
}

/// The rounds of one, while others are there.
fn among(others: Vec<Client>, mut rounds: Rounds) -> Rounds {
    Box::new(move |count| {
        let _keep = &others;
        rounds(count)
    })
}

fn lifetime(definition: Server) -> Rounds {
    timed(move || {
        let server = definition.start().expect("a server");
        call_hello(&mut server.connect().expect("a client"));
        server.stop().expect("a stop");
    })
}

/// The engine with one thread and one client, beside the same with many: what silence costs.
struct Alone;

impl Contestant for Alone {
    fn name(&self) -> &'static str {
        "forkserver evented, alone"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let definition = definition().engine(Engine::Evented);
        matches!(task, Task::Idle(_))
            .then(|| serve(&roomy(definition), |server| hello(server.address())))
    }
}

/// Connections that the owner's handle makes: no path, and nobody whose identity would be asked for. What it shows is
/// what those two cost; the password is never left out.
struct ByHandle;

impl Contestant for ByHandle {
    fn name(&self) -> &'static str {
        "forkserver, by its handle"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        if task != Task::Connect {
            return None;
        }
        let server = Arc::new(definition().start().expect("a server"));
        Some(Box::new(move |_| {
            let server = Arc::clone(&server);
            timed(move || {
                let client = server.connect().expect("a client");
                let call = client.call_last("hello", &("Joe", "Dalton"));
                let reply: String = call.expect("a reply");
                assert_eq!(reply.len(), 10);
            })
        }))
    }
}
