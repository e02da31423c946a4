//! A server in a process of its own, as the program that started it sees it: the process, the
//! control channel, and starting it again. Clients of the program find it by the server's address.
//!
//! A thread waits for the end of the process, see `watcher`. It starts as late as possible, because a
//! program with a further thread cannot fork. A program may fork several servers first.

mod watcher;

use std::any::Any;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::process::{Signal, WaitIdOptions, pidfd_send_signal};

use crate::address::{Address, AddressKind, LocalServer};
use crate::error::{End, Failure, FatalError};
use crate::server::control::{self, ServerMessage};
use crate::server::error::ServerError;
use crate::server::launch::Launch;
use crate::server::process::{reap, wait_for};
use crate::server::starting_process::RunningServer;
use crate::sync::{ignore_poison, lock};
use crate::sys;

/// A connection to a worker that ended without a message ended because of its server, if that died
/// within this time.
const RECENT_END: Duration = Duration::from_secs(2);

/// How long the end of a server is waited for after a connection to its worker has ended without a
/// message. The kernel kills the workers a moment before the server can be reaped.
const END_DELAY: Duration = Duration::from_millis(20);

/// The server, shared by its handle and the clients of the program.
#[derive(Clone)]
pub(crate) struct SpawnedServer(Arc<Shared>);

struct Shared {
    /// How to start the server again. `None` if it is not replaced.
    launch: Option<Launch>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    pid: u32,
    channel: Option<OwnedFd>,
    /// The address that it listens at, if there is one.
    address: Option<Address>,
    process: Process,
    since: Instant,
    last_end: Option<(Instant, ServerExit)>,
    /// How its program has requested its end. It is not replaced then.
    shutdown: Option<EndRequest>,
    /// A thread waits for its end.
    has_watcher: bool,
    /// Why it could not be started again.
    restart_failure: Option<String>,
}

/// How a program has requested the end of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndRequest {
    /// By a method of the handle.
    Requested,
    /// It has dropped the handle.
    Dropped,
}

enum Process {
    Runs(Arc<OwnedFd>),
    /// It died and is being replaced.
    Restarting,
    Ended(ServerExit),
}

/// How a server's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerExit {
    pub(crate) pid: u32,
    pub(crate) end: End,
    /// The error that it has reported.
    pub(crate) reason: Option<Failure>,
    /// How this program had requested it before.
    pub(crate) shutdown: Option<EndRequest>,
}

static SERVERS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
/// Whether there has ever been a server. A worker of another server reads only this flag, and
/// writes to no page.
static ANY_SERVER: AtomicBool = AtomicBool::new(false);

/// In a forked process: closes the copies of all channels. They belong to the parent, and would
/// hide the parent's end from the servers.
#[inline]
pub(crate) fn close_inherited() {
    if ANY_SERVER.load(Ordering::SeqCst) {
        close_channels();
    }
}

fn close_channels() {
    for server in lock(&SERVERS).drain(..) {
        if let Some(server) = server.upgrade() {
            let mut state = lock(&server.state);
            state.channel = None;
            let end = ServerExit::unknown(state.pid, None);
            // This closes the pidfd.
            state.process = Process::Ended(end);
        }
    }
}

impl SpawnedServer {
    /// Wraps a server that is ready. `launch` starts it again when it dies.
    pub(crate) fn new(started: RunningServer, launch: Option<Launch>) -> Result<Self, ServerError> {
        let RunningServer { pid, pidfd, channel, address } = started;
        let state = State {
            pid,
            channel: Some(channel),
            address,
            process: Process::Runs(Arc::new(pidfd)),
            since: Instant::now(),
            last_end: None,
            shutdown: None,
            has_watcher: false,
            restart_failure: None,
        };
        let server = Arc::new(Shared { launch, state: Mutex::new(state), changed: Condvar::new() });
        ANY_SERVER.store(true, Ordering::SeqCst);
        {
            let mut servers = lock(&SERVERS);
            servers.retain(|server| server.strong_count() > 0);
            servers.push(Arc::downgrade(&server));
        }
        let link = Self(server);
        if sys::thread_count().is_ok_and(|threads| threads > 1) {
            link.watch();
        }
        Ok(link)
    }

    /// Finds the last server that this program has started for this address.
    pub(crate) fn find(address: &Address) -> Option<Self> {
        if let AddressKind::Spawned(server) = &address.0 {
            let server: &dyn Any = &**server;
            return server.downcast_ref::<Self>().cloned();
        }
        let servers = lock(&SERVERS);
        let mut living = servers.iter().rev().filter_map(Weak::upgrade);
        living.find(|server| server.listens_at(address)).map(Self)
    }

