//! A worker on a thread of the client's process: the messages of the native protocol, and nothing of what a server
//! does for a process. It takes no files and no shared memory, and one call at a time.

mod connection;
pub(super) mod progress;
mod streaming;

use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Once;
use std::time::Duration;

use log_defer::Level;

use self::connection::{Connection, attachments};
use self::progress::ProgressReports;
use self::streaming::Streaming;
use super::error_reply::ErrorReply;
use super::handshake::check_client;
use super::interface::{Interface, Request, check_streams};
use super::logger::ThreadLog;
use super::panic::install_panic_hook;
use super::replace_after::ReplaceAfter;
use super::user_code::catch_panic;
use crate::blob;
use crate::clock::now;
use crate::context;
use crate::emitter::Port;
use crate::error::Failure;
use crate::receiver::InputPort;
use crate::time_limit::TimeLimit;
use crate::trace_context::{self, TraceContext};
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::bounds;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, PREAMBLE};
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, FromClient, VERSIONS};
use crate::wire::values::ValueFormat;

/// Serves one connection until it ends. `make` makes the interface and its state, before the first call. If it panics,
/// the call fails, and the next one tries again.
///
/// # Errors
/// If the client breaks the protocol.
pub(crate) fn serve<S, I: Interface<S>>(
    stream: UnixStream,
    make: &dyn Fn() -> (I, S),
) -> Result<(), WireError> {
    // Reports of panics have their places.
    static HOOK: Once = Once::new();
    HOOK.call_once(install_panic_hook);
    let mut worker = Worker::new(stream);
    if !worker.handshake(make)? {
        return Ok(());
    }
    loop {
        let Some(message) = worker.connection.borrow_mut().read()? else { return Ok(()) };
        match FromClient::decode(&message)? {
            FromClient::Call { method, args, meta, .. } => {
                let answer = blob::within(Some(&message), attachments(), || {
                    worker.answer(make, method, args, &meta)
                })?;
                if worker.is_unannounced() || worker.connection.borrow().write(&answer).is_err() {
                    // The client does not wait for it any more, or has no word that it may have run.
                    return Ok(());
                }
            }
            // The last four are of a call that has been answered.
            FromClient::Done
            | FromClient::QueueLength(_)
            | FromClient::Cancel(_)
            | FromClient::Credit { .. }
            | FromClient::Item(_)
            | FromClient::InputEnd(_) => {}
            FromClient::Hello(_)
            | FromClient::Files(_)
            | FromClient::Shm(_)
            | FromClient::Rings => {
                return Err(WireError::malformed(
                    "a worker on a thread takes only calls".to_owned(),
                ));
            }
        }
    }
}

struct Worker<I, S> {
    /// Shared with the emitter and the receiver of a call that streams.
    connection: Rc<RefCell<Connection>>,
    progress: ProgressReports,
    made: Option<(I, S)>,
    /// The longest body that the client takes, in bytes.
    max_answer: usize,
    /// How many calls have begun.
    calls: u64,
    /// The client waits for the message that the interface is made.
    awaits_setup: bool,
}

impl<S, I: Interface<S>> Worker<I, S> {
    fn new(stream: UnixStream) -> Self {
        let connection = Connection::new(stream);
        Self {
            progress: ProgressReports::new(connection.output().clone()),
            connection: Rc::new(RefCell::new(connection)),
            made: None,
            max_answer: DEFAULT_MAX_FRAME,
            calls: 0,
            awaits_setup: false,
        }
    }

    /// Answers the client's hello. Returns whether the client can be served.
    fn handshake(&mut self, make: &dyn Fn() -> (I, S)) -> Result<bool, WireError> {
        if !self.connection.borrow_mut().read_preamble()? {
            return Ok(false);
        }
        let Some(message) = self.connection.borrow_mut().read()? else { return Ok(false) };
        let FromClient::Hello(client) = FromClient::decode(&message)? else {
            return Err(WireError::malformed("the first message is no hello".to_owned()));
        };
        // A `setup` that fails is the error of the first call.
        let interfaces = || self.prepare(make).map_or(Vec::new(), |(made, _)| made.descriptions());
        let accepted = check_client(&client, interfaces)?;
        self.max_answer = client.max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(DEFAULT_MAX_FRAME);
        let mut out = PREAMBLE.to_vec();
        let hello = WorkerHello {
            version: VERSIONS[0],
            pid: std::process::id(),
            max_frame: Some(DEFAULT_MAX_FRAME),
            accepts_single_calls: true,
            sends_items: true,
            takes_input: true,
            announces_setup: client.awaits_setup && self.made.is_none(),
            ..WorkerHello::default()
        };
        self.awaits_setup = hello.announces_setup;
        frame::write_control(&mut out, |out| match &accepted {
            Ok(()) => hello.put(out),
            Err(error) => native::put_error(out, None, &error.body()),
        })?;
        Ok(self.connection.borrow().write(&out).is_ok() && accepted.is_ok())
    }

