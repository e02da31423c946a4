//! Reading the log of a worker within limits.

use log_defer::Message;
use rmp::Marker;
use serde::Deserialize;

use super::bounds::{self, MAX_DEPTH};

/// The longest encoded log, in bytes.
const MAX_LOG: usize = 4 << 20;

/// The most memory that a decoded log may occupy, in bytes; the default limit of a log. Small values occupy many times
/// their encoded size.
const MAX_MEMORY: usize = 16 << 20;

/// Approximate sizes of a value, of a string's allocation, and of a node of a map, in bytes. A node has room for 11
/// entries; if there are several nodes, each holds at least 5.
const VALUE: usize = 64;
const TEXT: usize = 32;
const NODE: usize = 800;
const MIN_ENTRIES: usize = 5;

pub(crate) fn read(encoded: &[u8]) -> Result<Message, String> {
    if encoded.len() > MAX_LOG {
        return Err(format!("it takes {} bytes, and the limit is {MAX_LOG}", encoded.len()));
    }
    if estimate_memory(encoded) > MAX_MEMORY {
        return Err(format!("it would occupy more than the limit of {MAX_MEMORY} bytes"));
    }
    bounds::check(encoded, MAX_LOG)?;
    let mut reader = rmp_serde::Deserializer::from_read_ref(encoded);
    reader.set_max_depth(MAX_DEPTH);
    Message::deserialize(&mut reader).map_err(|error| error.to_string())
}

/// Estimates how many bytes of memory a sequence of encoded values occupies. It needs no recursion, because the
/// contents of lists and maps follow their headers. It stops at malformed bytes.
fn estimate_memory(encoded: &[u8]) -> usize {
    let mut rest = encoded;
    let mut sum: usize = 0;
    while let Some((&first, behind)) = rest.split_first() {
        // Reads the number that a length field of this size contains.
        let number = |length: usize| {
            let bytes = behind.get(..length).unwrap_or(behind);
            bytes.iter().fold(0_usize, |number, &byte| number << 8 | usize::from(byte))
        };
        let map = |entries: usize| {
            let nodes = if entries == 0 { 0 } else { 1 + entries / MIN_ENTRIES };
            nodes.saturating_mul(NODE)
        };
        let (skipped, occupied) = match Marker::from_u8(first) {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::Reserved => (0, 0),
            Marker::True | Marker::False => (0, 0),
            Marker::U8 | Marker::I8 => (1, 0),
            Marker::U16 | Marker::I16 => (2, 0),
            Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
            Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
            Marker::FixStr(length) => (length.into(), TEXT + usize::from(length)),
            // Bytes become a list of numbers.
            Marker::Bin8 => (1 + number(1), number(1).saturating_mul(VALUE)),
            Marker::Bin16 => (2 + number(2), number(2).saturating_mul(VALUE)),
            Marker::Bin32 => (4 + number(4), number(4).saturating_mul(VALUE)),
            Marker::Str8 => (1 + number(1), TEXT + number(1)),
            Marker::Str16 => (2 + number(2), TEXT + number(2)),
            Marker::Str32 => (4 + number(4), TEXT + number(4)),
            Marker::FixArray(_) => (0, TEXT),
            Marker::Array16 => (2, TEXT),
            Marker::Array32 => (4, TEXT),
            Marker::FixMap(entries) => (0, map(entries.into())),
            Marker::Map16 => (2, map(number(2))),
            Marker::Map32 => (4, map(number(4))),
            Marker::FixExt1 => (2, 0),
            Marker::FixExt2 => (3, 0),
            Marker::FixExt4 => (5, 0),
            Marker::FixExt8 => (9, 0),
            Marker::FixExt16 => (17, 0),
            Marker::Ext8 => (2 + number(1), 0),
            Marker::Ext16 => (3 + number(2), 0),
            Marker::Ext32 => (5 + number(4), 0),
        };
        sum = sum.saturating_add(VALUE).saturating_add(occupied);
        rest = behind.get(skipped..).unwrap_or_default();
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn message(line: &[Value]) -> Vec<u8> {
        rmp_serde::to_vec_named(&json!({ "start": 1, "logs": line })).unwrap()
    }

    #[test]
    fn a_log_that_would_occupy_too_much_memory_is_refused() {
        for item in [json!({ "": null }), json!(null), json!([]), json!("ab")] {
            let mut line = vec![json!(0), json!(30)];
            line.extend(vec![item; 1_000_000]);
            let encoded = message(&[Value::Array(line)]);
            assert!(encoded.len() <= MAX_LOG);
            let error = read(&encoded).unwrap_err();
            assert!(error.contains("more than the limit of 16777216 bytes"), "{error}");
        }
    }

    #[test]
    fn usual_logs_are_read() {
        let line = json!([0.5, 30, "a text of usual length", { "key": [1, "two", null] }]);
        let encoded = message(&vec![line; 5000]);
        assert_eq!(read(&encoded).unwrap().logs.len(), 5000);
        let long = json!([0.5, 30, "x".repeat(3 << 20)]);
        assert_eq!(read(&message(&[long])).unwrap().logs.len(), 1);
    }

    #[test]
    fn keys_within_keys_do_not_grow_with_their_depth() {
        let mut encoded = b"\x82\xa5start\x01\xa4data".to_vec();
        encoded.extend([0x81; 60]);
        encoded.extend([0xc0; 61]);
        let message = read(&encoded).unwrap();
        assert!(serde_json::to_string(&message).unwrap().len() < 200);
    }

    #[test]
    fn every_byte_is_counted_even_in_malformed_values() {
        for first in 0..=u8::MAX {
            assert!(estimate_memory(&[first, 0xff, 0xff, 0xff, 0xff]) >= VALUE);
        }
        assert_eq!(estimate_memory(&[0xc4, 2, 0xc0, 0xc0, 0xc0]), 4 * VALUE);
    }
}
