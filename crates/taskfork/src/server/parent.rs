//! The parent process of `keep_pid`, whose process id outlives restarts. It forwards signals to the
//! server. It ends when the server and all its successors have ended.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal as Number;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, test_kill_process, waitpid};

use super::control;
use super::environment;
use super::error::ServerError;
use super::failure_text;
use super::hangup::{Hangup, explain_shutdown};
use super::log;
use super::orphans::become_subreaper;
use super::process::{end_of_wait, is_parent};
use super::signals::Signals;
use super::spawned_server;
use super::titles::printable_name;
use crate::error::{End, Failure};
use crate::log_output;
use crate::sys::{self, ForkError, Forked, KernelFile, MAX_CHANNEL_TEXT, ThreadCount};
use crate::time_limit::timespec;

/// Messages to the parent: a server has taken over, a server could not start, a server had to kill
/// workers.
const SUCCESSOR: u8 = b's';
const FAILED: u8 = b'f';
const KILLED: u8 = b'k';

/// How long the descendants of dead servers may take to end. The guardians kill them.
const DESCENDANTS_TIMEOUT: Duration = Duration::from_secs(5);
const DESCENDANTS_INTERVAL: Duration = Duration::from_millis(5);

/// A server's view of its parent process.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    pid: u32,
    /// `None` for a parent that only forwards signals.
    channel: Option<Arc<OwnedFd>>,
}

impl Parent {
    /// Takes over the parent that the environment names.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(super) fn take() -> Option<Self> {
        let text = sys::take_variable(environment::PARENT)?;
        let (pid, channel) = text.split_once(' ').unwrap_or((&text, ""));
        let pid = pid.parse().ok()?;
        // SAFETY: the server before this one left it open for this process, named by a variable
        // that has been removed now.
        let channel =
            channel.parse().ok().and_then(|channel| unsafe { sys::take_inherited(channel) }.ok());
        if let Some(channel) = &channel {
            rustix::io::fcntl_setfd(channel, rustix::io::FdFlags::CLOEXEC).ok()?;
        }
        Some(Self { pid, channel: channel.map(Arc::new) })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it stays over restarts.
    pub(super) fn keeps_pid(&self) -> bool {
        self.channel.is_some()
    }

    /// The channel to the parent. It ends with the parent.
    pub(super) fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(|channel| channel.as_fd())
    }

    /// The variable by which a new server finds the parent.
    pub(super) fn variable(&self) -> Option<(&'static str, String)> {
        let channel = self.channel.as_ref()?;
        Some((environment::PARENT, format!("{} {}", self.pid, channel.as_raw_fd())))
    }

    /// Reports that another server has taken over, so that this server's end is not the service's
    /// end.
    pub(super) fn announce(&self, successor: Pid) {
        self.send(SUCCESSOR, &successor.as_raw_nonzero().to_string());
    }

    fn report(&self, error: &ServerError) {
        match error {
            ServerError::Killed { workers } => self.send(KILLED, &workers.to_string()),
            error => self.send(FAILED, &failure_text::encode(&Failure::of(error))),
        }
    }

    fn send(&self, kind: u8, text: &str) {
        let Some(channel) = &self.channel else { return };
        let mut message = vec![kind];
        message
            .extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_CHANNEL_TEXT - 1)]);
        // The parent may have ended.
        let _ = send(&**channel, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Forks a process that runs `serve`, and becomes its parent. Returns the result of the last
/// server.
#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
pub(super) fn keep_pid(
    name: &str,
    hangup: Hangup,
    outer_parent: Option<&Parent>,
    serve: impl FnOnce(Parent) -> Result<(), ServerError>,
) -> Result<(), ServerError> {
    let threads = ThreadCount::of_this_process()
        .map_err(ServerError::system("cannot count this process's threads"))?;
    let signals = Signals::take_over(hangup, outer_parent.map(Parent::pid))
        .map_err(ServerError::system("cannot take signals over"))?;
    let (ours, theirs) =
        control::pair().map_err(ServerError::system("cannot make a channel to the server"))?;
    let parent_process = ParentProcess::new(signals, ours);
    let this = std::process::id();
    sys::flush_stdio();
    // SAFETY: the child is the server, as the caller wants, and leaves by `exit_now`.
    match unsafe { sys::fork(&threads) } {
        Ok(Forked::Parent { child }) => {
            drop(theirs);
            sys::set_title(&format!("taskfork-parent:{}", printable_name(name)));
            match Pid::from_raw(child.as_raw()) {
                Some(server) => parent_process.run(server),
                None => Ok(()),
            }
        }
        Ok(Forked::Child) => {
            drop(threads);
            parent_process.leave();
            log_output::lock().inherit();
            spawned_server::close_inherited();
            environment::replace_pid(this);
            let parent = Parent { pid: this, channel: Some(Arc::new(theirs)) };
            let reporter = parent.clone();
            let status = match catch_unwind(AssertUnwindSafe(|| serve(parent))) {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    reporter.report(&error);
                    1
                }
                Err(_) => 101,
            };
            sys::exit_flushed(status)
        }
        Err(ForkError::Threads { threads }) => Err(ServerError::Threads { threads }),
        Err(ForkError::Kernel(source)) => {
            Err(ServerError::System { what: "cannot fork the server", source })
        }
    }
}

