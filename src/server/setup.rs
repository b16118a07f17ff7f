//! From a forked copy of the owner to a server: everything that a fork leaves behind, in one list.
//!
//! Invariant: no line of the user's runs in the child before the owner's signals, descriptors and rights are gone
//! and the dead-man switch is armed; no client can connect before `initialize` is through.

use super::monitor::Monitor;
use super::serve::{self, Alone, Ending, Role};
use super::{Hook, Server, StateBox, THREAD_PATIENCE};
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
use crate::{Address, Fault, StartError};
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
    let end = match serving {
        Serving::Alone(alone) => {
            // An owner that is gone needs no report; the lifeline tells.
            let _ = ties.control.send(&report, None);
            drop(report);
            serve::until_told(server, *alone, Some(ties), Role::Server)
        }
        Serving::Pool(monitor) => match monitor.run(Some((ties, report))) {
            Ok(end) => end,
            Err(_) => return 1,
        },
    };
    status_of(end)
}

/// The exit status of a process that has served; one that a signal has ended dies of that.
pub(super) fn status_of((ending, finished): (Ending, bool)) -> i32 {
    if let Ending::Signal(signal) = ending {
        process::flush_standard_output(128 + signal);
        signal::die_of(signal)
    }
    i32::from(!finished)
}

/// Serves in a process that is the caller's.
pub(super) fn run_here(server: &Server, bound: Vec<Bound>) -> Result<Exit, StartError> {
    let signals = at("signals", Signals::share(&server.taken_signals()))
        .inspect_err(|_| remove_files(&bound));
    let serving = signals
        .and_then(|signals| prepare(server, bound, signals))
        .map_err(StartError::from)?;
    let end = match serving {
        Serving::Alone(alone) => serve::until_told(server, *alone, None, Role::Server),
        Serving::Pool(monitor) => monitor.run(None)?,
    };
    Ok(match end {
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
    let signals = at("signals", Signals::take_over(&server.taken_signals()))?;
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
    match server.prefork {
        // They are its workers'.
        Some(_) => Ok(()),
        None => limit_resources(server),
    }
}

/// What a process that runs handlers may have of each resource.
pub(super) fn limit_resources(server: &Server) -> Result<(), Failure> {
    for (resource, limit) in &server.rlimits {
        at("resource limits", process::limit(*resource, *limit))?;
    }
    Ok(())
}

/// A server that is ready to serve.
pub(super) enum Serving<'a> {
    /// By itself.
    Alone(Box<Alone>),
    /// By workers.
    Pool(Box<Monitor<'a>>),
}

impl Serving<'_> {
    pub(super) fn control(&self) -> &Control {
        match self {
            Serving::Alone(alone) => &alone.site.control,
            Serving::Pool(monitor) => monitor.control(),
        }
    }

    pub(super) fn remove_files(&self) {
        match self {
            Serving::Alone(alone) => alone.site.remove_files(),
            Serving::Pool(monitor) => monitor.remove_files(),
        }
    }
}

/// Runs the `initialize` hooks, and then lets clients in. If that fails, the sockets' files are gone.
pub(super) fn prepare(
    server: &Server,
    bound: Vec<Bound>,
    signals: Signals,
) -> Result<Serving<'_>, Failure> {
    let control = initialize(server, &bound).inspect_err(|_| remove_files(&bound))?;
    match &server.prefork {
        None => {
            start_worker(server, &control).inspect_err(|_| remove_files(&bound))?;
            listen(&bound)?;
            let alone = open(server, control, bound, signals)?;
            Ok(Serving::Alone(Box::new(alone)))
        }
        Some(prefork) => {
            // Its workers are forks.
            if let Some(threads) = process::other_threads(THREAD_PATIENCE) {
                remove_files(&bound);
                return Err(Failure::of_threads(threads));
            }
            listen(&bound)?;
            let monitor = Monitor::new(server, prefork, control, bound, signals)?;
            Ok(Serving::Pool(Box::new(monitor)))
        }
    }
}

