//! What is due for a worker: the deadline of its call, `hung_worker_timeout`, its age, and how long it may
//! take to leave. The server enforces them without any help of the worker's code.

use std::collections::VecDeque;
use std::time::Duration;

use super::Supervisor;
use super::action::{Action, Config};
use super::exit::Exit;
use super::kill::{
    BLOCKED_STACK_TIMEOUT, KillCause, KillReason, MAX_STACK_TIMEOUT, NoStack, STACK_TIMEOUT,
    Suspicion,
};
use super::observation::{Observation, observed};
use super::spares::Spares;
use super::worker::{Fate, Leaving, Role, Worker};
use crate::server::limits::Recycling;
use crate::server::proc_status::SignalAction;
use crate::worker::scoreboard::{Phase, Retirement, SlotView, StopRequest};

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

impl Supervisor {
    /// The observation of all workers, in the order of their numbers. Interrupts, kills and replaces
    /// those whose time is over. The next look is no earlier than after `pause`: workers set their own
    /// deadlines, and one that is due all the time must not take the server's time from the others.
    pub(crate) fn handle_slots(
        &mut self,
        slots: impl IntoIterator<Item = (u64, Observation)>,
        pause: Duration,
        now: Duration,
    ) {
        self.changed.clear();
        let Self { workers, actions, config, spares, .. } = self;
        let mut due = None;
        for (number, worker, observed) in observed(workers, slots) {
            let own = worker.decide(number, &observed, config, spares, (pause, now), actions);
            due = earlier(due, own);
        }
        self.slots_due = due;
    }

    /// Whether the slots of all workers have to be observed.
    pub(crate) fn are_slots_due(&self, now: Duration) -> bool {
        self.slots_due.is_some_and(|due| due <= now)
    }

    /// The next worker that something has happened to since its slot was observed for
    /// [`handle_slots`](Self::handle_slots). The caller observes it and calls
    /// [`handle_changed`](Self::handle_changed), unless it observes all workers.
    pub(crate) fn poll_changed(&mut self) -> Option<u64> {
        self.changed.pop()
    }

    /// The observation of a worker that something has happened to.
    pub(crate) fn handle_changed(
        &mut self,
        worker: u64,
        observed: &Observation,
        pause: Duration,
        now: Duration,
    ) {
        let Self { workers, actions, config, spares, .. } = self;
        let Some(state) = workers.get_mut(worker) else { return };
        let due = state.decide(worker, observed, config, spares, (pause, now), actions);
        self.slots_due = earlier(self.slots_due, due);
    }

    /// The slot of one worker was observed for another reason.
    pub(crate) fn handle_slot(&mut self, worker: u64, observed: &Observation) {
        let state = self.workers.get_mut(worker);
        if state.and_then(|state| state.check(observed)).is_some() {
            self.actions.push_back(Action::Kill { worker });
        }
    }

    /// The client of a worker has closed its end. Kills the worker during `setup` or a call, because the
    /// result is of no use. At other times the worker notices the end itself.
    pub(crate) fn handle_client_gone(
        &mut self,
        worker: u64,
        observed: &Observation,
        now: Duration,
    ) {
        self.handle_slot(worker, observed);
        let Some(state) = self.workers.get_mut(worker) else { return };
        if !matches!(state.leaving, Leaving::ClientGone(_)) {
            state.leaving = Leaving::ClientGone(now);
        }
        self.changed.push(worker);
        let is_futile = matches!(observed.view.phase, Phase::Setup | Phase::Busy);
        if is_futile && !state.fate.is_killed() {
            let reason = KillReason::new(KillCause::ClientGone);
            self.actions.push_back(state.stop(worker, reason, observed.view));
        }
    }

    /// An operator wants this worker to leave.
    pub(crate) fn handle_dismissal(&mut self, worker: u64, now: Duration) {
        if let Some(state) = self.workers.get_mut(worker) {
            self.actions.push_back(state.retire(worker, Retirement::Requested, now));
        }
    }

    /// The worker has been ordered to leave, and was observed after that.
    pub(crate) fn handle_retiring(&mut self, worker: u64, observed: &Observation) {
        self.handle_slot(worker, observed);
        self.changed.push(worker);
        let view = observed.view;
        if matches!(view.phase, Phase::Handshake | Phase::Idle | Phase::Spare) {
            self.actions.push_back(Action::Stop { worker, view, request: StopRequest::Retire });
        }
    }

