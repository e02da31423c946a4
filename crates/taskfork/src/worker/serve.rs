//! A worker's life: greet, set up, then one call after the other until the client goes or the
//! server says so.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::connection::{Connection, ConnectionError};
use super::fault::{Fault, catch_user_panic};
use super::init::{AcceptedClient, ClientSource, WorkerConfig, WorkerInit};
use super::interface::{Interface, Request};
use super::panic::install_panic_hook;
use super::pipeline::{self, Pipeline};
use super::scoreboard::{Phase, Retirement, StopRequest, WorkerSlot, now};
use super::shared_memory::SharedMemory;
use super::telemetry::{self, RequestedTelemetry};
use crate::blob;
use crate::context::{self, context};
use crate::error::Failure;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::trace_context::{self, TraceContext};
use crate::wire::Protocol;
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::attachments::{self, Attachments};
use crate::wire::bounds;
use crate::wire::frame::{self, ATOMIC_WRITE, DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME, PREAMBLE};
use crate::wire::gather_frame::{self, GatherFrame, ReceiverLimits};
use crate::wire::hello::{ClientHello, WorkerHello};
use crate::wire::native::{self, CallMeta, DEFAULT_GRACE, FromClient, VERSIONS};
use crate::wire::perl::Scanner;
use crate::wire::values::ValueFormat;
use log_defer::Level;

/// An answer's buffer above this size is given back.
const KEPT_BUFFER: usize = 1 << 20;

type Setup<S> = Box<dyn Fn() -> Result<S, Failure>>;
type CheckoutDone<S> = Box<dyn Fn(&mut S) -> Result<(), Failure>>;

/// The user's code around the calls.
pub(crate) struct Handlers<S> {
    pub(crate) setup: Setup<S>,
    pub(crate) checkout_done: Option<CheckoutDone<S>>,
}

/// Why a worker ends by itself.
pub(super) enum ExitReason {
    /// There is nothing left to do.
    Finished,
    /// The connection is of no use any more.
    Connection(ConnectionError),
    /// `checkout_done` failed, so that nobody else may get this worker.
    CheckoutDoneFailed(Fault),
    /// It was to be set up for whoever would come, and could not be.
    PresetupFailed,
    /// The server wants it.
    Ordered(StopRequest),
}

impl From<StopRequest> for ExitReason {
    fn from(order: StopRequest) -> Self {
        Self::Ordered(order)
    }
}

impl From<ConnectionError> for ExitReason {
    fn from(broken: ConnectionError) -> Self {
        match broken {
            ConnectionError::Closed => Self::Finished,
            other => Self::Connection(other),
        }
    }
}

impl From<WireError> for ExitReason {
    fn from(error: WireError) -> Self {
        Self::Connection(error.into())
    }
}

/// Does in the server what every worker would have to do again: each page that a worker writes to is
/// copied, and what the loader looks up is looked up in each.
pub(crate) fn prepare() {
    install_panic_hook();
    gather_frame::init_thread_locals();
    attachments::init_thread_locals();
}

/// Serves one connection until it ends; gives the status to exit with.
pub(crate) fn serve<S: 'static>(
    init: WorkerInit,
    interface: &dyn Interface<S>,
    handlers: &Handlers<S>,
) -> i32 {
    let sink = init.slot.stack_sink().ok_or_else(|| io::ErrorKind::InvalidData.into());
    sys::remember_worker_process();
    if let Err(error) = sink.and_then(|sink| sys::install_stack_handler(sink, init.wake)) {
        tracing::error!(worker = init.number, "this worker's stack cannot be told: {error}");
    }
    let number = init.number;
    let mut worker = Worker {
        number,
        slot: init.slot,
        interface,
        handlers,
        state: None,
        setup_fault: None,
        config: init.config,
        max_answer: init.config.max_frame,
        max_blob: DEFAULT_MAX_BLOB,
        pipeline: Pipeline::default(),
        announced: 0,
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
    };
    let Err(leave) = worker.live(init.client, init.buffers.inbox, &mut hello);
    let status = match leave {
        ExitReason::Finished | ExitReason::Ordered(StopRequest::Retire) => 0,
        ExitReason::Connection(error) => {
            tracing::warn!(worker = number, "connection closed: {error}");
            0
        }
        ExitReason::PresetupFailed => 1,
        ExitReason::CheckoutDoneFailed(fault) => {
            let message = fault.body().message.to_owned();
            tracing::error!(worker = number, "checkout_done failed, the worker ends: {message}");
            1
        }
        ExitReason::Ordered(StopRequest::Kill) => loop {
            // SIGKILL is on its way.
            std::thread::park();
        },
    };
    // What the state owns is closed in order; a panic in it must not keep the worker from leaving.
    let _ = catch_user_panic(move || drop(worker));
    status
}

