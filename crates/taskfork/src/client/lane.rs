//! The core of a checkout: its place in the queue or its worker, and its calls, sent and answered
//! one after the other. Whoever touches it moves it on: the task that waits for the call that runs,
//! the one that made a call, or the driver.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use log_defer::Log;

use super::connection::Connection;
use super::core::{Change, Core, Effects, Work as Task, lock, runtime_is_gone};
use super::entries::{Entries, Entry, MethodName, Outcome, Progress, Seq, Work};
use super::log::Timing;
use super::look::Looking;
use super::metrics::Stopwatch;
use super::pool::{CheckedOut, Lease, Loss};
use super::queue::Ticket;
use super::replay::Replay;
use super::send::Sender;
use super::state::{Holding, State};
use super::stats;
use crate::error::{FatalError, Stage};
use crate::loans::Filling;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;

/// How long a task leaves the lock to others between two turns while its worker floods it.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// How long after its end a call waits for the news of its worker's death.
const NEWS_WAIT: TimeLimit = TimeLimit::new(Duration::from_secs(2));
const NO_WAIT: Duration = Duration::ZERO;

#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) core: Arc<Core>,
    state: Mutex<State>,
}

impl Lane {
    /// Takes a worker or a place in the queue.
    pub(crate) fn new(core: Arc<Core>) -> Arc<Self> {
        let lane = Self::with(core, Holding::Released);
        lane.change(|state, effects| {
            let taken = lane.core.pool().check_out(|| lane.clone());
            match taken {
                CheckedOut::Worker(lease) => {
                    lane.core.tally.served(NO_WAIT);
                    lane.hold(state, lease);
                }
                CheckedOut::Place(ticket, turned_away) => {
                    state.asked = Some(Instant::now());
                    effects.turned_away.extend(turned_away);
                    lane.wait(state, effects, ticket);
                }
                CheckedOut::Refused => state.holding = Holding::Failed(lane.core.overloaded()),
            }
        });
        lane
    }

    /// Takes a worker if there is one now.
    pub(crate) fn try_new(core: Arc<Core>) -> Option<Arc<Self>> {
        let lease = core.pool().check_out_idle()?;
        core.tally.served(NO_WAIT);
        let lane = Self::with(core, Holding::Released);
        lane.change(|state, _| lane.hold(state, lease));
        Some(lane)
    }

    fn with(core: Arc<Core>, holding: Holding) -> Arc<Self> {
        let state = State {
            holding,
            calls: Entries::default(),
            sender: Sender::default(),
            told: false,
            open: true,
            used: false,
            setup_deaths: 0,
            denials: 0,
            tainted: false,
            unseen: None,
            timeout: core.config.timeout,
            asked: None,
            alarm: None,
            log: None,
        };
        Arc::new(Self { core, state: Mutex::new(state) })
    }

    /// The longest frame that the client takes.
    pub(crate) fn max_frame(&self) -> usize {
        self.core.config.max_frame
    }

    pub(crate) fn client_name(&self) -> &str {
        &self.core.config.name
    }

    pub(crate) fn set_timeout(&self, timeout: TimeLimit) {
        self.lock().timeout = timeout;
    }

    pub(crate) fn set_log(&self, log: Log) {
        let before = self.lock().log.replace(log);
        // With the lane unlocked, as it may be the last handle.
        drop(before);
    }

    /// Gives a call its place, and sends it if none is before it. Others are sent along with those
    /// that are made after them, by the first who waits for one, or else by the driver.
    pub(crate) fn make(
        self: &Arc<Self>,
        method: MethodName,
        work: Work,
        replay: Option<Arc<Replay>>,
    ) -> Seq {
        let mut state = self.lock();
        let seq = self.queue(&mut state, method, work, replay);
        if state.calls.has_more_than_head() {
            let tell = matches!(state.holding, Holding::Worker(_)) && !state.told;
            state.told |= tell;
            drop(state);
            if tell {
                self.core.mailbox.send(Task::Lane(Arc::downgrade(self)));
            }
            return seq;
        }
        self.move_on(state, Effects::default());
        seq
    }

