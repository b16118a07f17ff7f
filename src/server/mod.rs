//! A server's definition: what it answers, how it lives, what it becomes.
//!
//! Invariant: a definition is a value that nothing changes; each start makes a new server from it. One that runs
//! is another type, [`ServerHandle`].

mod handlers;
mod launched;
mod monitor;
mod own_process;
mod serve;
mod setup;
mod terms;
#[cfg(feature = "tracing")]
mod traced;
mod worker;

use crate::address::Identity;
use crate::arrival::Admit;
use crate::child::Child;
use crate::context::Control;
use crate::control::Failure;
use crate::engine::Engine;
use crate::error::Context as _;
use crate::event::Observer;
use crate::exit::Exit;
use crate::listener::{self, Bound, Listener};
use crate::password;
use crate::prefork::Prefork;
use crate::scoreboard::MAX_WORKERS;
use crate::service::Service;
use crate::sys::file::FileId;
use crate::sys::{fdtable, process};
use crate::{Address, Fault, Limits, Resource, ServerHandle, Signal, StartError, Wait};
use std::any::Any;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread that has just been joined may take to be gone.
const THREAD_PATIENCE: Duration = Duration::from_millis(20);
/// Signals that cannot be handled, and why.
const FORBIDDEN: [(Signal, &str); 7] = [
    (Signal::SIGKILL, "the kernel does not allow it"),
    (Signal::SIGSTOP, "the kernel does not allow it"),
    (Signal::SIGILL, "it means that the process is broken"),
    (Signal::SIGFPE, "it means that the process is broken"),
    (Signal::SIGSEGV, "it means that the process is broken"),
    (Signal::SIGBUS, "it means that the process is broken"),
    (Signal::SIGIO, "it is the dead-man switch"),
];

type Hook<R> = Arc<dyn Fn(&Control) -> R + Send + Sync>;
type StateBox = Box<dyn Any + Send + Sync>;

/// The definition of a server. [`Server::start`] forks a process that is one.
///
/// ```no_run
/// use forkserver::Server;
///
/// fn main() -> forkserver::Result<()> {
///     let server = Server::new()
///         .handle("hello", |_, (first, last): (String, String)| Ok(format!("Hello {first} {last}")))
///         .start()?;
///     let mut client = server.connect()?;
///     let reply: String = client.call("hello", &("Joe", "Dalton"))?;
///     assert_eq!(reply, "Hello Joe Dalton");
///     server.stop()?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
#[must_use = "a definition does nothing until it is started"]
pub struct Server {
    service: Service,
    /// Empty: a private one.
    listeners: Vec<Listener>,
    engine: Engine,
    prefork: Option<Prefork>,
    wait: Wait,
    limits: Arc<Limits>,
    before_fork: Vec<Arc<dyn Fn() -> Result<(), Fault> + Send + Sync>>,
    /// What the crate itself does before `initialize`.
    prepare: Vec<Hook<Result<StateBox, Failure>>>,
    initialize: Vec<Hook<Result<StateBox, Fault>>>,
    worker_started: Vec<Hook<Result<StateBox, Fault>>>,
    worker_exiting: Vec<Hook<()>>,
    finalize: Vec<Hook<()>>,
    signals: Vec<(Signal, Hook<()>)>,
    admit: Vec<Admit>,
    close_on_error: bool,
    observer: Observer,
    become_user: Option<(u32, u32)>,
    directory: Option<PathBuf>,
    umask: Option<u32>,
    /// Resources, and how much of each.
    rlimits: Vec<(Resource, u64)>,
    /// Numbers, and what they were open for.
    keep: Vec<(RawFd, Option<FileId>)>,
    process_name: Option<String>,
    own_group: bool,
    grace: Duration,
    start_timeout: Duration,
}

impl Default for Server {
    fn default() -> Server {
        Server {
            service: Service::default(),
            listeners: Vec::new(),
            engine: Engine::default(),
            prefork: None,
            wait: Wait::default(),
            limits: Arc::default(),
            before_fork: Vec::new(),
            prepare: Vec::new(),
            initialize: Vec::new(),
            worker_started: Vec::new(),
            worker_exiting: Vec::new(),
            finalize: Vec::new(),
            signals: Vec::new(),
            admit: Vec::new(),
            close_on_error: false,
            observer: Observer::default(),
            become_user: None,
            directory: None,
            umask: None,
            rlimits: Vec::new(),
            keep: Vec::new(),
            process_name: None,
            own_group: true,
            grace: Duration::from_secs(4),
            start_timeout: Duration::from_secs(30),
        }
    }
}

