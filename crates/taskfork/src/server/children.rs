//! The workers of a server: making one, judging it, burying it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, kill_process_group, pidfd_open,
    pidfd_send_signal, set_parent_process_death_signal, setpgid, waitid,
};

use super::entry::is_child_of;
use super::limits::{Limit, Recycling, WorkerLimits};
use super::oom::OutOfMemory;
use super::orphans::become_subreaper;
use super::stack;
use super::status::{self, WorkerStatus};
use super::stderr::{Captured, LastWords, Shown, Stderr};
use crate::display::seconds;
use crate::error::End;
use crate::sys::{self, ForkError, Forked, ThreadCount};
use crate::wire::WireError;
use crate::wire::frame::{self, DEFAULT_LIMIT, PREAMBLE};
use crate::wire::native::{self, ErrorBody};
use crate::wire::notice::{self, DeathNotice};
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
    /// It takes too long, and has been asked for its stack.
    suspicion: Option<Suspicion>,
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
    /// For how long it had been at it, if that was too long.
    ran: Option<Duration>,
    cause: &'static str,
}

/// The causes of deaths, as they are counted.
mod cause {
    pub(super) const TIMED_OUT: &str = "timed_out";
    pub(super) const HUNG: &str = "hung";
    pub(super) const CLIENT_GONE: &str = "client_gone";
    pub(super) const SHUTDOWN: &str = "shutdown";
    pub(super) const LIMIT: &str = "limit";
    pub(super) const OUT_OF_MEMORY: &str = "out_of_memory";
    pub(super) const FINISHED: &str = "finished";
    pub(super) const EXITED: &str = "exited";
    pub(super) const SIGNALED: &str = "signaled";
}

/// Why a worker is about to be killed.
#[derive(Debug)]
struct Suspicion {
    judgement: Judgement,
    /// It is killed without its stack then.
    until: Duration,
}

/// How long a worker's stack is waited for before it is killed.
const STACK_WAIT: Duration = Duration::from_millis(100);

