//! Tests of the running thing: real processes, sockets, signals, `kill -9`.
//!
//! Invariant: each test is a process of its own, with one thread, an alarm, and an empty directory for temporary
//! files. Afterwards it must have the descriptors, children, threads and files that it had before.

// Tests look at the kernel themselves, and run on the newest compiler only.
#![allow(unsafe_code, unreachable_pub)]
#![allow(
    clippy::undocumented_unsafe_blocks,
    clippy::multiple_unsafe_ops_per_block
)]
#![allow(clippy::incompatible_msrv)]

mod abstract_server;
mod abuse;
mod activated;
mod admit;
mod auth;
mod batches;
mod calls;
mod chaos;
mod closing;
mod conformance_gate;
mod conformance_order;
mod conformance_passenger;
mod conformance_poe;
mod conformance_prefork;
mod conformance_qore;
mod conformance_tanzer;
mod crowds;
mod death;
mod drain;
mod engine;
mod entries;
mod events;
mod examples;
mod fds;
mod harness;
mod hostile;
mod inherit;
mod jobs;
mod lifecycle;
mod limits;
mod listeners;
mod news;
mod passenger;
mod pool_death;
mod pool_edges;
mod prefork;
mod processes;
mod reload;
mod restrictions;
mod rotation;
mod sessions;
mod signals;
mod sockets;
mod spawning;
mod streams;
mod supervision;
mod tidy;
#[cfg(feature = "tracing")]
mod traced;
mod types;
mod waits;

/// A definition to begin with, whose engine is the one that the test is run with.
fn server() -> forkserver::Server {
    forkserver::Server::new().engine(harness::engine())
}

fn main() {
    let spawner: &dyn forkserver::AnyEntry = &forkserver::spawn::SPAWNER;
    activated::run_if_activated();
    forkserver::init(&[entries::ALL, jobs::ALL, &[spawner]].concat());
    let with_both_engines = [
        abstract_server::TESTS,
        abuse::TESTS,
        admit::TESTS,
        auth::TESTS,
        batches::TESTS,
        calls::TESTS,
        chaos::TESTS,
        closing::TESTS,
        conformance_gate::TESTS,
        conformance_order::TESTS,
        conformance_passenger::TESTS,
        conformance_poe::TESTS,
        conformance_prefork::TESTS,
        conformance_qore::TESTS,
        conformance_tanzer::TESTS,
        crowds::TESTS,
        death::TESTS,
        drain::TESTS,
        engine::TESTS,
        events::TESTS,
        fds::TESTS,
        hostile::TESTS,
        inherit::TESTS,
        lifecycle::TESTS,
        limits::TESTS,
        listeners::TESTS,
        news::TESTS,
        pool_death::TESTS,
        pool_edges::TESTS,
        prefork::TESTS,
        reload::TESTS,
        restrictions::TESTS,
        rotation::TESTS,
        sessions::TESTS,
        signals::TESTS,
        sockets::TESTS,
        streams::TESTS,
        supervision::TESTS,
        waits::TESTS,
        #[cfg(feature = "tracing")]
        traced::TESTS,
    ];
    let with_one = [
        activated::TESTS,
        entries::TESTS,
        examples::TESTS,
        jobs::TESTS,
        passenger::TESTS,
        spawning::TESTS,
        tidy::TESTS,
        types::TESTS,
    ];
    harness::main(&with_both_engines.concat(), &with_one.concat());
}
