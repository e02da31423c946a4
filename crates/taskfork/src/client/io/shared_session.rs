//! A session behind its lock, with its connection's stream and its timer.
//!
//! No task owns a session. The task that awaits the running call, a task that makes a call, or the
//! driver advances it: each locks the state, calls `advance`, and applies the effects once the
//! state is unlocked.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use log_defer::Log;

use super::connection::{Connection, Link, Received};
use super::core::Core;
use super::driver_queue::{Driven, DriverEvent, Look};
use super::effects::{Effects, PoolCommand, Waiter};
use super::spin::SpinGuard;
use super::time;
use crate::client::config::CheckoutOptions;
use crate::client::now::Now;
use crate::client::observe::progress::ProgressCell;
use crate::client::observe::replay::Replay;
use crate::client::pool::priority_queue::QueuePlace;
use crate::client::pool::timers::TimerKey;
use crate::client::pool::{CheckedOut, Lease, Loss};
use crate::client::proto::io_types::Transmit;
use crate::client::session::calls::{MethodName, Operation, Outcome, Seq};
use crate::client::session::items::Item;
use crate::client::session::{Event, Return, Session, Step};
use crate::error::{FatalError, Stage, TimeoutOption};
use crate::shm_pool::ShmBufferMut;
use crate::sync::lock;
use crate::time_limit::TimeLimit;

/// How long a task leaves the lock to others between two reads while its worker floods it.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

#[derive(Debug)]
pub(crate) struct SharedSession {
    core: Arc<Core>,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) session: Session,
    place: Place,
    /// The timer for the session, and its time.
    timer: Option<(Instant, TimerKey)>,
    /// Since when the checkout waits for its first worker.
    waiting_since: Option<Instant>,
    /// The driver has an event that says that calls must be sent.
    driver_notified: bool,
    /// The call that its task polls now. The task need not be woken for it. Wakers cannot be compared instead: clones of
    /// a waker may differ from it. The task may wait for other calls too, which it has polled before.
    polled: Option<Seq>,
    /// The session has a worker and no call, and the driver gets the next event on the connection.
    is_idle: bool,
}

/// What the session has from the pool.
#[derive(Debug)]
enum Place {
    None,
    Queue(QueuePlace),
    Worker(Lease<Box<Link>>),
}

/// What [`SharedSession::poll_item`] has found.
#[derive(Debug)]
pub(crate) enum Polled {
    Item(Item),
    Outcome(MethodName, Outcome),
}

impl Polled {
    fn take(session: &mut Session, seq: Seq) -> Option<Self> {
        if let Some(item) = session.take_item(seq) {
            return Some(Self::Item(item));
        }
        session.take(seq).map(|(method, outcome)| Self::Outcome(method, outcome))
    }
}

impl State {
    /// The session and its connection's stream, if it has a worker.
    fn linked(&mut self) -> Option<(&mut Session, &mut Link)> {
        match &mut self.place {
            Place::Worker(lease) => Some((&mut self.session, &mut lease.connection)),
            Place::None | Place::Queue(_) => None,
        }
    }
}

/// What is particular about a call in a checkout of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallKind {
    /// How many times it may be made again, though it may have run.
    pub(crate) retries: u32,
    pub(crate) streams: Streams,
}

/// What a call streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    /// The caller reads items of the worker.
    pub(crate) items: bool,
    /// The caller sends an input.
    pub(crate) input: bool,
}

impl Streams {
    fn of(self, seq: Seq, session: &mut Session) {
        if self.items {
            session.read_items(seq);
        }
        if self.input {
            session.stream_input(seq);
        }
    }
}

impl SharedSession {
    /// Starts a checkout with an idle worker or a place in the queue.
    pub(crate) fn new(core: Arc<Core>, options: CheckoutOptions) -> Arc<Self> {
        let session = Self::with(core, options, false);
        session.update(|state, effects| session.check_out(options.priority, state, effects));
        session
    }

