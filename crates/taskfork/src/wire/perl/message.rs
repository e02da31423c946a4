//! What the messages say, and as what the native protocol says it.

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
    match (kind.as_str(), rest) {
        ("do", Ok(args)) => Ok(FromClient::Call(args)),
        // Its end is known, and so is what comes next.
        ("do", Err(invalid)) => Ok(FromClient::Refused(invalid.to_string())),
        ("dn", Ok(_)) => Ok(FromClient::Done),
        ("dn", Err(invalid)) => Err(WireError::malformed(invalid)),
        (other, _) => Err(unknown("client", other)),
    }
}

/// Makes of a message from a worker the messages that a native worker would have sent: notes, if it
/// has logged, and the answer. An answer of at most `max_frame` bytes that nests too deep, has too
/// many values, or is not valid JSON is the error of its call.
pub(crate) fn from_worker(
    json: &[u8],
    max_frame: usize,
) -> Result<(Option<Vec<u8>>, Vec<u8>), WireError> {
    let mut out = Vec::new();
    if let Err(reason) = bounds::check(json, max_frame) {
        put_native_error(&mut out, kind::RESULT, &reason);
        return Ok((None, out));
    }
    let Parts { kind, meta, rest } = parts(json)?;
    // A program that has logged nothing may say so by null.
    let log = meta.into_iter().find(|(key, log)| key.as_str() == Some("ld") && !log.is_nil());
    let notes = log.map(|(_, log)| {
        let mut out = Vec::new();
        native::put_log_with(&mut out, |out| encode(out, &log));
        out
    });
    let rest = match (kind.as_str(), rest) {
        ("ok" | "er", Err(invalid)) => {
            put_native_error(&mut out, kind::RESULT, &invalid.to_string());
            return Ok((notes, out));
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
    Ok((notes, out))
}

fn put_native_error(out: &mut Vec<u8>, kind: &str, message: &str) {
    native::put_error(out, None, &ErrorBody { kind, message, ..ErrorBody::default() });
}

/// The call of a client, with its arguments as MessagePack.
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

/// The end of a checkout.
pub(crate) fn put_done(out: &mut Vec<u8>) {
    out.extend_from_slice(br#"["dn",{}]"#);
}

/// Appends a result, which is MessagePack. With an error, `out` is as it was.
pub(crate) fn put_result(
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
pub(crate) fn put_error(out: &mut Vec<u8>, log: Option<&Message>, message: &str) {
    put_front(out, "er", log);
    // Writing text to memory cannot fail.
    let _ = serde_json::to_writer(&mut *out, message);
    out.push(b']');
}

/// What an error says, in the words in which it is known to a client of the crate's own. A newline at
/// its end is kept: Perl's `die` adds the line of the program to a text that has none.
pub(crate) fn error_text(body: ErrorBody<'_>, method: Option<&str>) -> String {
    let end = if body.message.ends_with('\n') { "\n" } else { "" };
    let site = CallSite::new("", method, Location::caller());
    let causes = body.failure().causes().collect::<Vec<_>>().join(": ");
    let text = body.into_error::<Failure>(site).to_string();
    if causes.is_empty() { text + end } else { format!("{text}: {causes}{end}") }
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
    /// What is wrong with it, if the message is not valid JSON.
    rest: Result<Vec<Value>, Invalid>,
}

/// A message that says neither its kind nor has a map is none, whatever else is wrong with it.
fn parts(json: &[u8]) -> Result<Parts, WireError> {
    let mut parser = Parser::new(json);
    let no_front = || WireError::malformed("it does not begin with a kind and a map");
    parser.expect(FIRST).map_err(WireError::malformed)?;
    let Ok(Value::String(kind)) = parser.value() else { return Err(no_front()) };
    let kind = kind.into_str().unwrap_or_default();
    if parser.expect(b',').is_err() || parser.peek() != Some(b'{') {
        return Err(no_front());
    }
    // What a worker has logged may hold any number.
    let (meta, rest) = match parser.tolerant_value() {
        Ok(Value::Map(meta)) => (meta, rest(&mut parser)),
        Ok(_) => return Err(no_front()),
        Err(invalid) => (Vec::new(), Err(invalid)),
    };
    Ok(Parts { kind, meta, rest })
}

/// What follows the map.
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
    // Writing to memory cannot fail.
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
        let (notes, answer) = from_worker(json.as_bytes(), 1 << 20)?;
        let said = match FromWorker::decode(&answer).unwrap() {
            FromWorker::Ok { value, .. } => {
                rmpv::decode::read_value(&mut &value[..]).unwrap().to_string()
            }
            FromWorker::Error { body, .. } => format!("{}: {}", body.kind, body.message),
            other => panic!("{other:?}"),
        };
        Ok((notes.is_some(), said))
    }

    #[test]
    fn a_message_is_an_answer_if_its_front_is_one() {
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
