//! Arguments and results of calls as JSON.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};
use taskfork::client::Value;

use crate::call_error::NO_JSON;
use crate::error::CommandError;

/// The arguments of a call.
#[derive(Debug, clap::Args)]
pub(crate) struct CallArguments {
    /// The arguments of the call. JSON such as 7, true, '[1, 2]' or '"7"' is that value, and {"base64": "…"} in
    /// it is bytes; any other word is a string. @FILE is the bytes of a file, - the content of standard input. Write
    /// a string that begins with @, {, [ or a quotation mark as JSON: '"@home"'
    #[arg(value_name = "ARG", allow_negative_numbers = true)]
    args: Vec<OsString>,
    /// Pass the bytes of each argument instead of parsing it as JSON. @FILE and - are the bytes of the file and
    /// of standard input
    #[arg(long)]
    bytes: bool,
}

/// The most bytes of an argument, because no message can be longer.
const MAX_INPUT: u64 = 64 << 20;

impl CallArguments {
    /// Whether an argument is the content of standard input.
    pub(crate) fn read_standard_input(&self) -> bool {
        self.args.iter().any(|word| is_standard_input(word))
    }

    /// The values of all arguments.
    pub(crate) fn values(&self) -> Result<Vec<Value>, CommandError> {
        if self.args.iter().filter(|word| is_standard_input(word)).count() > 1 {
            return Err(CommandError::usage("only one argument can be read from standard input")
                .hint("give the others as JSON, or as @FILE"));
        }
        self.args.iter().map(|word| self.value(word)).collect()
    }

    fn value(&self, word: &OsStr) -> Result<Value, CommandError> {
        if word == "-" {
            let bytes = read_limited(io::stdin().lock(), "standard input")?;
            return match self.bytes {
                true => Ok(Value::Binary(bytes)),
                false => text_or_bytes(bytes),
            };
        }
        match word.as_bytes() {
            b"@-" => read_limited(io::stdin().lock(), "standard input").map(Value::Binary),
            [b'@', path @ ..] => {
                let path = Path::new(OsStr::from_bytes(path));
                let shown = path.display().to_string();
                let file = File::open(path).map_err(|error| {
                    CommandError::usage(format!("cannot read {shown}: {error}"))
                        .hint("a string that begins with @ is written as JSON, as in '\"@home\"'")
                })?;
                read_limited(file, &shown).map(Value::Binary)
            }
            bytes if self.bytes => Ok(Value::Binary(bytes.to_vec())),
            bytes => match std::str::from_utf8(bytes) {
                Ok(text) => json_or_text(text, "the argument"),
                Err(_) => Err(CommandError::usage("an argument is not UTF-8")
                    .hint("--bytes passes arguments as bytes, whatever they are")),
            },
        }
    }
}

fn is_standard_input(word: &OsStr) -> bool {
    word == "-" || word == "@-"
}

/// Reads everything, up to the limit.
fn read_limited(from: impl Read, what: &str) -> Result<Vec<u8>, CommandError> {
    let mut bytes = Vec::new();
    from.take(MAX_INPUT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CommandError::usage(format!("cannot read {what}: {error}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        return Err(CommandError::usage(format!(
            "{what} has more than the {MAX_INPUT} bytes that a call can carry"
        )));
    }
    Ok(bytes)
}

/// The content of standard input: JSON, other text, or bytes.
fn text_or_bytes(bytes: Vec<u8>) -> Result<Value, CommandError> {
    match String::from_utf8(bytes) {
        Ok(text) => json_or_text(&text, "standard input"),
        Err(other) => Ok(Value::Binary(other.into_bytes())),
    }
}

/// Parses JSON. Other text is a string, unless it begins like JSON: then it is an error.
fn json_or_text(text: &str, what: &str) -> Result<Value, CommandError> {
    let error = match serde_json::from_str(text) {
        Ok(value) => return decode_base64(value),
        Err(error) => error,
    };
    // A number that is too large must not become a string.
    let is_number = error.to_string().starts_with("number out of range");
    if text.trim_start().starts_with(['{', '[', '"']) || is_number {
        let shown: String = text.chars().take(60).collect();
        return Err(CommandError::usage(format!("{what} `{shown}` is broken JSON: {error}")).hint(
            "write a string that begins so as JSON, as in '\"[1\"', or pass it with --bytes",
        ));
    }
    Ok(text.into())
}

/// The value in a line of JSON. The error says what the line is.
pub(crate) fn value_of_line(line: &[u8]) -> Result<Value, String> {
    let text = std::str::from_utf8(line).map_err(|_| " is not UTF-8".to_owned())?;
    let value = serde_json::from_str(text).map_err(|error| {
        // The line of the error is always the first.
        let (text, column) = (error.to_string(), error.column());
        let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
        format!("{NO_JSON}: {what} (column {column})")
    })?;
    decode_base64(value).map_err(|error| format!(": {}", error.message()))
}

/// Replaces each `{"base64": …}` by its bytes.
fn decode_base64(value: Value) -> Result<Value, CommandError> {
    match value {
        Value::Map(entries) => {
            if let [(Value::String(key), Value::String(text))] = &entries[..]
                && key.as_str() == Some("base64")
            {
                let bytes = STANDARD.decode(text.as_bytes());
                return bytes.map(Value::Binary).map_err(|error| {
                    CommandError::usage(format!(
                        "what stands after \"base64\" is no base64: {error}"
                    ))
                });
            }
            let entries = entries.into_iter().map(|(key, value)| Ok((key, decode_base64(value)?)));
            entries.collect::<Result<_, _>>().map(Value::Map)
        }
        Value::Array(values) => {
            values.into_iter().map(decode_base64).collect::<Result<_, _>>().map(Value::Array)
        }
        other => Ok(other),
    }
}