    /// Makes a call in a checkout of its own, which ends with that call. If its worker dies, it is made again up to
    /// `retries` times, though it may have run.
    pub(crate) fn call_once(
        core: Arc<Core>,
        options: CheckoutOptions,
        method: MethodName,
        operation: Operation,
        replay: Option<Arc<Replay>>,
        kind: CallKind,
    ) -> (Arc<Self>, Seq) {
        let session = Self::with(core, options, true);
        let now = now();
        let mut state = session.lock();
        let mut effects = Effects::default();
        session.check_out(options.priority, &mut state, &mut effects);
        state.session.set_retries(kind.retries);
        let seq = state.session.submit(method, operation, replay, &now);
        kind.streams.of(seq, &mut state.session);
        state.session.close();
        let is_sent = match &mut state.place {
            Place::Worker(lease) => {
                lease.connection.notifier.set_task(None, true);
                session.send_first(&mut state, &now)
            }
            Place::None | Place::Queue(_) => false,
        };
        if !is_sent {
            session.advance_and_apply(state, effects, &now);
        }
        (session.clone(), seq)
    }

    fn check_out(self: &Arc<Self>, priority: i8, state: &mut State, effects: &mut Effects) {
        let core = &self.core;
        let mut waiting_since = None;
        let waiter = || {
            let now = time::now();
            waiting_since = Some(now);
            (self.clone() as Arc<dyn Waiter>, now)
        };
        let taken = core.pool().check_out(priority, waiter);
        match taken {
            CheckedOut::Worker(lease) => {
                core.counters.count_checkout(Duration::ZERO);
                self.attach_worker(state, lease);
            }
            CheckedOut::Queued(place, evicted) => {
                state.waiting_since = waiting_since;
                if let Some(evicted) = evicted {
                    effects.rare().evicted.push(evicted);
                }
                self.enter_queue(state, place);
            }
            CheckedOut::Refused => state.session.end(core.overloaded(), Loss::Used),
            CheckedOut::Closed => state.session.end(FatalError::ClientClosed, Loss::Used),
        }
    }

    /// Starts a checkout if a worker is idle.
    pub(crate) fn try_new(core: Arc<Core>, options: CheckoutOptions) -> Option<Arc<Self>> {
        let lease = core.pool().check_out_idle()?;
        core.counters.count_checkout(Duration::ZERO);
        let session = Self::with(core, options, false);
        session.update(|state, _| session.attach_worker(state, lease));
        Some(session)
    }

    fn with(core: Arc<Core>, options: CheckoutOptions, is_single: bool) -> Arc<Self> {
        let state = State {
            session: Session::new(core.config.session_options(options), is_single),
            place: Place::None,
            timer: None,
            waiting_since: None,
            driver_notified: false,
            polled: None,
            is_idle: false,
        };
        Arc::new(Self { core, state: Mutex::new(state) })
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.core.config.max_frame
    }

    /// The state of the assignment and the number of unfinished calls, for `Debug`.
    pub(crate) fn summary(&self) -> (&'static str, usize) {
        self.lock().session.summary()
    }