    /// Whether the compare-and-swap of `Action::Stop` held.
    pub(crate) fn handle_stop(&mut self, worker: u64, request: StopRequest, has_held: bool) {
        let Some(state) = self.workers.get_mut(worker) else { return };
        if request == StopRequest::Kill {
            if !has_held {
                // The worker has gone on, and its new phase may be due at any time.
                self.slots_due = Some(Duration::ZERO);
            }
            state.fate = match std::mem::take(&mut state.fate) {
                Fate::Stopping(reason) if has_held => Fate::Killed(reason),
                Fate::Stopping(_) => Fate::Living,
                fate => fate,
            };
        }
    }

    /// What the worker's process does with SIGALRM. `None` if that is unknown.
    pub(crate) fn handle_alarm_action(
        &mut self,
        worker: u64,
        action: Option<SignalAction>,
        now: Duration,
    ) {
        let Some(state) = self.workers.get_mut(worker) else { return };
        let Fate::Suspected(suspicion) = &mut state.fate else { return };
        let (timeout, no_stack) = match action {
            Some(SignalAction::Other) => (STACK_TIMEOUT, NoStack::ActionChanged),
            Some(SignalAction::Blocked) => (BLOCKED_STACK_TIMEOUT, NoStack::Blocked),
            Some(SignalAction::Handled) | None => (MAX_STACK_TIMEOUT, NoStack::NotScheduled),
        };
        let last = suspicion.asked_at.saturating_add(timeout);
        if last > now {
            suspicion.deadline = last;
            let look = look_by(last, &self.config, now);
            self.slots_due = earlier(self.slots_due, Some(look));
            return;
        }
        let view = suspicion.view;
        let reason = KillReason { no_stack: Some(no_stack), ..suspicion.reason };
        self.actions.push_back(state.stop(worker, reason, view));
    }

    /// The caller could not watch the worker, and has killed it.
    pub(crate) fn handle_unwatchable(&mut self, worker: u64) {
        if let Some(state) = self.workers.get_mut(worker) {
            let reason = KillReason::new(KillCause::Unwatchable);
            state.fate = Fate::Killed(Box::new(reason));
        }
    }

    /// The worker has exited, and its slot shows `last`. Returns what was known of it, or what is true of
    /// a new worker if it is unknown.
    pub(crate) fn handle_exit(&mut self, worker: u64, last: SlotView, now: Duration) -> Exit {
        let state = self.workers.remove(worker);
        self.spare_numbers.remove(&worker);
        self.queue.worker_exited(worker);
        state.unwrap_or_else(|| Worker::new(Role::Spare, now)).exit(last, now)
    }
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// When to look again at a worker that must show its stack by `deadline`. It may go on right now, and hang then.
fn look_by(deadline: Duration, config: &Config, now: Duration) -> Duration {
    let hung = config.hung_worker_timeout;
    hung.map_or(deadline, |timeout| deadline.min(now.saturating_add(timeout)))
}

type Actions = VecDeque<Action>;

impl Worker {
    /// What is known of it after its end, when its slot shows `last`.
    fn exit(self, last: SlotView, now: Duration) -> Exit {
        let kill = match self.fate {
            Fate::Living => None,
            // If it has gone on meanwhile, the limit has nothing to do with its end.
            Fate::Suspected(suspicion) => (!last.has_gone_on_since(suspicion.view))
                .then_some(KillReason { view: Some(last), ..suspicion.reason }),
            Fate::Stopping(reason) | Fate::Killed(reason) => Some(*reason),
        };
        let Self { role, leaving, alarmed_call, forked_at, .. } = self;
        Exit { role, kill, leaving, alarmed_call, age: now.saturating_sub(forked_at) }
    }

    /// Asks the worker to leave as soon as no checkout uses it.
    pub(super) fn retire(&mut self, number: u64, why: Retirement, now: Duration) -> Action {
        if self.leaving == Leaving::Staying {
            self.leaving = Leaving::Retiring(now);
        }
        Action::Retire { worker: number, why }
    }

    /// Decides about what the worker does now. Returns when it is due next: for its time limits, no
    /// earlier than after the pause.
    fn decide(
        &mut self,
        number: u64,
        observed: &Observation,
        config: &Config,
        spares: &mut Spares,
        (pause, now): (Duration, Duration),
        actions: &mut Actions,
    ) -> Option<Duration> {
        if self.check(observed).is_some() {
            actions.push_back(Action::Kill { worker: number });
        }
        if self.fate.is_killed() {
            return None;
        }
        if self.is_spare() && observed.view.phase == Phase::Spare && spares.is_probe(number) {
            spares.reset_backoff();
        }
        let age = match config.recycling.has_time_limit() {
            true => self.enforce_age(number, observed, &config.recycling, now, actions),
            false => None,
        };
        let limit = self.enforce_limits(number, observed, config, now, actions);
        earlier(age, limit.map(|due| due.max(now.saturating_add(pause))))
    }

