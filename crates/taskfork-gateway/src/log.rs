//! The log of what strangers do, which they must not be able to fill.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// So many lines are written in such a time.
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Counts lines, and drops those that are too many.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Option<Period>>);

#[derive(Debug)]
struct Period {
    began: Instant,
    lines: u32,
}

impl LogLimit {
    /// Whether one more line may be written, and how many were dropped in the period before.
    pub(crate) fn admit(&self, now: Instant) -> (bool, u32) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *period {
            Some(period) if now.saturating_duration_since(period.began) < PERIOD => {
                period.lines = period.lines.saturating_add(1);
                (period.lines <= LINES, 0)
            }
            period => {
                let before = period.replace(Period { began: now, lines: 1 });
                (true, before.map_or(0, |before| before.lines.saturating_sub(LINES)))
            }
        }
    }
}

/// Logs one event of a client, with its address, unless there are too many.
macro_rules! client_event {
    ($limit:expr, $address:expr, $($text:tt)+) => {
        if let (true, dropped) = $limit.admit(std::time::Instant::now()) {
            if dropped > 0 {
                tracing::warn!("{dropped} more lines about clients were not written");
            }
            tracing::warn!(address = %$address, $($text)+);
        }
    };
}
pub(crate) use client_event;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_many_are_counted() {
        let (limit, began) = (LogLimit::default(), Instant::now());
        let admitted = (0..LINES + 5).filter(|_| limit.admit(began).0).count();
        assert_eq!(admitted, LINES as usize);
        assert_eq!(limit.admit(began + PERIOD), (true, 5));
        assert_eq!(limit.admit(began + PERIOD), (true, 0));
    }
}
