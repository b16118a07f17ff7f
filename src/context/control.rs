//! The server, seen from inside: from its handlers and hooks.
//!
//! Invariant: what is said here holds for the whole server. A worker does it at once, and has the monitor tell the others.

use crate::control::{Refusal, Request, Wish};
use crate::event::Observer;
use crate::gate::{Gate, Status};
use crate::password::Secret;
use crate::scoreboard::{Fate, MAX_WORKERS, Region};
use crate::sys::poll::Waker;
use crate::worker::Worker;
use crate::{Address, Password};
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// The server, as its handlers and hooks see it: all of it, whatever worker they are in. Cheap to clone, and of use from any thread.
#[derive(Clone, Debug)]
pub struct Control(Arc<ControlState>);

#[derive(Debug)]
struct ControlState {
    /// By listener, as it was at the start.
    addresses: Vec<(Arc<str>, Address)>,
    /// By listener, as it is now.
    passwords: Vec<Mutex<Arc<Password>>>,
    states: OnceLock<States>,
    worker_states: OnceLock<States>,
    /// Which worker this is, if it is one.
    worker: OnceLock<Worker>,
    /// What a worker wants of its monitor.
    wishes: Mutex<Vec<Wish>>,
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
            worker_states: OnceLock::new(),
            worker: OnceLock::new(),
            wishes: Mutex::default(),
            gate,
            observer,
            waker: Waker::new()?,
            stop,
            stopping,
        })))
    }

    /// Stops the server as [`ServerHandle::stop`](crate::ServerHandle::stop) does. Returns at once.
    pub fn stop(&self) {
        if self.worker().is_some() {
            self.wish(Wish::Stop);
        } else {
            self.0.stop.store(true, Ordering::SeqCst);
            self.wake();
        }
    }

    /// Whether the server has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::SeqCst)
    }

    /// How many connections may be served at a time; `None`: as many as the definition allows, which is the most.
    /// `Some(0)`: none. Connections that there are go on.
    pub fn set_max_connections(&self, count: Option<usize>) {
        self.0.gate.set_max_connections(count);
        self.pass_on(|| Request::SetMaxConnections(count));
    }

    /// Accepts nobody until [`Control::resume`]. Connections that there are go on; those that come wait.
    pub fn pause(&self) {
        self.0.gate.set_paused(true);
        self.pass_on(|| Request::Pause);
    }

    /// Accepts again.
    pub fn resume(&self) {
        self.0.gate.set_paused(false);
        self.pass_on(|| Request::Resume);
    }

    /// What the server is doing; in a worker, what that is doing, and the whole pool.
    pub fn status(&self) -> Status {
        let mut status = self.0.gate.status();
        let board = self.0.gate.counts().board();
        status.pool = board.has_head().then(|| board.status());
        status
    }

    /// How many workers there shall be, 1 to 255. Returns at once. `false`: the server has none, or that is no number of
    /// workers.
    pub fn set_workers(&self, count: usize) -> bool {
        let is_known = self.worker().is_some() && (1..=MAX_WORKERS).contains(&count);
        if is_known {
            self.wish(Wish::Do(Request::SetWorkers(count)));
        }
        is_known
    }

    /// Replaces all workers, one after the other: see [`ServerHandle::reload`](crate::ServerHandle::reload). Returns at once.
    /// `false`: the server has none.
    pub fn reload(&self) -> bool {
        let is_known = self.worker().is_some();
        if is_known {
            self.wish(Wish::Do(Request::Reload));
        }
        is_known
    }

    /// What became of a client's connection: see [`Board::fate`](crate::scoreboard::Board::fate).
    pub(crate) fn fate(&self, tag: u64, generation: u32) -> Fate {
        self.0.gate.counts().board().fate(tag, generation)
    }

    /// This process is a worker from now on: what it shares with others by the fork is made its own.
    pub(crate) fn become_worker(&self, worker: Worker, region: Region) -> io::Result<()> {
        let _ = self.0.worker.set(worker);
        self.0.waker.renew()?;
        self.0.gate.become_worker(region)
    }

    pub(crate) fn worker(&self) -> Option<Worker> {
        self.0.worker.get().copied()
    }

    /// Has the control thread tell the monitor.
    pub(crate) fn wish(&self, wish: Wish) {
        let mut wishes = self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        // One look is as good as two.
        let is_known = |known: &Wish| matches!((known, &wish), (Wish::Look, Wish::Look));
        if !wishes.iter().any(is_known) {
            wishes.push(wish);
        }
        drop(wishes);
        self.wake();
    }

    /// Has the other workers do what this one has done.
    fn pass_on(&self, request: impl FnOnce() -> Request) {
        if self.worker().is_some() {
            self.wish(Wish::Do(request()));
        }
    }

    pub(crate) fn take_wishes(&self) -> Vec<Wish> {
        let mut wishes = self.0.wishes.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *wishes)
    }

    /// Does what was asked for, as far as it can be done in one process and at once.
    pub(crate) fn comply(&self, request: &Request) -> Result<(), Refusal> {
        let gate = &self.0.gate;
        let listener = |name: &String, is_known: bool| match is_known {
            true => Ok(()),
            false => Err(Refusal::NoSuchListener(name.clone())),
        };
        match request {
            Request::Status => {}
            Request::SetMaxConnections(count) => gate.set_max_connections(*count),
            Request::Pause => gate.set_paused(true),
            Request::Resume => gate.set_paused(false),
            Request::RotatePassword(name, Secret(password)) => {
                listener(name, self.set_password(name, password))?;
            }
            Request::StopListener(name) => listener(name, gate.set_stopped(name, true))?,
            Request::StartListener(name) => listener(name, gate.set_stopped(name, false))?,
            Request::SetWorkers(_) | Request::Reload => return Err(Refusal::NoWorkers),
        }
        Ok(())
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
        if known {
            self.pass_on(|| match stopped {
                true => Request::StopListener(listener.into()),
                false => Request::StartListener(listener.into()),
            });
        }
        known
    }

    /// Gives a listener another password, which all clients need that it accepts from now on; sessions go on, and an
    /// owner's [`connect`](crate::ServerHandle::connect) works as before. The owner's handle does not learn of it: see
    /// [`ServerHandle::rotate_password`](crate::ServerHandle::rotate_password). `false`: there is no listener of that
    /// name.
    pub fn rotate_password(&self, listener: &str, password: Password) -> bool {
        let known = self.set_password(listener, &password);
        if known {
            self.pass_on(|| Request::RotatePassword(listener.into(), Secret(password)));
        }
        known
    }

    fn set_password(&self, listener: &str, password: &Password) -> bool {
        let index = self.index_of(listener);
        if let Some(index) = index {
            *self.lock_password(index) = Arc::new(password.clone());
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
            has_workers: address.has_workers,
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

    /// What a [`worker_started`](crate::Server::worker_started) hook returned: `None` if no hook returned a `T`, or
    /// the hooks are not through yet.
    pub fn worker_state<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.0.worker_states.get()?.get()
    }

    /// Called once, when all hooks are through.
    pub(crate) fn set_worker_states(&self, states: States) {
        let _ = self.0.worker_states.set(states);
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
