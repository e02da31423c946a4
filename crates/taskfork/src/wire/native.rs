//! The messages of the native protocol, version 1. Each is an array: its kind, a map of meta keys
//! of which unknown ones are ignored, and what the kind adds.

use std::time::Duration;

use log_defer::Message;
use rmp::Marker;

use super::WireError;
use super::arguments::Arguments;
use super::death_notice::DeathNotice;
use super::error_body::ErrorBody;
use super::frame::HEADER_LEN;
use super::hello::{ClientHello, WorkerHello};
use super::msgpack::{Reader, put_array, put_bool, put_map, put_nil, put_str, put_uint};
use super::shm::ShmMessage;
use super::values::ValueFormat;
use crate::time_limit::TimeLimit;

/// The protocol versions spoken here.
pub(crate) const VERSIONS: &[u32] = &[1];

/// The most waiting checkouts that a client is believed to have, so that sums over clients cannot
/// overflow.
const MAX_QUEUE_LENGTH: u64 = u32::MAX as u64;

/// How long a call may go on after its time is over, unless it says otherwise.
pub(crate) const DEFAULT_GRACE: TimeLimit = TimeLimit::new(Duration::from_millis(100));

/// A time in microseconds that stands for no limit, where leaving it out means the default.
pub(crate) const NO_LIMIT: u64 = i64::MAX as u64;

pub(super) const HELLO: u64 = 0;
const CALL: u64 = 1;
const DONE: u64 = 2;
const CALL_AHEAD: u64 = 3;
const FORGET: u64 = 4;
const WAITING: u64 = 5;
/// From either side.
const FILES: u64 = 6;
pub(super) const SHM: u64 = 7;
const RINGS: u64 = 8;
const WAIT: u64 = 9;

const OK: u64 = 1;
const ERROR: u64 = 2;
pub(super) const DEATH: u64 = 3;
const NOTES: u64 = 4;
const SKIPPED: u64 = 5;

/// A message from a client to its worker.
#[derive(Debug)]
pub(crate) enum FromClient<'a> {
    Hello(ClientHello<'a>),
    Call {
        mode: CallMode,
        method: Option<&'a str>,
        args: Arguments<'a>,
        meta: CallMeta<'a>,
    },
    Done,
    /// So many checkouts of the client wait for a worker.
    QueueLength(u64),
    /// The call of this number is not wanted any more, if it has not begun.
    Cancel(u64),
    /// So many files come with the next message.
    Files(usize),
    /// Of memory that is lent.
    Shm(ShmMessage),
    /// The memory of two rings has come with it; or, from the worker, has been taken.
    Rings,
}

/// When a call was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallMode {
    /// With every call before it answered, as far as it depends on them.
    Sequential,
    /// Before the answer to the one before it, of which it is not to survive a failure.
    Pipelined,
}

/// What a caller says beside its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CallMeta<'a> {
    /// Up to which level the caller wants to have what is logged.
    pub(crate) log: Option<u32>,
    /// Up to which level the caller wants to have spans and events of `tracing`: 1 error, 5 trace.
    pub(crate) trace: Option<u8>,
    /// How much time the call has, in microseconds.
    pub(crate) timeout: Option<u64>,
    /// How long it may go on after that before its worker is killed, in microseconds.
    pub(crate) grace: Option<u64>,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) tracestate: Option<&'a str>,
    /// The arguments came as JSON.
    pub(crate) json: bool,
}

/// A message from a worker, or from the server in a dead worker's place.
#[derive(Debug)]
pub(crate) enum FromWorker<'a> {
    Hello(WorkerHello),
    /// A result, still encoded, of the call of this number. Without a number in the other protocol, which has none.
    Ok {
        call: Option<u64>,
        value: &'a [u8],
    },
    /// The error of the call of this number; without one, of the greeting, or from the other protocol.
    Error {
        call: Option<u64>,
        body: ErrorBody<'a>,
    },
    Death(DeathNotice),
    Telemetry(Telemetry<'a>),
    /// From the server: there is no worker for this connection yet, for this reason; the hello comes later.
    Queued(&'a str),
    /// The call of this number was not begun, as one before it failed or nobody wants it any more.
    Skipped {
        call: Option<u64>,
    },
    /// So many files come with the next message.
    Files(usize),
    /// Of memory that is lent.
    Shm(ShmMessage),
    /// The memory of two rings has come with it; or, from the worker, has been taken.
    Rings,
}

/// What was recorded while a call ran, each part still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Telemetry<'a> {
    /// A message of Log::Defer.
    pub(crate) log: Option<&'a [u8]>,
    /// Spans and events of `tracing`.
    pub(crate) trace: Option<&'a [u8]>,
}

