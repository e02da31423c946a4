//! Writing MessagePack as JSON. Binary data becomes a string with one character for each byte.

use std::borrow::Cow;
use std::collections::HashSet;

use rmpv::ValueRef;
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};

use crate::wire::bounds;
use crate::wire::msgpack::Reader;
use crate::wire::nested_option;

/// Appends the first MessagePack value of `encoded` as JSON, and removes it from `encoded`.
pub(super) fn write(encoded: &mut &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let mut reader = Reader::new(encoded);
    let mut value = reader.value().map_err(|error| error.to_string())?;
    bounds::check(value, usize::MAX)?;
    *encoded = reader.rest();
    let value = rmpv::decode::read_value_ref(&mut value).map_err(|error| error.to_string())?;
    serde_json::to_writer(out, &Json(&value)).map_err(|error| error.to_string())
}

/// A value whose depth has been checked.
struct Json<'a>(&'a ValueRef<'a>);

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ValueRef::Nil => serializer.serialize_unit(),
            ValueRef::Boolean(value) => serializer.serialize_bool(*value),
            ValueRef::Integer(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => serializer.serialize_u64(value),
                (None, Some(value)) => serializer.serialize_i64(value),
                (None, None) => Err(S::Error::custom("an integer of more than 64 bits")),
            },
            ValueRef::F32(value) => float(f64::from(*value), serializer),
            ValueRef::F64(value) => float(*value, serializer),
            ValueRef::String(text) => match text.as_str() {
                Some(text) => serializer.serialize_str(text),
                None => serializer.serialize_str(&characters(text.as_bytes())),
            },
            ValueRef::Binary(bytes) => serializer.serialize_str(&characters(bytes)),
            ValueRef::Array(values) => {
                let mut list = serializer.serialize_seq(Some(values.len()))?;
                values.iter().try_for_each(|value| list.serialize_element(&Json(value)))?;
                list.end()
            }
            ValueRef::Map(entries) => {
                check_keys(entries).map_err(S::Error::custom)?;
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(&Json(key), &Json(value))?;
                }
                map.end()
            }
            // An absent value within options.
            ValueRef::Ext(nested_option::ABSENT, _) => serializer.serialize_unit(),
            ValueRef::Ext(..) => {
                Err(S::Error::custom("an open file or another value that JSON does not have"))
            }
        }
    }
}

fn float<S: Serializer>(value: f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() {
        return serializer.serialize_f64(value);
    }
    Err(S::Error::custom(format!("{value} is no number in JSON")))
}

/// Fails if two keys of a map become the same string: JSON has only strings as keys.
fn check_keys(entries: &[(ValueRef<'_>, ValueRef<'_>)]) -> Result<(), String> {
    let mut keys = HashSet::with_capacity(if entries.len() > 1 { entries.len() } else { 0 });
    for (key, _) in entries.iter().filter(|_| entries.len() > 1) {
        if let Some(repeated) = keys.replace(key_text(key)).flatten() {
            return Err(format!(
                "two keys of a map are both {:?} in JSON, which has strings as keys only",
                repeated.chars().take(100).collect::<String>()
            ));
        }
    }
    Ok(())
}

/// The string that a key becomes; `None` for a key that JSON cannot express, which the serializer refuses.
fn key_text<'a>(key: &'a ValueRef<'_>) -> Option<Cow<'a, str>> {
    match key {
        ValueRef::String(text) => match text.as_str() {
            Some(text) => Some(text.into()),
            None => Some(characters(text.as_bytes()).into()),
        },
        ValueRef::Binary(bytes) => Some(characters(bytes).into()),
        ValueRef::Boolean(_) | ValueRef::Integer(_) | ValueRef::F32(_) | ValueRef::F64(_) => {
            serde_json::to_string(&Json(key)).ok().map(Cow::from)
        }
        _ => None,
    }
}

fn characters(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use super::super::parse::read;
    use super::*;

    fn there_and_back(json: &str) -> String {
        let mut encoded = Vec::new();
        rmpv::encode::write_value(&mut encoded, &read(json.as_bytes()).unwrap()).unwrap();
        let mut out = Vec::new();
        write(&mut &encoded[..], &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn numbers_of_64_bits_and_strings_are_exact(
            signed in any::<i64>(),
            unsigned in any::<u64>(),
            float in any::<f64>().prop_filter("numbers", |float| float.is_finite()),
            text in any::<String>(),
        ) {
            for json in [
                signed.to_string(),
                unsigned.to_string(),
                serde_json::to_string(&float).unwrap(),
                serde_json::to_string(&text).unwrap(),
            ] {
                prop_assert_eq!(there_and_back(&json), json);
            }
        }
    }

    #[test]
    fn integers_of_more_than_64_bits_are_strings() {
        let json = r#"[18446744073709551615,18446744073709551616,-9223372036854775808,
            -9223372036854775809,1e30,"18446744073709551616","\"99999999999999999999"]"#;
        assert_eq!(
            there_and_back(json),
            r#"[18446744073709551615,"18446744073709551616",-9223372036854775808,"-9223372036854775809",1e+30,"18446744073709551616","\"99999999999999999999"]"#
        );
    }

    #[test]
    fn escapes_and_characters_beyond_the_basic_plane_are_exact() {
        assert_eq!(there_and_back(r#""\u00e9\ud83d\ude00\u0001\n""#), "\"é😀\\u0001\\n\"");
        for wrong in [&b"\"\xff\""[..], br#""\ud83d""#, b"\"\n\"", b"[1,]", b"01", b"nan"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn values_that_json_cannot_express_are_converted_or_refused() {
        let json = |value: Value| {
            let (mut encoded, mut out) = (Vec::new(), Vec::new());
            rmpv::encode::write_value(&mut encoded, &value).unwrap();
            write(&mut &encoded[..], &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        assert_eq!(json(Value::Binary(vec![b'a', 0xe9])).unwrap(), "\"aé\"");
        assert_eq!(json(Value::Map(vec![(7.into(), true.into())])).unwrap(), r#"{"7":true}"#);
        assert!(json(Value::F64(f64::NAN)).unwrap_err().contains("NaN is no number"));
        assert!(json(Value::Ext(1, vec![0])).unwrap_err().contains("open file"));
        assert_eq!(json(Value::Ext(4, vec![1])).unwrap(), "null");
        for (key, other) in [
            (Value::from(1), Value::from("1")),
            (true.into(), "true".into()),
            (Value::Binary(vec![0xe9]), "é".into()),
            (1.5.into(), Value::F32(1.5)),
            ("a".into(), "a".into()),
        ] {
            let map =
                |keys: [&Value; 2]| Value::Map(keys.map(|key| (key.clone(), Value::Nil)).to_vec());
            let error = json(Value::Array(vec![map([&key, &other])])).unwrap_err();
            assert!(error.starts_with("two keys of a map are both"), "{error}");
            assert!(json(map([&key, &"other".into()])).is_ok());
        }
        let list = Value::Array(vec![]);
        assert!(json(Value::Map(vec![(list, Value::Nil)])).unwrap_err().contains("key must be"));
        let nested = |levels| (0..levels).fold(Value::Nil, |inside, _| Value::Array(vec![inside]));
        assert_eq!(json(nested(128)).map(|json| json.len()), Ok(2 * 128 + 4));
        assert!(json(nested(129)).unwrap_err().contains("deeper than 128"));
    }
}