pub(super) struct Worker<'a, S> {
    number: u64,
    pub(super) slot: WorkerSlot,
    pub(super) interface: &'a dyn Interface<S>,
    handlers: &'a Handlers<S>,
    /// What `setup` made, once it has succeeded.
    pub(super) state: Option<S>,
    /// Why it has not, until a call has been told.
    pub(super) setup_fault: Option<Fault>,
    config: WorkerConfig,
    pub(super) max_answer: usize,
    /// The longest blob that the client takes as memory.
    max_blob: usize,
    pipeline: Pipeline,
    /// How many files come with the next message.
    announced: usize,
    /// How many the client takes with an answer.
    client_files: usize,
    shared_memory: SharedMemory,
    pub(super) out: GatherFrame,
    /// Empty except while frames are put in front of an answer.
    front: Vec<u8>,
}

impl<S: 'static> Worker<'_, S> {
    fn live(
        &mut self,
        socket: ClientSource,
        mut inbox: Vec<u8>,
        hello: &mut WorkerHello,
    ) -> Result<Infallible, ExitReason> {
        let AcceptedClient { socket, received, deadline, is_preamble_sent } = match socket {
            ClientSource::Accepted(client) => client,
            ClientSource::Channel(line) => self.wait_for_client(&line)?,
        };
        inbox.extend_from_slice(&received);
        let socket = sys::leak_descriptor(socket);
        context::serves(socket);
        let mut connection = Connection::new(socket, inbox, &self.config, self.slot);
        connection.set_handshake_deadline(deadline);
        match connection.read_preamble()? {
            Protocol::Native => {
                telemetry::start(socket);
                hello.max_files = connection.max_files();
                self.handshake(&mut connection, hello, is_preamble_sent)?;
                self.run(|worker| worker.serve_message(&mut connection))
            }
            Protocol::Perl => {
                telemetry::record_for_first_call();
                self.slot.set_death_reportable(false);
                let mut scanner = Scanner::default();
                // Nothing is set up for a client that may never say a whole message.
                let mut first = Some(connection.read_json_message(&mut scanner)?);
                connection.set_handshake_deadline(None);
                self.slot.enter(Phase::Setup)?;
                self.run(|worker| worker.serve_json(&mut connection, &mut scanner, &mut first))
            }
        }
    }

    /// Sets up and serves one checkout after the other. `serve` waits for a message and does what it
    /// says; it tells whether that ended a checkout.
    fn run(
        &mut self,
        mut serve: impl FnMut(&mut Self) -> Result<bool, ExitReason>,
    ) -> Result<Infallible, ExitReason> {
        if self.slot.is_client_gone() {
            return Err(ExitReason::Finished);
        }
        if self.state.is_none() && self.setup_fault.is_none() {
            self.setup_fault = self.set_up().err();
            if let Some(fault) = &self.setup_fault {
                log_setup(self.number, fault);
            }
        }
        loop {
            self.enter_idle()?;
            // Until a checkout is done, the worker is in one client's hands.
            while !serve(self)? {}
            if let Some(why) = self.retirement_reason() {
                self.slot.set_retirement(why);
                // Whoever sends a call now learns that it has not been begun.
                self.slot.enter(Phase::Retired)?;
                return Err(ExitReason::Finished);
            }
        }
    }

