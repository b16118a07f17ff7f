//! Rounds in turns: every contestant of a workload does a short round, then all of them again, so that whatever else the
//! machine does meanwhile is in the figures of all.

use crate::contestant::Contestant;
use crate::figure::Figure;
use crate::placement::{Cores, Placement};
use crate::runner::Runner;
use crate::statistics::{Spread, quantile, ratios};
use crate::workload::{TARGETS, Unit, Workload};
use std::path::Path;
use std::time::Duration;

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Effort {
    pub rounds: usize,
    pub round: Duration,
    /// At most so many fresh starts.
    pub starts: usize,
}

/// Everything that takes part, and where.
pub struct Field<'a> {
    pub contestants: &'a [Box<dyn Contestant>],
    pub cores: Cores,
    pub directory: &'a Path,
    pub effort: Effort,
}

/// What one contestant has shown: a value for each round, or for each start.
struct Entrant<'a> {
    contestant: &'a dyn Contestant,
    values: Vec<f64>,
    failed: bool,
}

/// One contestant while it runs, and how often it does its operation in a round.
struct Running {
    place: usize,
    runner: Runner,
    count: u32,
}

impl Field<'_> {
    /// All figures of a workload in a placement; the limit's are first.
    pub fn measure(&self, workload: &Workload, placement: Placement) -> Vec<Figure> {
        let mut entrants: Vec<_> = self
            .contestants
            .iter()
            .map(|contestant| Entrant {
                contestant: contestant.as_ref(),
                values: Vec::new(),
                failed: false,
            })
            .collect();
        entrants.sort_by_key(|entrant| entrant.contestant.name() != workload.limit);
        let starts = workload.starts.min(self.effort.starts);
        for _ in 0..starts {
            let rounds = (self.effort.rounds / starts).max(3);
            self.one_start(workload, placement, &mut entrants, rounds, starts > 1);
        }
        entrants.retain(|entrant| !entrant.failed && !entrant.values.is_empty());
        figures(workload, placement, &entrants)
    }

    /// Starts all contestants, measures them in turns, and ends them.
    fn one_start(
        &self,
        workload: &Workload,
        placement: Placement,
        entrants: &mut [Entrant],
        rounds: usize,
        one_value: bool,
    ) {
        let mut running = Vec::new();
        for (place, entrant) in entrants.iter_mut().enumerate() {
            if !entrant.failed {
                match self.warm_up(entrant.contestant, workload, placement, place) {
                    Ok(found) => running.extend(found),
                    Err(err) => entrant.fail(workload, &err),
                }
            }
        }
        let mut values = vec![Vec::new(); entrants.len()];
        for round in 0..rounds {
            // Nobody comes always behind the same one.
            let len = running.len();
            for n in 0..len {
                let one = &mut running[(n + round) % len];
                match one.runner.round(one.count) {
                    Ok(value) => values[one.place].push(value),
                    Err(err) => entrants[one.place].fail(workload, &err),
                }
            }
            running.retain(|one| !entrants[one.place].failed);
        }
        for (entrant, values) in entrants.iter_mut().zip(values) {
            match one_value && !values.is_empty() {
                true => entrant.values.push(quantile(&values, 0.5)),
                false => entrant.values.extend(values),
            }
        }
    }

    fn warm_up(
        &self,
        contestant: &dyn Contestant,
        workload: &Workload,
        placement: Placement,
        place: usize,
    ) -> std::io::Result<Option<Running>> {
        let (task, cores) = (workload.task, &self.cores);
        let started = Runner::start(contestant, task, placement, cores, self.directory)?;
        let Some(mut runner) = started else {
            return Ok(None);
        };
        let count = match workload.single {
            true => 1,
            false => runner.calibrate(self.effort.round)?,
        };
        Ok(Some(Running {
            place,
            runner,
            count,
        }))
    }
}

impl Entrant<'_> {
    fn fail(&mut self, workload: &Workload, err: &std::io::Error) {
        let name = self.contestant.name();
        eprintln!("{}: {name} has failed: {err}", workload.id);
        self.failed = true;
    }
}

fn figures(workload: &Workload, placement: Placement, entrants: &[Entrant]) -> Vec<Figure> {
    let named = |name: &str| entrants.iter().find(|one| one.contestant.name() == name);
    let figure = |entrant: &Entrant, against: &Entrant| Figure {
        workload: workload.id.into(),
        placement,
        contestant: entrant.contestant.name().into(),
        kind: entrant.contestant.kind(),
        unit: workload.unit,
        value: Spread::of(&entrant.values).times(scale(workload)),
        against: against.contestant.name().into(),
        ratio: Spread::of(&ratios(&entrant.values, &against.values)),
    };
    let mut figures = Vec::new();
    if let Some(limit) = named(workload.limit) {
        figures.extend(entrants.iter().map(|entrant| figure(entrant, limit)));
    }
    let others = TARGETS.iter().filter(|target| {
        let here = target.workload == workload.id && target.placement == placement;
        here && target.against != workload.limit
    });
    for target in others {
        if let (Some(own), Some(against)) = (named(target.contestant), named(target.against)) {
            figures.push(figure(own, against));
        }
    }
    figures
}

/// From what an operation tells to what is shown of it.
fn scale(workload: &Workload) -> f64 {
    match workload.unit {
        Unit::Micros => 1e6 / workload.task.calls(),
        Unit::Mib | Unit::Calls => 1.0,
    }
}
