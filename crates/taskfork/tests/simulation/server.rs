//! The server process: the real supervisor, whose actions the simulated kernel carries out.
//!
//! This stands where the event loop stands in a real server, and does the same in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::kernel::{Accepted, Child, Event, Kernel, Source};
use super::plan::ServerPlan;
use super::random::Random;
use super::record::Trouble;
use super::worker::MAX_FRAME;
use crate::client::memory::Memory;
use crate::server::supervisor::{
    Action, ClientId, ClientKey, Config, ConnectionKey, ExitFacts, PeerId, Purpose, Supervisor,
};
use crate::server::{Recycling, SignalAction};
use crate::time_limit::TimeLimit;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::first_message::{FirstMessage, Progress};
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::native;
use crate::worker::scoreboard::{Phase, Retirement, StopRequest};

/// How long a first message may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How late a worker may learn that the time of its call is over.
const DEADLINE_TOLERANCE: Duration = Duration::from_millis(1);

/// How long a new server takes until it is ready.
const START_TIME: Duration = Duration::from_millis(20);

/// The server's `shutdown_grace`.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// A connection without a worker.
struct Peer {
    accepted: Accepted,
    watch: AbortHandle,
    is_preamble_sent: bool,
    key: Option<ClientKey>,
}

/// A worker process.
struct Managed {
    child: Child,
    peer: Option<Peer>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A server process.
pub(super) struct ServerProcess {
    number: u64,
    kernel: Kernel,
    supervisor: Supervisor,
    /// By the number of the connection.
    peers: BTreeMap<u64, Peer>,
    /// The connections of clients that the supervisor knows, by their keys.
    waiting: BTreeMap<ClientKey, u64>,
    queued: Vec<ClientKey>,
    last_key: u64,
    workers: BTreeMap<u64, Managed>,
    events: UnboundedSender<Event>,
    successor_fails: bool,
    /// The process that starts to be a new server.
    successor: Option<AbortHandle>,
    /// The workers that were asked to make room, and how many of them have exited for whose places nobody came yet.
    evicted: BTreeSet<u64>,
    places_made: u64,
    random: Random,
}

impl ServerProcess {
    /// Starts a server with this number. It runs until it is told to end, or killed.
    pub(super) fn start(kernel: &Kernel, number: u64) {
        let (events, receiver) = unbounded_channel();
        kernel.listen(number, events.clone());
        let ServerPlan::Server { workers, spares, waiting, age, idle, .. } = kernel.plan.server;
        let limit = |time: u64| match time {
            0 => TimeLimit::NEVER,
            _ => TimeLimit::new(Duration::from_millis(time)),
        };
        let config = Config {
            max_workers: workers as usize,
            spare_workers: spares as usize,
            max_waiting: waiting as usize,
            max_handshakes: waiting as usize,
            handshake_timeout: Some(HANDSHAKE_TIMEOUT),
            hung_worker_timeout: None,
            shutdown_grace: Some(SHUTDOWN_GRACE),
            recycling: Recycling {
                max_age: limit(age),
                max_idle: limit(idle),
                ..Default::default()
            },
        };
        let server = Self {
            number,
            kernel: kernel.clone(),
            supervisor: Supervisor::new(config),
            peers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            queued: Vec::new(),
            last_key: 0,
            workers: BTreeMap::new(),
            events,
            successor_fails: false,
            successor: None,
            evicted: BTreeSet::new(),
            places_made: 0,
            random: Random::new(number, 2),
        };
        let task = tokio::spawn(server.run(receiver)).abort_handle();
        kernel.set_server_task(number, task);
    }

    fn now(&self) -> Duration {
        self.kernel.start.elapsed()
    }

    async fn run(mut self, mut receiver: UnboundedReceiver<Event>) {
        loop {
            let left = self.run_timers().await;
            if self.supervisor.is_finished() {
                break;
            }
            let first = match left {
                None => receiver.recv().await,
                Some(left) => timeout(left, receiver.recv()).await.unwrap_or(None),
            };
            let mut events: Vec<_> = first.into_iter().collect();
            while let Ok(event) = receiver.try_recv() {
                events.push(event);
            }
            // Exits come before connections, as in the real loop.
            events.sort_by_key(Event::rank);
            let had_events = !events.is_empty();
            self.kernel.monitor.step(|| format!("server {}: {events:?}", self.number));
            for event in events {
                self.dispatch(event).await;
                self.carry_out_all().await;
            }
            let now = self.now();
            self.supervisor.end_turn(had_events, now);
            self.carry_out_all().await;
            self.check();
        }
        self.kernel.server_finished(self.number);
    }

