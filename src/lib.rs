//! Run part of a program in a child process that it owns.
//!
//! An owner forks a [`Server`]; the server listens on a Unix socket that only this user can reach, checks a random
//! password, answers named messages with registered handlers, passes file descriptors both ways, and ends when
//! its last owner is gone.
//!
//! ```no_run
//! use forkserver::{Result, Server};
//!
//! fn main() -> Result<()> {
//!     let server = Server::new()
//!         .handle("hello", |_, (first, last): (String, String)| Ok(format!("Hello {first} {last}, how are you?")))
//!         .start()?; // forks; returns when the server is ready
//!     let mut client = server.connect()?;
//!     let reply: String = client.call("hello", &("Joe", "Dalton"))?;
//!     println!("{reply}");
//!     server.stop()?; // dropping `server` does the same
//!     Ok(())
//! }
//! ```
//!
//! # Anatomy of the crate
//!
//! * [`Server`] is a definition: handlers, hooks, limits, what the process becomes. [`Server::start`] makes a
//!   process of it and returns a [`ServerHandle`]; [`Server::run`] serves in the calling process.
//! * [`Client`] is one connection to a server, made from an [`Address`] or by [`ServerHandle::connect`].
//! * [`Entry`] and [`init`] start servers in programs with threads; [`spawn`] starts processes for them.
//! * [`Engine`] is which threads serve; [`Listener`] is where, to whom, and what is spoken there: ours, records of your own
//!   ([`Listener::handle_events`] with a [`Framing`]), [Passenger's format](passenger), or whatever you make of it
//!   ([`Listener::accept_with`]).
//! * [`Prefork`] makes a server several processes: a monitor, and workers that may die.
//! * [`EventHandler`] serves a client by callbacks, without a thread; [`SessionHandle`] reaches it from anywhere.
//! * [`Limits`] and [`Restrictions`] bound what clients and calls may take.
//! * [`Event`] is what a server tells about itself to [`Server::observe`].
//! * [`Wait`] is how a side waits for the other: asleep, or looking again and again.
//! * [`Channel`] is a stream of items both ways, between [`Client::open`] and [`Server::handle_stream`].
//! * [`passenger`] is the format of Phusion Passenger's `AbstractServer`, for programs that have it already.
//! * [`Fd`] and [`Bytes`] are values for arguments and results: a descriptor, and a byte string without the cost
//!   that serde has for `Vec<u8>`.
//! * [`Context`] is what a handler knows besides its arguments; [`Control`] is the server as seen from inside.
//! * Errors come in one enum for each phase; [`CallError::delivery`] tells whether a call may be repeated.
//!
//! # Features
//!
//! `tracing`, off by default: `Server::traced` tells what happens as spans and events of the crate of that name.
//!
//! # Limitations
//!
//! * Linux 5.10 or newer.
//! * A process with several threads cannot be forked safely: [`Server::start`] refuses
//!   ([`StartError::MultiThreaded`]). Start servers first thing in `main`, or as an [`Entry`], which works with threads.
//! * Values travel by bincode, which does not describe itself: types that need a self-describing format
//!   (`#[serde(untagged)]`, `#[serde(flatten)]`, internally tagged enums) are errors, never wrong values.
//! * A process that is stopped (`SIGSTOP`) when its last owner goes ends only when it is continued.
//! * A copy of the owner that is made by a plain `fork`, without `exec`, holds a share in the life of the owner's
//!   servers until it ends. Servers started by this crate hold none in each other.

// A library does not print.
#![warn(clippy::print_stdout, clippy::print_stderr)]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "forkserver needs Linux: it relies on pidfds, SCM_RIGHTS and signals at a pipe's end"
);

mod address;
mod arrival;
mod bytes;
mod channel;
mod child;
mod client;
mod connection;
mod context;
mod control;
mod descriptor;
mod engine;
mod entry;
mod error;
mod event;
mod exit;
mod fault;
mod fd;
mod gate;
mod handle;
mod limits;
mod listener;
mod panics;
pub mod passenger;
mod password;
mod prefork;
mod protocol;
mod scoreboard;
mod server;
mod service;
mod session;
pub mod spawn;
#[allow(unsafe_code)] // here and nowhere else
mod sys;
mod wait;
mod worker;

pub use address::Address;
pub use arrival::Arrival;
pub use bytes::Bytes;
pub use channel::{Channel, End, ReceiveHalf, SendHalf, Served, StopToken};
pub use client::{Client, Pending};
pub use context::{Context, Control, Peer};
pub use engine::Engine;
pub use entry::{AnyEntry, Entry, init};
pub use error::{
    CallError, ConnectError, ControlError, Delivery, Error, Result, StartError, StopError,
    StopReason, StreamError,
};
pub use event::{Event, PauseReason};
pub use exit::Exit;
pub use fault::{Fault, RemoteFault};
pub use fd::Fd;
pub use gate::{ListenerStatus, Status};
pub use handle::ServerHandle;
pub use limits::Limits;
pub use listener::{AcceptedConn, Listener, Permit};
/// A resource that can be limited, for [`spawn::Command::rlimit`]: see setrlimit(2).
pub use nix::sys::resource::Resource;
/// A signal's name and number, for [`Server::handle_signal`].
pub use nix::sys::signal::Signal;
pub use password::{Password, PasswordError};
pub use prefork::Prefork;
pub use protocol::ending::Ending;
pub use protocol::frame::ProtocolError;
pub use protocol::framing::{Found, Framing, FramingError, LengthPrefixed, Lines, Unframed};
pub use scoreboard::{CallStatus, PoolEvent, PoolStatus, ReplaceReason, WorkerPhase, WorkerStatus};
pub use server::Server;
pub use service::{Raw, Restrictions};
pub use session::{EventHandler, Item, PostError, Session, SessionHandle};
pub use wait::Wait;
pub use worker::Worker;
