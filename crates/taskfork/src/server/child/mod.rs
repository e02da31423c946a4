//! A worker process as the event loop sees it: its descriptors, its process id and its slot. `exit` reaps
//! it. What the server decides about it is in [`supervisor`](super::supervisor).

mod exit;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use super::log;
use super::status::{self, WorkerStatus};
use super::stderr::{CapturedStderr, ReadOutcome, StderrOutput, Writer};
use super::supervisor::Observation;
use crate::peer::Peer;
use crate::sys;
use crate::worker::AcceptedClient;
use crate::worker::scoreboard::{
    Phase, ProgramStage, Retirement, ServerSlot, SlotView, StopRequest,
};

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
    stderr: Option<CapturedStderr>,
    /// Whose connection a gateway relays. Most workers have no gateway.
    relayed_peer: Option<Box<Peer>>,
    /// The call during which the worker was asked for a sample of its stack.
    sampled_call: Option<u64>,
    /// A request at the status socket has killed it.
    is_killed_on_request: bool,
    /// The server has seen that its program serves the connection itself.
    has_taken_over: bool,
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

impl Child {
    pub(crate) fn new(
        pid: Pid,
        role: Role,
        slot: ServerSlot,
        number: u64,
        stderr: Option<CapturedStderr>,
        relayed_peer: Option<Box<Peer>>,
    ) -> Self {
        Self {
            pid,
            role,
            slot,
            number,
            stderr,
            relayed_peer,
            sampled_call: None,
            is_killed_on_request: false,
            has_taken_over: false,
        }
    }

    /// Whether its program has taken the worker over since this was asked last. It does that once: a worker that has served for
    /// long says nothing of the program that is executed next.
    pub(crate) fn notice_takeover(&mut self) -> bool {
        let is_first = !self.has_taken_over;
        self.has_taken_over |= self.slot.program_stage() == Some(ProgramStage::Serving);
        is_first && self.has_taken_over
    }

