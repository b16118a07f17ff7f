//! The pool against a model of a monitor that does what it says, and of workers that do what they like.

use super::{Act, Hung, Measure, Pool, Prefork};
use crate::exit::Exit;
use crate::scoreboard::{Board, Fate, PoolEvent, ReplaceReason};
use crate::sys::clock;
use crate::worker::Worker;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};

const UPTIME: Duration = Duration::from_secs(1);
const START: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(4);

/// A worker that is alive.
#[derive(Debug)]
struct Alive {
    worker: Worker,
    ready: bool,
    told_to_stop: bool,
}

struct World {
    pool: Pool,
    alive: Vec<Alive>,
    now: Instant,
    told: Vec<PoolEvent>,
}

impl World {
    fn new(wanted: usize) -> World {
        World::with(wanted, UPTIME, 1)
    }

    fn with(wanted: usize, min_uptime: Duration, seed: u64) -> World {
        let mut world = World {
            pool: Pool::new(wanted, min_uptime, START, GRACE, seed),
            alive: Vec::new(),
            now: Instant::now(),
            told: Vec::new(),
        };
        world.settle();
        world
    }

    /// Does what the pool wants.
    fn settle(&mut self) {
        while let Some(act) = self.pool.next_act(self.now) {
            match act {
                Act::Fork(worker) => self.alive.push(Alive {
                    worker,
                    ready: false,
                    told_to_stop: false,
                }),
                Act::Stop(worker) => {
                    let found = self.alive.iter_mut().find(|alive| alive.worker == worker);
                    found.expect("only the living are told").told_to_stop = true;
                }
                Act::Kill(worker) => self.die(worker.generation, Exit::Signal(9)),
                Act::Tell(event) => self.told.push(event),
            }
        }
        assert!(self.alive.len() <= 2 * 255);
        // Nobody is told to go whose successor does not serve, unless there are too many.
        let starting = self
            .alive
            .iter()
            .filter(|alive| !alive.ready && !alive.told_to_stop);
        let ready = self
            .alive
            .iter()
            .filter(|alive| alive.ready && !alive.told_to_stop);
        assert!(starting.count() + ready.count() <= self.pool.wanted() + 1);
    }

    fn ready(&mut self, generation: u32) {
        let found = self
            .alive
            .iter_mut()
            .find(|alive| alive.worker.generation == generation);
        let Some(alive) = found else { return };
        alive.ready = true;
        self.pool.ready(generation, 1, self.now);
        self.settle();
    }

    fn all_ready(&mut self) {
        while let Some(alive) = self.alive.iter().find(|alive| !alive.ready) {
            self.ready(alive.worker.generation);
        }
    }

    fn die(&mut self, generation: u32, exit: Exit) {
        self.alive
            .retain(|alive| alive.worker.generation != generation);
        self.pool.ended(generation, exit, self.now);
        self.settle();
    }

