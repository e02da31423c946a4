//! Messages from a worker to its client, and from the server in the worker's place.

use log_defer::Message;

use super::kind::{
    CREDIT, DEATH, END, ERROR, FILES, HELLO, ITEM, JSON, OK, QUEUED, RINGS, SET_UP, SHM, SKIPPED,
    TELEMETRY, kind_of,
};
use super::stream::{self, CALL_NUMBER, Item};
use super::transport::read_files;
use crate::progress::Progress;
use crate::wire::WireError;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::ErrorBody;
use crate::wire::fields::{MapWriter, read_map, skip_map};
use crate::wire::hello::WorkerHello;
use crate::wire::msgpack::{Reader, put_array, put_map, put_nil, put_str, put_uint};
use crate::wire::shm::ShmMessage;
use crate::wire::values::ValueFormat;

#[derive(Debug)]
pub(crate) enum FromWorker<'a> {
    Hello(WorkerHello),
    /// The encoded result of the call with this number, at the end of the message. The other protocol has no numbers.
    Ok {
        call: Option<u64>,
        /// What the result was encoded in first.
        format: ValueFormat,
        value: &'a [u8],
    },
    /// The error of the call with this number. Without a number, it is the error of the handshake or comes from the
    /// other protocol.
    Error {
        call: Option<u64>,
        body: ErrorBody<'a>,
    },
    /// An item that the running call streams.
    Item(Item<'a>),
    /// The client may send items for the call with this number until they have used this credit in all.
    Credit {
        call: u64,
        credit: u64,
    },
    Death(DeathNotice),
    Telemetry(Telemetry<'a>),
    /// From the server: this connection waits for a worker, for this reason. The hello follows later.
    Queued(&'a str),
    /// `setup` has succeeded: calls may have begun from here on.
    SetUp,
    /// The call with this number was not begun, because an earlier one failed or because it was cancelled.
    Skipped {
        call: Option<u64>,
    },
    /// How many files accompany the next message.
    Files(usize),
    Shm(ShmMessage),
    /// The worker uses the offered rings from here on.
    Rings,
    /// From a gateway: the worker's side of the connection has ended, and all that came from there is before this.
    End(StreamEnd),
}

/// What a gateway knows about the bytes of a client whose worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StreamEnd {
    /// How many bytes behind its hello the client has sent and the gateway has passed on.
    pub(crate) passed: u64,
    /// The worker has not read all of those.
    pub(crate) is_unread: bool,
}

/// What a worker recorded while a call ran; each part is still encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Telemetry<'a> {
    /// A message of Log::Defer.
    pub(crate) log: Option<&'a [u8]>,
    /// Spans and events of `tracing`.
    pub(crate) trace: Option<&'a [u8]>,
    /// How far the call has got.
    pub(crate) progress: Option<&'a [u8]>,
}

impl<'a> FromWorker<'a> {
    pub(crate) fn decode(body: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let fields = reader.array()?;
        match (reader.int::<u64>()?, fields) {
            (HELLO, 2) => WorkerHello::read(&mut reader).map(Self::Hello),
            (OK, 3) => {
                let AnswerMeta { call, format } = AnswerMeta::read(&mut reader)?;
                Ok(Self::Ok { call, format, value: reader.rest() })
            }
            (ERROR, 3) => {
                let AnswerMeta { call, .. } = AnswerMeta::read(&mut reader)?;
                Ok(Self::Error { call, body: ErrorBody::read(&mut reader)? })
            }
            (ITEM, 3) => Item::read(&mut reader).map(Self::Item),
            (CREDIT, 4) => {
                let (call, credit) = stream::read_credit(&mut reader)?;
                Ok(Self::Credit { call, credit })
            }
            (DEATH, 2) => DeathNotice::read(&mut reader).map(Self::Death),
            (TELEMETRY, 2) => Telemetry::read(&mut reader).map(Self::Telemetry),
            (FILES, 3) => read_files(&mut reader).map(Self::Files),
            (SHM, 2) => ShmMessage::read(&mut reader).map(Self::Shm),
            (RINGS, 2) => skip_map(&mut reader).map(|()| Self::Rings),
            (QUEUED, 2) => {
                let mut reason = "";
                read_map(&mut reader, |key, reader| {
                    if key == "reason" {
                        reason = reader.str()?;
                    }
                    Ok(key == "reason")
                })?;
                Ok(Self::Queued(reason))
            }
            (SET_UP, 2) => skip_map(&mut reader).map(|()| Self::SetUp),
            (END, 2) => StreamEnd::read(&mut reader).map(Self::End),
            (SKIPPED, 2) => Ok(Self::Skipped { call: AnswerMeta::read(&mut reader)?.call }),
            (kind, fields) => Err(WireError::malformed(format!(
                "a worker sends no message of kind {kind} with {fields} fields"
            ))),
        }
    }
}