    fn queue(
        self: &Arc<Self>,
        state: &mut State,
        method: MethodName,
        work: Work,
        replay: Option<Arc<Replay>>,
    ) -> Seq {
        let deadline = state.timeout.after(Instant::now());
        let outcome = match (&state.holding, &state.unseen) {
            (Holding::Failed(cause), _) => {
                Some(Outcome::Fatal { cause: cause.clone(), may_have_run: false })
            }
            (_, Some((_, behind))) => Some(Outcome::Dropped { behind: behind.clone() }),
            _ => None,
        };
        let progress = outcome.map_or(Progress::Queued, Progress::Done);
        let is_queued = matches!(progress, Progress::Queued);
        let mut timing = match work {
            Work::Ready => Timing::Off,
            _ => Timing::new(state.log.as_ref(), method.as_deref()),
        };
        if !is_queued {
            timing.end();
        }
        let (waker, abandoned, sent) = (None, false, Stopwatch::new());
        let entry =
            Entry { method, work, progress, deadline, waker, abandoned, timing, sent, replay };
        let seq = state.calls.push(entry);
        if let (true, None, Some(at)) = (is_queued, state.alarm, deadline) {
            state.alarm = Some(self.core.set_alarm(at, self));
        }
        seq
    }

    /// The outcome of a call, or nothing yet: then the task is woken when there is one. While a look for it
    /// goes on, that is kept in `looking`.
    pub(crate) fn poll(
        self: &Arc<Self>,
        seq: Seq,
        context: &mut Context<'_>,
        looking: &mut Option<Looking>,
    ) -> Poll<(MethodName, Outcome)> {
        let outcome = self.poll_once(seq, context.waker());
        if outcome.is_ready() {
            *looking = None;
            return outcome;
        }
        if looking.is_none() {
            *looking = self.begin_to_look(seq);
        }
        let Some(look) = looking else { return outcome };
        if look.is_shared() && look.go_on() {
            look.after_others(context);
            return outcome;
        }
        self.look_for(seq, look);
        *looking = None;
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
        let is_flooded = taken.is_none() && state.is_flooded();
        drop(state);
        self.core.settle(effects);
        if is_flooded {
            // This task is polled again at once, and could keep the lock for long from the thread that has a deadline
            // to enforce.
            std::thread::sleep(LOCK_PAUSE);
        }
        taken.map_or(Poll::Pending, Poll::Ready)
    }

    /// Begins to look for the answer of a call, if it runs and that pays.
    fn begin_to_look(&self, seq: Seq) -> Option<Looking> {
        let looking = self.lock().connection_of(seq)?.begin_to_look()?;
        // Other workers' answers are not to wait for this one.
        let (busy, cores) = (self.core.pool().counts().busy, self.core.config.cores);
        Some(if busy > 1 { looking.shared(busy, cores) } else { looking })
    }

    /// Looks for the answer of a call until the look is over. Others may use the lane meanwhile.
    fn look_for(&self, seq: Seq, looking: &mut Looking) {
        loop {
            let mut state = self.lock();
            let Some(connection) = state.connection_of(seq) else { return };
            if connection.glance(looking) {
                return connection.looked(looking, true);
            }
            drop(state);
            if looking.is_shared() || !looking.go_on() {
                break;
            }
        }
        if let Some(connection) = self.lock().connection_of(seq) {
            connection.looked(looking, false);
        }
    }

    /// Memory that is shared with the worker, if there is one and it shares any.
    pub(crate) fn memory(&self, length: usize) -> Option<Filling> {
        match &mut self.lock().holding {
            Holding::Worker(lease) => lease.connection.memory(length),
            _ => None,
        }
    }

    /// Nobody waits for this call any more.
    pub(crate) fn abandon(self: &Arc<Self>, seq: Seq) {
        self.change(|state, effects| {
            state.see(seq);
            state.forget(seq);
            state.connection_of(seq).into_iter().for_each(Connection::end_looking);
            effects.replays.extend(state.calls.abandon(seq));
        });
    }

    /// The user has dropped the checkout.
    pub(crate) fn close(self: &Arc<Self>) {
        self.change(|state, _| state.open = false);
    }

    /// Ends the checkout and whatever runs in it.
    pub(crate) fn fail(self: &Arc<Self>, cause: FatalError) {
        self.change(|state, effects| self.end(state, effects, cause, Loss::Used));
    }

