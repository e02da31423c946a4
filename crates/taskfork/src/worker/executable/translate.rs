//! Calls and telemetry on their way between the client and the program.

use std::borrow::Cow;

use crate::blob;
use crate::context::context;
use crate::time_limit::TimeLimit;
use crate::trace_context::{self, TraceContext};
use crate::wire::arguments::Arguments;
use crate::wire::attachments;
use crate::wire::credit::item_cost;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME, HEADER_LEN};
use crate::wire::gather_frame::{self, GatherFrame, ReceiverLimits};
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, Telemetry};
use crate::wire::values::ValueFormat;
use crate::wire::{WireError, log, perl};
use crate::worker::logger::logger;
use crate::worker::telemetry;

/// Why a call cannot be sent to the program.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{}", too_large(.0))]
    Wire(#[from] WireError),
    #[error("{0}")]
    Files(String),
}

/// What to do about a message that is too large for a program. No option of client or server sets that limit.
fn too_large(error: &WireError) -> String {
    error.with_advice("send less at once, or raise `max_frame` in the program's hello")
}

/// Encodes a call for a program that speaks the native protocol. `items` is the credit for its items, if it streams, and
/// `input` says whether it takes an input.
pub(super) fn native_call(
    method: Option<&str>,
    args: Arguments<'_>,
    items: Option<u64>,
    input: bool,
    program: &WorkerHello,
) -> Result<GatherFrame, String> {
    let trace = trace_context::current();
    let meta = CallMeta {
        log: telemetry::requested_log_level().map(log_defer::Level::rounded_up),
        timeout: TimeLimit::from(context().remaining()).microseconds(),
        traceparent: trace.as_ref().map(TraceContext::traceparent),
        tracestate: trace.as_ref().and_then(TraceContext::tracestate),
        json: args.format() == ValueFormat::Json,
        items,
        input,
        ..CallMeta::default()
    };
    let limits = limits(program);
    let mut message = GatherFrame::default();
    let written = message.write(limits.max_frame, |out| {
        native::put_call(out, method, meta);
        native::put_argument_count(out, args.len());
        blob::pass_on(args.encoded(), out).map_err(SendError::Files)
    });
    written.map_err(|error| error.to_string())?;
    fit(&mut message, limits)?;
    Ok(message)
}

/// What the program accepts.
pub(super) fn limits(program: &WorkerHello) -> ReceiverLimits {
    ReceiverLimits {
        max_frame: program.max_frame.unwrap_or(DEFAULT_MAX_FRAME).min(u32::MAX as usize),
        max_blob: program.max_blob.unwrap_or(DEFAULT_MAX_BLOB),
        max_files: program.max_files,
    }
}

/// Encodes an item of the input of a call. Returns its cost too.
pub(super) fn item(
    value: &[u8],
    call: u64,
    program: ReceiverLimits,
) -> Result<(GatherFrame, u64), String> {
    let mut message = GatherFrame::default();
    let written = message.write(program.max_frame, |out| {
        native::put_item(out);
        blob::pass_on(value, out).map_err(SendError::Files)
    });
    written.map_err(|error| error.to_string())?;
    let cost = item_cost(message.len() - HEADER_LEN, message.files.len());
    native::set_item_call(&mut message.bytes[HEADER_LEN..], call);
    native::set_item_cost(&mut message.bytes[HEADER_LEN..], cost);
    fit(&mut message, program)?;
    let (length, limit) = (message.len() - HEADER_LEN, program.max_frame);
    match length <= limit {
        true => Ok((message, cost)),
        false => Err(too_large(&WireError::TooLarge { length, limit })),
    }
}

/// Encodes a call for a program that speaks JSON.
pub(super) fn json_call(
    method: Option<&str>,
    args: Arguments<'_>,
    max_frame: usize,
) -> Result<Vec<u8>, String> {
    let encoded = inline_blobs(args, max_frame)?;
    perl::encode_call(method, Arguments::new(args.len(), &encoded))
}

/// Returns the encoded arguments with the bytes of blobs in the places of their files.
fn inline_blobs<'a>(args: Arguments<'a>, max_frame: usize) -> Result<Cow<'a, [u8]>, String> {
    if !attachments::is_any() {
        return Ok(Cow::Borrowed(args.encoded()));
    }
    let mut bytes = Vec::new();
    let (passed, segments, files) =
        gather_frame::collect_segments(|| blob::pass_on(args.encoded(), &mut bytes));
    let mut message = GatherFrame { bytes, segments, files, ..GatherFrame::default() };
    let limits = ReceiverLimits { max_frame, max_blob: 0, max_files: 0 };
    passed.and_then(|()| fit(&mut message, limits))?;
    Ok(Cow::Owned(message.copy_from(0)))
}

/// Changes a message to what the program accepts.
fn fit(message: &mut GatherFrame, program: ReceiverLimits) -> Result<(), String> {
    if program.max_files == 0 && message.requires_files() {
        return Err("the program takes no open files".to_owned());
    }
    message.fit(program)
}

/// Adds what the program has logged to the log of the call, and reports how far it says that the call has got.
pub(super) fn merge(telemetry: &Telemetry<'_>) {
    if let Some(progress) = telemetry.read_progress() {
        context().progress(progress.done, progress.total, &progress.what);
    }
    let Some(encoded) = telemetry.log else { return };
    match log::read(encoded) {
        Ok(message) => logger().merge(message),
        Err(reason) => logger().warn(format!("what the program logged cannot be read: {reason}")),
    }
}
