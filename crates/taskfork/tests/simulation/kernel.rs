//! The kernel: connections, processes and the clock. Faults of the plan happen here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::check::{Monitor, Trouble};
use super::plan::{Fault, Plan, ServerPlan};
use super::slot::Slot;
use super::worker::Worker;
use crate::client::memory::{Connect, Faults, Memory, Server, Watch};
use crate::error::End;
use crate::sync::lock;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::hello::ClientHello;
use crate::wire::native::VERSIONS;
use crate::worker::scoreboard::Phase;

/// How many bytes of a connection wait if nothing else is said. A unix socket holds about as many.
const CAPACITY: usize = 200_000;

/// What a server process learns from the kernel.
#[derive(Debug)]
pub(super) enum Event {
    /// A connection waits in the backlog.
    Readable,
    /// SIGCHLD: this process has exited.
    Child(u64),
}

/// A connection that a server has accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) number: u64,
    pub(super) stream: Memory,
}

#[derive(Debug)]
struct Process {
    task: Option<AbortHandle>,
    /// How it has ended. Then it is a zombie.
    end: Option<End>,
    /// Nobody but this server may reap it.
    parent: u64,
}

/// The server that accepts connections.
#[derive(Clone)]
struct Listening {
    number: u64,
    events: UnboundedSender<Event>,
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct State {
    connections: u64,
    forks: u64,
    backlog: VecDeque<Accepted>,
    /// How many more connections cannot be accepted now, by the numbers of those that came first.
    refused_accepts: BTreeMap<u64, u64>,
    processes: BTreeMap<u64, Process>,
    /// The connections of each client that may be open.
    open: BTreeMap<usize, Vec<Watch>>,
    server: Option<Listening>,
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

    /// The address of the server for one client, which may have so many connections.
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
        if state.server.is_none() {
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
        self.enqueue(Accepted { number, stream });
    }

    /// Somebody else connects, who breaks the protocol. Returns that side of the connection.
    pub(super) fn connect_stranger(&self, kind: u64) -> Option<Memory> {
        let mut state = self.lock();
        state.server.as_ref()?;
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
        self.enqueue(Accepted { number, stream });
        Some(stranger)
    }

    fn enqueue(&self, accepted: Accepted) {
        let mut state = self.lock();
        state.backlog.push_back(accepted);
        // A server that is just ending does not hear it.
        let _ = state.server.as_ref().map(|server| server.events.send(Event::Readable));
    }

    fn stream_faults(&self, number: u64) -> Faults {
        let mut faults = Faults {
            seed: number + 1,
            max_piece: CAPACITY,
            capacity: CAPACITY,
            bad_timing: false,
            cut_after: None,
        };
        for fault in &self.plan.faults {
            match *fault {
                Fault::Stream { connection, piece, capacity, timing } if connection == number => {
                    faults.max_piece = piece.max(1) as usize;
                    faults.capacity = capacity.max(1) as usize;
                    faults.bad_timing = timing == 1;
                }
                Fault::Cut { connection, bytes } if connection == number => {
                    faults.cut_after = Some(bytes.max(1) as usize);
                    self.monitor.happened(Trouble::WorkerEnded);
                    self.monitor.happened(Trouble::Unreachable);
                }
                _ => {}
            }
        }
        faults
    }

    /// Lets this server have the connections from now on.
    pub(super) fn listen(&self, number: u64, events: UnboundedSender<Event>) {
        // Perhaps some wait already.
        let _ = events.send(Event::Readable);
        self.lock().server = Some(Listening { number, events, task: None });
    }

    /// Sets the task of the server that listens.
    pub(super) fn set_server_task(&self, task: AbortHandle) {
        if let Some(server) = &mut self.lock().server {
            server.task = Some(task);
        }
    }

    /// Accepts a connection. Fails if no descriptor is free.
    pub(super) fn accept(&self) -> Result<Option<Accepted>, ()> {
        let mut state = self.lock();
        let Some(number) = state.backlog.front().map(|first| first.number) else { return Ok(None) };
        if let Some(left) = state.refused_accepts.get_mut(&number).filter(|left| **left > 0) {
            *left -= 1;
            drop(state);
            self.monitor.step(|| format!("connection {number} cannot be accepted"));
            return Err(());
        }
        Ok(state.backlog.pop_front())
    }

    /// Forks a worker for a server. Fails if the plan says so.
    pub(super) fn fork(
        &self,
        server: u64,
        stream: &Memory,
        is_preamble_sent: bool,
    ) -> Result<(u64, Slot), ()> {
        let mut state = self.lock();
        let fork = state.forks;
        state.forks += 1;
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
        let slot = Slot::new(self.start, Phase::Handshake);
        let ServerPlan::Server { window, .. } = self.plan.server;
        let worker = Worker {
            number,
            stream: stream.duplicate(),
            slot: slot.clone(),
            monitor: self.monitor.clone(),
            faults: self.faults_of(number),
            window,
            is_preamble_sent,
            inbox: BytesMut::new(),
            messages: VecDeque::new(),
        };
        let process = Process { task: None, end: None, parent: server };
        state.processes.insert(number, process);
        drop(state);
        self.monitor.step(|| format!("worker {number} is forked"));
        let mut exit = ExitGuard { kernel: self.clone(), worker: number, end: None };
        let task = tokio::spawn(async move {
            // Without this, only the field would be moved here, and not its drop.
            let exit = &mut exit;
            exit.end = Some(worker.serve().await);
        });
        if let Some(process) = self.lock().processes.get_mut(&number) {
            process.task = Some(task.abort_handle());
        }
        self.schedule_signals(number, &slot);
        Ok((number, slot))
    }

    /// The faults that concern a worker.
    fn faults_of(&self, number: u64) -> Vec<Fault> {
        let concerns = |fault: &&Fault| match **fault {
            Fault::Slow { worker, .. }
            | Fault::DieUngreeted { worker }
            | Fault::DieGreeted { worker }
            | Fault::DieInSetup { worker }
            | Fault::DieBefore { worker, .. }
            | Fault::DieRunning { worker, .. }
            | Fault::DieAnswering { worker, .. }
            | Fault::DieAfter { worker, .. }
            | Fault::Kill { worker, .. }
            | Fault::Stop { worker, .. }
            | Fault::LoseNotice { worker }
            | Fault::LateReap { worker, .. }
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

    /// Sends SIGKILL.
    pub(super) fn kill(&self, number: u64, why: &str) {
        let task = self.lock().processes.get(&number).and_then(|process| process.task.clone());
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
        match &state.server {
            Some(server) if server.number == parent => {}
            // Its server is gone, and the first process of the system reaps it.
            _ => drop(state.processes.remove(&number)),
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
        let server = self.lock().server.clone().filter(|server| server.number == parent);
        let _ = server.map(|server| server.events.send(Event::Child(child)));
    }

    /// Reaps a process that has ended.
    pub(super) fn reap(&self, number: u64) -> Option<End> {
        let mut state = self.lock();
        let end = state.processes.get(&number)?.end?;
        state.processes.remove(&number);
        Some(end)
    }

    /// Whether the notice of a worker's death is lost.
    pub(super) fn loses_notice(&self, number: u64) -> bool {
        self.plan.faults.contains(&Fault::LoseNotice { worker: number })
    }

    /// The server has ended, with all its workers and with the connections that nobody has accepted.
    pub(super) fn server_ended(&self) {
        let mut state = self.lock();
        if let Some(Listening { task: Some(task), .. }) = state.server.take() {
            task.abort();
        }
        let backlog = std::mem::take(&mut state.backlog);
        state.processes.retain(|_, process| process.end.is_none());
        let workers: Vec<_> = state.processes.keys().copied().collect();
        drop(state);
        drop(backlog);
        self.monitor.happened(Trouble::WorkerEnded);
        self.monitor.happened(Trouble::Unreachable);
        workers.into_iter().for_each(|worker| self.kill(worker, "its server has ended"));
    }

    /// What is left at the end of a run.
    pub(super) fn left(&self) -> Option<String> {
        let state = self.lock();
        let open = state.open.values().flatten().filter(|watch| watch.is_open()).count();
        let (processes, waiting) = (state.processes.len(), state.backlog.len());
        let is_left = open + processes + waiting > 0;
        is_left.then(|| {
            format!(
                "{processes} workers, {open} connections and {waiting} that nobody accepts are left"
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
