//! Whether to look for what comes next for a moment before going to sleep for it: waking a core that
//! sleeps takes longer than a short call does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::time_limit::TimeLimit;

use crate::worker::scoreboard::now;

/// Whether a worker looks again and again for its next call, or a caller for its answer, before it
/// goes to sleep for it, for [`ServerBuilder::busy_poll`](crate::ServerBuilder::busy_poll) and
/// [`ClientBuilder::busy_poll`](crate::client::ClientBuilder::busy_poll).
///
/// A call between two processes that both sleep in between takes mostly as long as waking them does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BusyPoll {
    /// For as long as it pays. A look takes at most 50 microseconds of processor time; one that was
    /// in vain is followed by none for the next 1, 2, 4 … 64 short
    /// waits, and waits of more than 200 microseconds never bring one about. Of the
    /// threads of a client, one less looks at a time than there are cores. A process that looks gives its core up every
    /// few microseconds to any other that is ready to run there. It does not do so for 100 milliseconds after it did not
    /// get the core back within 200 microseconds. Where there is no core to spare, as on a single core, it gives the core
    /// up after each glance. If it then does not get the core back within 200 microseconds, it does not look in the next 128
    /// short waits, and in twice as many, up to 4,096, each time that this happens again.
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

/// Who has given its core up for longer than this would have been woken sooner, had it slept.
const STARVED: Duration = Duration::from_micros(200);
/// After so many short waits it is tried again then, and after twice as many each time that it was so again.
const SKIPPED_WHEN_STARVED: u32 = 128;
const MOST_SKIPPED_WHEN_STARVED: u32 = 4096;

/// Decides for one connection, by what has come of it before. Pure.
#[derive(Debug)]
pub(crate) struct SpinPolicy {
    mode: BusyPoll,
    longest: Duration,
    /// After so many short waits it is tried again.
    skip: u32,
    /// How many will be skipped after the next failure.
    penalty: u32,
    /// How many will be skipped the next time that others have had the core for long.
    starved_penalty: u32,
    /// Somebody had the core when it was given up last, most likely whoever was looked for.
    shares_core: bool,
}

impl SpinPolicy {
    /// With the time that [`BusyPoll::Adaptive`] looks at most.
    pub(crate) fn new(mode: BusyPoll, longest: Duration) -> Self {
        // Nothing is known yet: the first wait is not looked through.
        Self {
            mode,
            longest,
            skip: 1,
            penalty: 1,
            starved_penalty: SKIPPED_WHEN_STARVED,
            shares_core: false,
        }
    }

    /// For how long to look now, if at all.
    pub(crate) fn budget(&self) -> Option<Duration> {
        match self.mode {
            BusyPoll::Adaptive => (self.skip == 0).then_some(self.longest),
            BusyPoll::Off => None,
            BusyPoll::Fixed(budget) => Some(budget),
        }
    }

    /// Whether somebody else had the core when it was last given up.
    pub(crate) fn shares_core(&self) -> bool {
        self.shares_core
    }

    /// Whether it wants to know how long waits are.
    pub(crate) fn is_adaptive(&self) -> bool {
        self.mode == BusyPoll::Adaptive
    }

    /// It came while it was looked for.
    pub(crate) fn record_success(&mut self) {
        (self.penalty, self.starved_penalty) = (1, SKIPPED_WHEN_STARVED);
    }

    /// It did not.
    pub(crate) fn record_failure(&mut self) {
        self.skip = self.penalty;
        self.penalty = (2 * self.penalty).min(MOST_SKIPPED);
    }

    /// Others have had the core for long.
    pub(crate) fn record_starvation(&mut self) {
        (self.skip, self.penalty) = (self.starved_penalty, MOST_SKIPPED);
        self.starved_penalty = (2 * self.starved_penalty).min(MOST_SKIPPED_WHEN_STARVED);
    }

    /// It came after so long, having been slept for.
    pub(crate) fn record_sleep(&mut self, wait: Duration) {
        if wait <= self.longest && self.skip <= MOST_SKIPPED {
            // A look would have found it.
            (self.skip, self.penalty) = (0, 1);
        } else if wait <= SHORT {
            self.skip = self.skip.saturating_sub(1);
        }
    }
}

/// Where there is a ring, the socket is looked at as well once in so many spin_loop, or in so few if the core is
/// given up in between.
const SPINS_PER_SOCKET_CHECK: u32 = 64;
const SPINS_PER_SOCKET_CHECK_YIELDING: u32 = 2;

/// A core that nobody else seems to need is given up after so long, and then so often: the kernel may have put there
/// whoever is looked for.
const FIRST_YIELD: Duration = Duration::from_micros(2);
const NEXT_YIELD: Duration = Duration::from_micros(4);

