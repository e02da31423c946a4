//! Running a call, and writing its answer.

use std::rc::Rc;
use std::time::Duration;

use log_defer::Level;

use super::error_reply::ErrorReply;
use super::handlers::log_setup_error;
use super::interface::{Request, check_streams};
use super::scoreboard::Phase;
use super::state::{ExitReason, Worker};
use super::streaming::Streaming;
use super::telemetry::{self, RequestedTelemetry};
#[cfg(feature = "spans")]
use super::tracer;
use super::user_code::catch_panic;
use crate::context::{self, context};
use crate::emitter::Port;
use crate::error::Failure;
use crate::peer::Peer;
use crate::receiver::InputPort;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::trace_context::{self, TraceContext};
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::bounds;
use crate::wire::frame;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, CallMeta, DEFAULT_GRACE};
use crate::wire::values::ValueFormat;

/// An answer's buffer above this size is freed.
const KEPT_BUFFER: usize = 1 << 20;

#[taskfork_macros::startup_code]
impl<S: 'static> Worker<'_, S> {
    /// Runs a call and leaves its telemetry and its answer in `out`. `streaming` is for a call whose caller reads items.
    ///
    /// `begun` is the current time. `sent` is when the client sent the call, from which its `timeout`
    /// counts. Its `run_timeout` counts from now.
    pub(super) fn serve_call(
        &mut self,
        method: Option<&str>,
        args: Arguments<'_>,
        meta: &CallMeta<'_>,
        begun: Duration,
        sent: Duration,
        streaming: Option<&Rc<Streaming>>,
    ) -> Result<(), ExitReason> {
        let grace = meta.grace.map_or(DEFAULT_GRACE, TimeLimit::from_microseconds);
        let timeout = meta.timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let run_timeout = meta.run_timeout.map_or(TimeLimit::NEVER, TimeLimit::from_microseconds);
        let ends = [timeout.after_time(sent), run_timeout.after_time(begun)];
        let deadline = ends.into_iter().flatten().min();
        let hard_deadline = deadline.and_then(|deadline| grace.after_time(deadline));
        self.slot.set_call(method.unwrap_or_default(), deadline, hard_deadline);
        self.slot.enter_at(Phase::Busy, Some(begun))?;
        if deadline.is_some_and(|deadline| self.slot.is_before_wakeup(deadline)) {
            sys::wake_server();
        }
        if self.slot.is_client_gone() {
            return Err(ExitReason::Finished);
        }
        let places = meta.trace.is_some() && self.shows_details();
        #[cfg(feature = "spans")]
        tracer::set_level(meta.trace);
        telemetry::begin_call(RequestedTelemetry {
            log: meta.log.map(Level::new),
            trace: meta.trace,
            places,
        });
        trace_context::set(TraceContext::received(meta.traceparent, meta.tracestate));
        context::set(deadline);
        let result = self.call(method, meta.interface, args, streaming);
        context::set(None);
        trace_context::set(None);
        let telemetry = telemetry::end_call();
        if !telemetry.is_empty() {
            self.prepend(|worker, out| telemetry.write(out, worker.max_answer));
        }
        result?;
        self.check_announced().map_err(ExitReason::from)
    }

    /// Answers a call that must not run.
    pub(super) fn skip_call(&mut self) -> Result<(), ExitReason> {
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
        interface: Option<&str>,
        args: Arguments<'_>,
        streaming: Option<&Rc<Streaming>>,
    ) -> Result<(), WireError> {
        self.out.bytes.clear();
        self.out.bytes.shrink_to(KEPT_BUFFER);
        let result = self.try_call(method, interface, args, streaming);
        let is_unknown = result.as_ref().is_err_and(ErrorReply::is_unknown_method);
        self.slot.count_call(result.is_err(), is_unknown);
        let Err(error) = result else { return Ok(()) };
        self.pipeline.set_failed();
        let replace_after =
            self.config.replace_after.unwrap_or_else(|| self.interface.replaced_after());
        let keeps = replace_after.keeps(&error);
        let error = if self.shows_details() { error } else { error.without_details() };
        let error = error.keeping_worker(keeps);
        write_error(&mut self.out.bytes, self.max_answer, self.pipeline.number(), &error)
    }

    /// Whether the client gets source files, stacks and errors of `setup`.
    fn shows_details(&self) -> bool {
        let is_same_user = || {
            let peer = context().peer();
            matches!(peer, Some(Peer::Process { uid, .. }) if Some(uid) == self.config.server_user)
        };
        self.config.share_details || is_same_user()
    }

