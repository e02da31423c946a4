//! A worker's life: greet, set up, then one call after the other until the client goes or the
//! server says so.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use super::ahead::{self, Ahead};
use super::connection::{Broken, Connection};
use super::fault::{Fault, guarded};
use super::interface::{Interface, Request};
use super::lending::Lending;
use super::notes::{self, Wanted};
use super::panic::remember_places;
use super::scoreboard::{Order, Phase, Retirement, WorkerSlot, now};
use super::seat::{Connected, Limits, Seat, Socket};
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
pub(super) enum Leave {
    /// There is nothing left to do.
    Quietly,
    /// The connection is of no use any more.
    Broken(Broken),
    /// `checkout_done` failed, so that nobody else may get this worker.
    Unclean(Fault),
    /// It was to be set up for whoever would come, and could not be.
    Useless,
    /// The server wants it.
    Ordered(Order),
}

impl From<Order> for Leave {
    fn from(order: Order) -> Self {
        Self::Ordered(order)
    }
}

impl From<Broken> for Leave {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed => Self::Quietly,
            other => Self::Broken(other),
        }
    }
}

impl From<WireError> for Leave {
    fn from(error: WireError) -> Self {
        Self::Broken(error.into())
    }
}

/// Does in the server what every worker would have to do again: each page that a worker writes to is
/// copied, and what the loader looks up is looked up in each.
pub(crate) fn prepare() {
    remember_places();
    gather_frame::init_thread_locals();
}

/// Serves one connection until it ends; gives the status to exit with.
pub(crate) fn serve<S: 'static>(
    seat: Seat,
    interface: &dyn Interface<S>,
    handlers: &Handlers<S>,
) -> i32 {
    let witness = seat.slot.witness().ok_or_else(|| io::ErrorKind::InvalidData.into());
    sys::remember_process();
    if let Err(error) = witness.and_then(|witness| sys::watch_stack(witness, seat.wake)) {
        tracing::error!(worker = seat.number, "this worker's stack cannot be told: {error}");
    }
    let number = seat.number;
    let mut worker = Worker {
        number,
        slot: seat.slot,
        interface,
        handlers,
        state: None,
        setup_fault: None,
        limits: seat.limits,
        max_answer: seat.limits.max_frame,
        max_blob: DEFAULT_MAX_BLOB,
        ahead: Ahead::default(),
        announced: 0,
        client_files: 0,
        lending: Lending::default(),
        out: GatherFrame { bytes: seat.buffers.outbox, ..GatherFrame::default() },
    };
    let mut hello = WorkerHello {
        version: VERSIONS[0],
        pid: rustix::process::getpid().as_raw_nonzero().get().unsigned_abs(),
        worker: number,
        server: seat.server,
        max_frame: Some(seat.limits.max_frame),
        max_blob: Some(seat.limits.max_blob),
        ahead: ahead::WINDOW,
        files: 0,
        alarm: false,
    };
    let Err(leave) = worker.live(seat.socket, seat.buffers.inbox, &mut hello);
    let status = match leave {
        Leave::Quietly | Leave::Ordered(Order::Retired) => 0,
        Leave::Broken(broken) => {
            tracing::warn!(worker = number, "connection closed: {broken}");
            0
        }
        Leave::Useless => 1,
        Leave::Unclean(fault) => {
            let message = fault.body().message.to_owned();
            tracing::error!(worker = number, "checkout_done failed, the worker ends: {message}");
            1
        }
        Leave::Ordered(Order::Condemned) => loop {
            // SIGKILL is on its way.
            std::thread::park();
        },
    };
    // What the state owns is closed in order; a panic in it must not keep the worker from leaving.
    let _ = guarded(move || drop(worker));
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
    limits: Limits,
    pub(super) max_answer: usize,
    /// The longest blob that the client takes as memory.
    max_blob: usize,
    ahead: Ahead,
    /// How many files come with the next message.
    announced: usize,
    /// How many the client takes with an answer.
    client_files: usize,
    lending: Lending,
    pub(super) out: GatherFrame,
}

