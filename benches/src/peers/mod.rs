//! The peers, each as its own documentation has it, in the configuration that is best for it. What was decided for or
//! against one of them is said in its file.
//!
//! Their servers are this program executed once more, because none of them may be forked from a program with a runtime.

mod asynchronous;
mod ipc_channel;
mod messages;
mod procspawn;
mod python;
mod remoc;
mod served;
mod tarpc;
mod tonic;
mod ttrpc;
mod zlink;
mod zygote;

use crate::contestant::Contestant;
use asynchronous::Async;

/// In a server that is this program executed once more, does not return.
pub fn init() {
    served::init(&[
        &Async::<tarpc::Tarpc>::SERVER,
        &Async::<ttrpc::Ttrpc>::SERVER,
        &Async::<ttrpc::Blocking>::SERVER,
        &Async::<tonic::Tonic>::SERVER,
        &Async::<zlink::Zlink>::SERVER,
        &Async::<remoc::Remoc>::SERVER,
        &ipc_channel::SERVER,
    ]);
    ::procspawn::init();
}

pub fn all() -> Vec<Box<dyn Contestant>> {
    let mut all: Vec<Box<dyn Contestant>> = vec![
        Box::new(Async::<tarpc::Tarpc>::NEW),
        Box::new(Async::<ttrpc::Ttrpc>::NEW),
        Box::new(Async::<ttrpc::Blocking>::NEW),
        Box::new(Async::<tonic::Tonic>::NEW),
        Box::new(Async::<zlink::Zlink>::NEW),
        Box::new(Async::<remoc::Remoc>::NEW),
        Box::new(ipc_channel::IpcChannel),
        Box::new(procspawn::Procspawn),
        Box::new(zygote::Forker),
    ];
    if python::is_there() {
        all.push(Box::new(python::CONNECTION));
        all.push(Box::new(python::MANAGER));
        all.push(Box::new(python::FORKSERVER));
    }
    all
}