/// The state of the parent process.
struct ParentProcess {
    signals: Signals,
    channel: OwnedFd,
    /// The last one accepts connections. The others finish their checkouts.
    servers: Vec<Pid>,
    children: KernelFile,
    /// Children that the program had before.
    initial_children: HashSet<Pid>,
    /// No server holds the other end of the channel any more.
    channel_closed: bool,
    /// The failure that a server has reported.
    failure: Option<ServerError>,
}

impl ParentProcess {
    fn new(signals: Signals, channel: OwnedFd) -> Self {
        become_subreaper();
        let children = KernelFile::open("/proc/thread-self/children");
        let initial_children = pids(&children).collect();
        Self {
            signals,
            channel,
            servers: Vec::new(),
            children,
            initial_children,
            channel_closed: false,
            failure: None,
        }
    }

    /// In the server's process: leaves the signals blocked.
    fn leave(self) {
        self.signals.leave_blocked();
    }

    fn run(mut self, server: Pid) -> Result<(), ServerError> {
        self.servers.push(server);
        let mut last = (server, End::Unknown);
        loop {
            // Messages come first, because a signal to a server that has been replaced would be
            // lost.
            self.read_messages();
            self.forward_signals();
            let ended = self.reap();
            // The messages that a server sent before its end have arrived by now.
            self.read_messages();
            self.servers.retain(|pid| ended.iter().all(|(ended, _)| ended != pid));
            if !ended.is_empty() && !self.servers.is_empty() {
                // It is not the failure of the last server.
                self.failure = None;
            }
            for (pid, end) in ended {
                last = (pid, end);
                if let (Some(current), false) = (self.servers.last(), end == End::Exited(0)) {
                    let current = current.as_raw_nonzero();
                    log::error!("the server process {pid} {end}, {current} goes on");
                }
            }
            if self.servers.is_empty() {
                return self.finish(last);
            }
            self.wait()?;
        }
    }

