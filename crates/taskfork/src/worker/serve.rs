//! The main loop of a worker: it accepts a client, runs `setup`, and answers one call after the other
//! until the client leaves or the server stops the worker.

use std::convert::Infallible;
use std::io;

use bytes::Bytes;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendFlags, send};

use super::connection::{Connection, ConnectionError};
use super::handlers::{Handlers, log_setup_error};
use super::init::{AcceptedClient, ClientSource, WorkerConfig, WorkerInit};
use super::interface::Interface;
use super::panic::install_panic_hook;
use super::pipeline::{self, Pipeline};
use super::scoreboard::{Phase, Retirement, StopRequest};
use super::shared_memory::SharedMemory;
use super::state::{ExitReason, Worker};
use super::successor::Successor;
use super::telemetry;
use super::user_code::catch_panic;
use crate::blob;
use crate::clock::now;
use crate::context;
use crate::sys::{self, OccupiedMemory};
use crate::wire::Protocol;
use crate::wire::WireError;
use crate::wire::attachments::{self, Attachments};
use crate::wire::frame::{self, ATOMIC_WRITE, DEFAULT_MAX_BLOB};
use crate::wire::gather_frame::{self, GatherFrame};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMode, FromClient, VERSIONS};
use crate::wire::perl::Scanner;

/// How long the message that `setup` has succeeded is, with its header.
const SET_UP_LEN: usize = 7;

/// Initializes in the server what every worker would otherwise initialize again. That would copy pages
/// and look up symbols in each of them.
pub(crate) fn prepare() {
    install_panic_hook();
    gather_frame::init_thread_locals();
    attachments::init_thread_locals();
}

/// Serves one connection until it ends. Returns the exit status of the process.
#[taskfork_macros::startup_code]
pub(crate) fn serve<S: 'static>(
    mut init: WorkerInit,
    interface: &dyn Interface<S>,
    handlers: &Handlers<S>,
) -> i32 {
    let successor = handlers.program.as_ref().and_then(|_| Successor::new(&mut init));
    let sinks = init.slot.stack_sink().zip(init.slot.sample_sink());
    let sinks = sinks.ok_or_else(|| io::ErrorKind::InvalidData.into());
    sys::remember_worker_process();
    if let Err(error) = sinks.and_then(|sinks| sys::install_stack_handlers(sinks, init.wake)) {
        tracing::error!(worker = init.number, "a timeout cannot show this worker's stack: {error}");
    }
    if init.is_taken_over {
        // It executes the program of the next worker at once.
        sys::wake_server();
    }
    context::set_scratch(init.scratch);
    telemetry::set_slot(init.slot);
    let number = init.number;
    let mut worker = Worker {
        number,
        slot: init.slot,
        interface,
        handlers,
        state: None,
        awaits_setup: None,
        program_takes_over: false,
        gate: init.gate,
        setup_error: None,
        config: init.config,
        sandbox: init.sandbox,
        connection: None,
        successor,
        memory: init.memory.or_else(|| init.config.max_memory.map(|_| OccupiedMemory::open())),
        max_answer: init.config.max_frame,
        max_blob: DEFAULT_MAX_BLOB,
        pipeline: Pipeline::default(),
        announced_files: 0,
        client_files: 0,
        shared_memory: SharedMemory::default(),
        out: GatherFrame { bytes: init.buffers.outbox, ..GatherFrame::default() },
        front: init.buffers.front,
    };
    let mut hello = WorkerHello {
        version: VERSIONS[0],
        pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        worker: number,
        server: init.server,
        max_frame: Some(init.config.max_frame),
        max_blob: Some(init.config.max_blob),
        pipeline_window: pipeline::WINDOW,
        max_files: 0,
        wants_alarm: false,
        accepts_single_calls: true,
        sends_items: true,
        takes_input: true,
        announces_setup: false,
        takes_over: String::new(),
    };
    let Err(reason) = worker.serve_client(init.client, init.buffers.inbox, &mut hello);
    let status = match worker.begin_exit(reason) {
        ExitReason::Finished | ExitReason::Ordered(StopRequest::Retire) => 0,
        ExitReason::Connection(error) => {
            let peer = context::relayed_peer().map(ToString::to_string);
            tracing::warn!(worker = number, peer, "connection closed: {error}");
            0
        }
        ExitReason::PresetupFailed => 1,
        ExitReason::CheckoutDoneFailed(error) => {
            let message = error.body().message.to_owned();
            tracing::error!(worker = number, "checkout_done failed, the worker ends: {message}");
            1
        }
        ExitReason::Ordered(StopRequest::Kill) => loop {
            // SIGKILL is on its way.
            std::thread::park();
        },
    };
    // This drops the user's state. The worker exits even if that panics.
    let _ = catch_panic(move || drop(worker));
    status
}

