//! Listeners that a service manager has made, and hands to the program that it starts: sd_listen_fds(3).
//!
//! Invariant: the descriptors are taken once, by the process that they were meant for.

use super::Listener;
use crate::StartError;
use crate::sys::{fdtable, socket};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor, as sd-daemon.h has it.
const FIRST: RawFd = 3;

/// Somebody has taken them, in this process or one of which it is a forked copy.
static TAKEN: AtomicBool = AtomicBool::new(false);

impl Listener {
    /// The listeners that the service manager has made for this process, by socket activation: `LISTEN_PID` is this
    /// process, `LISTEN_FDS` says how many there are, from descriptor 3 on, and `LISTEN_FDNAMES` gives their names; one
    /// alone without a name is `default`, others are `fd3` and so on. Otherwise each is as one made by
    /// [`Listener::from_fd`]. None if there are none, or they have been taken already. They are not passed on to
    /// programs that this one executes.
    ///
    /// The variables stay, because changing them is unsafe in a program with threads; a program that this one executes
    /// sees another `LISTEN_PID` than its own. A server attests itself when it starts: clients need its
    /// [`Address`](crate::Address), and those that connected before do not take it for what it is.
    ///
    /// ```no_run
    /// # use forkserver::{Listener, Server};
    /// # fn main() -> forkserver::Result<()> {
    /// let definition = Listener::activated()?.into_iter().fold(Server::new(), Server::listen);
    /// definition.handle("hello", |_, name: String| Ok(format!("Hello {name}"))).run()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StartError::NotAListener`]: a descriptor is not open, or no Unix stream socket that is bound to a path and not
    /// connected. [`StartError::BadVariable`]: `LISTEN_FDS` is no number. In the first case all descriptors are closed.
    pub fn activated() -> Result<Vec<Listener>, StartError> {
        let own = std::process::id().to_string();
        if std::env::var("LISTEN_PID").ok() != Some(own) {
            return Ok(Vec::new());
        }
        let value = std::env::var("LISTEN_FDS").unwrap_or_default();
        let bad = |_| StartError::BadVariable {
            name: "LISTEN_FDS",
            value: value.clone(),
        };
        let count: u16 = value.parse().map_err(bad)?;
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let numbers = FIRST..FIRST + RawFd::from(count);
        // All of them, so that none is left to programs that this one executes.
        let taken: Vec<_> = numbers.clone().map(fdtable::take_inherited).collect();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let listener = |(fd, taken)| {
            let name = match names.next().filter(|name| !name.is_empty()) {
                Some(name) => name.to_owned(),
                None if count == 1 => "default".to_owned(),
                None => format!("fd{fd}"),
            };
            listener(fd, taken).map(|listener| listener.name(name))
        };
        numbers.zip(taken).map(listener).collect()
    }
}

fn listener(fd: RawFd, taken: Option<OwnedFd>) -> Result<Listener, StartError> {
    let refused = |reason| StartError::NotAListener { fd, reason };
    let taken = taken.ok_or_else(|| refused("it is not open"))?;
    match socket::why_no_listener(&taken) {
        None => Ok(Listener::from_fd(taken)),
        Some(reason) => Err(refused(reason)),
    }
}