/// Nobody has had a core that was given up for less than this.
const UNCONTENDED: Duration = Duration::from_micros(1);

/// When such a core was last not given back soon, in milliseconds of the scoreboard's timer. For so long no other is
/// given up.
static CORE_LOST_AT: AtomicU64 = AtomicU64::new(0);
const CORE_LOST_PAUSE: u64 = 100;

/// A time for which is looked.
#[derive(Debug)]
pub(crate) struct SpinLoop {
    /// Nothing if it goes on until something comes.
    end: Option<Instant>,
    /// When there was time for the last.
    last: Instant,
    /// The core is given up after each glance.
    yields_always: bool,
    /// It is given up at this time, if it is not anyway.
    next_yield: Option<Instant>,
    core_lost_at: &'static AtomicU64,
    shares_core: bool,
    starved: bool,
    count: u32,
}

impl SpinLoop {
    /// For so long from now on. Whoever wants the core gets it now and then, with `yields_always` after each glance.
    pub(crate) fn new(policy: &SpinPolicy, budget: Duration, yields_always: bool) -> Self {
        let now = Instant::now();
        Self {
            end: TimeLimit::new(budget).after(now),
            last: now,
            yields_always,
            next_yield: Some(if policy.shares_core { now } else { now + FIRST_YIELD }),
            core_lost_at: &CORE_LOST_AT,
            shares_core: false,
            starved: false,
            count: 1,
        }
    }

    /// Whoever wants the core gets it after each glance.
    pub(crate) fn yield_always(&mut self) {
        self.yields_always = true;
    }

    /// Whether this one is for the socket as well, where there is a ring.
    pub(crate) fn checks_socket(&self) -> bool {
        self.count.is_multiple_of(match self.yields_always {
            true => SPINS_PER_SOCKET_CHECK_YIELDING,
            false => SPINS_PER_SOCKET_CHECK,
        })
    }

    /// The last was in vain: waits for the next. Tells whether there is one.
    pub(crate) fn pause(&mut self) -> bool {
        self.count = self.count.wrapping_add(1);
        let is_time = !self.yields_always && self.take_yield_due();
        match self.yields_always || is_time {
            true => thread::yield_now(),
            false => std::hint::spin_loop(),
        }
        let now = Instant::now();
        let away = now.saturating_duration_since(self.last);
        if is_time && away > STARVED {
            self.core_lost_at.store(milliseconds(), Relaxed);
        } else if is_time {
            self.shares_core = away > UNCONTENDED;
            self.next_yield = Some(if self.shares_core { now } else { now + NEXT_YIELD });
        }
        if self.yields_always {
            self.shares_core = away > UNCONTENDED;
            self.starved |= away > STARVED;
        }
        self.last = now;
        self.end.is_none_or(|end| now < end) && !self.starved
    }

    /// Whether a core that nobody else seems to need is to be given up now.
    fn take_yield_due(&mut self) -> bool {
        self.next_yield.take_if(|at| *at <= self.last).is_some()
            && milliseconds() > self.core_lost_at.load(Relaxed) + CORE_LOST_PAUSE
    }

    /// What came of it is to be known to the next who wants to look.
    pub(crate) fn report(&self, policy: &mut SpinPolicy, found: bool) {
        policy.shares_core = self.shares_core;
        match found {
            _ if self.starved => policy.record_starvation(),
            true => policy.record_success(),
            false => policy.record_failure(),
        }
    }
}