#[taskfork_macros::startup_code]
impl<S: 'static> Worker<'_, S> {
    /// Gets the client and serves it with the protocol that it speaks.
    fn serve_client(
        &mut self,
        source: ClientSource,
        mut inbox: Vec<u8>,
        hello: &mut WorkerHello,
    ) -> Result<Infallible, ExitReason> {
        let client = match source {
            ClientSource::Accepted(client) => client,
            ClientSource::Channel(channel) => self.wait_for_client(&channel)?,
        };
        let AcceptedClient {
            socket, received, deadline, is_preamble_sent, is_greeted, files, ..
        } = client;
        inbox.extend_from_slice(&received);
        let socket = sys::leak_descriptor(socket);
        context::serves(socket);
        let mut connection = Connection::new(socket, inbox, &self.config, self.slot);
        connection.set_handshake_deadline(deadline);
        if !files.is_empty() {
            connection.files().extend(files);
        }
        match connection.read_preamble()? {
            Protocol::Native => {
                self.start_telemetry(socket);
                self.handshake(&mut connection, hello, is_preamble_sent, is_greeted)?;
                self.serve_checkouts(|worker| worker.serve_message(&mut connection))
            }
            Protocol::Perl => {
                telemetry::record_for_first_call();
                self.slot.set_death_reportable(false);
                let mut scanner = Scanner::default();
                // `setup` runs only for a client that has sent a whole message.
                let mut first = Some(connection.read_json_message(&mut scanner)?);
                connection.set_handshake_deadline(None);
                if let Some(successor) = &mut self.successor {
                    successor.set_connection(socket, connection.inbox.clone(), &[], false);
                }
                self.slot.enter(Phase::Setup)?;
                self.serve_checkouts(|worker| {
                    worker.serve_json(&mut connection, &mut scanner, &mut first)
                })
            }
        }
    }

    /// Enters the last phase after the client has left. So the server sees that the worker has noticed it
    /// and now drops the user's state.
    fn begin_exit(&self, reason: ExitReason) -> ExitReason {
        match reason {
            ExitReason::Finished | ExitReason::Connection(ConnectionError::Truncated) => {
                self.slot.enter(Phase::Retired).err().map_or(reason, ExitReason::Ordered)
            }
            other => other,
        }
    }

    /// Runs `setup` and serves one checkout after the other. `serve_message` waits for a message and
    /// handles it. It returns whether the message ended a checkout.
    fn serve_checkouts(
        &mut self,
        mut serve_message: impl FnMut(&mut Self) -> Result<bool, ExitReason>,
    ) -> Result<Infallible, ExitReason> {
        if self.slot.is_client_gone() {
            return Err(ExitReason::Finished);
        }
        if self.state.is_none() && self.setup_error.is_none() {
            match self.set_up() {
                Ok(state) => {
                    self.state = Some(state);
                    self.announce_setup()?;
                }
                Err(error) => {
                    log_setup_error(self.number, &error);
                    self.setup_error = Some(error);
                }
            }
        }
        loop {
            self.enter_idle()?;
            while !serve_message(self)? {}
            if self.cannot_be_taken_over() {
                self.slot.enter(Phase::Retired)?;
                return Err(ExitReason::Finished);
            }
            if let Some(why) = self.retirement_reason() {
                self.slot.set_retirement(why);
                // The phase shows that a call which arrives from here on has not begun.
                self.slot.enter(Phase::Retired)?;
                return Err(ExitReason::Finished);
            }
        }
    }