    pub(crate) fn address(&self) -> Option<Address> {
        lock(&self.0.state).address.clone()
    }

    /// Opens a connection on which the server sends its status.
    pub(crate) fn connect_status(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = connection_pair()?;
        self.send_end(&theirs, control::STATUS)?;
        Ok(ours)
    }

    /// Sends the server its end of a connection. `kind` says what the connection is for.
    fn send_end(&self, connection: &OwnedFd, kind: u8) -> io::Result<()> {
        sys::send_descriptor(lock(&self.0.state).open_channel()?, connection.as_fd(), &[kind])
    }

    pub(crate) fn is_alive(&self) -> bool {
        matches!(self.0.lock_refreshed().process, Process::Runs(_))
    }

    /// How the server has ended for good, or is about to because this program has requested that. `None` if it
    /// serves, or is being replaced.
    pub(crate) fn end(&self) -> Option<ServerExit> {
        let state = self.0.lock_refreshed();
        match &state.process {
            Process::Ended(end) => Some(end.clone()),
            Process::Runs(_) => state.requested_end(),
            // It died before it was asked to end, and is not replaced any more.
            Process::Restarting => state
                .last_end
                .as_ref()
                .filter(|_| state.shutdown.is_some())
                .map(|(_, end)| end.clone()),
        }
    }

    /// The reason why the server is down. `None` while it runs.
    pub(crate) fn trouble(&self) -> Option<String> {
        let state = self.0.lock_refreshed();
        (!matches!(state.process, Process::Runs(_))).then(|| state.describe_down())
    }

    /// How the server has ended, for a connection to its worker that has just ended without a
    /// message. Waits for a moment.
    pub(crate) fn recent_end(&self) -> Option<ServerExit> {
        let pidfd = match &lock(&self.0.state).process {
            Process::Runs(pidfd) => Some(pidfd.clone()),
            _ => None,
        };
        let recent = |state: &State| {
            let (at, end) = state.last_end.as_ref()?;
            (at.elapsed() < RECENT_END).then(|| end.clone())
        };
        if let Some(pidfd) = pidfd {
            if let Some(end) = recent(&lock(&self.0.state)) {
                return Some(end);
            }
            let most = Timespec { tv_sec: 0, tv_nsec: END_DELAY.subsec_nanos().into() };
            let _ = poll(&mut [PollFd::new(&*pidfd, PollFlags::IN)], Some(&most));
        }
        recent(&self.0.lock_refreshed())
    }

    /// Waits until the server has ended for good.
    pub(crate) fn wait(&self) -> End {
        let mut state = self.0.lock_refreshed();
        loop {
            state = match &state.process {
                Process::Ended(ended) => return ended.end,
                Process::Runs(pidfd) if !state.has_watcher => {
                    let pidfd = pidfd.clone();
                    drop(state);
                    wait_for(&pidfd);
                    self.0.lock_refreshed()
                }
                _ => ignore_poison(self.0.changed.wait(state)),
            };
        }
    }

    /// Asks the server to shut down gracefully. It is not replaced.
    pub(crate) fn shut_down(&self) {
        self.request_end(EndRequest::Requested);
    }

    fn request_end(&self, shutdown: EndRequest) {
        let mut state = self.0.lock_refreshed();
        state.shutdown.get_or_insert(shutdown);
        state.close_channel();
        self.0.changed.notify_all();
    }

    /// Kills the server. It is not replaced.
    pub(crate) fn kill(&self) {
        let mut state = self.0.lock_refreshed();
        state.shutdown.get_or_insert(EndRequest::Requested);
        if let Process::Runs(pidfd) = &state.process {
            // It may have ended already.
            let _ = pidfd_send_signal(&**pidfd, Signal::KILL);
        }
        self.0.changed.notify_all();
    }

    /// Shuts down the server after its handle was dropped, and has a thread reap it. If no thread
    /// can be started, a zombie stays until this program ends.
    pub(crate) fn release(&self) {
        self.request_end(EndRequest::Dropped);
        if self.0.lock_refreshed().is_process_left() {
            self.watch();
        }
    }

    /// Starts a thread that waits for the server's end.
    pub(crate) fn watch(&self) {
        self.0.watch(&mut lock(&self.0.state));
    }
}

impl LocalServer for SpawnedServer {
    fn pid(&self) -> u32 {
        self.0.lock_refreshed().pid
    }

    fn connection(&self) -> io::Result<[OwnedFd; 2]> {
        lock(&self.0.state).open_channel()?;
        let (ours, theirs) = connection_pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok([ours, theirs])
    }

    fn pass(&self, connection: &OwnedFd) -> io::Result<()> {
        self.send_end(connection, control::CONNECTION)
    }
}

