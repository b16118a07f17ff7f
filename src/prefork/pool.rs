//! Which workers there are, and which there shall be.
//!
//! Invariant: one worker at a time is being replaced, and it leaves when its successor serves, and not before.

mod reloads;

use super::MOMENT;
use super::crashes::Crashes;
use super::member::{Act, Life, Member, Phase, Transit};
use crate::exit::Exit;
use crate::scoreboard::{MAX_WORKERS, PoolEvent, ReplaceReason};
use crate::worker::Worker;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// No more than these at a time, those that leave included.
const MAX_MEMBERS: usize = 2 * MAX_WORKERS;

/// All workers.
#[derive(Debug)]
pub(crate) struct Pool {
    wanted: usize,
    members: Vec<Member>,
    last_generation: u32,
    /// Those that are to be replaced, in turn.
    worn: VecDeque<(u32, ReplaceReason)>,
    transit: Option<Transit>,
    /// All up to this generation are to be replaced; 0: none.
    outdated: u32,
    crashes: Crashes,
    /// Slots whose worker cannot be started.
    given_up: BTreeSet<u32>,
    stopping: bool,
    acts: VecDeque<Act>,
    min_uptime: Duration,
    start_timeout: Duration,
    grace: Duration,
}

impl Pool {
    /// A pool that shall have so many workers and has none yet. One that is not ready after `start_timeout` is killed, and one
    /// that has not left after `grace`, each time that has passed.
    pub(crate) fn new(
        wanted: usize,
        min_uptime: Duration,
        start_timeout: Duration,
        grace: Duration,
        seed: u64,
    ) -> Pool {
        Pool {
            wanted,
            members: Vec::new(),
            last_generation: 0,
            worn: VecDeque::new(),
            transit: None,
            outdated: 0,
            crashes: Crashes::new(seed),
            given_up: BTreeSet::new(),
            stopping: false,
            acts: VecDeque::new(),
            min_uptime,
            start_timeout,
            // It takes a moment to see an end.
            grace: grace.max(MOMENT),
        }
    }

    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    pub(crate) fn set_wanted(&mut self, wanted: usize) {
        self.wanted = wanted;
        self.given_up.retain(|slot| (*slot as usize) < wanted);
    }

    /// The monitor did not run for a while: whoever begins, or ends, has all the time for that once more.
    pub(crate) fn was_away(&mut self, now: Instant) {
        let is_timed = |member: &&mut Member| !matches!(member.phase, Phase::Ready);
        for member in self.members.iter_mut().filter(is_timed) {
            member.since = now;
        }
    }

    pub(crate) fn deaths(&self) -> u32 {
        self.crashes.count()
    }

    pub(crate) fn is_crash_loop(&self) -> bool {
        self.crashes.is_loop()
    }

    /// Nobody is started any more, and all that there are were told to finish.
    pub(crate) fn stop(&mut self, now: Instant) {
        self.stopping = true;
        for member in self.members.iter_mut().filter(|member| member.stays()) {
            (member.phase, member.since) = (Phase::Leaving, now);
        }
    }

    /// Whether all serve that shall.
    pub(crate) fn is_up(&self) -> bool {
        (0..self.wanted).all(|slot| self.serves(slot as u32))
    }

    fn serves(&self, slot: u32) -> bool {
        let mut ready = self
            .members
            .iter()
            .filter(|member| member.phase == Phase::Ready);
        ready.any(|member| member.worker.slot == slot)
    }

