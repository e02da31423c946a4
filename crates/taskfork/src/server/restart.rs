//! Handing the listener over to a new server, and what a service manager wants to know.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use sd_notify::NotifyState;

use super::error::ServerError;
use super::event_loop::{EventLoop, STATUS, SUCCESSOR};
use super::guardian;
use super::status::open_status;
use crate::address::Address;
use crate::sys;

/// Names the descriptors of the listener and of the line on which the new server says that it is
/// ready, in the environment of a new server.
const VARIABLE: &str = "TASKFORK_RESTART";

/// What a server gets from the one that it takes over from.
#[derive(Debug)]
pub(crate) struct Inheritance {
    listener: OwnedFd,
    line: Line,
}

/// On which a new server says that it is ready.
pub(crate) type Line = std::fs::File;

impl Inheritance {
    /// Nothing if there is no server before this one.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(crate) fn take() -> Option<Self> {
        let numbers = sys::take_variable(VARIABLE)?;
        let (listener, line) = numbers.split_once(' ')?;
        // SAFETY: the server before this one left them open for this process, by a variable that is gone now.
        let take = |number: &str| unsafe { sys::take_inherited(number.parse().ok()?) }.ok();
        let (listener, line) = (take(listener)?, take(line)?);
        for descriptor in [&listener, &line] {
            rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC).ok()?;
        }
        Some(Self { listener, line: line.into() })
    }

    /// The listener, and the line on which to say that this server is ready.
    pub(crate) fn into_parts(self) -> (OwnedFd, Line) {
        (self.listener, self.line)
    }
}

/// Starts this program again as a new server on the same listener; gives its process id, and where it
/// says that it is ready.
fn start_successor(listener: &impl AsFd) -> io::Result<Successor> {
    let (ready, line) = pipe_with(PipeFlags::CLOEXEC)?;
    let listener = listener.as_fd();
    let numbers = format!("{} {}", listener.as_raw_fd(), line.as_raw_fd());
    let child =
        sys::execute_again((VARIABLE, &numbers), guardian::VARIABLE, &[listener, line.as_fd()])?;
    let pid = Pid::from_raw(child.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    Ok(Successor { pid, line: ready })
}

/// A new server that has been started and has not said yet that it is ready.
#[derive(Debug)]
pub(crate) struct Successor {
    pid: Pid,
    line: OwnedFd,
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.line.as_fd()
    }
}

impl Successor {
    /// Whether it has said so; its line is readable.
    fn is_ready(&self) -> bool {
        rustix::io::read(&self.line, &mut [0; 1]) == Ok(1)
    }
}

/// The service manager that has started this server, if there is one.
#[derive(Debug)]
pub(crate) struct ServiceManager {
    /// How often it wants to hear of this server, and when next.
    watchdog: Option<(Duration, Instant)>,
}

impl ServiceManager {
    pub(crate) fn find() -> Self {
        let interval = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        Self { watchdog: interval.map(|interval| (interval, Instant::now())) }
    }

    /// The first socket that it has opened for this server.
    pub(crate) fn listener() -> Option<Address> {
        let mut sockets = sd_notify::listen_fds().ok()?;
        sockets.next().map(Address::inherited)
    }

    pub(crate) fn is_ready(&self) {
        tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
    }

    pub(crate) fn is_stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Says that this server is alive if it is time; gives the time until the next.
    pub(crate) fn keep_alive(&mut self) -> Option<Duration> {
        let (interval, next) = self.watchdog.as_mut()?;
        let now = Instant::now();
        if *next <= now {
            tell(&[NotifyState::Watchdog]);
            *next = now + *interval;
        }
        Some(*next - now)
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}

impl EventLoop {
    /// Has a new server of this very program take over; this one goes on until that is ready.
    pub(super) fn hand_over(&mut self) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.successor.is_none()) else {
            return;
        };
        tracing::info!(name = self.options.name, "starting a new server to take over");
        // It makes one of its own.
        self.status = None;
        let started = start_successor(listener);
        let watched = started.map_err(ServerError::system("cannot start")).and_then(|successor| {
            self.orphans.leave_alone(successor.pid);
            self.watch(successor.line.as_fd(), SUCCESSOR, EventFlags::IN)?;
            Ok(successor)
        });
        match watched {
            Ok(successor) => self.successor = Some(successor),
            Err(error) => {
                tracing::error!("no new server, this one goes on: {error}");
                self.go_on();
            }
        }
    }

    pub(super) fn hear_successor(&mut self) {
        if self.successor.as_ref().is_some_and(Successor::is_ready) {
            self.unwatch_successor();
            if let Some(listener) = &mut self.listener {
                listener.leave_file();
            }
            self.drain();
        } else {
            tracing::error!("the new server did not come up, this one goes on");
            self.give_up_successor();
            self.go_on();
        }
    }

    /// Ends a new server that is not ready yet.
    pub(super) fn give_up_successor(&mut self) {
        if let Some(successor) = self.unwatch_successor() {
            self.orphans.forget(successor.pid);
            self.end_orphans();
        }
    }

    fn unwatch_successor(&mut self) -> Option<Successor> {
        let successor = self.successor.take()?;
        let _ = epoll::delete(&self.epoll, &successor.line);
        Some(successor)
    }

    /// Tells of itself again.
    fn go_on(&mut self) {
        self.status = open_status(&self.options, self.listener.as_ref()).unwrap_or_else(|error| {
            tracing::error!("there is no status socket any more: {error}");
            None
        });
        if let Some(status) = &self.status
            && let Err(error) = self.watch(status.as_fd(), STATUS, EventFlags::IN)
        {
            tracing::error!("the status socket is of no use: {error}");
        }
    }
}
