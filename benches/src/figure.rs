//! What is measured, as a value and as a line of a file: with tabs between, so that anything can read it.

use crate::contestant::Kind;
use crate::placement::Placement;
use crate::statistics::Spread;
use crate::workload::Unit;

/// One contestant in one workload and one placement.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub workload: String,
    pub placement: Placement,
    pub contestant: String,
    pub kind: Kind,
    pub unit: Unit,
    pub value: Spread,
    /// Whose figure is 1, and how much it is of that in the same rounds.
    pub against: String,
    pub ratio: Spread,
}

const HEAD: &str = "workload\tplacement\tcontestant\tkind\tunit\tlow\tmedian\thigh\tagainst\tratio low\tratio\tratio high";

impl Figure {
    /// Whether both are about the same.
    pub fn matches(&self, other: &Figure) -> bool {
        let key = |figure: &Figure| {
            let names = (figure.contestant.clone(), figure.against.clone());
            (figure.workload.clone(), figure.placement, names)
        };
        key(self) == key(other)
    }

    fn line(&self) -> String {
        let fields = [
            self.workload.clone(),
            self.placement.name().into(),
            self.contestant.clone(),
            self.kind.name().into(),
            self.unit.name().into(),
            format!("{:.3}", self.value.low),
            format!("{:.3}", self.value.middle),
            format!("{:.3}", self.value.high),
            self.against.clone(),
            format!("{:.4}", self.ratio.low),
            format!("{:.4}", self.ratio.middle),
            format!("{:.4}", self.ratio.high),
        ];
        fields.join("\t")
    }

    fn parse(line: &str) -> Option<Figure> {
        let fields: Vec<_> = line.split('\t').collect();
        let &[
            workload,
            placement,
            contestant,
            kind,
            unit,
            ..,
            against,
            _,
            _,
            _,
        ] = &fields[..]
        else {
            return None;
        };
        let number = |n: usize| fields.get(n)?.parse::<f64>().ok();
        let spread = |n: usize| {
            Some(Spread {
                low: number(n)?,
                middle: number(n + 1)?,
                high: number(n + 2)?,
            })
        };
        Some(Figure {
            workload: workload.into(),
            placement: Placement::named(placement)?,
            contestant: contestant.into(),
            kind: Kind::named(kind)?,
            unit: Unit::named(unit)?,
            value: spread(5)?,
            against: against.into(),
            ratio: spread(9)?,
        })
    }
}

/// A whole run, with a line about the machine.
pub fn to_text(about: &str, figures: &[Figure]) -> String {
    let lines: String = figures.iter().map(|figure| figure.line() + "\n").collect();
    format!("# {about}\n{HEAD}\n{lines}")
}

/// What [`to_text`] wrote: the line about the machine, and the figures.
pub fn from_text(text: &str) -> Result<(String, Vec<Figure>), String> {
    let mut lines = text.lines();
    let about = lines.next().and_then(|line| line.strip_prefix("# "));
    let about = about.ok_or("the first line does not begin with '# '")?;
    if lines.next() != Some(HEAD) {
        return Err("the second line does not name the columns".into());
    }
    let parse = |line: &str| Figure::parse(line).ok_or(format!("no figure: {line}"));
    let figures = lines.map(parse).collect::<Result<_, _>>()?;
    Ok((about.into(), figures))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn figure(contestant: &str, kind: Kind, ratio: [f64; 3]) -> Figure {
        let [low, middle, high] = ratio;
        let spread = Spread { low, middle, high };
        Figure {
            workload: "W1".into(),
            placement: Placement::OneCore,
            contestant: contestant.into(),
            kind,
            unit: Unit::Micros,
            value: spread,
            against: "a limit".into(),
            ratio: spread,
        }
    }

    #[test]
    fn a_run_is_read_as_it_was_written() {
        let figures = vec![
            figure("forkserver", Kind::Forkserver, [1.0, 1.125, 1.25]),
            figure("somebody", Kind::Peer, [2.0, 3.0, 4.0]),
        ];
        let text = to_text("a machine", &figures);
        assert_eq!(from_text(&text), Ok(("a machine".into(), figures)));
        assert!(from_text("nothing").is_err());
        assert!(from_text(&(text + "W1\tone core\n")).is_err());
    }
}