    fn generations(&self) -> Vec<u32> {
        self.alive
            .iter()
            .map(|alive| alive.worker.generation)
            .collect()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn has_told(&self, event: &PoolEvent) -> usize {
        self.told.iter().filter(|told| *told == event).count()
    }
}

#[test]
fn as_many_are_there_as_there_shall_be() {
    let mut world = World::new(3);
    assert_eq!(world.generations(), [1, 2, 3]);
    assert!(!world.pool.is_up());
    world.all_ready();
    assert!(world.pool.is_up());
    world.pool.set_wanted(1);
    world.settle();
    let stay: Vec<u32> = world
        .alive
        .iter()
        .filter(|alive| !alive.told_to_stop)
        .map(|alive| alive.worker.slot)
        .collect();
    assert_eq!(stay, [0]);
}

#[test]
fn a_dead_ones_slot_is_filled_at_once() {
    let mut world = World::new(2);
    world.all_ready();
    world.wait(UPTIME);
    world.die(1, Exit::Signal(11));
    assert_eq!(world.generations(), [2, 3]);
    assert_eq!(world.alive[1].worker.slot, 0);
}

#[test]
fn one_that_does_not_leave_is_killed_after_the_grace() {
    let mut world = World::new(2);
    world.all_ready();
    world.pool.set_wanted(1);
    world.settle();
    world.wait(GRACE - Duration::from_millis(1));
    assert_eq!(world.alive.len(), 2);
    assert!(world.pool.deadline().is_some_and(|at| at > world.now));
    world.wait(Duration::from_millis(1));
    assert_eq!(world.generations(), [1]);
}

/// The pauses behind forty deaths of the only worker, each of which `dies`.
fn pauses(world: &mut World, dies: impl Fn(&mut World)) -> Vec<Duration> {
    let pause = |_| {
        dies(world);
        let died = world.now;
        while world.alive.is_empty() {
            world.now = world.pool.deadline().expect("it is tried again");
            world.settle();
        }
        world.now - died
    };
    (0..40).map(pause).collect()
}

fn dies_as_it_starts(world: &mut World) {
    let generation = world.generations()[0];
    world.die(generation, Exit::Code(1));
}

fn dies_young(world: &mut World) {
    world.all_ready();
    dies_as_it_starts(world);
}

#[test]
fn deaths_before_readiness_are_young_whatever_the_least_uptime_is() {
    let mut world = World::with(1, Duration::ZERO, 1);
    let before = pauses(&mut world, dies_as_it_starts);
    assert!(before[3] >= Duration::from_millis(40), "{before:?}");
    assert_eq!(world.has_told(&PoolEvent::CrashLoop { deaths: 8 }), 1);
    let mut world = World::with(1, Duration::ZERO, 1);
    assert_eq!(pauses(&mut world, dies_young), [Duration::ZERO; 40]);
}

#[test]
fn one_that_is_too_slow_or_cannot_be_forked_has_died_young() {
    let mut world = World::with(1, Duration::ZERO, 1);
    // The one that is too slow is killed.
    let slow = pauses(&mut world, |world| {
        let generation = world.generations()[0];
        world.wait(START);
        assert_ne!(world.generations().first(), Some(&generation));
    });
    assert!(slow[10] >= Duration::from_millis(400), "{slow:?}");
    let mut world = World::with(1, Duration::ZERO, 1);
    let refused = pauses(&mut world, |world| {
        let generation = world.generations()[0];
        world.alive.clear();
        world
            .pool
            .not_forked(generation, "no memory".into(), world.now);
        world.settle();
    });
    assert!(refused[10] >= Duration::from_millis(400), "{refused:?}");
}

#[test]
fn pauses_differ_from_server_to_server() {
    let of_seed = |seed| pauses(&mut World::with(1, UPTIME, seed), dies_young);
    let (one, other) = (of_seed(1), of_seed(2));
    let alike = one.iter().zip(&other).filter(|(one, other)| one == other);
    assert_eq!(alike.count(), 3, "those that are none: {one:?}, {other:?}");
}

#[test]
fn young_deaths_are_followed_by_pauses_that_grow_to_half_a_minute() {
    let mut world = World::new(1);
    let pauses = pauses(&mut world, dies_young);
    assert_eq!(
        pauses[..3],
        [Duration::ZERO; 3],
        "the first are for nothing"
    );
    assert!(pauses[3] >= Duration::from_millis(40) && pauses[3] <= Duration::from_millis(60));
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(30)));
    assert!(pauses[39] >= Duration::from_secs(15));
    assert_eq!(world.has_told(&PoolEvent::CrashLoop { deaths: 8 }), 1);
    world.all_ready();
    world.wait(UPTIME);
    assert_eq!(world.has_told(&PoolEvent::Recovered), 1);
    let generation = world.generations()[0];
    world.die(generation, Exit::Code(1));
    assert_eq!(world.alive.len(), 1, "all is forgiven");
}

#[test]
fn one_that_has_lived_long_enough_does_not_count() {
    let mut world = World::new(1);
    for _ in 0..20 {
        world.all_ready();
        world.wait(UPTIME);
        let generation = world.generations()[0];
        world.die(generation, Exit::Signal(11));
        assert_eq!(world.alive.len(), 1);
    }
    assert_eq!(world.pool.deaths(), 0);
}

#[test]
fn worn_ones_are_replaced_one_at_a_time() {
    let mut world = World::new(3);
    world.all_ready();
    for generation in [1, 2, 3] {
        world.pool.wears_out(generation, ReplaceReason::Calls);
    }
    world.settle();
    for (old, new) in [(1, 4), (2, 5), (3, 6)] {
        let starting: Vec<u32> = world
            .alive
            .iter()
            .filter(|alive| !alive.ready)
            .map(|alive| alive.worker.generation)
            .collect();
        assert_eq!(starting, [new]);
        assert!(world.alive.iter().all(|alive| !alive.told_to_stop));
        world.ready(new);
        let leaving: Vec<u32> = world
            .alive
            .iter()
            .filter(|alive| alive.told_to_stop)
            .map(|alive| alive.worker.generation)
            .collect();
        assert_eq!(leaving, [old]);
        world.die(old, Exit::Code(0));
    }
    assert_eq!(world.generations(), [4, 5, 6]);
}

