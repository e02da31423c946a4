//! The workers of a server: making one, judging it, burying it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, pidfd_open,
    set_parent_process_death_signal, setpgid, waitid,
};

use super::entry::is_child_of;
use super::limits::{Limit, Recycling, WorkerLimits};
use super::oom::OutOfMemory;
use super::orphans::become_subreaper;
use super::stderr::{Captured, Shown, Stderr};
use crate::display::seconds;
use crate::error::End;
use crate::sys::{self, ForkError, Forked, ThreadCount};
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_LIMIT, PREAMBLE};
use crate::wire::native::{self, DeathNotice, ErrorBody};
use crate::worker::scoreboard::{Order, Phase, Slot, View, now};

/// A worker process as its server knows it.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// The server's own descriptor of the worker's connection.
    pub(crate) connection: OwnedFd,
    pub(crate) slot: Slot,
    pub(crate) number: u64,
    judgement: Option<Judgement>,
    stderr: Option<Captured>,
    /// When it was forked, on the clock of the scoreboard.
    born: Duration,
    /// It has been told to leave when its checkout is done.
    leaving: bool,
}

/// Why a worker was killed, and what it was doing.
#[derive(Debug)]
struct Judgement {
    view: View,
    reason: String,
}

/// Which of the two processes is running now.
#[derive(Debug)]
pub(crate) enum Birth {
    Parent(Child),
    /// With what is to be its standard error, if that is not the server's.
    Worker(Option<OwnedFd>),
}

/// Forks a worker for `connection`.
pub(crate) fn fork_worker(
    connection: &OwnedFd,
    slot: Slot,
    number: u64,
    threads: &ThreadCount,
    stderr: Stderr,
) -> Result<Birth, ForkError> {
    let own = connection.try_clone()?;
    let (stderr, writer) = match stderr {
        Stderr::Capture => {
            let (captured, writer) = Captured::new()?;
            (Some(captured), Some(writer))
        }
        Stderr::Inherit => (None, None),
    };
    let server = getpid();
    match sys::fork(threads)? {
        Forked::Parent { child } => {
            let pid = Pid::from_raw(child.as_raw()).ok_or(ForkError::Kernel(Errno::SRCH.into()))?;
            // Done on both sides, so that it holds before either goes on.
            let _ = setpgid(Some(pid), Some(pid));
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from)?;
            Ok(Birth::Parent(Child {
                pid,
                pidfd,
                connection: own,
                slot,
                number,
                judgement: None,
                stderr,
                born: now(),
                leaving: false,
            }))
        }
        Forked::Child => {
            let _ = setpgid(None, None);
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            // The server may have died before the signal was asked for.
            if !is_child_of(server) {
                sys::exit_now(1);
            }
            become_subreaper();
            Ok(Birth::Worker(writer))
        }
    }
}

impl Child {
    /// What a new worker closes of another's.
    pub(crate) fn into_descriptors(self) -> impl Iterator<Item = OwnedFd> {
        [self.pidfd, self.connection].into_iter().chain(self.stderr.and_then(Captured::into_pipe))
    }

    /// The worker's standard error, if it is to be watched.
    pub(crate) fn stderr(&self) -> Option<&OwnedFd> {
        self.stderr.as_ref().and_then(Captured::pipe)
    }

