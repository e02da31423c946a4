//! The state of a checkout behind its lock: a place in the queue or a worker, and its calls.
//!
//! No task owns a session. The task that awaits the running call, a task that makes a call, or the
//! driver advances it: each locks the state, calls `advance`, and applies the effects once the
//! state is unlocked.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use log_defer::Log;

use super::connection::Connection;
use super::core::Core;
use super::effects::{Effects, PoolCommand, Waiter};
use super::entries::{Entries, Entry, MethodName, Operation, Outcome, Progress, Seq};
use super::io::driver_queue::{Driven, DriverEvent};
use super::io::spin::SpinGuard;
use super::io::time;
use super::log::Timing;
use super::metrics::Stopwatch;
use super::pool::{CheckedOut, Lease, Loss, WorkerKey};
use super::queue::Ticket;
use super::replay::Replay;
use super::send::Sender;
use super::state::{Assignment, State};
use super::stats;
use crate::error::{FatalError, Stage};
use crate::shm_pool::ShmBufferMut;
use crate::sync::lock;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;

/// How long a task leaves the lock to others between two reads while its worker floods it.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// How long after its end a call waits for the notice of its worker's death.
const NEWS_WAIT: TimeLimit = TimeLimit::new(Duration::from_secs(2));
const NO_WAIT: Duration = Duration::ZERO;

#[derive(Debug)]
pub(crate) struct Session {
    pub(super) core: Arc<Core>,
    state: Mutex<State>,
}

impl Session {
    /// Starts a checkout with an idle worker or a place in the queue.
    pub(crate) fn new(core: Arc<Core>) -> Arc<Self> {
        let session = Self::with(core, Assignment::Released);
        session.update(|state, effects| {
            let taken = session.core.pool().check_out(|| session.clone() as Arc<dyn Waiter>);
            match taken {
                CheckedOut::Worker(lease) => {
                    session.core.counters.count_checkout(NO_WAIT);
                    session.attach_worker(state, lease);
                }
                CheckedOut::Queued(ticket, evicted) => {
                    state.waiting_since = Some(time::now());
                    effects.evicted.extend(evicted);
                    session.enter_queue(state, effects, ticket);
                }
                CheckedOut::Refused => {
                    state.assignment = Assignment::Failed(session.core.overloaded())
                }
                CheckedOut::Closed => {
                    state.assignment = Assignment::Failed(FatalError::ClientClosed);
                }
            }
        });
        session
    }

    /// Starts a checkout if a worker is idle.
    pub(crate) fn try_new(core: Arc<Core>) -> Option<Arc<Self>> {
        let lease = core.pool().check_out_idle()?;
        core.counters.count_checkout(NO_WAIT);
        let session = Self::with(core, Assignment::Released);
        session.update(|state, _| session.attach_worker(state, lease));
        Some(session)
    }

    fn with(core: Arc<Core>, assignment: Assignment) -> Arc<Self> {
        let state = State {
            assignment,
            calls: Entries::default(),
            sender: Sender::default(),
            driver_notified: false,
            open: true,
            used: false,
            setup_deaths: 0,
            unstarted_deaths: 0,
            call_failed: false,
            unobserved_failure: None,
            timeout: core.config.timeout,
            waiting_since: None,
            timer: None,
            log: None,
        };
        Arc::new(Self { core, state: Mutex::new(state) })
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.core.config.max_frame
    }

    /// The state of the assignment and the number of unfinished calls, for `Debug`.
    pub(crate) fn summary(&self) -> (&'static str, usize) {
        let state = self.lock();
        let assignment = match &state.assignment {
            Assignment::Waiting(_) => "waiting for a worker",
            Assignment::Worker(_) => "holding a worker",
            Assignment::Failed(_) => "failed",
            Assignment::Released => "released",
        };
        (assignment, state.calls.unfinished())
    }

