//! When spare workers are forked: workers that are set up before a client needs them.

use std::time::Duration;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A spare worker of this age has come up, so its failure does not count with earlier ones.
const STABLE_AGE: Duration = Duration::from_secs(60);

/// How long a fork waits after a spare worker has got a client, because the fork would delay that
/// client's first answer.
const FIRST_ANSWER_DELAY: Duration = Duration::from_millis(1);

/// How long a steady stream of events can delay the fork of a spare worker.
pub(super) const MAX_FORK_DELAY: Duration = Duration::from_millis(100);

/// After a failure, how often the next spare worker is checked until it has come up.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Spares {
    /// The pause after the last failure. Zero once a spare worker has come up since.
    backoff: Duration,
    /// When the pause ends.
    retry_at: Option<Duration>,
    /// The last worker that had been forked at the time of the failure.
    forked_at_failure: u64,
    /// Since when there have been too few spare workers.
    short_since: Option<Duration>,
    /// When the next one is forked, or the last one is checked.
    due: Option<Duration>,
    /// When a client was last given to a spare worker.
    last_assigned: Option<Duration>,
}

impl Spares {
    pub(super) fn short_since(&self) -> Option<Duration> {
        self.short_since
    }

    /// When the next spare worker is forked, or the last one is checked.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Notes whether there are too few spare workers. None is forked while one `is_probing`.
    pub(super) fn update(&mut self, is_short: bool, is_probing: bool, now: Duration) {
        if !is_short {
            (self.short_since, self.due) = (None, None);
            return;
        }
        self.short_since.get_or_insert(now);
        let wait = if is_probing { PROBE_INTERVAL } else { self.time_until_fork(now) };
        self.due = Some(now.saturating_add(wait));
    }

    /// A client has been given to a spare worker.
    pub(super) fn record_assignment(&mut self, now: Duration) {
        self.reset_backoff();
        self.last_assigned = Some(now);
    }

    /// A spare worker has come up.
    pub(super) fn reset_backoff(&mut self) {
        (self.backoff, self.retry_at, self.forked_at_failure) = (Duration::ZERO, None, 0);
    }

    /// Records the failure of a spare worker of this age. `forked` is the number of the last worker.
    /// Returns the new pause, or `None` during a pause: several may have been forked together.
    pub(super) fn record_failure(
        &mut self,
        age: Duration,
        forked: u64,
        now: Duration,
    ) -> Option<Duration> {
        if !self.remaining_backoff(now).is_zero() {
            return None;
        }
        let before = if age < STABLE_AGE { self.backoff } else { Duration::ZERO };
        self.backoff = (2 * before).clamp(FIRST_BACKOFF, MAX_BACKOFF);
        self.retry_at = Some(now + self.backoff);
        self.forked_at_failure = forked;
        Some(self.backoff)
    }

    fn remaining_backoff(&self, now: Duration) -> Duration {
        self.retry_at.map_or(Duration::ZERO, |at| at.saturating_sub(now))
    }

    /// The time until the next spare worker may be forked.
    fn time_until_fork(&self, now: Duration) -> Duration {
        let since = self.last_assigned.map_or(FIRST_ANSWER_DELAY, |at| now.saturating_sub(at));
        self.remaining_backoff(now).max(FIRST_ANSWER_DELAY.saturating_sub(since))
    }

    /// Whether this spare worker is the first one after a failure. No other is forked until it has
    /// come up.
    pub(super) fn is_probe(&self, worker: u64) -> bool {
        !self.backoff.is_zero() && worker > self.forked_at_failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backoff_doubles_with_each_failure_up_to_a_limit() {
        let mut spares = Spares::default();
        let mut now = Duration::from_secs(1000);
        assert_eq!(spares.remaining_backoff(now), Duration::ZERO);
        let mut backoffs = Vec::new();
        for _ in 0..10 {
            let backoff = spares.record_failure(Duration::ZERO, 0, now).unwrap();
            // Another worker that was forked together with the failed one.
            assert_eq!(spares.record_failure(Duration::ZERO, 0, now + backoff / 2), None);
            assert_eq!(spares.remaining_backoff(now + backoff / 2), backoff - backoff / 2);
            backoffs.push(backoff);
            now += backoff;
        }
        let doubled = (0..9).map(|times| FIRST_BACKOFF * 2_u32.pow(times));
        assert_eq!(backoffs, doubled.chain([MAX_BACKOFF]).collect::<Vec<_>>());

        assert_eq!(spares.record_failure(STABLE_AGE, 0, now), Some(FIRST_BACKOFF));
        now += FIRST_BACKOFF;
        spares.record_failure(Duration::ZERO, 0, now);
        spares.reset_backoff();
        assert_eq!(spares.remaining_backoff(now), Duration::ZERO);
        assert_eq!(spares.record_failure(Duration::ZERO, 0, now), Some(FIRST_BACKOFF));
    }
}