impl<'a> FromClient<'a> {
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let fields = reader.array()?;
        match (reader.int::<u64>()?, fields) {
            (HELLO, 2) => ClientHello::read(&mut reader).map(Self::Hello),
            (kind @ (CALL | CALL_AHEAD), 4) => {
                let mut call = CallMeta::default();
                meta(&mut reader, |key, reader| {
                    match key {
                        "log" => call.log = Some(reader.int()?),
                        "trace" => call.trace = Some(reader.int()?),
                        "timeout" => call.timeout = Some(reader.unsigned()?),
                        "grace" => call.grace = Some(reader.unsigned()?),
                        "traceparent" => call.traceparent = Some(reader.str()?),
                        "tracestate" => call.tracestate = Some(reader.str()?),
                        JSON => call.json = reader.bool()?,
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                let method = reader.optional_str()?;
                let mode = if kind == CALL { CallMode::Sequential } else { CallMode::Pipelined };
                let args = Arguments::read(&mut reader)?
                    .with_format(ValueFormat::from_json_flag(call.json));
                Ok(Self::Call { mode, method, args, meta: call })
            }
            (DONE, 2) => meta(&mut reader, |_, _| Ok(false)).map(|()| Self::Done),
            (WAITING, 3) => {
                meta(&mut reader, |_, _| Ok(false))?;
                let checkouts = reader.unsigned()?;
                Ok(Self::QueueLength(checkouts.min(MAX_QUEUE_LENGTH)))
            }
            (FILES, 3) => read_files(&mut reader).map(Self::Files),
            (SHM, 2) => ShmMessage::read(&mut reader).map(Self::Shm),
            (RINGS, 2) => meta(&mut reader, |_, _| Ok(false)).map(|()| Self::Rings),
            (FORGET, 3) => {
                meta(&mut reader, |_, _| Ok(false))?;
                reader.int().map(Self::Cancel)
            }
            (other, fields) => Err(unknown("client", other, fields)),
        }
    }
}

impl<'a> FromWorker<'a> {
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let fields = reader.array()?;
        match (reader.int::<u64>()?, fields) {
            (HELLO, 2) => WorkerHello::read(&mut reader).map(Self::Hello),
            (OK, 3) => {
                let call = read_number(&mut reader)?;
                Ok(Self::Ok { call, value: reader.rest() })
            }
            (ERROR, 3) => {
                let call = read_number(&mut reader)?;
                Ok(Self::Error { call, body: ErrorBody::read(&mut reader)? })
            }
            (DEATH, 2) => DeathNotice::read(&mut reader).map(Self::Death),
            (NOTES, 2) => {
                let mut notes = Telemetry::default();
                meta(&mut reader, |key, reader| {
                    match key {
                        "ld" => notes.log = Some(reader.value()?),
                        "trace" => notes.trace = Some(reader.value()?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                Ok(Self::Telemetry(notes))
            }
            (FILES, 3) => read_files(&mut reader).map(Self::Files),
            (SHM, 2) => ShmMessage::read(&mut reader).map(Self::Shm),
            (RINGS, 2) => meta(&mut reader, |_, _| Ok(false)).map(|()| Self::Rings),
            (WAIT, 2) => {
                let mut reason = "";
                meta(&mut reader, |key, reader| {
                    if key == "reason" {
                        reason = reader.str()?;
                    }
                    Ok(key == "reason")
                })?;
                Ok(Self::Queued(reason))
            }
            (SKIPPED, 2) => Ok(Self::Skipped { call: read_number(&mut reader)? }),
            (other, fields) => Err(unknown("worker", other, fields)),
        }
    }
}

/// The number of its call in the map of an answer.
const NUMBER: &str = "call";

/// Reads the map of an answer; gives the number of its call, if that is there.
fn read_number(reader: &mut Reader<'_>) -> Result<Option<u64>, WireError> {
    let mut call = None;
    meta(reader, |key, reader| {
        if key != NUMBER {
            return Ok(false);
        }
        call = Some(reader.int()?);
        Ok(true)
    })?;
    Ok(call)
}

fn put_number(out: &mut Vec<u8>, call: Option<u64>) {
    put_map(out, u32::from(call.is_some()));
    if let Some(call) = call {
        put_str(out, NUMBER);
        put_uint(out, call);
    }
}

/// What is in a message of notes; nothing is in any other.
pub(crate) fn telemetry(body: &[u8]) -> Telemetry<'_> {
    match FromWorker::decode(body) {
        Ok(FromWorker::Telemetry(notes)) => notes,
        _ => Telemetry::default(),
    }
}

fn unknown(side: &str, kind: u64, fields: usize) -> WireError {
    WireError::malformed(format!("a {side} sends no message of kind {kind} with {fields} fields"))
}

/// The most entries of a map in a message. The largest that is sent has fewer than 20; the others
/// are room for later versions.
const MAX_META_KEYS: usize = 256;

/// Reads a map, giving each key to `field`, which says whether it took the value; a value that
/// nobody took is passed. A map of more than [`MOST_KEYS`] entries is an error.
pub(super) fn meta<'a>(
    reader: &mut Reader<'a>,
    mut field: impl FnMut(&'a str, &mut Reader<'a>) -> Result<bool, WireError>,
) -> Result<(), WireError> {
    let entries = reader.map()?;
    if entries > MAX_META_KEYS {
        return Err(WireError::Malformed(format!(
            "a map has {entries} entries, and the limit is {MAX_META_KEYS}"
        )));
    }
    for _ in 0..entries {
        let key = reader.str()?;
        if !field(key, reader)? {
            reader.value()?;
        }
    }
    Ok(())
}

/// Reads a list of at most `most` items; a longer one is an error that names it.
pub(super) fn list<'a, T, L: Default + Extend<T>>(
    reader: &mut Reader<'a>,
    name: &str,
    most: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<L, WireError> {
    let length = reader.array()?;
    if length > most {
        let detail = format!("the list `{name}` has {length} items, and the limit is {most}");
        return Err(WireError::Malformed(detail));
    }
    let mut items = L::default();
    for _ in 0..length {
        items.extend([item(reader)?]);
    }
    Ok(items)
}

/// Reads the first items of a list, at most `most`, and passes the others; gives how many these are.
pub(super) fn first<'a, T>(
    reader: &mut Reader<'a>,
    most: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<(Vec<T>, u64), WireError> {
    let length = reader.array()?;
    let mut items = Vec::new();
    for _ in 0..length.min(most) {
        items.push(item(reader)?);
    }
    let more = length.saturating_sub(most);
    for _ in 0..more {
        reader.value()?;
    }
    Ok((items, more as u64))
}

/// A frame that says how many files come with the next message.
pub(super) fn put_files(out: &mut Vec<u8>, count: usize) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    put_array(out, 3);
    put_uint(out, FILES);
    put_map(out, 0);
    put_uint(out, count as u64);
    let length = (out.len() - start - HEADER_LEN) as u32;
    out[start..start + HEADER_LEN].copy_from_slice(&length.to_le_bytes());
}

/// Whether a message is none for whoever waits for an answer, but about how others come.
pub(crate) fn is_transport_message(message: &[u8]) -> bool {
    message.get(KIND_AT).is_some_and(|&kind| [FILES, SHM, RINGS].contains(&u64::from(kind)))
}

fn read_files(reader: &mut Reader<'_>) -> Result<usize, WireError> {
    meta(reader, |_, _| Ok(false))?;
    reader.int()
}

/// The front of a call; the array of its arguments follows.
pub(crate) fn put_call(out: &mut Vec<u8>, method: Option<&str>, meta: CallMeta<'_>) {
    let CallMeta { log, trace, timeout, grace, traceparent, tracestate, json } = meta;
    let optional = [
        timeout.is_some(),
        grace.is_some(),
        log.is_some(),
        trace.is_some(),
        traceparent.is_some(),
        tracestate.is_some(),
        json,
    ];
    put_array(out, 4);
    put_uint(out, CALL);
    put_map(out, optional.iter().map(|&there| u32::from(there)).sum());
    if let Some(timeout) = timeout {
        // First and in full length, so that it can be changed when the call is sent.
        put_str(out, TIMEOUT);
        out.push(Marker::U64.to_u8());
        out.extend_from_slice(&timeout.to_be_bytes());
    }
    if let Some(grace) = grace {
        put_str(out, "grace");
        put_uint(out, grace);
    }
    for (key, level) in [("log", log), ("trace", trace.map(u32::from))] {
        if let Some(level) = level {
            put_str(out, key);
            put_uint(out, u64::from(level));
        }
    }
    for (key, text) in [("traceparent", traceparent), ("tracestate", tracestate)] {
        if let Some(text) = text {
            put_str(out, key);
            put_str(out, text);
        }
    }
    if json {
        put_json(out);
    }
    match method {
        Some(method) => put_str(out, method),
        None => put_nil(out),
    }
}

/// Says in a message's meta that its values came as JSON.
const JSON: &str = "json";

fn put_json(out: &mut Vec<u8>) {
    put_str(out, JSON);
    put_bool(out, true);
}

/// As what the result in an answer was sent first.
pub(crate) fn answer_format(answer: &[u8]) -> ValueFormat {
    let mut reader = Reader::new(answer);
    let mut is_json = false;
    let front = reader.array().and_then(|_| reader.int::<u64>());
    let read = front.and_then(|_| {
        meta(&mut reader, |key, reader| {
            if key != JSON {
                return Ok(false);
            }
            is_json = reader.bool()?;
            Ok(true)
        })
    });
    ValueFormat::from_json_flag(read.is_ok() && is_json)
}

/// The front of so many arguments.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    put_array(out, u32::try_from(count).unwrap_or(u32::MAX));
}

/// Where the kind of a message stands in it: after the array.
const KIND_AT: usize = 1;

/// When a call was sent, if the message is one.
pub(crate) fn call_mode(message: &[u8]) -> Option<CallMode> {
    match u64::from(*message.get(KIND_AT)?) {
        CALL => Some(CallMode::Sequential),
        CALL_AHEAD => Some(CallMode::Pipelined),
        _ => None,
    }
}

/// Changes when a call was sent, in its message.
pub(crate) fn set_call_mode(call: &mut [u8], mode: CallMode) {
    if let Some(kind) = call.get_mut(KIND_AT) {
        *kind = match mode {
            CallMode::Sequential => CALL,
            CallMode::Pipelined => CALL_AHEAD,
        } as u8;
    }
}

/// Where the time that a call has stands in its message: after the array, the kind, the map and the
/// key with its length, and the number's own kind.
const TIMEOUT_AT: usize = 5 + TIMEOUT.len();
const TIMEOUT: &str = "timeout";

/// Changes the time that a call has, in a message that was made with one.
pub(crate) fn set_timeout(call: &mut [u8], microseconds: u64) {
    if let Some(place) = call.get_mut(TIMEOUT_AT..TIMEOUT_AT + 8) {
        place.copy_from_slice(&microseconds.to_be_bytes());
    }
}

pub(crate) fn put_queued(out: &mut Vec<u8>, reason: &str) {
    put_array(out, 2);
    put_uint(out, WAIT);
    put_map(out, 1);
    put_str(out, "reason");
    put_str(out, reason);
}

pub(crate) fn put_rings(out: &mut Vec<u8>) {
    put_array(out, 2);
    put_uint(out, RINGS);
    put_map(out, 0);
}

pub(crate) fn put_done(out: &mut Vec<u8>) {
    put_array(out, 2);
    put_uint(out, DONE);
    put_map(out, 0);
}

pub(crate) fn put_queue_length(out: &mut Vec<u8>, checkouts: u64) {
    put_array(out, 3);
    put_uint(out, WAITING);
    put_map(out, 0);
    put_uint(out, checkouts);
}

pub(crate) fn put_cancel(out: &mut Vec<u8>, call: u64) {
    put_array(out, 3);
    put_uint(out, FORGET);
    put_map(out, 0);
    put_uint(out, call);
}

/// Which call a message takes back, if it is of that kind.
pub(crate) fn cancelled_call(message: &[u8]) -> Option<u64> {
    if message.get(KIND_AT).copied().map(u64::from) != Some(FORGET) {
        return None;
    }
    match FromClient::decode(message) {
        Ok(FromClient::Cancel(call)) => Some(call),
        _ => None,
    }
}

/// The number of the call that a worker has not begun, if the message says that.
pub(crate) fn skipped_call(message: &[u8]) -> Option<u64> {
    if message.get(KIND_AT).copied().map(u64::from) != Some(SKIPPED) {
        return None;
    }
    match FromWorker::decode(message) {
        Ok(FromWorker::Skipped { call }) => call,
        _ => None,
    }
}

pub(crate) fn put_skipped(out: &mut Vec<u8>, call: Option<u64>) {
    put_array(out, 2);
    put_uint(out, SKIPPED);
    put_number(out, call);
}

/// The front of the answer to the call of this number; its result follows, which was first encoded in `format`.
pub(crate) fn put_ok(out: &mut Vec<u8>, call: Option<u64>, format: ValueFormat) {
    put_array(out, 3);
    put_uint(out, OK);
    let is_json = format == ValueFormat::Json;
    put_map(out, u32::from(call.is_some()) + u32::from(is_json));
    if let Some(call) = call {
        put_str(out, NUMBER);
        put_uint(out, call);
    }
    if is_json {
        put_json(out);
    }
}

pub(crate) fn put_error(out: &mut Vec<u8>, call: Option<u64>, error: &ErrorBody<'_>) {
    put_array(out, 3);
    put_uint(out, ERROR);
    put_number(out, call);
    error.write(out);
}

pub(crate) fn put_log(out: &mut Vec<u8>, log: &Message) -> Result<(), WireError> {
    let mut written = Ok(());
    put_log_with(out, |out| written = rmp_serde::encode::write_named(out, log));
    written.map_err(|error| WireError::malformed(format!("it cannot be encoded: {error}")))
}

/// Notes that hold a log which `write` appends.
pub(super) fn put_log_with(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    put_array(out, 2);
    put_uint(out, NOTES);
    put_map(out, 1);
    put_str(out, "ld");
    write(out);
}

/// The front of notes that hold this many records of a trace; they follow.
#[cfg(feature = "spans")]
pub(crate) fn put_trace_header(out: &mut Vec<u8>, records: u32) {
    put_array(out, 2);
    put_uint(out, NOTES);
    put_map(out, 1);
    put_str(out, "trace");
    put_array(out, records);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_too_many_unknown_keys_is_refused() {
        let done = |entries: u32| {
            let mut out = vec![0x92, 2];
            put_map(&mut out, entries);
            (0..entries).for_each(|_| out.extend(b"\xa1x\x91\x91\xc0"));
            FromClient::decode(&out).map(|_| ())
        };
        assert_eq!(done(256), Ok(()));
        assert!(done(257).unwrap_err().to_string().contains("257 entries, and the limit is 256"));
    }

    #[test]
    fn an_absurd_number_of_waiting_checkouts_is_clamped() {
        for (said, heard) in
            [(7, 7), (u64::from(u32::MAX) + 1, MAX_QUEUE_LENGTH), (u64::MAX, MAX_QUEUE_LENGTH)]
        {
            let mut out = Vec::new();
            put_queue_length(&mut out, said);
            let read = FromClient::decode(&out);
            assert!(
                matches!(read, Ok(FromClient::QueueLength(checkouts)) if checkouts == heard),
                "{read:?}"
            );
        }
    }
}