    /// What must hold between two turns.
    fn check(&self) {
        let (workers, limit) = (self.supervisor.workers(), self.supervisor.max_workers());
        let monitor = &self.kernel.monitor;
        if workers > limit || workers != self.workers.len() {
            monitor.complain(format!("the server has {workers} workers, and {limit} are allowed"));
        }
        let waiting = self.supervisor.waiting();
        if self.supervisor.is_serving() && workers < limit && waiting > 0 {
            monitor.complain(format!("{waiting} clients wait though a place is free"));
        }
        let is_futile = |managed: &Managed| {
            let slot = &managed.child.slot;
            slot.is_client_gone()
                && slot.view().phase == Phase::Busy
                && self.kernel.is_running(managed.child.process)
        };
        if self.workers.values().any(is_futile) {
            monitor.complain("a call goes on though its client has left");
        }
        if waiting != self.queued.len() {
            monitor.complain(format!("{waiting} clients wait instead of {}", self.queued.len()));
        }
    }

    /// Enforces what is due, and publishes when the next is.
    async fn run_timers(&mut self) -> Option<Duration> {
        loop {
            let now = self.now();
            let slots: Vec<_> = self
                .workers
                .iter()
                .map(|(&worker, managed)| (worker, managed.child.slot.observe()))
                .collect();
            self.supervisor.handle_slots(slots, Duration::ZERO, now);
            self.supervisor.handle_timeout(now);
            self.carry_out_all().await;
            let left = self.supervisor.poll_timeout(now);
            let at = left.map(|left| now.saturating_add(left));
            let promised = self.kernel.wakeup(self.number).filter(|promised| *promised > now);
            let at = promised.into_iter().chain(at).min();
            let before = self.kernel.set_wakeup(self.number, at);
            let is_later = match (before, at) {
                (Some(before), Some(at)) => at > before.saturating_add(DEADLINE_TOLERANCE),
                (Some(_), None) => true,
                (None, _) => false,
            };
            if !is_later {
                return at.map(|at| at.saturating_sub(now));
            }
        }
    }

    async fn dispatch(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Readable => self.accept().await,
            Event::Child(process) => self.reap(process),
            Event::Wake => {}
            Event::Begun(connection) => {
                self.supervisor.handle_handshake_bytes(ConnectionKey(connection), now);
            }
            Event::Greeted(connection) => {
                self.supervisor.handle_handshake_end(ConnectionKey(connection));
                self.place(connection);
            }
            Event::Invalid(connection) => {
                self.supervisor.handle_handshake_end(ConnectionKey(connection));
                if let Some(peer) = self.peers.remove(&connection) {
                    refuse(&peer, kind::REFUSED, "its first message is wrong");
                }
            }
            Event::Gone(connection) => self.handle_gone(connection),
            Event::Terminate => self.supervisor.handle_end_request(false, now),
            Event::Hangup { successor_fails } => {
                self.successor_fails = successor_fails;
                self.supervisor.handle_restart_request();
            }
            Event::SuccessorReady => self.supervisor.handle_successor_ready(now),
            Event::SuccessorFailed => self.supervisor.handle_successor_failed(),
        }
    }

