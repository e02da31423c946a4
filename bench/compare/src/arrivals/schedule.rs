//! When requests arrive: a Poisson process, the same for each seed.

use std::time::Duration;

/// The times of `count` arrivals since the start, at `rate` a second on average.
///
/// The gaps of a Poisson process have an exponential distribution: an arrival says nothing about the
/// next one. The seed makes all candidates get the same arrivals.
pub fn arrivals(rate: f64, count: usize, seed: u64) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut now = 0.0;
    let mut next = || {
        now -= (1.0 - random.f64()).ln() / rate;
        Duration::from_secs_f64(now)
    };
    (0..count).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_has_one_schedule() {
        assert_eq!(arrivals(1000.0, 100, 7), arrivals(1000.0, 100, 7));
        assert_ne!(arrivals(1000.0, 100, 7), arrivals(1000.0, 100, 8));
    }

    #[test]
    fn gaps_have_the_mean_and_the_spread_of_a_poisson_process() {
        let times = arrivals(1000.0, 100_000, 1);
        assert!(times.is_sorted());
        let gaps: Vec<f64> =
            times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 1000.0 - 1.0).abs() < 0.02, "{mean}");
        // The standard deviation of an exponential distribution is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
    }
}