    /// The state of a call, for `Debug`.
    pub(crate) fn call_state(&self, seq: Seq) -> &'static str {
        self.lock().session.call_state(seq)
    }

    pub(crate) fn client_name(&self) -> &str {
        &self.core.config.name
    }

    pub(crate) fn set_timeout(&self, timeout: TimeLimit) {
        self.lock().session.set_timeout(timeout);
    }

    pub(crate) fn set_run_timeout(&self, timeout: TimeLimit) {
        self.lock().session.set_run_timeout(timeout);
    }

    pub(crate) fn set_log(&self, log: Log) {
        let before = self.lock().session.set_log(log);
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
        streams: Streams,
        timeout: Option<TimeLimit>,
    ) -> Seq {
        let now = now();
        let mut state = self.lock();
        let before = timeout.map(|timeout| state.session.set_timeout(timeout));
        let seq = state.session.submit(method, operation, replay, &now);
        if let Some(before) = before {
            state.session.set_timeout(before);
        }
        streams.of(seq, &mut state.session);
        if state.session.has_more_than_head() {
            self.set_timer(&mut state);
            let tell = matches!(state.place, Place::Worker(_)) && !state.driver_notified;
            state.driver_notified |= tell;
            drop(state);
            if tell {
                self.core.driver_queue.send(DriverEvent::Session(self.as_driven()));
            }
            return seq;
        }
        if state.is_idle && self.send_first(&mut state, &now) {
            return seq;
        }
        self.advance_and_apply(state, Effects::default(), &now);
        seq
    }

    /// Sends a call that has no other before it. An event that comes meanwhile has its target: the driver. So nothing
    /// is received here: the answer cannot be there yet, and the task that polls the call looks for it. Returns
    /// whether nothing else has to be done.
    fn send_first(self: &Arc<Self>, state: &mut State, now: &Now) -> bool {
        let Some((session, link)) = state.linked() else { return false };
        self.send(session, link, now);
        session.begin_run(now);
        let is_waiting = session.connection().is_some_and(|it| !it.waits_for_arrived());
        if !is_waiting || session.has_events() {
            return false;
        }
        self.set_timer(state);
        true
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

    /// As [`poll`](Self::poll), without spinning.
    pub(crate) fn poll_once(
        self: &Arc<Self>,
        seq: Seq,
        waker: &Waker,
    ) -> Poll<(MethodName, Outcome)> {
        let now = now();
        let mut state = self.lock();
        let mut effects = Effects::default();
        let mut taken = state.session.take(seq);
        if taken.is_none() {
            state.session.set_waker(seq, waker);
            state.polled = Some(seq);
            self.advance(&mut state, &mut effects, &now);
            state.polled = None;
            taken = state.session.take(seq);
        }
        self.finish_poll(state, effects, taken.is_some());
        taken.map_or(Poll::Pending, Poll::Ready)
    }

    /// Has a task woken once the call has ended, without a poll.
    pub(crate) fn set_waker(&self, seq: Seq, waker: &Waker) {
        let mut state = self.lock();
        if state.session.is_done(seq) {
            drop(state);
            return waker.wake_by_ref();
        }
        state.session.set_waker(seq, waker);
        if let Some((session, link)) = state.linked() {
            let (task, more) = session.next_waker();
            link.notifier.set_task(task, more || task.is_none());
        }
    }

    /// Polls the next item of a call, or the outcome behind the last one.
    pub(crate) fn poll_item(self: &Arc<Self>, seq: Seq, waker: &Waker) -> Poll<Polled> {
        let now = now();
        let mut state = self.lock();
        let mut effects = Effects::default();
        let mut polled = Polled::take(&mut state.session, seq);
        if polled.is_none() {
            state.session.set_waker(seq, waker);
            state.polled = Some(seq);
            self.advance(&mut state, &mut effects, &now);
            state.polled = None;
            polled = Polled::take(&mut state.session, seq);
            // The session has taken the waker for an item that this task gets now.
            if polled.is_none() {
                state.session.set_waker(seq, waker);
            }
        }
        if state.session.has_to_send() {
            self.advance(&mut state, &mut effects, &now);
        }
        self.finish_poll(state, effects, polled.is_some());
        polled.map_or(Poll::Pending, Poll::Ready)
    }

    fn finish_poll(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        mut effects: Effects,
        is_ready: bool,
    ) {
        self.finish_if_done(&mut state, &mut effects);
        let is_flooding = !is_ready && state.session.is_flooding();
        drop(state);
        self.core.apply(effects);
        if is_flooding {
            // This task is polled again at once. Without the pause it could keep the lock from the
            // driver, which enforces the deadline.
            std::thread::sleep(LOCK_PAUSE);
        }
    }

    /// Starts a spin for the answer of a call, if the call runs and the policy allows it.
    fn start_spin(&self, seq: Seq) -> Option<SpinGuard> {
        let spin_guard = {
            let mut state = self.lock();
            let (session, link) = state.linked()?;
            if !session.is_running(seq) {
                return None;
            }
            link.start_spin(session.connection_mut()?)?
        };
        // Answers of other workers must not wait for this one.
        let (busy, cores) = (self.core.pool().counts().busy, self.core.config.cores);
        Some(if busy > 1 { spin_guard.shared(busy, cores) } else { spin_guard })
    }

    /// Spins until the answer comes or the spin is over. The state is unlocked between polls.
    fn spin(&self, seq: Seq, spin_guard: &mut SpinGuard) {
        loop {
            let mut state = self.lock();
            let Some((session, link)) = state.linked() else { return };
            if !session.is_running(seq) {
                return;
            }
            let Some(connection) = session.connection_mut() else { return };
            if link.try_receive(connection, spin_guard) {
                return link.finish_spin(spin_guard, true);
            }
            drop(state);
            if spin_guard.is_shared() || !spin_guard.pause() {
                break;
            }
        }
        if let Some((session, link)) = self.lock().linked()
            && session.is_running(seq)
        {
            link.finish_spin(spin_guard, false);
        }
    }

    /// Allocates memory that is shared with the worker, if there is any.
    pub(crate) fn alloc_shared(&self, length: usize) -> Option<ShmBufferMut> {
        self.lock().session.alloc_shared(length)
    }

    /// Replaces the borrowed arguments of a call by copies, unless they are in memory that is shared with the worker.
    pub(crate) fn own_arguments(&self, seq: Seq, copy: &mut dyn FnMut(&[u8]) -> Bytes) {
        self.lock().session.own_arguments(seq, copy);
    }

    /// Where reports of the progress of a call go. `None` if there will be none.
    pub(crate) fn progress_cell(&self, seq: Seq) -> Option<Arc<ProgressCell>> {
        self.lock().session.progress_cell(seq)
    }

    /// Handles what has arrived.
    pub(crate) fn receive_arrived(self: &Arc<Self>) {
        self.update(|_, _| {});
    }

    /// The caller has dropped the call.
    pub(crate) fn abandon(self: &Arc<Self>, seq: Seq) {
        self.update(|state, _| {
            if let Some((session, link)) = state.linked()
                && session.is_running(seq)
            {
                link.clear_spinning();
            }
            state.session.abandon(seq);
        });
    }

    /// The user has dropped the checkout.
    pub(crate) fn close(self: &Arc<Self>) {
        self.update(|state, _| state.session.close());
    }

    /// Sends and receives as much as possible without waiting.
    fn advance(self: &Arc<Self>, state: &mut State, effects: &mut Effects, now: &Now) {
        state.driver_notified = false;
        state.is_idle = false;
        state.session.begin_turn();
        loop {
            self.carry_out(state, effects);
            let Some((session, link)) = state.linked() else { return };
            // Before anything is sent or received: an event that comes at once must find its target. The
            // task that waits for the first call is woken by its answer. The driver must handle all other
            // calls, and the first one if no task waits. It must also notice a death while no call runs.
            let (task, more) = session.next_waker();
            link.notifier.set_task(task, more || task.is_none());
            if session.has_to_send() {
                self.send(session, link, now);
            }
            if self.receive(session, link, now).is_pending() {
                let is_idle = session.head().is_none();
                state.is_idle = is_idle;
                return;
            }
        }
    }

    /// Receives until something has changed. Pending if nothing can happen now.
    fn receive(&self, session: &mut Session, link: &mut Link, now: &Now) -> Poll<()> {
        loop {
            let Some(connection) = session.connection_mut() else { return Poll::Ready(()) };
            if link.poll_turn(connection).is_pending() {
                return match session.handle_turn_over() {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                };
            }
            match session.process(now) {
                Step::Changed => return Poll::Ready(()),
                Step::Answer(outcome) => {
                    let failed = matches!(outcome, Outcome::Error { .. });
                    if let Some(head) = session.head() {
                        let (method, sent) = (head.method.as_deref(), &head.sent);
                        self.core.counters.count_answer(method, sent, failed);
                    }
                    let connection = session.connection();
                    link.record_answer(connection.is_some_and(|it| it.calls_unanswered() > 0));
                    session.handle_answer(outcome);
                    return Poll::Ready(());
                }
                Step::Wait => return Poll::Pending,
                Step::Input => {
                    let Some(connection) = session.connection_mut() else { continue };
                    if ready!(link.poll_receive(connection)) == Received::End {
                        session.note_server_end(self.core.config.recent_end());
                    }
                }
            }
        }
    }

    /// Sends as much as possible without waiting.
    fn send(&self, session: &mut Session, link: &mut Link, now: &Now) {
        if session.start_first_call()
            && let Some(waiting) = self.core.take_queue_report()
        {
            session.put_queue_length(waiting);
        }
        let mut is_first = true;
        while let Some(transmit) = session.poll_transmit(now) {
            let completes_call = if let Transmit::Ring = transmit {
                if link.poll_ring_turn().is_pending() {
                    return;
                }
                session.put_in_ring()
            } else {
                if is_first && let Transmit::Socket { call: None, .. } = transmit {
                    link.prepare_call(now.get());
                    is_first = false;
                }
                match link.poll_write(&transmit) {
                    Poll::Ready(Ok(sent)) => session.handle_sent(sent),
                    Poll::Ready(Err(error)) => {
                        session.note_server_end(self.core.config.recent_end());
                        session.handle_write_error(error);
                        return;
                    }
                    Poll::Pending => {
                        session.handle_blocked();
                        return;
                    }
                }
            };
            if completes_call {
                link.record_sent();
            }
        }
    }

    /// Carries out what the session reports.
    fn carry_out(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        if state.session.has_events() {
            self.carry_out_events(state, effects);
        }
    }

    fn carry_out_events(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        while let Some(event) = state.session.poll_event() {
            match event {
                Event::Wake(seq, _) if state.polled == Some(seq) => {}
                Event::Wake(_, waker) => effects.wakers.push(waker),
                Event::Replay(replay) => effects.rare().replays.push(replay),
                Event::Progress(cell) => effects.rare().progress.push(cell),
                Event::DropLog(log) => effects.rare().logs.push(log),
                Event::Established(limits, took) => self.core.record_handshake(limits, took),
                Event::WorkerLost(cause) => self.core.counters.count_death(cause),
                Event::Returned(proto, how) => {
                    let Place::Worker(lease) = std::mem::replace(&mut state.place, Place::None)
                    else {
                        unreachable!("a session returns the connection that it was given");
                    };
                    let lease = lease.map(|link| Connection { proto, link });
                    effects.pool_commands.push(match how {
                        Return::Release => PoolCommand::Release(lease),
                        Return::Lose(loss) => PoolCommand::Lose(lease, loss),
                        Return::Close => PoolCommand::Close(lease),
                        Return::FailHandshake(reason) => PoolCommand::FailHandshake(lease, reason),
                    });
                }
                // Another worker would come too late.
                Event::NeedsWorker if state.session.end_if_late(&now()) => {}
                Event::NeedsWorker => {
                    // The pool still counts the lost worker as held, so it cannot return the same one.
                    let taken = self.core.pool().check_out_again(self.clone(), time::now());
                    match taken {
                        Ok((_, lease)) => self.attach_worker(state, lease),
                        Err(place) => self.enter_queue(state, place),
                    }
                }
                Event::LeavesQueue => {
                    if let Place::Queue(place) = std::mem::replace(&mut state.place, Place::None) {
                        drop(self.core.pool().leave_queue(place));
                    }
                }
                Event::WaitTimedOut { after } => {
                    state.session.end(self.wait_timeout_error(after), Loss::Used);
                }
            }
        }
    }

    /// Assigns a worker to the session. The caller must advance the session afterwards, because earlier
    /// events on the connection have woken no task.
    fn attach_worker(self: &Arc<Self>, state: &mut State, lease: Lease<Connection>) {
        let (lease, proto) = lease.split(|connection| (connection.link, connection.proto));
        lease.connection.notifier.set_session(self.as_driven());
        state.place = Place::Worker(lease);
        state.session.assign(proto);
    }

    /// Records the place in the queue, or fails if no worker will ever come. The flag is read after
    /// the place is taken. So either this sees the flag, or the thread that sets it sees the place.
    fn enter_queue(&self, state: &mut State, place: QueuePlace) {
        state.place = Place::Queue(place);
        state.session.enter_queue();
        // The driver is woken only if it may connect a worker: most checkouts wait for one that others hold.
        if self.core.pool().needs_worker() {
            self.core.driver_queue.wake();
        }
        if let Some(cause) = self.core.unavailable() {
            state.session.end(cause, Loss::Used);
        }
    }

    /// The error of a call whose time was over before a worker had it.
    fn wait_timeout_error(&self, after: Duration) -> FatalError {
        match self.core.pool().unreachable() {
            Some(unreachable) => FatalError::CannotConnect {
                address: self.core.config.addresses(),
                reason: unreachable.reason.clone(),
                unreachable_for: time::now().saturating_duration_since(unreachable.since),
                after,
            },
            None => FatalError::TimedOut {
                after,
                limit: TimeoutOption::Timeout,
                stage: Stage::Waiting,
                hung: None,
            },
        }
    }

    /// Sets the timer to the time that the session wants. A timer that is earlier stays, because most calls end long
    /// before their deadlines.
    fn set_timer(self: &Arc<Self>, state: &mut State) {
        match (state.session.poll_timeout(), &state.timer) {
            (Some(due), Some((at, _))) if *at <= due => {}
            (None, None) => {}
            (due, _) => {
                if let Some((_, timer)) = state.timer.take() {
                    self.core.clear_timer(timer);
                }
                state.timer = due.map(|due| (due, self.core.set_timer(due, self.as_driven())));
            }
        }
    }

    fn as_driven(self: &Arc<Self>) -> Weak<dyn Driven> {
        Arc::downgrade(self) as Weak<dyn Driven>
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes the state, advances the session, and applies the effects.
    pub(super) fn update(self: &Arc<Self>, change: impl FnOnce(&mut State, &mut Effects)) {
        let mut state = self.lock();
        let mut effects = Effects::default();
        change(&mut state, &mut effects);
        self.advance_and_apply(state, effects, &now());
    }

    fn advance_and_apply(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        mut effects: Effects,
        now: &Now,
    ) {
        self.advance(&mut state, &mut effects, now);
        self.finish_if_done(&mut state, &mut effects);
        drop(state);
        self.core.apply(effects);
    }

    fn finish_if_done(self: &Arc<Self>, state: &mut State, effects: &mut Effects) {
        state.session.finish_if_done();
        self.carry_out(state, effects);
        self.set_timer(state);
    }
}

impl Waiter for SharedSession {
    fn assign(self: Arc<Self>, lease: Lease<Connection>) -> Result<Effects, Lease<Connection>> {
        let now = now();
        let mut state = self.lock();
        if !state.session.is_waiting() {
            return Err(lease);
        }
        let mut effects = Effects::default();
        state.place = Place::None;
        if state.session.end_if_late(&now) {
            // Another one may have the worker.
            self.carry_out(&mut state, &mut effects);
            self.finish_if_done(&mut state, &mut effects);
            effects.pool_commands.push(PoolCommand::Decline(lease));
            return Ok(effects);
        }
        if let Some(asked) = state.waiting_since.take() {
            self.core.counters.count_checkout(now.get().saturating_duration_since(asked));
        }
        self.attach_worker(&mut state, lease);
        self.advance(&mut state, &mut effects, &now);
        self.finish_if_done(&mut state, &mut effects);
        Ok(effects)
    }

    fn fail(self: Arc<Self>, cause: FatalError) {
        self.update(|state, _| state.session.end(cause, Loss::Used));
    }
}

impl Driven for SharedSession {
    fn connection_event(self: Arc<Self>) {
        self.update(|_, _| {});
    }

    fn timer_expired(self: Arc<Self>, now: Instant) {
        let now = Now::from(now);
        self.update(|state, effects| {
            state.timer = None;
            // What has arrived in time counts.
            self.advance(state, effects, &now);
            state.session.handle_timeout(&now);
        });
    }

    fn look(self: Arc<Self>, checks_socket: bool) -> Look {
        let mut state = self.lock();
        let Some((session, link)) = state.linked() else { return Look::Idle };
        let is_idle = session.head().is_none();
        let Some(connection) = session.connection_mut() else { return Look::Idle };
        if is_idle || !connection.is_established() {
            return Look::Idle;
        }
        if !link.look(connection, checks_socket) {
            return Look::Waiting;
        }
        self.advance_and_apply(state, Effects::default(), &now());
        Look::Found
    }
}

fn now() -> Now {
    Now::read_by(time::now)
}
