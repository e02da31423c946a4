//! A running program and the worker's connection to it.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv};
use rustix::process::{Pid, Signal, kill_process};

use super::input::{Input, Next};
use super::items::{Items, Passed};
use super::translate;
use super::{Executable, FD_VARIABLE};
use crate::blob;
use crate::context::context;
use crate::error::BoxError;
use crate::error::Failure;
use crate::sys;
use crate::time_limit::timespec;
use crate::wire::attachments::Attachments;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::hello::{ClientHello, MAX_HELLO, WorkerHello};
use crate::wire::native::{self, FromWorker, Item, VERSIONS};
use crate::wire::perl::{self, Scanner};
use crate::wire::{Protocol, WireError};
use crate::worker::WorkerSandbox;
use crate::worker::error_reply::ErrorReply;
use crate::worker::interface::{Reply, Request};
use crate::worker::telemetry;

/// How long a program may take to exit once its connection is closed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The exit status of a worker whose program broke the protocol: `EX_PROTOCOL` of sysexits.
const PROTOCOL_STATUS: i32 = 76;

/// While the program is sent a message during a call, at most so much more than its longest message is received from it.
const RECEIVED_AHEAD: usize = 1 << 20;

const NO_INPUT: &str =
    "the workers of this server are programs that take no input: make a call without one";

const NO_ITEMS: &str =
    "the workers of this server are programs that stream no items: make a call, and no stream";

#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    socket: UnixStream,
    inbox: BytesMut,
    max_frame: usize,
    max_blob: usize,
    /// Finds the ends of the program's messages if these are JSON.
    scanner: Option<Scanner>,
    hello: WorkerHello,
    /// Descriptors that have arrived, and how many of them belong to the next message.
    files: Vec<OwnedFd>,
    announced_files: usize,
    /// An answer whose log is handled first, because one JSON message contains both.
    pending_answer: Option<Vec<u8>>,
    /// How many calls the program has been sent.
    calls: u64,
    /// It knows that nobody wants the call that runs.
    is_cancelled: bool,
}

/// The signal that the program gets at the deadline of a call.
#[derive(Debug, Default)]
struct Alarm {
    /// `None` if it gets none, or has got it.
    time: Option<Instant>,
}

/// What a read from the program has shown.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// The program may say more.
    Open,
    /// It has closed its end.
    End,
}

impl Alarm {
    fn at_deadline(program: &WorkerHello) -> Self {
        Self { time: context().deadline().filter(|_| program.wants_alarm) }
    }

    /// When it must be sent.
    fn time(&self) -> Option<Instant> {
        self.time
    }

    fn send_if_due(&mut self, program: &Child) {
        if self.time.take_if(|at| *at <= Instant::now()).is_some()
            && let Some(pid) = Pid::from_raw(program.id().cast_signed())
        {
            // This fails only if the program has exited, which the next read shows.
            let _ = kill_process(pid, Signal::ALARM);
        }
    }
}

impl Program {
    pub(super) fn start(
        executable: &Executable,
        sandbox: Option<&WorkerSandbox>,
    ) -> Result<Self, BoxError> {
        let (ours, theirs) = UnixStream::pair()?;
        // No other program inherits this, because the worker's only thread is here.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let mut command = executable.command(sandbox);
        command.env(FD_VARIABLE, theirs.as_raw_fd().to_string());
        let child = command.spawn().map_err(|error| executable.start_error(&error, sandbox))?;
        drop(theirs);
        telemetry::set_program(child.id());
        sys::defer_mirroring(true);
        sys::disable_stack_capture();
        sys::mirror_exit_of(child.id(), &ours)?;
        let mut program = Self {
            child,
            socket: ours,
            inbox: BytesMut::new(),
            max_frame: executable.max_frame,
            max_blob: executable.max_blob,
            scanner: (executable.protocol == Protocol::Perl).then(Scanner::default),
            hello: WorkerHello::default(),
            files: Vec::new(),
            announced_files: 0,
            pending_answer: None,
            calls: 0,
            is_cancelled: false,
        };
        if executable.protocol == Protocol::Native {
            program.handshake(&executable.name)?;
        }
        sys::defer_mirroring(false);
        Ok(program)
    }