    /// Shows what the worker has written to standard error; gives it back once it has ended.
    pub(crate) fn pass_stderr_on(&mut self, shown: &mut Shown) -> Option<OwnedFd> {
        let pid = self.pid();
        self.stderr.as_mut()?.pass_on(pid, shown)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The client closed its end: kills the worker if it works for nobody now, and otherwise has it
    /// find out by itself.
    pub(crate) fn client_left(&mut self) {
        self.slot.client_is_gone();
        let view = self.slot.view();
        if matches!(view.phase, Phase::Setup | Phase::Busy) {
            self.condemn(view, "its client went away".to_owned());
        }
    }

    /// Kills the worker if it has been in one phase for longer than `timeout`; gives the time until
    /// it can have been.
    pub(crate) fn judge_hanging(&mut self, now: Duration, timeout: Duration) -> Duration {
        let view = self.slot.view();
        if self.judgement.is_some() || !view.phase.can_hang() {
            return timeout;
        }
        let left = (view.since + timeout).saturating_sub(now);
        if left.is_zero() {
            let reason = format!("hung for more than {} (hung_worker_timeout)", seconds(timeout));
            self.condemn(view, reason);
            return timeout;
        }
        left
    }

    /// Has the worker leave if it is too old, or has been idle for too long; gives the time until it
    /// can be.
    pub(crate) fn judge_age(&mut self, now: Duration, recycling: &Recycling) -> Option<Duration> {
        if self.leaving {
            return None;
        }
        let age = recycling.age_of(self.number).map(|age| self.born + age);
        let view = self.slot.view();
        // One that is at work may be idle just after this, and is due at the earliest then.
        let since = if view.phase == Phase::Idle { view.since } else { now };
        let idle = recycling.max_idle.map(|idle| since + idle);
        let due = [age, idle].into_iter().flatten().min()?;
        if due <= now {
            tracing::debug!(worker = self.number, pid = self.pid(), "a worker is to be replaced");
            self.retire();
            return None;
        }
        Some(due - now)
    }

    /// Kills the worker if it is still where `view` saw it.
    fn condemn(&mut self, view: View, reason: String) {
        if self.slot.order(view, Order::Condemned) {
            self.judgement = Some(Judgement { view, reason });
            self.kill();
        }
    }

    /// Kills the worker whatever it is doing.
    pub(crate) fn execute(&mut self, reason: &str) {
        if self.judgement.is_none() {
            self.judgement = Some(Judgement { view: self.slot.view(), reason: reason.to_owned() });
        }
        self.kill();
    }

    fn kill(&self) {
        // It and whatever it started. Until it is reaped, the number is its own.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Has the worker leave as soon as it is in nobody's hands.
    pub(crate) fn retire(&mut self) {
        self.leaving = true;
        self.slot.retire_when_idle();
        let view = self.slot.view();
        if matches!(view.phase, Phase::Greeting | Phase::Idle)
            && self.slot.order(view, Order::Retired)
        {
            // Ends the wait for a message; a message that is there already finds the order.
            let _ = shutdown(&self.connection, Shutdown::Read);
        }
    }

    /// Takes a dead worker's status, ends what it left running, and tells its client.
    pub(crate) fn bury(
        mut self,
        shown: &mut Shown,
        limits: &WorkerLimits,
        out_of_memory: &OutOfMemory,
    ) -> Slot {
        use std::os::fd::AsFd;
        // Its group can be signalled for as long as its number is not free.
        self.kill();
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        let end = match status.ok().flatten() {
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(code),
                (None, Some(signal)) => End::Signaled(signal),
                (None, None) => End::Unknown,
            },
            None => End::Unknown,
        };
        let stderr = self.stderr.take().and_then(|stderr| stderr.last_words(self.pid(), shown));
        let current = self.slot.view();
        let pid = self.pid();
        let (view, reason) = match self.judgement {
            Some(Judgement { view, reason }) => (view, Some(reason)),
            None => (current, why(end, stderr.as_deref(), limits, out_of_memory)),
        };
        log_end(self.number, pid, end, view.phase, reason.as_deref());
        match view.phase {
            // In the middle of an answer a notice would be taken for the rest of it. A connection
            // that is closed with something unread tells the client at least that.
            Phase::AnsweringAtLength if has_unread(&self.connection) => return self.slot,
            Phase::AnsweringAtLength | Phase::Greeting => {}
            phase => {
                let during = phase.activity();
                let notice = DeathNotice { pid, end, reason, during, calls: view.calls, stderr };
                tell(&self.connection, &notice);
            }
        }
        // Something that the worker has started may hold the connection open.
        let _ = shutdown(&self.connection, Shutdown::Both);
        self.slot
    }
}

/// Why a worker ended that the server did not kill, where that can be known.
fn why(
    end: End,
    stderr: Option<&str>,
    limits: &WorkerLimits,
    out_of_memory: &OutOfMemory,
) -> Option<String> {
    let End::Signaled(signal) = end else { return None };
    let refused = || stderr.is_some_and(|text| text.contains("memory allocation of "));
    let why = match Signal::from_named_raw(signal)? {
        Signal::XCPU if limits.has(Limit::CpuTime) => "its limit of processor time was reached",
        Signal::ABORT if limits.has(Limit::AddressSpace) && refused() => {
            "its limit of address space was reached"
        }
        Signal::KILL if out_of_memory.has_struck() => "out of memory",
        _ => return None,
    };
    Some(why.to_owned())
}

/// One line a death.
fn log_end(worker: u64, pid: u32, end: End, phase: Phase, reason: Option<&str>) {
    let during = phase.activity();
    match (end, reason) {
        (End::Exited(0), None) => tracing::debug!(worker, pid, "a worker ended"),
        (_, Some(reason)) => {
            tracing::warn!(worker, pid, ?end, ?during, "a worker ended: {reason}");
        }
        (_, None) => tracing::warn!(worker, pid, ?end, ?during, "a worker ended"),
    }
}

/// Tells a client that wants a worker that it gets none, and why.
pub(crate) fn refuse(connection: &OwnedFd, reason: &str) {
    let body = ErrorBody { kind: native::kind::BUSY, message: reason, ..ErrorBody::default() };
    let mut out = PREAMBLE.to_vec();
    let written = frame::write::<WireError>(&mut out, DEFAULT_LIMIT, |out| {
        native::put_error(out, &body);
        Ok(())
    });
    if written.is_ok() {
        let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        // What the client says is not read; that it is there must not undo what was sent.
        let _ = shutdown(connection, Shutdown::Write);
    }
}

fn has_unread(connection: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(connection).is_ok_and(|unread| unread > 0)
}

fn tell(connection: &OwnedFd, notice: &DeathNotice) {
    let mut out = Vec::new();
    let written = frame::write::<WireError>(&mut out, DEFAULT_LIMIT, |out| {
        native::put_death(out, notice);
        Ok(())
    });
    if written.is_ok() {
        // A client that is gone or does not read sees the end of the connection all the same.
        let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}
