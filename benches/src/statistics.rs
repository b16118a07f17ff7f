//! Medians and quartiles: on a shared machine means are the neighbours' figures.

/// A median between its quartiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(values: &[f64]) -> Spread {
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|q| quantile(values, q));
        Spread { low, middle, high }
    }

    pub fn times(self, factor: f64) -> Spread {
        Spread {
            low: self.low * factor,
            middle: self.middle * factor,
            high: self.high * factor,
        }
    }
}

pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}

/// What each round of one took over the same round of the other.
pub fn ratios(own: &[f64], other: &[f64]) -> Vec<f64> {
    own.iter()
        .zip(other)
        .map(|(own, other)| own / other)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_told_by_ranks() {
        let spread = Spread::of(&[5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!((spread.low, spread.middle, spread.high), (2.0, 3.0, 4.0));
        assert_eq!(spread.times(2.0).high, 8.0);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        assert_eq!(ratios(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
    }
}
