//! Translating messages to and from the native protocol.

use std::panic::Location;

use log_defer::Message;
use rmpv::Value;

use super::parse::{Invalid, Parser};
use super::{FIRST, bounds, convert};
use crate::error::Failure;
use crate::report::CallSite;
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::native;
use crate::wire::values::ValueFormat;

/// A message from a client.
#[derive(Debug)]
pub(crate) enum FromClient {
    /// A call. The interface decides whether the first argument is a method's name.
    Call(Vec<Value>),
    Done,
    /// A message that cannot be read, for this reason. It is answered with an error.
    Refused(String),
}

/// How AnyEvent::Task begins the error of a `setup`.
const SETUP: &str = "setup exception: ";

/// Reads a message from a client. `max_frame` is the longest one, in bytes.
pub(crate) fn from_client(json: &[u8], max_frame: usize) -> Result<FromClient, WireError> {
    if let Err(reason) = bounds::check(json, max_frame) {
        return Ok(FromClient::Refused(reason));
    }
    let Envelope { kind, rest, .. } = read_envelope(json)?;
    match (kind.as_str(), rest) {
        ("do", Ok(args)) => Ok(FromClient::Call(args)),
        // Its end is known, so the connection can continue.
        ("do", Err(invalid)) => Ok(FromClient::Refused(invalid.to_string())),
        ("dn", Ok(_)) => Ok(FromClient::Done),
        ("dn", Err(invalid)) => Err(WireError::malformed(invalid)),
        (other, _) => Err(unknown("client", other)),
    }
}

/// Translates a message from a worker to those that a native worker would have sent: telemetry, if it has logged, and
/// the answer. `max_frame` is the longest message, in bytes.
///
/// An answer that exceeds the limits of values or is not valid JSON becomes the error of its call.
///
/// # Errors
/// If the message is not an answer of this protocol.
pub(crate) fn from_worker(
    json: &[u8],
    max_frame: usize,
) -> Result<(Option<Vec<u8>>, Vec<u8>), WireError> {
    let mut out = Vec::new();
    if let Err(reason) = bounds::check(json, max_frame) {
        put_native_error(&mut out, kind::RESULT, &reason);
        return Ok((None, out));
    }
    let Envelope { kind, meta, rest } = read_envelope(json)?;
    // A program that has logged nothing may send null.
    let log = meta.into_iter().find(|(key, log)| key.as_str() == Some("ld") && !log.is_nil());
    let telemetry = log.map(|(_, log)| {
        let mut out = Vec::new();
        native::put_log_with(&mut out, |out| encode(out, &log));
        out
    });
    let rest = match (kind.as_str(), rest) {
        ("ok" | "er", Err(invalid)) => {
            put_native_error(&mut out, kind::RESULT, &invalid.to_string());
            return Ok((telemetry, out));
        }
        (_, Err(_)) => return Err(unknown("worker", &kind)),
        (_, Ok(rest)) => rest,
    };
    match (kind.as_str(), &rest[..]) {
        ("ok", [value]) => {
            native::put_ok(&mut out, None, ValueFormat::Json);
            encode(&mut out, value);
        }
        ("er", [error]) => {
            let text = match error.as_str() {
                Some(text) => text.to_owned(),
                None => error.to_string(),
            };
            match text.strip_prefix(SETUP) {
                Some(message) => put_native_error(&mut out, kind::SETUP, message),
                None => put_native_error(&mut out, kind::INTERFACE, &text),
            }
        }
        _ => return Err(unknown("worker", &kind)),
    }
    Ok((telemetry, out))
}

fn put_native_error(out: &mut Vec<u8>, kind: &str, message: &str) {
    native::put_error(out, None, &ErrorBody { kind, message, ..ErrorBody::default() });
}