impl State {
    /// Shuts down the sending side of the channel, which asks the server to shut down.
    fn close_channel(&self) {
        if let Some(socket) = &self.channel {
            // It may have ended already.
            let _ = shutdown(socket, Shutdown::Write);
        }
    }

    /// The channel to the server.
    fn open_channel(&self) -> io::Result<&OwnedFd> {
        let down = || io::Error::new(io::ErrorKind::NotConnected, self.describe_down());
        self.channel.as_ref().filter(|_| self.shutdown.is_none()).ok_or_else(down)
    }

    fn is_process_left(&self) -> bool {
        !matches!(self.process, Process::Ended(_))
    }

    /// The end that this program has requested.
    fn requested_end(&self) -> Option<ServerExit> {
        self.shutdown.is_some().then(|| ServerExit::unknown(self.pid, self.shutdown))
    }

    fn describe_down(&self) -> String {
        if let (Process::Runs(_), Some(end)) = (&self.process, self.requested_end()) {
            return end.to_string();
        }
        match (&self.process, &self.last_end, &self.restart_failure) {
            (Process::Ended(end), ..) => end.to_string(),
            (Process::Restarting, Some((_, end)), None) => format!("{end}, and is being replaced"),
            (Process::Restarting, Some((_, end)), Some(failure)) => {
                format!("{end}, and cannot be replaced so far: {failure}")
            }
            _ => "the server has been shut down".to_owned(),
        }
    }
}

impl Shared {
    fn listens_at(&self, address: &Address) -> bool {
        let state = lock(&self.state);
        match (state.address.as_ref().map(|own| &own.0), &address.0) {
            (Some(AddressKind::Unix(own)), AddressKind::Unix(path)) => own == path,
            (
                Some(AddressKind::Tcp { host, port }),
                AddressKind::Tcp { host: other, port: number },
            ) => host == other && port == number,
            _ => false,
        }
    }

    /// Locks the state after reaping a process that has ended.
    fn lock_refreshed(self: &Arc<Self>) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        self.reap_if_ended(&mut state);
        state
    }

    /// Reaps the process if it has ended.
    fn reap_if_ended(self: &Arc<Self>, state: &mut State) {
        let Process::Runs(pidfd) = &state.process else { return };
        let Some(end) = reap(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) else { return };
        let message = state.channel.take().and_then(|socket| last_message(&socket));
        let is_intended = state.shutdown.is_some()
            || end == End::Exited(0)
            || matches!(message, Some(ServerMessage::Ended(_)));
        let reason = match message {
            Some(ServerMessage::Failed(reason) | ServerMessage::Ended(reason)) => Some(reason),
            _ => None,
        };
        let ended = ServerExit { pid: state.pid, end, reason, shutdown: state.shutdown };
        state.last_end = Some((Instant::now(), ended.clone()));
        state.restart_failure = None;
        if self.launch.is_some() && !is_intended {
            state.process = Process::Restarting;
            self.watch(state);
        } else {
            state.process = Process::Ended(ended);
        }
        self.changed.notify_all();
    }

    fn watch(self: &Arc<Self>, state: &mut State) {
        if state.has_watcher || !state.is_process_left() {
            return;
        }
        let server = self.clone();
        let thread = sys::spawn_without_signals("taskfork-server", move || server.watch_process());
        state.has_watcher = thread.is_ok();
        if let (Err(error), Process::Restarting, Some((_, end))) =
            (thread, &state.process, &state.last_end)
        {
            let reason = format!("it cannot be replaced, as no thread can be started: {error}");
            let reason = Some(Failure::new(reason));
            state.process = Process::Ended(ServerExit { reason, ..end.clone() });
        }
    }
}

/// The last message of a server.
fn last_message(socket: &OwnedFd) -> Option<ServerMessage> {
    let mut last = None;
    while let Ok(message) = ServerMessage::receive(socket) {
        last = message.or(last);
    }
    last
}

impl ServerExit {
    fn unknown(pid: u32, shutdown: Option<EndRequest>) -> Self {
        Self { pid, end: End::Unknown, reason: None, shutdown }
    }
}

impl From<ServerExit> for FatalError {
    fn from(ServerExit { pid, end, reason, shutdown }: ServerExit) -> Self {
        match (shutdown, reason) {
            (Some(shutdown), None) => {
                let handle_dropped = shutdown == EndRequest::Dropped;
                Self::ServerShutDown { pid, handle_dropped }
            }
            (_, reason) => Self::ServerEnded { pid, end, reason },
        }
    }
}

impl fmt::Display for ServerExit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        FatalError::from(self.clone()).fmt(out)
    }
}

impl fmt::Debug for SpawnedServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SpawnedServer({})", lock(&self.0.state).pid)
    }
}

fn connection_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}
