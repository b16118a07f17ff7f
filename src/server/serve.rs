//! A server's control thread: orders, the lifeline, signals, and the one way to the end.
//!
//! Invariant: it runs no handler of a call and reads no client's byte, so that nothing a client does delays it.
//! Whatever the reason for the end, the drain is the same.

use super::{Hook, Server};
use crate::child::Ties;
use crate::context::Control;
use crate::control::{ControlLine, Order, Report, Request};
use crate::engine::Site;
use crate::engine::threaded::{TICK, Threaded};
use crate::gate::Status;
use crate::panics;
use crate::sys::poll;
use crate::sys::signal::Signals;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A server that clients can connect to.
pub(super) struct Serving {
    pub(super) site: Arc<Site>,
    pub(super) engine: Threaded,
    pub(super) signals: Signals,
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

/// Serves until there is a reason to stop, and stops. `false`: some calls had not finished within the grace.
pub(super) fn until_told(server: &Server, serving: Serving, ties: Option<Ties>) -> (Ending, bool) {
    let ending = wait_for_end(server, &serving, ties.as_ref());
    let Serving {
        site,
        engine,
        signals,
    } = serving;
    site.control.set_stopping();
    engine.begin_drain();
    // Before anything that may take time, so that nothing is left behind even if we are killed on the way.
    site.listener.remove_file();
    refuse_orders(&engine, ties.as_ref());
    let now = Instant::now();
    let (patience, deadline) = match ending {
        Ending::Ordered(patience) => (patience, None),
        _ => (server.grace, now.checked_add(server.grace)),
    };
    // Streams have the rest of the time, if calls do not leave them more.
    let finished = engine.finish_drain(now.checked_add(patience / 2), deadline);
    if finished {
        for hook in &server.finalize {
            run_hook("finalize", hook, &site.control);
        }
    }
    // First what is ours of the directory, and then the control line: the owner, who sees its end, lets go of the
    // directory last, and does that while this process ends. What is dropped may hang, but the lifeline is there.
    drop((signals, site, ties));
    (ending, finished)
}

/// A panic of a hook must not end the server.
fn run_hook(what: &str, hook: &Hook<()>, control: &Control) {
    if let Err(panicked) = panics::catch(|| hook(control)) {
        control.observer().panicked(None, what, &panicked);
    }
}

/// Connections that the owner has handed over and that nobody has looked at are turned away.
fn refuse_orders(engine: &Threaded, ties: Option<&Ties>) {
    let Some(ties) = ties else { return };
    while let Ok(Some(order)) = ties.control.receive(Some(Instant::now())) {
        if let Order::Serve(socket) = order {
            // If it cannot be turned away the client sees it closed.
            let _ = socket.into_owned().and_then(|socket| engine.serve(socket));
        }
    }
}

fn wait_for_end(server: &Server, serving: &Serving, ties: Option<&Ties>) -> Ending {
    let Serving {
        site,
        engine,
        signals,
    } = serving;
    let mut control = ties.map(|ties| &ties.control);
    // Whether the engine has something for its watchdog to see.
    let mut watching = true;
    loop {
        let tick = watching.then(|| Instant::now() + TICK);
        let lifeline = ties.map(Ties::lifeline);
        let orders = control.map(AsFd::as_fd);
        let waited = [
            lifeline,
            orders,
            Some(signals.as_fd()),
            Some(site.control.waker().as_fd()),
        ];
        // A poll that fails would fail for ever: no memory, or a descriptor that somebody closed under us.
        let Ok([orphaned, ordered, signaled, woken]) = poll::readable(waited, tick) else {
            return Ending::Asked;
        };
        if orphaned {
            return Ending::Orphaned;
        }
        if let (true, Some(line)) = (ordered, control) {
            match obey(line, site, engine) {
                Obeyed::Stop(patience) => return Ending::Ordered(patience),
                Obeyed::Released => control = None,
                Obeyed::Done => {}
            }
        }
        if watching {
            watching = engine.look();
        }
        if woken {
            watching = true;
            site.control.waker().clear();
            if site.control.stop_is_wanted() {
                return Ending::Asked;
            }
        }
        if signaled {
            if let Some(ending) = handle_signals(server, site, signals) {
                return ending;
            }
        }
    }
}

/// What came of an order.
enum Obeyed {
    Stop(Duration),
    Done,
    /// The owner has given us up; the lifeline tells the rest.
    Released,
}

fn obey(line: &ControlLine, site: &Site, engine: &Threaded) -> Obeyed {
    match line.receive(Some(Instant::now())) {
        Ok(Some(Order::Stop { patience })) => return Obeyed::Stop(patience),
        Ok(Some(Order::Serve(socket))) => {
            // If it cannot be served the client sees it closed.
            let _ = socket.into_owned().and_then(|socket| engine.serve(socket));
        }
        Ok(Some(Order::Ask { number, request })) => {
            let status = comply(site, request);
            // An owner that does not listen has what it asked for all the same.
            let _ = line.send(&Report::Answer { number, status }, Some(Instant::now()));
        }
        Ok(None) => return Obeyed::Released,
        // An order that cannot be read, or whose descriptor found no room in our table. The owner sees its end of
        // the connection closed, and may give others.
        Err(_) => {}
    }
    Obeyed::Done
}

/// Does what an owner asks for.
fn comply(site: &Site, request: Request) -> Status {
    match request {
        Request::Status => {}
        Request::SetMaxConnections(count) => site.control.set_max_connections(count),
        Request::Pause => site.control.pause(),
        Request::Resume => site.control.resume(),
    }
    site.control.status()
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
