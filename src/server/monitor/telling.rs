//! What a monitor says: orders to workers, answers and news to its owner.
//!
//! Invariant: it never waits for anybody to listen, and nobody who listens late misses a setting.

use super::Monitor;
use crate::child::Ties;
use crate::control::{Order, Refusal, Report};
use crate::event::Event;
use crate::gate::Status;
use crate::scoreboard::PoolEvent;
use std::io;
use std::os::fd::AsFd;

impl Monitor<'_> {
    /// Whether a worker has had room for all that it was told.
    pub(super) fn listens(&self, generation: u32) -> bool {
        let process = self.workers.get(&generation);
        process.is_some_and(|process| process.post.is_empty())
    }

    /// Tells a worker something. `false`: it hears nothing any more.
    pub(super) fn order(&mut self, generation: u32, order: Order) -> bool {
        let Some(process) = self.workers.get_mut(&generation) else {
            return false;
        };
        let sent = process
            .post
            .send(order, &process.child.control, &self.events);
        if matches!(&sent, Err(err) if err.kind() == io::ErrorKind::WouldBlock) {
            self.is_deaf(generation);
        }
        sent.is_ok()
    }

    /// Something has happened to the pool.
    pub(super) fn tell(&mut self, event: PoolEvent, ties: Option<&Ties>) {
        self.board.note(&event);
        // At the start, the failure is all that it waits for.
        if let Some(ties) = ties.filter(|_| self.is_up && event.is_for_owners()) {
            self.report(event.clone(), ties);
        }
        match event {
            PoolEvent::Reloaded => self.answer_reloads(true, ties),
            PoolEvent::NotReloaded => self.answer_reloads(false, ties),
            _ => {}
        }
        self.control.observer().tell(|| Event::Pool(event));
    }

    /// Tells the owner something that it has not asked for. One that has not listened for very long misses it.
    fn report(&mut self, event: PoolEvent, ties: &Ties) {
        if self.to_owner.is_empty() {
            let report = Report::Happened(event);
            let _ = self.to_owner.send(report, &ties.control, &self.events);
        }
    }

    pub(super) fn answer(&mut self, ties: &Ties, number: u64, result: Result<Status, Refusal>) {
        let answer = Report::Answer { number, result };
        // An owner that does not listen has what it asked for all the same.
        let _ = self.to_owner.send(answer, &ties.control, &self.events);
    }

    /// The owner's end of its line is closed.
    pub(super) fn lets_go(&mut self, ties: &Ties) {
        self.events.forget(ties.control.as_fd());
        self.to_owner.clear();
    }
}
