//! A server that crashes: whoever owns it starts it again. What fails meanwhile, and how long that takes.

use super::call_hello;
use crate::contestant::{Rounds, counted};
use crate::task::CROWD;
use forkserver::{Client, Server, ServerHandle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Instant;

/// Ends this process as a memory error would, without a core dump.
pub fn crash() -> ! {
    let _ = kill(Pid::this(), Signal::SIGKILL);
    std::process::abort()
}

struct Running {
    server: ServerHandle,
    clients: Vec<Client>,
}

impl Running {
    fn start(definition: &Server, clients: usize) -> Running {
        let server = definition.start().expect("a server");
        let connect = |_| Client::connect(server.address()).expect("a client");
        Running {
            clients: (0..clients).map(connect).collect(),
            server,
        }
    }
}

pub fn recovery(definition: Server) -> Rounds {
    let mut running = Running::start(&definition, 1);
    counted(move || {
        let begun = Instant::now();
        let crashed: Result<(), _> = running.clients[0].call("crash", &());
        assert!(crashed.is_err());
        running = Running::start(&definition, 1);
        call_hello(&mut running.clients[0]);
        begun.elapsed().as_secs_f64()
    })
}

/// A hundred calls on eight connections, eight at a time; one of them crashes the server.
pub fn loss(definition: Server) -> Rounds {
    counted(move || {
        let mut running = Running::start(&definition, CROWD);
        let (mut failed, mut n) = (0_u32, 0_u32);
        while n < 100 {
            let together = CROWD.min(100 - n as usize);
            let calls: Vec<_> = running.clients[..together]
                .iter_mut()
                .map(|client| {
                    n += 1;
                    match n {
                        50 => client.begin::<_, u32>("crash", &()),
                        _ => client.begin::<_, u32>("add", &(n, 1_u32)),
                    }
                })
                .collect();
            let before = failed;
            for (client, call) in running.clients.iter_mut().zip(calls) {
                let done = call.and_then(|call| client.finish(call));
                failed += u32::from(done.is_err());
            }
            if failed > before {
                drop(running.server.kill());
                running = Running::start(&definition, CROWD);
            }
        }
        f64::from(failed)
    })
}
