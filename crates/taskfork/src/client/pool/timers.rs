//! The timers of all sessions of a client. Pure.
//!
//! Setting and clearing a timer takes as long with one timer as with a hundred thousand. Times are
//! rounded up to milliseconds, so their number is bounded by the length of the longest timeout.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::wait_queue::{Queue, Ticket};

#[derive(Debug)]
pub(crate) struct Timers<T> {
    start: Instant,
    ticks: BTreeMap<u64, Queue<T>>,
    /// When the driver wakes in any case. `None` if it wakes for events only.
    driver_wakeup: Option<Instant>,
}

/// One timer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimerKey {
    tick: u64,
    ticket: Ticket,
}

impl<T> Timers<T> {
    pub(crate) fn new(start: Instant) -> Self {
        Self { start, ticks: BTreeMap::new(), driver_wakeup: None }
    }

    /// Sets when the driver wakes in any case. `None` if it wakes for events only.
    pub(crate) fn set_driver_wakeup(&mut self, at: Option<Instant>) {
        self.driver_wakeup = at;
    }

    /// Sets a timer. Also returns whether it is due before the driver wakes.
    pub(crate) fn set(&mut self, at: Instant, who: T) -> (TimerKey, bool) {
        // Rounded up, so that no timer fires early.
        let since = at.saturating_duration_since(self.start);
        let tick = u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        let must_wake = self.driver_wakeup.is_none_or(|wakeup| at < wakeup);
        let ticket = self.ticks.entry(tick).or_insert_with(Queue::new).push_back(who);
        (TimerKey { tick, ticket }, must_wake)
    }

    /// Clears a timer, unless it has fired.
    pub(crate) fn clear(&mut self, timer: TimerKey) {
        let Some(queue) = self.ticks.get_mut(&timer.tick) else { return };
        queue.remove(timer.ticket);
        if queue.is_empty() {
            self.ticks.remove(&timer.tick);
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        let (&tick, _) = self.ticks.first_key_value()?;
        self.start.checked_add(Duration::from_millis(tick))
    }

    /// Removes and returns one timer that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        let mut first = self.ticks.first_entry()?;
        let who = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        who
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_is_due_once_in_order_and_never_early(
            times in proptest::collection::vec((0u64..50_000, any::<bool>()), 0..100),
        ) {
            let start = Instant::now();
            let mut timers = Timers::new(start);
            let mut expected = Vec::new();
            for &(micros, cleared) in &times {
                let at = start + Duration::from_micros(micros);
                let (timer, _) = timers.set(at, at);
                if cleared {
                    timers.clear(timer);
                } else {
                    expected.push(at);
                }
            }
            let mut seen = Vec::new();
            while let Some(now) = timers.next() {
                let at = timers.pop_due(now).expect("something is due then");
                prop_assert!(at <= now);
                seen.push(at);
            }
            seen.sort();
            expected.sort();
            prop_assert_eq!(seen, expected);
            prop_assert!(timers.ticks.is_empty());
        }
    }
}
