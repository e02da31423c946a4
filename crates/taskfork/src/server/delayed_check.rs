//! When something is checked that takes long, and may be checked a moment later.

use std::time::{Duration, Instant};

/// The pause before a check is at least this many times as long as the last check took. So checks take
/// at most 4 % of the server's time, unless one takes longer than 4 ms.
const PAUSE_FACTOR: u32 = 25;

/// A check that took long, because much had happened, does not delay the next one by more.
const MAX_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(crate) struct DelayedCheck {
    /// When the next check is due, if one is.
    at: Option<Instant>,
    /// How long the last check took.
    took: Duration,
}

impl DelayedCheck {
    /// Orders a check after `delay`, or later if the last one took long.
    pub(crate) fn order(&mut self, delay: Duration) {
        let at = Instant::now() + delay.max(self.took.saturating_mul(PAUSE_FACTOR).min(MAX_PAUSE));
        self.at = Some(self.at.map_or(at, |before| before.min(at)));
    }

    pub(crate) fn is_ordered(&self) -> bool {
        self.at.is_some()
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }

    /// The time until the ordered check is due.
    pub(crate) fn time_until(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Records a check that began at `started` and ends now. It answers all orders from before.
    pub(crate) fn finish(&mut self, started: Instant) {
        *self = Self { at: None, took: started.elapsed() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_took_long_is_followed_by_a_pause_whatever_is_ordered() {
        let mut check = DelayedCheck { at: None, took: Duration::from_millis(2) };
        let now = Instant::now();
        check.order(Duration::ZERO);
        assert!(check.is_ordered() && !check.is_due(now + Duration::from_millis(49)));
        let before = check.at;
        check.order(Duration::from_secs(1000));
        assert_eq!(check.at, before);
        check.finish(Instant::now());
        assert_eq!(check.time_until(), None);
    }

    #[test]
    fn a_check_that_took_very_long_is_not_followed_by_a_long_pause() {
        let mut check = DelayedCheck { at: None, took: Duration::from_secs(6) };
        check.order(Duration::ZERO);
        assert!(check.is_due(Instant::now() + MAX_PAUSE));
    }
}
