//! A model of the kernel and of workers, with what must always hold.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::*;
use crate::server::proc_status::SignalAction;
use crate::worker::scoreboard::{Corruption, Phase, Retirement, SlotView, StopRequest};

/// How long a worker may take to leave without anything left to do, at least.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A kill waits no longer than this for the stack.
const STACK_TIMEOUT: Duration = Duration::from_millis(600);

#[derive(Debug, Clone)]
pub(super) enum Step {
    /// A client of the program with this number.
    Connect(u32),
    /// A connection without a complete first message, which may be silent for ever.
    Open(bool),
    SendByte(usize),
    CloseHandshake(usize),
    /// A worker enters one of the phases that may follow.
    Work {
        worker: usize,
        choice: u8,
    },
    /// A worker begins a call with this timeout in milliseconds, if it can.
    Call {
        worker: usize,
        limit: u64,
    },
    Exit(usize),
    CloseClient(usize),
    LeaveQueue(usize),
    Corrupt(usize),
    Dismiss(usize),
    FailForks(bool),
    /// Workers go on between an observation and the compare-and-swap.
    Race(bool),
    /// Workers that should leave do not.
    IgnoreOrders(bool),
    SetAlarmAction(u8),
    FailAccept,
    Restart,
    EndSuccessor(bool),
    EndTurn {
        had_events: bool,
    },
    Wait(u64),
}

#[derive(Debug)]
struct SimulatedWorker {
    slot: Observation,
    is_spare: bool,
    stopped: Option<StopRequest>,
    is_killed: bool,
    is_client_gone: Option<Duration>,
    is_retiring: Option<Duration>,
    is_evicted: bool,
    /// The last call that was interrupted at its deadline.
    interrupted: u64,
    /// When and in what state it was asked for its stack.
    asked: Option<(Duration, SlotView)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Arriving,
    Queued,
    Served,
    Refused,
    Gone,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) supervisor: Supervisor,
    pub(super) now: Duration,
    config: Config,
    workers: BTreeMap<u64, SimulatedWorker>,
    clients: BTreeMap<ClientKey, Client>,
    /// The connections without a complete first message, and since when their time counts.
    handshakes: BTreeMap<ConnectionKey, Option<Duration>>,
    opened: u64,
    /// The connections that ended before their first message was complete.
    pub(super) ended: Vec<ConnectionKey>,
    /// The clients that have got a worker, in that order.
    pub(super) served: Vec<ClientKey>,
    pub(super) refused: Vec<ClientKey>,
    /// How many workers were asked to make room.
    pub(super) evicted: usize,
    /// How many of them have exited, without a client that was served out of turn since.
    vacated: usize,
    forks_fail: bool,
    is_racing: bool,
    orders_are_ignored: bool,
    alarm_action: Option<SignalAction>,
    is_paused: Option<Duration>,
    is_draining: Option<Duration>,
    is_killing: bool,
    is_closed: bool,
    has_successor: bool,
    /// A worker has woken the server since it read the slots, or has corrupted its own.
    is_woken: bool,
}

impl World {
    pub(super) fn new(config: Config) -> Self {
        Self {
            supervisor: Supervisor::new(config),
            now: Duration::from_secs(1000),
            config,
            workers: BTreeMap::new(),
            clients: BTreeMap::new(),
            handshakes: BTreeMap::new(),
            opened: 0,
            ended: Vec::new(),
            served: Vec::new(),
            refused: Vec::new(),
            evicted: 0,
            vacated: 0,
            forks_fail: false,
            is_racing: false,
            orders_are_ignored: false,
            alarm_action: Some(SignalAction::Handled),
            is_paused: None,
            is_draining: None,
            is_killing: false,
            is_closed: false,
            has_successor: false,
            is_woken: false,
        }
    }

    pub(super) fn is_killed(&self, worker: u64) -> bool {
        self.workers[&worker].is_killed
    }

