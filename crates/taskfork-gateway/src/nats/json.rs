//! Results of calls as JSON.

use serde_json::{Map, Number, Value as Json};
use taskfork::client::Value;

/// A value as JSON. Binary data is a string with one character for each byte.
///
/// # Errors
/// What JSON cannot say, as the predicate of a sentence.
pub(super) fn of(value: &Value) -> Result<Json, String> {
    Ok(match value {
        Value::Nil => Json::Null,
        Value::Boolean(value) => Json::Bool(*value),
        Value::Integer(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => return Err("has an integer that JSON does not have".to_owned()),
        },
        Value::F32(number) => float(f64::from(*number))?,
        Value::F64(number) => float(*number)?,
        Value::String(text) => match text.as_str() {
            Some(text) => Json::String(text.to_owned()),
            None => Json::String(characters(text.as_bytes())),
        },
        Value::Binary(bytes) => Json::String(characters(bytes)),
        Value::Array(values) => Json::Array(values.iter().map(of).collect::<Result<_, _>>()?),
        Value::Map(entries) => map(entries)?,
        Value::Ext(..) => return Err("has a value that JSON does not have".to_owned()),
    })
}

fn float(number: f64) -> Result<Json, String> {
    Number::from_f64(number)
        .map(Json::Number)
        .ok_or_else(|| format!("has the number {number}, which JSON lacks"))
}

fn characters(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn map(entries: &[(Value, Value)]) -> Result<Json, String> {
    let mut map = Map::new();
    for (key, value) in entries {
        let key = match of(key)? {
            Json::String(text) => text,
            other => other.to_string(),
        };
        let value = of(value)?;
        if map.contains_key(&key) {
            return Err(format!("has two keys that JSON cannot tell apart: {key:?}"));
        }
        map.insert(key, value);
    }
    Ok(Json::Object(map))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_the_json_that_means_the_same() {
        for (value, expected) in [
            (Value::Nil, json!(null)),
            (u64::MAX.into(), json!(u64::MAX)),
            (i64::MIN.into(), json!(i64::MIN)),
            (Value::F64(1.5), json!(1.5)),
            ("text".into(), json!("text")),
            (Value::Binary(vec![0x41, 0xff]), json!("A\u{ff}")),
            (Value::Array(vec![true.into(), Value::F32(0.5)]), json!([true, 0.5])),
            (Value::Map(vec![(7.into(), "a".into())]), json!({"7": "a"})),
        ] {
            assert_eq!(of(&value), Ok(expected));
        }
    }

    #[test]
    fn what_json_cannot_say_is_an_error() {
        let same = Value::Map(vec![(1.into(), Value::Nil), ("1".into(), Value::Nil)]);
        for (value, expected) in [
            (Value::F64(f64::NAN), "NaN"),
            (Value::F32(f32::INFINITY), "inf"),
            (Value::Ext(1, vec![]), "does not have"),
            (same, "two keys"),
        ] {
            let error = of(&Value::Array(vec![value])).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
