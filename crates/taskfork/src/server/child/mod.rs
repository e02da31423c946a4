//! A worker process as its server sees it. `timeouts` enforces its time limits, and `exit` reaps it.

mod exit;
mod timeouts;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::fair_share::{AssignedWorker, ClientId};
use super::status::{self, WorkerStatus};
use super::stderr::{CapturedStderr, ReadOutcome, StderrOutput};
use super::worker_exit::cause;
use crate::clock::now;
use crate::sys;
use crate::worker::AcceptedClient;
use crate::worker::scoreboard::{Phase, Retirement, ServerSlot, SlotView, StopRequest};

/// A worker process. It is kept small, because each fork copies the pages of the server's memory that
/// change.
#[derive(Debug)]
pub(crate) struct Child {
    /// The kernel cannot reuse the process id before the server has reaped the worker.
    pub(crate) pid: Pid,
    role: Role,
    pub(crate) slot: ServerSlot,
    /// Unique among all workers of this server.
    pub(crate) number: u64,
    /// Why the worker has been killed.
    kill_reason: Option<Box<KillReason>>,
    /// The worker has exceeded a time limit, and has been asked for its stack.
    pending_kill: Option<Box<PendingKill>>,
    /// The number of the last call whose worker has been sent SIGALRM at its deadline.
    alarmed_call: u64,
    stderr: Option<CapturedStderr>,
    /// The time of the fork. This and the times below are on the scoreboard's clock.
    forked_at: Duration,
    /// When the server asked the worker to leave after its checkout.
    retiring_since: Option<Duration>,
    /// When the client closed the connection.
    client_gone_since: Option<Duration>,
    /// The client, unless the worker is a spare.
    pub(crate) client_id: ClientId,
}

/// What a worker is for, with the server's own descriptor.
#[derive(Debug)]
pub(crate) enum Role {
    /// Serves the client at the other end of this connection.
    Client(OwnedFd),
    /// Waits for a connection, which the server sends through this socket.
    Spare(OwnedFd),
}

impl Role {
    pub(super) fn descriptor(&self) -> &OwnedFd {
        let (Self::Client(descriptor) | Self::Spare(descriptor)) = self;
        descriptor
    }

    /// Why the setup of a spare worker failed, if the worker has reported that.
    fn setup_failure(&self) -> Option<String> {
        let Self::Spare(socket) = self else { return None };
        let mut text = [0; sys::MAX_CHANNEL_TEXT];
        let (_, length) = recv(socket, &mut text, RecvFlags::DONTWAIT).ok()?;
        let failure = String::from_utf8_lossy(&text[..length]);
        (length > 0).then(|| format!("its setup failed: {failure}"))
    }
}

/// Why a worker was killed, and what it was doing.
#[derive(Debug)]
struct KillReason {
    view: SlotView,
    text: String,
    /// How long it had been doing that, if it took too long.
    ran: Option<Duration>,
    cause: &'static str,
    /// Why its stack is unknown, if it was asked for it without success.
    no_stack: Option<String>,
}

impl KillReason {
    fn new(view: SlotView, text: String, cause: &'static str) -> Self {
        Self { view, text, ran: None, cause, no_stack: None }
    }
}

