//! When the ends of checkouts are sent that idle connections hold back.
//!
//! If checkouts follow each other closely, the end of one goes with the next call: one system call less on each side,
//! and the worker sleeps until there is a call. It reads no clock.

use std::time::Instant;

use crate::wire::native::DONE_DELAY;

/// The ends of checkouts that idle connections hold back.
#[derive(Debug, Default)]
pub(super) struct HeldBack {
    /// When they must be sent, if there are any.
    flush_at: Option<Instant>,
    /// When the last checkout ended whose worker allows to hold its end back.
    last_end: Option<Instant>,
}

/// When the end of a checkout is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flush {
    /// Once its caller has the result.
    Soon,
    /// With the next call, or at the time of [`HeldBack::flush_at`].
    Later {
        /// That time has just been set.
        is_first: bool,
    },
}

impl HeldBack {
    /// A checkout has ended. Its end may wait if the one before ended less than [`DONE_DELAY`] ago, so that a call is
    /// likely to follow soon.
    pub(super) fn end_checkout(&mut self, now: Instant) -> Flush {
        let before = self.last_end.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) >= DONE_DELAY) {
            return Flush::Soon;
        }
        let is_first = self.flush_at.is_none();
        self.flush_at.get_or_insert(now + DONE_DELAY);
        Flush::Later { is_first }
    }

    /// When [`take_due`](Self::take_due) returns true, if nothing else happens.
    pub(super) fn flush_at(&self) -> Option<Instant> {
        self.flush_at
    }

    /// Returns true once when what is held back must be sent.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.flush_at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_ends_in_close_succession_wait_and_none_waits_longer_than_the_delay() {
        let (mut held_back, start) = (HeldBack::default(), Instant::now());
        let after = |microseconds| start + Duration::from_micros(microseconds);
        assert_eq!(held_back.end_checkout(start), Flush::Soon);
        assert_eq!(held_back.end_checkout(after(4000)), Flush::Later { is_first: true });
        assert_eq!(held_back.end_checkout(after(8000)), Flush::Later { is_first: false });
        assert_eq!(held_back.flush_at(), Some(after(4000) + DONE_DELAY));
        assert!(!held_back.take_due(after(8999)));
        assert!(held_back.take_due(after(9000)) && !held_back.take_due(after(9000)));
        assert_eq!(held_back.end_checkout(after(9500)), Flush::Later { is_first: true });
        assert_eq!(held_back.end_checkout(after(14_500)), Flush::Soon);
    }
}
