//! How long a node takes no sessions because its server cannot be reached. No I/O; time is an argument.
//!
//! Such a node would otherwise have more room than all others, and get all requests, also those that it has refused
//! just now.

use std::time::{Duration, Instant};

/// The first pause. Each one that follows is twice as long.
const SHORTEST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether a node pauses.
#[derive(Debug, Default)]
pub(super) struct Pause {
    length: Duration,
    until: Option<Instant>,
}

impl Pause {
    /// The server could not be reached.
    pub(super) fn begin(&mut self, now: Instant) {
        // Several attempts that were on their way together are one failure.
        if self.until.is_none() {
            self.length = (self.length * 2).clamp(SHORTEST, LONGEST);
            self.until = Some(now + self.length);
        }
    }

    /// The server could be reached: the next pause is short.
    pub(super) fn reset(&mut self) {
        self.length = Duration::ZERO;
    }

    /// When the pause is over, if there is one.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends a pause whose time is over.
    pub(super) fn end(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_become_longer_until_the_server_is_reached() {
        let mut now = Instant::now();
        let mut pause = Pause::default();
        let mut lengths = Vec::new();
        for failure in 0..6 {
            if failure == 5 {
                pause.reset();
            }
            pause.begin(now);
            pause.begin(now + SHORTEST / 2);
            let until = pause.until().unwrap();
            lengths.push((until - now).as_millis());
            pause.end(until - SHORTEST / 2);
            assert!(pause.until().is_some());
            now = until;
            pause.end(now);
            assert!(pause.until().is_none());
        }

        assert_eq!(lengths, [100, 200, 400, 800, 1000, 100]);
    }
}
