//! The threads of an engine, and which of them leads.
//!
//! Invariant: at most one thread sleeps in the event set. Only the leader does; it keeps the lead while it serves
//! what it took, until it gives it away or the watchdog finds that it is stuck. A thread that is not needed waits
//! to lead.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Nobody leads, and nobody has been called to: the first thread that is free shall.
const NOBODY: u64 = 0;
/// Nobody leads, but somebody is on the way.
const CALLED: u64 = 1;

/// Which thread leads, and who waits for it.
pub(super) struct Crew {
    /// The leader's token; a new one each time the lead is taken.
    lead: AtomicU64,
    /// How many events leaders have begun to serve.
    events: AtomicU64,
    /// Which of them the leader is serving, 0 while it waits for the next.
    serving: AtomicU64,
    /// Threads that wait to lead and have not been called.
    waiting: AtomicUsize,
    threads: AtomicUsize,
    max_threads: usize,
    /// How many milliseconds the watchdog has been awake for.
    ticks: AtomicU64,
    /// No thread is started before it has been for so many: the system had none for us.
    no_spawn_before: AtomicU64,
    /// The watchdog looks, as long as there is something to see.
    watched: AtomicBool,
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Default)]
struct State {
    last_token: u64,
    /// Threads that were called and have not woken up yet.
    calls: usize,
    ending: bool,
}

/// How long the watchdog waits between two looks at most, in milliseconds. It wakes up for nothing most times, and each worker
/// of several has one.
const SLOWEST: u32 = 8;
/// So long it looks every millisecond, in milliseconds, after a leader was stuck: there are handlers that take their time.
const ALERT: u32 = 1000;

/// What the watchdog saw when it looked last.
pub(super) struct Watch {
    seen: u64,
    quiet: u32,
    /// How many milliseconds it waits for the next look.
    pace: u32,
    /// For how many it looks at each.
    alert: u32,
}

impl Watch {
    pub(super) fn new() -> Watch {
        Watch {
            seen: 0,
            quiet: 0,
            pace: 1,
            alert: 0,
        }
    }

    /// How long it waits until it looks again.
    pub(super) fn pace(&self) -> Duration {
        Duration::from_millis(self.pace.into())
    }

    /// The next look is soon.
    pub(super) fn hurry(&mut self) {
        self.pace = 1;
    }

    /// All goes well.
    fn slow_down(&mut self, slowest: u32) {
        self.alert = self.alert.saturating_sub(self.pace);
        self.pace = match self.alert {
            0 => (self.pace * 2).min(slowest),
            _ => 1,
        };
    }
}

/// What somebody should do so that there is a leader.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Relief {
    /// A thread has been called.
    Called,
    /// A new thread is needed; it has been counted already.
    Spawn,
    /// All threads are busy; the first that is free will lead.
    None,
}

impl Crew {
    /// A crew of one thread, which is about to be started. The watchdog looks from the start on.
    pub(super) fn new(max_threads: usize) -> Crew {
        Crew {
            lead: AtomicU64::new(NOBODY),
            events: AtomicU64::new(0),
            serving: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            threads: AtomicUsize::new(1),
            max_threads: max_threads.max(1),
            ticks: AtomicU64::new(0),
            no_spawn_before: AtomicU64::new(0),
            watched: AtomicBool::new(true),
            state: Mutex::new(State {
                last_token: CALLED,
                ..State::default()
            }),
            called: Condvar::new(),
        }
    }