/// Encodes a call, whose arguments are MessagePack.
pub(crate) fn encode_call(method: Option<&str>, args: Arguments<'_>) -> Result<Vec<u8>, String> {
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

/// Appends the message that ends a checkout.
pub(crate) fn put_done(out: &mut Vec<u8>) {
    out.extend_from_slice(br#"["dn",{}]"#);
}

/// Appends a result, which is MessagePack. After an error `out` is unchanged.
pub(crate) fn put_result(
    out: &mut Vec<u8>,
    log: Option<&Message>,
    mut encoded: &[u8],
) -> Result<(), String> {
    let start = out.len();
    put_header(out, "ok", log);
    let written = convert::write(&mut encoded, out);
    match written {
        Ok(()) => out.push(b']'),
        Err(_) => out.truncate(start),
    }
    written.map_err(|reason| format!("error JSON encoding interface output: {reason}"))
}

/// Appends the error of a call.
pub(crate) fn put_error(out: &mut Vec<u8>, log: Option<&Message>, message: &str) {
    put_header(out, "er", log);
    // Writing a string into a `Vec` cannot fail.
    let _ = serde_json::to_writer(&mut *out, message);
    out.push(b']');
}

/// The text of an error, as the native client shows it. A newline at its end is kept, because Perl's `die` adds the
/// line of the program to a text without one.
pub(crate) fn error_text(body: ErrorBody<'_>, method: Option<&str>) -> String {
    let end = if body.message.ends_with('\n') { "\n" } else { "" };
    let site = CallSite::new("", method, Location::caller());
    let causes = body.failure().causes().collect::<Vec<_>>().join(": ");
    let text = body.into_error::<Failure>(site).to_string();
    if causes.is_empty() { text + end } else { format!("{text}: {causes}{end}") }
}

fn put_header(out: &mut Vec<u8>, kind: &str, log: Option<&Message>) {
    out.extend_from_slice(format!("[\"{kind}\",{{").as_bytes());
    if let Some(log) = log {
        let start = out.len();
        out.extend_from_slice(b"\"ld\":");
        // The answer is sent without a log that JSON cannot express.
        if serde_json::to_writer(&mut *out, log).is_err() {
            out.truncate(start);
        }
    }
    out.extend_from_slice(b"},");
}

/// The parts of every message.
struct Envelope {
    kind: String,
    meta: Vec<(Value, Value)>,
    /// The values after the map, or why the message is not valid JSON.
    rest: Result<Vec<Value>, Invalid>,
}

/// Reads the kind and the map of a message. Without them it is not a message of this protocol, even if it is JSON.
fn read_envelope(json: &[u8]) -> Result<Envelope, WireError> {
    let mut parser = Parser::new(json);
    let no_front = || WireError::malformed("it does not begin with a kind and a map");
    parser.expect(FIRST).map_err(WireError::malformed)?;
    let Ok(Value::String(kind)) = parser.value() else { return Err(no_front()) };
    let kind = kind.into_str().unwrap_or_default();
    if parser.expect(b',').is_err() || parser.peek() != Some(b'{') {
        return Err(no_front());
    }
    // The log of a worker may contain any number.
    let (meta, rest) = match parser.tolerant_value() {
        Ok(Value::Map(meta)) => (meta, rest(&mut parser)),
        Ok(_) => return Err(no_front()),
        Err(invalid) => (Vec::new(), Err(invalid)),
    };
    Ok(Envelope { kind, meta, rest })
}

/// Reads the values after the map.
fn rest(parser: &mut Parser<'_>) -> Result<Vec<Value>, Invalid> {
    let mut values = Vec::new();
    while parser.peek() == Some(b',') {
        parser.expect(b',')?;
        values.push(parser.value()?);
    }
    parser.expect(b']')?;
    parser.end()?;
    Ok(values)
}

fn encode(out: &mut Vec<u8>, value: &Value) {
    // Writing into a `Vec` cannot fail.
    let _ = rmpv::encode::write_value(out, value);
}

fn unknown(side: &str, kind: &str) -> WireError {
    WireError::Malformed(format!("a {side} sends no such message as {kind:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::FromWorker;

    fn read(json: &str) -> Result<(bool, String), WireError> {
        let (telemetry, answer) = from_worker(json.as_bytes(), 1 << 20)?;
        let said = match FromWorker::decode(&answer).unwrap() {
            FromWorker::Ok { value, .. } => {
                rmpv::decode::read_value(&mut &value[..]).unwrap().to_string()
            }
            FromWorker::Error { body, .. } => format!("{}: {}", body.kind, body.message),
            other => panic!("{other:?}"),
        };
        Ok((telemetry.is_some(), said))
    }

    #[test]
    fn a_message_is_an_answer_if_its_kind_and_map_are_valid() {
        for (json, has_log, said) in [
            (r#"["ok",{"ld":null},5]"#, false, "5"),
            (r#" [ "ok" , {"ld":{}} , "a" ] "#, true, "\"a\""),
            (r#"["ok",{"ld":{"start":nan}},5]"#, true, "5"),
            (r#"["ok",{"ld":{}},nan]"#, true, "result: it is not valid JSON at byte 16"),
            (r#"["er",{},"a" 1]"#, false, "result: it is not valid JSON at byte 13"),
            (r#"["er",{},"setup exception: no\n"]"#, false, "setup: no\n"),
            (r#"["er",{},[1]]"#, false, "interface: [1]"),
        ] {
            let (log, text) = read(json).unwrap();
            assert!(log == has_log && text.starts_with(said), "{json}: {log} {text}");
        }
        for json in [
            "[]",
            "[nan]",
            "[\"ok\"]",
            "[\"ok\",1,nan]",
            "[\"ok\" {},1]",
            "[\"debug\",{},nan]",
            "[\"ok\",{}]",
            "[\"ok\",{},1,2]",
            "[\"do\",{},1]",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(matches!(from_client(b"[\"do\",{},nan]", 1000), Ok(FromClient::Refused(_))));
        assert!(from_client(b"[\"dn\",{},nan]", 1000).is_err());
    }
}
