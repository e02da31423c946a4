//! The time limits of a worker: the deadline of its call, `hung_worker_timeout`, its age, and how long
//! it may take to leave. The server enforces them without any help of the worker's code.

use std::time::Duration;

use rustix::process::{Signal, kill_process};

use super::{Child, KillReason, PendingKill};
use crate::display::seconds;
use crate::server::limits::Recycling;
use crate::server::log;
use crate::server::proc_status::{self, SignalAction};
use crate::server::worker_exit::cause;
use crate::worker::scoreboard::{Phase, Retirement, SlotView};

/// How long a worker may take to notice that its client has left, or that it must leave. An intact worker
/// needs one turn of a processor. So this is for a machine that is busy or short of memory.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a worker that has noticed it may take to exit. It drops the user's state in that time.
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long `checkout_done` may run without a client, if there is no `hung_worker_timeout`.
const CHECKOUT_DONE_TIMEOUT: Duration = Duration::from_secs(300);

/// A worker with a new client is not replaced before its first call, if that arrives in this time.
const FIRST_CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The least time that a spare worker waits for a client. So a small `max_age` does not make the server
/// fork all the time.
const MIN_SPARE_TIME: Duration = Duration::from_millis(100);

/// How often the age of a worker is checked while its setup runs.
const SETUP_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a worker's stack is waited for before it is killed.
const STACK_TIMEOUT: Duration = Duration::from_millis(100);

/// The same for a worker that blocks the signal. A thread that starts another one blocks all for a moment.
const BLOCKED_STACK_TIMEOUT: Duration = Duration::from_millis(250);

/// The same for a worker that handles the signal but has not been scheduled since.
const MAX_STACK_TIMEOUT: Duration = Duration::from_millis(600);

pub(super) const DEADLINE_PASSED: &str = "its call's time was over";

impl Child {
    /// Interrupts a call whose deadline has passed. Returns the time until the next deadline.
    ///
    /// The slot may show the deadline of a call that has ended. The next call most likely has the same
    /// time limit, so it is used nevertheless.
    pub(crate) fn enforce_call_deadline(&mut self, now: Duration) -> Option<Duration> {
        let left = self.slot.deadline()?.saturating_sub(now);
        let view = self.view_or_kill();
        if !left.is_zero() {
            return Some(left);
        }
        let is_busy = view.phase == Phase::Busy && view.calls != self.alarmed_call;
        // The slot is read again because the deadline and the view may belong to different calls.
        if is_busy && self.view_or_kill() == view {
            self.alarmed_call = view.calls;
            let _ = kill_process(self.pid, Signal::ALARM);
        }
        None
    }

    /// Kills a worker that has been in one phase for longer than `timeout`, or whose call has passed
    /// its hard deadline. The worker is asked for its stack first. Returns the time until then.
    pub(crate) fn enforce_hang_timeout(
        &mut self,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        if self.kill_reason.is_some() {
            return None;
        }
        let view = self.view_or_kill();
        if self.kill_reason.is_some() {
            return None;
        }
        // A worker that has gone on meanwhile is not killed.
        self.pending_kill.take_if(|pending| pending.reason.view != view);
        if let Some(mut pending) = self.pending_kill.take() {
            if self.slot.stack().is_none() {
                let left = self.remaining_stack_wait(&mut pending, now);
                if left.is_some() {
                    self.pending_kill = Some(pending);
                    return left;
                }
            }
            self.kill_if_unchanged(pending.reason);
            return None;
        }
        if !view.phase.can_hang() {
            return timeout;
        }
        let call_deadline = self.slot.hard_deadline().filter(|_| view.phase == Phase::Busy);
        let hang_deadline = timeout.map(|timeout| view.since.saturating_add(timeout));
        let due = [call_deadline, hang_deadline].into_iter().flatten().min()?;
        if due > now {
            return Some(due - now);
        }
        let timed_out = call_deadline == Some(due);
        let text = match timeout {
            Some(timeout) if !timed_out => {
                format!("hung for more than {} (hung_worker_timeout)", seconds(timeout))
            }
            _ => DEADLINE_PASSED.to_owned(),
        };
        let ran = Some(now.saturating_sub(view.since));
        let cause = if timed_out { cause::TIMED_OUT } else { cause::HUNG };
        let reason = KillReason { ran, ..KillReason::new(view, text, cause) };
        let pending = PendingKill { reason, asked_at: now, deadline: now + STACK_TIMEOUT };
        self.pending_kill = Some(Box::new(pending));
        self.slot.clear_stack();
        let _ = kill_process(self.pid, Signal::ALARM);
        Some(STACK_TIMEOUT)
    }

    /// How much longer a missing stack is waited for. `None` if the wait is over.
    fn remaining_stack_wait(&self, pending: &mut PendingKill, now: Duration) -> Option<Duration> {
        let left = pending.deadline.saturating_sub(now);
        if !left.is_zero() {
            return Some(left);
        }
        let (timeout, reason) = match proc_status::signal_action(self.pid(), Signal::ALARM) {
            Some(SignalAction::Other) => {
                (STACK_TIMEOUT, "the worker's code has changed what SIGALRM does".to_owned())
            }
            Some(SignalAction::Blocked) => {
                (BLOCKED_STACK_TIMEOUT, "the worker's code blocks SIGALRM".to_owned())
            }
            Some(SignalAction::Handled) | None => {
                let waited = seconds(MAX_STACK_TIMEOUT);
                let reason =
                    format!("the worker did not get to run within {waited} after it was asked");
                (MAX_STACK_TIMEOUT, reason)
            }
        };
        let last = pending.asked_at + timeout;
        if last > now {
            pending.deadline = last;
            return Some(last - now);
        }
        pending.reason.no_stack = Some(reason);
        None
    }

