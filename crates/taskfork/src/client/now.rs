//! The time of a change.

use std::cell::Cell;
use std::time::Instant;

/// The time at which a change happens. State machines get it from their callers. It is read when it is first needed,
/// because most changes need no time, and it does not change after that.
#[derive(Debug)]
pub(crate) struct Now {
    read: fn() -> Instant,
    at: Cell<Option<Instant>>,
}

impl Now {
    /// The time that this function returns.
    pub(crate) const fn read_by(read: fn() -> Instant) -> Self {
        Self { read, at: Cell::new(None) }
    }

    pub(crate) fn get(&self) -> Instant {
        if let Some(at) = self.at.get() {
            return at;
        }
        let at = (self.read)();
        self.at.set(Some(at));
        at
    }
}

impl From<Instant> for Now {
    fn from(at: Instant) -> Self {
        Self { read: Instant::now, at: Cell::new(Some(at)) }
    }
}
