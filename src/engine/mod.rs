//! Who waits: the ways to serve connections. They share sessions, service and limits, and differ in nothing else.
//!
//! Invariant: no rule of the protocol is here; an engine is a driver of sessions.

mod connections;
pub(crate) mod threaded;

use crate::context::{Context, Control};
use crate::limits::Limits;
use crate::listener::Bound;
use crate::service::Service;
use std::sync::Arc;

/// What one serving process needs.
pub(crate) struct Site {
    pub(crate) service: Service,
    pub(crate) limits: Arc<Limits>,
    pub(crate) control: Control,
    pub(crate) listener: Bound,
}

/// Runs what the handlers of a connection have put off until their answers were sent.
fn run_deferred(context: &mut Context) {
    for task in context.take_deferred() {
        // A task that panics has nobody to tell: the answer is gone already.
        let _ = crate::panics::catch(task);
    }
}
