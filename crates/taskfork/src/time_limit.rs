//! Time limits of options and messages. Each duration is converted to [`TimeLimit`] where it enters, so that
//! no later sum or conversion can overflow.

use std::time::{Duration, Instant};

use rustix::time::Timespec;

/// 100 years. A limit of this length or more means no limit. The sum of a few such durations and the
/// uptime, in nanoseconds, fits 64 bits.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeLimit(Option<Duration>);

impl TimeLimit {
    /// No limit.
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) const fn new(time: Duration) -> Self {
        if time.as_secs() >= LONGEST.as_secs() { Self::NEVER } else { Self(Some(time)) }
    }

    pub(crate) const fn from_microseconds(time: u64) -> Self {
        Self::new(Duration::from_micros(time))
    }

    /// The limit, if there is one.
    pub(crate) const fn get(self) -> Option<Duration> {
        self.0
    }

    pub(crate) fn is_zero(self) -> bool {
        self.0 == Some(Duration::ZERO)
    }

    /// The end of a limit that begins at `start`.
    pub(crate) fn after(self, start: Instant) -> Option<Instant> {
        start.checked_add(self.0?)
    }

    /// The end of a limit that begins at `start`, on a clock that counts from its own epoch.
    #[cfg_attr(feature = "server", taskfork_macros::startup_code)]
    pub(crate) fn after_time(self, start: Duration) -> Option<Duration> {
        Some(start.saturating_add(self.0?))
    }

    /// The sum of two limits; no limit if one of them is none.
    pub(crate) fn plus(self, more: Self) -> Self {
        Self::from(self.0.zip(more.0).map(|(one, other)| one.saturating_add(other)))
    }

    /// The limit as messages encode it.
    pub(crate) fn microseconds(self) -> Option<u64> {
        u64::try_from(self.0?.as_micros()).ok()
    }
}

impl From<Duration> for TimeLimit {
    fn from(time: Duration) -> Self {
        Self::new(time)
    }
}

impl From<Option<Duration>> for TimeLimit {
    fn from(time: Option<Duration>) -> Self {
        time.map_or(Self::NEVER, Self::new)
    }
}

/// Converts a duration for a system call, capped at `LONGEST`.
pub(crate) fn timespec(time: Duration) -> Timespec {
    let tv_sec = i64::try_from(time.min(LONGEST).as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: time.subsec_nanos().into() }
}

/// Converts a duration to the nanoseconds of the scoreboard, capped at `u64::MAX`.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Durations of all magnitudes, including both extremes.
    fn durations() -> impl Strategy<Value = Duration> {
        let any_size = (any::<u64>(), 0..64_u32, 0..1_000_000_000_u32);
        prop_oneof![
            any_size.prop_map(|(secs, less, nanos)| Duration::new(secs >> less, nanos)),
            Just(Duration::MAX),
            Just(Duration::from_nanos(u64::MAX)),
            Just(Duration::from_nanos(1)),
            Just(Duration::ZERO),
            Just(LONGEST),
        ]
    }

    proptest! {
        #[test]
        fn no_sum_or_conversion_overflows(
            first in durations(), second in durations(), wire in any::<u64>(), uptime in 0..4_000_000_000_u64,
        ) {
            let (now, clock) = (Instant::now(), Duration::from_secs(uptime));
            for limit in [TimeLimit::new(first), TimeLimit::from_microseconds(wire)] {
                let sum = limit.plus(TimeLimit::new(second));
                let is_limit = limit.get().is_some();
                prop_assert_eq!(limit.after(now).is_some(), is_limit);
                prop_assert_eq!(limit.microseconds().is_some(), is_limit);
                if let (Some(end), Some(time)) = (limit.after_time(clock), limit.get()) {
                    prop_assert_eq!(u128::from(nanoseconds(end)), (clock + time).as_nanos());
                    // A limit that was not capped survives the conversion.
                    let sent = limit.microseconds().map(TimeLimit::from_microseconds);
                    let kept = sent.and_then(TimeLimit::get).map(|time| time.as_micros());
                    prop_assert_eq!(kept, Some(time.as_micros()));
                }
                if let (Some(sum), Some(time)) = (sum.get(), limit.get()) {
                    prop_assert_eq!(sum, time + second);
                }
            }
            let spec = timespec(first);
            prop_assert!(spec.tv_sec >= 0 && (0..1_000_000_000).contains(&spec.tv_nsec));
        }
    }

    #[test]
    fn a_hundred_years_or_more_are_no_limit() {
        assert_eq!(TimeLimit::new(Duration::MAX), TimeLimit::NEVER);
        assert_eq!(TimeLimit::from_microseconds(u64::MAX), TimeLimit::NEVER);
        assert_eq!(TimeLimit::from(None), TimeLimit::NEVER);
        let second = Duration::from_secs(1);
        assert_eq!(TimeLimit::new(second).get(), Some(second));
        assert!(TimeLimit::new(Duration::ZERO).is_zero() && !TimeLimit::NEVER.is_zero());
    }
}