/// How it lives. Hooks of a kind run in the order in which they were given.
impl Server {
    /// Runs in the owner, before anything of the server exists. An error is the start's.
    pub fn before_fork(
        mut self,
        hook: impl Fn() -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Server {
        self.before_fork.push(Arc::new(hook));
        self
    }

    /// Runs in the server before any client can connect. Handlers find the value that it returns as
    /// [`Context::state`](crate::Context::state). An error fails the start, with its text.
    pub fn initialize<T: Any + Send + Sync>(
        mut self,
        hook: impl Fn(&Control) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Server {
        self.initialize.push(Arc::new(move |control| {
            Ok(Box::new(hook(control)?) as StateBox)
        }));
        self
    }

    /// Runs in each worker before it serves, and in a server that has none in its own process, behind `initialize`. Handlers
    /// find the value that it returns as [`Context::worker_state`](crate::Context::worker_state): what a fork must not
    /// share, such as connections to elsewhere. An error fails the start, with its text; of a worker that is started later,
    /// it is told as [`PoolEvent::NotStarted`](crate::PoolEvent::NotStarted), and nobody takes its place before the next
    /// reload. A panic counts as a death.
    pub fn worker_started<T: Any + Send + Sync>(
        mut self,
        hook: impl Fn(&Control) -> Result<T, Fault> + Send + Sync + 'static,
    ) -> Server {
        self.worker_started.push(Arc::new(move |control| {
            Ok(Box::new(hook(control)?) as StateBox)
        }));
        self
    }

    /// Runs in each worker after its last call was answered, and in a server that has none before `finalize`. Not after
    /// `kill -9`, nor when the grace is over.
    pub fn worker_exiting(mut self, hook: impl Fn(&Control) + Send + Sync + 'static) -> Server {
        self.worker_exiting.push(Arc::new(hook));
        self
    }

    /// Runs in the server after the last call was answered. Not after `kill -9`, nor when the grace is over.
    pub fn finalize(mut self, hook: impl Fn(&Control) + Send + Sync + 'static) -> Server {
        self.finalize.push(Arc::new(hook));
        self
    }

    /// How long calls in progress may go on after the last owner has gone, or a signal has come. Default 4 s.
    /// Whatever still runs then is killed.
    pub fn grace(mut self, grace: Duration) -> Server {
        self.grace = grace;
        self
    }

    /// How long the server may take to be ready. Default 30 s.
    pub fn start_timeout(mut self, timeout: Duration) -> Server {
        self.start_timeout = timeout;
        self
    }
}

/// Go.
impl Server {
    /// Forks a server, and returns when clients can connect.
    ///
    /// # Errors
    /// This process has more than one thread; the definition is wrong; a hook failed; the system refused
    /// something; the server was not ready in time. Nothing is left of the server then.
    pub fn start(&self) -> Result<ServerHandle, StartError> {
        match process::other_threads(THREAD_PATIENCE) {
            Some(threads) => Err(StartError::MultiThreaded { threads }),
            None => self.fork(true),
        }
    }

    /// Forks a server whatever threads this process has.
    ///
    /// # Safety
    /// No other thread may hold a lock, at any time during this call, that handlers or hooks of the server will
    /// want: of standard output, of the environment, of any `Mutex` they reach. They would wait for ever.
    ///
    /// # Errors
    /// As [`Server::start`], but for the threads.
    #[expect(
        unsafe_code,
        reason = "the caller must promise something; the operation itself is in `sys`"
    )]
    pub unsafe fn start_unchecked(&self) -> Result<ServerHandle, StartError> {
        self.fork(false)
    }

    /// Serves in this process, until a handler or hook calls [`Control::stop`] or INT or TERM comes. Signals are
    /// then as they were.
    ///
    /// The process keeps its signals, so that nothing ends the last `close` of a socket that a client has sent and that
    /// lingers (`SO_LINGER`): it has a thread for as long as the client likes, also after this has returned.
    ///
    /// # Errors
    /// As [`Server::start`], but any number of threads is fine.
    pub fn run(&self) -> Result<Exit, StartError> {
        self.check()?;
        let (bound, _) = listener::bind_all(&self.all_listeners())?;
        setup::run_here(self, bound)
    }