    /// The state of a call, for `Debug`.
    pub(crate) fn call_state(&self, seq: Seq) -> &'static str {
        match self.lock().calls.progress(seq) {
            Some(Progress::Queued) => "queued",
            Some(Progress::Sending(_)) => "being sent",
            Some(Progress::Sent(_)) => "sent",
            Some(Progress::Done(_)) => "done",
            Some(Progress::Removed) | None => "returned",
        }
    }

    pub(crate) fn client_name(&self) -> &str {
        &self.core.config.name
    }

    pub(crate) fn set_timeout(&self, timeout: TimeLimit) {
        self.lock().timeout = timeout;
    }

    pub(crate) fn set_log(&self, log: Log) {
        let before = self.lock().log.replace(log);
        // Dropped while the session is unlocked, because the last handle of a log runs users' code.
        drop(before);
    }

    /// Appends a call, and sends it if no call is before it. Calls behind another one are sent
    /// together later, by the first task that awaits one of them, or else by the driver.
    pub(crate) fn submit(
        self: &Arc<Self>,
        method: MethodName,
        operation: Operation,
        replay: Option<Arc<Replay>>,
    ) -> Seq {
        let mut state = self.lock();
        let seq = self.enqueue(&mut state, method, operation, replay);
        if state.calls.has_more_than_head() {
            let tell = matches!(state.assignment, Assignment::Worker(_)) && !state.driver_notified;
            state.driver_notified |= tell;
            drop(state);
            if tell {
                self.core.driver_queue.send(DriverEvent::Session(self.as_driven()));
            }
            return seq;
        }
        self.advance_and_apply(state, Effects::default());
        seq
    }

    fn enqueue(
        self: &Arc<Self>,
        state: &mut State,
        method: MethodName,
        operation: Operation,
        replay: Option<Arc<Replay>>,
    ) -> Seq {
        let deadline = state.timeout.after(time::now());
        let outcome = match (&state.assignment, &state.unobserved_failure) {
            (Assignment::Failed(cause), _) => {
                Some(Outcome::Fatal { cause: cause.clone(), may_have_run: false })
            }
            (_, Some((_, behind))) => Some(Outcome::Dropped { behind: behind.clone() }),
            _ => None,
        };
        let progress = outcome.map_or(Progress::Queued, Progress::Done);
        let is_queued = matches!(progress, Progress::Queued);
        let mut timing = match operation {
            Operation::WaitForWorker => Timing::Off,
            _ => Timing::new(state.log.as_ref(), method.as_deref()),
        };
        if !is_queued {
            timing.end();
        }
        let (waker, abandoned, sent) = (None, false, Stopwatch::new());
        let entry =
            Entry { method, operation, progress, deadline, waker, abandoned, timing, sent, replay };
        let seq = state.calls.push(entry);
        if let (true, None, Some(at)) = (is_queued, state.timer, deadline) {
            state.timer = Some(self.core.set_timer(at, self.as_driven()));
        }
        seq
    }

    /// Polls the outcome of a call. While a spin for it is in progress, `spin_guard` holds it.
    pub(crate) fn poll(
        self: &Arc<Self>,
        seq: Seq,
        context: &mut Context<'_>,
        spin_guard: &mut Option<SpinGuard>,
    ) -> Poll<(MethodName, Outcome)> {
        let outcome = self.poll_once(seq, context.waker());
        if outcome.is_ready() {
            *spin_guard = None;
            return outcome;
        }
        if spin_guard.is_none() {
            *spin_guard = self.start_spin(seq);
        }
        let Some(look) = spin_guard else { return outcome };
        if look.is_shared() && look.pause() {
            look.yield_to_runtime(context);
            return outcome;
        }
        self.spin(seq, look);
        *spin_guard = None;
        self.poll_once(seq, context.waker())
    }

    fn poll_once(self: &Arc<Self>, seq: Seq, waker: &Waker) -> Poll<(MethodName, Outcome)> {
        let mut state = self.lock();
        let mut effects = Effects::default();
        let mut taken = state.take(seq, &mut effects);
        if taken.is_none() {
            state.calls.set_waker(seq, waker);
            self.advance(&mut state, &mut effects);
            taken = state.take(seq, &mut effects);
            effects.wakers.retain(|woken| taken.is_none() || !woken.will_wake(waker));
        }
        self.finish_if_done(&mut state, &mut effects);
        let is_flooding = taken.is_none() && state.is_flooding();
        drop(state);
        self.core.apply(effects);
        if is_flooding {
            // This task is polled again at once. Without the pause it could keep the lock from the
            // driver, which enforces the deadline.
            std::thread::sleep(LOCK_PAUSE);
        }
        taken.map_or(Poll::Pending, Poll::Ready)
    }

    /// Starts a spin for the answer of a call, if the call runs and the policy allows it.
    fn start_spin(&self, seq: Seq) -> Option<SpinGuard> {
        let spin_guard = self.lock().connection_of(seq)?.start_spin()?;
        // Answers of other workers must not wait for this one.
        let (busy, cores) = (self.core.pool().counts().busy, self.core.config.cores);
        Some(if busy > 1 { spin_guard.shared(busy, cores) } else { spin_guard })
    }

    /// Spins until the answer comes or the spin is over. The state is unlocked between polls.
    fn spin(&self, seq: Seq, spin_guard: &mut SpinGuard) {
        loop {
            let mut state = self.lock();
            let Some(connection) = state.connection_of(seq) else { return };
            if connection.try_receive(spin_guard) {
                return connection.finish_spin(spin_guard, true);
            }
            drop(state);
            if spin_guard.is_shared() || !spin_guard.pause() {
                break;
            }
        }
        if let Some(connection) = self.lock().connection_of(seq) {
            connection.finish_spin(spin_guard, false);
        }
    }

    /// Allocates memory that is shared with the worker, if there is any.
    pub(crate) fn alloc_shared(&self, length: usize) -> Option<ShmBufferMut> {
        match &mut self.lock().assignment {
            Assignment::Worker(lease) => lease.connection.alloc_shared(length),
            _ => None,
        }
    }

    /// The caller has dropped the call.
    pub(crate) fn abandon(self: &Arc<Self>, seq: Seq) {
        self.update(|state, effects| {
            state.mark_observed(seq);
            state.cancel_call(seq);
            state.connection_of(seq).into_iter().for_each(Connection::clear_spinning);
            effects.replays.extend(state.calls.abandon(seq));
        });
    }

    /// The user has dropped the checkout.
    pub(crate) fn close(self: &Arc<Self>) {
        self.update(|state, _| state.open = false);
    }

    /// Assigns a worker to the session. The caller must advance the session afterwards, because earlier
    /// events on the connection have woken no task.
    pub(super) fn attach_worker(
        self: &Arc<Self>,
        state: &mut State,
        mut lease: Lease<Box<Connection>>,
    ) {
        if let Some(since) = lease.connection.mark_held() {
            let event = DriverEvent::HandshakePending(since, lease.key(), self.as_driven());
            self.core.driver_queue.send(event);
        }
        lease.connection.notifier.set_session(self.as_driven());
        state.assignment = Assignment::Worker(lease);
    }

    /// Records the place in the queue, or fails if no worker will ever come. The flag is read after
    /// the place is taken. So either this sees the flag, or the thread that sets it sees the place.
    pub(super) fn enter_queue(&self, state: &mut State, effects: &mut Effects, ticket: Ticket) {
        state.assignment = Assignment::Waiting(ticket);
        self.core.driver_queue.wake();
        if let Some(cause) = self.core.unavailable() {
            self.end(state, effects, cause, Loss::Used);
        }
    }

    fn timeout_error(&self, state: &State, now: Instant) -> FatalError {
        let after = state.timeout.get().unwrap_or_default();
        if !matches!(state.assignment, Assignment::Waiting(_)) && !state.is_handshake_pending() {
            return FatalError::TimedOut { after, stage: Stage::Running, hung: None };
        }
        match self.core.pool().unreachable() {
            Some(unreachable) => FatalError::CannotConnect {
                address: self.core.config.addresses(),
                reason: unreachable.reason.clone(),
                unreachable_for: now.saturating_duration_since(unreachable.since),
                after,
            },
            None => FatalError::TimedOut { after, stage: Stage::Waiting, hung: None },
        }
    }

    fn as_driven(self: &Arc<Self>) -> Weak<dyn Driven> {
        Arc::downgrade(self) as Weak<dyn Driven>
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state, advances the session, and applies the effects.
    pub(super) fn update<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, &mut Effects) -> T,
    ) -> T {
        let mut state = self.lock();
        let mut effects = Effects::default();
        let result = change(&mut state, &mut effects);
        self.advance_and_apply(state, effects);
        result
    }

    fn advance_and_apply(self: &Arc<Self>, mut state: MutexGuard<'_, State>, mut effects: Effects) {
        self.advance(&mut state, &mut effects);
        self.finish_if_done(&mut state, &mut effects);
        drop(state);
        self.core.apply(effects);
    }
}

