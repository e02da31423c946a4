//! Handing the listener over to a new server, and what a service manager wants to know.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
};
use sd_notify::NotifyState;

use super::event_loop::{EventLoop, STATUS, SUCCESSOR};
use super::listener::Listener;
use super::log;
use super::notify::Notifier;
use super::options::Options;
use super::parent::Parent;
use super::socket_file::Identity;
use super::status::open_status;
use super::{guardian, program_file, service_variables};
use crate::address::Address;
use crate::error::End;
use crate::sys;

/// Names the descriptors of the listener and of the line on which the new server says that it is
/// ready, in the environment of a new server.
const VARIABLE: &str = "TASKFORK_RESTART";

/// What a new server says to the one before it: that it has taken over, with its listener or with one of its own, or
/// why it cannot.
const READY: u8 = b'r';
const READY_ELSEWHERE: u8 = b'e';
const REFUSED: u8 = b'n';

/// So much is written to a pipe as a whole.
const LONGEST_MESSAGE: usize = 4096;

/// How long the process of a new server that has closed the line may take to end.
const END_WITHIN: Duration = Duration::from_millis(100);

/// What a server gets from the one that it takes over from.
#[derive(Debug)]
pub(crate) struct Inherited {
    listener: OwnedFd,
    /// The file of the listener, if it has one.
    file: Option<Identity>,
    predecessor: Predecessor,
}

/// The server before this one.
#[derive(Debug)]
pub(crate) struct Predecessor {
    line: File,
}

impl Predecessor {
    /// This server is ready. `is_listener_inherited` tells whether the other one's listener goes on.
    pub(crate) fn take_over(self, is_listener_inherited: bool) {
        self.tell(&[if is_listener_inherited { READY } else { READY_ELSEWHERE }]);
    }

    /// This server cannot start.
    pub(crate) fn refuse(self, error: &dyn fmt::Display) {
        let text = error.to_string();
        let mut message = vec![REFUSED];
        message
            .extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(LONGEST_MESSAGE - 1)]);
        self.tell(&message);
    }

    fn tell(mut self, message: &[u8]) {
        // If it is gone, there is nobody to tell.
        let _ = self.line.write_all(message);
    }
}

impl Inherited {
    /// Nothing if there is no server before this one.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn take() -> Option<Self> {
        let numbers = sys::take_variable(VARIABLE)?;
        let mut numbers = numbers.split(' ');
        let (listener, line) = (numbers.next()?, numbers.next()?);
        let file = numbers.next().and_then(Identity::from_text);
        // SAFETY: the server before this one left them open for this process, by a variable that is gone now.
        let take = |number: &str| unsafe { sys::take_inherited(number.parse().ok()?) }.ok();
        let (listener, line) = (take(listener)?, take(line)?);
        for descriptor in [&listener, &line] {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
        }
        Some(Self { listener, file, predecessor: Predecessor { line: line.into() } })
    }

    /// The listener with its file, and the server that it comes from.
    pub(crate) fn into_parts(self) -> ((OwnedFd, Option<Identity>), Predecessor) {
        ((self.listener, self.file), self.predecessor)
    }
}

/// Starts this program again as a new server on the same listener; gives its process id, and where it
/// says that it is ready.
fn start_successor(listener: &Listener, parent: Option<&Parent>) -> Result<Successor, String> {
    let program = program_file::path();
    let start = || {
        let (ready, line) = pipe_with(PipeFlags::CLOEXEC)?;
        let file = listener.file().map(|file| format!(" {file}")).unwrap_or_default();
        let listener = listener.as_fd();
        let numbers = format!("{} {}{file}", listener.as_raw_fd(), line.as_raw_fd());
        let with = [Some((VARIABLE, numbers)), parent.and_then(Parent::variable)];
        let with: Vec<_> = with.into_iter().flatten().collect();
        let mut without = service_variables::NOT_FOR_SUCCESSORS.to_vec();
        without.push(guardian::VARIABLE);
        let keep = [Some(listener), Some(line.as_fd()), parent.and_then(Parent::line)];
        let keep: Vec<_> = keep.into_iter().flatten().collect();
        let child = sys::spawn_with_own_arguments(program, &with, &without, &keep)?;
        let pid = Pid::from_raw(child.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Successor { pid, line: ready.into() })
    };
    start().map_err(|error: io::Error| format!("cannot start {}: {error}", program.display()))
}