impl<S: 'static> Worker<'_, S> {
    fn live(
        &mut self,
        socket: Socket,
        inbox: Vec<u8>,
        hello: &mut WorkerHello,
    ) -> Result<Infallible, Leave> {
        let Connected { socket, received, until, is_told } = match socket {
            Socket::Connected(client) => client,
            Socket::Awaited(line) => self.wait_for_client(&line)?,
        };
        let inbox = if received.is_empty() { inbox } else { received };
        let socket = sys::keep_open(socket);
        context::serves(socket);
        let mut connection = Connection::new(socket, inbox, &self.limits, self.slot);
        connection.greets_until(until);
        match connection.read_preamble()? {
            Protocol::Native => {
                notes::start(socket);
                hello.files = connection.most_files();
                self.greet(&mut connection, hello, is_told)?;
                self.run(|worker| worker.serve_message(&mut connection))
            }
            Protocol::Perl => {
                notes::expect();
                self.slot.leaves_told(false);
                let mut scanner = Scanner::default();
                // Nothing is set up for a client that may never say a whole message.
                let mut first = Some(connection.read_json_message(&mut scanner)?);
                connection.greets_until(None);
                self.slot.enter(Phase::Setup)?;
                self.run(|worker| worker.serve_json(&mut connection, &mut scanner, &mut first))
            }
        }
    }

    /// Sets up and serves one checkout after the other. `serve` waits for a message and does what it
    /// says; it tells whether that ended a checkout.
    fn run(
        &mut self,
        mut serve: impl FnMut(&mut Self) -> Result<bool, Leave>,
    ) -> Result<Infallible, Leave> {
        if self.slot.is_client_gone() {
            return Err(Leave::Quietly);
        }
        if self.state.is_none() && self.setup_fault.is_none() {
            self.setup_fault = self.set_up().err();
            if let Some(fault) = &self.setup_fault {
                log_setup(self.number, fault);
            }
        }
        loop {
            self.become_idle()?;
            // Until a checkout is done, the worker is in one client's hands.
            while !serve(self)? {}
            if let Some(why) = self.wears_out() {
                self.slot.retires(why);
                // Whoever sends a call now learns that it has not been begun.
                self.slot.enter(Phase::Retired)?;
                return Err(Leave::Quietly);
            }
        }
    }

    /// Greets the client; after its server has sent the preamble, if `is_begun`.
    fn greet(
        &mut self,
        connection: &mut Connection,
        hello: &mut WorkerHello,
        is_begun: bool,
    ) -> Result<(), Leave> {
        let frame = connection.read_hello()?;
        let FromClient::Hello(client) = FromClient::decode(connection.body(&frame))? else {
            return Err(WireError::Malformed("the first message is no hello".into()).into());
        };
        if !is_begun {
            self.out.bytes.extend_from_slice(PREAMBLE);
        }
        let (fault, number) = (refusal(&client), client.client);
        let (max_frame, files, lent) = (client.max_frame, client.files, client.lent);
        self.max_blob = client.max_blob.unwrap_or(DEFAULT_MAX_BLOB);
        if self.interface.takes_lent() {
            self.lending.ask(lent, self.limits.shared_memory);
        }
        frame::write::<WireError>(&mut self.out.bytes, DEFAULT_MAX_FRAME, |out| {
            match &fault {
                Some(fault) => native::put_error(out, None, &fault.body()),
                None => hello.put(out),
            }
            Ok(())
        })?;
        self.slot.serves(number);
        // From the greeting on the client waits for calls, so that a death must be told to it.
        self.slot.enter(Phase::Setup)?;
        connection.write(&self.out)?;
        if fault.is_some() {
            // It ends as it should, and so that the server can tell that.
            self.slot.enter(Phase::Retired)?;
            return Err(Leave::Quietly);
        }
        self.max_answer = max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(self.max_answer);
        self.client_files = files.min(hello.files);
        Ok(())
    }