/// A kill that waits for the worker's stack.
#[derive(Debug)]
struct PendingKill {
    reason: KillReason,
    /// When the worker was asked for its stack.
    asked_at: Duration,
    /// When it is killed without its stack.
    deadline: Duration,
}

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
            forked_at: now(),
            retiring_since: None,
            client_gone_since: None,
            client_id: ClientId::default(),
        }
    }

    /// The descriptors that another new worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.role.descriptor()].into_iter().chain(self.stderr()).map(AsFd::as_fd)
    }

    /// The server's descriptor of the worker's connection, unless the worker is a spare.
    pub(crate) fn connection(&self) -> Option<&OwnedFd> {
        match &self.role {
            Role::Client(connection) => Some(connection),
            Role::Spare(_) => None,
        }
    }

    /// The worker's standard error, while there may be more to read.
    pub(crate) fn stderr(&self) -> Option<&OwnedFd> {
        self.stderr.as_ref().and_then(CapturedStderr::pipe)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(crate) fn age(&self) -> Duration {
        now().saturating_sub(self.forked_at)
    }

    /// Whether it can get a client, now or after its setup.
    pub(crate) fn is_spare(&self) -> bool {
        matches!(self.role, Role::Spare(_))
            && self.retiring_since.is_none()
            && self.kill_reason.is_none()
    }

    /// Whether it is a spare worker whose setup is done.
    pub(crate) fn is_waiting_spare(&self) -> bool {
        self.is_spare() && self.slot.is_in(Phase::Spare)
    }

    pub(crate) fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)))
    }

    /// What the worker does now. A worker with an impossible value in its slot is killed, and the last
    /// valid view is returned.
    fn view_or_kill(&mut self) -> SlotView {
        let corruption = match self.slot.read() {
            Ok(view) => return view,
            Err(corruption) => corruption,
        };
        let view = self.slot.last_read();
        let text = corruption.to_string();
        self.kill_reason
            .get_or_insert_with(|| Box::new(KillReason::new(view, text, cause::CORRUPT)));
        self.kill_group();
        view
    }

    /// Its status, without its memory, which takes long to find out.
    pub(crate) fn status(&mut self, now: Duration) -> WorkerStatus {
        let view = self.view_or_kill();
        WorkerStatus {
            number: self.number,
            pid: self.pid(),
            state: status::state_name(view.phase).to_owned(),
            seconds: now.saturating_sub(view.since).as_secs_f64(),
            method: Some(self.slot.method()).filter(|method| !method.is_empty()),
            calls: view.calls,
            checkouts: self.slot.checkouts(),
            memory: None,
            peak_memory: None,
        }
    }

    /// Its share for [`fair_share`](super::fair_share). `None` if it has no client, or is about to
    /// leave.
    pub(crate) fn assigned_worker(&mut self, now: Duration) -> Option<AssignedWorker> {
        self.connection()?;
        let view = self.view_or_kill();
        if self.retiring_since.is_some()
            || self.client_gone_since.is_some()
            || self.kill_reason.is_some()
        {
            return None;
        }
        let idle = (view.phase == Phase::Idle).then(|| now.saturating_sub(view.since));
        Some(AssignedWorker {
            worker: self.number,
            client: self.client_id,
            age: now.saturating_sub(self.forked_at),
            idle,
            is_used: view.calls > 0,
            checkouts: self.slot.checkouts(),
            is_json: !self.slot.is_death_reportable(),
        })
    }

    /// Sends a client's connection to a spare worker. Returns the client if that fails.
    pub(crate) fn assign_client(&mut self, client: AcceptedClient) -> Result<(), AcceptedClient> {
        let Role::Spare(socket) = &self.role else { return Err(client) };
        match sys::send_descriptor(socket, client.socket.as_fd(), &client.encode()) {
            Ok(()) => {
                self.role = Role::Client(client.socket);
                Ok(())
            }
            Err(_) => Err(client),
        }
    }

    /// Forwards what the worker has written to standard error, at most `limit` bytes in a time slice.
    pub(crate) fn forward_stderr(
        &mut self,
        output: &mut StderrOutput,
        limit: usize,
    ) -> Option<ReadOutcome> {
        let pid = self.pid();
        Some(self.stderr.as_mut()?.forward(pid, output, limit))
    }

    /// Reports how many lines of standard error were omitted, if it is time. Returns the time until it
    /// is.
    pub(crate) fn report_omitted_lines(
        &mut self,
        output: &mut StderrOutput,
        now: Instant,
    ) -> Option<Duration> {
        let pid = self.pid();
        self.stderr.as_mut()?.report_omitted(pid, output, now)
    }

    /// The client has closed its end. Kills the worker during `setup` or a call, because the result is
    /// of no use. At other times the worker notices the end itself.
    pub(crate) fn handle_client_gone(&mut self) {
        self.slot.mark_client_gone();
        self.client_gone_since.get_or_insert_with(now);
        let view = self.view_or_kill();
        if matches!(view.phase, Phase::Setup | Phase::Busy) {
            let text = "its client went away".to_owned();
            self.kill_if_unchanged(KillReason::new(view, text, cause::CLIENT_GONE));
        }
    }

    /// Asks the worker to leave as soon as no checkout uses it.
    pub(crate) fn retire(&mut self, why: Retirement) {
        self.retiring_since.get_or_insert_with(now);
        self.slot.request_retirement(why);
        let view = self.view_or_kill();
        if matches!(view.phase, Phase::Handshake | Phase::Idle | Phase::Spare)
            && self.slot.try_stop(view, StopRequest::Retire)
        {
            // This ends the worker's wait for a message. If a message has arrived already, the worker
            // finds the order in its slot.
            let _ = match &self.role {
                Role::Client(connection) => shutdown(connection, Shutdown::Read),
                Role::Spare(socket) => shutdown(socket, Shutdown::Both),
            };
        }
    }

    /// Kills the worker if it still does what `reason` says. So a kill that was decided for one call
    /// never hits the next.
    fn kill_if_unchanged(&mut self, reason: KillReason) {
        if self.slot.try_stop(reason.view, StopRequest::Kill) {
            self.kill_reason = Some(Box::new(reason));
            self.kill_group();
        }
    }

    /// Kills the worker, whatever it does.
    pub(crate) fn kill(&mut self, reason: &str) {
        self.view_or_kill();
        if self.kill_reason.is_none() {
            let (view, text) = (self.slot.last_read(), reason.to_owned());
            self.kill_reason = Some(Box::new(KillReason::new(view, text, cause::SHUTDOWN)));
        }
        self.kill_group();
    }

    /// Kills the worker and the processes that it has started, as far as they are in its group.
    pub(crate) fn kill_group(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}
