//! The figures as text: a table for each workload, what is to be reached, and how far ahead of the peers that is.

use crate::contestant::Kind;
use crate::figure::Figure;
use crate::placement::Placement;
use crate::workload::{self, TARGETS, Unit, Workload};
use std::fmt::Write;

/// One workload: a line for each contestant, a column for each placement.
pub fn of_workload(workload: &Workload, figures: &[Figure]) -> String {
    let of_limit = |figure: &&Figure| figure.against == workload.limit;
    let figures: Vec<_> = figures.iter().filter(of_limit).collect();
    let mut text = format!("\n{}: {}\n", workload.id, workload.title);
    let mut placements = workload.placements.to_vec();
    placements.retain(|placement| figures.iter().any(|one| one.placement == *placement));
    let _ = write!(text, "  {:<28}", workload.unit.name());
    for placement in &placements {
        let _ = write!(text, "  {:<32}", placement.name());
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    let mut names: Vec<&str> = Vec::new();
    for figure in &figures {
        if !names.contains(&figure.contestant.as_str()) {
            names.push(&figure.contestant);
        }
    }
    for name in names {
        let mut line = format!("  {name:<28}");
        for placement in &placements {
            let here = |one: &&&Figure| one.contestant == name && one.placement == *placement;
            let cell = figures.iter().find(here).map(|figure| cell(figure));
            let _ = write!(line, "  {:<32}", cell.unwrap_or_default());
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn cell(figure: &Figure) -> String {
    let value = value(figure.unit, figure.value.middle);
    format!("{value:>10}  {}", ratio(figure))
}

pub fn value(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Micros if value < 100.0 => format!("{value:.2}"),
        Unit::Micros => format!("{value:.0}"),
        Unit::Mib => format!("{value:.1}"),
        Unit::Calls => format!("{value:.0}"),
    }
}

pub fn ratio(figure: &Figure) -> String {
    let ratio = figure.ratio;
    format!("{:.2} [{:.2}-{:.2}]", ratio.middle, ratio.low, ratio.high)
}

/// Which targets are reached, of those that have been measured.
pub fn of_targets(figures: &[Figure]) -> String {
    let mut text = String::from("\nTargets, as multiples of what is named last\n");
    for target in TARGETS {
        let found = figures.iter().find(|one| {
            let contestants = one.contestant == target.contestant && one.against == target.against;
            contestants && one.workload == target.workload && one.placement == target.placement
        });
        let Some(figure) = found else { continue };
        let verdict = match figure.ratio.middle <= target.most {
            true => "reached",
            false => "MISSED",
        };
        let _ = writeln!(
            text,
            "  {:<4} {:<9} {:<20} {:<20} of at most {:.2}  {verdict:<8} {}",
            target.workload,
            target.placement.name(),
            target.contestant,
            ratio(figure),
            target.most,
            target.against
        );
    }
    text
}

/// forkserver's best in each workload beside the best peer's; level are those whose quartiles overlap.
pub fn of_peers(figures: &[Figure]) -> String {
    if !figures.iter().any(|figure| figure.kind == Kind::Peer) {
        return String::new();
    }
    let mut text = String::from("\nAhead of the best peer, as multiples of forkserver's best\n");
    for workload in workload::ALL {
        for &placement in workload.placements {
            let best = |kind| best(figures, workload, placement, kind);
            let (Some(own), Some(peer)) = (best(Kind::Forkserver), best(Kind::Peer)) else {
                continue;
            };
            let factor = peer.ratio.middle / own.ratio.middle;
            let wanted = workload::lead(workload.id);
            let verdict = match factor {
                factor if factor >= wanted => "ahead",
                _ if wanted == 1.0 && own.ratio.low <= peer.ratio.high => "level",
                _ => "BEHIND",
            };
            let _ = writeln!(
                text,
                "  {:<4} {:<9} {:<20} {factor:>7.2} of at least {wanted:.2}  {verdict:<7} {}",
                workload.id,
                placement.name(),
                own.contestant,
                peer.contestant
            );
        }
    }
    text
}

fn best<'a>(
    figures: &'a [Figure],
    workload: &Workload,
    placement: Placement,
    kind: Kind,
) -> Option<&'a Figure> {
    figures
        .iter()
        .filter(|one| one.workload == workload.id && one.placement == placement)
        .filter(|one| one.kind == kind && one.against == workload.limit)
        // It has nobody beside it whose silence it could bear.
        .filter(|one| !one.contestant.ends_with("alone"))
        .min_by(|a, b| a.ratio.middle.total_cmp(&b.ratio.middle))
}