    /// Enforces the time limits. Returns when the next one is due.
    fn enforce_limits(
        &mut self,
        number: u64,
        observed: &Observation,
        config: &Config,
        now: Duration,
        actions: &mut Actions,
    ) -> Option<Duration> {
        let deadline = self.enforce_call_deadline(number, observed, now, actions);
        let hang = self.enforce_hang_timeout(number, observed, config, now, actions);
        let leave = self.enforce_leave_timeout(number, observed.view, config, now, actions);
        earlier(earlier(deadline, hang), leave)
    }

    /// Interrupts a call whose deadline has passed. Returns the next deadline.
    ///
    /// The slot may show the deadline of a call that has ended. The next call most likely has the same
    /// time limit, so it is used nevertheless.
    fn enforce_call_deadline(
        &mut self,
        number: u64,
        observed: &Observation,
        now: Duration,
        actions: &mut Actions,
    ) -> Option<Duration> {
        let (view, deadline) = (observed.view, observed.deadline?);
        if deadline > now {
            return Some(deadline);
        }
        if view.phase == Phase::Busy && view.calls != self.alarmed_call {
            self.alarmed_call = view.calls;
            actions.push_back(Action::Interrupt { worker: number, view });
        }
        None
    }

    /// Kills a worker that has been in one phase for longer than `hung_worker_timeout`, or whose call has
    /// passed its hard deadline. The worker is asked for its stack first. Returns when that is due.
    ///
    /// A worker reports the beginning of a call only if its deadline is near. A call that begins right
    /// after this look is due after the whole timeout, and the next look comes before that.
    fn enforce_hang_timeout(
        &mut self,
        number: u64,
        observed: &Observation,
        config: &Config,
        now: Duration,
        actions: &mut Actions,
    ) -> Option<Duration> {
        let view = observed.view;
        match &mut self.fate {
            Fate::Stopping(_) | Fate::Killed(_) => return None,
            Fate::Suspected(suspicion) if !view.has_gone_on_since(suspicion.view) => {
                // The kill holds only for exactly what the worker does.
                suspicion.view = view;
                if observed.has_stack {
                    let reason = suspicion.reason;
                    actions.push_back(self.stop(number, reason, view));
                } else if suspicion.deadline > now {
                    return Some(look_by(suspicion.deadline, config, now));
                } else {
                    actions.push_back(Action::InspectAlarm { worker: number });
                }
                return None;
            }
            // A worker that has gone on meanwhile is not killed.
            Fate::Suspected(_) => self.fate = Fate::Living,
            Fate::Living => {}
        }
        let timeout = config.hung_worker_timeout;
        if !view.phase.can_hang() {
            return timeout.map(|timeout| now.saturating_add(timeout));
        }
        let call_deadline = observed.hard_deadline.filter(|_| view.phase.is_running());
        let hang_deadline = timeout.map(|timeout| view.since.saturating_add(timeout));
        let due = earlier(call_deadline, hang_deadline)?;
        if due > now {
            return Some(due);
        }
        let cause = match timeout {
            Some(timeout) if call_deadline != Some(due) => KillCause::Hung(timeout),
            _ => KillCause::TimedOut,
        };
        let ran = Some(now.saturating_sub(view.since));
        let deadline = now.saturating_add(STACK_TIMEOUT);
        let reason = KillReason { ran, view: Some(view), ..KillReason::new(cause) };
        let suspicion = Suspicion { reason, view, asked_at: now, deadline };
        self.fate = Fate::Suspected(Box::new(suspicion));
        actions.push_back(Action::RequestStack { worker: number });
        Some(look_by(deadline, config, now))
    }

    /// Kills a worker that stays without a client or does not leave. Returns when that is due.
    fn enforce_leave_timeout(
        &mut self,
        number: u64,
        view: SlotView,
        config: &Config,
        now: Duration,
        actions: &mut Actions,
    ) -> Option<Duration> {
        if matches!(self.fate, Fate::Stopping(_) | Fate::Killed(_)) {
            return None;
        }
        let due = leave_deadline(view, self.leaving, config.hung_worker_timeout)?;
        if due > now {
            return Some(due);
        }
        self.fate = Fate::Killed(Box::new(KillReason::new(KillCause::NotLeaving)));
        actions.push_back(Action::Kill { worker: number });
        None
    }