impl Waiter for Session {
    fn assign(
        self: Arc<Self>,
        lease: Lease<Box<Connection>>,
    ) -> Result<Effects, Lease<Box<Connection>>> {
        let mut state = self.lock();
        if !matches!(state.assignment, Assignment::Waiting(_)) {
            return Err(lease);
        }
        let mut effects = Effects::default();
        let now = time::now();
        let deadline = state.calls.head().and_then(|(_, head)| head.deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            // The worker comes too late. The session has left the queue, so another one may have
            // the worker.
            let cause = self.timeout_error(&state, now);
            state.assignment = Assignment::Released;
            self.end(&mut state, &mut effects, cause, Loss::Used);
            self.finish_if_done(&mut state, &mut effects);
            effects.pool_commands.push(PoolCommand::Decline(lease));
            return Ok(effects);
        }
        if let Some(asked) = state.waiting_since.take() {
            self.core.counters.count_checkout(now.saturating_duration_since(asked));
        }
        self.attach_worker(&mut state, lease);
        self.advance(&mut state, &mut effects);
        self.finish_if_done(&mut state, &mut effects);
        Ok(effects)
    }

    fn fail(self: Arc<Self>, cause: FatalError) {
        self.update(|state, effects| self.end(state, effects, cause, Loss::Used));
    }
}