    /// `alone`: this process has no other threads.
    fn fork(&self, alone: bool) -> Result<ServerHandle, StartError> {
        self.check()?;
        for hook in &self.before_fork {
            hook().map_err(|fault| StartError::Hook {
                hook: "before_fork".into(),
                message: fault.text(),
            })?;
        }
        password::prepare_to_reseed();
        let standard = fdtable::occupy_standard().start("open /dev/null")?;
        let (bound, footprints) = listener::bind_all(&self.listeners())?;
        let place = |bound: &Bound| (bound.place(), bound.is_native());
        let places: Vec<_> = bound.iter().map(place).collect();
        let child = Child::spawn(alone, |ties| setup::serve_as_child(self, bound, ties));
        drop(standard);
        let child = match child.start("fork") {
            Ok(child) => child,
            Err(err) => {
                footprints.remove();
                return Err(err);
            }
        };
        let uid = match self.become_user {
            Some((uid, _)) => uid,
            None => process::effective_user(),
        };
        let identity = Identity {
            pid: child.pid,
            uid,
            inode: child.identity(),
        };
        let deadline = Instant::now().checked_add(self.start_timeout);
        match setup::next_report(&child, self.start_timeout, deadline) {
            Ok(_) => {
                let address =
                    |((name, path, password), is_native): ((Arc<str>, PathBuf, _), bool)| {
                        let address = Address {
                            path: path.into(),
                            password,
                            identity,
                            has_workers: is_native && self.prefork.is_some(),
                        };
                        (name.to_string(), address)
                    };
                let addresses = places.into_iter().map(address).collect();
                Ok(ServerHandle::new(child, addresses, footprints, self.grace))
            }
            Err(err) => {
                // The error is what the caller should know; a child that cannot be killed has its lifeline's end.
                let _ = child.kill(self.grace);
                footprints.remove();
                Err(err)
            }
        }
    }

    /// Runs in the server before the `initialize` hooks, as they do.
    pub(crate) fn prepare(
        mut self,
        hook: impl Fn(&Control) -> Result<StateBox, Failure> + Send + Sync + 'static,
    ) -> Server {
        self.prepare.push(Arc::new(hook));
        self
    }

    /// Its listeners, which must be of use to the user that the server becomes.
    fn listeners(&self) -> Vec<Listener> {
        let all = self.all_listeners().into_iter();
        all.map(|listener| listener.or_for_user(self.become_user))
            .collect()
    }

    fn all_listeners(&self) -> Vec<Listener> {
        match &self.listeners[..] {
            [] => vec![Listener::private()],
            some => some.to_vec(),
        }
    }

    fn check(&self) -> Result<(), StartError> {
        if let Some(name) = self.service.duplicate() {
            return Err(StartError::DuplicateHandler { name: name.into() });
        }
        if let Some(name) = self.service.too_long() {
            return Err(StartError::NameTooLong { name: name.into() });
        }
        for (place, listener) in self.listeners.iter().enumerate() {
            let is_same = |other: &Listener| other.name == listener.name;
            if self.listeners[..place].iter().any(is_same) {
                let name = listener.name.to_string();
                return Err(StartError::DuplicateListener { name });
            }
            if let Some(name) = listener.names().find(|name| !self.service.has(name)) {
                return Err(StartError::NoSuchHandler { name: name.clone() });
            }
        }
        if let Some(name) = self
            .service
            .restricted()
            .find(|name| !self.service.has(name))
        {
            return Err(StartError::NoSuchHandler { name: name.clone() });
        }
        let of_listeners = self.listeners.iter().filter_map(Listener::own_limits);
        for limits in of_listeners.chain([&self.limits]) {
            let (low, high) = (limits.low_watermark, limits.high_watermark);
            if low > high {
                return Err(StartError::Watermarks(low, high));
            }
        }
        if let Some(Prefork { workers, .. }) = self.prefork {
            if !(1..=MAX_WORKERS).contains(&workers) {
                return Err(StartError::WorkerCount(workers));
            }
        }
        for (fd, id) in &self.keep {
            if id.is_none() || fdtable::open_file(*fd) != *id {
                return Err(StartError::KeptFdClosed { fd: *fd });
            }
        }
        for (signal, _) in &self.signals {
            if let Some((_, reason)) = FORBIDDEN.iter().find(|(forbidden, _)| forbidden == signal) {
                return Err(StartError::ForbiddenSignal {
                    signal: *signal,
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Those that its process takes: with workers, it passes on those that have handlers.
    fn taken_signals(&self) -> Vec<i32> {
        let own = [Signal::SIGHUP, Signal::SIGTTIN, Signal::SIGTTOU];
        let own = own.iter().filter(|_| self.prefork.is_some());
        let mut numbers = self.handled_signals();
        numbers.extend(own.map(|signal| *signal as i32));
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Those that have handlers.
    fn handled_signals(&self) -> Vec<i32> {
        let mut numbers: Vec<i32> = self
            .signals
            .iter()
            .map(|(signal, _)| *signal as i32)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listeners", &self.listeners)
            .field("engine", &self.engine)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
