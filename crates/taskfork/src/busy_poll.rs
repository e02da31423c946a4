//! Busy polling before a sleep: whether it pays (`SpinPolicy`), and the loop itself (`SpinLoop`).
//!
//! Waking a sleeping CPU takes longer than a short call does.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::time_limit::TimeLimit;

use crate::clock::now;

/// Whether a worker polls for its next call, and a caller for its answer, for a moment before it
/// sleeps. See [`ServerBuilder::busy_poll`](crate::ServerBuilder::busy_poll) and
/// [`ClientBuilder::busy_poll`](crate::client::ClientBuilder::busy_poll).
///
/// If two processes sleep between their messages, most of the time of a short call is the time that
/// it takes to wake them.
///
/// ```
/// use taskfork::Client;
/// use taskfork::client::BusyPoll;
///
/// let client = Client::builder().address("unix:/run/adder.sock").busy_poll(BusyPoll::Off);
/// # let _ = client;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BusyPoll {
    /// Polls while it pays, for at most 50 microseconds of CPU time before a sleep.
    ///
    /// * After a poll without success it skips the next 1, 2, 4, … 64 short waits. A short wait
    ///   takes at most 200 microseconds. Longer waits never start it again.
    /// * A client polls in at most one thread fewer than there are CPUs.
    /// * While it polls, a process yields its CPU every few microseconds. If it gets the CPU back
    ///   later than 200 microseconds after that, it stops these yields for 100 milliseconds.
    /// * Without a spare CPU it yields after each poll. If it then gets the CPU back late, it skips
    ///   the next 128 short waits. The number doubles up to 4,096 each time that this happens
    ///   again.
    #[default]
    Adaptive,
    /// Never polls.
    Off,
    /// Polls before each sleep, for this long.
    Fixed(Duration),
    /// Polls this many times before each sleep, by no clock. For tests in virtual time.
    #[cfg(test)]
    Times(u32),
}

/// Waits that take longer than this tell nothing about polling.
const SHORT: Duration = Duration::from_micros(200);
const MOST_SKIPPED: u32 = 64;

/// A thread that gets its CPU back later than this would have been woken sooner, had it slept.
const STARVED: Duration = Duration::from_micros(200);
/// The number of short waits that are skipped after that. It doubles up to the maximum.
const SKIPPED_WHEN_STARVED: u32 = 128;
const MOST_SKIPPED_WHEN_STARVED: u32 = 4096;

/// Decides for one connection whether to poll, from earlier results. Pure.
#[derive(Debug)]
pub(crate) struct SpinPolicy {
    mode: BusyPoll,
    longest: Duration,
    /// How many short waits to skip before the next attempt.
    skip: u32,
    /// How many to skip after the next attempt that fails.
    penalty: u32,
    /// How many to skip the next time that the CPU comes back late.
    starved_penalty: u32,
    /// Another process ran when the CPU was last yielded, most likely the peer.
    shares_core: bool,
}

impl SpinPolicy {
    /// `longest` is the time limit of one poll in the mode [`BusyPoll::Adaptive`].
    pub(crate) fn new(mode: BusyPoll, longest: Duration) -> Self {
        // Without measurements, the first wait is a sleep.
        Self {
            mode,
            longest,
            skip: 1,
            penalty: 1,
            starved_penalty: SKIPPED_WHEN_STARVED,
            shares_core: false,
        }
    }

    /// Returns for how long to poll now, or `None` to sleep at once.
    pub(crate) fn budget(&self) -> Option<Duration> {
        match self.mode {
            BusyPoll::Adaptive => (self.skip == 0).then_some(self.longest),
            BusyPoll::Off => None,
            BusyPoll::Fixed(budget) => Some(budget),
            #[cfg(test)]
            BusyPoll::Times(times) => (times > 0).then_some(Duration::MAX),
        }
    }

    /// Whether another process ran when the CPU was last yielded.
    pub(crate) fn shares_core(&self) -> bool {
        self.shares_core
    }

    /// Whether the policy needs to know how long waits are.
    pub(crate) fn is_adaptive(&self) -> bool {
        self.mode == BusyPoll::Adaptive
    }

    /// Records a poll that found something.
    pub(crate) fn record_success(&mut self) {
        (self.penalty, self.starved_penalty) = (1, SKIPPED_WHEN_STARVED);
    }

    /// Records a poll that found nothing.
    pub(crate) fn record_failure(&mut self) {
        self.skip = self.penalty;
        self.penalty = (2 * self.penalty).min(MOST_SKIPPED);
    }

    /// Records that the CPU came back late.
    pub(crate) fn record_starvation(&mut self) {
        (self.skip, self.penalty) = (self.starved_penalty, MOST_SKIPPED);
        self.starved_penalty = (2 * self.starved_penalty).min(MOST_SKIPPED_WHEN_STARVED);
    }

