//! What is done for a client that has shown the password.
//!
//! Invariant: no descriptor is let through before that.

use super::Driver;
use crate::engine::talk::Talk;
use crate::protocol::greeting::Welcome;
use crate::sys::socket;

impl Driver {
    /// The password was right.
    pub(super) fn welcome(&mut self, fds: bool, tag: u64) {
        if !self.refuses_rights {
            // They may come at any time. It cannot fail.
            let _ = socket::keep_urgent_bytes(&self.connection);
        }
        // Who has said already that nothing will follow needs no permission.
        let is_last = self.talk.inbox().is_next_the_last();
        let allowed = fds && !is_last && self.allow_rights();
        let worker = self.site.control.worker();
        if worker.is_some() && tag != 0 {
            let counts = self.site.control.gate().counts();
            self.shown = Some(Box::new((counts.open_session(tag), tag)));
        }
        if let Talk::Native { session, .. } = &mut self.talk {
            session.welcome(Welcome {
                fds: allowed,
                worker: worker.map_or((0, 0), |worker| (worker.slot, worker.generation)),
            });
        }
        self.entry.authenticated();
    }

    /// Lets the client send descriptors.
    fn allow_rights(&self) -> bool {
        self.socket().set_may_hold_rights(true);
        let kept = socket::keep_urgent_bytes(&self.connection);
        kept.is_ok() && socket::allow_rights(&self.connection, true).is_ok()
    }
}
