//! Workers that are programs of any language. The forked worker starts the program, hands it one end of
//! a pair of sockets, and speaks with it as a client would; to everybody else it is a worker like any
//! other, with its slot of the scoreboard, its deadlines and its limits. It dies as its program does.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::io::{Errno, FdFlags, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::process::{Pid, Signal, kill_process};

use super::error_reply::ErrorReply;
use super::interface::{BoxError, Interface, Reply, Request};
use super::logger::logger;
use super::telemetry;
use crate::blob;
use crate::context::context;
use crate::error::Failure;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::trace_context::{self, TraceContext};
use crate::wire::arguments::Arguments;
use crate::wire::attachments::{self, Attachments};
use crate::wire::frame::{self, DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME, PREAMBLE};
use crate::wire::gather_frame::{self, GatherFrame, ReceiverLimits};
use crate::wire::hello::{ClientHello, MAX_HELLO, WorkerHello};
use crate::wire::native::{self, CallMeta, FromWorker, VERSIONS};
use crate::wire::perl::{self, Scanner};
use crate::wire::values::ValueFormat;
use crate::wire::{Protocol, WireError, log};

/// The variable that tells a program the number of its descriptor.
const VARIABLE: &str = "TASKFORK_FD";

/// How long a program has to end by itself once its connection has been closed.
const LEAVE: Duration = Duration::from_secs(1);

/// A program that serves as worker, for [`ServerBuilder::executable`](crate::ServerBuilder::executable).
///
/// It is started for each worker, in the worker's process group and with its limits, with one end of a
/// stream socket as the descriptor whose number is in the variable `TASKFORK_FD`. There it speaks the
/// worker's side of the [native protocol](Protocol::Native), or of [JSON](Protocol::Perl) if that is
/// set, whichever protocol the clients speak. When the socket is closed it has a second to end by
/// itself. It starts with SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGTTOU ignored; where its runtime resets that, as Node and
/// Go do, it should ignore them itself.
///
/// ```no_run
/// use taskfork::worker::Executable;
/// use taskfork::Server;
///
/// # fn main() -> Result<(), taskfork::ServerError> {
/// Server::builder()
///     .listen("unix:/run/pictures.sock")
///     .executable(Executable::new("python3").arg("pictures.py"))
///     .run()
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a program is started when it is passed to `ServerBuilder::executable`"]
pub struct Executable {
    program: OsString,
    args: Vec<OsString>,
    protocol: Protocol,
    name: String,
    max_frame: usize,
    max_blob: usize,
}

impl Executable {
    /// A program by its path, or by its name if it is to be looked for in `PATH`.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            protocol: Protocol::Native,
            name: String::new(),
            max_frame: DEFAULT_MAX_FRAME,
            max_blob: DEFAULT_MAX_BLOB,
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Which protocol the program speaks: [`Protocol::Native`] unless set.
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    pub(crate) fn of_server(self, name: &str, max_frame: usize, max_blob: usize) -> Self {
        Self { name: name.to_owned(), max_frame, max_blob, ..self }
    }

    /// The interface of a server whose workers are this program.
    pub(crate) fn forward(&self) -> Forward {
        Forward { protocol: self.protocol }
    }

    pub(crate) fn start(&self) -> Result<Running, BoxError> {
        let (ours, theirs) = UnixStream::pair()?;
        // This process has one thread, so that nothing else is started meanwhile.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).env(VARIABLE, theirs.as_raw_fd().to_string());
        let child = command.spawn().map_err(|error| {
            format!("cannot start the program {}: {error}", self.program.display())
        })?;
        drop(theirs);
        sys::defer_mirroring(true);
        sys::disable_stack_capture();
        sys::mirror_exit_of(child.id(), &ours)?;
        let mut running = Running {
            child,
            socket: ours,
            inbox: BytesMut::new(),
            max_frame: self.max_frame,
            max_blob: self.max_blob,
            scanner: (self.protocol == Protocol::Perl).then(Scanner::default),
            hello: WorkerHello::default(),
            files: Vec::new(),
            announced: 0,
            answer: None,
            calls: 0,
        };
        if self.protocol == Protocol::Native {
            running.greet(&self.name)?;
        }
        sys::defer_mirroring(false);
        Ok(running)
    }
}

