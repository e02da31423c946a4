//! Messages from a client to its worker.

use std::time::Duration;

use rmp::Marker;

use super::kind::{
    CALL, CANCEL, CREDIT, DONE, FILES, HELLO, INPUT_END, ITEM, JSON, PIPELINED_CALL, QUEUE_LENGTH,
    RINGS, SHM, SINGLE_CALL, kind_of, set_kind,
};
use super::stream::{self, InputEnd, Item};
use super::transport::read_files;
use crate::time_limit::TimeLimit;
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::fields::{MapWriter, read_map, skip_map};
use crate::wire::hello::ClientHello;
use crate::wire::msgpack::{Reader, put_array, put_map, put_nil, put_str, put_uint};
use crate::wire::shm::ShmMessage;
use crate::wire::values::ValueFormat;

/// How long a call may continue after its timeout before its worker is killed, unless the call has another grace.
pub(crate) const DEFAULT_GRACE: TimeLimit = TimeLimit::new(Duration::from_millis(100));

/// The time in microseconds that means "no limit", where a missing key means the default.
pub(crate) const NO_LIMIT: u64 = i64::MAX as u64;

/// A longer queue of a client is read as this length, so that sums over clients cannot overflow.
const MAX_QUEUE_LENGTH: u64 = u32::MAX as u64;