    async fn accept(&mut self) {
        if !self.supervisor.is_serving() || self.supervisor.is_accept_paused() {
            return;
        }
        loop {
            match self.kernel.accept() {
                Ok(Some(accepted)) => {
                    self.admit(accepted);
                    self.carry_out_all().await;
                }
                Ok(None) => return,
                Err(()) => {
                    let now = self.now();
                    self.supervisor.handle_accept_failed(now);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, accepted: Accepted) {
        let (number, now) = (accepted.number, self.now());
        let (stream, events) = (accepted.stream.duplicate(), self.events.clone());
        let scanned = stream.examine(|bytes| FirstMessage::default().scan(bytes, MAX_FRAME));
        let is_complete = matches!(scanned, Ok(Progress::Complete(_)));
        let may_be_silent = accepted.client.is_some();
        let watch = tokio::spawn(watch(stream, number, is_complete, events)).abort_handle();
        self.peers.insert(number, Peer { accepted, watch, is_preamble_sent: false, key: None });
        match is_complete {
            true => self.place(number),
            false => {
                let key = ConnectionKey(number);
                self.supervisor.handle_connection(key, may_be_silent, now);
            }
        }
    }

    /// A first message is complete.
    fn place(&mut self, connection: u64) {
        let Some(peer) = self.peers.get_mut(&connection) else { return };
        self.last_key += 1;
        let key = ClientKey(self.last_key);
        peer.key = Some(key);
        let id = match peer.accepted.client {
            Some(client) => ClientId::new(PeerId::Process(client as u32 + 1), client as u64 + 1),
            None => ClientId::new(PeerId::Unknown, 0),
        };
        self.waiting.insert(key, connection);
        self.supervisor.handle_client(key, id);
    }

    fn handle_gone(&mut self, connection: u64) {
        let now = self.now();
        if let Some(peer) = self.peers.remove(&connection) {
            self.supervisor.handle_handshake_end(ConnectionKey(connection));
            if let Some(key) = peer.key {
                self.waiting.remove(&key);
                self.queued.retain(|queued| *queued != key);
                self.supervisor.handle_queued_client_gone(key);
            }
            return;
        }
        let is_its = |managed: &Managed| {
            managed.peer.as_ref().is_some_and(|peer| peer.accepted.number == connection)
        };
        if let Some((&worker, managed)) = self.workers.iter().find(|(_, managed)| is_its(managed)) {
            managed.child.slot.mark_client_gone();
            let observed = managed.child.slot.observe();
            self.supervisor.handle_client_gone(worker, &observed, now);
        }
    }

    async fn carry_out_all(&mut self) {
        while let Some(action) = self.supervisor.poll_action() {
            // A worker may go on between a look at its slot and what the server does about it.
            if matches!(action, Action::Stop { .. } | Action::Kill { .. }) && self.random.once_in(2)
            {
                tokio::task::yield_now().await;
            }
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now = self.now();
        self.kernel.monitor.step(|| format!("server {}: {action:?}", self.number));
        match action {
            Action::Fork { worker, purpose: Purpose::Client(client) } => self.fork(worker, client),
            Action::Fork { worker, purpose: Purpose::Spare } => self.fork_spare(worker),
            Action::Assign { client, worker, may_be_in_setup } => {
                self.assign(client, worker, may_be_in_setup);
            }
            Action::Enqueue { client } => self.enqueue(client),
            Action::Refuse { client } => {
                self.kernel.monitor.happened(Trouble::Unreachable);
                if let Some(peer) = self.take_peer(client) {
                    refuse(&peer, kind::BUSY, "all workers are in use");
                }
            }
            Action::EndHandshake { connection, .. } => {
                self.kernel.monitor.happened(Trouble::Unreachable);
                if let Some(peer) = self.peers.remove(&connection.0) {
                    refuse(&peer, kind::REFUSED, "its first message is late");
                }
            }
            Action::Close { client } => drop(self.take_peer(client)),
            Action::ObserveForReview => {
                let observe =
                    |(&worker, managed): (&u64, &Managed)| (worker, managed.child.slot.observe());
                let slots: Vec<_> = self.workers.iter().map(observe).collect();
                self.supervisor.handle_review(slots, now);
                self.supervisor.handle_review_end(Duration::ZERO, now);
            }
            Action::Retire { worker, why } => {
                if why == Retirement::Fairness {
                    self.evicted.insert(worker);
                }
                if let Some(managed) = self.workers.get(&worker) {
                    managed.child.slot.request_retirement(why);
                    let observed = managed.child.slot.observe();
                    self.supervisor.handle_retiring(worker, &observed);
                }
            }
            Action::Stop { worker, view, request } => {
                let Some(managed) = self.workers.get_mut(&worker) else { return };
                let has_held = managed.child.slot.try_stop(view, request);
                match request {
                    _ if !has_held => {}
                    StopRequest::Kill => {
                        self.kernel.kill(managed.child.process, "its time is over")
                    }
                    StopRequest::Retire => match &managed.peer {
                        Some(peer) => peer.accepted.stream.end_reading(),
                        None => managed.child.channel = None,
                    },
                }
                self.supervisor.handle_stop(worker, request, has_held);
            }
            Action::Kill { worker } => {
                if let Some(managed) = self.workers.get(&worker) {
                    self.kernel.kill(managed.child.process, "whatever it does");
                }
            }
            Action::RequestStack { worker } => {
                if let Some(managed) = self.workers.get(&worker) {
                    managed.child.slot.report_stack();
                }
            }
            Action::InspectAlarm { worker } => {
                let action = [SignalAction::Handled, SignalAction::Blocked, SignalAction::Other]
                    .get(worker as usize % 4)
                    .copied();
                self.supervisor.handle_alarm_action(worker, action, now);
            }
            Action::ResumeAccepting => {
                // It is handled like the event.
                let _ = self.events.send(Event::Readable);
            }
            Action::CloseConnections => {
                self.kernel.close_listener(self.number);
                self.peers.clear();
                self.waiting.clear();
                self.queued.clear();
            }
            Action::StartSuccessor => self.start_successor(),
            Action::CancelSuccessor { .. } => {
                self.successor.take().inspect(AbortHandle::abort);
            }
            // The programs of workers here ignore the signal.
            Action::Interrupt { .. }
            | Action::PauseAccepting
            | Action::ForwardRestart
            | Action::NotifyStopping => {}
        }
    }

    fn take_peer(&mut self, client: ClientKey) -> Option<Peer> {
        let connection = self.waiting.remove(&client)?;
        self.queued.retain(|queued| *queued != client);
        self.peers.remove(&connection)
    }

    /// First come, first served: a connection that gets a place must have waited longest. A worker that made room
    /// did so for one connection, which gets its place before others, but after those of its own client.
    fn check_turn(&mut self, client: ClientKey) {
        let owner = |key: &ClientKey| self.peers.get(self.waiting.get(key)?)?.accepted.client;
        let is_made = self.places_made > 0;
        let mut queued = self.queued.iter();
        let first = queued.find(|key| !is_made || owner(key) == owner(&client));
        if first.is_some_and(|first| *first != client) {
            self.kernel.monitor.complain("a client overtakes those that wait");
        }
        self.places_made = self.places_made.saturating_sub(1);
    }

    fn fork(&mut self, worker: u64, client: ClientKey) {
        let now = self.now();
        self.check_turn(client);
        let Some(peer) = self.take_peer(client) else {
            return self.supervisor.handle_fork_failed();
        };
        let source = Source::Accepted(peer.accepted.stream.duplicate(), peer.is_preamble_sent);
        match self.kernel.fork(self.number, source) {
            Ok(child) => {
                self.workers.insert(worker, Managed { child, peer: Some(peer) });
                self.supervisor.handle_forked(worker, now);
            }
            Err(()) => {
                self.supervisor.handle_fork_failed();
                refuse(&peer, kind::BUSY, "no worker can be forked");
            }
        }
    }

    fn fork_spare(&mut self, worker: u64) {
        let now = self.now();
        match self.kernel.fork(self.number, Source::Channel) {
            Ok(child) => {
                self.workers.insert(worker, Managed { child, peer: None });
                self.supervisor.handle_forked(worker, now);
            }
            Err(()) => {
                self.supervisor.handle_fork_failed();
                self.supervisor.handle_spare_failed(Duration::ZERO, now);
            }
        }
    }

    fn assign(&mut self, client: ClientKey, worker: u64, may_be_in_setup: bool) {
        let now = self.now();
        let is_fit = self.workers.get_mut(&worker).is_some_and(|managed| {
            may_be_in_setup || managed.child.slot.view().phase == Phase::Spare
        });
        let channel = match is_fit {
            true => self.workers.get_mut(&worker).and_then(|managed| managed.child.channel.take()),
            false => None,
        };
        // A process that has ended has closed its channel.
        let Some(channel) = channel.filter(|channel| !channel.is_closed()) else {
            return self.supervisor.handle_assign_failed(worker);
        };
        self.check_turn(client);
        let Some(peer) = self.take_peer(client) else {
            return self.supervisor.handle_assign_failed(worker);
        };
        let stream = peer.accepted.stream.duplicate();
        // It was open just now.
        let _ = channel.send((stream, peer.is_preamble_sent));
        if let Some(managed) = self.workers.get_mut(&worker) {
            managed.peer = Some(peer);
        }
        self.supervisor.handle_assigned(worker, now);
    }

    fn enqueue(&mut self, client: ClientKey) {
        self.kernel.monitor.happened(Trouble::Unreachable);
        let connection = self.waiting.get(&client).copied();
        let Some(peer) = connection.and_then(|connection| self.peers.get_mut(&connection)) else {
            return self.supervisor.handle_queued_client_gone(client);
        };
        let mut out = PREAMBLE.to_vec();
        frame::put(&mut out, |out| native::put_queued(out, "all workers are in use"));
        if peer.accepted.stream.send_at_once(&out) {
            peer.is_preamble_sent = true;
            self.queued.push(client);
            self.supervisor.handle_queued(client);
        } else {
            self.waiting.remove(&client);
            connection.and_then(|connection| self.peers.remove(&connection));
            self.supervisor.handle_queued_client_gone(client);
        }
    }

    fn reap(&mut self, process: u64) {
        let now = self.now();
        let found = self.workers.iter().find(|(_, managed)| managed.child.process == process);
        let Some(worker) = found.map(|(&worker, _)| worker) else { return };
        let Some(end) = self.kernel.reap(process) else { return };
        let Some(Managed { child, peer }) = self.workers.remove(&worker) else { return };
        self.places_made += u64::from(self.evicted.remove(&worker));
        let known = self.supervisor.handle_exit(worker, child.slot.view(), now);
        let observed = child.slot.observe();
        let facts = ExitFacts {
            pid: process as u32,
            program: None,
            end,
            is_alarm: false,
            last: observed.view,
            corruption: observed.corruption,
            deadline: observed.deadline,
            skipped: child.slot.skipped(),
            is_retired: child.slot.should_retire(),
            is_reportable: true,
            stderr: None,
        };
        let explained = known.explain(&facts, || ("exited", String::new()), now);
        if explained.spare_failure.is_some() && self.supervisor.is_serving() {
            self.supervisor.handle_spare_failed(known.age, now);
        }
        let notice = explained.notice(facts);
        if let Some(peer) = &peer {
            if let Some(notice) = notice
                && !self.kernel.lose_notice(process)
            {
                let mut out = Vec::new();
                frame::put(&mut out, |out| notice.put(out));
                peer.accepted.stream.send_at_once(&out);
            }
            peer.accepted.stream.shut_down();
        }
    }

    fn start_successor(&mut self) {
        let (kernel, events) = (self.kernel.clone(), self.events.clone());
        let fails = self.successor_fails;
        let starting = tokio::spawn(async move {
            sleep(START_TIME).await;
            // The server that started this one may have been killed meanwhile.
            let _ = match fails {
                true => events.send(Event::SuccessorFailed),
                false => {
                    if !events.is_closed() {
                        kernel.start_next_server();
                    }
                    events.send(Event::SuccessorReady)
                }
            };
        });
        self.successor = Some(starting.abort_handle());
    }
}

fn refuse(peer: &Peer, kind: &str, message: &str) {
    let mut out = if peer.is_preamble_sent { Vec::new() } else { PREAMBLE.to_vec() };
    let body = ErrorBody { kind, message, ..ErrorBody::default() };
    frame::put(&mut out, |out| native::put_error(out, None, &body));
    peer.accepted.stream.send_at_once(&out);
}

/// Tells a server of the bytes of a first message, unless that was complete at once, and of the client's end.
async fn watch(stream: Memory, number: u64, is_complete: bool, events: UnboundedSender<Event>) {
    if !is_complete {
        stream.peek(|bytes, is_ended| (is_ended || !bytes.is_empty()).then_some(())).await;
        let _ = events.send(Event::Begun(number));
        let mut message = FirstMessage::default();
        let scan = |bytes: &[u8], is_ended| match message.scan(bytes, MAX_FRAME) {
            Ok(Progress::Complete(_)) => Some(Event::Greeted(number)),
            Ok(_) if is_ended => Some(Event::Gone(number)),
            Ok(_) => None,
            Err(_) => Some(Event::Invalid(number)),
        };
        let first = stream.peek(scan).await;
        let _ = events.send(first);
        if !matches!(first, Event::Greeted(_)) {
            return;
        }
    }
    stream.peek(|_, is_ended| is_ended.then_some(())).await;
    let _ = events.send(Event::Gone(number));
}