fn listen(bound: &[Bound]) -> Result<(), Failure> {
    let listening = bound.iter().try_for_each(Bound::listen);
    at("listen", listening).inspect_err(|_| remove_files(bound))
}

/// Starts the engine of a process that serves. If that fails, the sockets' files are gone, if they are its own.
pub(super) fn open(
    server: &Server,
    control: Control,
    bound: Vec<Bound>,
    signals: Signals,
) -> Result<Alone, Failure> {
    let site = Arc::new(at("ports", open_site(server, control, bound))?);
    let events = at("events", EventSet::new()).inspect_err(|_| site.remove_files())?;
    let engine = at("engine", Running::start(server.engine, Arc::clone(&site)))
        .inspect_err(|_| site.remove_files())?;
    Ok(Alone {
        site,
        engine,
        signals,
        events,
    })
}

fn open_site(server: &Server, control: Control, bound: Vec<Bound>) -> io::Result<Site> {
    // A worker looks after that many calls how much memory it has: a power of two.
    const LOOKS_AFTER: u64 = 256;
    let generation = control.worker().map_or(0, |worker| worker.generation);
    let prefork = server.prefork.as_ref();
    let max_calls = prefork.and_then(|prefork| prefork.calls_of(generation));
    let max_memory = prefork.and_then(|prefork| prefork.max_memory);
    let stop = StopToken::new().inspect_err(|_| remove_files(&bound))?;
    let port = |(index, bound)| Port::new(index, bound, &server.limits, &stop).map(Arc::new);
    let ports = bound.into_iter().enumerate().map(port);
    Ok(Site {
        service: server.service.open(),
        office: Office::new(control.clone()),
        limits: Arc::clone(&server.limits),
        control,
        ports: ports.collect::<io::Result<_>>()?,
        wait: server.wait,
        admit: server.admit.clone(),
        close_on_error: server.close_on_error,
        stop,
        grace: server.grace,
        calls_of_worker: max_calls.unwrap_or(u64::MAX),
        look_mask: max_memory.map_or(u64::MAX, |_| LOOKS_AFTER - 1),
    })
}

pub(super) fn remove_files(bound: &[Bound]) {
    bound.iter().for_each(Bound::remove_file);
}

fn initialize(server: &Server, bound: &[Bound]) -> Result<Control, Failure> {
    let uid = process::effective_user();
    let identity = Identity {
        pid: std::process::id(),
        uid,
        inode: process::own_identity(),
    };
    let address = |bound: &Bound| {
        let (name, path, password) = bound.place();
        let address = Address {
            path: path.into(),
            password,
            identity,
            has_workers: bound.is_native() && server.prefork.is_some(),
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
    run_hooks("initialize", &server.initialize, &control, &mut states)?;
    // A hook may have installed a panic hook of its own.
    panics::stay_in_front();
    control.set_states(states);
    Ok(control)
}

/// Runs the `worker_started` hooks.
pub(super) fn start_worker(server: &Server, control: &Control) -> Result<(), Failure> {
    let mut states = States::default();
    run_hooks(
        "worker_started",
        &server.worker_started,
        control,
        &mut states,
    )?;
    control.set_worker_states(states);
    Ok(())
}

fn run_hooks(
    what: &str,
    hooks: &[Hook<Result<StateBox, Fault>>],
    control: &Control,
    states: &mut States,
) -> Result<(), Failure> {
    for hook in hooks {
        match panics::catch(|| hook(control)) {
            Ok(Ok(state)) => states.insert(state),
            Ok(Err(fault)) => return Err(Failure::new(what, fault.text(), true)),
            Err(panicked) => {
                let Panicked { message, location } = *panicked;
                let text = format!("panicked at {location}: {message}");
                return Err(Failure::of_panic(what, text));
            }
        }
    }
    Ok(())
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
