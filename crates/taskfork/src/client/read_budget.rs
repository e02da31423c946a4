//! How much of what a worker sends is handled in one turn, before other tasks have worker_fields. Pure.

/// The most that is handled in one turn, in bytes read. Small enough that a turn of the slowest kind of message
/// takes a few milliseconds in a debug build.
const TURN: usize = 1 << 20;

/// The turn charges one unit of the task's budget of the runtime for this much. So a task that polls many calls has
/// one limit for all of them.
const SHARE: usize = 64 << 10;

/// What a message costs beyond its bytes: each is decoded, however short it is.
const MESSAGE: usize = 1 << 10;

/// What a byte of notes costs: it is decoded, and merged into a log.
const NOTE: usize = 8;

/// A worker that has sent this many messages other than answers, since its last answer, counts as flooding. If they hold
/// notes, these are more than a log takes.
const FLOOD: usize = 2048;

/// What has been handled in this turn.
#[derive(Debug, Default)]
pub(super) struct ReadBudget {
    spent: usize,
    /// How much of that the runtime's budget has been charged for.
    charged: usize,
    /// How many messages have come since the last answer.
    others: usize,
}

impl ReadBudget {
    pub(super) fn begin(&mut self) {
        (self.spent, self.charged) = (0, 0);
    }

    /// Counts bytes that have been read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// Counts a message.
    pub(super) fn took(&mut self) {
        self.read(MESSAGE);
    }

    /// Counts a message other than an answer.
    pub(super) fn took_other(&mut self) {
        self.others = self.others.saturating_add(1);
    }

    /// Counts bytes of notes.
    pub(super) fn noted(&mut self, bytes: usize) {
        self.read(bytes.saturating_mul(NOTE));
        self.took_other();
    }

    /// An answer has come.
    pub(super) fn answered(&mut self) {
        self.others = 0;
    }

    /// Whether the rest must wait for the next turn.
    pub(super) fn is_over(&self) -> bool {
        self.spent >= TURN
    }

    /// Whether more messages have come since the last answer than a worker has reason to send.
    pub(super) fn is_flooding(&self) -> bool {
        self.others >= FLOOD
    }

    /// Whether a unit of the runtime's budget is due.
    pub(super) fn owes(&self) -> bool {
        self.spent - self.charged >= SHARE
    }

    pub(super) fn charge(&mut self) {
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
            turn.took();
            messages += 1;
        }
        assert_eq!(messages, TURN / MESSAGE);
        assert!(turn.owes());
        turn.begin();
        turn.read(TURN - 1);
        assert!(!turn.is_over());
        turn.noted(1);
        assert!(turn.is_over());
        turn.noted(usize::MAX);
        assert!(turn.is_over());
        turn.charge();
        assert!(!turn.owes());
    }

    #[test]
    fn many_messages_without_an_answer_are_a_flood() {
        let mut turn = ReadBudget::default();
        for _ in 1..FLOOD {
            turn.took_other();
            turn.begin();
        }
        assert!(!turn.is_flooding());
        turn.noted(10);
        assert!(turn.is_flooding());
        turn.answered();
        assert!(!turn.is_flooding());
    }
}
