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
    /// A turn has ended before all had been handled that was there, and none has since found the end of it.
    flooded: bool,
}

impl Turn {
    pub(super) fn begin(&mut self) {
        (self.spent, self.charged) = (0, 0);
    }

    /// So many bytes have been read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }

    /// A message has been taken.
    pub(super) fn took(&mut self) {
        self.read(MESSAGE);
    }

    /// So many bytes of notes have been taken.
    pub(super) fn noted(&mut self, bytes: usize) {
        self.read(bytes.saturating_mul(NOTE));
    }

    /// Everything has been handled that was there.
    pub(super) fn found_end(&mut self) {
        self.flooded = false;
    }

    /// Whether the rest must wait for the next turn.
    pub(super) fn is_over(&mut self) -> bool {
        let is_over = self.spent >= TURN;
        self.flooded |= is_over;
        is_over
    }

    /// Whether more has come than one turn takes, and the end of it has not been seen.
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
        turn.found_end();
        turn.noted(1);
        assert!(turn.is_over() && turn.is_flooded());
        turn.noted(usize::MAX);
        turn.charge();
        assert!(!turn.owes());
    }
}
