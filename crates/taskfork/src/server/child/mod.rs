//! The workers of a server: employing one, judging it, burying it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use crate::display::seconds;
use crate::error::End;
use crate::server::fair_share::{AssignedWorker, ClientId};
use crate::server::limits::{Recycling, WorkerLimits};
use crate::server::log;
use crate::server::log_limit::LogLimit;
use crate::server::oom::OomKills;
use crate::server::status::{self, WorkerStatus};
use crate::server::stderr::{CapturedStderr, StderrOutput, StderrTail, Turn};
use crate::server::worker_exit::{
    DeathNotification, ExitLogEntry, WorkerExit, cause, classify_exit, has_peer_closed,
};
use crate::sys;
use crate::wire::death_notice::DeathNotice;
use crate::worker::AcceptedClient;
use crate::worker::scoreboard::{
    MOST_COUNTED, Phase, Retirement, ServerSlot, SlotView, StopRequest, now,
};

/// A worker process as its server knows it. It is kept small, as what changes in the server's memory is
/// copied after each fork.
#[derive(Debug)]
pub(crate) struct Child {
    /// Its own until the server has reaped it, which nobody else does.
    pub(crate) pid: Pid,
    /// What the worker is there for.
    role: Role,
    pub(crate) slot: ServerSlot,
    pub(crate) number: u64,
    kill_reason: Option<Box<KillReason>>,
    /// It takes too long, and has been asked for its stack.
    pending_kill: Option<Box<PendingKill>>,
    /// The last call, by its number, of which it was told that the time is over.
    alarmed_call: u64,
    stderr: Option<CapturedStderr>,
    /// When it was forked, on the clock of the scoreboard.
    born: Duration,
    /// When it was told to leave once its checkout is done.
    leaving: Option<Duration>,
    /// When its client closed the connection.
    client_gone: Option<Duration>,
    /// Whose it is, unless it is a spare.
    pub(crate) holder: ClientId,
}

/// What a worker is there for, by the server's own end of it.
#[derive(Debug)]
pub(crate) enum Role {
    /// The client at the other end of this connection.
    Client(OwnedFd),
    /// Whoever comes: the worker waits at the other end of this line for a connection.
    Spare(OwnedFd),
}

impl Role {
    /// The server's own end.
    pub(super) fn end(&self) -> &OwnedFd {
        let (Self::Client(end) | Self::Spare(end)) = self;
        end
    }

    /// Why a spare worker could not be set up, if it has said so.
    fn told(&self) -> Option<String> {
        let Self::Spare(line) = self else { return None };
        let mut text = [0; sys::MAX_CHANNEL_TEXT];
        let (_, length) = recv(line, &mut text, RecvFlags::DONTWAIT).ok()?;
        let failure = String::from_utf8_lossy(&text[..length]);
        (length > 0).then(|| format!("its setup failed: {failure}"))
    }
}

/// Why a worker was killed, and what it was doing.
#[derive(Debug)]
struct KillReason {
    view: SlotView,
    reason: String,
    /// For how long it had been at it, if that was too long.
    ran: Option<Duration>,
    cause: &'static str,
    /// Why its stack is not known, if it was asked for it in vain.
    no_stack: Option<String>,
}

impl KillReason {
    fn new(view: SlotView, reason: String, cause: &'static str) -> Self {
        Self { view, reason, ran: None, cause, no_stack: None }
    }
}

/// Why a worker is about to be killed.
#[derive(Debug)]
struct PendingKill {
    kill_reason: KillReason,
    /// Since when its stack is waited for.
    asked: Duration,
    /// It is killed without its stack then.
    until: Duration,
}

/// How long a worker may stay that has no client any more, or that was told to leave and serves nobody. It
/// closes what it has open in that time.
const LEAVE_WITHIN: Duration = Duration::from_secs(30);

/// The same while it runs `checkout_done`, where no `hung_worker_timeout` is set.
const DONE_WITHIN: Duration = Duration::from_secs(300);

/// A worker that a client has just got is not replaced before its first call, if that comes within this time.
const FIRST_CALL_WITHIN: Duration = Duration::from_secs(1);

/// A spare worker waits at least so long for a client, so that one with a small `max_age` is not forked again and
/// again.
const LEAST_SPARE: Duration = Duration::from_millis(100);

/// In how long a worker is looked at again that is not set up yet.
const SETUP_POLL_INTERVAL: Duration = Duration::from_millis(20);
const TIME_IS_OVER: &str = "its call's time was over";