#[derive(Debug)]
pub(crate) enum FromClient<'a> {
    Hello(ClientHello<'a>),
    Call {
        mode: CallMode,
        method: Option<&'a str>,
        args: Arguments<'a>,
        meta: CallMeta<'a>,
    },
    /// The checkout is over.
    Done,
    /// How many checkouts of the client wait for a worker.
    QueueLength(u64),
    /// The result of the call with this number is no longer wanted; the worker skips it if it has not begun.
    Cancel(u64),
    /// The worker may send items of the call with this number until they have used this credit in all.
    Credit {
        call: u64,
        credit: u64,
    },
    /// An item of the input of a call.
    Item(Item<'a>),
    /// The last item has been sent.
    InputEnd(InputEnd<'a>),
    /// How many files accompany the next message.
    Files(usize),
    Shm(ShmMessage),
    /// Offers the memory of two rings, which accompanies this message.
    Rings,
}

/// Whether a call depends on calls that are unanswered, and whether others follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallMode {
    /// Sent when no earlier call of the checkout was unanswered. It runs whatever happened before.
    Sequential,
    /// Sent before the answer to the previous call. The worker skips it if a call before it fails.
    Pipelined,
    /// The last call of its checkout, sent when no call was unanswered. Its answer ends the checkout.
    Single,
}

/// The metadata of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CallMeta<'a> {
    /// The least important level of the worker's log that the caller wants; `None` for no log.
    pub(crate) log: Option<u32>,
    /// The least important level of `tracing` that the caller wants, 1 (error) to 5 (trace); `None` for no spans.
    pub(crate) trace: Option<u8>,
    /// The time limit of the call, in microseconds.
    pub(crate) timeout: Option<u64>,
    /// The time limit of the method, which counts from when the worker begins the call, in microseconds.
    pub(crate) run_timeout: Option<u64>,
    /// How long the call may continue after either before its worker is killed, in microseconds.
    pub(crate) grace: Option<u64>,
    pub(crate) traceparent: Option<&'a str>,
    pub(crate) tracestate: Option<&'a str>,
    /// The arguments were JSON first.
    pub(crate) json: bool,
    /// The typed interface that the method belongs to.
    pub(crate) interface: Option<&'a str>,
    /// The caller reads the items that the call streams. This is the first credit for them.
    pub(crate) items: Option<u64>,
    /// The caller streams an input to the method.
    pub(crate) input: bool,
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl<'a> FromClient<'a> {
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let fields = reader.array()?;
        match (reader.int::<u64>()?, fields) {
            (HELLO, 2) => ClientHello::read(&mut reader).map(Self::Hello),
            (CALL, 4) => Self::read_call(&mut reader, CallMode::Sequential),
            (PIPELINED_CALL, 4) => Self::read_call(&mut reader, CallMode::Pipelined),
            (SINGLE_CALL, 4) => Self::read_call(&mut reader, CallMode::Single),
            (DONE, 2) => skip_map(&mut reader).map(|()| Self::Done),
            (QUEUE_LENGTH, 3) => {
                skip_map(&mut reader)?;
                let checkouts = reader.unsigned()?;
                Ok(Self::QueueLength(checkouts.min(MAX_QUEUE_LENGTH)))
            }
            (FILES, 3) => read_files(&mut reader).map(Self::Files),
            (SHM, 2) => ShmMessage::read(&mut reader).map(Self::Shm),
            (RINGS, 2) => skip_map(&mut reader).map(|()| Self::Rings),
            (CREDIT, 4) => {
                let (call, credit) = stream::read_credit(&mut reader)?;
                Ok(Self::Credit { call, credit })
            }
            (ITEM, 3) => Item::read(&mut reader).map(Self::Item),
            (INPUT_END, 3) => InputEnd::read(&mut reader).map(Self::InputEnd),
            (CANCEL, 3) => {
                skip_map(&mut reader)?;
                reader.int().map(Self::Cancel)
            }
            (kind, fields) => Err(WireError::malformed(format!(
                "a client sends no message of kind {kind} with {fields} fields"
            ))),
        }
    }

    fn read_call(reader: &mut Reader<'a>, mode: CallMode) -> Result<Self, WireError> {
        let mut call = CallMeta::default();
        read_map(reader, |key, reader| {
            match key {
                "log" => call.log = Some(reader.int()?),
                "trace" => call.trace = Some(reader.int()?),
                TIMEOUT => call.timeout = Some(reader.unsigned()?),
                "run_timeout" => call.run_timeout = Some(reader.unsigned()?),
                "grace" => call.grace = Some(reader.unsigned()?),
                "traceparent" => call.traceparent = Some(reader.str()?),
                "tracestate" => call.tracestate = Some(reader.str()?),
                JSON => call.json = reader.bool()?,
                "interface" => call.interface = Some(reader.str()?),
                "items" => call.items = Some(reader.unsigned()?),
                "input" => call.input = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let method = reader.optional_str()?;
        let format = ValueFormat::from_json_flag(call.json);
        let args = Arguments::read(reader)?.with_format(format);
        Ok(Self::Call { mode, method, args, meta: call })
    }
}

/// Appends the beginning of a call. The caller appends the array of its arguments.
pub(crate) fn put_call(out: &mut Vec<u8>, method: Option<&str>, meta: CallMeta<'_>) {
    let CallMeta {
        log,
        trace,
        timeout,
        run_timeout,
        grace,
        traceparent,
        tracestate,
        json,
        interface,
        items,
        input,
    } = meta;
    put_array(out, 4);
    put_uint(out, CALL);
    let mut map = MapWriter::new(out);
    if let Some(timeout) = timeout {
        // First, and in its longest encoding, so that `set_timeout` can replace it.
        let out = map.key(TIMEOUT);
        out.push(Marker::U64.to_u8());
        out.extend_from_slice(&timeout.to_be_bytes());
    }
    map.optional_uint("run_timeout", run_timeout);
    map.optional_uint("grace", grace);
    map.optional_uint("log", log.map(u64::from));
    map.optional_uint("trace", trace.map(u64::from));
    map.optional_str("traceparent", traceparent);
    map.optional_str("tracestate", tracestate);
    map.flag(JSON, json);
    map.optional_str("interface", interface);
    map.optional_uint("items", items);
    map.flag("input", input);
    match method {
        Some(method) => put_str(out, method),
        None => put_nil(out),
    }
}

/// Appends the header of the array of arguments.
pub(crate) fn put_argument_count(out: &mut Vec<u8>, count: usize) {
    put_array(out, u32::try_from(count).unwrap_or(u32::MAX));
}

/// The mode of an encoded call; `None` for another message.
pub(crate) fn call_mode(message: &[u8]) -> Option<CallMode> {
    match kind_of(message)? {
        CALL => Some(CallMode::Sequential),
        PIPELINED_CALL => Some(CallMode::Pipelined),
        SINGLE_CALL => Some(CallMode::Single),
        _ => None,
    }
}

/// Changes the mode of an encoded call.
pub(crate) fn set_call_mode(call: &mut [u8], mode: CallMode) {
    set_kind(
        call,
        match mode {
            CallMode::Sequential => CALL,
            CallMode::Pipelined => PIPELINED_CALL,
            CallMode::Single => SINGLE_CALL,
        },
    );
}

const TIMEOUT: &str = "timeout";

/// Where the timeout is in an encoded call: behind the headers of the array, the kind, the map and the key, each of
/// one byte, the key itself, and the marker of the number.
const TIMEOUT_OFFSET: usize = 5 + TIMEOUT.len();

/// Changes the timeout of an encoded call that has one.
pub(crate) fn set_timeout(call: &mut [u8], microseconds: u64) {
    if let Some(timeout) = call.get_mut(TIMEOUT_OFFSET..TIMEOUT_OFFSET + 8) {
        timeout.copy_from_slice(&microseconds.to_be_bytes());
    }
}

pub(crate) fn put_done(out: &mut Vec<u8>) {
    put_array(out, 2);
    put_uint(out, DONE);
    put_map(out, 0);
}

pub(crate) fn put_queue_length(out: &mut Vec<u8>, checkouts: u64) {
    put_array(out, 3);
    put_uint(out, QUEUE_LENGTH);
    put_map(out, 0);
    put_uint(out, checkouts);
}

pub(crate) fn put_cancel(out: &mut Vec<u8>, call: u64) {
    put_array(out, 3);
    put_uint(out, CANCEL);
    put_map(out, 0);
    put_uint(out, call);
}

/// The number of the call that a message cancels; `None` for another message.
pub(crate) fn cancelled_call(message: &[u8]) -> Option<u64> {
    if kind_of(message) != Some(CANCEL) {
        return None;
    }
    match FromClient::decode(message) {
        Ok(FromClient::Cancel(call)) => Some(call),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_more_than_256_unknown_keys_is_refused() {
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
    fn an_absurd_queue_length_is_clamped() {
        for (sent, expected) in
            [(7, 7), (u64::from(u32::MAX) + 1, MAX_QUEUE_LENGTH), (u64::MAX, MAX_QUEUE_LENGTH)]
        {
            let mut out = Vec::new();
            put_queue_length(&mut out, sent);
            let read = FromClient::decode(&out);
            assert!(
                matches!(read, Ok(FromClient::QueueLength(checkouts)) if checkouts == expected),
                "{read:?}"
            );
        }
    }

    #[test]
    fn an_encoded_call_gets_another_mode_and_timeout() {
        let meta = CallMeta {
            timeout: Some(1),
            run_timeout: Some(3),
            grace: Some(2),
            log: Some(30),
            ..CallMeta::default()
        };
        let mut out = Vec::new();
        put_call(&mut out, Some("method"), meta);
        put_argument_count(&mut out, 0);
        set_call_mode(&mut out, CallMode::Pipelined);
        set_timeout(&mut out, u64::MAX);
        assert_eq!(call_mode(&out), Some(CallMode::Pipelined));
        let Ok(FromClient::Call { mode, method, meta: read, .. }) = FromClient::decode(&out) else {
            panic!("it is not a call");
        };
        assert_eq!((mode, method), (CallMode::Pipelined, Some("method")));
        assert_eq!(read, CallMeta { timeout: Some(u64::MAX), ..meta });
    }
}