    /// Runs a call. Returns the frames of its answer.
    fn answer(
        &mut self,
        make: &dyn Fn() -> (I, S),
        method: Option<&str>,
        args: Arguments<'_>,
        meta: &CallMeta<'_>,
    ) -> Result<Vec<u8>, WireError> {
        self.calls += 1;
        let number = Some(self.calls);
        let log = ThreadLog::begin(meta.log.map(Level::new));
        trace_context::set_on_thread(TraceContext::received(meta.traceparent, meta.tracestate));
        context::set_on_thread(Some(deadline(meta)));
        self.progress.begin_call();
        let streaming = Streaming::begin(&self.connection, self.calls, meta, self.max_answer);
        let streaming = streaming.map(Rc::new);
        let result = self.call(make, method, meta.interface, args, streaming.as_ref());
        self.progress.end_call();
        context::set_on_thread(None);
        trace_context::set_on_thread(None);
        streaming.map_or(Ok(()), |streaming| streaming.end())?;
        let mut out = Vec::new();
        log.end(&mut out, self.max_answer);
        match result {
            Ok(answer) => out.extend(answer),
            Err(error) => {
                let made = self.made.as_ref();
                let replaced = made.map_or(ReplaceAfter::Panic, |(made, _)| made.replaced_after());
                let keeps = replaced.keeps(&error);
                let error = error.keeping_worker(keeps);
                let mut write = |error: &ErrorReply| {
                    frame::write::<WireError>(&mut out, self.max_answer, |out| {
                        native::put_error(out, number, &error.body());
                        Ok(())
                    })
                };
                // An error that is too long is replaced by a short one that says so.
                write(&error).or_else(|error| write(&ErrorReply::result(&error)))?;
            }
        }
        Ok(out)
    }

    /// Makes the interface and its state, unless they are there.
    fn prepare(&mut self, make: &dyn Fn() -> (I, S)) -> Result<&mut (I, S), ErrorReply> {
        if self.made.is_none() {
            let failed = |panic: crate::error::Panic| Failure::new(panic.to_string());
            self.made = Some(catch_panic(make).map_err(|panic| ErrorReply::setup(failed(panic)))?);
        }
        self.made.as_mut().ok_or_else(|| ErrorReply::setup(Failure::new("there is no state")))
    }

    /// Tells a client that waits for it that the interface is made. A worker that cannot do that begins no call.
    fn announce_setup(&mut self) -> Result<(), ErrorReply> {
        if !self.awaits_setup {
            return Ok(());
        }
        let mut out = Vec::new();
        frame::put(&mut out, native::put_set_up);
        let written = self.connection.borrow().write(&out);
        written.map_err(|error| ErrorReply::setup(Failure::new(error.to_string())))?;
        self.awaits_setup = false;
        Ok(())
    }

    /// Whether the interface is made and the client could not be told. A call that began nevertheless would be reported as one
    /// that has not run.
    fn is_unannounced(&self) -> bool {
        self.made.is_some() && self.awaits_setup
    }

    /// Runs a call. Returns the frame of its result.
    fn call(
        &mut self,
        make: &dyn Fn() -> (I, S),
        method: Option<&str>,
        required: Option<&str>,
        args: Arguments<'_>,
        streaming: Option<&Rc<Streaming>>,
    ) -> Result<Vec<u8>, ErrorReply> {
        bounds::check(args.encoded(), DEFAULT_MAX_FRAME)
            .map_err(|reason| ErrorReply::arguments(&reason))?;
        let (number, limit) = (Some(self.calls), self.max_answer);
        self.prepare(make)?;
        self.announce_setup()?;
        let (interface, state) = self.prepare(make)?;
        let sends = streaming.filter(|streaming| streaming.sends_items());
        let takes = streaming.filter(|streaming| streaming.has_input());
        check_streams(interface, method, required, sends.is_some(), takes.is_some())?;
        let port = sends.cloned().map(|streaming| -> Rc<dyn Port> { streaming });
        let input = takes.cloned().map(|streaming| -> Rc<dyn InputPort> { streaming });
        let mut out = GatherFrame::default();
        out.write(limit, |out| {
            native::put_ok(out, number, ValueFormat::from_json_flag(interface.returns_json()));
            let request = Request::new(method, required, args, out, port).with_input(input);
            catch_panic(|| interface.call(state, request).0)
                .unwrap_or_else(|panic| Err(ErrorReply::panic(panic)))
        })?;
        let client = ReceiverLimits { max_frame: limit, max_blob: 0, max_files: 0 };
        out.fit(client).map_err(|reason| ErrorReply::result(&reason))?;
        let length = out.len();
        match length - frame::HEADER_LEN <= limit {
            true => Ok(out.copy_from(0)),
            false => Err(WireError::TooLarge { length, limit }.into()),
        }
    }
}

/// When a call's time is over. It was sent just now.
fn deadline(meta: &CallMeta<'_>) -> Option<Duration> {
    let limits = [meta.timeout, meta.run_timeout].into_iter().flatten();
    let limits = limits.map(TimeLimit::from_microseconds);
    limits.filter_map(|limit| limit.after_time(now())).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::function::Function;

    #[test]
    fn a_worker_that_cannot_say_that_it_is_made_ends_and_runs_nothing() {
        let (stream, client) = UnixStream::pair().unwrap();
        let ran = Rc::new(RefCell::new(0));
        let count = Rc::clone(&ran);
        let make = move || {
            let count = Rc::clone(&count);
            let count = move |_: &mut (), _: Option<&str>, _: Arguments<'_>| {
                *count.borrow_mut() += 1;
                Ok(())
            };
            (Function::new(count), ())
        };
        let mut worker = Worker::new(stream);
        worker.awaits_setup = true;
        drop(client);
        for _ in 0..2 {
            worker.answer(&make, None, Arguments::new(0, &[]), &CallMeta::default()).unwrap();
            assert!(worker.is_unannounced());
        }
        assert_eq!(*ran.borrow(), 0);
    }
}
