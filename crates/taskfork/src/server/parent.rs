//! A server whose process id outlives restarts: a small parent process has that id. It passes signals on to the
//! server, and ends when the server and all that have taken over from it have ended.

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
use super::hangup::{Hangup, explain_shutdown};
use super::log;
use super::orphans::become_subreaper;
use super::process::{end_of_wait, is_parent};
use super::signals::Signals;
use super::spawned_server;
use super::titles::printable_name;
use crate::error::End;
use crate::log_output;
use crate::sys::{self, ForkError, Forked, KernelFile, MAX_CHANNEL_TEXT, ThreadCount};
use crate::time_limit::timespec;

/// Names the process that passes signals on to this one, and the descriptor of the channel to it if there is one.

/// Messages to the parent: a server has taken over, a server could not start, a server had to kill workers.
const SUCCESSOR: u8 = b's';
const FAILED: u8 = b'f';
const KILLED: u8 = b'k';

/// How long what dead servers have left may take to end by itself; their guardians end it.
const LEFTOVERS_WITHIN: Duration = Duration::from_secs(5);
const LEFTOVERS_PAUSE: Duration = Duration::from_millis(5);

/// A server's hold on its parent.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    pid: u32,
    /// Nothing for a process that only gets its signals from there.
    channel: Option<Arc<OwnedFd>>,
}

impl Parent {
    /// The one that is named in the environment.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(super) fn take() -> Option<Self> {
        let text = sys::take_variable(environment::PARENT)?;
        let (pid, channel) = text.split_once(' ').unwrap_or((&text, ""));
        let pid = pid.parse().ok()?;
        // SAFETY: the server before this one left it open for this process, by a variable that is gone now.
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

    /// Whether it stays while servers take over from one another.
    pub(super) fn keeps_pid(&self) -> bool {
        self.channel.is_some()
    }

    /// Ends when the parent does.
    pub(super) fn channel(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(|channel| channel.as_fd())
    }

    /// How a new server finds it.
    pub(super) fn variable(&self) -> Option<(&'static str, String)> {
        let channel = self.channel.as_ref()?;
        Some((environment::PARENT, format!("{} {}", self.pid, channel.as_raw_fd())))
    }

    /// Says that another server has taken over from this one, whose end it is not.
    pub(super) fn announce(&self, successor: Pid) {
        self.send(SUCCESSOR, &successor.as_raw_nonzero().to_string());
    }

    fn report(&self, error: &ServerError) {
        match error {
            ServerError::Killed { workers } => self.send(KILLED, &workers.to_string()),
            error => self.send(FAILED, &error.to_string()),
        }
    }

    fn send(&self, kind: u8, text: &str) {
        let Some(channel) = &self.channel else { return };
        let mut message = vec![kind];
        message
            .extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_CHANNEL_TEXT - 1)]);
        // A parent that is gone needs no word.
        let _ = send(&**channel, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Forks a process in which `serve` runs. This one stays its parent, and gives what has come of it.
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
    let this_process = ParentProcess::new(signals, ours);
    let this = std::process::id();
    sys::flush_stdio();
    // SAFETY: the child is the server, as the caller wants it, and leaves by `exit_now`.
    match unsafe { sys::fork(&threads) } {
        Ok(Forked::Parent { child }) => {
            drop(theirs);
            sys::set_title(&format!("taskfork-parent:{}", printable_name(name)));
            match Pid::from_raw(child.as_raw()) {
                Some(server) => this_process.run(server),
                None => Ok(()),
            }
        }
        Ok(Forked::Child) => {
            drop(threads);
            this_process.leave();
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
            sys::flush_stdio();
            sys::exit_now(status)
        }
        Err(ForkError::Threads { threads }) => Err(ServerError::Threads { threads }),
        Err(ForkError::Kernel(source)) => {
            Err(ServerError::System { what: "cannot fork the server", source })
        }
    }
}

/// The parent process.
struct ParentProcess {
    signals: Signals,
    channel: OwnedFd,
    /// The last one takes connections, the others finish what they have begun.
    servers: Vec<Pid>,
    children: KernelFile,
    /// Children that this process had before.
    initial_children: HashSet<Pid>,
    /// No server has the other end of the channel any more.
    channel_closed: bool,
    /// What a server has said of its failure.
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

    /// In the server's process.
    fn leave(self) {
        self.signals.leave_blocked();
    }

    fn run(mut self, server: Pid) -> Result<(), ServerError> {
        self.servers.push(server);
        let mut last = (server, End::Unknown);
        loop {
            // A server that has been taken over from would lose what it is told.
            self.read_messages();
            self.forward_signals();
            let ended = self.reap();
            // What a server has said before its end has come by now.
            self.read_messages();
            self.servers.retain(|pid| ended.iter().all(|(ended, _)| ended != pid));
            if !ended.is_empty() && !self.servers.is_empty() {
                // It is not what the last one has come to.
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
        // A channel that is over is always readable, and a server may do something else at its end.
        let count = if self.channel_closed { 1 } else { 2 };
        // Lines of the log that its reader has not taken yet.
        let timeout = log_output::lock().retry().map(timespec);
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

    /// For the server that takes connections.
    fn signal(&self, signal: Signal) {
        if let Some(&server) = self.servers.last() {
            // One that has just ended needs no signal.
            let _ = kill_process(server, signal);
        }
    }

    /// Also for servers that finish what they have begun.
    fn signal_all(&self, signal: Signal) {
        self.servers.iter().for_each(|&server| kill_process(server, signal).unwrap_or(()));
    }

    /// The servers that have ended. What else has lost its parent is reaped.
    fn reap(&self) -> Vec<(Pid, End)> {
        let reaped = |pid| match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => Some(Ok(end_of_wait(status))),
            Ok(None) => None,
            Err(errno) => Some(Err(errno)),
        };
        let ended = self.servers.iter().filter_map(|&pid| match reaped(pid)? {
            Ok(end) => Some((pid, end)),
            // It is the child of the server before it as long as that lives.
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
                    self.failure = Some(ServerError::Startup { message: text.into_owned() });
                }
                _ => {}
            }
        }
    }

    /// All servers have ended, the last one so.
    fn finish(self, (pid, end): (Pid, End)) -> Result<(), ServerError> {
        log_output::lock().finish();
        let Self { channel, children, initial_children, failure, .. } = self;
        // Has a server end that has not taken over yet.
        drop(channel);
        let patience = Instant::now() + LEFTOVERS_WITHIN;
        let left = || pids(&children).filter(|pid| !initial_children.contains(pid));
        while left().count() > 0 && Instant::now() < patience {
            for pid in left() {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
            std::thread::sleep(LEFTOVERS_PAUSE);
        }
        // Others may have come to this process from anywhere if it is the first of a container.
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

/// Whether a server has started this process to take over from it, by what stands in its environment.
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

/// The parent if it is this process's parent still, for a process that was started with [`environment::PARENT`].
pub(super) fn is_own(parent: &Parent) -> bool {
    is_parent(parent.pid)
}
