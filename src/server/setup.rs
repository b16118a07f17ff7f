//! From a forked copy of the owner to a server: everything that a fork leaves behind, in one list.
//!
//! Invariant: no line of the user's runs in the child before the owner's signals, descriptors and rights are gone
//! and the dead-man switch is armed; no client can connect before `initialize` is through.

use super::Server;
use super::serve::{self, Ending, Serving};
use crate::address::Identity;
use crate::channel::StopToken;
use crate::child::{Child, Ties};
use crate::context::{Control, States};
use crate::control::{Failure, Report};
use crate::descriptor;
use crate::engine::{Port, Running, Site};
use crate::error::Context as _;
use crate::exit::Exit;
use crate::gate::Gate;
use crate::listener::Bound;
use crate::panics::{self, Panicked};
use crate::password;
use crate::session::Office;
use crate::sys::epoll::EventSet;
use crate::sys::signal::{self, Signals};
use crate::sys::{deadman, fdtable, linger, process};
use crate::{Address, StartError};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The body of a forked server.
pub(super) fn serve_as_child(server: &Server, bound: Vec<Bound>, mut ties: Ties) -> i32 {
    let serving = match become_server(server, &bound, &mut ties)
        .and_then(|signals| prepare(server, bound, signals))
    {
        Ok(serving) => serving,
        Err(failure) => {
            ties.report_failure(failure);
            return 1;
        }
    };
    serve_to_the_end(server, serving, ties, Report::Ready)
}

/// Tells the owner that clients can connect, and serves. Returns the exit status.
pub(super) fn serve_to_the_end(
    server: &Server,
    serving: Serving,
    ties: Ties,
    report: Report,
) -> i32 {
    // An owner that is gone needs no report; the lifeline tells.
    let _ = ties.control.send(&report, None);
    drop(report);
    match serve::until_told(server, serving, Some(ties)) {
        (Ending::Signal(signal), _) => {
            process::flush_standard_output(128 + signal);
            signal::die_of(signal)
        }
        (_, finished) => i32::from(!finished),
    }
}

/// Serves in a process that is the caller's.
pub(super) fn run_here(server: &Server, bound: Vec<Bound>) -> Result<Exit, StartError> {
    let signals = at("signals", Signals::share(&server.handled_signals()))
        .inspect_err(|_| remove_files(&bound));
    let serving = signals
        .and_then(|signals| prepare(server, bound, signals))
        .map_err(StartError::from)?;
    Ok(match serve::until_told(server, serving, None) {
        (Ending::Signal(signal), _) => Exit::Signal(signal),
        (_, finished) => Exit::Code(i32::from(!finished)),
    })
}

/// What a forked copy of the owner does to be its own process, in this order.
fn become_server(server: &Server, bound: &[Bound], ties: &mut Ties) -> Result<Signals, Failure> {
    let signals = take_signals(server)?;
    let keep = [
        &ties.descriptors()[..],
        &signals.descriptors(),
        &server.kept_numbers(),
    ]
    .concat();
    // A number that was closed and used again since `keep_fd` must not keep us alive.
    let keep = keep
        .into_iter()
        .filter(|fd| !ties.owner_ends().contains(fd));
    let keep: Vec<RawFd> = keep
        .chain(bound.iter().flat_map(Bound::descriptors))
        .collect();
    at(
        "descriptors",
        fdtable::poison_except(&keep, ties.inherited()),
    )?;
    password::reseed_after_fork();
    become_process(server, ties)?;
    Ok(signals)
}

/// Makes all signals the server's own, and leaves the owner's process group.
pub(super) fn take_signals(server: &Server) -> Result<Signals, Failure> {
    signal::reset_all();
    let signals = at("signals", Signals::take_over(&server.handled_signals()))?;
    at("signals", signal::clear_mask())?;
    if server.own_group {
        at("process group", process::own_group())?;
    }
    Ok(signals)
}

/// What a process of its own becomes, however it was made.
pub(super) fn become_process(server: &Server, ties: &Ties) -> Result<(), Failure> {
    at(
        "dead-man switch",
        deadman::arm(ties.lifeline(), server.grace),
    )?;
    linger::interrupt_here();
    descriptor::close_with(linger::close);
    if let Some(name) = &server.process_name {
        at("process name", process::set_name(name))?;
    }
    if let Some((uid, gid)) = server.become_user {
        at("user", process::become_user(uid, gid))?;
    }
    if let Some(directory) = &server.directory {
        at("directory", process::change_directory(directory))?;
    }
    if let Some(mode) = server.umask {
        process::set_umask(mode);
    }
    Ok(())
}

