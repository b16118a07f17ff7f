//! What waits to be sent while further calls are taken: so the answers to a batch leave together.
//!
//! Invariant: it stays within `max_in_flight`, `high_watermark` and `max_queued`.

use super::ServerSession;
use crate::limits::Bounds;
use crate::protocol::frame::HEADER_LEN;
use crate::protocol::outbox::Outbox;

impl ServerSession {
    /// The answer that was given last leaves before the next call is taken.
    pub(crate) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// Whether so much is queued that no call is taken until most of it has left.
    pub(crate) fn is_pressed(&self) -> bool {
        self.is_pressed
    }

    /// What is queued, while a call is being answered: somebody else may send of it. `None`: nothing is.
    pub(crate) fn lend_outbox(&mut self) -> Option<Outbox> {
        match self.outbox.queued() {
            0 => None,
            _ => Some(std::mem::replace(
                &mut self.outbox,
                Outbox::new(Bounds::default()),
            )),
        }
    }

    /// What is left of what was lent.
    pub(crate) fn take_back(&mut self, outbox: Outbox) {
        self.outbox = outbox;
        self.has_left();
    }

    /// Whether the next call can be taken before what is queued has left: so the answers to a batch leave together.
    pub(super) fn may_hold(&self) -> bool {
        let room = self.limits.max_queued.saturating_sub(self.outbox.queued());
        !self.is_pressed
            && !self.is_urgent
            && self.held < self.limits.max_in_flight
            && room >= HEADER_LEN + self.limits.max_frame
    }

    /// Some of what was queued may have left.
    pub(super) fn has_left(&mut self) {
        let queued = self.outbox.queued();
        self.is_pressed &= queued > self.limits.low_watermark;
        if queued == 0 {
            (self.held, self.is_urgent) = (0, false);
        }
    }
}