    /// Tells a client that waits for it that `setup` has succeeded. A worker that cannot do that begins no call, because
    /// the client may have given it up: [`check_announced`](Self::check_announced) fails from then on.
    pub(super) fn announce_setup(&mut self) -> Result<(), ConnectionError> {
        let Some(connection) = self.awaits_setup else { return Ok(()) };
        sys::exit_if_forked();
        let mut out = Vec::with_capacity(SET_UP_LEN);
        frame::put(&mut out, native::put_set_up);
        let mut sent = 0;
        while sent < out.len() {
            match retry_on_intr(|| send(connection, &out[sent..], SendFlags::NOSIGNAL)) {
                Ok(bytes) => sent += bytes,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        self.awaits_setup = None;
        Ok(())
    }

    /// Fails if the client waits for the announcement of a `setup` that has succeeded, because it could not be sent. A call
    /// that began nevertheless would be reported as one that has not run.
    pub(super) fn check_announced(&self) -> Result<(), ConnectionError> {
        match self.state.is_some() && self.awaits_setup.is_some() {
            true => Err(ConnectionError::Closed),
            false => Ok(()),
        }
    }

    fn retirement_reason(&mut self) -> Option<Retirement> {
        if self.config.max_calls.is_some_and(|most| self.slot.calls() >= most) {
            return Some(Retirement::Calls);
        }
        let occupied = self.memory.as_mut().map(OccupiedMemory::bytes);
        let grown = self.config.max_memory.zip(occupied).is_some_and(|(most, now)| now > most);
        grown.then_some(Retirement::Memory)
    }

    fn enter_idle(&self) -> Result<(), ExitReason> {
        self.slot.enter(Phase::Idle)?;
        if self.slot.should_retire() {
            return Err(ExitReason::Finished);
        }
        Ok(())
    }

    /// Waits for a message and handles it. Returns whether it ended a checkout.
    fn serve_message(&mut self, connection: &mut Connection) -> Result<bool, ExitReason> {
        let Some(frame) = connection.read_frame_or_idle()? else {
            self.shared_memory.trim(connection)?;
            return Ok(false);
        };
        // All steps of a call use this one reading of the clock.
        let begun = now();
        if native::call_mode(connection.body(&frame))
            .is_some_and(|mode| self.pipeline.may_be_cancelled(mode, begun))
        {
            connection.read_available(2 * pipeline::WINDOW);
            self.pipeline
                .set_cancelled(connection.buffered_bodies().filter_map(native::cancelled_call));
        }
        let files = connection.take_files(std::mem::take(&mut self.announced_files))?;
        let long = connection.take_long_body(&frame);
        let body = long.as_deref().unwrap_or_else(|| connection.body(&frame));
        match FromClient::decode(body)? {
            FromClient::Call { mode, method, args, meta } => {
                let shared = self.shared_memory.take_received()?;
                let WorkerConfig { max_frame, max_blob, .. } = self.config;
                let attachments = Attachments { files, shared, max_blob, max_inlined: max_frame };
                match (self.pipeline.begin(mode, begun), meta.items.is_some() || meta.input) {
                    (Some(sent), false) => blob::within(long.as_ref(), attachments, || {
                        self.serve_call(method, args, &meta, begun, sent, None)?;
                        attachments::check_blob_limit().map_err(ExitReason::from)
                    })?,
                    (Some(sent), true) => {
                        // A copy, because the call reads from the connection while it runs.
                        let body = long.clone().unwrap_or_else(|| Bytes::copy_from_slice(body));
                        let times = (begun, sent);
                        self.serve_streaming_call(connection, &body, attachments, times)?;
                    }
                    (None, _) => self.skip_call()?,
                }
                if self.shared_memory.is_used() {
                    self.prepend(|worker, out| worker.shared_memory.write_control(begun, out));
                }
                // Only now, because `setup` may have changed the user of this process, and memory is
                // shared between processes of one user only.
                if self.state.is_some() && self.shared_memory.is_requested() {
                    self.prepend(|worker, out| worker.shared_memory.negotiate(connection, out));
                }
                self.slot.enter(if self.out.len() <= ATOMIC_WRITE {
                    Phase::Answering
                } else {
                    Phase::AnsweringLong
                })?;
                connection.write(&self.out)?;
                self.shared_memory.mark_sent(&self.out.references, connection);
                self.interface.on_answer_sent();
                self.out.clear_attachments();
                long.into_iter().for_each(|body| connection.reuse_buffer(body));
                if mode == CallMode::Single {
                    return self.end_checkout().map(|()| true);
                }
                self.slot.enter(Phase::Held)?;
                Ok(false)
            }
            FromClient::Done => self.end_checkout().map(|()| true),
            FromClient::QueueLength(checkouts) => {
                self.slot.set_waiting(checkouts, begun);
                Ok(false)
            }
            // The call has already been answered.
            FromClient::Cancel(_) | FromClient::Credit { .. } => Ok(false),
            FromClient::Item(item) => self.drop_item(item.call).map(|()| false),
            FromClient::InputEnd(end) => self.drop_item(Some(end.call)).map(|()| false),
            FromClient::Files(count) => {
                self.announced_files = count;
                Ok(false)
            }
            FromClient::Shm(message) => {
                self.shared_memory.handle_message(message, connection)?;
                Ok(false)
            }
            FromClient::Rings => match self.shared_memory.allows_rings() {
                Some(accepts) => {
                    connection.accept_rings(accepts).map(|()| false).map_err(ExitReason::from)
                }
                None => Err(WireError::Malformed("rings that were not asked for".into()).into()),
            },
            FromClient::Hello(_) => Err(WireError::Malformed("a second hello".into()).into()),
        }
    }

    /// Drops an item, or the end, of the input of a call that has been answered before the client had sent all of it.
    fn drop_item(&mut self, call: Option<u64>) -> Result<(), ExitReason> {
        if call > self.pipeline.number() || call.is_none() {
            return Err(WireError::malformed("an item of a call that has not begun").into());
        }
        self.shared_memory.take_received()?;
        Ok(())
    }

    /// Runs `checkout_done`.
    pub(super) fn end_checkout(&mut self) -> Result<(), ExitReason> {
        self.slot.count_checkout();
        self.slot.enter(Phase::CheckoutDone)?;
        let Some(state) = &mut self.state else { return Ok(()) };
        self.handlers.end_checkout(state).map_err(ExitReason::CheckoutDoneFailed)
    }
}