#[test]
fn a_failed_start_takes_the_slot_out_and_a_reload_brings_it_back() {
    let mut world = World::new(2);
    world.all_ready();
    world.die(1, Exit::Signal(9));
    world.pool.failed(3, "no".into(), world.now);
    world.die(3, Exit::Code(1));
    world.wait(Duration::from_secs(600));
    assert_eq!(world.generations(), [2]);
    assert!(!world.pool.is_hopeless());
    world.pool.reload();
    world.settle();
    world.all_ready();
    world.die(2, Exit::Code(0));
    world.all_ready();
    assert_eq!(world.alive.len(), 2);
    assert!(world.alive.iter().all(|alive| alive.worker.generation > 3));
    assert_eq!(world.has_told(&PoolEvent::Reloaded), 1);
}

#[test]
fn a_start_that_a_reload_has_come_upon_may_fail_once_more() {
    let mut world = World::new(2);
    world.all_ready();
    world.die(1, Exit::Signal(9));
    // The successor has found out already why it cannot start, and has not said so.
    world.pool.reload();
    world.settle();
    world.pool.failed(3, "no".into(), world.now);
    world.die(3, Exit::Code(1));
    world.all_ready();
    world.die(2, Exit::Code(0));
    assert_eq!(world.alive.len(), 2);
    assert!(world.alive.iter().all(|alive| alive.worker.generation > 3));
    assert_eq!(world.has_told(&PoolEvent::Reloaded), 1);
}

#[test]
fn one_that_was_old_before_it_served_does_not_end_a_reload() {
    let mut world = World::new(1);
    world.all_ready();
    world.die(1, Exit::Signal(9));
    // Another one begins, and is to be replaced before it does.
    world.pool.reload();
    world.die(2, Exit::Signal(6));
    world.all_ready();
    let told = [PoolEvent::Reloaded, PoolEvent::NotReloaded].map(|event| world.has_told(&event));
    assert_eq!(told, [1, 0]);
}

#[test]
fn a_reload_where_nobody_serves_is_over_when_all_do_or_one_fails() {
    let mut world = World::new(2);
    world.all_ready();
    (1..=2).for_each(|generation| world.die(generation, Exit::Signal(9)));
    world.pool.reload();
    world.settle();
    assert!(world.pool.is_reloading(), "those that begin are old, too");
    world.all_ready();
    // They are replaced like any others.
    (3..=4).for_each(|old| {
        world.all_ready();
        world.die(old, Exit::Code(0));
    });
    world.all_ready();
    assert_eq!(world.has_told(&PoolEvent::Reloaded), 1);

    // All that there are die young, and the reload ends the pause.
    (0..20).for_each(|_| {
        let alive = world.generations();
        alive
            .into_iter()
            .for_each(|generation| world.die(generation, Exit::Signal(6)));
    });
    assert!(world.alive.is_empty(), "it is a pause");
    world.pool.reload();
    world.settle();
    assert!(world.pool.is_reloading(), "nobody serves yet");
    let new = world.generations();
    world.die(new[0], Exit::Signal(6));
    assert_eq!(world.has_told(&PoolEvent::NotReloaded), 1);
    assert_eq!(world.has_told(&PoolEvent::Reloaded), 1);
}

#[test]
fn when_all_slots_have_failed_there_is_no_hope() {
    let mut world = World::new(1);
    world.all_ready();
    world.die(1, Exit::Signal(9));
    world.pool.failed(2, "no".into(), world.now);
    assert!(!world.pool.is_hopeless(), "it is still there");
    world.die(2, Exit::Code(1));
    assert!(world.pool.is_hopeless());
}

