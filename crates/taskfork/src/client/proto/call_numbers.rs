//! How far the calls on a connection have got. Nothing else records that.

/// Calls on a connection are numbered from 1, in the order in which they are sent and answered.
#[derive(Debug, Default)]
pub(super) struct CallNumbers {
    /// The last call that has a number: it has been sent, or the outbox has it.
    last: u64,
    /// The last call that has been sent in full.
    sent: u64,
    /// The last call that has been answered.
    answered: u64,
    /// The worker skips the calls up to this number, because a call before them failed.
    skipped: u64,
    /// How many bytes of the call after `last` have been sent.
    partial: usize,
}

impl CallNumbers {
    /// Returns the number of a new call, which the outbox has.
    pub(super) fn assign(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Records that this number of further calls in the outbox was sent in full.
    pub(super) fn record_sent(&mut self, calls: u64) {
        self.sent += calls;
    }

    /// Records that this number of bytes of the next call was sent, after all other calls.
    pub(super) fn record_partial(&mut self, bytes: usize) {
        self.partial = bytes;
    }

    /// Records that the next call has been sent in full, after all others. Returns its number.
    pub(super) fn complete_partial(&mut self) -> u64 {
        self.partial = 0;
        self.last += 1;
        self.sent = self.last;
        self.last
    }

    /// Records that the outbox has the rest of the partly sent call.
    pub(super) fn assign_partial(&mut self) {
        self.partial = 0;
        self.last += 1;
    }

    /// The last call that has been sent in full.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// How many bytes of the next call have been sent.
    pub(super) fn partial(&self) -> usize {
        self.partial
    }

    /// How many calls have a number and wait for their answers. Skipped calls do not count.
    pub(super) fn unanswered(&self) -> u64 {
        self.last - self.answered.max(self.skipped)
    }

    /// How many calls have been sent in full and wait for their answers. Skipped calls do not count.
    pub(super) fn sent_unanswered(&self) -> u64 {
        self.sent.saturating_sub(self.answered.max(self.skipped))
    }

    /// Whether the worker has the call whose answer is due next.
    pub(super) fn is_next_sent(&self) -> bool {
        self.answered < self.sent
    }

    /// The call whose answer is due next.
    pub(super) fn next_answer(&self) -> u64 {
        self.answered + 1
    }

    pub(super) fn record_answer(&mut self) {
        self.answered += 1;
    }

    /// Records that the worker skips all calls that are not answered.
    pub(super) fn skip_unanswered(&mut self) {
        self.skipped = self.last;
    }

    /// Whether the next answer is that of a skipped call.
    pub(super) fn is_skipped_answer_due(&self) -> bool {
        self.answered < self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_calls_wait_for_no_answer_of_their_own() {
        let mut calls = CallNumbers::default();
        assert_eq!((calls.assign(), calls.assign()), (1, 2));
        calls.record_sent(2);
        calls.record_partial(10);
        assert_eq!((calls.unanswered(), calls.sent(), calls.next_answer()), (2, 2, 1));
        assert_eq!((calls.sent_unanswered(), calls.is_next_sent()), (2, true));
        calls.record_answer();
        calls.assign_partial();
        calls.skip_unanswered();
        assert!(calls.is_skipped_answer_due());
        assert_eq!((calls.unanswered(), calls.partial(), calls.sent()), (0, 0, 2));
        // The worker does not have all of the third one.
        assert_eq!((calls.sent_unanswered(), calls.is_next_sent()), (0, true));
        calls.record_sent(1);
        assert_eq!(calls.complete_partial(), 4);
        assert_eq!((calls.unanswered(), calls.sent()), (1, 4));
        calls.record_answer();
        calls.record_answer();
        assert!(!calls.is_skipped_answer_due());
        assert_eq!((calls.next_answer(), calls.unanswered()), (4, 1));
    }
}