    /// Retires a worker that is too old, or has been idle for too long. Returns when that is due.
    fn enforce_age(
        &mut self,
        number: u64,
        observed: &Observation,
        recycling: &Recycling,
        now: Duration,
        actions: &mut Actions,
    ) -> Option<Duration> {
        if self.leaving != Leaving::Staying {
            return None;
        }
        let view = observed.view;
        let is_unused = self.role != Role::Spare && view.calls == 0;
        // Without this, a worker whose setup takes longer than `max_age` would never serve a call, and
        // neither would its successors.
        let not_before = match view.phase {
            Phase::Idle if is_unused => view.since.saturating_add(FIRST_CALL_TIMEOUT),
            Phase::Spare => view.since.saturating_add(MIN_SPARE_TIME),
            Phase::Handshake | Phase::Setup => {
                return Some(now.saturating_add(SETUP_POLL_INTERVAL));
            }
            _ => Duration::ZERO,
        };
        let age = recycling.max_age_of(number).after_time(self.forked_at);
        // A busy worker may become idle right after this, and is due no earlier than from then on.
        let since = if view.phase == Phase::Idle { view.since } else { now };
        let idle = recycling.max_idle.after_time(since);
        let due = [(age, Retirement::Age), (idle, Retirement::Idleness)];
        let due = due.into_iter().filter_map(|(due, why)| Some((due?.max(not_before), why)));
        let (due, why) = due.min_by_key(|(due, _)| *due)?;
        if due <= now {
            actions.push_back(self.retire(number, why, now));
            return None;
        }
        Some(due)
    }
}

/// The time by which a worker must have exited.
///
/// The worker sets its phase and its time itself. So the last limit counts from its client's end alone.
fn leave_deadline(view: SlotView, leaving: Leaving, timeout: Option<Duration>) -> Option<Duration> {
    let checkout_done = timeout.unwrap_or(CHECKOUT_DONE_TIMEOUT).max(EXIT_TIMEOUT);
    let limit = match view.phase {
        Phase::CheckoutDone => checkout_done,
        Phase::Retired => EXIT_TIMEOUT,
        _ => NOTICE_TIMEOUT,
    };
    let due = |since: Duration| since.max(view.since).saturating_add(limit);
    match leaving {
        Leaving::Staying => None,
        Leaving::ClientGone(since) => {
            let last = since.saturating_add(checkout_done).saturating_add(EXIT_TIMEOUT);
            Some(due(since).min(last))
        }
        // A checkout may take any time, so a worker leaves only when it has none.
        Leaving::Retiring(since) => {
            let is_free = matches!(view.phase, Phase::Idle | Phase::Retired | Phase::Spare);
            is_free.then(|| due(since))
        }
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
        let due = |phase| leave_deadline(view(phase, 50), Leaving::ClientGone(seconds(100)), None);
        for phase in [Phase::Idle, Phase::Held, Phase::Busy, Phase::Answering, Phase::Handshake] {
            assert_eq!(due(phase), Some(seconds(105)), "{phase:?}");
        }
        assert_eq!(due(Phase::Retired), Some(seconds(130)));
        assert_eq!(due(Phase::CheckoutDone), Some(seconds(400)));
    }

    #[test]
    fn time_counts_from_the_phase_that_a_worker_entered_later() {
        let due = |phase| leave_deadline(view(phase, 300), Leaving::ClientGone(seconds(100)), None);
        assert_eq!(due(Phase::Idle), Some(seconds(305)));
        assert_eq!(due(Phase::Retired), Some(seconds(330)));
        let due = leave_deadline(view(Phase::Retired, 300), Leaving::Retiring(seconds(100)), None);
        assert_eq!(due, Some(seconds(330)));
    }

    #[test]
    fn a_worker_that_renews_its_time_is_killed_nevertheless() {
        for phase in [Phase::Idle, Phase::Held, Phase::Retired, Phase::CheckoutDone] {
            let due = |timeout| {
                leave_deadline(view(phase, 10_000), Leaving::ClientGone(seconds(100)), timeout)
            };
            assert_eq!(due(None), Some(seconds(100 + 300 + 30)), "{phase:?}");
            assert_eq!(due(Some(seconds(1))), Some(seconds(100 + 30 + 30)), "{phase:?}");
        }
    }

    #[test]
    fn a_worker_with_a_checkout_need_not_leave() {
        let due = |phase| leave_deadline(view(phase, 50), Leaving::Retiring(seconds(100)), None);
        assert_eq!(due(Phase::Held), None);
        assert_eq!(due(Phase::Busy), None);
        assert_eq!(due(Phase::Idle), Some(seconds(105)));
    }
}
