//! Who waits: the ways to serve connections. They share sessions, service and limits, and differ in nothing else.
//!
//! Invariant: no rule of the protocol is here; an engine is a driver of sessions.

mod acceptance;
mod connections;
mod crew;
mod driver;
mod living;
mod loans;
mod parking;
pub(crate) mod threaded;

use crate::context::Control;
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