    /// Puts frames in front of the answer.
    pub(super) fn prepend(&mut self, write: impl FnOnce(&mut Self, &mut Vec<u8>)) {
        let mut frames = std::mem::take(&mut self.front);
        write(self, &mut frames);
        if !frames.is_empty() {
            self.out.segments.iter_mut().for_each(|segment| segment.offset += frames.len());
            self.out.bytes.splice(..0, frames.drain(..));
            frames.shrink_to(KEPT_BUFFER);
        }
        self.front = frames;
    }

    /// Runs a call and writes its result. An error is not written yet.
    fn try_call(
        &mut self,
        method: Option<&str>,
        of: Option<&str>,
        args: Arguments<'_>,
        streaming: Option<&Rc<Streaming>>,
    ) -> Result<(), ErrorReply> {
        if let Some(error) = self.setup_error.take() {
            return Err(error);
        }
        bounds::check(args.encoded(), self.config.max_frame)
            .map_err(|reason| ErrorReply::arguments(&reason))?;
        if self.state.is_none() {
            let state = self.set_up();
            self.state = Some(state.inspect_err(|error| log_setup_error(self.number, error))?);
            self.announce_setup()
                .map_err(|error| ErrorReply::setup(Failure::new(error.to_string())))?;
        }
        let Some(state) = &mut self.state else {
            return Err(ErrorReply::setup(Failure::new("there is no state")));
        };
        let (interface, number) = (self.interface, self.pipeline.number());
        let sends = streaming.filter(|streaming| streaming.sends_items());
        let takes = streaming.filter(|streaming| streaming.has_input());
        check_streams(interface, method, of, sends.is_some(), takes.is_some())?;
        let port = sends.cloned().map(|streaming| -> Rc<dyn Port> { streaming });
        let input = takes.cloned().map(|streaming| -> Rc<dyn InputPort> { streaming });
        let memory = streaming.is_none().then_some(&mut self.shared_memory);
        self.out.write(self.max_answer, |out| {
            native::put_ok(out, number, ValueFormat::from_json_flag(interface.returns_json()));
            let request = Request::new(method, of, args, out, port).with_input(input);
            let request = request.with_memory(memory);
            catch_panic(|| interface.call(state, request).0)
                .unwrap_or_else(|panic| Err(ErrorReply::panic(panic)))
        })?;
        self.check_result()?;
        let shared_memory = &mut self.shared_memory;
        let client = ReceiverLimits {
            max_frame: self.max_answer,
            max_blob: self.max_blob,
            max_files: self.client_files,
        };
        let fits = self.out.fit_with(client, |bytes, home, may_add| match streaming {
            Some(streaming) => streaming.store(bytes, home, may_add),
            None => shared_memory.store(bytes, home, may_add),
        });
        let length = self.out.len();
        let error = match fits {
            Err(reason) => ErrorReply::result(&reason),
            Ok(_) if length - frame::HEADER_LEN <= self.max_answer => return Ok(()),
            Ok(_) => WireError::TooLarge { length, limit: self.max_answer }.into(),
        };
        self.out = GatherFrame::default();
        Err(error)
    }
}

#[taskfork_macros::startup_code]
impl<S: 'static> Worker<'_, S> {
    /// Checks the length of a result, with its blobs, against the limit of the sandbox.
    fn check_result(&mut self) -> Result<(), ErrorReply> {
        let (length, limit) = (self.out.len() - frame::HEADER_LEN, self.config.max_result);
        if length <= limit {
            return Ok(());
        }
        self.out = GatherFrame::default();
        let reason = format!("it has {length} bytes, and the sandbox allows {limit} (max_result)");
        Err(ErrorReply::result(&reason))
    }
}

impl From<WireError> for ErrorReply {
    /// For an answer. The only error in writing a frame is its size.
    fn from(error: WireError) -> Self {
        Self::result(&error.for_sender())
    }
}

fn write_error(
    out: &mut Vec<u8>,
    limit: usize,
    call: Option<u64>,
    error: &ErrorReply,
) -> Result<(), WireError> {
    let write = |out: &mut Vec<u8>, error: &ErrorReply| {
        frame::write::<WireError>(out, limit, |out| {
            native::put_error(out, call, &error.body());
            Ok(())
        })
    };
    // An error that is too long is replaced by one that says so, without advice: it must fit the smallest limit.
    write(out, error).or_else(|error| write(out, &ErrorReply::result(&error)))
}
