//! Spinning for an answer for a moment before the task that awaits it yields.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::busy_poll::{BusyPoll, SpinLoop, SpinPolicy};

/// The longest spin, unless the mode sets another limit.
const LONGEST: Duration = Duration::from_micros(50);

/// How many tasks of this process spin now.
static SPINNING: AtomicUsize = AtomicUsize::new(0);

/// The spinning of a connection: its policy, and the call whose answer is due.
#[derive(Debug)]
pub(crate) struct ReplySpin {
    policy: SpinPolicy,
    cores: usize,
    /// When the running call was sent, or when the wait for its answer began.
    sent: Option<Instant>,
    /// No spin for that call's answer has started.
    due: bool,
}

/// A spin in progress. It counts in [`SPINNING`] until it is dropped.
#[derive(Debug)]
pub(crate) struct SpinGuard {
    spin_loop: SpinLoop,
    /// The task yields to the runtime between polls, so that the runtime serves other tasks too.
    shared: bool,
}

impl SpinGuard {
    /// Starts a spin if the policy expects a gain and a core is free.
    fn of(policy: &SpinPolicy, cores: usize) -> Option<Self> {
        let budget = policy.budget()?;
        let others = SPINNING.fetch_add(1, Relaxed);
        let spin_loop = SpinLoop::new(policy, budget, cores == 1);
        let spin_guard = Self { spin_loop, shared: false };
        // One core stays free for workers. On a single core the spin yields it to them.
        let is_core_free = cores == 1 || others + 1 < cores;
        (!policy.is_adaptive() || is_core_free).then_some(spin_guard)
    }

    /// Makes the spin yield to the runtime between polls, if the thread is in one: the runtime then polls all
    /// sockets and runs other tasks. `busy` workers share `cores` cores.
    pub(crate) fn shared(mut self, busy: usize, cores: usize) -> Self {
        self.shared = Handle::try_current().is_ok();
        if self.shared && busy >= cores {
            self.spin_loop.yield_always();
        }
        self
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this poll includes the socket of a connection with rings.
    pub(crate) fn checks_socket(&self) -> bool {
        self.spin_loop.checks_socket()
    }

    /// Pauses after a poll without success. Returns whether to poll again.
    pub(crate) fn pause(&mut self) -> bool {
        self.spin_loop.pause()
    }

    /// Wakes the task once the runtime has polled its sockets.
    pub(crate) fn yield_to_runtime(&self, context: &mut Context<'_>) {
        // One poll of this future registers the wake, so the future itself is dropped.
        let _ = pin!(tokio::task::yield_now()).poll(context);
    }
}

impl Drop for SpinGuard {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Relaxed);
    }
}

impl ReplySpin {
    pub(crate) fn new(mode: BusyPoll, cores: usize) -> Self {
        Self { policy: SpinPolicy::new(mode, LONGEST), cores, sent: None, due: false }
    }

    /// Whether the worker may run on another core, so that this core may be asleep when it answers.
    pub(crate) fn has_other_cores(&self) -> bool {
        self.cores > 1
    }

    /// Records that a call was sent.
    pub(crate) fn record_sent(&mut self) {
        self.due = true;
        if self.policy.is_adaptive() {
            self.sent = Some(Instant::now());
        }
    }

    /// Records that an answer came. If a pipelined call waits for its own, that wait is a new one.
    pub(crate) fn record_answer(&mut self, is_another_due: bool) {
        self.due = is_another_due;
        self.sent = None;
    }

    /// Records that bytes of the answer came while the task slept.
    pub(crate) fn record_sleep(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.policy.record_sleep(sent.elapsed());
        }
    }

    /// Starts a spin, at most one for each call, if the policy expects a gain and a core is free.
    pub(crate) fn begin(&mut self) -> Option<SpinGuard> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        if self.sent.is_none() && self.policy.is_adaptive() {
            self.sent = Some(Instant::now());
        }
        SpinGuard::of(&self.policy, self.cores)
    }

    /// Records that the answer came while the runtime polled.
    pub(crate) fn record_found(&mut self) {
        self.sent = None;
        self.policy.record_success();
    }

    /// Records the result of a spin.
    pub(crate) fn finish(&mut self, spin_guard: &SpinGuard, found: bool) {
        self.sent = if found { None } else { self.sent };
        spin_guard.spin_loop.report(&mut self.policy, found);
    }
}

/// The spinning of an event loop, for the answers of all workers of its clients.
#[derive(Debug)]
pub(crate) struct LoopSpin {
    policy: SpinPolicy,
    cores: usize,
    /// The spin in progress. It goes on while the loop has its turns.
    current: Option<SpinGuard>,
    /// Since when the loop has slept.
    asleep_since: Option<Instant>,
}

impl LoopSpin {
    pub(crate) fn new(mode: BusyPoll, cores: usize) -> Self {
        let policy = SpinPolicy::new(mode, LONGEST);
        Self { policy, cores, current: None, asleep_since: None }
    }

    /// Whether the next look includes the sockets of connections with rings. A thread of the runtime is told of what comes there,
    /// so it is only for the case that this thread has its core.
    pub(crate) fn checks_socket(&self) -> bool {
        self.current.as_ref().is_some_and(SpinGuard::checks_socket)
    }

    /// Nothing has come. Returns whether to look again, after a pause. `busy` workers run calls.
    pub(crate) fn pause(&mut self, busy: usize) -> bool {
        if self.current.is_none() {
            self.current = SpinGuard::of(&self.policy, self.cores);
            if let Some(spin_guard) = &mut self.current
                && busy >= self.cores
            {
                spin_guard.spin_loop.yield_always();
            }
        }
        let Some(spin_guard) = &mut self.current else { return false };
        if spin_guard.pause() {
            return true;
        }
        spin_guard.spin_loop.report(&mut self.policy, false);
        self.current = None;
        false
    }

    /// Something has come.
    pub(crate) fn record_found(&mut self) {
        if let Some(spin_guard) = self.current.take() {
            spin_guard.spin_loop.report(&mut self.policy, true);
        }
    }

    /// No call runs any more.
    pub(crate) fn stop(&mut self) {
        self.current = None;
    }

    /// The loop sleeps until it is woken.
    pub(crate) fn record_sleep(&mut self) {
        self.current = None;
        if self.policy.is_adaptive() {
            self.asleep_since = Some(Instant::now());
        }
    }

    /// The loop goes on. `is_for_answer` says whether it was woken by one.
    pub(crate) fn record_wake(&mut self, is_for_answer: bool) {
        if let Some(since) = self.asleep_since.take()
            && is_for_answer
        {
            self.policy.record_sleep(since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_is_spun_for_once_also_those_of_pipelined_calls() {
        let mut spin = ReplySpin::new(BusyPoll::Fixed(Duration::from_micros(1)), 2);
        assert!(spin.begin().is_none(), "nothing was sent");
        spin.record_sent();
        for is_another_due in [true, true, false] {
            assert!(spin.begin().is_some());
            assert!(spin.begin().is_none(), "the second wait for the same answer");
            spin.record_answer(is_another_due);
        }
        assert!(spin.begin().is_none(), "no call is unanswered");
    }
}