/// A program that has been started.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    socket: UnixStream,
    inbox: BytesMut,
    max_frame: usize,
    max_blob: usize,
    /// Finds its messages, if they are JSON.
    scanner: Option<Scanner>,
    hello: WorkerHello,
    /// What has come with its messages, and how many of them belong to the next.
    files: Vec<OwnedFd>,
    announced: usize,
    /// The answer that came with a log, which is told first.
    answer: Option<Vec<u8>>,
    /// How many calls it has been sent.
    calls: u64,
}

impl Running {
    fn greet(&mut self, name: &str) -> Result<(), BoxError> {
        let hello = ClientHello {
            versions: VERSIONS.into(),
            name,
            max_frame: Some(self.max_frame),
            max_blob: Some(self.max_blob),
            max_files: sys::MAX_FILES,
            ..ClientHello::default()
        };
        let mut out = PREAMBLE.to_vec();
        frame::write_control(&mut out, |out| hello.put(out))?;
        self.send(&[&out]);
        while !frame::take_preamble(&mut self.inbox)? {
            self.receive(false)?;
        }
        let max_frame = std::mem::replace(&mut self.max_frame, MAX_HELLO);
        let body = self.message()?;
        self.max_frame = max_frame;
        match FromWorker::decode(&body)? {
            FromWorker::Hello(hello) => match hello.incompatibility() {
                None => self.hello = hello,
                Some(why) => return Err(format!("the program does not fit: {why}").into()),
            },
            FromWorker::Error { body, .. } => return Err(body.message.to_owned().into()),
            _ => return Err("the program's first message is no hello".into()),
        }
        Ok(())
    }

    /// Says that the checkout is done.
    pub(crate) fn checkout_done(&mut self) -> Result<(), Failure> {
        let mut out = Vec::new();
        match self.scanner {
            Some(_) => perl::put_done(&mut out),
            None => frame::write_control(&mut out, native::put_done)
                .map_err(|error| Failure::new(error.to_string()))?,
        }
        self.send(&[&out]);
        Ok(())
    }

    fn call(&mut self, request: Request<'_>) -> Reply {
        let (method, args) = (request.method(), request.args());
        // Until the answer has been sent: a program may end right after it.
        sys::defer_mirroring(true);
        if self.scanner.is_some() {
            self.check_silence();
            let whole = match inline(args, self.max_frame) {
                Ok(whole) => whole,
                Err(reason) => return Reply(Err(ErrorReply::arguments(&reason))),
            };
            match perl::encode_call(method, Arguments::new(args.len(), &whole)) {
                Ok(call) => self.send(&[&call]),
                Err(reason) => return Reply(Err(ErrorReply::arguments(&reason))),
            }
        } else {
            let trace = trace_context::current();
            let meta = CallMeta {
                log: telemetry::requested_log_level().map(log_defer::Level::rounded_up),
                timeout: TimeLimit::from(context().remaining()).microseconds(),
                traceparent: trace.as_ref().map(TraceContext::traceparent),
                tracestate: trace.as_ref().and_then(TraceContext::tracestate),
                json: args.format() == ValueFormat::Json,
                ..CallMeta::default()
            };
            let limit = self.hello.max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(u32::MAX as usize);
            let program = ReceiverLimits {
                max_frame: limit,
                max_blob: self.hello.max_blob.unwrap_or(DEFAULT_MAX_BLOB),
                max_files: self.hello.max_files,
            };
            let mut message = GatherFrame::default();
            let written = message.write(limit, |out| {
                native::put_call(out, method, meta);
                native::put_argument_count(out, args.len());
                blob::pass_on(args.encoded(), out).map_err(Unsendable::Files)
            });
            let written = written.map_err(|error| error.to_string());
            let fits = written.and_then(|()| fit(&mut message, program));
            if let Err(reason) = fits {
                return Reply(Err(ErrorReply::arguments(&Failure::new(reason))));
            }
            self.send_parted(&message);
        }
        self.calls += 1;
        loop {
            let body = match self.message() {
                Ok(body) => body,
                Err(error) => self.give_up(&error),
            };
            match FromWorker::decode(&body) {
                Ok(FromWorker::Ok { call, value }) => {
                    self.check_number(call);
                    let count = std::mem::take(&mut self.announced);
                    if self.files.len() < count {
                        self.give_up(&WireError::Files);
                    }
                    let files = self.files.drain(..count).collect();
                    let max_blob = self.max_blob;
                    let attachments = Attachments { files, max_blob, ..Attachments::default() };
                    return blob::within(None, attachments, || request.forward(value));
                }
                Ok(FromWorker::Files(count)) => self.announced = count,
                Ok(FromWorker::Error { call, body }) => {
                    self.check_number(call);
                    return Reply(Err(ErrorReply::received(&body)));
                }
                Ok(FromWorker::Telemetry(notes)) => take_over(notes.log),
                Ok(other) => self.give_up(&format!("{other:?} is no answer")),
                Err(error) => self.give_up(&error),
            }
        }
    }