    fn handshake(&mut self, name: &str) -> Result<(), BoxError> {
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
        self.send(&out);
        while !frame::take_preamble(&mut self.inbox)? {
            self.receive(true);
        }
        let max_frame = std::mem::replace(&mut self.max_frame, MAX_HELLO);
        let body = self.read_message(&mut Alarm::default(), None)?;
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

    /// The version with which the program can serve a connection itself. `None` if it cannot.
    pub(super) fn takes_over(&self) -> Option<&str> {
        Some(&*self.hello.takes_over).filter(|version| !version.is_empty())
    }

    /// Whether the process that has been started is the program itself.
    pub(super) fn is_in_place(&self) -> bool {
        self.hello.pid == self.child.id()
    }

    /// Informs the program that the checkout is done.
    pub(crate) fn checkout_done(&mut self) -> Result<(), Failure> {
        let mut out = Vec::new();
        match self.scanner {
            Some(_) => perl::put_done(&mut out),
            None => frame::write_control(&mut out, native::put_done)
                .map_err(|error| Failure::new(error.to_string()))?,
        }
        self.send(&out);
        Ok(())
    }

    pub(super) fn call(&mut self, request: Request<'_>) -> Reply {
        // The program may exit right after its answer. Then this process exits too, but only after the
        // answer is sent.
        sys::defer_mirroring(true);
        if request.port().is_some() && !self.hello.sends_items {
            return Reply(Err(ErrorReply::arguments(&NO_ITEMS)));
        }
        if request.input().is_some() && !self.hello.takes_input {
            return Reply(Err(ErrorReply::arguments(&NO_INPUT)));
        }
        let mut items = request.port().map(|port| Items::new(port, self.calls + 1));
        let mut input = request.input().map(|port| Input::new(port, self.calls + 1));
        if let Err(reason) = self.send_call(&request, items.as_ref(), input.is_some()) {
            return Reply(Err(ErrorReply::arguments(&reason)));
        }
        self.calls += 1;
        self.is_cancelled = false;
        let mut alarm = Alarm::at_deadline(&self.hello);
        loop {
            let body = match self.read_message(&mut alarm, input.as_mut()) {
                Ok(body) => body,
                Err(error) => self.fail(&error),
            };
            match FromWorker::decode(&body) {
                Ok(FromWorker::Ok { call, value, .. }) => {
                    self.check_number(call);
                    let files = self.take_files();
                    let error = items.and_then(|items| items.error());
                    if let Some(error) = error.or_else(|| input.and_then(|input| input.error())) {
                        return Reply(Err(error));
                    }
                    return blob::within(None, files, || request.forward(value));
                }
                Ok(FromWorker::Item(item)) => {
                    self.check_number(item.call);
                    let Some(items) = &mut items else {
                        self.fail(&"it streams items, which this call does not read");
                    };
                    self.pass_on(items, &item, body.len(), &mut alarm);
                }
                Ok(FromWorker::Files(count)) => self.announced_files = count,
                Ok(FromWorker::Credit { call, credit }) => {
                    self.check_number(Some(call));
                    match input.as_mut().map(|input| input.grant(credit)) {
                        Some(Ok(())) => {}
                        Some(Err(what)) => self.fail(&format!("it {what}")),
                        None => self.fail(&"it gives credit for an input, which this call has not"),
                    }
                }
                Ok(FromWorker::Error { call, body }) => {
                    self.check_number(call);
                    let error = input.and_then(|input| input.error());
                    return Reply(Err(error.unwrap_or_else(|| ErrorReply::received(&body))));
                }
                Ok(FromWorker::Telemetry(telemetry)) => translate::merge(&telemetry),
                Ok(other) => self.fail(&format!("{other:?} is no answer")),
                Err(error) => self.fail(&error),
            }
        }
    }

    /// The files of the message that has arrived.
    fn take_files(&mut self) -> Attachments {
        let count = std::mem::take(&mut self.announced_files);
        if self.files.len() < count {
            self.fail(&WireError::Files);
        }
        let files = self.files.drain(..count).collect();
        Attachments { files, max_blob: self.max_blob, ..Attachments::default() }
    }

    /// Passes an item on, whose message has this length.
    fn pass_on(&mut self, items: &mut Items, item: &Item<'_>, length: usize, alarm: &mut Alarm) {
        let files = self.take_files();
        if let Err(violation) = items.check(item, length, files.files.len()) {
            self.fail(&format!("it sent {violation}"));
        }
        match items.pass_on(item, files) {
            // This fails only if the program has ended. What it said before is still read.
            Ok(Passed::Credit(frame)) => _ = self.send_while_receiving(&frame, alarm),
            Ok(Passed::Unwanted) => self.cancel(alarm),
            Ok(Passed::Nothing) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// Tells the program once that nobody wants the call that runs.
    fn cancel(&mut self, alarm: &mut Alarm) {
        if std::mem::replace(&mut self.is_cancelled, true) {
            return;
        }
        let mut message = GatherFrame::default();
        frame::put(&mut message.bytes, |out| native::put_cancel(out, self.calls));
        // As for credit.
        let _ = self.send_while_receiving(&message, alarm);
    }

    /// Waits for an item of the input and sends it to the program. Returns earlier if the program says something.
    fn send_input(&mut self, input: &mut Input, alarm: &mut Alarm) {
        // There may be an item at any time, so that nothing is waited for.
        alarm.send_if_due(&self.child);
        let limits = translate::limits(&self.hello);
        match input.next(self.socket.as_fd(), alarm.time(), limits) {
            Next::Message(message) => {
                if !self.send_while_receiving(&message, alarm) {
                    input.end();
                }
            }
            Next::Cancelled => self.cancel(alarm),
            Next::Nothing => self.receive(false),
        }
    }

    /// Sends a message while a call runs. Receives meanwhile, because the program may write a long message, and reads
    /// nothing before that is gone. Returns false if the program has ended: what it said before is still read.
    fn send_while_receiving(&mut self, message: &GatherFrame, alarm: &mut Alarm) -> bool {
        let mut sent = 0;
        while sent < message.len() {
            let (slices, count) = message.slices(sent);
            let files = if sent == 0 { &message.files[..] } else { &[] };
            match sys::send_files(&self.socket, &slices[..count], files, SendFlags::DONTWAIT) {
                Ok(bytes) => sent += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let has_room = self.inbox.len() < self.max_frame.saturating_add(RECEIVED_AHEAD);
                    let read = if has_room { PollFlags::IN } else { PollFlags::empty() };
                    self.wait(read | PollFlags::OUT, alarm);
                    // Its answer may be among what it said before it ended.
                    if has_room && self.try_receive(false) == Received::End {
                        return false;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    /// Sends a call, whose items are read if there are `items`, and which may have an input. Fails if the program does not
    /// accept its arguments.
    fn send_call(
        &mut self,
        request: &Request<'_>,
        items: Option<&Items>,
        has_input: bool,
    ) -> Result<(), String> {
        let (method, args) = (request.method(), request.args());
        if self.scanner.is_some() {
            self.check_no_input();
            let call = translate::json_call(method, args, self.max_frame)?;
            self.send(&call);
        } else {
            let credit = items.map(Items::credit);
            let call = translate::native_call(method, args, credit, has_input, &self.hello)?;
            self.send_gathered(&call);
        }
        Ok(())
    }

    /// Checks that an answer has the number of the current call.
    fn check_number(&mut self, call: Option<u64>) {
        if self.scanner.is_none() && call != Some(self.calls) {
            let received = call.map_or("an answer without a number".to_owned(), |call| {
                format!("the answer to call {call}")
            });
            self.fail(&format!("{received} came where that to call {} was due", self.calls));
        }
    }

    /// Checks that the program has sent nothing between two calls. Answers in JSON have no numbers, so it
    /// would count as the answer to the next call.
    fn check_no_input(&mut self) {
        let mut buffer = [0; 256];
        let peeked = recv(&self.socket, &mut buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        let available = peeked.map_or(0, |(_, length)| length.min(buffer.len()));
        if perl::first_byte(&self.inbox).or(perl::first_byte(&buffer[..available])).is_some() {
            self.fail(&"it said something between two calls; has a call forked?");
        }
    }

    /// Sends all bytes. A program that reads no more has exited, or is about to exit.
    fn send(&mut self, bytes: &[u8]) {
        if self.socket.write_all(bytes).is_err() {
            self.exit_with_program();
        }
    }

    fn send_gathered(&mut self, message: &GatherFrame) {
        let mut sent = 0;
        while sent < message.len() {
            let (slices, count) = message.slices(sent);
            let files = if sent == 0 { &message.files[..] } else { &[] };
            let send =
                || sys::send_files(&self.socket, &slices[..count], files, SendFlags::empty());
            match retry_on_intr(send) {
                Ok(bytes) => sent += bytes,
                Err(_) => self.exit_with_program(),
            }
        }
    }

    /// Waits for a message. Returns its body in the encoding of the native protocol. Sends the program meanwhile what it
    /// takes of the input.
    ///
    /// At the deadline of the call, the program gets SIGALRM if its hello asks for that.
    fn read_message(
        &mut self,
        alarm: &mut Alarm,
        mut input: Option<&mut Input>,
    ) -> Result<Vec<u8>, WireError> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(message);
            }
            match input.as_deref_mut().filter(|input| input.is_wanted()) {
                Some(input) => self.send_input(input, alarm),
                None => {
                    self.wait(PollFlags::IN, alarm);
                    self.receive(false);
                }
            }
        }
    }

    /// The next message that has arrived as a whole, if there is one.
    fn take_message(&mut self) -> Result<Option<Vec<u8>>, WireError> {
        if let Some(answer) = self.pending_answer.take() {
            return Ok(Some(answer));
        }
        let Some(scanner) = &mut self.scanner else {
            return Ok(frame::take(&mut self.inbox, self.max_frame)?.map(Into::into));
        };
        let Some(place) = scanner.find(&self.inbox, self.max_frame)? else { return Ok(None) };
        let message = self.inbox.split_to(place.end);
        let (log, answer) = perl::from_worker(&message[place.start..], self.max_frame)?;
        let Some(log) = log else { return Ok(Some(answer)) };
        self.pending_answer = Some(answer);
        Ok(Some(log))
    }

    /// Waits until the socket is ready. Sends the program its SIGALRM meanwhile.
    fn wait(&mut self, flags: PollFlags, alarm: &mut Alarm) {
        loop {
            alarm.send_if_due(&self.child);
            let left = alarm.time().map(|at| at.saturating_duration_since(Instant::now()));
            match poll(&mut [PollFd::new(&self.socket, flags)], left.map(timespec).as_ref()) {
                Ok(ready) if ready > 0 => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => self.fail(&errno),
            }
        }
    }

    /// Receives bytes. With `wait`, waits for the first. Otherwise none may be there. Exits as the program if it has ended.
    fn receive(&mut self, wait: bool) {
        if self.try_receive(wait) == Received::End {
            self.exit_with_program();
        }
    }

    /// The same, but returns at the end of what the program has said.
    fn try_receive(&mut self, wait: bool) -> Received {
        let room = frame::room_for_next_read(&self.inbox).max(self.inbox.len().min(1 << 20));
        self.inbox.reserve(room);
        match sys::receive_files(&self.socket, &mut self.inbox, &mut self.files, wait) {
            Ok(length) if length > 0 => Received::Open,
            Err(Errno::INTR) => Received::Open,
            Err(Errno::AGAIN) if !wait => Received::Open,
            Err(errno) => match WireError::of_read(&errno.into()) {
                Some(error) => self.fail(&error),
                None => Received::End,
            },
            Ok(_) => Received::End,
        }
    }

    /// Exits as the program exits, after the program has closed its end.
    fn exit_with_program(&mut self) -> ! {
        let until = Instant::now() + EXIT_TIMEOUT;
        while Instant::now() < until {
            sys::exit_if_child_exited();
            std::thread::sleep(Duration::from_millis(1));
        }
        self.fail(&"it has closed its connection, and goes on as another program may that it has executed")
    }

    /// Kills a program that broke the protocol, and exits. Its next message could be the answer to any
    /// call.
    fn fail(&mut self, reason: &dyn std::fmt::Display) -> ! {
        tracing::error!(
            pid = self.child.id(),
            "the program does not keep to the protocol: {reason}"
        );
        eprintln!("the program does not keep to the protocol: {reason}");
        sys::stop_mirroring();
        let _ = self.child.kill();
        sys::exit_now(PROTOCOL_STATUS)
    }
}

impl Drop for Program {
    /// Closes the connection and waits for the program, which is killed after `EXIT_TIMEOUT`.
    fn drop(&mut self) {
        sys::stop_mirroring();
        sys::defer_mirroring(false);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        let until = Instant::now() + EXIT_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