    fn wears_out(&self) -> Option<Retirement> {
        if self.limits.max_calls.is_some_and(|most| self.slot.calls() >= most) {
            return Some(Retirement::Calls);
        }
        let grown = self.limits.max_memory.is_some_and(|most| sys::resident_bytes() > most);
        grown.then_some(Retirement::Memory)
    }

    fn become_idle(&self) -> Result<(), Leave> {
        self.slot.enter(Phase::Idle)?;
        if self.slot.is_to_retire() {
            return Err(Leave::Quietly);
        }
        Ok(())
    }

    /// Waits for a message and does what it says; tells whether it ended a checkout.
    fn serve_message(&mut self, connection: &mut Connection) -> Result<bool, Leave> {
        let Some(frame) = connection.read_frame_soon()? else {
            self.lending.rest(connection)?;
            return Ok(false);
        };
        // The clock is read once for all who want to know.
        let begun = now();
        if native::call_mode(connection.body(&frame))
            .is_some_and(|mode| self.ahead.is_to_look(mode, begun))
        {
            connection.read_what_is_there(2 * ahead::WINDOW);
            self.ahead.forget(connection.next_bodies().filter_map(native::cancelled_call));
        }
        let files = connection.take_files(std::mem::take(&mut self.announced))?;
        let long = connection.take_long(&frame);
        let body = long.as_deref().unwrap_or_else(|| connection.body(&frame));
        match FromClient::decode(body)? {
            FromClient::Call { mode, method, args, meta } => {
                let lent = self.lending.take_uses()?;
                let Limits { max_frame: most, max_blob, .. } = self.limits;
                let attachments = Attachments { files, lent, max_blob, most };
                match self.ahead.take(mode, begun) {
                    Some(sent) => blob::within(long.as_ref(), attachments, || {
                        self.serve_call(method, args, &meta, begun, sent)?;
                        attachments::check_blob_limit().map_err(Leave::from)
                    })?,
                    None => self.skip_call()?,
                }
                if self.lending.has_begun() {
                    self.put_in_front(|worker, out| worker.lending.say(begun, out));
                }
                // `setup` may have changed the user of this process, which decides what it shares.
                if self.state.is_some() && self.lending.is_asked() {
                    self.put_in_front(|worker, out| worker.lending.agree(connection, out));
                }
                self.slot.enter(if self.out.len() <= ATOMIC_WRITE {
                    Phase::Answering
                } else {
                    Phase::AnsweringAtLength
                })?;
                connection.write(&self.out)?;
                self.lending.sent(&self.out.references, connection);
                self.interface.answered();
                self.slot.enter(Phase::Held)?;
                self.out.clear_attachments();
                long.into_iter().for_each(|body| connection.reuse(body));
                Ok(false)
            }
            FromClient::Done => self.end_checkout().map(|()| true),
            FromClient::QueueLength(checkouts) => {
                self.slot.hear_of_queue(checkouts, begun);
                Ok(false)
            }
            // The call has been answered already.
            FromClient::Cancel(_) => Ok(false),
            FromClient::Files(count) => {
                self.announced = count;
                Ok(false)
            }
            FromClient::Shm(said) => {
                self.lending.hear(said, connection)?;
                Ok(false)
            }
            FromClient::Rings => match self.lending.takes_rings() {
                Some(takes) => connection.accept_rings(takes).map(|()| false).map_err(Leave::from),
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
    ) -> Result<(), Leave> {
        let grace = meta.grace.map_or(DEFAULT_GRACE, TimeLimit::from_microseconds);
        let time = meta.timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let deadline = time.after_time(sent);
        let end = deadline.and_then(|deadline| grace.after_time(deadline));
        self.slot.announce(method.unwrap_or_default(), deadline, end);
        self.slot.enter_at(Phase::Busy, Some(begun))?;
        if deadline.is_some_and(|deadline| self.slot.is_over_before_server_wakes(deadline)) {
            sys::wake_server();
        }
        if self.slot.is_client_gone() {
            return Err(Leave::Quietly);
        }
        let places = meta.trace.is_some() && self.shows_details();
        notes::begin(Wanted { log: meta.log.map(Level::new), trace: meta.trace, places });
        trace_context::set(TraceContext::received(meta.traceparent, meta.tracestate));
        context::set(deadline);
        let called = self.call(method, args);
        context::set(None);
        trace_context::set(None);
        let notes = notes::end();
        if !notes.is_empty() {
            self.put_in_front(|worker, out| notes.write(out, worker.max_answer));
        }
        called.map_err(Leave::from)
    }

    fn skip_call(&mut self) -> Result<(), Leave> {
        self.slot.count_skipped();
        let call = self.ahead.number();
        self.out.bytes.clear();
        frame::write::<WireError>(&mut self.out.bytes, self.max_answer, |out| {
            native::put_skipped(out, call);
            Ok(())
        })
        .map_err(Leave::from)
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
        self.ahead.failed();
        let fault = if self.shows_details() { fault } else { fault.without_details() };
        write_fault(&mut self.out.bytes, self.max_answer, self.ahead.number(), &fault)
    }

    /// Whether the client learns what can tell of this machine.
    fn shows_details(&self) -> bool {
        let is_own = || {
            let peer = context().peer();
            peer.is_some_and(|peer| peer.uid == self.limits.server_user)
        };
        self.limits.share_details || is_own()
    }

    /// Has something sent before the answer.
    fn put_in_front(&mut self, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        let mut frames = Vec::new();
        write(self, &mut frames);
        if !frames.is_empty() {
            self.out.segments.iter_mut().for_each(|segment| segment.offset += frames.len());
            self.out.bytes.splice(..0, frames);
        }
    }

    fn try_call(&mut self, method: Option<&str>, args: Arguments<'_>) -> Result<(), Fault> {
        if let Some(fault) = self.setup_fault.take() {
            return Err(fault);
        }
        bounds::check(args.encoded(), self.limits.max_frame)
            .map_err(|reason| Fault::arguments(&reason))?;
        let state = match &mut self.state {
            Some(state) => state,
            empty => {
                let made = set_up(self.handlers);
                let made = made.inspect_err(|fault| log_setup(self.number, fault));
                empty.insert(made?)
            }
        };
        let (interface, number) = (self.interface, self.ahead.number());
        frame::write_gather(&mut self.out, self.max_answer, |out| {
            native::put_ok(out, number, ValueFormat::from_json_flag(interface.gives_json()));
            guarded(|| interface.call(state, Request::new(method, args, out)).0)
                .unwrap_or_else(|panic| Err(Fault::panic(panic)))
        })?;
        let lending = &mut self.lending;
        let client = ReceiverLimits {
            max_frame: self.max_answer,
            max_blob: self.max_blob,
            files: self.client_files,
        };
        let fits =
            self.out.fit_with(client, |bytes, home, may_add| lending.place(bytes, home, may_add));
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

    pub(super) fn end_checkout(&mut self) -> Result<(), Leave> {
        self.slot.count_checkout();
        self.slot.enter(Phase::Done)?;
        let (Some(state), Some(done)) = (&mut self.state, &self.handlers.checkout_done) else {
            return Ok(());
        };
        match guarded(|| done(state)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(failure)) => Err(Leave::Unclean(Fault::interface(&failure))),
            Err(panic) => Err(Leave::Unclean(Fault::panic(panic))),
        }
    }
}

/// A client that calls nothing, or may not know why, leaves no other trace of it.
fn log_setup(worker: u64, fault: &Fault) {
    tracing::error!(worker, "the setup of a worker failed: {}", fault.setup_reason());
}

fn set_up<S>(handlers: &Handlers<S>) -> Result<S, Fault> {
    let server = getppid();
    let made = guarded(&handlers.setup);
    end_with(server);
    match made {
        Ok(made) => made.map_err(Fault::setup),
        Err(panic) => Err(Fault::setup(Failure::new(panic.to_string()))),
    }
}

/// Has the kernel kill this worker when its server ends, and leaves if the server has ended already.
///
/// The kernel forgets that request when a process changes its user or group, as `setup` may do.
fn end_with(server: Option<Pid>) {
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
