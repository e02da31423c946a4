//! The kernel: connections, processes and the clock. Faults of the plan happen here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::link::Options;
use super::monitor::Monitor;
use super::plan::{Fault, Plan, ServerPlan};
use super::record::Trouble;
use super::server::ServerProcess;
use super::slot::{Slot, Wakeup};
use super::worker::{Connection, Process};
use crate::client::memory::{Connect, Faults, Memory, Server, Watch};
use crate::error::End;
use crate::sync::lock;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::hello::ClientHello;
use crate::wire::native::VERSIONS;

/// How many bytes of a connection wait if nothing else is said. A unix socket holds about as many.
const CAPACITY: usize = 200_000;

/// What a server process learns.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// SIGCHLD: this process has exited.
    Child(u64),
    /// SIGTERM, and SIGHUP.
    Terminate,
    Hangup {
        successor_fails: bool,
    },
    SuccessorReady,
    SuccessorFailed,
    /// A worker has a deadline before the published time.
    Wake,
    /// The client of this connection has closed it.
    Gone(u64),
    /// The first bytes of this connection have arrived.
    Begun(u64),
    /// The first message of this connection is complete, or wrong.
    Greeted(u64),
    Invalid(u64),
    /// A connection waits in the backlog.
    Readable,
}

impl Event {
    /// The place in the order in which a server handles the events of a turn.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Gone(_) => 0,
            Self::Child(_) => 1,
            Self::Wake | Self::Terminate | Self::Hangup { .. } => 2,
            Self::SuccessorReady | Self::SuccessorFailed => 3,
            Self::Begun(_) => 4,
            Self::Greeted(_) | Self::Invalid(_) => 5,
            Self::Readable => 6,
        }
    }
}

/// A connection that a server has accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) number: u64,
    /// `None` if the connection is one of [`connect_stranger`](Kernel::connect_stranger).
    pub(super) client: Option<usize>,
    pub(super) stream: Memory,
}

/// Where a worker gets its connection.
pub(super) enum Source {
    /// It is forked with it. The flag says whether the server has sent the preamble.
    Accepted(Memory, bool),
    /// The server sends it later.
    Channel,
}

/// A process that a server has forked.
pub(super) struct Child {
    pub(super) process: u64,
    pub(super) slot: Slot,
    /// How a spare worker gets its connection.
    pub(super) channel: Option<oneshot::Sender<(Memory, bool)>>,
}

#[derive(Debug)]
struct ProcessEntry {
    task: Option<AbortHandle>,
    is_killed: bool,
    /// How it has ended. Then it is a zombie.
    end: Option<End>,
    /// Nobody but this server may reap it.
    parent: u64,
}

/// A server process.
struct ServerEntry {
    events: UnboundedSender<Event>,
    task: Option<AbortHandle>,
    is_listening: bool,
    /// When it looks at all slots next, as its workers read it.
    wakeup: Wakeup,
}

#[derive(Default)]
struct State {
    connections: u64,
    forks: u64,
    backlog: VecDeque<Accepted>,
    /// How many accepts of a connection still fail. The key is its number.
    refused_accepts: BTreeMap<u64, u64>,
    processes: BTreeMap<u64, ProcessEntry>,
    /// The connections of each client that may be open.
    open: BTreeMap<usize, Vec<Watch>>,
    servers: BTreeMap<u64, ServerEntry>,
    last_server: u64,
}

impl State {
    fn is_listening(&self) -> bool {
        self.servers.values().any(|server| server.is_listening)
    }
}

/// The kernel of one run.
#[derive(Clone)]
pub(super) struct Kernel {
    pub(super) plan: Arc<Plan>,
    pub(super) monitor: Monitor,
    pub(super) start: Instant,
    state: Arc<Mutex<State>>,
}

