//! What the messages say, and as what the native protocol says it.

use std::panic::Location;

use log_defer::Message;
use rmpv::Value;

use super::{bounds, convert};
use crate::error::Failure;
use crate::report::CallSite;
use crate::wire::WireError;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::native;
use crate::wire::request::{Arguments, Source};

/// A message from a client.
#[derive(Debug)]
pub(crate) enum FromClient {
    /// A call. Whether the first argument is a method's name the interface knows.
    Call(Vec<Value>),
    Done,
    /// A message that is not read, for this reason. It is answered with an error.
    Refused(String),
}

/// What the original says before the error of a `setup`.
const SETUP: &str = "setup exception: ";

/// Reads a message from a client, which has at most `max_frame` bytes.
pub(crate) fn from_client(json: &[u8], max_frame: usize) -> Result<FromClient, WireError> {
    if let Err(reason) = bounds::check(json, max_frame) {
        return Ok(FromClient::Refused(reason));
    }
    let Parts { kind, rest, .. } = parts(json)?;
    match kind.as_str() {
        "do" => Ok(FromClient::Call(rest)),
        "dn" => Ok(FromClient::Done),
        other => Err(unknown("client", other)),
    }
}

/// Makes of a message from a worker the messages that a native worker would have sent: notes, if it
/// has logged, and the answer. An answer of at most `max_frame` bytes that nests too deep, or has too
/// many values, is the error of its call.
pub(crate) fn from_worker(
    json: &[u8],
    max_frame: usize,
) -> Result<(Option<Vec<u8>>, Vec<u8>), WireError> {
    if let Err(reason) = bounds::check(json, max_frame) {
        let mut out = Vec::new();
        let (kind, message) = (kind::RESULT, reason.as_str());
        let body = ErrorBody { kind, message, ..ErrorBody::default() };
        native::put_error(&mut out, None, &body);
        return Ok((None, out));
    }
    let Parts { kind, meta, mut rest } = parts(json)?;
    let log = meta.into_iter().find(|(key, _)| key.as_str() == Some("ld"));
    let notes = log.map(|(_, log)| {
        let mut out = Vec::new();
        native::put_log(&mut out, |out| encode(out, &log));
        out
    });
    let mut out = Vec::new();
    match (kind.as_str(), rest.pop(), rest.is_empty()) {
        ("ok", Some(value), true) => {
            native::put_ok(&mut out, None, Source::Json);
            encode(&mut out, &value);
        }
        ("er", Some(error), true) => {
            let text = match error.as_str() {
                Some(text) => text.to_owned(),
                None => error.to_string(),
            };
            let (kind, message) = match text.strip_prefix(SETUP) {
                Some(message) => (kind::SETUP, message),
                None => (kind::INTERFACE, text.as_str()),
            };
            let body = ErrorBody { kind, message, ..ErrorBody::default() };
            native::put_error(&mut out, None, &body);
        }
        _ => return Err(unknown("worker", &kind)),
    }
    Ok((notes, out))
}

/// The call of a client, with its arguments as MessagePack.
pub(crate) fn call(method: Option<&str>, args: Arguments<'_>) -> Result<Vec<u8>, String> {
    let mut out = br#"["do",{}"#.to_vec();
    if let Some(method) = method {
        out.push(b',');
        serde_json::to_writer(&mut out, method).map_err(|error| error.to_string())?;
    }
    let mut rest = args.encoded();
    for index in 1..=args.len() {
        out.push(b',');
        convert::write(&mut rest, &mut out)
            .map_err(|reason| format!("argument {index}: {reason}"))?;
    }
    out.push(b']');
    Ok(out)
}

/// The end of a checkout.
pub(crate) fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(br#"["dn",{}]"#);
}

/// Appends a result, which is MessagePack. With an error, `out` is as it was.
pub(crate) fn result(
    out: &mut Vec<u8>,
    log: Option<&Message>,
    mut encoded: &[u8],
) -> Result<(), String> {
    let start = out.len();
    put_front(out, "ok", log);
    let written = convert::write(&mut encoded, out);
    match written {
        Ok(()) => out.push(b']'),
        Err(_) => out.truncate(start),
    }
    written.map_err(|reason| format!("error JSON encoding interface output: {reason}"))
}

/// Appends an error.
pub(crate) fn error(out: &mut Vec<u8>, log: Option<&Message>, message: &str) {
    put_front(out, "er", log);
    // Writing text to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, message);
    out.push(b']');
}

/// What an error says, in the words in which it is known to a client of the crate's own.
pub(crate) fn text(body: ErrorBody<'_>, method: Option<&str>) -> String {
    let site = CallSite::new("", method, Location::caller());
    let causes = body.failure().causes().collect::<Vec<_>>().join(": ");
    let text = body.into_error::<Failure>(site).to_string();
    if causes.is_empty() { text } else { format!("{text}: {causes}") }
}

fn put_front(out: &mut Vec<u8>, kind: &str, log: Option<&Message>) {
    out.extend_from_slice(format!("[\"{kind}\",{{").as_bytes());
    if let Some(log) = log {
        let start = out.len();
        out.extend_from_slice(b"\"ld\":");
        // What cannot be written as JSON is not worth an answer.
        if serde_json::to_writer(&mut *out, log).is_err() {
            out.truncate(start);
        }
    }
    out.extend_from_slice(b"},");
}

/// What every message consists of.
struct Parts {
    kind: String,
    meta: Vec<(Value, Value)>,
    rest: Vec<Value>,
}

fn parts(json: &[u8]) -> Result<Parts, WireError> {
    let Value::Array(fields) = convert::read(json)? else {
        return Err(WireError::Malformed("it is no array".to_owned()));
    };
    let mut fields = fields.into_iter();
    match (fields.next(), fields.next()) {
        (Some(Value::String(kind)), Some(Value::Map(meta))) => {
            let kind = kind.into_str().unwrap_or_default();
            Ok(Parts { kind, meta, rest: fields.collect() })
        }
        _ => Err(WireError::Malformed("it does not begin with a kind and a map".to_owned())),
    }
}

fn encode(out: &mut Vec<u8>, value: &Value) {
    // Writing to memory cannot fail.
    let _ = rmpv::encode::write_value(out, value);
}

fn unknown(side: &str, kind: &str) -> WireError {
    WireError::Malformed(format!("a {side} sends no such message as {kind:?}"))
}
