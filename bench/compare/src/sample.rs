//! What one candidate has achieved at one kind of work, in one round.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A measured value, or the reason why there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// A rate, a size, or the median of times.
    pub value: Option<f64>,
    /// Of times: one in ten is longer.
    pub p90: Option<f64>,
    /// Of times: one in a hundred is longer.
    pub p99: Option<f64>,
    /// Processor time of a call in microseconds: the program, its server and all workers.
    pub processor: Option<f64>,
    /// Why there is no value.
    pub failed: Option<String>,
}

impl Sample {
    pub fn of(value: f64) -> Self {
        Self { value: Some(value), ..Self::default() }
    }

    pub fn failed(why: impl Into<String>) -> Self {
        Self { failed: Some(why.into()), ..Self::default() }
    }

    /// The distribution of times, in microseconds.
    pub fn times(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let percentile = |percent| Some(micros(*times.get(times.len() * percent / 100)?));
        Self { value: percentile(50), p90: percentile(90), p99: percentile(99), ..Self::default() }
    }
}

pub fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The middle of the values, if there are any.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sample = Sample::times((1..=1000).rev().map(Duration::from_micros).collect());
        let values = [sample.value, sample.p90, sample.p99].map(|value| value.map(f64::round));
        assert_eq!(values, [Some(501.0), Some(901.0), Some(991.0)]);
        assert_eq!(Sample::times(Vec::new()).value, None);
    }

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert_eq!(median(vec![9.0, 1.0, 4.0]), Some(4.0));
        assert_eq!(median(Vec::new()), None);
    }
}
