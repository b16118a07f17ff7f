//! A running server, seen from its owner.
//!
//! Invariant: whether the server lives is asked of the kernel, never of a flag. Dropped in the process that made
//! it, a handle stops the server; in a forked copy of that process it only closes.

mod hearing;

use self::hearing::Hearing;
use crate::child::Child;
use crate::control::{Order, Refusal, Request};
use crate::exit::Exit;
use crate::listener::Footprints;
use crate::password::Secret;
use crate::sys::{process, socket};
use crate::{
    Address, Client, ConnectError, ControlError, Fd, Password, PoolEvent, Status, StopError,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a server may take to stop before it is killed: the original's figure.
const PATIENCE: Duration = Duration::from_secs(4);

/// A running server, seen from its owner. Dropping it stops the server.
///
/// As a descriptor it is the server's pidfd: readable when the server has ended.
#[derive(Debug)]
#[must_use = "dropping the handle stops the server"]
pub struct ServerHandle {
    child: Option<Child>,
    /// By listener; there is at least one.
    addresses: Vec<(String, Address)>,
    /// What the owner's own connections say: the first listener's password at the start.
    password: Password,
    footprints: Footprints,
    grace: Duration,
    generation: u32,
    hearing: Hearing,
}

impl ServerHandle {
    pub(crate) fn new(
        child: Child,
        addresses: Vec<(String, Address)>,
        footprints: Footprints,
        grace: Duration,
    ) -> ServerHandle {
        ServerHandle {
            child: Some(child),
            password: addresses[0].1.password.clone(),
            addresses,
            footprints,
            grace,
            generation: process::generation(),
            hearing: Hearing::default(),
        }
    }

    /// Where clients find the server: its first listener.
    pub fn address(&self) -> &Address {
        &self.addresses[0].1
    }

    /// Where clients find the listener of that name.
    pub fn address_of(&self, listener: &str) -> Option<&Address> {
        let found = self.addresses.iter().find(|(name, _)| name == listener);
        found.map(|(_, address)| address)
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.child().pid
    }

    /// Whether the server's process lives.
    pub fn is_running(&self) -> bool {
        self.try_wait().is_none()
    }

    /// A connection to the server. It needs no path: it also works after this process has changed its user, its
    /// root directory or its mount namespace.
    ///
    /// # Errors
    /// The server is gone, or there are no descriptors left.
    pub fn connect(&self) -> Result<Client, ConnectError> {
        if !self.is_ours() {
            return Err(ConnectError::WrongProcess);
        }
        let failed = |action| move |source| ConnectError::Io { action, source };
        let (ours, theirs) = socket::stream_pair().map_err(failed("make a pair of sockets"))?;
        let order = Order::Serve(Fd::from(theirs));
        match self
            .child()
            .control
            .send(&order, Some(Instant::now() + PATIENCE))
        {
            Ok(()) => {
                let mut client = Client::over(ours, self.password.clone());
                // Whoever serves it may leave; there are others behind any listener of ours.
                let mut homes = self.addresses.iter().map(|(_, address)| address);
                let home = homes.find(|address| address.has_workers);
                client.is_at(home.unwrap_or(self.address()));
                Ok(client)
            }
            Err(err) if is_gone(&err) => Err(ConnectError::NotRunning {
                path: self.address().path().into(),
            }),
            Err(err) if err.kind() == io::ErrorKind::TimedOut => {
                Err(ConnectError::TimedOut(PATIENCE))
            }
            Err(source) => Err(ConnectError::Io {
                action: "hand a connection to the server",
                source,
            }),
        }
    }

    /// What the server is doing.
    ///
    /// # Errors
    /// The server is gone, or does not answer within 4 s: a handler of a signal or a hook keeps its control thread.
    pub fn status(&self) -> Result<Status, ControlError> {
        self.ask(Request::Status, Some(PATIENCE))
    }

    /// How many connections may be served at a time; `None`: as many as the definition allows, which is the most.
    /// `Some(0)`: none. Connections that there are go on. Returns when the server has confirmed.
    ///
    /// # Errors
    /// As [`ServerHandle::status`].
    pub fn set_max_connections(&self, count: Option<usize>) -> Result<(), ControlError> {
        self.ask(Request::SetMaxConnections(count), Some(PATIENCE))
            .map(drop)
    }

    /// Has nobody accepted until [`ServerHandle::resume`]: those that come wait, those that there are go on, and
    /// [`ServerHandle::connect`] still works. Returns when the server has confirmed.
    ///
    /// # Errors
    /// As [`ServerHandle::status`].
    pub fn pause(&self) -> Result<(), ControlError> {
        self.ask(Request::Pause, Some(PATIENCE)).map(drop)
    }

    /// Ends a [`ServerHandle::pause`]. Returns when the server has confirmed.
    ///
    /// # Errors
    /// As [`ServerHandle::status`].
    pub fn resume(&self) -> Result<(), ControlError> {
        self.ask(Request::Resume, Some(PATIENCE)).map(drop)
    }

    /// Lets nobody in through a listener until [`ServerHandle::start_listener`]: its socket's file is renamed (to
    /// `<name>.stopped`), those who wait in its backlog are turned away, those who came through it before may finish
    /// what is under way, for the server's grace, and its streams are told to stop. Other listeners, and this handle's
    /// own connections, go on. Returns when the server has confirmed that nobody comes in.
    ///
    /// # Errors
    /// As [`ServerHandle::status`], and [`ControlError::NoSuchListener`].
    pub fn stop_listener(&self, name: &str) -> Result<(), ControlError> {
        self.ask(Request::StopListener(name.into()), Some(PATIENCE))
            .map(drop)
    }

    /// Lets clients in again through a listener that was stopped, at the same address. Returns when they can connect.
    ///
    /// # Errors
    /// As [`ServerHandle::stop_listener`], and [`ControlError::NotStarted`].
    pub fn start_listener(&self, name: &str) -> Result<(), ControlError> {
        self.ask(Request::StartListener(name.into()), Some(PATIENCE))
            .map(drop)
    }

    /// Gives a listener another password, which all clients need that it accepts from now on, those who wait in its
    /// backlog among them; sessions go on, and [`ServerHandle::connect`] works as before. Returns when the server has
    /// confirmed: from then on [`ServerHandle::address_of`] has the new password. Addresses that were saved or handed
    /// on are of no use any more; other owners have to be told.
    ///
    /// ```no_run
    /// # use forkserver::{Password, Server};
    /// # fn main() -> forkserver::Result<()> {
    /// let mut server = Server::new().start()?;
    /// server.rotate_password("default", Password::generate()?)?;
    /// server.address().save("/run/user/1000/greeter.address")?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`ServerHandle::stop_listener`]. Unless there is no such listener, nobody knows then which password holds.
    pub fn rotate_password(
        &mut self,
        listener: &str,
        password: Password,
    ) -> Result<(), ControlError> {
        let secret = Secret(password.clone());
        let request = Request::RotatePassword(listener.into(), secret);
        self.ask(request, Some(PATIENCE))?;
        let mut addresses = self.addresses.iter_mut();
        if let Some((_, address)) = addresses.find(|(name, _)| name == listener) {
            address.password = password;
        }
        Ok(())
    }

    /// How many workers there shall be, 1 to 255. Those that are too many finish what they have begun. Returns when the server
    /// has taken note of it.
    ///
    /// # Errors
    /// As [`ServerHandle::status`]; [`ControlError::NoWorkers`], [`ControlError::WorkerCount`].
    pub fn set_workers(&self, count: usize) -> Result<(), ControlError> {
        self.ask(Request::SetWorkers(count), Some(PATIENCE))
            .map(drop)
    }

    /// Replaces all workers by new ones, one after the other: each finishes what it has begun, for the server's
    /// [grace](crate::Server::grace), and leaves when its successor serves, so that no call is lost that takes less. Streams are told
    /// to stop. [`Server::worker_started`](crate::Server::worker_started) runs once more in each,
    /// `initialize` does not. Returns when all are new.
    ///
    /// # Errors
    /// As [`ServerHandle::status`], but however long it takes; [`ControlError::NoWorkers`];
    /// [`ControlError::NotReloaded`]: one of the new ones does not serve; the others stay.
    pub fn reload(&self) -> Result<(), ControlError> {
        self.ask(Request::Reload, None).map(drop)
    }

    fn ask(&self, request: Request, patience: Option<Duration>) -> Result<Status, ControlError> {
        if !self.is_ours() {
            return Err(ControlError::WrongProcess);
        }
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let number = self.hearing.expect();
        let order = Order::Ask { number, request };
        let line = &self.child().control;
        let sent = line.send(&order, deadline);
        let answer = sent.and_then(|()| self.hearing.answer(number, line, deadline));
        self.hearing.forget(number);
        answer.map_err(failed)?.map_err(|refusal| match refusal {
            Refusal::NoSuchListener(name) => ControlError::NoSuchListener(name),
            Refusal::NotStarted(name) => ControlError::NotStarted(name),
            Refusal::NoWorkers => ControlError::NoWorkers,
            Refusal::WorkerCount(count) => ControlError::WorkerCount(count),
            Refusal::NotReloaded => ControlError::NotReloaded,
        })
    }

    /// Waits for what the server tells its owner by itself, which is about its [workers](crate::Server::prefork):
    /// [`PoolEvent::CrashLoop`], [`PoolEvent::Recovered`] and [`PoolEvent::NotStarted`]. All that happens to them is in
    /// [`ServerHandle::status`]. `None`: nothing came within `timeout`, which may be zero, or without end. Each event is given once,
    /// to one of the threads that wait; 64 are kept for one that comes late.
    ///
    /// ```no_run
    /// # use forkserver::{PoolEvent, Prefork, Server};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = Server::new().prefork(Prefork::new(4)).start()?;
    /// while let Some(event) = server.next_event(Some(Duration::from_secs(60)))? {
    ///     if let PoolEvent::CrashLoop { deaths } = event {
    ///         return Err(format!("{deaths} workers in a row have died young").into());
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The server is gone, and has told nothing else.
    pub fn next_event(&self, timeout: Option<Duration>) -> Result<Option<PoolEvent>, ControlError> {
        if !self.is_ours() {
            return Err(ControlError::WrongProcess);
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        match self.hearing.event(&self.child().control, deadline) {
            Ok(event) => Ok(Some(event)),
            Err(err) if err.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(err) => Err(failed(err)),
        }
    }

    /// Another share in the server's life: it lives for as long as this handle, or any share, is open anywhere.
    /// Hand it to another process; closing it gives the share up.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.child().share()
    }

    /// Stops the server, whoever else has a share in it: calls in progress are answered, up to 4 s, then it is
    /// killed. The socket is gone when this returns.
    ///
    /// # Errors
    /// It cannot be stopped, or this handle is a forked copy.
    pub fn stop(self) -> Result<Exit, StopError> {
        self.stop_within(PATIENCE)
    }

    /// As [`ServerHandle::stop`], but the server is killed after `patience`. One with workers has up to a second more then, in
    /// which it kills those.
    ///
    /// # Errors
    /// As [`ServerHandle::stop`].
    pub fn stop_within(mut self, patience: Duration) -> Result<Exit, StopError> {
        self.halt(patience)
    }

    /// Kills the server at once.
    ///
    /// # Errors
    /// As [`ServerHandle::stop`].
    pub fn kill(mut self) -> Result<Exit, StopError> {
        let (grace, kill) = (self.grace, self.how_to_kill());
        self.end("kill the server", grace, |child, _| kill(child, grace))
    }

    /// Gives up this owner's share only: the server lives for as long as somebody else has one.
    pub fn release(mut self) {
        if let Some(child) = self.child.take() {
            child.release();
        }
    }

    /// Waits until the server has ended, which it does not do by itself.
    pub fn wait(&self) -> Exit {
        loop {
            match self.child().wait(None) {
                Ok(Some(exit)) => return exit,
                Ok(None) => {}
                // It is gone, and nothing more is to be learnt.
                Err(_) => return Exit::Unknown,
            }
        }
    }

    /// How the server has ended, if it has.
    pub fn try_wait(&self) -> Option<Exit> {
        self.child().wait(Some(Instant::now())).unwrap_or(None)
    }

    /// One that has workers kills those first, so that they need not find out that nobody owns them.
    fn how_to_kill(&self) -> fn(Child, Duration) -> io::Result<Option<Exit>> {
        let mut addresses = self.addresses.iter();
        match addresses.any(|(_, address)| address.has_workers) {
            true => Child::kill_with_children,
            false => Child::kill,
        }
    }

    fn halt(&mut self, patience: Duration) -> Result<Exit, StopError> {
        let (grace, kill) = (self.grace, self.how_to_kill());
        let at_most = patience.saturating_add(grace);
        self.end("stop the server", at_most, |child, footprints| {
            let kill = |child| kill(child, grace);
            child.stop(patience, kill, || {
                // The last descriptor of a removed directory makes the file system forget it, which takes as long
                // as the server takes to end.
                footprints.forget_gone();
            })
        })
    }

    fn end(
        &mut self,
        action: &'static str,
        patience: Duration,
        end: impl FnOnce(Child, &mut Footprints) -> io::Result<Option<Exit>>,
    ) -> Result<Exit, StopError> {
        if !self.is_ours() {
            return Err(StopError::WrongProcess);
        }
        let Some(child) = self.child.take() else {
            return Ok(Exit::Unknown);
        };
        let exit =
            end(child, &mut self.footprints).map_err(|source| StopError::Io { action, source })?;
        let exit = exit.ok_or(StopError::StillRunning(patience))?;
        // The server removes its own, unless it was killed.
        std::mem::take(&mut self.footprints).remove();
        Ok(exit)
    }

    fn is_ours(&self) -> bool {
        self.generation == process::generation()
    }

    fn child(&self) -> &Child {
        self.child
            .as_ref()
            .expect("only the methods that consume the handle take the child")
    }
}

fn failed(err: io::Error) -> ControlError {
    match err.kind() {
        io::ErrorKind::TimedOut => ControlError::TimedOut(PATIENCE),
        _ if is_gone(&err) => ControlError::NotRunning,
        _ => ControlError::Io {
            action: "ask the server",
            source: err,
        },
    }
}

/// The server's end of a line is closed.
fn is_gone(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        if self.child.is_some() && self.is_ours() {
            // Whoever wants to know calls `stop`.
            let _ = self.halt(PATIENCE);
        }
    }
}

impl AsFd for ServerHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child().as_fd()
    }
}