    /// The descriptors that another new worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.role.descriptor()].into_iter().chain(self.stderr()).map(AsFd::as_fd)
    }

    /// The descriptor of its connection or channel, to change its number.
    pub(crate) fn role_descriptor_mut(&mut self) -> &mut OwnedFd {
        let (Role::Client(descriptor) | Role::Spare(descriptor)) = &mut self.role;
        descriptor
    }

    /// Its standard error, to change the number.
    pub(crate) fn stderr_mut(&mut self) -> Option<&mut OwnedFd> {
        self.stderr.as_mut().and_then(CapturedStderr::pipe_mut)
    }

    /// The server's descriptor of the worker's connection, unless the worker is a spare.
    pub(crate) fn connection(&self) -> Option<&OwnedFd> {
        match &self.role {
            Role::Client(connection) => Some(connection),
            Role::Spare(_) => None,
        }
    }

    /// Who is at the other end of the worker's connection. `None` on TCP, and for a spare worker.
    pub(crate) fn peer(&self) -> Option<Peer> {
        match &self.relayed_peer {
            Some(peer) => Some(Peer::clone(peer)),
            None => self.connection().and_then(sys::peer_credentials).map(Peer::from),
        }
    }

    /// Whether a gateway relays its connection.
    pub(crate) fn is_relayed(&self) -> bool {
        self.relayed_peer.is_some()
    }

    /// The worker's standard error, while there may be more to read.
    pub(crate) fn stderr(&self) -> Option<&OwnedFd> {
        self.stderr.as_ref().and_then(CapturedStderr::pipe)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whose lines its standard error has.
    fn writer(&self) -> Writer {
        Writer { pid: self.pid(), program: self.slot.program() }
    }

    pub(crate) fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.pid), options), Ok(Some(_)))
    }

    /// Reads its slot. The view is read first, so that a deadline is that of the viewed call or of a later
    /// one.
    pub(crate) fn observe(&mut self) -> Observation {
        let corruption = self.slot.read().err();
        let slot = &self.slot;
        Observation {
            view: slot.last_read(),
            corruption,
            deadline: slot.deadline(),
            hard_deadline: slot.hard_deadline(),
            has_stack: slot.has_stack(),
            checkouts: slot.checkouts(),
            is_json: !slot.is_death_reportable(),
        }
    }

    /// Its status, without its memory, which takes long to find out, and without the queue of its client.
    pub(crate) fn status(&self, observed: &Observation, now: Duration) -> WorkerStatus {
        let view = observed.view;
        WorkerStatus {
            number: self.number,
            pid: self.pid(),
            program: self.slot.program(),
            state: status::state_name(view.phase).to_owned(),
            seconds: now.saturating_sub(view.since).as_secs_f64(),
            method: Some(self.slot.method()).filter(|method| !method.is_empty()),
            progress: self.slot.progress().filter(|_| view.phase.is_running()),
            calls: view.calls,
            checkouts: observed.checkouts,
            memory: None,
            peak_memory: None,
            cpu_seconds: None,
            peer: self.peer(),
            client: self.slot.reported_queue().map(|(client, _, _)| client),
            client_queued: None,
            stack: None,
        }
    }

    /// Where the worker's call was, if the worker has shown that since it was asked during this call. Asks it otherwise, once
    /// during each call, because a signal interrupts system calls.
    pub(crate) fn sample_stack(&mut self, view: SlotView) -> Option<Vec<u64>> {
        if !view.phase.is_running() {
            return None;
        }
        if self.sampled_call == Some(view.calls) {
            return self.slot.sample();
        }
        self.slot.clear_sample();
        self.sampled_call = Some(view.calls);
        let _ = kill_process(self.pid, Signal::URG);
        None
    }

    /// Sends a client's connection to a spare worker. Its setup must be done unless `may_be_in_setup`.
    /// Returns the client if that fails.
    pub(crate) fn assign_client(
        &mut self,
        mut client: AcceptedClient,
        may_be_in_setup: bool,
    ) -> Result<(), AcceptedClient> {
        let Role::Spare(socket) = &self.role else { return Err(client) };
        if !may_be_in_setup && !self.slot.is_in(Phase::Spare) {
            return Err(client);
        }
        match sys::send_descriptor(socket, client.socket.as_fd(), &client.encode()) {
            Ok(()) => {
                self.relayed_peer = client.relayed_peer.take();
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
        let writer = self.writer();
        Some(self.stderr.as_mut()?.forward(writer, output, limit))
    }

    /// Reports how many lines of standard error were omitted, if it is time. Returns the time until it
    /// is.
    pub(crate) fn report_omitted_lines(
        &mut self,
        output: &mut StderrOutput,
        now: Instant,
    ) -> Option<Duration> {
        let writer = self.writer();
        self.stderr.as_mut()?.report_omitted(writer, output, now)
    }

    /// Informs the worker that its client has closed the connection, and observes it after that.
    pub(crate) fn mark_client_gone(&mut self) -> Observation {
        self.slot.mark_client_gone();
        self.observe()
    }

    /// Orders the worker to leave as soon as no checkout uses it, and observes it after that.
    pub(crate) fn request_retirement(&mut self, why: Retirement) -> Observation {
        self.slot.request_retirement(why);
        self.observe()
    }

    /// Stops the worker if it still does what `view` says. Returns whether that held.
    pub(crate) fn try_stop(&mut self, view: SlotView, request: StopRequest) -> bool {
        let has_held = self.slot.try_stop(view, request);
        match request {
            _ if !has_held => {}
            StopRequest::Kill => self.kill_group(),
            // This ends the worker's wait for a message. If a message has arrived already, the worker
            // finds the order in its slot.
            StopRequest::Retire => {
                let _ = match &self.role {
                    Role::Client(connection) => shutdown(connection, Shutdown::Read),
                    Role::Spare(socket) => shutdown(socket, Shutdown::Both),
                };
            }
        }
        has_held
    }

    /// Interrupts a call whose deadline has passed, if it is the one that `view` shows.
    pub(crate) fn interrupt(&mut self, view: SlotView) {
        if self.slot.read() == Ok(view) {
            let _ = kill_process(self.pid, Signal::ALARM);
        }
    }

    /// Asks the worker for its stack.
    pub(crate) fn request_stack(&self) {
        self.slot.clear_stack();
        let _ = kill_process(self.pid, Signal::ALARM);
    }

    /// Kills the worker because a request at the status socket wants that. Its death says so.
    pub(crate) fn kill_on_request(&mut self) {
        let (number, pid) = (self.number, self.pid);
        log::warn!("worker {number} (process {pid}) is killed by a request at the status socket");
        self.is_killed_on_request = true;
        self.kill_group();
    }

    /// Kills the worker and the processes that it has started, as far as they are in its group.
    pub(crate) fn kill_group(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}