/// Whatever happens, in whatever order, the pool comes back to what it shall be.
#[test]
fn the_pool_comes_back_whatever_happens() {
    for seed in 0..300 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::new(random.random_range(1..6));
        for _ in 0..200 {
            let generations = world.generations();
            let any = (!generations.is_empty())
                .then(|| generations[random.random_range(0..generations.len())]);
            match (random.random_range(0..9), any) {
                (0 | 1, Some(generation)) => world.ready(generation),
                (2, Some(generation)) => world.die(generation, Exit::Signal(9)),
                (3, Some(generation)) => world.pool.wears_out(generation, ReplaceReason::Memory),
                (4, _) => world.pool.set_wanted(random.random_range(1..6)),
                (5, _) if random.random_bool(0.2) => world.pool.reload(),
                (6, Some(generation)) => {
                    world.pool.kills(generation, world.now);
                    world.die(generation, Exit::Signal(9));
                }
                (7, _) => world.wait(Duration::from_millis(random.random_range(0..3000))),
                (8, _) => world.pool.was_away(world.now),
                _ => {}
            }
            world.settle();
        }
        // Left alone, with workers that do as they are told.
        for _ in 0..200 {
            world.all_ready();
            if let Some(alive) = world.alive.iter().find(|alive| alive.told_to_stop) {
                world.die(alive.worker.generation, Exit::Code(0));
            }
            world.wait(Duration::from_secs(31));
        }
        assert!(world.pool.is_up(), "seed {seed}: {:?}", world.pool);
        assert_eq!(world.alive.len(), world.pool.wanted(), "seed {seed}");
        assert!(!world.pool.is_reloading(), "seed {seed}");
    }
}

#[test]
fn a_connection_that_lost_its_place_says_nothing_about_its_successor() {
    let board = Board::new(1, None, Vec::new()).unwrap();
    let worker = Worker {
        slot: 0,
        generation: 1,
    };
    let place = board.claim(worker);
    let region = board.region(place);
    // More connections of one set than it has places.
    let tags = [1_u64, 2, 3, 4, 5].map(|number| number << 40 | 1);
    let places = tags.map(|tag| region.open_session(tag));
    let successor = places[4];
    let loser = places.iter().position(|place| *place == successor).unwrap();
    region.begins(successor, tags[4], 100);
    region.begins(successor, tags[loser], 7);
    board.set_end(place, Exit::Signal(9));
    for tag in [tags[4], tags[loser]] {
        let fate = board.fate(tag, 1);
        assert_eq!(fate, Fate::Died(worker, Exit::Signal(9), None));
    }
    region.begins(successor, tags[4], 101);
    let fate = board.fate(tags[4], 1);
    assert_eq!(fate, Fate::Died(worker, Exit::Signal(9), Some(101)));
}

#[test]
fn limits_of_calls_lie_apart() {
    let prefork = Prefork::new(16).max_calls(10_000);
    let mut limits: Vec<u64> = (1..=16)
        .filter_map(|generation| prefork.calls_of(generation))
        .collect();
    limits.sort_unstable();
    assert!(
        limits.iter().all(|limit| (9_000..=11_000).contains(limit)),
        "{limits:?}"
    );
    let least = limits.windows(2).map(|pair| pair[1] - pair[0]).min();
    assert!(least >= Some(60), "{limits:?}");
    assert_eq!(Prefork::new(1).max_calls(1).calls_of(7), Some(1));
}

#[test]
fn a_call_is_asked_about_first_and_its_worker_killed_later() {
    let board = Board::new(4, Some(Duration::from_secs(10)), Vec::new()).unwrap();
    let worker = Worker {
        slot: 0,
        generation: 1,
    };
    let region = board.region(board.claim(worker));
    let mut hung = Hung::new(Duration::from_secs(10), Duration::from_secs(2));
    let second = 1_000_000_000;
    let now = clock::coarse();
    let mut look = |now| hung.look(now, [(worker, &region)].into_iter());
    assert_eq!(look(now), (vec![], now + 10 * second));
    let cell = region.begin(Some(3), 7).expect("a place");
    let begun = region.doing_in(cell).expect("a call").since;
    let (measures, next) = look(begun + 9 * second);
    assert_eq!((measures, next), (vec![], begun + 10 * second));
    let (measures, next) = look(begun + 10 * second);
    assert!(matches!(measures[..], [Measure::Ask(..)]), "{measures:?}");
    assert_eq!(next, begun + 12 * second);
    assert_eq!(look(begun + 11 * second), (vec![], begun + 12 * second));
    let (measures, _) = look(begun + 12 * second);
    let [Measure::Kill(whose, doing)] = measures[..] else {
        panic!("{measures:?}");
    };
    assert_eq!((whose, doing.call, doing.name), (worker, 7, 3));
    // Once more, but not at once.
    assert!(look(begun + 13 * second).0.is_empty());
    assert!(matches!(
        look(begun + 14 * second).0[..],
        [Measure::Kill(..)]
    ));
    region.end(cell);
    assert!(look(begun + 30 * second).0.is_empty());
}
