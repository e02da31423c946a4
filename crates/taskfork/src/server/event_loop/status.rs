//! The status socket: opening it, accepting connections to it, and answering requests.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::{EventLoop, STATUS};
use crate::address::{Address, AddressKind};
use crate::clock::now;
use crate::server::child::Child;
use crate::server::error::ServerError;
use crate::server::listener::Listener;
use crate::server::log;
use crate::server::options::Options;
use crate::server::proc_status;
use crate::server::recent_deaths::{self, RecentDeath};
use crate::server::runtime_directory::runtime_directory;
use crate::server::stack::Symbolizer;
use crate::server::status::{ServerStatus, StatusRequest};
use crate::server::status_socket::{StatusSocket, send_at_once, send_within_timeout};
use crate::server::supervisor::{ACCEPT_PAUSE, Observation};
use crate::server::titles::printable_name;
use crate::time_limit::nanoseconds;

impl EventLoop {
    /// Accepts a connection to the status socket.
    pub(super) fn accept_status(&mut self) {
        let now = Instant::now();
        match self.status.listener.as_ref().map(Listener::accept) {
            Some(Ok(connection)) => self.add_status_request(connection),
            None | Some(Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED)) => {}
            Some(Err(errno)) => {
                if self.logs.limits.accept_status.acquire(now) {
                    log::error!(
                        "cannot accept connections to the status socket for a while: {errno}"
                    );
                }
                self.status.requests.pause_accepting(now + ACCEPT_PAUSE);
                self.watch_status(EventFlags::empty());
            }
        }
    }

    /// Answers on this connection once its request is complete.
    pub(super) fn add_status_request(&mut self, connection: OwnedFd) {
        match self.status.requests.add(connection, Instant::now()) {
            Ok(()) => self.answer_status_requests(),
            Err(connection) => self.send_status(connection, Details::default()),
        }
    }

    fn watch_status(&self, flags: EventFlags) {
        let Some(status) = &self.status.listener else { return };
        if let Err(errno) =
            epoll::modify(&self.process.epoll, status, EventData::new_u64(STATUS), flags)
        {
            log::error!("cannot change the watch on the status socket: {errno}");
        }
    }

    /// Answers the requests that are complete, or whose time is over.
    pub(super) fn answer_status_requests(&mut self) {
        for request in self.status.requests.take_complete(Instant::now()) {
            let mut wanted = Details::default();
            match StatusRequest::parse(&request.text) {
                StatusRequest::Status => {}
                StatusRequest::Dismiss { worker, pid } => {
                    let is_there = self.has_worker(worker, pid);
                    if is_there {
                        self.supervisor.handle_dismissal(worker, now());
                        self.carry_out_actions();
                    }
                    wanted.is_done = Some(is_there);
                }
                StatusRequest::Kill { worker, pid } => {
                    wanted.is_done = Some(self.has_worker(worker, pid));
                    if wanted.is_done == Some(true)
                        && let Some(child) = self.children.get_mut(worker)
                    {
                        child.kill_on_request();
                    }
                }
                StatusRequest::Deaths { after } => wanted.deaths = self.deaths(after),
                StatusRequest::Details { after, sample } => wanted = self.details(after, sample),
            }
            self.send_status(request.connection, wanted);
        }
    }

    /// Answers the requests that are due. Returns the time until the next one is.
    pub(super) fn run_status_timers(&mut self) -> Option<Duration> {
        if self.status.requests.end_accept_pause(Instant::now()) {
            self.watch_status(EventFlags::IN);
        }
        if self.status.requests.time_until_due(Instant::now()) == Some(Duration::ZERO) {
            self.answer_status_requests();
        }
        let now = Instant::now();
        let due = self.status.requests.time_until_due(now);
        due.into_iter().chain(self.status.requests.accept_pause(now)).min()
    }

    /// Sends the status from a helper process, because a peer may read slowly, and because it takes
    /// long to find out how much memory workers use.
    fn send_status(&mut self, connection: OwnedFd, wanted: Details) {
        // Taken here, because a helper process does not map the workers' slots.
        let status = self.server_status();
        let input = (connection, status, wanted);
        let unsent = self.run_in_helper(input, |(connection, mut status, wanted)| {
            for worker in &mut status.workers {
                (worker.memory, worker.peak_memory) = proc_status::memory(worker.pid);
                worker.cpu_seconds = proc_status::cpu_seconds(worker.pid);
            }
            wanted.add_to(&mut status);
            send_within_timeout(&connection, &status);
        });
        if let Some((connection, status, _)) = unsent {
            send_at_once(&connection, &status);
        }
    }

    /// The deaths after this one, without their stacks.
    fn deaths(&self, after: u64) -> Vec<RecentDeath> {
        let deaths = self.status.counters.recent_deaths.after(after);
        deaths.into_iter().map(|death| RecentDeath { stack: None, ..death }).collect()
    }

    /// The deaths after this one, and the stack of this worker.
    fn details(&mut self, after: u64, sample: Option<u64>) -> Details {
        let sampled = sample.and_then(|worker| {
            let child = self.children.get_mut(worker)?;
            let observed = child.observe();
            self.supervisor.handle_slot(worker, &observed);
            Some((worker, child.sample_stack(observed.view)?))
        });
        self.carry_out_actions();
        Details { deaths: self.status.counters.recent_deaths.after(after), sampled, is_done: None }
    }

    /// Whether there is a worker with this number, and with this process id if one was named.
    fn has_worker(&self, worker: u64, pid: Option<u32>) -> bool {
        self.children.get(worker).is_some_and(|child| pid.is_none_or(|pid| pid == child.pid()))
    }

    fn server_status(&mut self) -> ServerStatus {
        let now = now();
        let queues = self.reported_queues();
        let workers = self.observed_children().map(|(child, it)| {
            let mut status = child.status(&it, now);
            let queue = status.client.and_then(|client| queues.get(&client));
            status.client_queued = queue.map(|&(_, waiting)| waiting);
            status
        });
        let workers = workers.collect();
        let counted: Vec<_> =
            self.children.iter().map(|child| child.slot.counted_calls()).collect();
        let calls = self.status.counters.calls.with(counted, &self.options.methods);
        let deaths =
            self.status.counters.deaths.iter().map(|(&cause, &count)| (cause.to_owned(), count));
        ServerStatus {
            name: self.options.name.clone(),
            pid: self.process.pid,
            instance: nanoseconds(self.status.started_at),
            seconds: now.saturating_sub(self.status.started_at).as_secs_f64(),
            accepting: self.supervisor.is_serving(),
            max_workers: self.supervisor.max_workers(),
            sandbox: self
                .template
                .sandbox
                .as_ref()
                .map(|_| self.options.sandbox.level().to_string()),
            methods: self.options.methods.clone(),
            share_details: self.options.access.details,
            forked: self.supervisor.forked(),
            refused: self.status.counters.refused,
            handshakes: self.connections.handshakes.len(),
            handshake_failures: self.connections.handshakes.failures,
            queued: queues.values().fold(0, |all, &(_, waiting)| all.saturating_add(waiting)),
            waiting: self.supervisor.waiting(),
            deaths: deaths.collect(),
            calls,
            waits: self.status.counters.waits.clone(),
            waiting_clients: self.connections.waiting.status(now),
            workers,
            last_death: self.status.counters.recent_deaths.last(),
            recent_deaths: Vec::new(),
            done: None,
        }
    }

    /// All workers with what their slots show.
    pub(super) fn observed_children(&mut self) -> impl Iterator<Item = (&Child, Observation)> {
        let Self { children, supervisor, .. } = self;
        children.iter_mut().map(|child| {
            let observed = child.observe();
            supervisor.handle_slot(child.number, &observed);
            (&*child, observed)
        })
    }

    /// How many checkouts of each client wait, as it has reported last, and when that was.
    fn reported_queues(&self) -> BTreeMap<u64, (u64, u64)> {
        let mut last = BTreeMap::new();
        for (client, at, waiting) in
            self.children.iter().filter_map(|child| child.slot.reported_queue())
        {
            let known = last.entry(client).or_insert((at, waiting));
            *known = (*known).max((at, waiting));
        }
        last
    }
}

