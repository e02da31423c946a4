//! How much of what a worker sends is handled in one turn, before other tasks have theirs. Pure.

/// The most that is handled in one turn, in bytes read. Small enough that a turn of the slowest kind of message
/// takes a few milliseconds in a debug build.
const TURN: usize = 1 << 20;

/// After so much, the turn takes one unit of the task's budget of the runtime. So a task that polls many calls has
/// one limit for all of them.
const SHARE: usize = 64 << 10;

/// What a message costs beyond its bytes: each is decoded, however short it is.
const MESSAGE: usize = 1 << 10;

/// What a byte of notes costs: it is decoded, and merged into a log.
const NOTE: usize = 8;

/// What has been handled in this turn.
#[derive(Debug, Default)]
pub(super) struct Turn {
    spent: usize,
    /// How much of that the runtime's budget has been charged for.
    charged: usize,
    /// How much of it was for messages, and not for the bytes of a long one.
    messages: usize,
    /// A turn was not enough for the messages that had come since the last answer.
    flooded: bool,
}

impl Turn {
    pub(super) fn begin(&mut self) {
        (self.spent, self.charged, self.messages) = (0, 0, 0);
    }

    /// So many bytes have been read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// A message has been taken.
    pub(super) fn took(&mut self) {
        self.handled(MESSAGE);
    }

    /// So many bytes of notes have been taken.
    pub(super) fn noted(&mut self, bytes: usize) {
        self.handled(bytes.saturating_mul(NOTE));
    }

    fn handled(&mut self, cost: usize) {
        self.read(cost);
        self.messages = self.messages.saturating_add(cost);
    }

    /// An answer has come.
    pub(super) fn answered(&mut self) {
        self.flooded = false;
    }

    /// Whether the rest must wait for the next turn.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = self.spent >= TURN;
        self.flooded |= is_over && self.messages >= TURN / 2;
        is_over
    }

    /// Whether so many messages have come at a time since the last answer that a turn was not enough for them.
    pub(super) fn is_flooded(&self) -> bool {
        self.flooded
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
        let mut turn = Turn::default();
        let mut messages = 0;
        while !turn.is_over() {
            turn.took();
            messages += 1;
        }
        assert_eq!(messages, TURN / MESSAGE);
        assert!(turn.is_flooded() && turn.owes());
        turn.begin();
        turn.read(TURN - 1);
        assert!(!turn.is_over() && turn.is_flooded());
        turn.answered();
        turn.noted(1);
        assert!(turn.is_over() && !turn.is_flooded(), "most was a long message");
        turn.noted(usize::MAX);
        assert!(turn.is_over() && turn.is_flooded());
        turn.charge();
        assert!(!turn.owes());
    }
}
