//! What is known of a connection for as long as it is there.
//!
//! Invariant: it is small, because there may be many that never say anything.

use crate::engine::Port;
use crate::sys::linger::Socket;
use std::sync::Arc;

/// A connection that is there.
pub(super) struct Live {
    pub(super) socket: Arc<Socket>,
    /// Its listener's index, and how often that had stopped by then.
    port: Option<(u32, u32)>,
    pub(super) dedicated: bool,
    /// It had to make room for others.
    pub(super) crowded_out: bool,
}

impl Live {
    /// A connection that came through the listener when that had stopped so often, or through none.
    pub(super) fn new(socket: &Arc<Socket>, port: &Port, stops: Option<u64>) -> Live {
        Live {
            socket: Arc::clone(socket),
            port: stops.map(|stops| (port.index as u32, stops as u32)),
            dedicated: false,
            crowded_out: false,
        }
    }

    /// How often the listener had stopped when the connection came through it, if it did.
    pub(super) fn came_through(&self, port: &Port) -> Option<u64> {
        let (index, stops) = self.port?;
        (index as usize == port.index).then_some(stops.into())
    }
}