    /// The number of an answer is that of the call that runs.
    fn check_number(&mut self, call: Option<u64>) {
        if self.scanner.is_none() && call != Some(self.calls) {
            let said = call.map_or("an answer without a number".to_owned(), |call| {
                format!("the answer to call {call}")
            });
            self.give_up(&format!("{said} came where that to call {} was due", self.calls));
        }
    }

    /// In JSON, answers have no numbers. So nothing may have come that would be taken for the answer to the next call.
    fn check_silence(&mut self) {
        let mut room = [0; 256];
        let peeked = recv(&self.socket, &mut room, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let there = peeked.map_or(0, |(_, length)| length.min(room.len()));
        if perl::first_byte(&self.inbox).or(perl::first_byte(&room[..there])).is_some() {
            self.give_up(&"it said something between two calls; has a call forked?");
        }
    }

    /// Sends all of it. A program that does not read any more has ended, or is about to.
    fn send(&mut self, pieces: &[&[u8]]) {
        let sent = pieces.iter().try_for_each(|piece| self.socket.write_all(piece));
        if sent.is_err() {
            self.end_with_program();
        }
    }

    fn send_parted(&mut self, message: &GatherFrame) {
        let mut sent = 0;
        while sent < message.len() {
            let (slices, count) = message.slices(sent);
            let files = if sent == 0 { &message.files[..] } else { &[] };
            let send =
                || sys::send_files(&self.socket, &slices[..count], files, SendFlags::empty());
            match retry_on_intr(send) {
                Ok(bytes) => sent += bytes,
                Err(_) => self.end_with_program(),
            }
        }
    }

    /// The next message's body, in the words of the native protocol.
    fn message(&mut self) -> Result<Vec<u8>, WireError> {
        let deadline = context().deadline().filter(|_| self.hello.wants_alarm);
        let mut told = false;
        if let Some(answer) = self.answer.take() {
            return Ok(answer);
        }
        loop {
            match &mut self.scanner {
                None => {
                    if let Some(body) = frame::take(&mut self.inbox, self.max_frame)? {
                        return Ok(body.into());
                    }
                }
                Some(scanner) => {
                    if let Some(place) = scanner.find(&self.inbox, self.max_frame)? {
                        let message = self.inbox.split_to(place.end);
                        let (notes, answer) =
                            perl::from_worker(&message[place.start..], self.max_frame)?;
                        let Some(notes) = notes else { return Ok(answer) };
                        self.answer = Some(answer);
                        return Ok(notes);
                    }
                }
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if !told && left.is_some_and(|left| left.is_zero()) {
                told = true;
                if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
                    // One that has ended shows in what comes next.
                    let _ = kill_process(pid, Signal::ALARM);
                }
            }
            // So that the deadline is seen also where its signal came just before the wait.
            let wait = left.filter(|left| !told && !left.is_zero());
            let _ = self.socket.set_read_timeout(wait);
            self.receive(wait.is_some())?;
        }
    }

    /// Receives something, unless `may_stop` and nothing comes in time.
    fn receive(&mut self, may_stop: bool) -> Result<(), WireError> {
        let room = frame::room_for_next_read(&self.inbox).max(self.inbox.len().min(1 << 20));
        self.inbox.reserve(room);
        match sys::receive_files(&self.socket, &mut self.inbox, &mut self.files, true) {
            Ok(length) if length > 0 => {}
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if may_stop => {}
            Err(errno) => match WireError::of_read(&errno.into()) {
                Some(error) => self.give_up(&error),
                None => self.end_with_program(),
            },
            Ok(_) => self.end_with_program(),
        }
        Ok(())
    }

    /// The program has closed its end: it has ended, or ends now, and so does this process.
    fn end_with_program(&mut self) -> ! {
        let until = Instant::now() + LEAVE;
        while Instant::now() < until {
            sys::exit_if_child_exited();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.give_up(&"it has closed its connection, and goes on as another program may that it has executed")
    }

    /// The program does not keep to the protocol. What it says next could be an answer to anything.
    fn give_up(&mut self, why: &dyn std::fmt::Display) -> ! {
        tracing::error!(pid = self.child.id(), "the program does not keep to the protocol: {why}");
        eprintln!("the program does not keep to the protocol: {why}");
        sys::stop_mirroring();
        let _ = self.child.kill();
        sys::exit_now(PROTOCOL_STATUS)
    }
}

/// With which a worker ends whose program broke the protocol, as `EX_PROTOCOL` of sysexits.
const PROTOCOL_STATUS: i32 = 76;

impl Drop for Running {
    /// Has the program end by itself, if it does so soon.
    fn drop(&mut self) {
        sys::stop_mirroring();
        sys::defer_mirroring(false);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let until = Instant::now() + LEAVE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why a call cannot be sent to the program.
#[derive(Debug, thiserror::Error)]
enum Unsendable {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{0}")]
    Files(String),
}

/// Arguments with the bytes of blobs in place of their files.
fn inline<'a>(args: Arguments<'a>, max_frame: usize) -> Result<Cow<'a, [u8]>, Failure> {
    if !attachments::is_any() {
        return Ok(Cow::Borrowed(args.encoded()));
    }
    let mut bytes = Vec::new();
    let (passed, segments, files) =
        gather_frame::collect_segments(|| blob::pass_on(args.encoded(), &mut bytes));
    let mut whole = GatherFrame { bytes, segments, files, ..GatherFrame::default() };
    let program = ReceiverLimits { max_frame, max_blob: 0, max_files: 0 };
    passed.and_then(|()| fit(&mut whole, program)).map_err(Failure::new)?;
    Ok(Cow::Owned(whole.copy_from(0)))
}

/// Makes a message what a program takes.
fn fit(message: &mut GatherFrame, program: ReceiverLimits) -> Result<(), String> {
    if program.max_files == 0 && message.requires_files() {
        return Err("the program takes no open files".to_owned());
    }
    message.fit(program)
}

/// Adds what the program has logged to the call's log.
fn take_over(encoded: Option<&[u8]>) {
    let Some(encoded) = encoded else { return };
    match log::read(encoded) {
        Ok(message) => logger().merge(message),
        Err(reason) => logger().warn(format!("what the program logged cannot be read: {reason}")),
    }
}

/// Hands calls on to the program.
pub(crate) struct Forward {
    /// What the program speaks.
    protocol: Protocol,
}

impl Interface<Running> for Forward {
    fn call(&self, running: &mut Running, request: Request<'_>) -> Reply {
        running.call(request)
    }

    fn on_answer_sent(&self) {
        sys::defer_mirroring(false);
    }

    fn returns_json(&self) -> bool {
        self.protocol == Protocol::Perl
    }

    /// Arguments go on to another process.
    fn accepts_shared_memory(&self) -> bool {
        false
    }
}
