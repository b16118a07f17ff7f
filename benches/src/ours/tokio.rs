//! The blocking client from a program with an async runtime, as `examples/tokio_owner.rs` has it: each call is handed to
//! a thread that may block. There is no async client; what that costs is this contestant's distance to the others.

use super::{call_hello, client, definition};
use crate::contestant::{Connect, Contestant, Kind, Rounds, timed};
use crate::task::{CROWD, Task};
use forkserver::{Address, Client};
use tokio::runtime::{Builder, Runtime};

pub struct FromTokio;

impl Contestant for FromTokio {
    fn name(&self) -> &'static str {
        "forkserver from tokio"
    }

    fn kind(&self) -> Kind {
        Kind::Forkserver
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let operation: fn(Runtime, Address) -> Rounds = match task {
            Task::Hello => hello,
            Task::AddOnEight => add_on_eight,
            Task::Connect => connect,
            _ => return None,
        };
        let server = definition().start().expect("a server");
        Some(Box::new(move |_| {
            operation(runtime(), server.address().clone())
        }))
    }
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).build().expect("a runtime")
}

fn hello(runtime: Runtime, address: Address) -> Rounds {
    let mut kept = Some(client(&address));
    timed(move || {
        let mut client = kept.take().expect("it comes back");
        let call = runtime.spawn_blocking(move || {
            call_hello(&mut client);
            client
        });
        kept = Some(runtime.block_on(call).expect("no panic"));
    })
}

fn add_on_eight(runtime: Runtime, address: Address) -> Rounds {
    let mut clients: Vec<Client> = (0..CROWD).map(|_| client(&address)).collect();
    timed(move || {
        let begin = |mut client: Client| {
            runtime.spawn_blocking(move || {
                let sum: u32 = client.call("add", &(1_u32, 1_u32)).expect("a sum");
                assert_eq!(sum, 2);
                client
            })
        };
        let calls: Vec<_> = clients.drain(..).map(begin).collect();
        for call in calls {
            clients.push(runtime.block_on(call).expect("no panic"));
        }
    })
}

fn connect(runtime: Runtime, address: Address) -> Rounds {
    timed(move || {
        let address = address.clone();
        let call = runtime.spawn_blocking(move || {
            let call = client(&address).call_last("hello", &("Joe", "Dalton"));
            let reply: String = call.expect("a reply");
            assert_eq!(reply.len(), 10);
        });
        runtime.block_on(call).expect("no panic");
    })
}