    /// Gives the lane a worker, unless it has given up in the meantime.
    pub(crate) fn assign(
        self: &Arc<Self>,
        lease: Lease<Box<Connection>>,
    ) -> Result<Effects, Lease<Box<Connection>>> {
        let mut state = self.lock();
        if !matches!(state.holding, Holding::Waiting(_)) {
            return Err(lease);
        }
        let mut effects = Effects::default();
        let now = Instant::now();
        let deadline = state.calls.head().and_then(|(_, head)| head.deadline);
        if deadline.is_some_and(|deadline| deadline <= now) {
            // Too late for what it waited for. It is in the queue no more, and another may have the
            // worker.
            let cause = self.out_of_time(&state, now);
            state.holding = Holding::Released;
            self.end(&mut state, &mut effects, cause, Loss::Used);
            self.finish_if_done(&mut state, &mut effects);
            effects.workers.push(Change::HandBack(lease));
            return Ok(effects);
        }
        if let Some(asked) = state.asked.take() {
            self.core.tally.served(now.saturating_duration_since(asked));
        }
        self.hold(&mut state, lease);
        self.advance(&mut state, &mut effects);
        self.finish_if_done(&mut state, &mut effects);
        Ok(effects)
    }

    /// Takes a worker over. The lane is moved on after it, as what happened to the worker while it
    /// changed hands has told nobody.
    pub(super) fn hold(self: &Arc<Self>, state: &mut State, mut lease: Lease<Box<Connection>>) {
        if let Some(since) = lease.connection.is_held() {
            let work = Task::Ungreeted(since, lease.key(), Arc::downgrade(self));
            self.core.mailbox.send(work);
        }
        lease.connection.signal.belongs_to_lane(self);
        state.holding = Holding::Worker(lease);
    }

    /// Waits for a worker, unless none will ever come: the flag is looked at with the place in the
    /// queue taken, so that either this sees it, or whoever has set it sees the place.
    pub(super) fn wait(&self, state: &mut State, effects: &mut Effects, ticket: Ticket) {
        state.holding = Holding::Waiting(ticket);
        self.core.mailbox.notify.notify_one();
        if self.core.is_stopped() {
            self.end(state, effects, runtime_is_gone(), Loss::Used);
        }
    }

    /// Moves the lane on after something happened on its connection.
    pub(crate) fn look(self: &Arc<Self>) {
        self.change(|_, _| {});
    }

    /// A time that was set for this lane has come.
    pub(crate) fn expire(self: &Arc<Self>, now: Instant) {
        self.change(|state, effects| {
            state.alarm = None;
            // An answer that is there already counts.
            self.advance(state, effects);
            let Some((_, head)) = state.calls.head() else { return };
            let Some(deadline) = head.deadline else { return };
            // A worker that has the call may go on for the grace; then its server ends it, and says
            // where it was. One that floods this side with messages does not hang.
            let has_it = head.number().is_some()
                && self.core.config.protocol == Protocol::Native
                && !state.is_ungreeted()
                && !state.is_flooded();
            let wait = match has_it {
                true => self.core.config.grace.plus(NEWS_WAIT),
                false => TimeLimit::new(NO_WAIT),
            };
            let Some(end) = wait.after(deadline) else { return };
            if end > now {
                state.alarm = Some(self.core.set_alarm(end, self));
                return;
            }
            let cause = self.out_of_time(state, now);
            if matches!(state.holding, Holding::Worker(_)) && !state.is_ungreeted() {
                self.core.tally.died(stats::TIMED_OUT);
            }
            self.end(state, effects, cause, Loss::Used);
        });
    }

    fn out_of_time(&self, state: &State, now: Instant) -> FatalError {
        let after = state.timeout.get().unwrap_or_default();
        if !matches!(state.holding, Holding::Waiting(_)) && !state.is_ungreeted() {
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

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state, moves on, and does what follows.
    pub(super) fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, &mut Effects) -> T,
    ) -> T {
        let mut state = self.lock();
        let mut effects = Effects::default();
        let result = change(&mut state, &mut effects);
        self.move_on(state, effects);
        result
    }

    fn move_on(self: &Arc<Self>, mut state: MutexGuard<'_, State>, mut effects: Effects) {
        self.advance(&mut state, &mut effects);
        self.finish_if_done(&mut state, &mut effects);
        drop(state);
        self.core.settle(effects);
    }
}