/// How long a worker's stack is waited for before it is killed.
const STACK_WAIT: Duration = Duration::from_millis(100);

/// The same for a worker that takes the signal, but has not had a core since.
const MAX_STACK_WAIT: Duration = Duration::from_millis(600);

impl Child {
    pub(crate) fn new(
        pid: Pid,
        role: Role,
        slot: ServerSlot,
        number: u64,
        stderr: Option<CapturedStderr>,
    ) -> Self {
        Self {
            pid,
            role,
            slot,
            number,
            kill_reason: None,
            pending_kill: None,
            alarmed_call: 0,
            stderr,
            born: now(),
            leaving: None,
            client_gone: None,
            holder: ClientId::default(),
        }
    }

    /// What a new worker closes of another's.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.role.end()].into_iter().chain(self.stderr()).map(AsFd::as_fd)
    }

    /// The server's own descriptor of the worker's connection, if it has one.
    pub(crate) fn connection(&self) -> Option<&OwnedFd> {
        match &self.role {
            Role::Client(connection) => Some(connection),
            Role::Spare(_) => None,
        }
    }

    /// Whether it waits for somebody to serve, or will.
    pub(crate) fn is_spare(&self) -> bool {
        matches!(self.role, Role::Spare(_)) && self.leaving.is_none() && self.kill_reason.is_none()
    }

    /// Whether it has been set up, and waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_spare() && self.slot.is_in(Phase::Spare)
    }

    /// What it counts for where workers are shared; nothing if it serves nobody, or is about to leave.
    pub(crate) fn held(&mut self, now: Duration) -> Option<AssignedWorker> {
        self.connection()?;
        let view = self.look();
        if self.leaving.is_some() || self.client_gone.is_some() || self.kill_reason.is_some() {
            return None;
        }
        let idle = (view.phase == Phase::Idle).then(|| now.saturating_sub(view.since));
        Some(AssignedWorker {
            worker: self.number,
            holder: self.holder,
            age: now.saturating_sub(self.born),
            idle,
            is_used: view.calls > 0,
            checkouts: self.slot.checkouts(),
            is_json: !self.slot.is_death_reportable(),
        })
    }

    /// For how long it has lived.
    pub(crate) fn age(&self) -> Duration {
        now().saturating_sub(self.born)
    }

    /// Gives a spare worker somebody to serve; gives the connection back if that cannot be.
    pub(crate) fn assign_client(&mut self, client: AcceptedClient) -> Result<(), AcceptedClient> {
        let Role::Spare(line) = &self.role else { return Err(client) };
        match sys::send_descriptor(line, client.socket.as_fd(), &client.encode()) {
            Ok(()) => {
                self.role = Role::Client(client.socket);
                Ok(())
            }
            Err(_) => Err(client),
        }
    }

    /// The worker's standard error, if it is to be watched.
    pub(crate) fn stderr(&self) -> Option<&OwnedFd> {
        self.stderr.as_ref().and_then(CapturedStderr::pipe)
    }

    /// Shows what the worker has written to standard error, up to `most` in a time slice.
    pub(crate) fn forward_stderr(&mut self, shown: &mut StderrOutput, most: usize) -> Option<Turn> {
        let pid = self.pid();
        Some(self.stderr.as_mut()?.pass_on(pid, shown, most))
    }

    /// Shows how many lines of it were omitted if it is time. Returns the time until it is.
    pub(crate) fn report_omitted(
        &mut self,
        shown: &mut StderrOutput,
        now: Instant,
    ) -> Option<Duration> {
        let pid = self.pid();
        self.stderr.as_mut()?.report_omitted(pid, shown, now)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The client closed its end: kills the worker if it works for nobody now, and otherwise has it
    /// find out by itself.
    pub(crate) fn handle_client_gone(&mut self) {
        self.slot.mark_client_gone();
        self.client_gone.get_or_insert_with(now);
        let view = self.look();
        if matches!(view.phase, Phase::Setup | Phase::Busy) {
            let reason = "its client went away".to_owned();
            self.kill_if_unchanged(KillReason::new(view, reason, cause::CLIENT_GONE));
        }
    }

    /// What the worker does now. One whose slot says what cannot be is killed, and taken to do what it did before.
    fn look(&mut self) -> SlotView {
        let corruption = match self.slot.read() {
            Ok(view) => return view,
            Err(corruption) => corruption,
        };
        let view = self.slot.last_read();
        let reason = corruption.to_string();
        self.kill_reason
            .get_or_insert_with(|| Box::new(KillReason::new(view, reason, cause::CORRUPT)));
        self.kill();
        view
    }

    /// Kills the worker if it stays though there is nothing left for it to do; gives the time until that can be.
    /// All of that is known without a word from the worker.
    pub(crate) fn enforce_leave_timeout(
        &mut self,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        if self.kill_reason.is_some() {
            return None;
        }
        let (told, gone) = (self.leaving, self.client_gone);
        if told.is_none() && gone.is_none() {
            return None;
        }
        let serves_nobody = match self.look().phase {
            Phase::Idle | Phase::Retired | Phase::Spare => true,
            Phase::CheckoutDone => {
                let within = timeout.unwrap_or(DONE_WITHIN).max(LEAVE_WITHIN);
                return self.kill_at(gone?.saturating_add(within), now);
            }
            _ => false,
        };
        let since = gone.or(told.filter(|_| serves_nobody))?;
        self.kill_at(since.saturating_add(LEAVE_WITHIN), now)
    }

    /// What is to be said of a worker that SIGALRM has ended when its call's time was over. The server sends that signal
    /// then, and so may the call itself. It ends code that has reset the signal's action, and other programs.
    fn timed_out(&self, view: SlotView, end: End) -> Option<KillReason> {
        let is_alarm = end == End::Signaled(Signal::ALARM.as_raw());
        let is_over = self.alarmed_call == view.calls
            || self.slot.deadline().is_some_and(|deadline| deadline <= now());
        if !is_alarm || view.phase != Phase::Busy || !is_over {
            return None;
        }
        let (reason, ran) = (TIME_IS_OVER.to_owned(), Some(now().saturating_sub(view.since)));
        Some(KillReason { ran, ..KillReason::new(view, reason, cause::TIMED_OUT) })
    }

    /// Kills the worker at this time; gives the time until then.
    fn kill_at(&mut self, due: Duration, now: Duration) -> Option<Duration> {
        if due > now {
            return Some(due - now);
        }
        let reason = "it did not leave when there was nothing left to do".to_owned();
        let view = self.slot.last_read();
        self.kill_reason = Some(Box::new(KillReason::new(view, reason, cause::HUNG)));
        self.kill();
        None
    }

    /// Tells the worker when the time of its call is over; gives the time until that can be. A call
    /// that has ended counts as well, as the next one has most likely as much time.
    pub(crate) fn enforce_call_deadline(&mut self, now: Duration) -> Option<Duration> {
        let left = self.slot.deadline()?.saturating_sub(now);
        let view = self.look();
        if !left.is_zero() {
            return Some(left);
        }
        if view.phase == Phase::Busy && view.calls != self.alarmed_call && self.look() == view {
            self.alarmed_call = view.calls;
            let _ = kill_process(self.pid, Signal::ALARM);
        }
        None
    }

    /// Kills the worker if its call's time is over, or if it has been in one phase for longer than
    /// `timeout`, once it has told where it is; gives the time until that can be.
    pub(crate) fn enforce_hang_timeout(
        &mut self,
        now: Duration,
        timeout: Option<Duration>,
    ) -> Option<Duration> {
        if self.kill_reason.is_some() {
            return None;
        }
        let view = self.look();
        if self.kill_reason.is_some() {
            return None;
        }
        if let Some(pending_kill) = self.pending_kill.take_if(|it| it.kill_reason.view != view) {
            // It was done in this instant.
            drop(pending_kill);
        }
        if let Some(mut pending_kill) = self.pending_kill.take() {
            if self.slot.stack().is_none() {
                let left = self.wait_for_stack(&mut pending_kill, now);
                if left.is_some() {
                    self.pending_kill = Some(pending_kill);
                    return left;
                }
            }
            self.kill_if_unchanged(pending_kill.kill_reason);
            return None;
        }
        if !view.phase.can_hang() {
            return timeout;
        }
        let own = self.slot.hard_deadline().filter(|_| view.phase == Phase::Busy);
        let hung = timeout.map(|timeout| view.since.saturating_add(timeout));
        let due = [own, hung].into_iter().flatten().min()?;
        if due > now {
            return Some(due - now);
        }
        let timed_out = own == Some(due);
        let reason = match timeout {
            Some(timeout) if !timed_out => {
                format!("hung for more than {} (hung_worker_timeout)", seconds(timeout))
            }
            _ => TIME_IS_OVER.to_owned(),
        };
        let ran = Some(now.saturating_sub(view.since));
        let cause = if timed_out { cause::TIMED_OUT } else { cause::HUNG };
        let kill_reason = KillReason { ran, ..KillReason::new(view, reason, cause) };
        let until = now + STACK_WAIT;
        self.pending_kill = Some(Box::new(PendingKill { kill_reason, asked: now, until }));
        self.slot.clear_stack();
        let _ = kill_process(self.pid, Signal::ALARM);
        Some(STACK_WAIT)
    }

    /// For how long a stack that is not there is still waited for; nothing if that is over.
    fn wait_for_stack(&self, pending_kill: &mut PendingKill, now: Duration) -> Option<Duration> {
        let left = pending_kill.until.saturating_sub(now);
        if !left.is_zero() {
            return Some(left);
        }
        let reason = match status::takes_signal(self.pid(), Signal::ALARM) {
            Some(false) => {
                "the worker's code blocks SIGALRM, or has changed what it does".to_owned()
            }
            _ => {
                let longest = pending_kill.asked + MAX_STACK_WAIT;
                if longest > pending_kill.until {
                    pending_kill.until = longest;
                    return Some(longest.saturating_sub(now));
                }
                let waited = seconds(MAX_STACK_WAIT);
                format!("the worker did not get to run within {waited} after it was asked")
            }
        };
        pending_kill.kill_reason.no_stack = Some(reason);
        None
    }

    /// What it does now, but for its memory, which takes longer to find out.
    pub(crate) fn status(&mut self, now: Duration) -> WorkerStatus {
        let view = self.look();
        WorkerStatus {
            number: self.number,
            pid: self.pid(),
            state: status::state(view.phase).to_owned(),
            seconds: now.saturating_sub(view.since).as_secs_f64(),
            method: Some(self.slot.method()).filter(|method| !method.is_empty()),
            calls: view.calls,
            checkouts: self.slot.checkouts(),
            memory: None,
            peak_memory: None,
        }
    }

    /// Has the worker leave if it is too old, or has been idle for too long; gives the time until it
    /// can be.
    pub(crate) fn enforce_age(&mut self, now: Duration, recycling: &Recycling) -> Option<Duration> {
        if self.leaving.is_some() {
            return None;
        }
        let view = self.look();
        let is_unused = self.connection().is_some() && view.calls == 0;
        // Otherwise a worker whose setup takes longer than its age would serve nobody, nor would its successors.
        let retry_at = match view.phase {
            Phase::Idle if is_unused => view.since.saturating_add(FIRST_CALL_WITHIN),
            Phase::Spare => view.since.saturating_add(LEAST_SPARE),
            Phase::Handshake | Phase::Setup => return Some(SETUP_POLL_INTERVAL),
            _ => Duration::ZERO,
        };
        let age = recycling.max_age_of(self.number).after_time(self.born);
        // One that is at work may be idle just after this, and is due at the earliest then.
        let since = if view.phase == Phase::Idle { view.since } else { now };
        let idle = recycling.max_idle.after_time(since);
        let due = [(age, Retirement::Age), (idle, Retirement::Idleness)];
        let due = due.into_iter().filter_map(|(due, why)| Some((due?.max(retry_at), why)));
        let (due, why) = due.min_by_key(|(due, _)| *due)?;
        if due <= now {
            log::debug!(worker = self.number, pid = self.pid(), "replaced for its {why:?}");
            self.retire(why);
            return None;
        }
        Some(due - now)
    }

    /// Kills the worker if it is still where it was seen.
    fn kill_if_unchanged(&mut self, kill_reason: KillReason) {
        if self.slot.try_stop(kill_reason.view, StopRequest::Kill) {
            self.kill_reason = Some(Box::new(kill_reason));
            self.kill();
        }
    }

    /// Kills the worker whatever it is doing.
    pub(crate) fn execute(&mut self, reason: &str) {
        self.look();
        if self.kill_reason.is_none() {
            let (view, reason) = (self.slot.last_read(), reason.to_owned());
            self.kill_reason = Some(Box::new(KillReason::new(view, reason, cause::SHUTDOWN)));
        }
        self.kill();
    }

    pub(crate) fn kill(&self) {
        // It and whatever it started. Until it is reaped, the number is its own.
        let _ = kill_process_group(self.pid, Signal::KILL);
    }

    /// Has the worker leave as soon as it is in nobody's hands.
    pub(crate) fn retire(&mut self, why: Retirement) {
        self.leaving.get_or_insert_with(now);
        self.slot.request_retirement(why);
        let view = self.look();
        if matches!(view.phase, Phase::Handshake | Phase::Idle | Phase::Spare)
            && self.slot.try_stop(view, StopRequest::Retire)
        {
            // Ends the wait for a message; a message that is there already finds the order.
            let _ = match &self.role {
                Role::Client(connection) => shutdown(connection, Shutdown::Read),
                Role::Spare(line) => shutdown(line, Shutdown::Both),
            };
        }
    }

    /// Whether it is dead.
    pub(crate) fn has_ended(&self) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), look), Ok(Some(_)))
    }

    /// Takes a dead worker's status. Its group has been killed, and the guardian forgets it, before: the number
    /// is free after this.
    pub(crate) fn bury(
        mut self,
        shown: &mut StderrOutput,
        lines: &mut LogLimit,
        limits: &WorkerLimits,
        out_of_memory: &OomKills,
    ) -> WorkerExit {
        let status = waitid(WaitId::Pid(self.pid), WaitIdOptions::EXITED);
        let end = match status.ok().flatten() {
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Exited(code),
                (None, Some(signal)) => End::Signaled(signal),
                (None, None) => End::Unknown,
            },
            None => End::Unknown,
        };
        let pid = self.pid();
        let client = self.connection().and_then(sys::peer_credentials);
        let stderr = self.stderr.take().map(|stderr| stderr.finish(pid, shown));
        let StderrTail { text: stderr, allocation_failed } = stderr.unwrap_or_default();
        let kill_reason = self.kill_reason.take().map(|kill_reason| *kill_reason);
        let kill_reason =
            kill_reason.or(self.pending_kill.take().map(|pending_kill| pending_kill.kill_reason));
        let corruption = self.slot.read().err();
        let view = self.slot.last_read();
        let kill_reason = kill_reason.or_else(|| self.timed_out(view, end)).unwrap_or_else(|| {
            let (cause, reason) = match (corruption, self.role.told()) {
                (Some(corruption), _) => (cause::CORRUPT, corruption.to_string()),
                (None, Some(failure)) => (cause::SETUP_FAILED, failure),
                (None, None) => {
                    let left = self.slot.retirement();
                    let (cause, reason) =
                        classify_exit(end, left, allocation_failed, limits, out_of_memory);
                    (cause, reason.to_owned())
                }
            };
            KillReason::new(view, reason, cause)
        });
        let KillReason { view, reason, ran, cause, no_stack } = kill_reason;
        let reason = Some(reason).filter(|reason| !reason.is_empty());
        let was_told = self.leaving.is_some() || self.slot.retirement().is_some();
        let is_over = was_told || view.phase == Phase::Retired || self.client_gone.is_some();
        let is_unexpected = !is_over && !has_peer_closed(self.role.end());
        let method = self.slot.method();
        let (worker, phase) = (self.number, view.phase);
        let (method, reason_told) = (&*method, reason.as_deref());
        let is_regular = end == End::Exited(0) && reason.is_none() && !is_unexpected;
        if is_regular || lines.allows(Instant::now()) {
            ExitLogEntry {
                worker,
                pid,
                client,
                end,
                phase,
                method,
                reason: reason_told,
                is_unexpected,
            }
            .log();
        }
        let is_spare = matches!(self.role, Role::Spare(_));
        let failed = (is_spare && !(self.leaving.is_some() && end == End::Exited(0)))
            .then(|| reason.clone().unwrap_or_else(|| format!("the worker {end}")));
        // What a worker has begun whose slot is corrupt is not known: any call may have run.
        let is_corrupt = cause == cause::CORRUPT;
        let calls = match is_corrupt {
            true => MOST_COUNTED,
            false => view.calls.saturating_add(self.slot.skipped()),
        };
        let notice = match view.phase {
            // A spare has nobody to be told.
            _ if is_spare || !self.slot.is_death_reportable() => None,
            // In the middle of an answer a notice would be taken for the rest of it.
            Phase::AnsweringLong | Phase::Handshake | Phase::Spare if !is_corrupt => None,
            phase => Some(DeathNotice {
                pid,
                end,
                reason,
                during: phase.activity().filter(|_| !is_corrupt),
                calls,
                stderr,
                ran: ran.map(|ran| ran.as_secs_f64()),
                stack: None,
                no_stack,
                timed_out: cause == cause::TIMED_OUT,
            }),
        };
        let (Role::Client(connection) | Role::Spare(connection)) = self.role;
        let stack = ran.and_then(|_| self.slot.stack());
        let news = DeathNotification { connection, notice };
        WorkerExit { slot: self.slot, news, stack, cause, spare_failure: failed }
    }
}
