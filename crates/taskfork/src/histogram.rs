//! How often something took how long.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often something took how long: counts in 24 ranges of time, and the sum of the times.
///
/// The ranges end at [`BOUNDS`](Self::BOUNDS), which double from 10 microseconds to 42 seconds. The last range has no end.
///
/// ```
/// use std::time::Duration;
/// use taskfork::server::Histogram;
///
/// let mut times = Histogram::default();
/// times.add(Duration::from_millis(3));
/// times.add(Duration::from_millis(5));
/// assert_eq!((times.count(), times.seconds), (2, 0.008));
/// assert!(times.quantile(0.99).is_some_and(|seconds| (0.003..0.006).contains(&seconds)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Histogram {
    /// The sum of all times, in seconds.
    pub seconds: f64,
    /// How many times were in each range, without empty ranges at the end. Counts beyond the 24th are ignored.
    pub counts: Vec<u64>,
}

impl Histogram {
    /// The number of ranges.
    pub(crate) const RANGES: usize = 24;

    /// The ends of the ranges in seconds. The end itself is part of the range.
    ///
    /// ```
    /// assert_eq!(taskfork::server::Histogram::BOUNDS[1], 0.00002);
    /// ```
    pub const BOUNDS: [f64; Self::RANGES - 1] = {
        let mut bounds = [0.0; Self::RANGES - 1];
        let mut place = 0;
        while place < bounds.len() {
            // Whole numbers are exact, so the quotient is the closest number to its decimal form.
            bounds[place] = (1_u64 << place) as f64 / 100_000.0;
            place += 1;
        }
        bounds
    };

    /// The range of a time.
    pub(crate) fn range_of(time: Duration) -> usize {
        const FIRST: u64 = 10_000;
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let whole = nanoseconds.saturating_sub(1) / FIRST;
        ((u64::BITS - whole.leading_zeros()) as usize).min(Self::RANGES - 1)
    }

    /// Counts a time.
    ///
    /// ```
    /// # use taskfork::server::Histogram;
    /// let mut times = Histogram::default();
    /// times.add(std::time::Duration::ZERO);
    /// assert_eq!(times.counts, [1]);
    /// ```
    pub fn add(&mut self, time: Duration) {
        self.add_counts(time.as_secs_f64(), [(Self::range_of(time), 1)]);
    }

    /// Adds what another histogram has counted. Sums do not overflow.
    ///
    /// ```
    /// # use taskfork::server::Histogram;
    /// let (mut all, mut more) = (Histogram::default(), Histogram::default());
    /// more.add(std::time::Duration::from_secs(1));
    /// all.merge(&more);
    /// assert_eq!(all, more);
    /// ```
    pub fn merge(&mut self, other: &Self) {
        self.add_counts(other.seconds, other.counts.iter().copied().enumerate());
    }

    /// Adds counts of ranges, and the sum of their times.
    pub(crate) fn add_counts(
        &mut self,
        seconds: f64,
        counts: impl IntoIterator<Item = (usize, u64)>,
    ) {
        self.seconds += seconds;
        for (range, count) in counts {
            if count == 0 || range >= Self::RANGES {
                continue;
            }
            if self.counts.len() <= range {
                self.counts.resize(range + 1, 0);
            }
            self.counts[range] = self.counts[range].saturating_add(count);
        }
    }

    /// What was counted since an earlier state of the same histogram.
    ///
    /// ```
    /// # use taskfork::server::Histogram;
    /// let mut times = Histogram::default();
    /// let before = times.clone();
    /// times.add(std::time::Duration::from_secs(1));
    /// assert_eq!(times.since(&before).count(), 1);
    /// ```
    pub fn since(&self, before: &Self) -> Self {
        let earlier = before.counts.iter().copied().chain(std::iter::repeat(0));
        let counts = self.counts.iter().zip(earlier).map(|(now, then)| now.saturating_sub(then));
        let mut since = Self::default();
        since.add_counts((self.seconds - before.seconds).max(0.0), counts.enumerate());
        since
    }

    /// How many times were counted.
    ///
    /// ```
    /// assert_eq!(taskfork::server::Histogram::default().count(), 0);
    /// ```
    pub fn count(&self) -> u64 {
        self.counts.iter().take(Self::RANGES).fold(0, |all, &count| all.saturating_add(count))
    }

    /// The time in seconds that this part of all times did not exceed, as an estimate within the range that it is in. `None`
    /// if nothing was counted. For the range without an end it is the beginning.
    ///
    /// ```
    /// # use taskfork::server::Histogram;
    /// assert_eq!(Histogram::default().quantile(0.5), None);
    /// ```
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = self.count() as f64 * part.clamp(0.0, 1.0);
        let mut below = 0.0;
        for (range, &count) in self.counts.iter().take(Self::RANGES).enumerate() {
            let begin = range.checked_sub(1).map_or(0.0, |before| Self::BOUNDS[before]);
            let within = count as f64;
            if count > 0 && below + within >= wanted {
                let end = Self::BOUNDS.get(range).copied().unwrap_or(begin);
                return Some(begin + (end - begin) * ((wanted - below) / within));
            }
            below += within;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_range_is_part_of_it() {
        assert_eq!(Histogram::range_of(Duration::ZERO), 0);
        for (range, &end) in Histogram::BOUNDS.iter().enumerate() {
            let end = Duration::from_secs_f64(end);
            assert_eq!(Histogram::range_of(end), range);
            assert_eq!(Histogram::range_of(end + Duration::from_nanos(1)), range + 1);
        }
        assert_eq!(Histogram::range_of(Duration::MAX), Histogram::RANGES - 1);
    }

    #[test]
    fn quantiles_are_in_the_range_of_their_time() {
        let mut times = Histogram::default();
        (0..99).for_each(|_| times.add(Duration::from_micros(15)));
        times.add(Duration::from_secs(3600));
        assert!(times.quantile(0.5).is_some_and(|it| (0.00001..0.00002).contains(&it)));
        assert_eq!(times.quantile(1.0), Some(Histogram::BOUNDS[22]));
    }

    #[test]
    fn what_a_peer_has_written_is_no_problem() {
        let long = Histogram { seconds: f64::NAN, counts: vec![u64::MAX; 1000] };
        assert_eq!(long.count(), u64::MAX);
        let mut sum = long.clone();
        sum.merge(&long);
        assert_eq!(sum.counts.len(), 1000);
        assert_eq!(sum.counts[0], u64::MAX);
        assert_eq!(long.since(&long).count(), 0);
        assert!(long.quantile(0.5).is_some());
    }
}