/// Runs the `initialize` hooks, and then lets clients in. If that fails, the sockets' files are gone.
pub(super) fn prepare(
    server: &Server,
    bound: Vec<Bound>,
    signals: Signals,
) -> Result<Serving, Failure> {
    let control = initialize(server, &bound).inspect_err(|_| remove_files(&bound))?;
    let listening = bound.iter().try_for_each(Bound::listen);
    at("listen", listening).inspect_err(|_| remove_files(&bound))?;
    let site = Arc::new(at("ports", open_site(server, control, bound))?);
    let events = at("events", EventSet::new()).inspect_err(|_| site.remove_files())?;
    let engine = at("engine", Running::start(server.engine, Arc::clone(&site)))
        .inspect_err(|_| site.remove_files())?;
    Ok(Serving {
        site,
        engine,
        signals,
        events,
    })
}

fn open_site(server: &Server, control: Control, bound: Vec<Bound>) -> io::Result<Site> {
    let stop = StopToken::new().inspect_err(|_| remove_files(&bound))?;
    let port = |(index, bound)| Port::new(index, bound, &server.limits, &stop).map(Arc::new);
    let ports = bound.into_iter().enumerate().map(port);
    Ok(Site {
        service: server.service.open(),
        office: Office::new(control.clone()),
        limits: Arc::clone(&server.limits),
        control,
        ports: ports.collect::<io::Result<_>>()?,
        admit: server.admit.clone(),
        close_on_error: server.close_on_error,
        stop,
        grace: server.grace,
    })
}

fn remove_files(bound: &[Bound]) {
    bound.iter().for_each(Bound::remove_file);
}

fn initialize(server: &Server, bound: &[Bound]) -> Result<Control, Failure> {
    let (uid, _) = process::effective_ids();
    let identity = Identity {
        pid: std::process::id(),
        uid,
        inode: process::own_identity(),
    };
    let address = |bound: &Bound| {
        let (name, path, password) = bound.place();
        let address = Address {
            path,
            password,
            identity,
        };
        (name, address)
    };
    let addresses = bound.iter().map(address).collect();
    let most = |bound: &Bound| bound.limits.as_ref().map(|limits| limits.max_connections);
    let ways = bound
        .iter()
        .map(|bound| (Arc::clone(&bound.name), most(bound).unwrap_or(usize::MAX)));
    let gate = at("control", Gate::new(&server.limits, ways))?;
    let control = Control::new(addresses, gate, server.observer.clone());
    let control = at("control", control)?;
    let mut states = States::default();
    for hook in &server.prepare {
        states.insert(hook(&control)?);
    }
    for hook in &server.initialize {
        match panics::catch(|| hook(&control)) {
            Ok(Ok(state)) => states.insert(state),
            Ok(Err(fault)) => return Err(Failure::new("initialize", fault.text(), true)),
            Err(Panicked { message, location }) => {
                return Err(Failure::new(
                    "initialize",
                    format!("panicked at {location}: {message}"),
                    true,
                ));
            }
        }
    }
    // A hook may have installed a panic hook of its own.
    panics::stay_in_front();
    control.set_states(states);
    Ok(control)
}

pub(super) fn at<T>(stage: &str, result: std::io::Result<T>) -> Result<T, Failure> {
    result.map_err(|err| Failure::new(stage, err, false))
}

/// What a server says next while it starts: that clients can connect, or something on the way to that.
pub(super) fn next_report(
    child: &Child,
    timeout: Duration,
    deadline: Option<Instant>,
) -> Result<Report, StartError> {
    match child.control.receive(deadline) {
        Ok(Some(Report::Failed(failure))) => Err(failure.into()),
        Ok(Some(report)) => Ok(report),
        Err(err) if err.kind() == io::ErrorKind::TimedOut => Err(StartError::TimedOut(timeout)),
        // What it says brings a descriptor, for which there is no room here.
        Err(err) if err.kind() == io::ErrorKind::InvalidData => Err(err).start("hear the server"),
        Ok(None) | Err(_) => {
            let exit = child
                .wait(deadline)
                .start("wait for the server that failed to start")?;
            Err(StartError::Died(exit.unwrap_or(Exit::Unknown)))
        }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> StartError {
        match failure {
            Failure {
                threads: threads @ 1..,
                ..
            } => StartError::MultiThreaded { threads },
            Failure {
                stage,
                message,
                in_hook: true,
                ..
            } => StartError::Hook {
                hook: stage,
                message,
            },
            Failure { stage, message, .. } => StartError::Child { stage, message },
        }
    }
}
