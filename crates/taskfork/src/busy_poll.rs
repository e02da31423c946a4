//! Whether to look for what comes next for a moment before going to sleep for it: waking a core that
//! sleeps takes longer than a short call does.

use std::time::Duration;

/// Whether a worker looks again and again for its next call, or a caller for its answer, before it
/// goes to sleep for it, for [`ServerBuilder::busy_poll`](crate::ServerBuilder::busy_poll) and
/// [`ClientBuilder::busy_poll`](crate::ClientBuilder::busy_poll).
///
/// A call between two processes that both sleep in between takes mostly as long as waking them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BusyPoll {
    /// For as long as it pays. A look takes at most 50 microseconds of processor time; one that was
    /// in vain is followed by none for the next 1, 2, 4 … 64 short
    /// waits, and waits of more than 200 microseconds never bring one about. No more processes
    /// look than there are cores to spare, and none where there is a single core.
    #[default]
    Adaptive,
    /// Never.
    Off,
    /// Each time, for so long.
    Fixed(Duration),
}

/// Only what comes this soon could have been looked for.
const SHORT: Duration = Duration::from_micros(200);
const MOST_SKIPPED: u32 = 64;

/// Decides for one connection, by what has come of it before. Pure.
#[derive(Debug)]
pub(crate) struct Poller {
    mode: BusyPoll,
    longest: Duration,
    /// After so many short waits it is tried again.
    skip: u32,
    /// How many will be skipped after the next failure.
    penalty: u32,
}

impl Poller {
    /// With the time that [`BusyPoll::Adaptive`] looks at most, where there are so many cores.
    pub(crate) fn new(mode: BusyPoll, longest: Duration, cores: usize) -> Self {
        let mode = if mode == BusyPoll::Adaptive && cores < 2 { BusyPoll::Off } else { mode };
        // Nothing is known yet: the first wait is not looked through.
        Self { mode, longest, skip: 1, penalty: 1 }
    }

    /// For how long to look now, if at all.
    pub(crate) fn budget(&self) -> Option<Duration> {
        match self.mode {
            BusyPoll::Adaptive => (self.skip == 0).then_some(self.longest),
            BusyPoll::Off => None,
            BusyPoll::Fixed(budget) => Some(budget),
        }
    }

    /// Whether it wants to know how long waits are.
    pub(crate) fn is_adaptive(&self) -> bool {
        self.mode == BusyPoll::Adaptive
    }

    /// It came while it was looked for.
    pub(crate) fn paid(&mut self) {
        self.penalty = 1;
    }

    /// It did not.
    pub(crate) fn failed(&mut self) {
        self.skip = self.penalty;
        self.penalty = (2 * self.penalty).min(MOST_SKIPPED);
    }

    /// It came after so long, having been slept for.
    pub(crate) fn slept(&mut self, wait: Duration) {
        if wait <= self.longest {
            // A look would have found it.
            (self.skip, self.penalty) = (0, 1);
        } else if wait <= SHORT {
            self.skip = self.skip.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_micros(50);

    /// Goes through these waits; gives how much was looked in vain, and how often with success.
    fn run(poller: &mut Poller, waits: impl IntoIterator<Item = Duration>) -> (Duration, u32) {
        let (mut vain, mut paid) = (Duration::ZERO, 0);
        for wait in waits {
            match poller.budget() {
                Some(budget) if wait <= budget => {
                    poller.paid();
                    paid += 1;
                }
                Some(budget) => {
                    poller.failed();
                    vain += budget;
                    poller.slept(wait);
                }
                None => poller.slept(wait),
            }
        }
        (vain, paid)
    }

    #[test]
    fn short_waits_are_looked_through() {
        let mut poller = Poller::new(BusyPoll::Adaptive, LONGEST, 2);
        let (vain, paid) = run(&mut poller, [Duration::from_micros(30); 100]);
        assert_eq!((vain, paid), (Duration::ZERO, 99));
        // However many were in vain, the first short one shows that it would pay again.
        run(&mut poller, [Duration::from_micros(60); 1000]);
        let (_, paid) = run(&mut poller, [Duration::from_micros(30); 100]);
        assert_eq!(paid, 99);
    }

    #[test]
    fn who_waits_for_long_looks_once_at_most() {
        let mut poller = Poller::new(BusyPoll::Adaptive, LONGEST, 2);
        run(&mut poller, [Duration::from_micros(30); 10]);
        let (vain, _) = run(&mut poller, std::iter::repeat_n(Duration::from_millis(1), 100_000));
        assert_eq!(vain, LONGEST);
    }

    #[test]
    fn there_is_none_on_a_single_core_unless_it_is_fixed() {
        let waits = [Duration::from_micros(1); 10];
        assert_eq!(run(&mut Poller::new(BusyPoll::Adaptive, LONGEST, 1), waits).1, 0);
        assert_eq!(run(&mut Poller::new(BusyPoll::Off, LONGEST, 8), waits).1, 0);
        let fixed = BusyPoll::Fixed(Duration::from_micros(5));
        assert_eq!(run(&mut Poller::new(fixed, LONGEST, 1), waits).1, 10);
    }

    proptest! {
        /// Between two successes, what is looked in vain stays small against the waits themselves.
        #[test]
        fn what_is_looked_in_vain_is_bounded(
            waits in prop::collection::vec(51..10_000_u64, 1..5000),
        ) {
            let mut poller = Poller::new(BusyPoll::Adaptive, LONGEST, 2);
            let waits: Vec<_> = waits.into_iter().map(Duration::from_micros).collect();
            let count = waits.len() as u32;
            let (vain, _) = run(&mut poller, waits);
            // 1 + 2 + 4 + … waits are skipped: one look more each time their number doubles.
            let looks = u32::BITS - count.leading_zeros() + count / MOST_SKIPPED;
            prop_assert!(vain <= LONGEST * looks, "{vain:?} in {count} waits");
        }
    }
}
