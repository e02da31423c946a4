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
use super::stderr::{Captured, Shown, Stderr};
use crate::display::seconds;
use crate::error::End;
use crate::sys::{self, ForkError, Forked, ThreadCount};
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_LIMIT};
use crate::wire::native::{self, DeathNotice};
use crate::worker::scoreboard::{Order, Phase, Slot, View};

/// A worker process as its server knows it.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// The server's own descriptor of the worker's connection.
    pub(crate) connection: OwnedFd,
    pub(crate) slot: Slot,
    pub(crate) number: u64,
    judgement: Option<Judgement>,
    stderr: Option<Captured>,
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
            }))
        }
        Forked::Child => {
            let _ = setpgid(None, None);
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            // The server may have died before the signal was asked for.
            if !is_child_of(server) {
                sys::exit_now(1);
            }
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

    /// Kills the worker if it is still where `view` saw it.
    fn condemn(&mut self, view: View, reason: String) {
        if self.slot.order(view, Order::Condemned) {
            tracing::warn!(worker = self.number, pid = self.pid(), "killing a worker: {reason}");
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
    pub(crate) fn retire(&self) {
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
    pub(crate) fn bury(mut self, shown: &mut Shown) -> Slot {
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
        let (view, reason) = match self.judgement {
            Some(Judgement { view, reason }) => (view, Some(reason)),
            None => (current, None),
        };
        let pid = self.pid.as_raw_nonzero().get().unsigned_abs();
        tracing::debug!(worker = self.number, pid, ?end, phase = ?view.phase, "a worker ended");
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