/// A new server that has been started and has not said yet that it is ready.
#[derive(Debug)]
pub(crate) struct Successor {
    pid: Pid,
    line: File,
}

/// What has come of a new server.
enum Outcome {
    /// It has taken over, with this server's listener or with one of its own.
    Ready { is_listener_inherited: bool },
    /// It has not, and why.
    Failed(String),
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}

impl Successor {
    /// Whether it has said something, or ended.
    fn has_spoken(&self) -> bool {
        is_readable(&self.line, Duration::ZERO)
    }

    /// What it has said; its line is readable.
    fn outcome(&mut self) -> Outcome {
        let mut message = [0; LONGEST_MESSAGE];
        let length = self.line.read(&mut message).unwrap_or(0);
        match message[..length].split_first() {
            Some((&READY, _)) => Outcome::Ready { is_listener_inherited: true },
            Some((&READY_ELSEWHERE, _)) => Outcome::Ready { is_listener_inherited: false },
            Some((_, reason)) => Outcome::Failed(String::from_utf8_lossy(reason).into_owned()),
            None => Outcome::Failed(self.end()),
        }
    }

    /// How it ended without a word. A process closes its descriptors a moment before it can be reaped.
    fn end(&self) -> String {
        let ended = pidfd_open(self.pid, PidfdFlags::empty()).and_then(|process| {
            is_readable(&process, END_WITHIN);
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            waitid(WaitId::PidFd(process.as_fd()), look)
        });
        let status = ended.ok().flatten();
        let code = status.as_ref().and_then(|status| status.exit_status());
        let signal = status.as_ref().and_then(|status| status.terminating_signal());
        match (code, signal) {
            (Some(code), _) => End::Exited(code).to_string(),
            (None, Some(signal)) => End::Signaled(signal).to_string(),
            (None, None) => "closed its line to this server".to_owned(),
        }
    }
}

fn is_readable(what: &impl AsFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).ok();
    let mut watched = [PollFd::new(what, PollFlags::IN)];
    poll(&mut watched, within.as_ref()).is_ok_and(|ready| ready > 0)
}

/// The service manager that has started this server, if there is one.
#[derive(Debug)]
pub struct ServiceManager {
    /// How often it wants to hear of this server, and when next.
    watchdog: Option<(Duration, Instant)>,
    /// Whether it is this server's, and not that of the program that has started this server.
    is_own: bool,
    /// Whether it knows the service by this server's process id, and not by that of a parent process.
    knows_pid: bool,
    /// The variables of it that workers must not have.
    variables: Vec<&'static str>,
    notifier: Notifier,
}

impl ServiceManager {
    pub(crate) fn find(options: &Options) -> Self {
        let is_own = options.control.is_none();
        let interval = sd_notify::watchdog_enabled().filter(|_| is_own).map(|limit| limit / 2);
        Self {
            watchdog: interval.map(|interval| (interval, Instant::now())),
            is_own,
            knows_pid: !options.parent.as_ref().is_some_and(Parent::keeps_pid),
            variables: service_variables::found(),
            notifier: Notifier::find(),
        }
    }

    /// The manager of a program that has servers in processes of their own. It knows the program's process id.
    pub(super) fn of_program() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self {
            watchdog: interval.map(|interval| (interval, Instant::now())),
            is_own: true,
            knows_pid: false,
            variables: Vec::new(),
            notifier: Notifier::find(),
        }
    }

    /// Those that workers must not have.
    pub(super) fn variables(&self) -> &[&'static str] {
        &self.variables
    }

    /// The first socket that it has opened for this server.
    pub(crate) fn listener() -> Option<Address> {
        let mut sockets = sd_notify::listen_fds().ok()?;
        sockets.next().map(Address::inherited)
    }

    /// Says that the service is ready.
    pub fn notify_ready(&mut self) {
        match (self.is_own, self.knows_pid) {
            (true, true) => {
                let pid = NotifyState::MainPid(std::process::id());
                self.notifier.tell(&[NotifyState::Ready, pid]);
            }
            (true, false) => self.notifier.tell(&[NotifyState::Ready]),
            (false, _) => {}
        }
    }

    /// Says that the service ends.
    pub fn notify_stopping(&mut self) {
        if self.is_own {
            self.notifier.tell(&[NotifyState::Stopping]);
        }
    }

    /// Says that this process is alive if it is time, and repeats what the manager has not taken. Returns the time
    /// until there is something to say.
    pub fn keep_alive(&mut self) -> Option<Duration> {
        let again = self.notifier.tend();
        let Some((interval, next)) = self.watchdog.as_mut() else { return again };
        let now = Instant::now();
        if *next <= now {
            *next = now + *interval;
            self.notifier.tell(&[NotifyState::Watchdog]);
        }
        again.into_iter().chain([*next - now]).min()
    }
}