    /// Greets the client; after its server has sent the preamble, if `is_begun`.
    fn handshake(
        &mut self,
        connection: &mut Connection,
        hello: &mut WorkerHello,
        is_begun: bool,
    ) -> Result<(), ExitReason> {
        let frame = connection.read_hello()?;
        let FromClient::Hello(client) = FromClient::decode(connection.body(&frame))? else {
            return Err(WireError::Malformed("the first message is no hello".into()).into());
        };
        if !is_begun {
            self.out.bytes.extend_from_slice(PREAMBLE);
        }
        let (fault, number) = (refusal(&client), client.client_number);
        let (max_frame, files, lent) = (client.max_frame, client.max_files, client.shared_memory);
        self.max_blob = client.max_blob.unwrap_or(DEFAULT_MAX_BLOB);
        if self.interface.accepts_shared_memory() {
            self.shared_memory.request(lent, self.config.shared_memory);
        }
        frame::write_control(&mut self.out.bytes, |out| match &fault {
            Some(fault) => native::put_error(out, None, &fault.body()),
            None => hello.put(out),
        })?;
        self.slot.set_client(number);
        // From the greeting on the client waits for calls, so that a death must be told to it.
        self.slot.enter(Phase::Setup)?;
        connection.write(&self.out)?;
        if fault.is_some() {
            // It ends as it should, and so that the server can tell that.
            self.slot.enter(Phase::Retired)?;
            return Err(ExitReason::Finished);
        }
        self.max_answer = max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(self.max_answer);
        self.client_files = files.min(hello.max_files);
        Ok(())
    }

    fn retirement_reason(&self) -> Option<Retirement> {
        if self.config.max_calls.is_some_and(|most| self.slot.calls() >= most) {
            return Some(Retirement::Calls);
        }
        let grown = self.config.max_memory.is_some_and(|most| sys::resident_bytes() > most);
        grown.then_some(Retirement::Memory)
    }

    fn enter_idle(&self) -> Result<(), ExitReason> {
        self.slot.enter(Phase::Idle)?;
        if self.slot.should_retire() {
            return Err(ExitReason::Finished);
        }
        Ok(())
    }

    /// Waits for a message and does what it says; tells whether it ended a checkout.
    fn serve_message(&mut self, connection: &mut Connection) -> Result<bool, ExitReason> {
        let Some(frame) = connection.read_frame_or_idle()? else {
            self.shared_memory.trim(connection)?;
            return Ok(false);
        };
        // The clock is read once for all who want to know.
        let begun = now();
        if native::call_mode(connection.body(&frame))
            .is_some_and(|order| self.pipeline.may_be_cancelled(order, begun))
        {
            connection.read_available(2 * pipeline::WINDOW);
            self.pipeline
                .set_cancelled(connection.buffered_bodies().filter_map(native::cancelled_call));
        }
        let files = connection.take_files(std::mem::take(&mut self.announced))?;
        let long = connection.take_long_body(&frame);
        let body = long.as_deref().unwrap_or_else(|| connection.body(&frame));
        match FromClient::decode(body)? {
            FromClient::Call { mode, method, args, meta } => {
                let lent = self.shared_memory.take_received()?;
                let WorkerConfig { max_frame: most, max_blob, .. } = self.config;
                let attachments = Attachments { files, shared: lent, max_blob, max_inlined: most };
                match self.pipeline.begin(mode, begun) {
                    Some(sent) => blob::within(long.as_ref(), attachments, || {
                        self.serve_call(method, args, &meta, begun, sent)?;
                        attachments::check_blob_limit().map_err(ExitReason::from)
                    })?,
                    None => self.skip_call()?,
                }
                if self.shared_memory.is_used() {
                    self.prepend(|worker, out| worker.shared_memory.write_control(begun, out));
                }
                // `setup` may have changed the user of this process, which decides what it shares.
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
                self.slot.enter(Phase::Held)?;
                self.out.clear_attachments();
                long.into_iter().for_each(|body| connection.reuse_buffer(body));
                Ok(false)
            }
            FromClient::Done => self.end_checkout().map(|()| true),
            FromClient::QueueLength(checkouts) => {
                self.slot.set_waiting(checkouts, begun);
                Ok(false)
            }
            // The call has been answered already.
            FromClient::Cancel(_) => Ok(false),
            FromClient::Files(count) => {
                self.announced = count;
                Ok(false)
            }
            FromClient::Shm(said) => {
                self.shared_memory.handle_message(said, connection)?;
                Ok(false)
            }
            FromClient::Rings => match self.shared_memory.allows_rings() {
                Some(takes) => {
                    connection.accept_rings(takes).map(|()| false).map_err(ExitReason::from)
                }
                None => Err(WireError::Malformed("rings that were not asked for".into()).into()),
            },
            FromClient::Hello(_) => Err(WireError::Malformed("a second hello".into()).into()),
        }
    }