impl<'a> Telemetry<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut telemetry = Self::default();
        read_map(reader, |key, reader| {
            match key {
                LOG => telemetry.log = Some(reader.value()?),
                TRACE => telemetry.trace = Some(reader.value()?),
                PROGRESS => telemetry.progress = Some(reader.value()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(telemetry)
    }

    /// How far the call has got. `None` if the worker has not said so in a form that can be read.
    pub(crate) fn read_progress(&self) -> Option<Progress> {
        let mut reader = Reader::new(self.progress?);
        if reader.array().ok()? != 3 {
            return None;
        }
        let done = reader.unsigned().ok()?;
        let total = reader.optional_unsigned().ok()?;
        Some(Progress::new(done, total, reader.str().ok()?))
    }
}

impl StreamEnd {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut end = Self::default();
        read_map(reader, |key, reader| {
            match key {
                PASSED => end.passed = reader.unsigned()?,
                UNREAD => end.is_unread = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(end)
    }
}

const PASSED: &str = "passed";
const UNREAD: &str = "unread";

/// The metadata of an answer.
struct AnswerMeta {
    call: Option<u64>,
    format: ValueFormat,
}

impl AnswerMeta {
    fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (mut call, mut is_json) = (None, false);
        read_map(reader, |key, reader| {
            match key {
                CALL_NUMBER => call = Some(reader.int()?),
                JSON => is_json = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(Self { call, format: ValueFormat::from_json_flag(is_json) })
    }
}

/// The number of the call that a worker skipped; `None` for another message.
pub(crate) fn skipped_call(message: &[u8]) -> Option<u64> {
    if kind_of(message) != Some(SKIPPED) {
        return None;
    }
    match FromWorker::decode(message) {
        Ok(FromWorker::Skipped { call }) => call,
        _ => None,
    }
}

/// Whether a message can only come from a call that has begun.
pub(crate) fn is_of_begun_call(message: &[u8]) -> bool {
    kind_of(message).is_some_and(|kind| [OK, ITEM, CREDIT].contains(&kind))
}

/// Appends the message that `setup` has succeeded.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn put_set_up(out: &mut Vec<u8>) {
    put_array(out, 2);
    put_uint(out, SET_UP);
    put_map(out, 0);
}

/// Appends the beginning of an answer. The caller appends the result, which was first encoded in `format`.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn put_ok(out: &mut Vec<u8>, call: Option<u64>, format: ValueFormat) {
    put_array(out, 3);
    put_uint(out, OK);
    let mut map = MapWriter::new(out);
    map.optional_uint(CALL_NUMBER, call);
    map.flag(JSON, format == ValueFormat::Json);
}

pub(crate) fn put_error(out: &mut Vec<u8>, call: Option<u64>, error: &ErrorBody<'_>) {
    put_array(out, 3);
    put_uint(out, ERROR);
    MapWriter::new(out).optional_uint(CALL_NUMBER, call);
    error.write(out);
}

pub(crate) fn put_skipped(out: &mut Vec<u8>, call: Option<u64>) {
    put_array(out, 2);
    put_uint(out, SKIPPED);
    MapWriter::new(out).optional_uint(CALL_NUMBER, call);
}

pub(crate) fn put_queued(out: &mut Vec<u8>, reason: &str) {
    put_array(out, 2);
    put_uint(out, QUEUED);
    MapWriter::new(out).str("reason", reason);
}

pub(in crate::wire) fn put_end(out: &mut Vec<u8>, passed: u64, is_unread: bool) {
    put_array(out, 2);
    put_uint(out, END);
    let mut map = MapWriter::new(out);
    map.uint(PASSED, passed);
    map.flag(UNREAD, is_unread);
}

const LOG: &str = "ld";
const TRACE: &str = "trace";
const PROGRESS: &str = "progress";

/// Appends telemetry that says how far the call has got.
pub(crate) fn put_progress(out: &mut Vec<u8>, progress: &Progress) {
    put_array(out, 2);
    put_uint(out, TELEMETRY);
    let mut map = MapWriter::new(out);
    let out = map.key(PROGRESS);
    put_array(out, 3);
    put_uint(out, progress.done);
    match progress.total {
        Some(total) => put_uint(out, total),
        None => put_nil(out),
    }
    put_str(out, &progress.what);
}

/// Appends telemetry that contains a log.
pub(crate) fn put_log(out: &mut Vec<u8>, log: &Message) -> Result<(), WireError> {
    let mut written = Ok(());
    put_log_with(out, |out| written = rmp_serde::encode::write_named(out, log));
    written.map_err(|error| WireError::malformed(format!("it cannot be encoded: {error}")))
}

/// Appends telemetry that contains a log, which `write` appends.
pub(in crate::wire) fn put_log_with(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    put_array(out, 2);
    put_uint(out, TELEMETRY);
    write(MapWriter::new(out).key(LOG));
}

/// Appends the beginning of telemetry that contains a trace. The caller appends this many records.
#[cfg(feature = "spans")]
pub(crate) fn put_trace_header(out: &mut Vec<u8>, records: u32) {
    put_array(out, 2);
    put_uint(out, TELEMETRY);
    put_array(MapWriter::new(out).key(TRACE), records);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(progress: &[u8]) -> Option<Progress> {
        let mut out = Vec::new();
        put_array(&mut out, 2);
        put_uint(&mut out, TELEMETRY);
        MapWriter::new(&mut out).key(PROGRESS).extend_from_slice(progress);
        match FromWorker::decode(&out) {
            Ok(FromWorker::Telemetry(telemetry)) => telemetry.read_progress(),
            other => panic!("it is no telemetry: {other:?}"),
        }
    }

    #[test]
    fn progress_arrives_as_it_was_sent() {
        for progress in [
            Progress::new(3, 7, "pages"),
            Progress::new(u64::MAX, None, ""),
            Progress::new(0, u64::MAX, "é".repeat(32)),
        ] {
            let mut out = Vec::new();
            put_progress(&mut out, &progress);
            let Ok(FromWorker::Telemetry(telemetry)) = FromWorker::decode(&out) else {
                panic!("it is no telemetry")
            };
            assert_eq!(telemetry.read_progress(), Some(progress));
        }
    }

    #[test]
    fn progress_of_another_form_is_ignored() {
        assert_eq!(read(b"\x93\x01\x02\xa1x"), Some(Progress::new(1, 2, "x")));
        let wrong: [&[u8]; 6] = [
            b"\x05",
            b"\xc0",
            b"\x92\x01\x02",
            b"\x93\xff\x02\xa1x",
            b"\x93\x01\xa1x\xa1x",
            b"\x93\x01\x02\x03",
        ];
        for progress in wrong {
            assert_eq!(read(progress), None, "{progress:x?}");
        }
        let long = [b"\x93\x01\x02\xd9\xff".as_slice(), &[b'x'; 255]].concat();
        assert_eq!(read(&long).map(|progress| progress.what.len()), Some(Progress::MAX_TEXT));
    }
}
