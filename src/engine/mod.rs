//! Who waits: the ways to serve connections. They share sessions, service and limits, and differ in nothing else.
//!
//! Invariant: no rule of the protocol is here; an engine is a driver of sessions.

mod connections;
mod crew;
mod deadlines;
mod door;
mod driver;
mod evented;
mod living;
mod loans;
mod numbered;
mod parking;
mod reception;
mod talk;
mod threaded;
mod threads;

use self::door::Doorway;
use self::evented::Evented;
use self::threaded::Threaded;
use crate::arrival::Admit;
use crate::channel::StopToken;
use crate::context::Control;
use crate::limits::Limits;
use crate::listener::Bound;
use crate::service::Service;
use crate::session::Office;
use crate::wait::Wait;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Which threads serve the clients of a server: see [`Server::engine`](crate::Server::engine).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// As many threads as are needed, up to [`Limits::max_threads`](crate::Limits::max_threads). A handler that takes
    /// its time keeps nobody else waiting. The default.
    #[default]
    Threaded,
    /// One thread for everything: handlers run one after the other, on the thread that also takes orders and signals,
    /// and the process has no other, but for streams. For handlers that never wait. A handler that does keeps
    /// everybody waiting, the owner's `stop` too; one that blocks all signals and never returns outlives the owner. The
    /// answers to calls that have arrived together leave together, after the last of them.
    Evented,
}

/// What one serving process needs.
pub(crate) struct Site {
    pub(crate) service: Service,
    pub(crate) limits: Arc<Limits>,
    pub(crate) control: Control,
    pub(crate) ports: Vec<Arc<Port>>,
    /// How threads wait for a client that calls all the time.
    pub(crate) wait: Wait,
    /// Asked, in order, about whoever comes through a listener.
    pub(crate) admit: Vec<Admit>,
    /// A call that is answered with an error is its connection's last.
    pub(crate) close_on_error: bool,
    /// Told to all streams when the server stops.
    pub(crate) stop: StopToken,
    /// Where the engine learns of events that were posted.
    pub(crate) office: Arc<Office>,
    /// How long a stopped listener's connections may go on.
    pub(crate) grace: Duration,
    /// After how many calls a worker has done enough; `u64::MAX`: never.
    pub(crate) calls_of_worker: u64,
    /// A worker looks how much memory it has when the number of its calls has none of these bits; all of them: never.
    pub(crate) look_mask: u64,
}

/// A listener of a server that runs.
pub(crate) struct Port {
    /// Its place among the listeners.
    pub(crate) index: usize,
    pub(crate) bound: Bound,
    pub(crate) limits: Arc<Limits>,
    doorway: Doorway,
    /// How often it has stopped.
    stops: AtomicU64,
    /// Told to the streams of those who came through it since then.
    stop: Mutex<StopToken>,
}

impl Port {
    /// A port of a server whose streams `stop` tells to stop. `limits` are the server's.
    pub(crate) fn new(
        index: usize,
        bound: Bound,
        limits: &Arc<Limits>,
        stop: &StopToken,
    ) -> io::Result<Port> {
        Ok(Port {
            index,
            limits: Arc::clone(bound.limits.as_ref().unwrap_or(limits)),
            bound,
            doorway: Doorway::default(),
            stops: AtomicU64::new(0),
            stop: Mutex::new(stop.child()?),
        })
    }

    fn stops(&self) -> u64 {
        self.stops.load(Ordering::SeqCst)
    }

    fn has_stopped(&self) {
        self.stops.fetch_add(1, Ordering::SeqCst);
    }

    fn stop_token(&self) -> StopToken {
        let token = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }

    /// It goes on: those who come from now on have a token that nobody was told.
    fn renew_stop_token(&self, token: StopToken) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

impl Site {
    /// A call begins. A worker's control thread sees to it that it does not do too much.
    #[inline]
    fn call_begins(&self) {
        let count = self.control.gate().call_begins();
        if count == self.calls_of_worker || count & self.look_mask == 0 {
            self.control.wake();
        }
    }

    /// Removes what the listeners have in the file system.
    pub(crate) fn remove_files(&self) {
        self.ports.iter().for_each(|port| port.bound.remove_file());
    }

    /// As [`Site::remove_files`], for a server that is gone and whose worker this is.
    pub(crate) fn remove_orphaned(&self) {
        self.ports
            .iter()
            .for_each(|port| port.bound.remove_orphaned());
    }
}

/// What the thread that runs an engine does besides. As a descriptor, it is readable when there is something to do.
pub(crate) trait Duties: AsFd {
    /// Does what there is to do. `false`: the server is to stop.
    fn attend(&mut self, host: &mut dyn Host) -> bool;
}

/// What an engine does for whoever has [`Duties`].
pub(crate) trait Host {
    /// Serves a connection that did not come through a listener.
    fn serve(&mut self, socket: OwnedFd) -> io::Result<()>;

    /// Stops and starts the listeners that were told to.
    fn review(&mut self);

    /// Looks whether somebody waits for a listener of which another process may have been told.
    fn look_again(&mut self);
}

/// An engine that runs.
pub(crate) enum Running {
    Threaded(Threaded),
    Evented(Box<Evented>),
}

impl Running {
    pub(crate) fn start(engine: Engine, site: Arc<Site>) -> io::Result<Running> {
        Ok(match engine {
            Engine::Threaded => Running::Threaded(Threaded::start(site)?),
            Engine::Evented => Running::Evented(Box::new(Evented::start(site)?)),
        })
    }

    /// Serves until the duties say that the server is to stop.
    pub(crate) fn run(&mut self, duties: &mut dyn Duties) {
        match self {
            Running::Threaded(engine) => engine.run(duties),
            Running::Evented(engine) => engine.run(duties),
        }
    }

    /// Begins no call any more, and accepts nobody. Returns at once.
    pub(crate) fn begin_drain(&mut self) {
        match self {
            Running::Threaded(engine) => engine.begin_drain(),
            Running::Evented(engine) => engine.begin_drain(),
        }
    }

    /// What it does for whoever has duties.
    pub(crate) fn host(&mut self) -> &mut dyn Host {
        match self {
            Running::Threaded(engine) => engine,
            Running::Evented(engine) => &mut **engine,
        }
    }

    /// Waits until the connections have finished what they had begun, and tells the streams to stop when all
    /// calls have been answered, or at `tell_at`. `false`: some had not finished by the deadline.
    pub(crate) fn finish_drain(self, tell_at: Option<Instant>, deadline: Option<Instant>) -> bool {
        match self {
            Running::Threaded(engine) => engine.finish_drain(tell_at, deadline),
            Running::Evented(engine) => engine.finish_drain(tell_at, deadline),
        }
    }
}

/// Whether a moment has come that may be none.
fn has_come(time: Option<Instant>) -> bool {
    time.is_some_and(|time| Instant::now() >= time)
}
