//! What all peers that need an async runtime have in common: only their messages differ.
//!
//! Fairness: a runtime with one thread on both sides, which is the faster one for everything but large echoes (no peer
//! has to wake a second thread for a call); those get two threads. A call is polled where the caller is, by `block_on`.

use super::served::{Program, Served, Server, fresh_path};
use crate::contestant::{Connect, Contestant, Kind, Rounds, after_silence, counted, timed};
use crate::process::proportional_kib;
use crate::task::{BATCH, CROWD, Task};
use futures_util::future::join_all;
use std::future::Future;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::runtime::{Builder, Runtime};

/// A peer, as far as it is its own.
pub trait Peer: 'static {
    const NAME: &'static str;
    /// The largest message that it can be asked for.
    const LARGEST: usize = usize::MAX;
    const PASSES_DESCRIPTORS: bool = false;
    /// Whether thousands of clients can be told to be silent.
    const BEARS_CROWDS: bool = true;
    /// Whether one thread can have several calls under way.
    const AT_ONCE: bool = true;
    /// One connection.
    type Client: 'static;

    /// Serves at this path for ever; calls [`super::served::ready`] when it listens.
    fn serve(path: &Path) -> impl Future<Output = ()>;

    fn connect(path: &Path) -> impl Future<Output = Self::Client>;

    fn hello(client: &mut Self::Client) -> impl Future<Output = String>;

    fn add(client: &mut Self::Client, a: u32, b: u32) -> impl Future<Output = u32>;

    /// How many bytes have come back.
    fn echo(client: &mut Self::Client, bytes: &[u8]) -> impl Future<Output = usize>;

    /// `count` calls of `add(n, 1)`, all of them under way at once; the sum of the answers.
    fn batch(client: &mut Self::Client, count: u32) -> impl Future<Output = u32>;

    fn descriptor(client: &mut Self::Client) -> impl Future<Output = OwnedFd> {
        let _ = client;
        async { unreachable!("it passes none") }
    }
}

/// The contestant that a peer is.
pub struct Async<P>(PhantomData<P>);

impl<P: Peer> Async<P> {
    pub const NEW: Async<P> = Async(PhantomData);
    pub const SERVER: Server = Server {
        name: P::NAME,
        run: |path, threads| runtime(threads).block_on(P::serve(path)),
    };
}

fn runtime(threads: usize) -> Runtime {
    let mut builder = match threads {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.enable_all().build().expect("a runtime")
}

fn threads(task: Task) -> usize {
    match task {
        Task::Echo(size) if size > 512 << 10 => 2,
        _ => 1,
    }
}

impl<P: Peer> Contestant for Async<P> {
    fn name(&self) -> &'static str {
        P::NAME
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let threads = threads(task);
        match task {
            Task::Lifetime => return Some(Box::new(move |_| lifetime::<P>(threads))),
            Task::Echo(size) if size > P::LARGEST => return None,
            Task::Descriptor if !P::PASSES_DESCRIPTORS => return None,
            Task::Idle(_) | Task::IdleMemory(_) if !P::BEARS_CROWDS => return None,
            Task::Batch | Task::AddOnEight | Task::Burst if !P::AT_ONCE => return None,
            Task::Hello
            | Task::Add { .. }
            | Task::AddOnEight
            | Task::Burst
            | Task::Echo(_)
            | Task::Batch
            | Task::Connect
            | Task::Descriptor
            | Task::Idle(_)
            | Task::IdleMemory(_) => {}
            _ => return None,
        }
        let server = Served::start(Program::Own(P::NAME), &fresh_path(), threads);
        Some(Box::new(move |_| {
            let (runtime, pid) = (Rc::new(runtime(threads)), server.pid());
            connected::<P>(task, runtime, server.path.clone(), pid)
        }))
    }
}

fn connected<P: Peer>(task: Task, runtime: Rc<Runtime>, path: PathBuf, server: u32) -> Rounds {
    let connect = |runtime: &Runtime| runtime.block_on(P::connect(&path));
    match task {
        Task::Connect => connect_each::<P>(runtime, path),
        Task::AddOnEight => timed(add_on_eight::<P>(runtime, &path)),
        Task::Burst => after_silence(add_on_eight::<P>(runtime, &path)),
        Task::Idle(count) => {
            let idle = crowd::<P>(&runtime, &path, count);
            let mut rounds = call::<P>(Task::Hello, runtime.clone(), connect(&runtime));
            Box::new(move |count| {
                let _keep = &idle;
                rounds(count)
            })
        }
        Task::IdleMemory(count) => {
            let idle = crowd::<P>(&runtime, &path, count);
            counted(move || {
                let _keep = (&idle, &runtime);
                proportional_kib(server) as f64 / 1024.0
            })
        }
        _ => {
            let client = connect(&runtime);
            call::<P>(task, runtime, client)
        }
    }
}

/// What one connection is enough for.
fn call<P: Peer>(task: Task, runtime: Rc<Runtime>, mut client: P::Client) -> Rounds {
    match task {
        Task::Hello => timed(move || {
            let reply = runtime.block_on(P::hello(&mut client));
            assert_eq!(reply.len(), 10);
        }),
        Task::Add { .. } => timed(move || {
            assert_eq!(runtime.block_on(P::add(&mut client, 1, 2)), 3);
        }),
        Task::Echo(size) => {
            let bytes = vec![b'x'; size];
            timed(move || {
                assert_eq!(runtime.block_on(P::echo(&mut client, &bytes)), size);
            })
        }
        Task::Batch => timed(move || {
            let sum = runtime.block_on(P::batch(&mut client, BATCH));
            assert_eq!(sum, (0..BATCH).map(|n| n + 1).sum::<u32>());
        }),
        Task::Descriptor => timed(move || drop(runtime.block_on(P::descriptor(&mut client)))),
        other => unreachable!("{other:?} needs more than one connection"),
    }
}

fn connect_each<P: Peer>(runtime: Rc<Runtime>, path: PathBuf) -> Rounds {
    timed(move || {
        runtime.block_on(async {
            let mut client = P::connect(&path).await;
            assert_eq!(P::hello(&mut client).await.len(), 10);
        });
    })
}

fn add_on_eight<P: Peer>(runtime: Rc<Runtime>, path: &Path) -> impl FnMut() + 'static {
    let mut clients = crowd::<P>(&runtime, path, CROWD);
    move || {
        let calls = clients.iter_mut().map(|client| P::add(client, 1, 2));
        let sums = runtime.block_on(join_all(calls));
        assert!(sums.iter().all(|sum| *sum == 3));
    }
}

/// So many clients that have been answered once.
fn crowd<P: Peer>(runtime: &Runtime, path: &Path, count: usize) -> Vec<P::Client> {
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut client = P::connect(path).await;
            P::hello(&mut client).await;
            clients.push(client);
        }
        clients
    })
}

/// What each of these peers leaves to its user: the start of a process, and its end, which is a kill.
fn lifetime<P: Peer>(threads: usize) -> Rounds {
    let runtime = runtime(threads);
    timed(move || {
        let server = Served::start(Program::Own(P::NAME), &fresh_path(), threads);
        runtime.block_on(async {
            let mut client = P::connect(&server.path).await;
            assert_eq!(P::hello(&mut client).await.len(), 10);
        });
    })
}
