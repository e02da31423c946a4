//! Arguments and results of calls as JSON.

use std::io::Read;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json, json};
use taskfork::Value;

use crate::failure::Failure;

/// Reads arguments: JSON, or a word that stands for itself; `-` is what standard input has, as JSON
/// if it is, or else as text or bytes.
pub(crate) fn arguments(words: &[String]) -> Result<Vec<Value>, Failure> {
    if words.iter().filter(|word| *word == "-").count() > 1 {
        return Err(Failure::usage("only one argument can be read from standard input")
            .hint("give the others as JSON"));
    }
    words.iter().map(|word| argument(word)).collect()
}

fn argument(word: &str) -> Result<Value, Failure> {
    if word != "-" {
        return Ok(serde_json::from_str(word).unwrap_or_else(|_| word.into()));
    }
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("cannot read standard input: {error}")))?;
    Ok(match serde_json::from_slice(&bytes) {
        Ok(value) => value,
        Err(_) => match String::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(other) => Value::Binary(other.into_bytes()),
        },
    })
}

/// A result as JSON. Binary data is text if it is UTF-8, and `{"base64": …}` otherwise. Infinities and NaN are
/// text. Of two keys that are the same text the later is told apart by its number.
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

    #[test]
    fn words_are_json_or_themselves() {
        let read = |word: &str| json(&argument(word).unwrap_or(Value::Nil));
        assert_eq!(read("7"), json!(7));
        assert_eq!(read("word"), json!("word"));
        assert_eq!(read("\"7\""), json!("7"));
        assert_eq!(read("[1, {\"a\": null}]"), json!([1, {"a": null}]));
        assert_eq!(read("18446744073709551615"), json!(u64::MAX));
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