/// A result as JSON. Binary data is text if it is UTF-8, and `{"base64": …}` otherwise. Infinities and NaN are
/// text. If two keys have the same text, the later one gets a number.
pub(crate) fn json(value: &Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Boolean(value) => json!(value),
        Value::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => json!(number),
            (None, number) => json!(number),
        },
        Value::F32(number) if number.is_finite() => json!(number),
        Value::F32(number) => json!(number.to_string()),
        Value::F64(number) if number.is_finite() => json!(number),
        Value::F64(number) => json!(number.to_string()),
        Value::String(text) => bytes(text.as_bytes()),
        Value::Binary(data) => bytes(data),
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Map(entries) => map(entries),
        Value::Ext(kind, data) => json!({ "extension": kind, "base64": STANDARD.encode(data) }),
    }
}

fn map(entries: &[(Value, Value)]) -> Json {
    let mut map = Map::new();
    for (number, (key, value)) in (1..).zip(entries) {
        let mut key = match json(key) {
            Json::String(text) => text,
            other => other.to_string(),
        };
        while map.contains_key(&key) {
            key = format!("{key} (entry {number})");
        }
        map.insert(key, json(value));
    }
    Json::Object(map)
}

fn bytes(data: &[u8]) -> Json {
    match std::str::from_utf8(data) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(data) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str) -> Result<Value, CommandError> {
        CallArguments { args: vec![word.into()], bytes: false }.value(OsStr::new(word))
    }

    #[test]
    fn words_are_json_or_themselves() {
        let read = |word: &str| json(&read(word).unwrap());
        assert_eq!(read("7"), json!(7));
        assert_eq!(read("word"), json!("word"));
        assert_eq!(read("\"7\""), json!("7"));
        assert_eq!(read("[1, {\"a\": null}]"), json!([1, {"a": null}]));
        assert_eq!(read("18446744073709551615"), json!(u64::MAX));
        // Words that do not begin like JSON.
        for word in ["", "nul", "1.2.3", "01234", "-", "7x", "a{", "é"] {
            assert!(word == "-" || read(word) == json!(word), "{word}");
        }
    }

    #[test]
    fn broken_json_is_an_error() {
        for word in ["{\"a\": 1", "[1,", "\"open", " [1}", "{a: 1}", "1e999", &"[".repeat(1000)] {
            let text = format!("{:?}", read(word).unwrap_err());
            assert!(text.contains("is broken JSON"), "{word}: {text}");
        }
    }

    #[test]
    fn bytes_are_read_as_they_are_printed() {
        let bytes = Value::Binary(vec![0xff, 0, 1]);
        assert_eq!(read(&json(&bytes).to_string()).unwrap(), bytes);
        let nested = read(r#"[{"base64": "/wAB"}, {"a": {"base64": ""}}]"#).unwrap();
        let empty = Value::Map(vec![("a".into(), Value::Binary(Vec::new()))]);
        assert_eq!(nested, Value::Array(vec![bytes, empty]));
        assert!(format!("{:?}", read(r#"{"base64": "?"}"#).unwrap_err()).contains("no base64"));
        // A map with such a key, whose value is not text.
        assert_eq!(json(&read(r#"{"base64": 7}"#).unwrap()), json!({"base64": 7}));
    }

    #[test]
    fn with_bytes_nothing_is_json() {
        let words =
            |word: &[u8]| CallArguments { args: vec![OsStr::from_bytes(word).into()], bytes: true };
        for word in [&b"7"[..], b"{\"a\"", b"\xff\xfe", b""] {
            assert_eq!(words(word).values().unwrap(), [Value::Binary(word.to_vec())]);
        }
    }

    #[test]
    fn a_file_is_read_up_to_what_a_call_can_carry() {
        assert!(format!("{:?}", read("@/dev/zero").unwrap_err()).contains("67108864 bytes"));
        let text = format!("{:?}", read("@/nonexistent").unwrap_err());
        assert!(text.contains("cannot read /nonexistent") && text.contains("@home"), "{text}");
        let own = read(concat!("@", env!("CARGO_MANIFEST_DIR"), "/src/values.rs")).unwrap();
        assert_eq!(own, Value::Binary(include_bytes!("values.rs").to_vec()));
    }

    #[test]
    fn what_json_does_not_have_is_shown_all_the_same() {
        assert_eq!(json(&Value::Binary(vec![0xff])), json!({"base64": "/w=="}));
        assert_eq!(json(&Value::Binary(b"text".to_vec())), json!("text"));
        assert_eq!(json(&Value::Map(vec![(7.into(), true.into())])), json!({"7": true}));
        let both = vec![(1.into(), "a".into()), ("1".into(), "b".into())];
        assert_eq!(json(&Value::Map(both)), json!({"1": "a", "1 (entry 2)": "b"}));
        let numbers = [f64::INFINITY, f64::NAN, 1.5].map(Value::F64).to_vec();
        assert_eq!(json(&Value::Array(numbers)), json!(["inf", "NaN", 1.5]));
        assert_eq!(json(&Value::F32(f32::NEG_INFINITY)), json!("-inf"));
        assert_eq!(json(&Value::Ext(5, vec![1])), json!({"extension": 5, "base64": "AQ=="}));
    }
}