/// What only some readers of the status want.
#[derive(Debug, Default)]
struct Details {
    deaths: Vec<RecentDeath>,
    /// A worker, and the addresses of its stack.
    sampled: Option<(u64, Vec<u64>)>,
    /// Whether what was asked for was done.
    is_done: Option<bool>,
}

impl Details {
    /// Adds it to the status, with the names of functions. For a process that exits next.
    fn add_to(self, status: &mut ServerStatus) {
        status.done = self.is_done;
        let symbolizer = Symbolizer::new();
        // The sample comes last, because it can be asked for again.
        status.recent_deaths = recent_deaths::symbolize(self.deaths, &symbolizer);
        if let Some((number, stack)) = self.sampled
            && let Some(worker) = status.workers.iter_mut().find(|it| it.number == number)
        {
            worker.stack = symbolizer.names(stack).ok().flatten();
        }
    }
}

/// The path of the status socket. `None` if the server is to have none, or if there is no folder for
/// it. A server on a service manager's socket has it in the runtime directory.
pub(super) fn status_path(options: &Options, listener: Option<&Listener>) -> Option<PathBuf> {
    match (&options.status, listener.map(Listener::address)) {
        (StatusSocket::At(path), _) => Some(path.clone()),
        (StatusSocket::Default, Some(_)) if is_socket_activated(options) => {
            let name = printable_name(&options.name).replace('/', "?");
            Some(runtime_directory()?.join(format!("{name}.status")))
        }
        (StatusSocket::Default, Some(Address(AddressKind::Unix(path)))) => {
            let mut name = path.clone().into_os_string();
            name.push(".status");
            Some(name.into())
        }
        _ => None,
    }
}

/// Whether a listener of this server comes from a service manager.
fn is_socket_activated(options: &Options) -> bool {
    options.address.is_none()
}

/// Opens the status socket, if the server is to have one. Fails only for a path that was set
/// explicitly.
pub(super) fn open_status(
    options: &Options,
    listener: Option<&Listener>,
) -> Result<Option<Listener>, ServerError> {
    let is_in_runtime_directory = matches!(options.status, StatusSocket::Default)
        && listener.is_some()
        && is_socket_activated(options);
    let Some(path) = status_path(options, listener) else {
        if is_in_runtime_directory {
            log::warn!(
                "there is no status socket, as neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR names a folder: \
                 set one of them, or `status_socket`"
            );
        }
        return Ok(None);
    };
    if is_in_runtime_directory {
        log::info!(name = options.name, "the status socket is {}", path.display());
    }
    let opened = Listener::open(&Address(AddressKind::Unix(path)), 0o600, &options.access);
    match (&options.status, opened) {
        (StatusSocket::At(_), opened) => opened.map(Some),
        (_, Ok(socket)) => Ok(Some(socket)),
        (_, Err(error)) => {
            log::warn!("there is no status socket: {error}");
            Ok(None)
        }
    }
}
