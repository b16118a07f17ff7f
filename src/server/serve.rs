//! A server's control thread: orders, the lifeline, signals, and the one way to the end.
//!
//! Invariant: it runs no handler of a call and reads no client's byte, so that nothing a client does delays it.
//! Whatever the reason for the end, the drain is the same.

use super::{Hook, Server};
use crate::child::Ties;
use crate::context::Control;
use crate::control::{Order, Post, Refusal, Report, Request, Wish};
use crate::engine::{Duties, Host, Running, Site};
use crate::gate::Status;
use crate::panics;
use crate::prefork::memory;
use crate::scoreboard::{ReplaceReason, WorkerPhase, counter};
use crate::sys::epoll::EventSet;
use crate::sys::signal::Signals;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process that clients can connect to.
pub(super) struct Alone {
    pub(super) site: Arc<Site>,
    pub(super) engine: Running,
    pub(super) signals: Signals,
    /// For what the control thread looks after.
    pub(super) events: EventSet,
}

/// Why a server stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// An owner said so. It waits as long as this, and kills then.
    Ordered(Duration),
    /// A handler or hook said so.
    Asked,
    /// The last owner is gone.
    Orphaned,
    /// INT or TERM came.
    Signal(i32),
}

/// What a process that serves is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Role {
    /// All there is of the server.
    Server,
    /// One of several, which may have so much memory for itself, in bytes.
    Worker { max_memory: Option<u64> },
}

/// Serves until there is a reason to stop, and stops. `false`: some calls had not finished within the grace.
pub(super) fn until_told(
    server: &Server,
    alone: Alone,
    ties: Option<Ties>,
    role: Role,
) -> (Ending, bool) {
    let Alone {
        site,
        mut engine,
        signals,
        events,
    } = alone;
    let mut desk = Desk {
        server,
        site: &site,
        signals: &signals,
        ties: ties.as_ref(),
        post: Post::new(ORDERS),
        role,
        retires: false,
        events,
        ending: None,
    };
    if desk.open().is_ok() {
        engine.run(&mut desk);
    }
    // Without a reason, the system had no memory for going on.
    let ending = desk.ending.unwrap_or(Ending::Asked);
    site.control.set_stopping();
    site.control.gate().counts().set_phase(WorkerPhase::Leaving);
    engine.begin_drain();
    desk.tell_last_wishes();
    drop(desk);
    // Before anything that may take time, so that nothing is left behind even if we are killed on the way.
    match (role, ending) {
        (Role::Server, _) => site.remove_files(),
        // The monitor cannot any more.
        (Role::Worker { .. }, Ending::Orphaned) => site.remove_orphaned(),
        (Role::Worker { .. }, _) => {}
    }
    refuse_orders(&mut engine, ties.as_ref());
    let now = Instant::now();
    let (patience, deadline) = match ending {
        Ending::Ordered(patience) => (patience, None),
        _ => (server.grace, now.checked_add(server.grace)),
    };
    // Streams have the rest of the time, if calls do not leave them more.
    let finished = engine.finish_drain(now.checked_add(patience / 2), deadline);
    if finished {
        run_hooks("worker_exiting", &server.worker_exiting, &site.control);
        if role == Role::Server {
            run_hooks("finalize", &server.finalize, &site.control);
        }
    }
    // First what is ours of the directory, and then the control line: the owner, who sees its end, lets go of the
    // directory last, and does that while this process ends. What is dropped may hang, but the lifeline is there.
    drop((signals, site, ties));
    (ending, finished)
}

pub(super) fn run_hooks(what: &str, hooks: &[Hook<()>], control: &Control) {
    hooks.iter().for_each(|hook| run_hook(what, hook, control));
}

/// A panic of a hook must not end the server.
fn run_hook(what: &str, hook: &Hook<()>, control: &Control) {
    if let Err(panicked) = panics::catch(|| hook(control)) {
        control.observer().panicked(None, what, &panicked);
    }
}

/// Connections that the owner has handed over and that nobody has looked at are turned away.
fn refuse_orders(engine: &mut Running, ties: Option<&Ties>) {
    let Some(ties) = ties else { return };
    while let Ok(Some(order)) = ties.control.receive(Some(Instant::now())) {
        if let Order::Serve(socket) = order {
            // If it cannot be turned away the client sees it closed.
            let _ = socket
                .into_owned()
                .and_then(|socket| engine.host().serve(socket));
        }
    }
}

/// What the control thread looks after.
struct Desk<'a> {
    server: &'a Server,
    site: &'a Site,
    signals: &'a Signals,
    /// Orders and lifeline, if there is an owner.
    ties: Option<&'a Ties>,
    /// What the owner is told, or the monitor.
    post: Post<Report>,
    role: Role,
    /// It has asked to be replaced.
    retires: bool,
    events: EventSet,
    ending: Option<Ending>,
}

const LIFELINE: u64 = 0;
const ORDERS: u64 = 1;
const SIGNALS: u64 = 2;
const WAKER: u64 = 3;

