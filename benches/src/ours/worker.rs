//! A process that crashes while it serves. Whoever owns a server without workers starts it again; a worker is replaced
//! by its monitor, and its clients connect again. What fails meanwhile, and how long that takes.

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

fn connect(server: &ServerHandle, clients: usize) -> Vec<Client> {
    let client = |_| Client::connect(server.address()).expect("a client");
    (0..clients).map(client).collect()
}

/// Crashes who serves the client; what is done about that, and the next answer, are timed.
fn recover(clients: &mut Vec<Client>, repair: impl FnOnce() -> Vec<Client>) -> f64 {
    let begun = Instant::now();
    let crashed: Result<(), _> = clients[0].call("crash", &());
    assert!(crashed.is_err());
    *clients = repair();
    call_hello(&mut clients[0]);
    begun.elapsed().as_secs_f64()
}

pub fn recovery(definition: Server) -> Rounds {
    let mut server = definition.start().expect("a server");
    let mut clients = connect(&server, 1);
    counted(move || {
        recover(&mut clients, || {
            server = definition.start().expect("a server");
            connect(&server, 1)
        })
    })
}

pub fn recovery_of_worker(server: &ServerHandle) -> Rounds {
    let address = server.address().clone();
    let again = move || vec![Client::connect(&address).expect("a client")];
    let mut clients = again();
    counted(move || recover(&mut clients, &again))
}

/// A hundred calls on eight connections, eight at a time; one of them crashes who serves it.
fn lose(mut clients: Vec<Client>, mut repair: impl FnMut() -> Vec<Client>) -> f64 {
    let (mut failed, mut n) = (0_u32, 0_u32);
    while n < 100 {
        let together = CROWD.min(100 - n as usize);
        let begin = |client: &mut Client| {
            n += 1;
            match n {
                50 => client.begin::<_, u32>("crash", &()),
                _ => client.begin::<_, u32>("add", &(n, 1_u32)),
            }
        };
        let calls: Vec<_> = clients[..together].iter_mut().map(begin).collect();
        let before = failed;
        for (client, call) in clients.iter_mut().zip(calls) {
            let done = call.and_then(|call| client.finish(call));
            failed += u32::from(done.is_err());
        }
        if failed > before {
            clients = repair();
        }
    }
    f64::from(failed)
}

pub fn loss(definition: Server) -> Rounds {
    counted(move || {
        let mut server = definition.start().expect("a server");
        let clients = connect(&server, CROWD);
        lose(clients, || {
            server = definition.start().expect("a server");
            connect(&server, CROWD)
        })
    })
}

pub fn loss_of_worker(server: &ServerHandle) -> Rounds {
    let address = server.address().clone();
    let again = move || {
        let client = |_| Client::connect(&address).expect("a client");
        (0..CROWD).map(client).collect()
    };
    counted(move || lose(again(), &again))
}