fn milliseconds() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONGEST: Duration = Duration::from_micros(50);

    /// A look that lasts for as long as a test does.
    fn spin_loop(yields_always: bool) -> SpinLoop {
        let policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        SpinLoop::new(&policy, Duration::from_secs(60), yields_always)
    }

    /// Goes through these waits; gives how much was looked in vain, and how often with success.
    fn run(policy: &mut SpinPolicy, waits: impl IntoIterator<Item = Duration>) -> (Duration, u32) {
        let (mut vain, mut paid) = (Duration::ZERO, 0);
        for wait in waits {
            match policy.budget() {
                Some(budget) if wait <= budget => {
                    policy.record_success();
                    paid += 1;
                }
                Some(budget) => {
                    policy.record_failure();
                    vain += budget;
                    policy.record_sleep(wait);
                }
                None => policy.record_sleep(wait),
            }
        }
        (vain, paid)
    }

    #[test]
    fn short_waits_are_looked_through() {
        let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        let (vain, paid) = run(&mut policy, [Duration::from_micros(30); 100]);
        assert_eq!((vain, paid), (Duration::ZERO, 99));
        // However many were in vain, the first short one shows that it would pay again.
        run(&mut policy, [Duration::from_micros(60); 1000]);
        let (_, paid) = run(&mut policy, [Duration::from_micros(30); 100]);
        assert_eq!(paid, 99);
    }

    #[test]
    fn who_waits_for_long_looks_once_at_most() {
        let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        run(&mut policy, [Duration::from_micros(30); 10]);
        let (vain, _) = run(&mut policy, std::iter::repeat_n(Duration::from_millis(1), 100_000));
        assert_eq!(vain, LONGEST);
    }

    #[test]
    fn who_was_starved_sleeps_for_longer_each_time() {
        let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        let mut skipped = |times: usize| {
            (0..times).for_each(|_| policy.record_starvation());
            let waits = std::iter::repeat_n(Duration::from_micros(30), 5000);
            waits.take_while(|&wait| run(&mut policy, [wait]).1 == 0).count()
        };
        // One that pays begins it anew. Among the last 64 a short wait ends it, as after any look in vain.
        let rest = MOST_SKIPPED as usize - 1;
        assert_eq!([1, 1, 2, 3, 9].map(|times| skipped(times) + rest), [128, 128, 256, 512, 4096]);
    }

    #[test]
    fn it_is_fixed_or_forbidden_if_so_configured() {
        let waits = [Duration::from_micros(1); 10];
        assert_eq!(run(&mut SpinPolicy::new(BusyPoll::Off, LONGEST), waits).1, 0);
        let fixed = BusyPoll::Fixed(Duration::from_micros(5));
        assert_eq!(run(&mut SpinPolicy::new(fixed, LONGEST), waits).1, 10);
    }

    #[test]
    fn who_gives_way_notices_when_the_core_is_not_given_back() {
        let mut spin_loop = spin_loop(true);
        spin_loop.last -= Duration::from_millis(1);
        assert!(!spin_loop.pause());
        let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        policy.record_sleep(Duration::from_micros(1));
        spin_loop.report(&mut policy, true);
        assert_eq!(policy.skip, SKIPPED_WHEN_STARVED);
        // Who keeps its core has nothing of the kind to notice.
        let mut spin_loop = self::spin_loop(false);
        spin_loop.last -= Duration::from_millis(1);
        assert!(spin_loop.pause());
    }

    #[test]
    fn a_core_is_given_up_now_and_then_until_it_is_not_given_back() {
        let core_lost_at: &AtomicU64 = Box::leak(Box::default());
        let spin_loop = || SpinLoop { core_lost_at, ..spin_loop(false) };
        let is_given_up_again = |spin_loop: &mut SpinLoop| {
            let before = spin_loop.next_yield;
            assert!(spin_loop.pause());
            spin_loop.next_yield.is_some() && spin_loop.next_yield != before
        };
        // It is not time yet.
        assert!(!is_given_up_again(&mut spin_loop()));
        // Others may in fact need it at times.
        assert!((0..1000).any(|_| {
            core_lost_at.store(0, Relaxed);
            let mut spin_loop = spin_loop();
            spin_loop.next_yield = Some(spin_loop.last);
            is_given_up_again(&mut spin_loop)
        }));

        // Whoever shares it gives it up at once from then on, in this look and in the next.
        let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        assert!((0..1000).any(|_| {
            core_lost_at.store(0, Relaxed);
            let mut spin_loop = spin_loop();
            spin_loop.last -= 10 * UNCONTENDED;
            spin_loop.next_yield = Some(spin_loop.last);
            assert!(spin_loop.pause());
            spin_loop.report(&mut policy, true);
            spin_loop.next_yield == Some(spin_loop.last)
        }));
        let next = SpinLoop::new(&policy, LONGEST, false);
        assert_eq!(next.next_yield, Some(next.last));

        let mut away = spin_loop();
        away.last -= Duration::from_millis(1);
        away.next_yield = Some(away.last);
        assert!(!is_given_up_again(&mut away));
        assert_ne!(core_lost_at.load(Relaxed), 0);
        let mut next = spin_loop();
        next.next_yield = Some(next.last);
        assert!(!is_given_up_again(&mut next));
    }

    proptest! {
        /// Between two successes, what is looked in vain stays small against the waits themselves.
        #[test]
        fn what_is_looked_in_vain_is_bounded(
            waits in prop::collection::vec(51..10_000_u64, 1..5000),
        ) {
            let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
            let waits: Vec<_> = waits.into_iter().map(Duration::from_micros).collect();
            let count = waits.len() as u32;
            let (vain, _) = run(&mut policy, waits);
            // 1 + 2 + 4 + … waits are skipped: one look more each time their number doubles.
            let looks = u32::BITS - count.leading_zeros() + count / MOST_SKIPPED;
            prop_assert!(vain <= LONGEST * looks, "{vain:?} in {count} waits");
        }
    }
}