impl Desk<'_> {
    fn open(&self) -> io::Result<()> {
        if let Some(ties) = self.ties {
            self.events.watch(ties.lifeline(), LIFELINE)?;
            self.events.watch(ties.control.as_fd(), ORDERS)?;
        }
        self.events.watch(self.signals.as_fd(), SIGNALS)?;
        self.events.watch(self.site.control.waker().as_fd(), WAKER)
    }

    /// Looks after one thing that has happened. A reason to stop is the result.
    fn look_after(&mut self, event: u64, host: &mut dyn Host) -> Option<Ending> {
        match event {
            LIFELINE => Some(Ending::Orphaned),
            ORDERS => self.obey(host),
            SIGNALS => handle_signals(self.server, self.site, self.signals),
            _ => {
                self.site.control.waker().clear();
                host.review();
                self.tell_monitor();
                let is_wanted = self.site.control.stop_is_wanted();
                is_wanted.then_some(Ending::Asked)
            }
        }
    }

    /// A worker says what it and its handlers want.
    fn tell_monitor(&mut self) {
        let Role::Worker { max_memory } = self.role else {
            return;
        };
        self.tell_wishes();
        if let Some(reason) = self.is_worn(max_memory).filter(|_| !self.retires) {
            self.retires = true;
            self.tell(Report::Wish(Wish::Retire(reason)));
        }
    }

    fn tell_wishes(&mut self) {
        for wish in self.site.control.take_wishes() {
            let is_look = |report: &Report| matches!(report, Report::Wish(Wish::Look));
            let report = Report::Wish(wish);
            // Clients can cause as many of these as they like.
            if !is_look(&report) || !self.post.waiting().any(is_look) {
                self.tell(report);
            }
        }
    }

    /// Nobody sees to it that what waits is said when there is room.
    fn tell_last_wishes(&mut self) {
        // The monitor reads what comes, unless it has been stopped.
        const PATIENCE: Duration = Duration::from_millis(100);
        if let (Role::Worker { .. }, Some(ties)) = (self.role, self.ties) {
            self.tell_wishes();
            let deadline = Instant::now().checked_add(PATIENCE);
            self.post.finish(&ties.control, deadline);
        }
    }

    fn tell(&mut self, report: Report) {
        if let Some(ties) = self.ties {
            // Who does not listen has what it asked for all the same.
            let _ = self.post.send(report, &ties.control, &self.events);
        }
    }

    /// Whether a worker has done enough.
    fn is_worn(&self, max_memory: Option<u64>) -> Option<ReplaceReason> {
        let gate = self.site.control.gate();
        if gate.counts().get(counter::CALLS) >= self.site.calls_of_worker {
            return Some(ReplaceReason::Calls);
        }
        let (private, shared) = max_memory.and_then(|_| memory::of_this_process())?;
        gate.set_memory(private, shared);
        (Some(private) > max_memory).then_some(ReplaceReason::Memory)
    }

    fn obey(&mut self, host: &mut dyn Host) -> Option<Ending> {
        let ties = self.ties?;
        self.post.flush(&ties.control, &self.events);
        match ties.control.receive(Some(Instant::now())) {
            Ok(Some(Order::Stop { patience })) => return Some(Ending::Ordered(patience)),
            Ok(Some(Order::Serve(socket))) => {
                // If it cannot be served the client sees it closed.
                let _ = socket.into_owned().and_then(|socket| host.serve(socket));
            }
            Ok(Some(Order::Look)) => host.look_again(),
            Ok(Some(Order::Ask { number, request })) => {
                let result = comply(self.site, request, host);
                self.tell(Report::Answer { number, result });
            }
            // The owner has given us up; the lifeline tells the rest.
            Ok(None) => {
                self.events.forget(ties.control.as_fd());
                self.post.clear();
            }
            // An order that cannot be read, or whose descriptor found no room in our table. The owner sees its end of
            // the connection closed, and may give others.
            Err(_) => {}
        }
        None
    }
}

impl AsFd for Desk<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Duties for Desk<'_> {
    fn attend(&mut self, host: &mut dyn Host) -> bool {
        // One of each at most: the engine has other things to do as well.
        for _ in 0..=WAKER {
            let Ok(Some(event)) = self.events.next_now() else {
                break;
            };
            self.ending = self.look_after(event, host);
            if self.ending.is_some() {
                return false;
            }
        }
        true
    }
}

/// Does what an owner asks for, or a monitor.
fn comply(site: &Site, request: Request, host: &mut dyn Host) -> Result<Status, Refusal> {
    let control = &site.control;
    control.comply(&request)?;
    match request {
        Request::StopListener(_) => host.review(),
        Request::StartListener(name) => {
            host.review();
            let listeners = control.gate().status().listeners;
            if listeners
                .iter()
                .any(|listener| listener.name == name && listener.stopped)
            {
                return Err(Refusal::NotStarted(name));
            }
        }
        Request::Status => {
            if let (Some(_), Some((private, shared))) =
                (control.worker(), memory::of_this_process())
            {
                control.gate().set_memory(private, shared);
            }
        }
        _ => {}
    }
    Ok(control.gate().status())
}

/// Runs the handlers of the signals that have come. INT and TERM end the server if they have none.
fn handle_signals(server: &Server, site: &Site, signals: &Signals) -> Option<Ending> {
    for number in signals.pending() {
        let handlers = server
            .signals
            .iter()
            .filter(|(signal, _)| *signal as i32 == number);
        let mut handled = false;
        for (_, handler) in handlers {
            run_hook("a signal's handler", handler, &site.control);
            handled = true;
        }
        if !handled {
            return Some(Ending::Signal(number));
        }
    }
    None
}