    /// Runs a call and leaves in `out` what is to be sent.
    fn serve_call(
        &mut self,
        method: Option<&str>,
        args: Arguments<'_>,
        meta: &CallMeta<'_>,
        begun: Duration,
        sent: Duration,
    ) -> Result<(), ExitReason> {
        let grace = meta.grace.map_or(DEFAULT_GRACE, TimeLimit::from_microseconds);
        let time = meta.timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let deadline = time.after_time(sent);
        let end = deadline.and_then(|deadline| grace.after_time(deadline));
        self.slot.set_call(method.unwrap_or_default(), deadline, end);
        self.slot.enter_at(Phase::Busy, Some(begun))?;
        if deadline.is_some_and(|deadline| self.slot.is_before_wakeup(deadline)) {
            sys::wake_server();
        }
        if self.slot.is_client_gone() {
            return Err(ExitReason::Finished);
        }
        let places = meta.trace.is_some() && self.shows_details();
        telemetry::begin_call(RequestedTelemetry {
            log: meta.log.map(Level::new),
            trace: meta.trace,
            places,
        });
        trace_context::set(TraceContext::received(meta.traceparent, meta.tracestate));
        context::set(deadline);
        let called = self.call(method, args);
        context::set(None);
        trace_context::set(None);
        let telemetry = telemetry::end_call();
        if !telemetry.is_empty() {
            self.prepend(|worker, out| telemetry.write(out, worker.max_answer));
        }
        called.map_err(ExitReason::from)
    }

    fn skip_call(&mut self) -> Result<(), ExitReason> {
        self.slot.count_skipped();
        let call = self.pipeline.number();
        self.out.bytes.clear();
        frame::write::<WireError>(&mut self.out.bytes, self.max_answer, |out| {
            native::put_skipped(out, call);
            Ok(())
        })
        .map_err(ExitReason::from)
    }

    /// Runs a call and leaves its answer in `out`.
    pub(super) fn call(
        &mut self,
        method: Option<&str>,
        args: Arguments<'_>,
    ) -> Result<(), WireError> {
        self.out.bytes.clear();
        self.out.bytes.shrink_to(KEPT_BUFFER);
        let Err(fault) = self.try_call(method, args) else { return Ok(()) };
        self.pipeline.set_failed();
        let fault = if self.shows_details() { fault } else { fault.without_details() };
        write_fault(&mut self.out.bytes, self.max_answer, self.pipeline.number(), &fault)
    }

    /// Whether the client learns what can tell of this machine.
    fn shows_details(&self) -> bool {
        let is_own = || {
            let peer = context().peer();
            peer.is_some_and(|peer| peer.uid == self.config.server_user)
        };
        self.config.share_details || is_own()
    }

    /// Has something sent before the answer.
    fn prepend(&mut self, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        let mut frames = std::mem::take(&mut self.front);
        write(self, &mut frames);
        if !frames.is_empty() {
            self.out.segments.iter_mut().for_each(|segment| segment.offset += frames.len());
            self.out.bytes.splice(..0, frames.drain(..));
            frames.shrink_to(KEPT_BUFFER);
        }
        self.front = frames;
    }

