//! What has become worse since a stored run: ratios are compared, because times of another day say nothing.

use crate::contestant::Kind;
use crate::figure::Figure;
use crate::placement::Placement;
use crate::table::ratio;
use crate::workload;
use std::fmt::Write;

/// How far apart, as a part, figures of the same code have been seen in runs of the same machine.
fn noise(placement: Placement) -> f64 {
    match placement {
        Placement::OneCore => 0.1,
        Placement::Across | Placement::Free => 0.35,
    }
}

/// A line for each of forkserver's figures that is worse by more than the noise: the quartiles have nothing in common,
/// and the medians are further apart than figures of the same code are.
pub fn worse(stored: &[Figure], figures: &[Figure]) -> String {
    let mut text = String::new();
    let own = figures
        .iter()
        .filter(|one| one.kind == Kind::Forkserver && is_judged(one));
    for figure in own {
        let Some(before) = stored.iter().find(|one| one.matches(figure)) else {
            continue;
        };
        let apart = figure.ratio.low > before.ratio.high;
        if apart && figure.ratio.middle > before.ratio.middle * (1.0 + noise(figure.placement)) {
            let _ = writeln!(
                text,
                "worse: {} {} {}, of {}: {}, was {}",
                figure.workload,
                figure.placement.name(),
                figure.contestant,
                figure.against,
                ratio(figure),
                ratio(before)
            );
        }
    }
    text
}

/// How many of the figures can be compared.
pub fn compared(stored: &[Figure], figures: &[Figure]) -> usize {
    let is_stored = |one: &&Figure| stored.iter().any(|before| before.matches(one));
    let own = figures
        .iter()
        .filter(|one| one.kind == Kind::Forkserver && is_judged(one));
    own.filter(is_stored).count()
}

/// Free placement is bimodal: it counts only where there is no other.
fn is_judged(figure: &Figure) -> bool {
    let only_free = workload::find(&figure.workload)
        .is_some_and(|workload| workload.placements == [Placement::Free]);
    only_free || figure.placement != Placement::Free
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::tests::figure;

    #[test]
    fn only_what_is_clearly_worse_is_named() {
        let of = |ratio| [figure("forkserver", Kind::Forkserver, ratio)];
        let stored = of([1.0, 1.1, 1.2]);
        assert!(worse(&stored, &of([1.3, 1.4, 1.5])).starts_with("worse: W1 one core"));
        assert_eq!(worse(&stored, &of([1.15, 1.4, 1.5])), "");
        assert_eq!(worse(&of([1.0, 1.0, 1.0]), &of([1.01, 1.02, 1.03])), "");
        assert_eq!(worse(&[], &of([9.0, 9.0, 9.0])), "");
        assert_eq!(compared(&stored, &of([1.0, 1.0, 1.0])), 1);
    }

    #[test]
    fn peers_and_free_placement_are_not_judged() {
        let stored = [figure("somebody", Kind::Peer, [1.0, 1.0, 1.0])];
        let now = [figure("somebody", Kind::Peer, [2.0, 2.0, 2.0])];
        assert_eq!(worse(&stored, &now), "");
        let mut free = figure("forkserver", Kind::Forkserver, [2.0, 2.0, 2.0]);
        free.placement = Placement::Free;
        assert!(!is_judged(&free));
        free.workload = "W3c".into();
        assert!(is_judged(&free));
    }
}