    /// The place of the worker that was evicted.
    pub(super) fn retired(&self) -> Option<usize> {
        self.workers.values().position(|worker| worker.is_evicted)
    }

    fn nth(&self, place: usize) -> Option<u64> {
        self.workers.keys().nth(place.checked_rem(self.workers.len())?).copied()
    }

    fn handshake(&self, place: usize) -> Option<ConnectionKey> {
        self.handshakes.keys().nth(place.checked_rem(self.handshakes.len())?).copied()
    }

    pub(super) fn run(&mut self, step: Step) {
        match step {
            Step::Connect(program) => self.connect(program),
            Step::Open(_) if self.is_closed => {}
            Step::Open(may_be_silent) => {
                self.opened += 1;
                let key = ConnectionKey(self.opened);
                self.handshakes.insert(key, (!may_be_silent).then_some(self.now));
                self.supervisor.handle_connection(key, may_be_silent, self.now);
            }
            Step::SendByte(place) => {
                if let Some(key) = self.handshake(place) {
                    self.supervisor.handle_handshake_bytes(key, self.now);
                    let since = self.handshakes.get_mut(&key).unwrap();
                    since.get_or_insert(self.now);
                }
            }
            Step::CloseHandshake(place) => {
                if let Some(key) = self.handshake(place) {
                    let since = self.handshakes.remove(&key).flatten();
                    let timeout = self.config.handshake_timeout;
                    let deadline = since.zip(timeout).map(|(since, timeout)| since + timeout);
                    assert_eq!(self.supervisor.handle_handshake_end(key), deadline);
                }
            }
            Step::Work { worker, choice } => {
                if let Some(worker) = self.nth(worker) {
                    self.work(worker, choice);
                }
            }
            Step::Call { worker, limit } => {
                if let Some(worker) = self.nth(worker) {
                    self.call(worker, limit);
                }
            }
            Step::Exit(worker) => {
                if let Some(worker) = self.nth(worker) {
                    self.exit(worker);
                }
            }
            Step::CloseClient(worker) => {
                if let Some(worker) = self.nth(worker) {
                    self.close_client(worker);
                }
            }
            Step::LeaveQueue(place) => self.leave_queue(place),
            Step::Corrupt(worker) => {
                if let Some(worker) = self.nth(worker)
                    && let Some(state) = self.workers.get_mut(&worker)
                {
                    state.slot.corruption = Some(Corruption::Future);
                    self.is_woken = true;
                }
            }
            Step::Dismiss(worker) => {
                if let Some(worker) = self.nth(worker) {
                    self.supervisor.handle_dismissal(worker, self.now);
                }
            }
            Step::FailForks(fail) => self.forks_fail = fail,
            Step::Race(is_racing) => self.is_racing = is_racing,
            Step::IgnoreOrders(are_ignored) => self.orders_are_ignored = are_ignored,
            Step::SetAlarmAction(choice) => {
                let actions = [SignalAction::Handled, SignalAction::Blocked, SignalAction::Other];
                self.alarm_action = actions.get(usize::from(choice % 4)).copied();
            }
            Step::FailAccept if self.supervisor.is_serving() => {
                self.supervisor.handle_accept_failed(self.now);
                self.is_paused = Some(self.now);
            }
            Step::FailAccept => {}
            Step::Restart => self.supervisor.handle_restart_request(),
            Step::EndSuccessor(is_ready) if self.has_successor => {
                self.has_successor = false;
                match is_ready {
                    true => self.supervisor.handle_successor_ready(self.now),
                    false => self.supervisor.handle_successor_failed(),
                }
            }
            Step::EndSuccessor(_) => {}
            Step::EndTurn { had_events } => self.end_turn(had_events),
            Step::Wait(milliseconds) => self.wait(Duration::from_millis(milliseconds)),
        }
        self.drain();
    }

