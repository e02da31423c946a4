//! Pipelined calls: which of them to skip, and when their time began.

use std::time::Duration;

use crate::wire::native::CallMode;

/// The maximum number of bytes of calls that a client may send without answers. The worker may have
/// to buffer all of them to find a cancellation.
pub(super) const WINDOW: usize = 64 << 10;

/// A cancellation is worth a read only if the previous call took longer than this.
const SLOW: Duration = Duration::from_micros(50);

/// The pipelined calls of one connection.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    /// How many calls have begun or were skipped.
    begun: u64,
    /// A call has failed, and only calls that were pipelined behind it have come since.
    is_failing: bool,
    /// When the last call began that was not pipelined. The time of the calls behind it starts then.
    sent: Duration,
    /// When the last call began.
    last: Duration,
    /// The numbers of the calls that the client has cancelled.
    cancelled: Vec<u64>,
}

#[taskfork_macros::startup_code]
impl Pipeline {
    /// Whether the next call may have been cancelled while the previous one ran.
    pub(super) fn may_be_cancelled(&self, order: CallMode, now: Duration) -> bool {
        order == CallMode::Pipelined && now.saturating_sub(self.last) > SLOW
    }

    pub(super) fn set_cancelled(&mut self, calls: impl Iterator<Item = u64>) {
        self.cancelled.clear();
        self.cancelled.extend(calls);
    }

    /// Begins the next call. Returns when it was sent, or `None` if it must be skipped.
    pub(super) fn begin(&mut self, order: CallMode, now: Duration) -> Option<Duration> {
        let is_first = order != CallMode::Pipelined || self.begun == 0;
        self.begun += 1;
        if is_first {
            self.is_failing = false;
            self.sent = now;
        }
        self.last = now;
        (!self.is_failing && !self.cancelled.contains(&self.begun)).then_some(self.sent)
    }

    /// The number of the call that has begun or was skipped last.
    pub(super) fn number(&self) -> Option<u64> {
        (self.begun > 0).then_some(self.begun)
    }

    /// Records that the current call has failed, so that the calls pipelined behind it are skipped.
    pub(super) fn set_failed(&mut self) {
        self.is_failing = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);
    const LATER: Duration = Duration::from_secs(2);

    #[test]
    fn pipelined_calls_are_skipped_after_a_failure() {
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.begin(CallMode::Sequential, NOW), Some(NOW));
        pipeline.set_failed();
        assert_eq!(pipeline.begin(CallMode::Pipelined, NOW), None);
        assert_eq!(pipeline.begin(CallMode::Pipelined, NOW), None);
        assert_eq!(pipeline.begin(CallMode::Sequential, LATER), Some(LATER));
        assert_eq!(pipeline.begin(CallMode::Pipelined, LATER), Some(LATER));
    }

    #[test]
    fn the_time_of_a_pipelined_call_starts_with_the_first_call() {
        let mut pipeline = Pipeline::default();
        assert_eq!(pipeline.begin(CallMode::Sequential, NOW), Some(NOW));
        assert_eq!(pipeline.begin(CallMode::Pipelined, LATER), Some(NOW));
    }

    #[test]
    fn only_cancelled_calls_are_skipped() {
        let mut pipeline = Pipeline::default();
        pipeline.begin(CallMode::Sequential, NOW);
        pipeline.set_cancelled([2, 4].into_iter());
        let begun = [0; 4].map(|_| pipeline.begin(CallMode::Pipelined, NOW).is_some());
        assert_eq!(begun, [false, true, false, true]);
    }
}