impl EventLoop {
    /// Has a new server of this program take over; this one goes on until that is ready.
    pub(super) fn start_restart(&mut self) {
        match &self.successor {
            // It may have taken over already.
            Some(successor) if successor.has_spoken() => return self.read_successor(),
            Some(successor) => {
                let pid = successor.pid;
                log::warn!("the new server {pid} is not ready yet, and is replaced by another");
                self.cancel_successor();
            }
            None => {}
        }
        let Some(listener) = &self.listener else { return };
        let program = program_file::path();
        if let Err(reason) = program_file::check(program) {
            log::error!("no new server, this one goes on: {reason}, then send SIGHUP again");
            return;
        }
        let name = &self.options.name;
        log::info!(name, "starting {} as a new server to take over", program.display());
        // It makes one of its own.
        self.status = None;
        let started = start_successor(listener, self.options.parent.as_ref());
        let watched = started.and_then(|successor| {
            self.orphans.exclude(successor.pid);
            match self.watch(successor.line.as_fd(), SUCCESSOR, EventFlags::IN) {
                Ok(()) => Ok(successor),
                Err(error) => {
                    self.orphans.forget(successor.pid);
                    Err(error.to_string())
                }
            }
        });
        match watched {
            Ok(successor) => self.successor = Some(successor),
            Err(reason) => {
                log::error!("no new server, this one goes on: {reason}");
                self.reopen_status_socket();
            }
        }
    }

    /// Has the server that has taken over restart, where this one is told to.
    pub(super) fn forward_restart(&self) {
        if let Some(successor_pid) = self.successor_pid.filter(|_| self.signals.asks_for_restart())
        {
            // It is a child that this process never reaps, so that the number is its own.
            let _ = kill_process(successor_pid, Signal::HUP);
        }
    }

    pub(super) fn read_successor(&mut self) {
        let Some(mut successor) = self.unwatch_successor() else { return };
        match successor.outcome() {
            Outcome::Ready { is_listener_inherited } => {
                if let Some(parent) = &self.options.parent {
                    parent.announce(successor.pid);
                }
                if let Some(listener) = self.listener.as_mut().filter(|_| is_listener_inherited) {
                    listener.leave_file();
                }
                self.successor_pid = Some(successor.pid);
                self.drain();
            }
            Outcome::Failed(reason) => {
                let pid = successor.pid;
                log::error!("the new server {pid} did not come up, this one goes on: {reason}");
                self.kill_successor(&successor);
                self.reopen_status_socket();
            }
        }
    }

    /// Ends a new server that is not ready yet.
    pub(super) fn cancel_successor(&mut self) {
        if let Some(successor) = self.unwatch_successor() {
            self.kill_successor(&successor);
        }
    }

    fn kill_successor(&mut self, successor: &Successor) {
        self.orphans.forget(successor.pid);
        self.reap_orphans();
    }

    fn unwatch_successor(&mut self) -> Option<Successor> {
        let successor = self.successor.take()?;
        let _ = epoll::delete(&self.epoll, &successor.line);
        Some(successor)
    }

    /// Tells of itself again.
    fn reopen_status_socket(&mut self) {
        self.status = open_status(&self.options, self.listener.as_ref()).unwrap_or_else(|error| {
            log::error!("there is no status socket any more: {error}");
            None
        });
        if let Some(status) = &self.status
            && let Err(error) = self.watch(status.as_fd(), STATUS, EventFlags::IN)
        {
            log::error!("the status socket is of no use: {error}");
        }
    }
}
