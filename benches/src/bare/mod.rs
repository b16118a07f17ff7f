//! The kernel's limit: the same exchanges in bare system calls, with no more than their shape demands. Each limit is
//! here once, and everything else is told as a multiple of one of them.

mod accept;
mod descriptor;
mod epoll;
mod ping_pong;
mod start;
mod workers;

use crate::contestant::Contestant;

pub fn all() -> Vec<Box<dyn Contestant>> {
    vec![
        Box::new(ping_pong::Blocking),
        Box::new(epoll::PingPong),
        Box::new(accept::Single),
        Box::new(accept::Known),
        Box::new(accept::Pool),
        Box::new(accept::Processes),
        Box::new(accept::KnownProcesses),
        Box::new(epoll::Accept),
        Box::new(descriptor::Passing),
        Box::new(start::Fork),
        Box::new(start::Tiny),
        Box::new(start::ForkFromLarge),
        Box::new(workers::Forked),
        Box::new(workers::Reforked),
    ]
}
