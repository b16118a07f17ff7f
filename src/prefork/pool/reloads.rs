//! Replacing all workers, one after the other.
//!
//! Invariant: a reload ends once: when all are new, or when one that is new does not serve.

use super::Pool;
use crate::scoreboard::{PoolEvent, ReplaceReason};

impl Pool {
    /// All workers that there are now shall be replaced, one after the other.
    pub(crate) fn reload(&mut self) {
        self.outdated = self.last_generation;
        self.given_up.clear();
        self.crashes.end();
    }

    pub(crate) fn is_reloading(&self) -> bool {
        self.outdated > 0
    }

    /// A successor will not serve. Whoever was to be replaced goes on.
    pub(super) fn back_out(&mut self, reason: ReplaceReason) {
        if reason == ReplaceReason::Reload && std::mem::take(&mut self.outdated) > 0 {
            self.tell(PoolEvent::NotReloaded);
        }
    }

    /// A new one does not serve. Where nobody is left whom a reload could leave in place, that fails with it.
    pub(super) fn fail_reload(&mut self) {
        if !self.has_old() {
            self.back_out(ReplaceReason::Reload);
        }
    }

    fn has_old(&self) -> bool {
        let mut members = self.members.iter();
        members.any(|member| member.worker.generation <= self.outdated)
    }

    /// It is over when nobody old is left, and all slots have somebody, or cannot have anybody.
    pub(super) fn end_reload(&mut self) {
        let is_settled = |slot: u32| self.serves(slot) || self.given_up.contains(&slot);
        let is_over = !self.has_old() && (0..self.wanted as u32).all(is_settled);
        if self.outdated > 0 && is_over {
            self.outdated = 0;
            self.tell(match self.is_up() {
                true => PoolEvent::Reloaded,
                false => PoolEvent::NotReloaded,
            });
        }
    }
}