impl Driven for Session {
    fn connection_event(self: Arc<Self>) {
        self.update(|_, _| {});
    }

    fn timer_expired(self: Arc<Self>, now: Instant) {
        self.update(|state, effects| {
            state.timer = None;
            // An answer that has arrived in time counts.
            self.advance(state, effects);
            let Some((_, head)) = state.calls.head() else { return };
            let Some(deadline) = head.deadline else { return };
            // A worker that has the call may go on for the grace period. Then its server kills it,
            // and the notice says where it was. A worker that floods this side with messages does
            // not hang.
            let has_it = head.number().is_some()
                && self.core.config.protocol == Protocol::Native
                && !state.is_handshake_pending()
                && !state.is_flooding();
            let wait = match has_it {
                true => self.core.config.grace.plus(NEWS_WAIT),
                false => TimeLimit::new(NO_WAIT),
            };
            let Some(end) = wait.after(deadline) else { return };
            if end > now {
                state.timer = Some(self.core.set_timer(end, self.as_driven()));
                return;
            }
            let cause = self.timeout_error(state, now);
            if matches!(state.assignment, Assignment::Worker(_)) && !state.is_handshake_pending() {
                self.core.counters.count_death(stats::TIMED_OUT);
            }
            self.end(state, effects, cause, Loss::Used);
        });
    }

    fn handshake_timed_out(self: Arc<Self>, key: WorkerKey) {
        self.end_handshake(key);
    }
}