    /// Records a wait that was a sleep.
    pub(crate) fn record_sleep(&mut self, wait: Duration) {
        if wait <= self.longest && self.skip <= MOST_SKIPPED {
            // A poll would have found the data.
            (self.skip, self.penalty) = (0, 1);
        } else if wait <= SHORT {
            self.skip = self.skip.saturating_sub(1);
        }
    }
}

/// With a ring, every 64th poll also checks the socket: every second one if the CPU is yielded
/// after each, because a yield costs more than the check.
const SPINS_PER_SOCKET_CHECK: u32 = 64;
const SPINS_PER_SOCKET_CHECK_YIELDING: u32 = 2;

/// When the loop first yields its CPU, and how often after that. The scheduler may have put the
/// peer on this CPU.
const FIRST_YIELD: Duration = Duration::from_micros(2);
const NEXT_YIELD: Duration = Duration::from_micros(4);

/// If the CPU came back sooner than this, no other process ran.
const UNCONTENDED: Duration = Duration::from_micros(1);

/// When a yielded CPU last came back late, in milliseconds of the monotonic clock. For a while
/// after that no loop of this process yields.
static CORE_LOST_AT: AtomicU64 = AtomicU64::new(0);
const CORE_LOST_PAUSE: u64 = 100;

/// One loop of polls before a sleep.
#[derive(Debug)]
pub(crate) struct SpinLoop {
    /// `None` if the loop runs until something comes.
    end: Option<Instant>,
    /// The time of the last poll.
    last: Instant,
    /// The loop yields the CPU after each poll.
    yields_always: bool,
    /// When the loop yields next, if it does not do so anyway.
    next_yield: Option<Instant>,
    core_lost_at: &'static AtomicU64,
    shares_core: bool,
    starved: bool,
    count: u32,
    /// How many polls are left, if a test has set their number.
    #[cfg(test)]
    left: Option<u32>,
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl SpinLoop {
    /// Starts a loop of `budget`. With `yields_always` it yields the CPU after each poll.
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
            #[cfg(test)]
            left: match policy.mode {
                BusyPoll::Times(times) => Some(times),
                _ => None,
            },
        }
    }

    /// Sets that the loop yields the CPU after each poll.
    pub(crate) fn yield_always(&mut self) {
        self.yields_always = true;
    }

    /// Whether this poll also checks the socket, if there is a ring.
    pub(crate) fn checks_socket(&self) -> bool {
        self.count.is_multiple_of(match self.yields_always {
            true => SPINS_PER_SOCKET_CHECK_YIELDING,
            false => SPINS_PER_SOCKET_CHECK,
        })
    }

    /// Pauses after a poll that found nothing. Returns whether to poll again.
    pub(crate) fn pause(&mut self) -> bool {
        #[cfg(test)]
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            return *left > 0;
        }
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

    /// Takes the time of the next yield if that has come. Returns whether to yield now.
    fn take_yield_due(&mut self) -> bool {
        self.next_yield.take_if(|at| *at <= self.last).is_some()
            && milliseconds() > self.core_lost_at.load(Relaxed) + CORE_LOST_PAUSE
    }

    /// Passes the result of the loop to the policy.
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

    /// A loop that lasts longer than any test.
    fn spin_loop(yields_always: bool) -> SpinLoop {
        let policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
        SpinLoop::new(&policy, Duration::from_secs(60), yields_always)
    }

    /// Runs through these waits. Returns the time of polls that found nothing, and the number of
    /// polls that found something.
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
        // After any number of failures, the first short wait shows that polling would pay again.
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
        // A success starts anew. Within the last 64, a short wait ends the pause, as after any
        // failure.
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
        // A loop that keeps its CPU does not check that.
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
        // The next yield is not due yet.
        assert!(!is_given_up_again(&mut spin_loop()));
        // Other processes may need the CPU at times, so this is tried often.
        assert!((0..1000).any(|_| {
            core_lost_at.store(0, Relaxed);
            let mut spin_loop = spin_loop();
            spin_loop.next_yield = Some(spin_loop.last);
            is_given_up_again(&mut spin_loop)
        }));

        // If another process shares the CPU, the loop yields at once from then on, and so does the
        // next loop.
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
        /// Between two successes, the time of failed polls is small compared with the waits.
        #[test]
        fn what_is_looked_in_vain_is_bounded(
            waits in prop::collection::vec(51..10_000_u64, 1..5000),
        ) {
            let mut policy = SpinPolicy::new(BusyPoll::Adaptive, LONGEST);
            let waits: Vec<_> = waits.into_iter().map(Duration::from_micros).collect();
            let count = waits.len() as u32;
            let (vain, _) = run(&mut policy, waits);
            // 1 + 2 + 4 + … waits are skipped: one more poll each time that their number doubles.
            let looks = u32::BITS - count.leading_zeros() + count / MOST_SKIPPED;
            prop_assert!(vain <= LONGEST * looks, "{vain:?} in {count} waits");
        }
    }
}
