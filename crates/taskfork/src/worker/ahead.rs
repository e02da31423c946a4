//! Calls that were sent before the answers to those before them: which of them to pass, and since
//! when their time is counted.

use std::time::Duration;

use crate::wire::native::CallMode;

/// How many bytes of calls a client may send before it has answers. All of them may have to be read
/// to find out that one is not wanted any more.
pub(super) const WINDOW: usize = 64 << 10;

/// After a call that took longer than this, it is worth looking whether the next is still wanted.
const SLOW: Duration = Duration::from_micros(50);

/// What a worker knows of the calls of its connection.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// How many have been taken up or passed.
    taken: u64,
    /// One has failed, and none that does not depend on it has come since.
    failing: bool,
    /// When the last was taken up that was not sent ahead; the times of those behind it are counted
    /// from then.
    anchor: Duration,
    /// When the last was taken up.
    last: Duration,
    /// The numbers of calls to come that are not wanted any more.
    forgotten: Vec<u64>,
}

impl Ahead {
    /// Whether it may have been taken back what this next call is, while the one before it ran.
    pub(super) fn is_to_look(&self, mode: CallMode, now: Duration) -> bool {
        mode == CallMode::Pipelined && now.saturating_sub(self.last) > SLOW
    }

    pub(super) fn forget(&mut self, calls: impl Iterator<Item = u64>) {
        self.forgotten.clear();
        self.forgotten.extend(calls);
    }

    /// Takes up the next call; gives when it was sent, or nothing if it is to be passed.
    pub(super) fn take(&mut self, mode: CallMode, now: Duration) -> Option<Duration> {
        let is_first = mode == CallMode::Sequential || self.taken == 0;
        self.taken += 1;
        if is_first {
            self.failing = false;
            self.anchor = now;
        }
        self.last = now;
        (!self.failing && !self.forgotten.contains(&self.taken)).then_some(self.anchor)
    }

    /// The number of the call that was taken up or passed last, if there has been one.
    pub(super) fn number(&self) -> Option<u64> {
        (self.taken > 0).then_some(self.taken)
    }

    pub(super) fn failed(&mut self) {
        self.failing = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const LATER: Duration = Duration::from_secs(2);

    #[test]
    fn what_was_sent_behind_a_failed_call_is_passed_until_one_comes_that_was_not() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.take(CallMode::Sequential, NOW), Some(NOW));
        ahead.failed();
        assert_eq!(ahead.take(CallMode::Pipelined, NOW), None);
        assert_eq!(ahead.take(CallMode::Pipelined, NOW), None);
        assert_eq!(ahead.take(CallMode::Sequential, LATER), Some(LATER));
        assert_eq!(ahead.take(CallMode::Pipelined, LATER), Some(LATER));
    }

    #[test]
    fn the_time_of_what_was_sent_ahead_counts_from_the_first() {
        let mut ahead = Ahead::default();
        assert_eq!(ahead.take(CallMode::Sequential, NOW), Some(NOW));
        assert_eq!(ahead.take(CallMode::Pipelined, LATER), Some(NOW));
    }

    #[test]
    fn only_what_was_taken_back_is_passed() {
        let mut ahead = Ahead::default();
        ahead.take(CallMode::Sequential, NOW);
        ahead.forget([2, 4].into_iter());
        let taken = [0; 4].map(|_| ahead.take(CallMode::Pipelined, NOW).is_some());
        assert_eq!(taken, [false, true, false, true]);
    }
}