impl Kernel {
    pub(super) fn new(plan: Arc<Plan>, monitor: Monitor) -> Self {
        let refused_accepts = plan.faults.iter().filter_map(|fault| match *fault {
            Fault::Exhaust { connection, count } => Some((connection, count)),
            _ => None,
        });
        let state = State { refused_accepts: refused_accepts.collect(), ..State::default() };
        Self { plan, monitor, start: Instant::now(), state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The address of the server for one client, which may have this many connections.
    pub(super) fn listener(
        &self,
        client: usize,
        workers: usize,
    ) -> Arc<dyn crate::address::MemoryServer> {
        let kernel = std::panic::AssertUnwindSafe(self.clone());
        Server::shared(move |connect| {
            let kernel = &kernel;
            kernel.connect(client, workers, connect);
        })
    }

    fn connect(&self, client: usize, workers: usize, connect: Connect<'_>) {
        let mut state = self.lock();
        if !state.is_listening() {
            self.monitor.happened(Trouble::Unreachable);
            return;
        }
        let number = state.connections;
        state.connections += 1;
        let stream = connect(self.stream_faults(number));
        let open = state.open.entry(client).or_default();
        open.retain(Watch::is_open);
        open.push(stream.watch());
        if open.len() > workers {
            self.monitor.complain(format!("client {client} has {} workers", open.len()));
        }
        drop(state);
        self.monitor.step(|| format!("client {client} connects: connection {number}"));
        self.enqueue(Accepted { number, client: Some(client), stream });
    }

    /// Connects a peer that breaks the protocol. Returns its side of the connection.
    pub(super) fn connect_stranger(&self, kind: u64) -> Option<Memory> {
        let mut state = self.lock();
        if !state.is_listening() {
            return None;
        }
        let number = state.connections;
        state.connections += 1;
        drop(state);
        self.monitor.step(|| format!("a stranger connects: connection {number}"));
        let (stranger, stream) = Memory::pair(self.stream_faults(number));
        let mut hello = PREAMBLE.to_vec();
        let contents = ClientHello { versions: VERSIONS.into(), ..ClientHello::default() };
        frame::put(&mut hello, |out| contents.put(out));
        stranger.send_at_once(match kind {
            0 => &[],
            1 => b"GET / HTTP/1.1\r\n\r\n",
            2 => &hello[..hello.len() / 2],
            3 => &hello,
            _ => {
                hello.extend([0xff; 40]);
                &hello
            }
        });
        self.enqueue(Accepted { number, client: None, stream });
        Some(stranger)
    }

    fn enqueue(&self, accepted: Accepted) {
        let mut state = self.lock();
        state.backlog.push_back(accepted);
        for server in state.servers.values().filter(|server| server.is_listening) {
            // A server that is just ending does not hear it.
            let _ = server.events.send(Event::Readable);
        }
    }

    fn stream_faults(&self, number: u64) -> Faults {
        let mut faults = Faults {
            seed: number + 1,
            max_piece: CAPACITY,
            capacity: CAPACITY,
            bad_timing: false,
            delay: Duration::ZERO,
            cut_after: None,
            loses_files: false,
        };
        for fault in &self.plan.faults {
            match *fault {
                Fault::Stream { connection, piece, capacity, timing } if connection == number => {
                    faults.max_piece = piece.max(1) as usize;
                    faults.capacity = capacity.max(1) as usize;
                    faults.bad_timing = timing == 1;
                    faults.delay = Duration::from_millis(timing.saturating_sub(1));
                }
                Fault::Cut { connection, bytes } if connection == number => {
                    faults.cut_after = Some(bytes.max(1) as usize);
                    self.monitor.happened(Trouble::WorkerEnded);
                    self.monitor.happened(Trouble::Unreachable);
                }
                Fault::LoseFiles { connection } if connection == number => {
                    faults.loses_files = true;
                    self.monitor.happened(Trouble::WorkerEnded);
                }
                _ => {}
            }
        }
        faults
    }

    /// Starts the first server, or the one after the others.
    pub(super) fn start_next_server(&self) {
        let mut state = self.lock();
        state.last_server += 1;
        let number = state.last_server;
        drop(state);
        self.monitor.step(|| format!("server {number} starts"));
        ServerProcess::start(self, number);
    }

    /// Gives this server connections from now on.
    pub(super) fn listen(&self, number: u64, events: UnboundedSender<Event>) {
        // Perhaps some wait already.
        let _ = events.send(Event::Readable);
        let wakeup = Wakeup::new(events.clone());
        let entry = ServerEntry { events, task: None, is_listening: true, wakeup };
        self.lock().servers.insert(number, entry);
    }

    pub(super) fn set_server_task(&self, number: u64, task: AbortHandle) {
        if let Some(server) = self.lock().servers.get_mut(&number) {
            server.task = Some(task);
        }
    }

    pub(super) fn close_listener(&self, number: u64) {
        let mut state = self.lock();
        if let Some(server) = state.servers.get_mut(&number) {
            server.is_listening = false;
        }
        self.monitor.happened(Trouble::Unreachable);
        let unheard =
            if state.is_listening() { VecDeque::new() } else { std::mem::take(&mut state.backlog) };
        drop(state);
        drop(unheard);
    }

    /// A server has ended in order.
    pub(super) fn server_finished(&self, number: u64) {
        let left = {
            let mut state = self.lock();
            state.servers.remove(&number);
            state.processes.values().filter(|process| process.parent == number).count()
        };
        self.monitor.step(|| format!("server {number} ends"));
        if left > 0 {
            self.monitor.complain(format!("server {number} ends before {left} of its workers"));
        }
    }

    /// Sends an event to the newest server.
    pub(super) fn signal_server(&self, event: Event) {
        if let Some(server) = self.lock().servers.values().next_back() {
            let _ = server.events.send(event);
        }
    }

    /// Sends an event to all servers.
    pub(super) fn signal_all(&self, event: Event) {
        for server in self.lock().servers.values() {
            let _ = server.events.send(event);
        }
    }

    pub(super) fn has_listener(&self) -> bool {
        self.lock().is_listening()
    }

    /// The published time at which a server looks at all slots.
    pub(super) fn wakeup(&self, number: u64) -> Option<Duration> {
        self.lock().servers.get(&number).and_then(|server| server.wakeup.get())
    }

    /// Returns the time before.
    pub(super) fn set_wakeup(&self, number: u64, at: Option<Duration>) -> Option<Duration> {
        self.lock().servers.get(&number).and_then(|server| server.wakeup.set(at))
    }

    /// Accepts a connection. Fails if no descriptor is free.
    pub(super) fn accept(&self) -> Result<Option<Accepted>, ()> {
        let mut state = self.lock();
        let Some(number) = state.backlog.front().map(|first| first.number) else { return Ok(None) };
        if let Some(left) = state.refused_accepts.get_mut(&number).filter(|left| **left > 0) {
            *left -= 1;
            drop(state);
            self.monitor.happened(Trouble::Unreachable);
            self.monitor.step(|| format!("connection {number} cannot be accepted"));
            return Err(());
        }
        Ok(state.backlog.pop_front())
    }

    /// Forks a worker for a server. Fails if the plan says so.
    pub(super) fn fork(&self, server: u64, source: Source) -> Result<Child, ()> {
        let mut state = self.lock();
        state.forks += 1;
        let fork = state.forks;
        let is_refused = self.plan.faults.iter().any(|fault| {
            matches!(*fault, Fault::Refuse { fork: first, count } if (first..first + count).contains(&fork))
        });
        if is_refused {
            drop(state);
            self.monitor.happened(Trouble::Unreachable);
            self.monitor.step(|| "a fork is refused".to_owned());
            return Err(());
        }
        let number = fork;
        let Some(wakeup) = state.servers.get(&server).map(|server| server.wakeup.clone()) else {
            return Err(());
        };
        let slot = Slot::new(self.start, wakeup, self.monitor.clone());
        let (channel, connection) = match source {
            Source::Accepted(stream, is_preamble_sent) => {
                (None, Connection::Given(stream, is_preamble_sent))
            }
            Source::Channel => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Connection::Awaited(receiver))
            }
        };
        let ServerPlan::Server { window, calls, sharing, setup, .. } = self.plan.server;
        let faults = self.faults_of(number);
        let monitor = self.monitor.clone();
        let worker = Process {
            number,
            slot: slot.clone(),
            monitor,
            faults,
            window: window as usize,
            max_calls: (calls > 0).then_some(calls),
            setup_time: Duration::from_millis(setup),
            options: Options {
                shares: sharing > 0,
                accepts_rings: sharing > 1,
                polls: number % 4,
                has_core: !number.is_multiple_of(3),
            },
        };
        state.processes.insert(
            number,
            ProcessEntry { task: None, is_killed: false, end: None, parent: server },
        );
        drop(state);
        self.monitor.step(|| format!("worker {number} is forked"));
        let mut exit = ExitGuard { kernel: self.clone(), worker: number, end: None };
        let task = tokio::spawn(async move {
            // Without this, only the field would be moved here, and not its drop.
            let exit = &mut exit;
            exit.end = Some(worker.run(connection).await);
        });
        if let Some(process) = self.lock().processes.get_mut(&number) {
            process.task = Some(task.abort_handle());
        }
        self.schedule_signals(number, &slot);
        Ok(Child { process: number, slot, channel })
    }