    /// Ends everything. Workers that ignore orders are killed.
    pub(super) fn shut_down(&mut self) {
        self.supervisor.handle_end_request(false, self.now);
        self.drain();
        assert!(self.is_closed, "the connections are closed");
        assert!(!self.clients.values().any(|it| matches!(it, Client::Arriving | Client::Queued)));
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            if matches!(self.workers[&worker].slot.view.phase, Phase::Retired) {
                self.exit(worker);
            }
        }
        self.wait(self.config.shutdown_grace.unwrap_or_default());
        if self.config.shutdown_grace.is_none() {
            self.supervisor.handle_end_request(true, self.now);
            self.drain();
        }
        assert!(self.workers.values().all(|worker| worker.is_killed), "{:?}", self.workers);
        for worker in self.workers.keys().copied().collect::<Vec<_>>() {
            self.exit(worker);
        }
        assert!(self.supervisor.is_finished());
        self.observe_all();
        self.supervisor.handle_timeout(self.now);
        assert_eq!(self.supervisor.poll_timeout(self.now), None, "no timer is left");
        assert_eq!((self.supervisor.poll_action(), self.supervisor.waiting()), (None, 0));
    }

    fn connect(&mut self, program: u32) {
        if self.is_closed {
            return;
        }
        let key = ClientKey(self.clients.len() as u64 + 1);
        self.clients.insert(key, Client::Arriving);
        let before = self.supervisor.waiting();
        self.supervisor.handle_client(key, ClientId::new(PeerId::Process(program), 1));
        self.drain();
        assert_ne!(self.clients[&key], Client::Arriving, "a client is never left alone");
        if before > 0 {
            assert_ne!(self.clients[&key], Client::Served, "others have waited longer");
        }
    }

    /// Moves a worker to a phase that may follow.
    fn work(&mut self, worker: u64, choice: u8) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if state.stopped.is_some() || state.is_killed {
            return;
        }
        let view = &mut state.slot.view;
        let follow: &[Phase] = match view.phase {
            Phase::Handshake if state.is_spare => &[Phase::Spare],
            Phase::Handshake => &[Phase::Setup, Phase::Idle],
            Phase::Setup => &[Phase::Idle],
            Phase::Busy => {
                &[Phase::Answering, Phase::AnsweringLong, Phase::Held, Phase::SendingItem]
            }
            Phase::Answering => &[Phase::Held],
            Phase::AnsweringLong => &[Phase::Held],
            // A call that streams goes on after a long item.
            Phase::SendingItem => &[Phase::Busy],
            Phase::Held => &[Phase::CheckoutDone, Phase::Idle],
            Phase::CheckoutDone => &[Phase::Idle],
            _ => &[],
        };
        let Some(&phase) = follow.get(usize::from(choice).checked_rem(follow.len()).unwrap_or(0))
        else {
            return;
        };
        let is_resumed = view.phase == Phase::SendingItem;
        view.phase = phase;
        if !is_resumed && phase != Phase::SendingItem {
            view.since = self.now;
        }
        let leaves =
            state.is_client_gone.is_some() || phase == Phase::Idle && state.is_retiring.is_some();
        if leaves && !self.orders_are_ignored {
            view.phase = Phase::Retired;
        } else if is_resumed {
            // The worker wakes the server if its deadline is earlier than the server's next look, or has passed.
            self.is_woken = true;
            self.run_timers();
        }
    }

    fn call(&mut self, worker: u64, limit: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let view = &mut state.slot.view;
        let is_free =
            matches!(view.phase, Phase::Handshake | Phase::Idle | Phase::Held) && !state.is_spare;
        if !is_free || state.stopped.is_some() || state.is_killed {
            return;
        }
        *view = SlotView { phase: Phase::Busy, calls: view.calls + 1, since: self.now };
        let deadline = self.now + Duration::from_millis(limit);
        state.slot.deadline = Some(deadline);
        state.slot.hard_deadline = Some(deadline + Duration::from_millis(limit));
        // The worker wakes the server if that is earlier than the server's next look.
        self.is_woken = true;
        self.run_timers();
    }

    fn exit(&mut self, worker: u64) {
        let Some(state) = self.workers.remove(&worker) else { return };
        let view = state.slot.view;
        let exit = self.supervisor.handle_exit(worker, view, self.now);
        assert_eq!(exit.role == Role::Spare, state.is_spare);
        if let Some(judged) = exit.kill.and_then(|reason| reason.view) {
            let is_stopped = state.stopped == Some(StopRequest::Kill);
            assert!(is_stopped || judged == view, "worker {worker} has gone on from {judged:?}");
        }
        match exit.kill.map(|reason| reason.cause) {
            Some(KillCause::Corrupt(_)) => assert!(state.slot.corruption.is_some()),
            Some(KillCause::GraceOver | KillCause::AtOnce) => assert!(self.is_killing),
            Some(KillCause::ClientGone) => assert!(state.is_client_gone.is_some()),
            Some(KillCause::Unwatchable) => panic!("all workers are watched"),
            _ => {}
        }
        assert_eq!(exit.leaving != Leaving::Staying, {
            state.is_client_gone.is_some() || state.is_retiring.is_some()
        });
        self.vacated += usize::from(state.is_evicted);
        if state.is_spare && exit.leaving == Leaving::Staying {
            self.supervisor.handle_spare_failed(exit.age, self.now);
        }
    }

    fn close_client(&mut self, worker: u64) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if state.is_spare || state.is_client_gone.is_some() {
            return;
        }
        state.is_client_gone = Some(self.now);
        let observed = state.slot;
        self.supervisor.handle_client_gone(worker, &observed, self.now);
    }

    fn queued(&self) -> Vec<ClientKey> {
        let queued = self.clients.iter().filter(|(_, client)| **client == Client::Queued);
        queued.map(|(key, _)| *key).collect()
    }

    fn leave_queue(&mut self, place: usize) {
        let queued = self.queued();
        let Some(place) = place.checked_rem(queued.len()) else { return };
        self.clients.insert(queued[place], Client::Gone);
        self.supervisor.handle_queued_client_gone(queued[place]);
    }

    fn end_turn(&mut self, had_events: bool) {
        self.run_timers();
        self.supervisor.end_turn(had_events, self.now);
        self.drain();
        let is_free = self.workers.len() < self.config.max_workers;
        if is_free && self.supervisor.is_serving() {
            assert_eq!(self.queued(), [], "a place is free");
        }
        assert_eq!(self.queued().len(), self.supervisor.waiting());
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        let mut wakes = 0;
        loop {
            self.run_timers();
            self.check_time(self.now + Duration::from_nanos(1));
            if self.now == until {
                return;
            }
            let left = self.supervisor.poll_timeout(self.now).unwrap_or(time);
            // A spare worker that is due waits for the end of the turn.
            if left.is_zero() {
                self.end_turn(false);
                wakes += 1;
                assert!(wakes < 1000, "it would spin");
            }
            self.now = until.min(self.now + left);
            self.check_time(self.now);
        }
    }

    /// Observes the workers as the server does: all only if that is due.
    fn observe(&mut self) {
        if self.is_woken || self.supervisor.are_slots_due(self.now) {
            self.observe_all();
        } else {
            self.observe_changed();
        }
    }

    fn observe_changed(&mut self) -> bool {
        let mut any = false;
        while let Some(worker) = self.supervisor.poll_changed() {
            any = true;
            if let Some(state) = self.workers.get(&worker) {
                let slot = &state.slot;
                self.supervisor.handle_changed(worker, slot, Duration::ZERO, self.now);
            }
        }
        any
    }

    fn observe_all(&mut self) {
        self.is_woken = false;
        let slots = self.workers.iter().map(|(worker, state)| (*worker, state.slot));
        self.supervisor.handle_slots(slots, Duration::ZERO, self.now);
    }

    fn run_timers(&mut self) {
        self.observe();
        self.supervisor.handle_timeout(self.now);
        self.drain();
        while self.observe_changed() {
            self.drain();
        }
    }

    /// What is due before this time has been done.
    fn check_time(&self, end: Duration) {
        for (number, state) in self.workers.iter().filter(|(_, state)| !state.is_killed) {
            let (view, slot) = (state.slot.view, &state.slot);
            let is_stopped = state.stopped.is_some();
            assert_eq!(slot.corruption, None, "worker {number} is corrupt");
            if view.phase == Phase::Busy && !is_stopped && slot.deadline.is_some_and(|it| it < end)
            {
                assert_eq!(state.interrupted, view.calls, "worker {number} is late");
            }
            let hung = self.config.hung_worker_timeout.map(|timeout| view.since + timeout);
            let late = slot.hard_deadline.filter(|_| view.phase.is_running());
            let due = hung.into_iter().chain(late).min();
            if view.phase.can_hang() && !is_stopped && due.is_some_and(|due| due < end) {
                let asked = state.asked.filter(|(_, asked)| !view.has_gone_on_since(*asked));
                let (at, _) = asked.expect("it was asked for its stack");
                assert!(end <= at + STACK_TIMEOUT, "worker {number} hangs");
            }
            let is_unaware = !matches!(view.phase, Phase::CheckoutDone | Phase::Retired);
            let at = state.is_client_gone.filter(|_| is_unaware && !is_stopped);
            let due = at.map(|at| at.max(view.since) + LEAVE_TIMEOUT);
            assert!(due.is_none_or(|due| end <= due), "worker {number} does not notice the end");
            let last = self.config.hung_worker_timeout.unwrap_or(Duration::from_secs(300));
            let last = last.max(Duration::from_secs(30)) + Duration::from_secs(30);
            assert!(state.is_client_gone.is_none_or(|at| end <= at + last), "it does not leave");
        }
        let timeout = self.config.handshake_timeout.unwrap_or(Duration::MAX / 2);
        for since in self.handshakes.values().flatten() {
            assert!(end <= since.saturating_add(timeout), "a handshake is late");
        }
        assert!(self.is_paused.is_none_or(|at| end <= at + ACCEPT_PAUSE), "the pause is over");
        let grace = self.config.shutdown_grace;
        let is_over = self.is_draining.zip(grace).is_some_and(|(at, grace)| at + grace < end);
        let is_done = self.is_killing || self.workers.is_empty();
        assert!(is_done || !is_over, "the grace is over");
    }

    /// Carries out all actions.
    pub(super) fn drain(&mut self) {
        let mut count = 0;
        while let Some(action) = self.supervisor.poll_action() {
            self.carry_out(action);
            count += 1;
            let handshakes = self.handshakes.len();
            assert!(handshakes <= self.config.max_handshakes, "too many silent connections");
            assert!(count < 10_000, "there is always another action");
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Fork { worker, purpose } => self.fork(worker, purpose),
            Action::Assign { client, worker, may_be_in_setup } => {
                let state = self.workers.get_mut(&worker).filter(|state| !state.is_killed);
                let is_fit =
                    |phase| phase == Phase::Spare || phase == Phase::Handshake && may_be_in_setup;
                match state.filter(|state| is_fit(state.slot.view.phase)) {
                    Some(state) => {
                        assert!(state.is_spare, "it has a client");
                        state.is_spare = false;
                        state.slot.view.phase = Phase::Handshake;
                        self.supervisor.handle_assigned(worker, now);
                        self.serve(client);
                    }
                    None => self.supervisor.handle_assign_failed(worker),
                }
            }
            Action::Enqueue { client } => {
                assert_eq!(self.clients.insert(client, Client::Queued), Some(Client::Arriving));
                self.supervisor.handle_queued(client);
            }
            Action::Refuse { client } => {
                assert_eq!(self.clients.insert(client, Client::Refused), Some(Client::Arriving));
                assert!(self.queued().len() >= self.config.max_waiting);
                self.refused.push(client);
            }
            Action::EndHandshake { connection, why } => {
                let oldest = self.handshakes.keys().next().copied();
                let is_full = self.handshakes.len() > self.config.max_handshakes;
                let since = self.handshakes.remove(&connection).expect("it is there");
                let timeout = self.config.handshake_timeout;
                let due = since.zip(timeout).map(|(since, timeout)| since + timeout);
                match why {
                    HandshakeFailure::TooMany => assert!(is_full && oldest == Some(connection)),
                    HandshakeFailure::Late => assert!(due.is_some_and(|due| due <= now)),
                }
                self.ended.push(connection);
            }
            Action::Close { .. } => panic!("no client comes during a shutdown"),
            Action::ObserveForReview => {
                let slots = self.workers.iter().map(|(worker, state)| (*worker, state.slot));
                self.supervisor.handle_review(slots, now);
                self.supervisor.handle_review_end(Duration::ZERO, now);
            }
            Action::Retire { worker, why } => self.retire(worker, why),
            Action::Stop { worker, view, request } => self.stop(worker, view, request),
            Action::Kill { worker } => self.kill(worker),
            Action::Interrupt { worker, view } => {
                if let Some(state) = self.workers.get_mut(&worker) {
                    assert!(state.slot.deadline.is_some_and(|deadline| deadline <= now));
                    assert_eq!(state.slot.view, view);
                    assert_ne!(state.interrupted, view.calls, "once is enough");
                    state.interrupted = view.calls;
                }
            }
            Action::RequestStack { worker } => {
                if let Some(state) = self.workers.get_mut(&worker) {
                    let is_prompt = self.alarm_action == Some(SignalAction::Handled);
                    state.slot.has_stack = is_prompt && state.slot.view.calls % 2 == 0;
                    state.asked = Some((now, state.slot.view));
                    self.is_woken |= state.slot.has_stack;
                }
            }
            Action::InspectAlarm { worker } => {
                self.supervisor.handle_alarm_action(worker, self.alarm_action, now);
            }
            Action::PauseAccepting => self.is_paused = Some(now),
            Action::ResumeAccepting => {
                assert!(self.is_paused.is_some_and(|at| now >= at + ACCEPT_PAUSE));
                self.is_paused = None;
            }
            Action::CloseConnections => {
                assert!(!self.is_closed, "they are closed once");
                (self.is_closed, self.is_paused, self.is_draining) = (true, None, Some(now));
                self.handshakes.clear();
                for client in self.clients.values_mut().filter(|it| **it == Client::Queued) {
                    *client = Client::Gone;
                }
            }
            Action::StartSuccessor => {
                assert!(!self.has_successor, "there is one already");
                self.has_successor = true;
            }
            Action::CancelSuccessor { .. } => {
                assert!(self.has_successor);
                self.has_successor = false;
            }
            Action::ForwardRestart | Action::NotifyStopping => {}
        }
    }

    fn fork(&mut self, worker: u64, purpose: Purpose) {
        assert!(self.workers.len() < self.config.max_workers, "more than max_workers");
        assert!(self.supervisor.is_serving(), "the server shuts down");
        if self.forks_fail {
            self.supervisor.handle_fork_failed();
            match purpose {
                Purpose::Client(client) => {
                    let before = self.clients.insert(client, Client::Refused);
                    assert!(matches!(before, Some(Client::Arriving | Client::Queued)));
                }
                Purpose::Spare => {
                    self.supervisor.handle_spare_failed(Duration::ZERO, self.now);
                }
            }
            return;
        }
        let view = SlotView { phase: Phase::Handshake, calls: 0, since: self.now };
        let slot = Observation {
            view,
            corruption: None,
            deadline: None,
            hard_deadline: None,
            has_stack: false,
            checkouts: 0,
            is_json: false,
        };
        let state = SimulatedWorker {
            slot,
            is_spare: purpose == Purpose::Spare,
            stopped: None,
            is_killed: false,
            is_client_gone: None,
            is_retiring: None,
            is_evicted: false,
            interrupted: 0,
            asked: None,
        };
        assert!(self.workers.insert(worker, state).is_none(), "a number is used once");
        self.supervisor.handle_forked(worker, self.now);
        match purpose {
            Purpose::Client(client) => self.serve(client),
            Purpose::Spare => {
                let spares = self.workers.values().filter(|it| it.is_spare).count();
                let retiring = self.workers.values().filter(|it| it.is_retiring.is_some()).count();
                let killed = self.workers.values().filter(|it| it.is_killed).count();
                assert!(spares <= self.config.spare_workers + retiring + killed);
                assert_eq!(self.queued(), [], "clients wait");
            }
        }
    }

    /// A client has got a worker.
    fn serve(&mut self, client: ClientKey) {
        if self.queued().first().is_some_and(|first| *first < client) {
            assert!(self.vacated > 0, "no place was made for {client:?}");
            self.vacated -= 1;
        }
        let before = self.clients.insert(client, Client::Served);
        assert!(matches!(before, Some(Client::Arriving | Client::Queued)), "{before:?}");
        self.served.push(client);
    }

    fn retire(&mut self, worker: u64, why: Retirement) {
        let Some(state) = self.workers.get_mut(&worker) else { return };
        if why == Retirement::Fairness {
            assert!(!state.is_spare && state.is_retiring.is_none());
            state.is_evicted = true;
            self.evicted += 1;
        }
        state.is_retiring.get_or_insert(self.now);
        let observed = state.slot;
        self.supervisor.handle_retiring(worker, &observed);
    }

    fn stop(&mut self, worker: u64, view: SlotView, request: StopRequest) {
        if self.is_racing && request == StopRequest::Kill {
            self.work(worker, 0);
        }
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let has_held = state.slot.view == view && state.stopped != Some(StopRequest::Kill);
        if has_held {
            state.stopped = Some(request);
            match request {
                StopRequest::Kill => {
                    let is_futile = matches!(view.phase, Phase::Setup | Phase::Busy);
                    let is_asked =
                        state.asked.is_some_and(|(_, asked)| !view.has_gone_on_since(asked));
                    assert!(state.is_client_gone.is_some() && is_futile || is_asked, "{view:?}");
                    state.is_killed = true;
                    state.slot.view.phase = Phase::KillPending;
                }
                StopRequest::Retire => {
                    state.slot.view.phase = Phase::Retired;
                }
            }
        } else if let Some((at, asked)) = &mut state.asked
            && !state.slot.view.has_gone_on_since(*asked)
        {
            // It has sent an item just now, so the server judges it once more.
            *at = self.now;
        }
        self.supervisor.handle_stop(worker, request, has_held);
    }

    /// A kill without a look at the slot needs a reason that holds whatever the worker does.
    fn kill(&mut self, worker: u64) {
        let now = self.now;
        self.is_killing |= !self.supervisor.is_serving() && {
            let grace = self.config.shutdown_grace;
            let is_over = self.is_draining.zip(grace).is_some_and(|(at, grace)| now >= at + grace);
            is_over || self.supervisor.killed() > 0
        };
        let Some(state) = self.workers.get_mut(&worker) else { return };
        let leaving = state.is_client_gone.into_iter().chain(state.is_retiring).min();
        let has_stayed = leaving.is_some_and(|at| now >= at + LEAVE_TIMEOUT);
        let is_corrupt = state.slot.corruption.is_some();
        assert!(self.is_killing || is_corrupt || has_stayed, "worker {worker} has done nothing");
        state.is_killed = true;
    }
}