/// Which of the two processes is running now.
#[derive(Debug)]
pub(crate) enum Birth {
    Parent(Box<Child>),
    /// A worker was forked and cannot be watched, so that it has been killed. It may have spoken to
    /// its client.
    Stillborn(io::Error),
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
    // So that there is room for the descriptor of the process once it has been forked.
    let room = own.try_clone()?;
    let server = getpid();
    match sys::fork(threads)? {
        Forked::Parent { child } => {
            let pid = Pid::from_raw(child.as_raw()).ok_or(ForkError::Kernel(Errno::SRCH.into()))?;
            // Done on both sides, so that it holds before either goes on.
            let _ = setpgid(Some(pid), Some(pid));
            drop(room);
            let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => pidfd,
                Err(errno) => {
                    // It is reaped as all are that are no workers.
                    let _ = kill_process_group(pid, Signal::KILL);
                    return Ok(Birth::Stillborn(errno.into()));
                }
            };
            Ok(Birth::Parent(Box::new(Child {
                pid,
                pidfd,
                connection: own,
                slot,
                number,
                judgement: None,
                suspicion: None,
                stderr,
                born: now(),
                leaving: false,
            })))
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
            let reason = "its client went away".to_owned();
            self.condemn(Judgement { view, reason, ran: None, cause: cause::CLIENT_GONE });
        }
    }

    /// Kills the worker if its call's time is over, or if it has been in one phase for longer than
    /// `timeout`, once it has told where it is; gives the time until that can be.
    pub(crate) fn judge_hanging(
        &mut self,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        if self.judgement.is_some() {
            return None;
        }
        let view = self.slot.view();
        if let Some(suspicion) = self.suspicion.take_if(|it| it.judgement.view != view) {
            // It was done in this instant.
            drop(suspicion);
        }
        if let Some(Suspicion { until, .. }) = &self.suspicion {
            let left = until.saturating_sub(now);
            if !left.is_zero() && self.slot.stack().is_none() {
                return Some(left);
            }
            if let Some(Suspicion { judgement, .. }) = self.suspicion.take() {
                self.condemn(judgement);
            }
            return None;
        }
        if !view.phase.can_hang() {
            return timeout;
        }
        let own = self.slot.hard_deadline().filter(|_| view.phase == Phase::Busy);
        let hung = timeout.map(|timeout| view.since + timeout);
        let due = [own, hung].into_iter().flatten().min()?;
        if due > now {
            return Some(due - now);
        }
        let timed_out = own == Some(due);
        let reason = match timeout {
            Some(timeout) if !timed_out => {
                format!("hung for more than {} (hung_worker_timeout)", seconds(timeout))
            }
            _ => "its call's time was over".to_owned(),
        };
        let ran = Some(now.saturating_sub(view.since));
        let cause = if timed_out { cause::TIMED_OUT } else { cause::HUNG };
        let judgement = Judgement { view, reason, ran, cause };
        self.suspicion = Some(Suspicion { judgement, until: now + STACK_WAIT });
        self.slot.forget_stack();
        let _ = pidfd_send_signal(&self.pidfd, Signal::ALARM);
        Some(STACK_WAIT)
    }

    /// What it does now.
    pub(crate) fn status(&self, now: Duration) -> WorkerStatus {
        let view = self.slot.view();
        let (memory, peak_memory) = status::memory(self.pid());
        WorkerStatus {
            number: self.number,
            pid: self.pid(),
            state: status::state(view.phase).to_owned(),
            seconds: now.saturating_sub(view.since).as_secs_f64(),
            method: Some(self.slot.method()).filter(|method| !method.is_empty()),
            calls: view.calls,
            checkouts: self.slot.checkouts(),
            memory,
            peak_memory,
        }
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

    /// Kills the worker if it is still where it was seen.
    fn condemn(&mut self, judgement: Judgement) {
        if self.slot.order(judgement.view, Order::Condemned) {
            self.judgement = Some(judgement);
            self.kill();
        }
    }

    /// Kills the worker whatever it is doing.
    pub(crate) fn execute(&mut self, reason: &str) {
        if self.judgement.is_none() {
            let (view, reason) = (self.slot.view(), reason.to_owned());
            self.judgement = Some(Judgement { view, reason, ran: None, cause: cause::SHUTDOWN });
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

    /// Takes a dead worker's status, and ends what it left running.
    pub(crate) fn bury(
        mut self,
        shown: &mut Shown,
        limits: &WorkerLimits,
        out_of_memory: &OutOfMemory,
    ) -> Buried {
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
        let pid = self.pid();
        let stderr = self.stderr.take().map(|stderr| stderr.last_words(pid, shown));
        let LastWords { text: stderr, starved } = stderr.unwrap_or_default();
        let judgement = self.judgement.or(self.suspicion.map(|suspicion| suspicion.judgement));
        let judgement = judgement.unwrap_or_else(|| {
            let (cause, reason) = why(end, starved, limits, out_of_memory);
            Judgement { view: self.slot.view(), reason: reason.to_owned(), ran: None, cause }
        });
        let Judgement { view, reason, ran, cause } = judgement;
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        log_end(self.number, pid, end, view.phase, reason.as_deref());
        let notice = match view.phase {
            // In the middle of an answer a notice would be taken for the rest of it.
            Phase::AnsweringAtLength | Phase::Greeting => None,
            phase => Some(DeathNotice {
                pid,
                end,
                reason,
                during: phase.activity(),
                calls: view.calls,
                stderr,
                ran: ran.map(|ran| ran.as_secs_f64()),
                stack: None,
                timed_out: cause == cause::TIMED_OUT,
            }),
        };
        // A connection that is closed with something unread tells the client at least that.
        let end_it = view.phase != Phase::AnsweringAtLength || !has_unread(&self.connection);
        let stack = ran.and_then(|_| self.slot.stack());
        let news = News { connection: self.connection, notice, end_it };
        Buried { slot: self.slot, news, stack, cause }
    }
}

/// What is left of a worker.
pub(crate) struct Buried {
    pub(crate) slot: Slot,
    pub(crate) news: News,
    /// Where it hung, if it was killed for that and has told.
    pub(crate) stack: Option<Vec<u64>>,
    /// Why it ended, as it is counted.
    pub(crate) cause: &'static str,
}

/// What is to be told to a dead worker's client.
pub(crate) struct News {
    connection: OwnedFd,
    notice: Option<DeathNotice>,
    end_it: bool,
}

impl News {
    pub(crate) fn tell(self) {
        if let Some(notice) = &self.notice {
            tell(&self.connection, notice);
        }
        if self.end_it {
            // Something that the worker has started may hold the connection open.
            let _ = shutdown(&self.connection, Shutdown::Both);
        }
    }

    /// In a process that does nothing else: with the names of what is on the stack.
    pub(crate) fn tell_with(mut self, stack: Vec<u64>) {
        if let Some(notice) = &mut self.notice {
            notice.stack = stack::describe(stack).filter(|stack| !stack.is_empty());
        }
        self.tell();
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.notice.is_some()
    }
}

/// Why a worker ended that the server did not kill, as it is counted, and in words where there is
/// more to say.
fn why(
    end: End,
    starved: bool,
    limits: &WorkerLimits,
    out_of_memory: &OutOfMemory,
) -> (&'static str, &'static str) {
    let signal = match end {
        End::Exited(0) => return (cause::FINISHED, ""),
        End::Signaled(signal) => Signal::from_named_raw(signal),
        _ => return (cause::EXITED, ""),
    };
    match signal {
        Some(Signal::XCPU) if limits.has(Limit::CpuTime) => {
            (cause::LIMIT, "its limit of processor time was reached")
        }
        Some(Signal::ABORT) if limits.has(Limit::AddressSpace) && starved => {
            (cause::LIMIT, "its limit of address space was reached")
        }
        Some(Signal::KILL) if out_of_memory.has_struck() => (cause::OUT_OF_MEMORY, "out of memory"),
        _ => (cause::SIGNALED, ""),
    }
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
        notice::put_death(out, notice);
        Ok(())
    });
    if written.is_ok() {
        // A client that is gone or does not read sees the end of the connection all the same.
        let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}
