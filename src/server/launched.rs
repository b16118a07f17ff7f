//! A server in a process that was executed for it.
//!
//! Invariant: what a forked server inherits and gets rid of, this one never had; all else is the same, in the same
//! order.

use super::Server;
use super::setup;
use crate::address::{Address, Identity};
use crate::child::{Child, Ties};
use crate::control::{Failure, Place, Report};
use crate::error::Context as _;
use crate::handle::ServerHandle;
use crate::listener::{self, Bound, Footprint, Footprints};
use crate::sys::{deadman, fdtable};
use crate::{Exit, Fd, StartError};
use std::sync::Arc;
use std::time::{Duration, Instant};

impl Server {
    /// Serves as the process that was launched for it, and returns its exit status.
    pub(crate) fn serve_launched(&self, ties: Ties) -> i32 {
        match self.prepare_launched(&ties) {
            Ok((serving, report)) => setup::serve_to_the_end(self, serving, ties, report),
            Err(failure) => {
                ties.report_failure(failure);
                1
            }
        }
    }

    fn prepare_launched(&self, ties: &Ties) -> Result<(setup::Serving<'_>, Report), Failure> {
        let definition = |err: StartError| Failure::new("definition", err, false);
        self.check().map_err(definition)?;
        for hook in &self.before_fork {
            hook().map_err(|fault| Failure::new("before_fork", fault.text(), true))?;
        }
        // From here on nothing is the user's, until it is armed again with the right grace.
        setup::at("dead-man switch", deadman::disarm(ties.lifeline()))?;
        let standard = setup::at("standard streams", fdtable::occupy_standard())?;
        let listening = |err: StartError| Failure::new("listener", err, false);
        let (bound, footprints) = listener::bind_all(&self.listeners()).map_err(listening)?;
        drop(standard);
        for parts in footprints.into_parts() {
            // As always: an owner that is gone needs no report.
            let _ = ties.control.send(&Report::Bound(parts), None);
        }
        let clean_up = |_: &Failure| bound.iter().for_each(Bound::remove_file);
        let signals = setup::take_signals(self).inspect_err(clean_up)?;
        setup::become_process(self, ties).inspect_err(clean_up)?;
        let serving = setup::prepare(self, bound, signals)?;
        let addresses = serving.control().addresses().iter();
        let to_fd = |(name, address): &(Arc<str>, Address)| {
            Ok((name.to_string(), Fd::from(address.to_fd()?)))
        };
        let addresses = setup::at("address", addresses.map(to_fd).collect());
        let place = Place {
            addresses: addresses.inspect_err(|_| serving.remove_files())?,
            grace: self.grace,
        };
        Ok((serving, Report::ReadyAt(place)))
    }
}

impl ServerHandle {
    /// The handle of a server that has been launched, once it says where it is.
    pub(crate) fn of_launched(
        child: Child,
        timeout: Duration,
        deadline: Option<Instant>,
    ) -> Result<ServerHandle, StartError> {
        let mut footprints = Footprints::default();
        match wait_for_place(&child, timeout, deadline, &mut footprints) {
            Ok((addresses, grace)) => Ok(ServerHandle::new(child, addresses, footprints, grace)),
            Err(err) => {
                let control = child.give_up();
                while let Ok(Some(report)) = control.receive::<Report>(Some(Instant::now())) {
                    if let Report::Bound(parts) = report {
                        footprints.add(Footprint::from_parts(parts).ok());
                    }
                }
                footprints.remove();
                Err(err)
            }
        }
    }
}

/// Where the server is, and its grace. What it has put into the file system is in `footprints` as soon as it says so.
fn wait_for_place(
    child: &Child,
    timeout: Duration,
    deadline: Option<Instant>,
    footprints: &mut Footprints,
) -> Result<(Vec<(String, Address)>, Duration), StartError> {
    let place = loop {
        match setup::next_report(child, timeout, deadline)? {
            Report::Bound(parts) => {
                let parts = Footprint::from_parts(parts).start("take the server's directory")?;
                footprints.add(Some(parts));
            }
            Report::ReadyAt(place) => break place,
            // No server that is launched says anything else before it is ready.
            _ => return Err(StartError::Died(Exit::Unknown)),
        }
    };
    let read = |(name, file): (String, Fd)| {
        let file = file.into_owned().start("take the server's address")?;
        let address = Address::from_fd(file).map_err(|err| StartError::Child {
            stage: "address".into(),
            message: err.to_string(),
        })?;
        let identity = Identity {
            pid: child.pid,
            inode: child.identity(),
            ..address.identity
        };
        Ok((
            name,
            Address {
                identity,
                ..address
            },
        ))
    };
    let addresses: Result<Vec<_>, StartError> = place.addresses.into_iter().map(read).collect();
    match addresses? {
        // There is at least one listener.
        none if none.is_empty() => Err(StartError::Died(Exit::Unknown)),
        some => Ok((some, place.grace)),
    }
}
