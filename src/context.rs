//! What surrounds one call: who called, how long the caller waits, and what the server has prepared.
//!
//! Invariant: a handler reaches its server through this value alone.

use crate::event::Observer;
use crate::gate::{Gate, Status};
use crate::protocol::server::Close;
use crate::sys::linger::Socket;
use crate::sys::poll::{self, Waker};
use crate::sys::socket::{self, Credentials};
use crate::{Address, Password};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
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

/// The server, as its handlers and hooks see it. Cheap to clone, and of use from any thread.
#[derive(Clone, Debug)]
pub struct Control(Arc<ControlState>);

#[derive(Debug)]
struct ControlState {
    /// By listener, as it was at the start.
    addresses: Vec<(Arc<str>, Address)>,
    /// By listener, as it is now.
    passwords: Vec<Mutex<Arc<Password>>>,
    states: OnceLock<States>,
    gate: Gate,
    observer: Observer,
    waker: Waker,
    stop: AtomicBool,
    stopping: AtomicBool,
}

impl Control {
    /// The control of a server with these listeners, of which there is at least one.
    pub(crate) fn new(
        addresses: Vec<(Arc<str>, Address)>,
        gate: Gate,
        observer: Observer,
    ) -> io::Result<Control> {
        let (stop, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        let password = |(_, address): &(_, Address)| Mutex::new(Arc::new(address.password.clone()));
        Ok(Control(Arc::new(ControlState {
            passwords: addresses.iter().map(password).collect(),
            addresses,
            states: OnceLock::new(),
            gate,
            observer,
            waker: Waker::new()?,
            stop,
            stopping,
        })))
    }

    /// Stops the server as [`ServerHandle::stop`](crate::ServerHandle::stop) does. Returns at once.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether the server has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// How many connections may be served at a time; `None`: as many as the definition allows, which is the most.
    /// `Some(0)`: none. Connections that there are go on.
    pub fn set_max_connections(&self, count: Option<usize>) {
        self.0.gate.set_max_connections(count);
    }

    /// Accepts nobody until [`Control::resume`]. Connections that there are go on; those that come wait.
    pub fn pause(&self) {
        self.0.gate.set_paused(true);
    }

    /// Accepts again.
    pub fn resume(&self) {
        self.0.gate.set_paused(false);
    }

    /// What the server is doing.
    pub fn status(&self) -> Status {
        self.0.gate.status()
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.0.observer
    }

    /// Lets nobody in through a listener until [`Control::start_listener`]: see
    /// [`ServerHandle::stop_listener`](crate::ServerHandle::stop_listener). Returns at once. `false`: there is none of
    /// that name.
    pub fn stop_listener(&self, name: &str) -> bool {
        self.set_stopped(name, true)
    }

    /// Lets clients in again through a listener that was stopped. Returns at once. `false`: there is none of that
    /// name.
    pub fn start_listener(&self, name: &str) -> bool {
        self.set_stopped(name, false)
    }

    fn set_stopped(&self, listener: &str, stopped: bool) -> bool {
        let known = self.0.gate.set_stopped(listener, stopped);
        // The control thread does it, so that it is done also while all others are busy.
        self.wake();
        known
    }

    /// Gives a listener another password, which all clients need that it accepts from now on; sessions go on, and an
    /// owner's [`connect`](crate::ServerHandle::connect) works as before. The owner's handle does not learn of it: see
    /// [`ServerHandle::rotate_password`](crate::ServerHandle::rotate_password). `false`: there is no listener of that
    /// name.
    pub fn rotate_password(&self, listener: &str, password: Password) -> bool {
        let index = self.index_of(listener);
        if let Some(index) = index {
            *self.lock_password(index) = Arc::new(password);
        }
        index.is_some()
    }

    /// Where clients find this server: its first listener.
    pub fn address(&self) -> Address {
        self.address_at(0)
    }

    /// Where clients find a listener of that name.
    pub fn address_of(&self, listener: &str) -> Option<Address> {
        self.index_of(listener).map(|index| self.address_at(index))
    }

    /// Where clients found each listener at the start, as far as its owner knows.
    pub(crate) fn addresses(&self) -> &[(Arc<str>, Address)] {
        &self.0.addresses
    }

    /// What clients of a listener need now.
    pub(crate) fn password(&self, listener: usize) -> Arc<Password> {
        Arc::clone(&self.lock_password(listener))
    }

    fn index_of(&self, listener: &str) -> Option<usize> {
        let mut names = self.0.addresses.iter().map(|(name, _)| name);
        names.position(|name| **name == *listener)
    }

    fn address_at(&self, listener: usize) -> Address {
        let (_, address) = &self.0.addresses[listener];
        Address {
            path: address.path.clone(),
            password: (*self.password(listener)).clone(),
            identity: address.identity,
        }
    }

    fn lock_password(&self, listener: usize) -> MutexGuard<'_, Arc<Password>> {
        self.0.passwords[listener]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What an [`initialize`](crate::Server::initialize) hook returned: `None` if no hook returned a `T`, or the
    /// hooks are not through yet.
    pub fn state<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.states.get()?.get()
    }

    /// Called once, when all hooks are through.
    pub(crate) fn set_states(&self, states: States) {
        let _ = self.0.states.set(states);
    }

    pub(crate) fn stop_is_wanted(&self) -> bool {
        self.0.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn set_stopping(&self) {
        self.0.stopping.store(true, Ordering::SeqCst);
    }

    /// Makes the control thread look.
    pub(crate) fn wake(&self) {
        self.0.waker.wake();
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.0.waker
    }
}

/// The values that the `initialize` hooks returned, one of a type.
#[derive(Default)]
pub(crate) struct States(HashMap<TypeId, Box<dyn Any + Send + Sync>>);

impl std::fmt::Debug for States {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "States({})", self.0.len())
    }
}

impl States {
    /// A later value of the same type replaces an earlier one.
    pub(crate) fn insert(&mut self, state: Box<dyn Any + Send + Sync>) {
        self.0.insert((*state).type_id(), state);
    }

    fn get<T: Any>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
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
    /// before the connection's next call.
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
