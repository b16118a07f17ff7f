//! What is asked for on the command line.

use crate::contestant::{Contestant, Kind};
use crate::measure::Effort;
use crate::placement::Placement;
use crate::workload::{self, Workload};
use std::path::PathBuf;
use std::time::Duration;

pub const USAGE: &str = "\
usage: scripts/bench [OPTION]... [WORKLOAD | CONTESTANT]...

Measures all workloads and all contestants, or those that are named: a workload by its number (W1), contestants by a
part of their names (tarpc). The limits always take part.

  --quick           fewer and shorter rounds, and no workload that takes long: less than a minute
  --against FILE    compare with a stored run; status 1 if forkserver has become worse by more than the noise
  --tsv FILE        write the figures, with tabs between
  --chart FILE      write a chart, as SVG; with --draw FILE: of a stored run, and measure nothing
  --costs           CPU time, context switches and system calls of a call, instead of ratios
  --rounds N        rounds of each contestant (default 21)
  --list            name the workloads and the contestants, and measure nothing";

#[derive(Default)]
pub struct Options {
    pub quick: bool,
    pub against: Option<PathBuf>,
    pub tsv: Option<PathBuf>,
    pub chart: Option<PathBuf>,
    pub draw: Option<PathBuf>,
    pub costs: bool,
    pub list: bool,
    rounds: Option<usize>,
    words: Vec<String>,
}

impl Options {
    pub fn of(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        while let Some(argument) = arguments.next() {
            let mut file = || match arguments.next() {
                Some(name) => Ok(name),
                None => Err(format!("{argument} needs a value\n\n{USAGE}")),
            };
            match argument.as_str() {
                "--quick" => options.quick = true,
                "--costs" => options.costs = true,
                "--list" => options.list = true,
                "--against" => options.against = Some(file()?.into()),
                "--tsv" => options.tsv = Some(file()?.into()),
                "--chart" => options.chart = Some(file()?.into()),
                "--draw" => options.draw = Some(file()?.into()),
                "--rounds" => {
                    let count = file()?.parse().map_err(|_| "--rounds needs a number")?;
                    options.rounds = Some(count);
                }
                flag if flag.starts_with('-') => return Err(format!("{flag}?\n\n{USAGE}")),
                word => options.words.push(word.into()),
            }
        }
        Ok(options)
    }

    pub fn effort(&self) -> Effort {
        let (rounds, millis, starts) = if self.quick { (5, 10, 1) } else { (21, 40, 10) };
        Effort {
            rounds: self.rounds.unwrap_or(rounds).max(3),
            round: Duration::from_millis(millis),
            starts,
        }
    }

    pub fn workloads(&self) -> Vec<&'static Workload> {
        let named: Vec<_> = self
            .words
            .iter()
            .filter_map(|word| workload::find(word))
            .collect();
        let all = workload::ALL.iter();
        match named.is_empty() {
            true => all.filter(|one| one.quick || !self.quick).collect(),
            false => named,
        }
    }

    /// Where a workload is measured. The bimodal placement is spared where there is another, if time is short.
    pub fn placements(&self, workload: &Workload) -> impl Iterator<Item = Placement> {
        let only_free = workload.placements == [Placement::Free];
        let spared = self.quick && !only_free;
        let all = workload.placements.iter().copied();
        all.filter(move |one| !(spared && *one == Placement::Free))
    }

    /// Those that are named, and the limits.
    pub fn contestants(
        &self,
        mut all: Vec<Box<dyn Contestant>>,
    ) -> Result<Vec<Box<dyn Contestant>>, String> {
        let is_name = |word: &&String| workload::find(word).is_none();
        let words: Vec<_> = self.words.iter().filter(is_name).collect();
        for word in &words {
            if !all.iter().any(|one| one.name().contains(*word)) {
                return Err(format!(
                    "{word} is no workload, and in no contestant's name"
                ));
            }
        }
        if !words.is_empty() {
            let is_named =
                |one: &dyn Contestant| words.iter().any(|word| one.name().contains(*word));
            all.retain(|one| one.kind() == Kind::Limit || is_named(one.as_ref()));
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant;

    fn options(words: &str) -> Result<Options, String> {
        Options::of(words.split_whitespace().map(String::from))
    }

    #[test]
    fn words_choose_workloads_and_contestants() {
        let chosen = options("w1 W5 evented --quick").expect("options");
        let ids: Vec<_> = chosen.workloads().iter().map(|one| one.id).collect();
        assert_eq!(ids, ["W1", "W5"]);
        let names = chosen.contestants(contestant::all()).expect("contestants");
        let own = names.iter().filter(|one| one.kind() == Kind::Forkserver);
        assert!(own.clone().count() > 0 && own.clone().all(|one| one.name().contains("evented")));
        assert!(names.iter().any(|one| one.kind() == Kind::Limit));
    }

    #[test]
    fn what_is_not_understood_is_said() {
        assert!(options("--frobnicate").is_err());
        assert!(options("--tsv").is_err());
        let nobody = options("nobody").expect("a word");
        assert!(nobody.contestants(contestant::all()).is_err());
    }
}
