//! Limits of received values: how deep they nest, and how many elements they have. They are checked on the encoded
//! bytes, before anything is built from them.

use super::msgpack::Reader;

/// The most levels of arrays and maps in a value. At this depth the recursion of decoders needs far less than a stack
/// of 2 MiB, even without optimization.
pub(crate) const MAX_DEPTH: usize = 128;

/// A value of one byte can occupy this many in a decoded list, which grows by doubling.
const BYTES_PER_ELEMENT: usize = 8;

/// An array or a map counts as this many elements: a decoded list has a capacity of at least four.
pub(crate) const CONTAINER_COST: usize = 4;

/// The error text for a value that nests deeper than [`MAX_DEPTH`].
pub(crate) fn too_deep() -> String {
    format!("it is nested deeper than {MAX_DEPTH} levels")
}

/// The most elements of all values in a message. So the decoded values occupy at most 16 times `max_frame`.
pub(crate) fn max_elements(max_frame: usize) -> usize {
    (max_frame / BYTES_PER_ELEMENT).max(MAX_DEPTH)
}

/// The error text for values with more than [`max_elements`].
pub(crate) fn too_many(max_frame: usize) -> String {
    format!(
        "it has more than {} elements, which is one for {BYTES_PER_ELEMENT} bytes of max_frame \
         ({max_frame}): raise that, or send long lists of bytes as a Blob",
        max_elements(max_frame)
    )
}

/// Checks a sequence of encoded values against the limits for `max_frame`. Malformed bytes pass: the decoder refuses
/// them.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn check(values: &[u8], max_frame: usize) -> Result<(), String> {
    // Fewer bytes cannot exceed either limit.
    if values.len() <= MAX_DEPTH {
        return Ok(());
    }
    let most = max_elements(max_frame) as u64;
    let mut reader = Reader::new(values);
    // How many values are missing in each open array or map.
    let mut missing = [0u64; MAX_DEPTH];
    let (mut depth, mut elements) = (0, 0u64);
    loop {
        let plain = match depth {
            0 => reader.skip_single_byte_values(u64::MAX),
            _ => reader.skip_single_byte_values(missing[depth - 1]),
        };
        elements += plain;
        if depth > 0 {
            missing[depth - 1] -= plain;
        }
        while depth > 0 && missing[depth - 1] == 0 {
            depth -= 1;
        }
        if elements > most {
            return Err(too_many(max_frame));
        }
        if plain > 0 {
            continue;
        }
        let Ok(Some(inside)) = reader.enter() else { return Ok(()) };
        elements += 1;
        if depth > 0 {
            missing[depth - 1] -= 1;
        }
        if let Some(inside) = inside {
            elements += CONTAINER_COST as u64 - 1;
            if depth == MAX_DEPTH {
                return Err(too_deep());
            }
            missing[depth] = inside;
            depth += 1;
        }
        while depth > 0 && missing[depth - 1] == 0 {
            depth -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LARGE: usize = 64 << 20;

    fn nested(levels: usize, open: &[u8]) -> Vec<u8> {
        let mut out: Vec<u8> = open.repeat(levels);
        out.push(0xc0);
        out
    }

    #[test]
    fn arrays_and_maps_nest_up_to_the_limit() {
        for open in [&b"\x91"[..], b"\xdc\0\x01", b"\xdd\0\0\0\x01", b"\x81\x01", b"\xde\0\x01\xa0"]
        {
            assert_eq!(check(&nested(MAX_DEPTH, open), LARGE), Ok(()));
            let error = check(&nested(MAX_DEPTH + 1, open), LARGE).unwrap_err();
            assert_eq!(error, "it is nested deeper than 128 levels");
        }
        // An empty array is a level as well.
        let mut empty = vec![0x91; MAX_DEPTH];
        empty.push(0x90);
        assert!(check(&empty, LARGE).is_err());
        // Arrays side by side are on the same level.
        assert_eq!(check(&[0x91, 0xc0].repeat(100_000), LARGE), Ok(()));
        // A value that claims more elements than there are bytes passes here.
        assert_eq!(check(&[0xdd, 0xff, 0xff, 0xff, 0xff].repeat(MAX_DEPTH), LARGE), Ok(()));
        assert!(check(&[0xdd, 0xff, 0xff, 0xff, 0xff].repeat(MAX_DEPTH + 1), LARGE).is_err());
        let mut claims = vec![0xdd, 0xff, 0xff, 0xff, 0xff];
        claims.resize(200, 0xc0);
        assert_eq!(check(&claims, LARGE), Ok(()));
    }

    #[test]
    fn elements_are_counted_on_all_levels() {
        let list = |of: &[u8], count: u32| {
            let mut out = vec![0xdd];
            out.extend(count.to_be_bytes());
            out.extend(of.repeat(count as usize));
            out
        };
        let most = max_elements(1 << 20) as u32;
        for (of, each) in [(&b"\xc0"[..], 1), (b"\x90", 4), (b"\x81\x01\x02", 6), (b"\xa1a", 1)] {
            assert_eq!(check(&list(of, (most - 4) / each), 1 << 20), Ok(()));
            let error = check(&list(of, most / each + 1), 1 << 20).unwrap_err();
            assert!(error.contains("more than 131072 elements"), "{error}");
        }
    }

    fn value() -> impl Strategy<Value = rmpv::Value> {
        let leaf = prop_oneof![
            Just(rmpv::Value::Nil),
            any::<i64>().prop_map(Into::into),
            any::<f64>().prop_map(Into::into),
            ".{0,40}".prop_map(Into::into),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(rmpv::Value::Binary),
            (any::<i8>(), proptest::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(kind, bytes)| rmpv::Value::Ext(kind, bytes)),
        ];
        leaf.prop_recursive(8, 300, 20, |inside| {
            let pair = (inside.clone(), inside.clone());
            prop_oneof![
                proptest::collection::vec(inside, 0..20).prop_map(rmpv::Value::Array),
                proptest::collection::vec(pair, 0..10).prop_map(rmpv::Value::Map),
            ]
        })
    }

    fn count(value: &rmpv::Value) -> usize {
        match value {
            rmpv::Value::Array(list) => 4 + list.iter().map(count).sum::<usize>(),
            rmpv::Value::Map(map) => {
                4 + map.iter().map(|(key, value)| count(key) + count(value)).sum::<usize>()
            }
            _ => 1,
        }
    }

    proptest! {
        #[test]
        fn the_count_equals_the_elements_of_decoded_values(values in proptest::collection::vec(value(), 10..20)) {
            let mut encoded = Vec::new();
            for value in &values {
                rmpv::encode::write_value(&mut encoded, value).unwrap();
            }
            let elements: usize = values.iter().map(count).sum();
            if encoded.len() > MAX_DEPTH && elements > MAX_DEPTH {
                prop_assert!(check(&encoded, elements * BYTES_PER_ELEMENT).is_ok());
                prop_assert!(check(&encoded, (elements - 1) * BYTES_PER_ELEMENT).is_err());
            }
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 129..400)) {
            let _ = check(&bytes, 1000);
        }
    }
}