    /// The faults that concern a worker.
    fn faults_of(&self, number: u64) -> Vec<Fault> {
        let concerns = |fault: &&Fault| match **fault {
            Fault::Slow { worker, .. }
            | Fault::DieUngreeted { worker }
            | Fault::DieGreeted { worker }
            | Fault::DieInSetup { worker }
            | Fault::SlowSetup { worker, .. }
            | Fault::DieBefore { worker, .. }
            | Fault::DieRunning { worker, .. }
            | Fault::DieAnswering { worker, .. }
            | Fault::DieAfter { worker, .. }
            | Fault::Kill { worker, .. }
            | Fault::Stop { worker, .. }
            | Fault::LoseNotice { worker }
            | Fault::LateReap { worker, .. }
            | Fault::Corrupt { worker, .. }
            | Fault::Garbage { worker, .. } => worker == number,
            _ => false,
        };
        self.plan.faults.iter().filter(concerns).copied().collect()
    }

    fn schedule_signals(&self, number: u64, slot: &Slot) {
        for fault in self.faults_of(number) {
            let (kernel, slot) = (self.clone(), slot.clone());
            match fault {
                Fault::Kill { at, .. } => drop(tokio::spawn(async move {
                    sleep(Duration::from_millis(at)).await;
                    kernel.kill(number, "a fault");
                })),
                Fault::Stop { at, time, .. } => drop(tokio::spawn(async move {
                    sleep(Duration::from_millis(at)).await;
                    kernel.monitor.step(|| format!("worker {number} stops for {time} ms"));
                    slot.stop_for(Duration::from_millis(time));
                })),
                Fault::Garbage { .. } => self.monitor.happened(Trouble::Garbage),
                _ => {}
            }
        }
    }

