//! What an owner asks a monitor for: some of it is done here, the rest by all workers.
//!
//! Invariant: an owner is answered when all workers have answered, or have ended, or have had their time. What is asked of
//! all holds for those, too, that are forked later.

use super::Monitor;
use crate::child::Ties;
use crate::control::{Order, Refusal, Request};
use crate::gate::Status;
use crate::scoreboard::{MAX_WORKERS, Region, WorkerStatus, counter};
use crate::server::serve::Ending;
use crate::worker::Worker;
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long workers have to answer: half of what an owner waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// What nobody waits for the answer to.
const NOBODY: u64 = 0;

/// Something that all workers were asked.
pub(super) struct Question {
    /// The owner's.
    number: u64,
    /// Those that have not answered, by generation.
    waits_for: HashSet<u32>,
    pub(super) deadline: Instant,
    status: Status,
}

/// What those have done that are gone.
#[derive(Default)]
pub(super) struct Totals {
    calls: u64,
    accepted: u64,
}

impl Totals {
    pub(super) fn add(&mut self, region: &Region) {
        self.calls = self.calls.saturating_add(region.get(counter::CALLS));
        self.accepted = self.accepted.saturating_add(region.get(counter::ACCEPTED));
    }
}

impl Monitor<'_> {
    pub(super) fn obey(&mut self, ties: &Ties) -> Option<Ending> {
        self.to_owner.flush(&ties.control, &self.events);
        match ties.control.receive(Some(Instant::now())) {
            Ok(Some(Order::Stop { patience })) => return Some(Ending::Ordered(patience)),
            Ok(Some(Order::Serve(socket))) => {
                // If nobody can serve it the client sees it closed.
                let _ = socket.into_owned().map(|socket| self.pass_on(socket));
            }
            Ok(Some(Order::Ask { number, request })) => self.ask(number, request, ties),
            // The owner has given us up; the lifeline tells the rest.
            Ok(None) => self.lets_go(ties),
            // An order that is for workers, or cannot be read. The owner may give others.
            Ok(Some(Order::Look)) | Err(_) => {}
        }
        None
    }

    /// Has a worker serve a connection of the owner's; each in turn.
    fn pass_on(&mut self, socket: OwnedFd) {
        let mut workers: Vec<u32> = self
            .pool
            .ready_workers()
            .map(|worker| worker.generation)
            .collect();
        workers.sort_unstable();
        if workers.is_empty() {
            // Those that are starting serve what they find when they are ready.
            workers.extend(self.workers.keys());
        }
        if workers.is_empty() {
            return;
        }
        self.next_served = self.next_served.wrapping_add(1);
        let first = self.next_served % workers.len();
        workers.rotate_left(first);
        let order = Order::Serve(socket.into());
        for worker in &workers {
            // One that has not read what it was told before is busy with something else, and one whose end is not known here
            // yet hears nothing.
            let listening = self.workers.get(worker).filter(|_| self.listens(*worker));
            let now = Some(Instant::now());
            if listening.is_some_and(|process| process.child.control.send(&order, now).is_ok()) {
                return;
            }
        }
        self.order(workers[0], order);
    }

    fn ask(&mut self, number: u64, request: Request, ties: &Ties) {
        match request {
            Request::SetWorkers(count) if !(1..=MAX_WORKERS).contains(&count) => {
                self.answer(ties, number, Err(Refusal::WorkerCount(count)));
            }
            Request::SetWorkers(count) => {
                self.pool.set_wanted(count);
                self.ask_all(number, &Request::Status);
            }
            Request::Reload => {
                self.pool.reload();
                self.reloads.push(number);
            }
            request => match self.comply(&request) {
                Ok(()) => self.ask_all(number, &request),
                Err(refusal) => self.answer(ties, number, Err(refusal)),
            },
        }
        self.answer_complete(Some(ties));
    }

    /// A worker takes nobody any more: somebody may wait of whom it alone was told.
    pub(super) fn have_others_look(&mut self, generation: u32) {
        for other in self.all_but(generation) {
            let mut waiting = self.workers[&other].post.waiting();
            // One that has not heard the last one looks for both.
            let is_told = waiting.any(|order| matches!(order, Order::Look));
            drop(waiting);
            if !is_told {
                self.order(other, Order::Look);
            }
        }
    }

    fn all_but(&self, generation: u32) -> Vec<u32> {
        let all = self.workers.keys().copied();
        all.filter(|other| *other != generation).collect()
    }

    /// A worker wants something of all.
    pub(super) fn grant(&mut self, generation: u32, request: &Request) {
        match request {
            Request::SetWorkers(count) if (1..=MAX_WORKERS).contains(count) => {
                self.pool.set_wanted(*count);
            }
            Request::SetWorkers(_) => {}
            Request::Reload => self.pool.reload(),
            request => {
                if self.comply(request).is_ok() {
                    // The one that wants it has done it already.
                    for other in self.all_but(generation) {
                        let (number, request) = (NOBODY, request.clone());
                        self.order(other, Order::Ask { number, request });
                    }
                }
            }
        }
    }

    pub(super) fn resize(&mut self, by: isize) {
        let wanted = self.pool.wanted().saturating_add_signed(by);
        self.pool.set_wanted(wanted.clamp(1, MAX_WORKERS));
    }

    /// Does what is this process's part, and what those inherit that are forked from now on.
    fn comply(&mut self, request: &Request) -> Result<(), Refusal> {
        self.control.comply(request)?;
        match request {
            Request::StopListener(name) => {
                if let Err(err) = self.hide(name, true) {
                    self.control.observer().failed(None, "renameat2", &err);
                }
            }
            Request::StartListener(name) => {
                if let Err(err) = self.hide(name, false) {
                    // Something else is in its place: it stays as it was, until somebody says so again.
                    self.control.observer().failed(None, "renameat2", &err);
                    self.control.gate().set_stopped(name, true);
                    let _ = self.hide(name, true);
                    return Err(Refusal::NotStarted(name.clone()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn hide(&self, listener: &str, hidden: bool) -> std::io::Result<()> {
        let mut bound = self.bound.iter();
        let bound = bound.find(|bound| *bound.name == *listener);
        bound.map_or(Ok(()), |bound| bound.set_hidden(hidden))
    }

    fn ask_all(&mut self, number: u64, request: &Request) {
        let mut waits_for = HashSet::new();
        let listens = |worker: &Worker| self.listens(worker.generation);
        let asked: Vec<Worker> = match request {
            // Those that start have nothing to tell yet, and those that do not listen nothing in time.
            Request::Status => self.pool.ready_workers().filter(listens).collect(),
            // They were forked before this was said, and have it in front of them when they begin to serve.
            _ => self.pool.staying_workers().collect(),
        };
        for worker in asked {
            let order = Order::Ask {
                number,
                request: request.clone(),
            };
            if self.order(worker.generation, order) {
                waits_for.insert(worker.generation);
            }
        }
        self.questions.push(Question {
            number,
            waits_for,
            deadline: Instant::now() + PATIENCE,
            status: self.control.gate().status(),
        });
    }

    /// A worker has answered.
    pub(super) fn is_answered(&mut self, generation: u32, number: u64, said: Option<Status>) {
        let mut questions = self.questions.iter_mut();
        let Some(question) = questions.find(|question| question.number == number) else {
            return;
        };
        if !question.waits_for.remove(&generation) {
            return;
        }
        let Some(said) = said else { return };
        let sum = &mut question.status;
        for (ours, theirs) in sum.listeners.iter_mut().zip(said.listeners) {
            ours.connections = ours.connections.saturating_add(theirs.connections);
        }
    }

    /// A worker has ended, and answers nothing any more.
    pub(super) fn is_answered_by_nobody(&mut self, generation: u32) {
        for question in &mut self.questions {
            question.waits_for.remove(&generation);
        }
    }

    /// Answers the questions that all have answered.
    pub(super) fn answer_complete(&mut self, ties: Option<&Ties>) {
        self.answer_those(ties, |question| question.waits_for.is_empty());
    }

    /// Answers the questions that have waited for long enough.
    pub(super) fn answer_overdue(&mut self, ties: Option<&Ties>) {
        let now = Instant::now();
        self.answer_those(ties, |question| question.deadline <= now);
    }

    fn answer_those(&mut self, ties: Option<&Ties>, is_due: impl Fn(&Question) -> bool) {
        let (due, rest) = std::mem::take(&mut self.questions)
            .into_iter()
            .partition(is_due);
        self.questions = rest;
        let due: Vec<Question> = due;
        for question in due {
            let status = self.summed_up(question.status);
            if let Some(ties) = ties {
                self.answer(ties, question.number, Ok(status));
            }
        }
    }

    /// The status of the whole server.
    fn summed_up(&self, status: Status) -> Status {
        let mut pool = self.board.status();
        pool.leave_out_calls();
        let workers = || pool.workers.iter();
        let sum =
            |count: fn(&WorkerStatus) -> u64| workers().map(count).fold(0, u64::saturating_add);
        Status {
            connections: sum(|worker| worker.connections as u64) as usize,
            streams: sum(|worker| worker.streams as u64) as usize,
            accepted: self
                .totals
                .accepted
                .saturating_add(sum(|worker| worker.accepted)),
            calls: self
                .totals
                .calls
                .saturating_add(sum(|worker| worker.served)),
            pool: Some(pool),
            ..status
        }
    }

    /// A reload is over.
    pub(super) fn answer_reloads(&mut self, is_through: bool, ties: Option<&Ties>) {
        for number in std::mem::take(&mut self.reloads) {
            match (is_through, ties) {
                (true, _) => self.ask_all(number, &Request::Status),
                (false, Some(ties)) => self.answer(ties, number, Err(Refusal::NotReloaded)),
                (false, None) => {}
            }
        }
        self.answer_complete(ties);
    }

    /// Has a worker finish what it has begun, and end. One that does not listen is killed in time.
    pub(super) fn stop(&mut self, worker: Worker) {
        let patience = self.server.grace;
        self.order(worker.generation, Order::Stop { patience });
    }
}
