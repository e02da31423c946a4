//! How much of what a worker sends is handled in one turn, before other tasks run. Pure.

use std::time::Duration;

/// The most that one turn handles, in bytes read. With the slowest kind of message a turn takes a few
/// milliseconds in a debug build.
const TURN: usize = 1 << 20;

/// A turn charges the task's budget of the runtime one unit for this many bytes. So a task that polls many
/// calls has one limit for all of them.
const SHARE: usize = 64 << 10;

/// What a message costs beyond its bytes, because even a short one is decoded.
const MESSAGE: usize = 1 << 10;

/// What a byte of telemetry costs, because it is decoded and merged into a log.
const TELEMETRY: usize = 8;

/// A worker that has sent this many messages since its last answer counts as flooding. As telemetry they
/// would exceed the limit of a log.
const FLOOD: usize = 2048;

/// How many more messages a worker may have sent for each second that its call has run. It sends telemetry and progress 20
/// times a second each; a log or a trace may need several messages.
const A_SECOND: u64 = 100;

/// How many other messages may accompany an item of a stream: what announces its descriptors and its memory, the
/// memory that the worker may reuse, and telemetry.
const BESIDE_AN_ITEM: usize = 4;

/// How much has been handled in this turn.
#[derive(Debug, Default)]
pub(crate) struct ReadBudget {
    spent: usize,
    /// The part of `spent` for which the runtime's budget has been charged.
    charged: usize,
    /// How many messages were received since the last answer, without those that belong to items.
    others: usize,
    /// An answer was received in this turn.
    has_answer: bool,
}

impl ReadBudget {
    pub(super) fn begin(&mut self) {
        (self.spent, self.charged, self.has_answer) = (0, 0, false);
    }

    /// Counts bytes that have been read.
    pub(super) fn count_bytes(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// Counts a message.
    pub(super) fn count_message(&mut self) {
        self.count_bytes(MESSAGE);
    }

    /// Counts a message other than an answer.
    pub(crate) fn count_other(&mut self) {
        self.others = self.others.saturating_add(1);
    }

    /// Counts a message with this many bytes of telemetry.
    pub(crate) fn count_telemetry(&mut self, bytes: usize) {
        self.count_bytes(bytes.saturating_mul(TELEMETRY));
        self.count_other();
    }

    /// Records an answer.
    pub(super) fn record_answer(&mut self) {
        (self.others, self.has_answer) = (0, true);
    }

    /// Records an item of a stream, which was received or sent.
    pub(super) fn record_item(&mut self) {
        self.others = self.others.saturating_sub(BESIDE_AN_ITEM);
    }

    /// Whether the turn is over, so that further messages wait for the next one.
    pub(crate) fn is_over(&self) -> bool {
        self.spent >= TURN
    }

    /// Whether a whole turn was spent on what belongs to no answer. A long answer may spend one alone, and leaves none for
    /// what follows it.
    pub(super) fn is_spent_without_answer(&self) -> bool {
        self.is_over() && !self.has_answer
    }

    /// Whether the worker has sent more messages since its last answer than it has reason to in this time.
    pub(super) fn is_flooding(&self, time: Duration) -> bool {
        let honest = (FLOOD as u64).saturating_add(A_SECOND.saturating_mul(time.as_secs()));
        self.others as u64 >= honest
    }

    /// Whether a unit of the runtime's budget is due.
    pub(crate) fn is_charge_due(&self) -> bool {
        self.spent - self.charged >= SHARE
    }

    pub(crate) fn charge(&mut self) {
        self.charged = self.spent;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_ends_after_many_messages_or_many_bytes() {
        let mut turn = ReadBudget::default();
        let mut messages = 0;
        while !turn.is_over() {
            turn.count_message();
            messages += 1;
        }
        assert_eq!(messages, TURN / MESSAGE);
        assert!(turn.is_charge_due());
        turn.begin();
        turn.count_bytes(TURN - 1);
        assert!(!turn.is_over());
        turn.count_telemetry(1);
        assert!(turn.is_over());
        turn.count_telemetry(usize::MAX);
        assert!(turn.is_over());
        turn.charge();
        assert!(!turn.is_charge_due());
    }

    #[test]
    fn a_turn_with_an_answer_accuses_nobody() {
        let mut turn = ReadBudget::default();
        turn.count_bytes(TURN);
        assert!(turn.is_spent_without_answer());
        turn.record_answer();
        assert!(turn.is_over() && !turn.is_spent_without_answer());
        turn.begin();
        assert!(!turn.is_spent_without_answer());
        turn.count_bytes(TURN);
        assert!(turn.is_spent_without_answer());
    }

    #[test]
    fn an_item_excuses_only_the_messages_that_belong_to_it() {
        let mut turn = ReadBudget::default();
        for _ in 0..2 * FLOOD {
            (0..BESIDE_AN_ITEM).for_each(|_| turn.count_other());
            turn.record_item();
        }
        assert!(!turn.is_flooding(Duration::ZERO));
        for _ in 0..FLOOD {
            (0..=BESIDE_AN_ITEM).for_each(|_| turn.count_other());
            turn.record_item();
        }
        (0..=BESIDE_AN_ITEM).for_each(|_| turn.count_other());
        assert!(turn.is_flooding(Duration::ZERO));
    }

    #[test]
    fn many_messages_without_an_answer_are_a_flood() {
        let mut turn = ReadBudget::default();
        for _ in 1..FLOOD {
            turn.count_other();
            turn.begin();
        }
        assert!(!turn.is_flooding(Duration::ZERO));
        turn.count_telemetry(10);
        assert!(turn.is_flooding(Duration::ZERO));
        // A call that has run for long has reason to.
        assert!(turn.is_flooding(Duration::from_millis(999)));
        assert!(!turn.is_flooding(Duration::from_secs(1)));
        (0..A_SECOND).for_each(|_| turn.count_other());
        assert!(turn.is_flooding(Duration::from_secs(1)));
        assert!(!turn.is_flooding(Duration::MAX));
        turn.record_answer();
        assert!(!turn.is_flooding(Duration::ZERO));
    }
}
