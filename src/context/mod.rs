//! What surrounds one call: who called, how long the caller waits, and what the server has prepared.
//!
//! Invariant: a handler reaches its server through this value alone.

mod control;

pub use self::control::Control;
pub(crate) use self::control::States;

use crate::protocol::server::Close;
use crate::sys::linger::Socket;
use crate::sys::poll;
use crate::sys::socket::{self, Credentials};
use crate::worker::Worker;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// The client of a connection, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Its process, 0 if that is in a pid namespace which the server cannot see. The process may have ended
    /// since, or passed the connection on.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

impl From<Credentials> for Peer {
    fn from(credentials: Credentials) -> Peer {
        Peer {
            pid: credentials.pid,
            uid: credentials.uid,
            gid: credentials.gid,
        }
    }
}

/// What surrounds one call.
///
/// The same value serves all calls of a connection, one after the other.
pub struct Context {
    control: Control,
    listener: Arc<str>,
    peer: Peer,
    session_id: u64,
    deadline: Option<Instant>,
    /// A descriptor of the connection, to see whether the client is still there.
    connection: Arc<Socket>,
    session: HashMap<TypeId, Box<dyn Any + Send>>,
    deferred: Vec<Box<dyn FnOnce() + Send>>,
    close: Option<Close>,
    /// Where the others see what this worker is doing.
    cell: Option<usize>,
    /// The number of the last call's name, if it has one, and its own.
    last_call: (Option<u32>, u32),
    /// Dropped when what has the connection for itself gives it back.
    held: Option<Box<dyn Any + Send>>,
}

impl Context {
    pub(crate) fn new(
        control: Control,
        listener: Arc<str>,
        peer: Peer,
        session_id: u64,
        connection: Arc<Socket>,
    ) -> Context {
        Context {
            control,
            listener,
            peer,
            session_id,
            deadline: None,
            connection,
            session: HashMap::new(),
            deferred: Vec::new(),
            close: None,
            cell: None,
            last_call: (None, 0),
            held: None,
        }
    }

    pub(crate) fn begin_call(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The handler may take until then.
    pub(crate) fn limit_deadline(&mut self, at: Instant) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
    }

    /// Who connected.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The name of the listener that the client connected to, `default` if it has no other.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// A number that no other connection to this server has or had.
    pub fn session_id(&self) -> u64 {
        self.session_id
    }

    /// When the caller stops waiting, if it said so, or the time is over that the handler
    /// [may take](crate::Restrictions::deadline), if that is earlier.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether nobody waits for the answer any more: the deadline has passed, or the client has hung up.
    ///
    /// Asks the kernel. A client that has only finished sending still waits.
    pub fn is_cancelled(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
            || poll::is_hung_up(self.connection.as_fd())
    }

    /// The server.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Which worker this is, if the server [has some](crate::Server::prefork).
    pub fn worker(&self) -> Option<Worker> {
        self.control.worker()
    }

    /// What a [`worker_started`](crate::Server::worker_started) hook returned in this worker.
    ///
    /// # Panics
    /// No hook returned a `T`. The caller gets this as [`CallError::Panicked`](crate::CallError::Panicked).
    pub fn worker_state<T: Any + Send + Sync>(&self) -> &T {
        match self.control.worker_state() {
            Some(state) => state,
            None => panic!(
                "no worker_started hook returned a {}",
                std::any::type_name::<T>()
            ),
        }
    }

    /// What an [`initialize`](crate::Server::initialize) hook returned.
    ///
    /// # Panics
    /// No hook returned a `T`. The caller gets this as [`CallError::Panicked`](crate::CallError::Panicked).
    pub fn state<T: Any + Send + Sync>(&self) -> &T {
        match self.control.state() {
            Some(state) => state,
            None => panic!(
                "no initialize hook returned a {}",
                std::any::type_name::<T>()
            ),
        }
    }

    /// A value of this connection, made by `Default` at the first use, kept from call to call, and dropped when
    /// the connection ends.
    ///
    /// # Panics
    /// Never, in truth: the value is found by its type.
    pub fn session<T: Any + Send + Default>(&mut self) -> &mut T {
        let value = self
            .session
            .entry(TypeId::of::<T>())
            .or_insert_with(|| Box::new(T::default()));
        value.downcast_mut().expect("a value is found by its type")
    }

    /// Has `task` done after the answer has been sent, or given up: in order, exactly once, on this thread and
    /// before the connection's next call. All tasks of a call together may take as long as the call itself before their worker
    /// counts as hung ([`call_timeout`](crate::Prefork::call_timeout)).
    pub fn defer(&mut self, task: impl FnOnce() + Send + 'static) {
        self.deferred.push(Box::new(task));
    }

    /// Has the connection closed when this call has been answered, or this stream: the answer, and those before it,
    /// leave first. Calls that have been sent behind it are refused as [`CallError::Closing`](crate::CallError::Closing).
    /// A stream's client that has not finished by then does not get its connection back. What is served in records of its
    /// own is closed by [`Session::close`](crate::Session::close).
    ///
    /// ```
    /// # use forkserver::Server;
    /// let server = Server::new().handle("bye", |ctx, (): ()| {
    ///     ctx.close();
    ///     Ok("see you")
    /// });
    /// ```
    pub fn close(&mut self) {
        self.close.get_or_insert(Close::Gracefully);
    }

    /// Ends the connection at once: the client sees its end, and gets neither the answer to this call nor what has not
    /// left yet of those before it. The handler goes on until it returns; [`Context::is_cancelled`] is true from now on,
    /// and a stream's channel is broken.
    pub fn close_now(&mut self) {
        self.close = Some(Close::Now);
        socket::shut_down(&*self.connection);
    }

    /// Says that the call goes on for a reason: it may take another [`call_timeout`](crate::Prefork::call_timeout) from now on
    /// before its worker counts as hung. Nothing happens without one.
    pub fn extend(&self) {
        if let Some(cell) = self.cell {
            self.control.gate().counts().extend(cell);
        }
    }

    /// A handler begins; `number` is its name's, if it has one.
    #[inline]
    pub(crate) fn begins(&mut self, number: Option<u32>, call: u32) {
        self.last_call = (number, call);
        self.cell = self.control.gate().counts().begin(number, call);
    }

    /// What the handler has put off is done now, which may take as long as the call.
    pub(crate) fn goes_on(&mut self) {
        let (number, call) = self.last_call;
        self.begins(number, call);
    }

    /// The handler has returned.
    #[inline]
    pub(crate) fn ends(&mut self) {
        if let Some(cell) = self.cell.take() {
            self.control.gate().counts().end(cell);
        }
    }

    /// Keeps something until the conversation is over that is about to begin.
    pub(crate) fn hold(&mut self, guard: Box<dyn Any + Send>) {
        self.held = Some(guard);
    }

    /// The conversation is over.
    pub(crate) fn let_go(&mut self) {
        self.held = None;
    }

    pub(crate) fn take_close(&mut self) -> Option<Close> {
        self.close.take()
    }

    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    pub(crate) fn take_deferred(&mut self) -> Vec<Box<dyn FnOnce() + Send>> {
        std::mem::take(&mut self.deferred)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("listener", &self.listener)
            .field("peer", &self.peer)
            .field("session_id", &self.session_id)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
