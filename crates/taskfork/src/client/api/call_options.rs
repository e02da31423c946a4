//! The encoding of calls.

use std::sync::Arc;

use log_defer::Level;

use crate::client::config::CheckoutOptions;
use crate::client::io::core::Core;
use crate::client::io::shared_session::Streams;
use crate::client::observe::replay::Replay;
use crate::client::session::calls::Operation;
use crate::time_limit::TimeLimit;
use crate::trace_context::TraceContext;
use crate::wire::WireError;
use crate::wire::arguments::IntoArguments;
use crate::wire::credit::WINDOW;
use crate::wire::frame;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, CallMeta, DEFAULT_GRACE, FromClient, NO_LIMIT};
use crate::wire::values::EncodeError;
use crate::wire::{Protocol, perl};

/// How calls are encoded.
pub(super) struct CallOptions {
    max_frame: usize,
    /// The most verbose level that the log of the checkout keeps.
    pub(super) log: Option<Level>,
    /// The trace of the calls. It overrides the span of the caller.
    pub(super) trace: Option<TraceContext>,
    /// Whether calls have a time limit. The field in the message is filled in when the call is
    /// sent.
    pub(super) has_timeout: bool,
    pub(super) run_timeout: TimeLimit,
    grace: TimeLimit,
    protocol: Protocol,
}

impl CallOptions {
    pub(super) fn of(core: &Core, options: CheckoutOptions) -> Self {
        let config = &core.config;
        Self {
            max_frame: config.max_frame,
            log: None,
            trace: None,
            has_timeout: options.timeout != TimeLimit::NEVER,
            run_timeout: options.run_timeout,
            grace: config.grace,
            protocol: config.protocol,
        }
    }

    /// Encodes a call, with the first credit for its items if the caller reads them. Its records of `tracing` go to the
    /// subscriber of the caller, if that wants them.
    pub(super) fn encode(
        &self,
        method: Option<&str>,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        streams: Streams,
        has_timeout: bool,
    ) -> (Operation, Option<Arc<Replay>>) {
        let of_caller = if self.trace.is_none() { TraceContext::of_caller() } else { None };
        let trace = self.trace.as_ref().or(of_caller.as_ref());
        let replay = Replay::for_caller();
        let has_limit = has_timeout || self.run_timeout != TimeLimit::NEVER;
        let meta = CallMeta {
            log: self.log.map(Level::rounded_up),
            trace: replay.as_ref().map(|(level, _)| *level),
            timeout: has_timeout.then_some(0),
            run_timeout: self.run_timeout.microseconds(),
            grace: Some(self.grace)
                .filter(|&grace| has_limit && grace != DEFAULT_GRACE)
                .map(|grace| grace.microseconds().unwrap_or(NO_LIMIT)),
            interface,
            traceparent: trace.map(TraceContext::traceparent),
            tracestate: trace.and_then(TraceContext::tracestate),
            items: streams.items.then_some(WINDOW),
            input: streams.input,
            ..CallMeta::default()
        };
        let mut frame = GatherFrame { bytes: Vec::with_capacity(128), ..GatherFrame::default() };
        let written = frame.write(self.max_frame, |out| {
            native::put_call(out, method, meta);
            args.encode(out)
        });
        let written = written.and_then(|()| match self.protocol {
            Protocol::Native => Ok(()),
            Protocol::Perl => translate(&mut frame, self.max_frame),
        });
        let operation = match written {
            Ok(()) => Operation::Call(frame, None),
            Err(EncodeError(reason)) => Operation::Unsendable(reason),
        };
        (operation, replay.map(|(_, replay)| replay))
    }
}

/// Translates an encoded call of the native protocol to the Perl protocol.
fn translate(frame: &mut GatherFrame, max_frame: usize) -> Result<(), EncodeError> {
    if frame.requires_files() {
        return Err(EncodeError("open files cannot be sent to a server in Perl".to_owned()));
    }
    frame.fit(ReceiverLimits { max_frame, max_blob: 0, max_files: 0 }).map_err(EncodeError)?;
    let body = frame.copy_from(frame::HEADER_LEN);
    let FromClient::Call { method, args, .. } = FromClient::decode(&body)? else { return Ok(()) };
    let bytes = perl::encode_call(method, args).map_err(EncodeError)?;
    *frame = GatherFrame { bytes, ..GatherFrame::default() };
    Ok(())
}

/// For a message that a client or a worker encodes.
impl From<WireError> for EncodeError {
    fn from(error: WireError) -> Self {
        Self(error.for_sender())
    }
}