    /// Waits until there is no leader, and is the leader then. `None`: the engine ends.
    pub(super) fn take_lead(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.ending {
                return None;
            }
            if [NOBODY, CALLED].contains(&self.lead.load(Ordering::SeqCst)) {
                state.last_token += 1;
                self.lead.store(state.last_token, Ordering::SeqCst);
                return Some(state.last_token);
            }
            self.waiting.fetch_add(1, Ordering::SeqCst);
            state = self
                .called
                .wait_while(state, |state| state.calls == 0 && !state.ending)
                .unwrap_or_else(PoisonError::into_inner);
            match state.calls.checked_sub(1) {
                // Whoever called has counted us out.
                Some(calls) => state.calls = calls,
                None => drop(self.waiting.fetch_sub(1, Ordering::SeqCst)),
            }
        }
    }

    pub(super) fn leads(&self, token: u64) -> bool {
        self.lead.load(Ordering::SeqCst) == token
    }

    /// Whether nobody leads, or is about to.
    pub(super) fn is_headless(&self) -> bool {
        self.lead.load(Ordering::SeqCst) == NOBODY
    }

    /// Whether somebody could take over from a leader that sleeps in a read.
    pub(super) fn has_reserve(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0 || self.may_spawn()
    }

    /// The leader begins to serve an event, which gets a number. `true`: the watchdog sleeps and must be woken.
    pub(super) fn begin_event(&self) -> (u64, bool) {
        let event = self.events.fetch_add(1, Ordering::SeqCst) + 1;
        self.serving.store(event, Ordering::SeqCst);
        (event, self.wake_watchdog())
    }

    /// There is something for the watchdog to see. `true`: it sleeps and must be woken.
    pub(super) fn wake_watchdog(&self) -> bool {
        // Most times it does not, and to look is cheaper.
        !self.watched.load(Ordering::SeqCst) && !self.watched.swap(true, Ordering::SeqCst)
    }

    /// The event is over. `false`: the lead was given away, or taken, meanwhile.
    pub(super) fn end_event(&self, event: u64) -> bool {
        self.serving
            .compare_exchange(event, 0, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// The leader `token` gives the lead away, if somebody can take it.
    pub(super) fn hand_over(&self, token: u64) -> Relief {
        if !self.leads(token) || !self.has_reserve() {
            return Relief::None;
        }
        self.serving.store(0, Ordering::SeqCst);
        self.depose(token)
    }

    /// The watchdog looks, and takes the lead from a leader that is stuck in the same event as last time: that is for a
    /// millisecond at least, and for [`SLOWEST`] and half as long again at most.
    /// `None`: there is nothing to look at any more.
    pub(super) fn look(&self, watch: &mut Watch) -> Option<Relief> {
        self.ticks.fetch_add(watch.pace.into(), Ordering::Relaxed);
        let (token, events) = (
            self.lead.load(Ordering::SeqCst),
            self.events.load(Ordering::SeqCst),
        );
        let serving = self.serving.load(Ordering::SeqCst);
        if events != watch.seen {
            (watch.seen, watch.quiet) = (events, 0);
            match serving {
                0 => watch.slow_down(SLOWEST),
                // It has just begun, most times.
                _ => watch.slow_down(SLOWEST / 2),
            }
            return Some(Relief::None);
        }
        watch.hurry();
        if serving != 0 && serving == events && token > CALLED {
            // Who sets it to zero decides whether the event was over in time.
            let stuck = || {
                self.serving
                    .compare_exchange(serving, 0, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            };
            return Some(if self.has_reserve() && stuck() {
                watch.alert = ALERT;
                self.depose(token)
            } else {
                Relief::None
            });
        }
        watch.quiet += 1;
        if watch.quiet < 2 {
            return Some(Relief::None);
        }
        self.watched.store(false, Ordering::SeqCst);
        // An event that began before the flag fell has not woken us.
        if self.events.load(Ordering::SeqCst) != events
            && !self.watched.swap(true, Ordering::SeqCst)
        {
            return Some(Relief::None);
        }
        None
    }

    fn depose(&self, token: u64) -> Relief {
        let mut state = self.lock();
        if self
            .lead
            .compare_exchange(token, NOBODY, Ordering::SeqCst, Ordering::SeqCst)
            .is_err()
        {
            return Relief::None;
        }
        let relief = self.relieve(&mut state);
        if relief != Relief::None {
            self.lead.store(CALLED, Ordering::SeqCst);
        }
        relief
    }

    /// Calls somebody to lead, if anybody waits; or makes room for a new thread.
    fn relieve(&self, state: &mut State) -> Relief {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            state.calls += 1;
            self.called.notify_one();
            return Relief::Called;
        }
        if self.may_spawn() {
            self.threads.fetch_add(1, Ordering::SeqCst);
            return Relief::Spawn;
        }
        Relief::None
    }

    fn may_spawn(&self) -> bool {
        self.threads.load(Ordering::SeqCst) < self.max_threads
            && self.ticks.load(Ordering::Relaxed) >= self.no_spawn_before.load(Ordering::Relaxed)
    }

    /// A thread that was counted could not be started; it is not tried again for a while.
    pub(super) fn could_not_spawn(&self) {
        const WHILE: u64 = 1000;
        self.threads.fetch_sub(1, Ordering::SeqCst);
        let _ = self
            .lead
            .compare_exchange(CALLED, NOBODY, Ordering::SeqCst, Ordering::SeqCst);
        self.no_spawn_before.store(
            self.ticks.load(Ordering::Relaxed) + WHILE,
            Ordering::Relaxed,
        );
    }

    /// Those who wait to lead return. Those who wait for events have to be woken.
    pub(super) fn end(&self) {
        self.lock().ending = true;
        self.lead.store(NOBODY, Ordering::SeqCst);
        self.called.notify_all();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.lock().ending
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