    /// Kills a worker that stays without a client or does not leave. Returns the time until then.
    pub(crate) fn enforce_leave_timeout(
        &mut self,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        if self.kill_reason.is_some() {
            return None;
        }
        let (retiring, gone) = (self.retiring_since, self.client_gone_since);
        if retiring.is_none() && gone.is_none() {
            return None;
        }
        let due = leave_deadline(self.view_or_kill(), gone, retiring, timeout)?;
        self.kill_at(due, now)
    }

    fn kill_at(&mut self, due: Duration, now: Duration) -> Option<Duration> {
        if due > now {
            return Some(due - now);
        }
        let text = "it did not leave when there was nothing left to do".to_owned();
        let view = self.slot.last_read();
        self.kill_reason = Some(Box::new(KillReason::new(view, text, cause::HUNG)));
        self.kill_group();
        None
    }

    /// Retires a worker that is too old, or has been idle for too long. Returns the time until then.
    pub(crate) fn enforce_age(&mut self, now: Duration, recycling: &Recycling) -> Option<Duration> {
        if self.retiring_since.is_some() {
            return None;
        }
        let view = self.view_or_kill();
        let is_unused = self.connection().is_some() && view.calls == 0;
        // Without this, a worker whose setup takes longer than `max_age` would never serve a call, and
        // neither would its successors.
        let not_before = match view.phase {
            Phase::Idle if is_unused => view.since.saturating_add(FIRST_CALL_TIMEOUT),
            Phase::Spare => view.since.saturating_add(MIN_SPARE_TIME),
            Phase::Handshake | Phase::Setup => return Some(SETUP_POLL_INTERVAL),
            _ => Duration::ZERO,
        };
        let age = recycling.max_age_of(self.number).after_time(self.forked_at);
        // A busy worker may become idle right after this, and is due no earlier than from then on.
        let since = if view.phase == Phase::Idle { view.since } else { now };
        let idle = recycling.max_idle.after_time(since);
        let due = [(age, Retirement::Age), (idle, Retirement::Idleness)];
        let due = due.into_iter().filter_map(|(due, why)| Some((due?.max(not_before), why)));
        let (due, why) = due.min_by_key(|(due, _)| *due)?;
        if due <= now {
            log::debug!(worker = self.number, pid = self.pid(), "replaced for its {why:?}");
            self.retire(why);
            return None;
        }
        Some(due - now)
    }
}

/// The time by which a worker must have exited. Its client left at `gone`, or the server asked it to leave
/// at `retiring`.
///
/// The worker sets its phase and its time itself. So the last limit counts from `gone` alone.
fn leave_deadline(
    view: SlotView,
    gone: Option<Duration>,
    retiring: Option<Duration>,
    timeout: Option<Duration>,
) -> Option<Duration> {
    let checkout_done = timeout.unwrap_or(CHECKOUT_DONE_TIMEOUT).max(EXIT_TIMEOUT);
    let limit = match view.phase {
        Phase::CheckoutDone => checkout_done,
        Phase::Retired => EXIT_TIMEOUT,
        _ => NOTICE_TIMEOUT,
    };
    let due = |since: Duration| since.max(view.since).saturating_add(limit);
    match gone {
        Some(gone) => {
            let last = gone.saturating_add(checkout_done).saturating_add(EXIT_TIMEOUT);
            Some(due(gone).min(last))
        }
        // A checkout may take any time, so a worker leaves only when it has none.
        None if matches!(view.phase, Phase::Idle | Phase::Retired | Phase::Spare) => {
            retiring.map(due)
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn view(phase: Phase, since: u64) -> SlotView {
        SlotView { phase, calls: 1, since: seconds(since) }
    }

    #[test]
    fn a_worker_that_does_not_notice_its_clients_end_is_killed_sooner_than_one_that_exits() {
        let due = |phase| leave_deadline(view(phase, 50), Some(seconds(100)), None, None);
        for phase in [Phase::Idle, Phase::Held, Phase::Busy, Phase::Answering, Phase::Handshake] {
            assert_eq!(due(phase), Some(seconds(105)), "{phase:?}");
        }
        assert_eq!(due(Phase::Retired), Some(seconds(130)));
        assert_eq!(due(Phase::CheckoutDone), Some(seconds(400)));
    }

    #[test]
    fn time_counts_from_the_phase_that_a_worker_entered_later() {
        let due = |phase| leave_deadline(view(phase, 300), Some(seconds(100)), None, None);
        assert_eq!(due(Phase::Idle), Some(seconds(305)));
        assert_eq!(due(Phase::Retired), Some(seconds(330)));
        let due = leave_deadline(view(Phase::Retired, 300), None, Some(seconds(100)), None);
        assert_eq!(due, Some(seconds(330)));
    }

    #[test]
    fn a_worker_that_renews_its_time_is_killed_nevertheless() {
        for phase in [Phase::Idle, Phase::Held, Phase::Retired, Phase::CheckoutDone] {
            let due =
                |timeout| leave_deadline(view(phase, 10_000), Some(seconds(100)), None, timeout);
            assert_eq!(due(None), Some(seconds(100 + 300 + 30)), "{phase:?}");
            assert_eq!(due(Some(seconds(1))), Some(seconds(100 + 30 + 30)), "{phase:?}");
        }
    }

    #[test]
    fn a_worker_with_a_checkout_need_not_leave() {
        let due = |phase| leave_deadline(view(phase, 50), None, Some(seconds(100)), None);
        assert_eq!(due(Phase::Held), None);
        assert_eq!(due(Phase::Busy), None);
        assert_eq!(due(Phase::Idle), Some(seconds(105)));
    }
}