    /// Whether a process runs, or could.
    pub(super) fn is_running(&self, number: u64) -> bool {
        let state = self.lock();
        state.processes.get(&number).is_some_and(|entry| entry.end.is_none() && !entry.is_killed)
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&self, number: u64, why: &str) {
        let mut state = self.lock();
        let entry = state.processes.get_mut(&number);
        let task = entry.and_then(|entry| {
            entry.is_killed = true;
            entry.task.clone()
        });
        drop(state);
        self.monitor.step(|| format!("worker {number} is killed: {why}"));
        task.inspect(AbortHandle::abort);
    }

    /// A process has ended. Its server learns that by SIGCHLD.
    fn exited(&self, number: u64, end: End) {
        self.monitor.step(|| format!("worker {number} ends: {end:?}"));
        if end != End::Exited(0) {
            self.monitor.happened(Trouble::WorkerEnded);
            self.monitor.happened(Trouble::Unreachable);
        }
        let mut state = self.lock();
        let Some(process) = state.processes.get_mut(&number) else { return };
        process.end = Some(end);
        let parent = process.parent;
        if !state.servers.contains_key(&parent) {
            // Its server is gone, and the first process of the system reaps it.
            state.processes.remove(&number);
        }
        drop(state);
        let late = self.faults_of(number).into_iter().find_map(|fault| match fault {
            Fault::LateReap { time, .. } => Some(time),
            _ => None,
        });
        let kernel = self.clone();
        match late {
            None => self.signal_parent(parent, number),
            Some(time) => drop(tokio::spawn(async move {
                sleep(Duration::from_millis(time)).await;
                kernel.signal_parent(parent, number);
            })),
        }
    }

    fn signal_parent(&self, parent: u64, child: u64) {
        if let Some(server) = self.lock().servers.get(&parent) {
            let _ = server.events.send(Event::Child(child));
        }
    }

    /// Reaps a process that has ended.
    pub(super) fn reap(&self, number: u64) -> Option<End> {
        let mut state = self.lock();
        let end = state.processes.get(&number)?.end?;
        state.processes.remove(&number);
        Some(end)
    }

    /// Loses the notice of a worker's death, if the plan says so. Returns whether it does.
    pub(super) fn lose_notice(&self, number: u64) -> bool {
        let is_lost = self.plan.faults.contains(&Fault::LoseNotice { worker: number });
        if is_lost {
            self.monitor.happened(Trouble::WorkerEnded);
        }
        is_lost
    }

    /// All servers are killed, and with them their workers and the connections that nobody has accepted.
    pub(super) fn kill_servers(&self) {
        let mut state = self.lock();
        let servers = std::mem::take(&mut state.servers);
        let backlog = std::mem::take(&mut state.backlog);
        state.processes.retain(|_, process| process.end.is_none());
        let workers: Vec<_> = state.processes.keys().copied().collect();
        drop(state);
        drop(backlog);
        servers.into_values().filter_map(|server| server.task).for_each(|task| task.abort());
        self.monitor.happened(Trouble::WorkerEnded);
        self.monitor.happened(Trouble::Unreachable);
        workers.into_iter().for_each(|worker| self.kill(worker, "its server has ended"));
    }

    /// What is left at the end of a run.
    pub(super) fn left(&self) -> Option<String> {
        let state = self.lock();
        let open = state.open.values().flatten().filter(|watch| watch.is_open()).count();
        let (processes, waiting) = (state.processes.len(), state.backlog.len());
        let servers = state.servers.len();
        let is_left = open + processes + waiting + servers > 0;
        is_left.then(|| {
            format!(
                "{servers} servers, {processes} workers, {open} connections and {waiting} that nobody accepts are left"
            )
        })
    }
}

/// Reports the end of a process, also if it is killed.
struct ExitGuard {
    kernel: Kernel,
    worker: u64,
    end: Option<End>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.kernel.monitor.complain(format!("worker {} panics", self.worker));
        }
        let end = self.end.unwrap_or(End::Signaled(9));
        self.kernel.exited(self.worker, end);
    }
}