    /// Waits for a signal or a message.
    fn wait(&self) -> Result<(), ServerError> {
        let mut watched =
            [PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.channel, PollFlags::IN)];
        // A closed channel is always readable, and would make this a busy loop.
        let count = if self.channel_closed { 1 } else { 2 };
        // The log may have lines that could not be written yet.
        let timeout = log_output::retry().map(timespec);
        match poll(&mut watched[..count], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ServerError::System { what: "poll failed", source: errno.into() }),
        }
    }

    fn forward_signals(&mut self) {
        while let Some(number) = self.signals.next() {
            match number {
                Number::SIGCHLD => {}
                Number::SIGHUP if self.signals.asks_for_restart() => self.signal(Signal::HUP),
                Number::SIGHUP => {
                    explain_shutdown();
                    self.signal_all(Signal::TERM);
                }
                Number::SIGTERM => self.signal_all(Signal::TERM),
                Number::SIGINT => self.signal_all(Signal::INT),
                other => {
                    if other == Number::SIGUSR1 {
                        let reopened = log_output::lock().reopen();
                        if let Err(error) = reopened {
                            log::error!(
                                "the parent process cannot open the log file again: {error}"
                            );
                        }
                    }
                    if let Some(other) = Signal::from_named_raw(other as i32) {
                        self.signal_all(other);
                    }
                }
            }
        }
    }

    /// Sends a signal to the server that accepts connections.
    fn signal(&self, signal: Signal) {
        if let Some(&server) = self.servers.last() {
            // The server may just have ended.
            let _ = kill_process(server, signal);
        }
    }

    /// Sends a signal to all servers.
    fn signal_all(&self, signal: Signal) {
        self.servers.iter().for_each(|&server| kill_process(server, signal).unwrap_or(()));
    }

    /// Reaps the servers that have ended, and other children.
    fn reap(&self) -> Vec<(Pid, End)> {
        let reaped = |pid| match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(Ok(end_of_wait(status))),
            Ok(None) => None,
            Err(errno) => Some(Err(errno)),
        };
        let ended = self.servers.iter().filter_map(|&pid| match reaped(pid)? {
            Ok(end) => Some((pid, end)),
            // It is a child of the server before it as long as that one lives.
            Err(_) if test_kill_process(pid).is_ok() => None,
            Err(_) => Some((pid, End::Unknown)),
        });
        let ended = ended.collect();
        for pid in pids(&self.children) {
            if !self.initial_children.contains(&pid) && !self.servers.contains(&pid) {
                let _ = reaped(pid);
            }
        }
        ended
    }

    fn read_messages(&mut self) {
        let mut message = [0; MAX_CHANNEL_TEXT];
        while let Ok((_, length)) = recv(&self.channel, &mut message, RecvFlags::DONTWAIT) {
            self.channel_closed = length == 0;
            if self.channel_closed {
                return;
            }
            let text = String::from_utf8_lossy(&message[1..length]);
            match message[0] {
                SUCCESSOR => self.servers.extend(text.parse().ok().and_then(Pid::from_raw)),
                KILLED => {
                    let workers = text.parse().unwrap_or_default();
                    self.failure = Some(ServerError::Killed { workers });
                }
                FAILED => {
                    let source = failure_text::decode(&text);
                    self.failure = Some(ServerError::Startup { source });
                }
                _ => {}
            }
        }
    }

    /// Ends the parent after the last server.
    fn finish(self, (pid, end): (Pid, End)) -> Result<(), ServerError> {
        log_output::lock().finish();
        let Self { channel, children, initial_children, failure, .. } = self;
        // This ends a server that has not taken over yet.
        drop(channel);
        let deadline = Instant::now() + DESCENDANTS_TIMEOUT;
        let left = || pids(&children).filter(|pid| !initial_children.contains(pid));
        while left().count() > 0 && Instant::now() < deadline {
            for pid in left() {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
            std::thread::sleep(DESCENDANTS_INTERVAL);
        }
        // In a container, the first process adopts processes from anywhere.
        for pid in left().filter(|&pid| is_server(pid)) {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        match (end, failure) {
            (End::Exited(0), _) => Ok(()),
            (_, Some(failure)) => Err(failure),
            (end, None) => {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                Err(ServerError::Died { pid, end })
            }
        }
    }
}

/// Whether a server started this process as its successor, which its environment shows.
fn is_server(pid: Pid) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("{}={} ", environment::PARENT, std::process::id());
    environment.split(|&byte| byte == 0).any(|entry| entry.starts_with(mark.as_bytes()))
}

fn pids(children: &KernelFile) -> impl Iterator<Item = Pid> + use<> {
    let pids: Vec<Pid> = children
        .read()
        .split_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect();
    pids.into_iter()
}

/// Whether this is really the parent of this process, and not only named by an inherited
/// [`environment::PARENT`].
pub(super) fn is_own(parent: &Parent) -> bool {
    is_parent(parent.pid)
}