    /// Whether nobody serves, and nobody is going to.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.members.is_empty() && self.given_up.len() >= self.wanted
    }

    /// Those that serve.
    pub(crate) fn ready_workers(&self) -> impl Iterator<Item = Worker> {
        let ready = self
            .members
            .iter()
            .filter(|member| member.phase == Phase::Ready);
        ready.map(|member| member.worker)
    }

    /// Those that serve, or are going to.
    pub(crate) fn staying_workers(&self) -> impl Iterator<Item = Worker> {
        let staying = self.members.iter().filter(|member| member.stays());
        staying.map(|member| member.worker)
    }

    /// What is to be done next. After `None`, nothing is before [`Pool::deadline`], unless something happens.
    pub(crate) fn next_act(&mut self, now: Instant) -> Option<Act> {
        if self.acts.is_empty() {
            self.end_overdue(now);
            self.heal(now);
            self.end_reload();
            if !self.stopping {
                self.shrink(now);
                self.fill(now);
                self.replace_next(now);
            }
        }
        self.acts.pop_front()
    }

    /// When there is something to be done even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let of_members = self.members.iter().filter_map(|member| match member.phase {
            Phase::Starting => member.since.checked_add(self.start_timeout),
            Phase::Leaving => member.since.checked_add(self.grace),
            Phase::Ready if self.is_new(member) => member.since.checked_add(self.min_uptime),
            Phase::Ready | Phase::Killed => None,
        });
        let pause = self.crashes.not_before().filter(|_| self.wants_to_fork());
        of_members.chain(pause).min()
    }

    fn wants_to_fork(&self) -> bool {
        !self.stopping && (self.free_slot().is_some() || self.next_worn().is_some())
    }

    /// Whether a worker was started since others have begun to die young, so that its health says something.
    fn is_new(&self, member: &Member) -> bool {
        self.crashes
            .since()
            .is_some_and(|since| member.since >= since)
    }

    /// A worker serves.
    pub(crate) fn ready(&mut self, generation: u32, pid: u32, now: Instant) {
        let Some(member) = self.member(generation) else {
            return;
        };
        if member.phase != Phase::Starting {
            return;
        }
        (member.phase, member.since) = (Phase::Ready, now);
        let worker = member.worker;
        self.tell(PoolEvent::Ready { worker, pid });
        let old = self
            .transit
            .as_ref()
            .filter(|transit| transit.new == generation);
        if let Some(old) = old.map(|transit| transit.old) {
            self.send_away(old, now);
        }
    }

    /// A worker shall be replaced when it is its turn.
    pub(crate) fn wears_out(&mut self, generation: u32, reason: ReplaceReason) {
        let is_known = self.worn.iter().any(|(worn, _)| *worn == generation);
        if !is_known {
            self.worn.push_back((generation, reason));
        }
    }

    /// A worker says that it cannot be started.
    pub(crate) fn failed(&mut self, generation: u32, reason: String, now: Instant) {
        let Some(member) = self.member(generation) else {
            return;
        };
        // It ends by itself.
        (member.phase, member.since) = (Phase::Leaving, now);
        let worker = member.worker;
        self.tell(PoolEvent::NotStarted { worker, reason });
        match self.transit.take_if(|transit| transit.new == generation) {
            Some(transit) => {
                self.worn.retain(|(old, _)| *old != transit.old);
                self.back_out(transit.reason);
            }
            // What was started before a reload says nothing about those that are started by it.
            None if worker.generation <= self.outdated => {}
            None => {
                self.given_up.insert(worker.slot);
                self.fail_reload();
            }
        }
    }

    /// A worker could not be forked.
    pub(crate) fn not_forked(&mut self, generation: u32, reason: String, now: Instant) {
        self.members
            .retain(|member| member.worker.generation != generation);
        self.tell(PoolEvent::NotForked { reason });
        self.count_death(now);
        if let Some(transit) = self.transit.take_if(|transit| transit.new == generation) {
            self.back_out(transit.reason);
        }
    }

    /// A worker is being killed because it hangs, or is too slow. `false`: it was before, and dies slowly.
    pub(crate) fn kills(&mut self, generation: u32, now: Instant) -> bool {
        let is_alive = |member: &&mut Member| member.phase != Phase::Killed;
        let Some(member) = self.member(generation).filter(is_alive) else {
            return false;
        };
        // Its successor does not wait until it is dead, but a pause.
        let (worker, life) = (member.worker, member.life(now));
        (member.phase, member.since) = (Phase::Killed, now);
        self.count_life(worker, life, now);
        true
    }

    /// A worker has ended.
    pub(crate) fn ended(&mut self, generation: u32, exit: Exit, now: Instant) {
        let is_it = |member: &Member| member.worker.generation == generation;
        let Some(place) = self.members.iter().position(is_it) else {
            return;
        };
        let member = self.members.swap_remove(place);
        let worker = member.worker;
        self.worn.retain(|(worn, _)| *worn != generation);
        self.tell(match member.phase {
            Phase::Leaving => PoolEvent::Left { worker, exit },
            _ => PoolEvent::Died { worker, exit },
        });
        self.count_life(worker, member.life(now), now);
        match self.transit.take_if(|transit| transit.new == generation) {
            Some(transit) => self.back_out(transit.reason),
            None => drop(self.transit.take_if(|transit| transit.old == generation)),
        }
    }

    /// A life is over that nobody has ended.
    fn count_life(&mut self, worker: Worker, life: Life, now: Instant) {
        let is_young = match life {
            Life::Serving(time) => time < self.min_uptime,
            Life::Starting => true,
            Life::Over => false,
        };
        // What was started before a reload says nothing about those that are started by it.
        if life == Life::Starting && worker.generation > self.outdated {
            self.fail_reload();
        }
        if is_young {
            self.count_death(now);
        }
    }

    fn count_death(&mut self, now: Instant) {
        if self.crashes.add(now) {
            let deaths = self.crashes.count();
            self.tell(PoolEvent::CrashLoop { deaths });
        }
    }

    fn member(&mut self, generation: u32) -> Option<&mut Member> {
        let mut members = self.members.iter_mut();
        members.find(|member| member.worker.generation == generation)
    }

    fn tell(&mut self, event: PoolEvent) {
        self.acts.push_back(Act::Tell(event));
    }

    /// Has a worker finish and end.
    fn send_away(&mut self, generation: u32, now: Instant) {
        if let Some(member) = self.member(generation).filter(|member| member.stays()) {
            (member.phase, member.since) = (Phase::Leaving, now);
            let worker = member.worker;
            self.acts.push_back(Act::Stop(worker));
        }
    }

    /// Kills those that have taken too long to begin, or to end.
    fn end_overdue(&mut self, now: Instant) {
        let mut slow = Vec::new();
        for member in &mut self.members {
            let age = now.saturating_duration_since(member.since);
            match member.phase {
                Phase::Starting if age >= self.start_timeout => slow.push(member.worker),
                Phase::Leaving if age >= self.grace => {
                    // Once more after as long, should it still be there.
                    member.since = now;
                    self.acts.push_back(Act::Kill(member.worker));
                }
                _ => {}
            }
        }
        for worker in slow {
            self.acts.push_back(Act::Kill(worker));
            self.tell(PoolEvent::TooSlow { worker });
            self.kills(worker.generation, now);
        }
    }

    /// Ends the pauses when one has lived for long enough that was started since.
    fn heal(&mut self, now: Instant) {
        let is_healthy = |member: &Member| {
            member.phase == Phase::Ready
                && self.is_new(member)
                && now.duration_since(member.since) >= self.min_uptime
        };
        if self.members.iter().any(is_healthy) && self.crashes.end() {
            self.tell(PoolEvent::Recovered);
        }
    }

    fn shrink(&mut self, now: Instant) {
        let wanted = self.wanted;
        let is_surplus = |member: &&Member| member.stays() && member.worker.slot as usize >= wanted;
        let surplus = self.members.iter().filter(is_surplus);
        let surplus: Vec<u32> = surplus.map(|member| member.worker.generation).collect();
        for generation in surplus {
            self.send_away(generation, now);
        }
    }

    fn fill(&mut self, now: Instant) {
        while let Some(slot) = self.free_slot().filter(|_| self.may_fork(now)) {
            self.fork(slot, now);
        }
    }

    fn free_slot(&self) -> Option<u32> {
        let is_held = |slot: &u32| {
            let mut members = self.members.iter();
            members.any(|member| member.stays() && member.worker.slot == *slot)
        };
        let mut slots = 0..self.wanted as u32;
        slots.find(|slot| !is_held(slot) && !self.given_up.contains(slot))
    }

    fn may_fork(&self, now: Instant) -> bool {
        !self.crashes.is_pause(now) && self.members.len() < MAX_MEMBERS
    }

    fn fork(&mut self, slot: u32, now: Instant) -> u32 {
        self.last_generation += 1;
        let worker = Worker {
            slot,
            generation: self.last_generation,
        };
        self.members.push(Member {
            worker,
            phase: Phase::Starting,
            since: now,
        });
        self.acts.push_back(Act::Fork(worker));
        worker.generation
    }

    /// Whose turn it is to be replaced.
    fn next_worn(&self) -> Option<(Worker, ReplaceReason)> {
        if self.transit.is_some() {
            return None;
        }
        let mut ready: Vec<Worker> = self.ready_workers().collect();
        ready.sort_by_key(|worker| worker.slot);
        let outdated = ready
            .iter()
            .find(|worker| worker.generation <= self.outdated);
        let worn = self.worn.iter().find_map(|(worn, reason)| {
            let worker = ready.iter().find(|worker| worker.generation == *worn)?;
            Some((*worker, *reason))
        });
        outdated
            .map(|worker| (*worker, ReplaceReason::Reload))
            .or(worn)
    }

    fn replace_next(&mut self, now: Instant) {
        let Some((worker, reason)) = self.next_worn().filter(|_| self.may_fork(now)) else {
            return;
        };
        self.tell(PoolEvent::Replaced { worker, reason });
        let new = self.fork(worker.slot, now);
        self.transit = Some(Transit {
            old: worker.generation,
            new,
            reason,
        });
    }
}