    fn try_call(&mut self, method: Option<&str>, args: Arguments<'_>) -> Result<(), Fault> {
        if let Some(fault) = self.setup_fault.take() {
            return Err(fault);
        }
        bounds::check(args.encoded(), self.config.max_frame)
            .map_err(|reason| Fault::arguments(&reason))?;
        let state = match &mut self.state {
            Some(state) => state,
            empty => {
                let made = set_up(self.handlers);
                let made = made.inspect_err(|fault| log_setup(self.number, fault));
                empty.insert(made?)
            }
        };
        let (interface, number) = (self.interface, self.pipeline.number());
        self.out.write(self.max_answer, |out| {
            native::put_ok(out, number, ValueFormat::from_json_flag(interface.returns_json()));
            catch_user_panic(|| interface.call(state, Request::new(method, args, out)).0)
                .unwrap_or_else(|panic| Err(Fault::panic(panic)))
        })?;
        let shared_memory = &mut self.shared_memory;
        let client = ReceiverLimits {
            max_frame: self.max_answer,
            max_blob: self.max_blob,
            max_files: self.client_files,
        };
        let fits = self
            .out
            .fit_with(client, |bytes, home, may_add| shared_memory.store(bytes, home, may_add));
        let length = self.out.len();
        let fault = match fits {
            Err(reason) => Fault::result(&reason),
            Ok(()) if length - frame::HEADER_LEN <= self.max_answer => return Ok(()),
            Ok(()) => Fault::result(&WireError::TooLarge { length, limit: self.max_answer }),
        };
        self.out = GatherFrame::default();
        Err(fault)
    }

    pub(super) fn set_up(&mut self) -> Result<(), Fault> {
        self.state = Some(set_up(self.handlers)?);
        Ok(())
    }

    pub(super) fn end_checkout(&mut self) -> Result<(), ExitReason> {
        self.slot.count_checkout();
        self.slot.enter(Phase::CheckoutDone)?;
        let (Some(state), Some(done)) = (&mut self.state, &self.handlers.checkout_done) else {
            return Ok(());
        };
        match catch_user_panic(|| done(state)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(ExitReason::CheckoutDoneFailed(Fault::interface(&failure))),
            Err(panic) => Err(ExitReason::CheckoutDoneFailed(Fault::panic(panic))),
        }
    }
}

/// A client that calls nothing, or may not know why, leaves no other trace of it.
fn log_setup(worker: u64, fault: &Fault) {
    tracing::error!(worker, "the setup of a worker failed: {}", fault.setup_reason());
}

fn set_up<S>(handlers: &Handlers<S>) -> Result<S, Fault> {
    let server = getppid();
    let made = catch_user_panic(&handlers.setup);
    die_with_server(server);
    match made {
        Ok(made) => made.map_err(Fault::setup),
        Err(panic) => Err(Fault::setup(Failure::new(panic.to_string()))),
    }
}

/// Has the kernel kill this worker when its server ends, and leaves if the server has ended already.
///
/// The kernel forgets that request when a process changes its user or group, as `setup` may do.
fn die_with_server(server: Option<Pid>) {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::error!(
            "prctl(PR_SET_PDEATHSIG) failed after `setup`, so that this worker may outlive a server that is killed: {error}"
        );
    }
    if getppid() != server {
        sys::exit_now(0);
    }
}

impl From<WireError> for Fault {
    /// The only thing that can be wrong with a frame that is being written is its size.
    fn from(error: WireError) -> Self {
        Self::result(&error)
    }
}

fn write_fault(
    out: &mut Vec<u8>,
    limit: usize,
    call: Option<u64>,
    fault: &Fault,
) -> Result<(), WireError> {
    let write = |out: &mut Vec<u8>, fault: &Fault| {
        frame::write::<WireError>(out, limit, |out| {
            native::put_error(out, call, &fault.body());
            Ok(())
        })
    };
    // An error too large to be sent is still told as an error.
    write(out, fault).or_else(|error| write(out, &Fault::result(&error)))
}

/// Why a client is not served, if so.
fn refusal(client: &ClientHello<'_>) -> Option<Fault> {
    if client.versions.iter().any(|version| VERSIONS.contains(version)) {
        return client.incompatibility().map(Fault::hello);
    }
    let message = format!(
        "the client `{}` speaks the protocol versions {:?}, this server {VERSIONS:?}",
        client.name, client.versions
    );
    Some(Fault::version(message))
}
