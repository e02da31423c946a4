//! Options within options, and options of the unit type. MessagePack has nil for `None` and for `()`, so that `Some(None)`
//! and `Some(())` would arrive as `None`. They travel as an extension type, whose byte is the number of options around
//! the absent value.

use rmpv::ValueRef;
use serde::de::value::{
    BorrowedStrDeserializer, MapAccessDeserializer, MapDeserializer, SeqDeserializer,
};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer, Visitor};
use serde::ser::{self, Serializer};

use super::byte_slice::ByteSlice;
use super::mismatch::Mismatch;
use super::msgpack::Reader;

/// The extension type.
pub(crate) const ABSENT: i8 = 4;

/// The encoding of one byte with this type begins so.
const BEGINNING: [u8; 2] = [0xd4, ABSENT as u8];

/// Writes an absent value within this many options.
pub(super) fn serialize<S: Serializer>(options: usize, serializer: S) -> Result<S::Ok, S::Error> {
    let options = u8::try_from(options)
        .map_err(|_| ser::Error::custom("it has more than 255 options in each other"))?;
    let extension = (ABSENT, ByteSlice(&[options]));
    serializer.serialize_newtype_struct(rmp_serde::MSGPACK_EXT_STRUCT_NAME, &extension)
}

/// Whether encoded values have an option of this kind.
pub(super) fn is_in(value: &[u8]) -> bool {
    // Most values have not, and need no look at each token.
    if !value.windows(BEGINNING.len()).any(|bytes| bytes == BEGINNING) {
        return false;
    }
    let mut tokens = Reader::new(value);
    std::iter::from_fn(|| tokens.token().ok().flatten()).any(|token| token.starts_with(&BEGINNING))
}

/// Decodes a value that has such options. The decoder of MessagePack knows none.
pub(super) fn decode<'a, T: Deserialize<'a>>(mut value: &'a [u8]) -> Result<T, String> {
    let value = rmpv::decode::read_value_ref(&mut value).map_err(|error| error.to_string())?;
    T::deserialize(Nested(value)).map_err(|mismatch| mismatch.to_string())
}

struct Nested<'de>(ValueRef<'de>);

impl<'de> IntoDeserializer<'de, Mismatch> for Nested<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Nested<'de> {
    /// What is inside of an option that is present. `None` if the option is absent.
    fn inside(self) -> Result<Option<Self>, Mismatch> {
        Ok(match self.0 {
            ValueRef::Nil => None,
            // Decoders that accept an option around any value would ask for ever.
            ValueRef::Ext(ABSENT, [0]) => {
                return Err(Mismatch::custom("an absent value that is within no option"));
            }
            ValueRef::Ext(ABSENT, [1]) => Some(Self(ValueRef::Nil)),
            ValueRef::Ext(ABSENT, [options]) => {
                // The numbers are constant, because the value borrows its byte from the message.
                static NUMBERS: [u8; 256] = numbers();
                let fewer = usize::from(*options) - 1;
                Some(Self(ValueRef::Ext(ABSENT, &NUMBERS[fewer..=fewer])))
            }
            value => Some(Self(value)),
        })
    }
}

const fn numbers() -> [u8; 256] {
    let (mut numbers, mut number) = ([0; 256], 0);
    while number < numbers.len() {
        numbers[number] = number as u8;
        number += 1;
    }
    numbers
}

impl<'de> Deserializer<'de> for Nested<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            ValueRef::Array(values) => {
                visitor.visit_seq(SeqDeserializer::new(values.into_iter().map(Nested)))
            }
            ValueRef::Map(entries) => visitor.visit_map(map(entries)),
            ValueRef::Nil => visitor.visit_unit(),
            ValueRef::Boolean(value) => visitor.visit_bool(value),
            ValueRef::Integer(value) => match (value.as_u64(), value.as_i64()) {
                (Some(value), _) => visitor.visit_u64(value),
                (None, Some(value)) => visitor.visit_i64(value),
                (None, None) => Err(Mismatch::custom("an integer of more than 64 bits")),
            },
            ValueRef::F32(value) => visitor.visit_f32(value),
            ValueRef::F64(value) => visitor.visit_f64(value),
            ValueRef::String(text) => match text.into_str() {
                Some(text) => visitor.visit_borrowed_str(text),
                None => Err(Mismatch::custom("a text that is not UTF-8")),
            },
            ValueRef::Binary(bytes) => visitor.visit_borrowed_bytes(bytes),
            // Types that keep a value before they know its type ask in this way: a tagged enum, a flattened struct.
            ValueRef::Ext(ABSENT, [_]) => self.deserialize_option(visitor),
            value => value.deserialize_any(visitor).map_err(Mismatch::custom),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.inside()? {
            Some(inside) => visitor.visit_some(inside),
            None => visitor.visit_none(),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match &self.0 {
            // So it is encoded.
            ValueRef::Array(values) if values.is_empty() => visitor.visit_unit(),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match name {
            rmp_serde::MSGPACK_EXT_STRUCT_NAME => {
                self.0.deserialize_newtype_struct(name, visitor).map_err(Mismatch::custom)
            }
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.0 {
            ValueRef::Map(entries) => visitor.visit_enum(MapAccessDeserializer::new(map(entries))),
            ValueRef::String(text) => match text.into_str() {
                Some(text) => visitor.visit_enum(BorrowedStrDeserializer::new(text)),
                None => Err(Mismatch::custom("a text that is not UTF-8")),
            },
            value => value.deserialize_enum(name, variants, visitor).map_err(Mismatch::custom),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        seq tuple tuple_struct map struct identifier ignored_any
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

type Entries<'de> = Vec<(ValueRef<'de>, ValueRef<'de>)>;

fn map<'de>(
    entries: Entries<'de>,
) -> MapDeserializer<'de, impl Iterator<Item = (Nested<'de>, Nested<'de>)>, Mismatch> {
    MapDeserializer::new(entries.into_iter().map(|(key, value)| (Nested(key), Nested(value))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use proptest::prelude::*;
    use serde::de::IgnoredAny;
    use serde::{Deserialize, Serialize};

    use crate::wire::arguments::{Arguments, IntoArguments};
    use crate::wire::msgpack::Reader;
    use crate::wire::values::{ValueFormat, decode, encode_to_vec};

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Unit;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct New(Option<u8>);

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Choice {
        Unit,
        New(Option<Option<u8>>),
        Tuple(u8, Option<()>),
        Struct { inside: Option<Option<Option<String>>> },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        One { inside: Option<Option<u8>>, unit: Unit },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        tagged: Tagged,
        outer: Unit,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(i64),
        Unit(Unit),
        Absent(Option<()>),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Record {
        choices: Vec<Choice>,
        map: BTreeMap<u8, Option<Option<i64>>>,
        new: Option<New>,
        pair: (Option<Option<char>>, f64),
        text: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        address: std::net::IpAddr,
    }

    fn arrives<T: Serialize + for<'a> Deserialize<'a> + PartialEq + Clone + Debug>(value: T) {
        let encoded = encode_to_vec(&value).unwrap();
        assert_eq!(decode::<T>(&encoded, ValueFormat::MessagePack).as_ref(), Ok(&value));
        // Also in front of and behind other arguments.
        let mut encoded = Vec::new();
        (1, &value, "two", &value).encode(&mut encoded).unwrap();
        let arguments = Arguments::read(&mut Reader::new(&encoded)).unwrap();
        let decoded: (u8, T, String, T) = arguments.parse().unwrap();
        assert_eq!(decoded, (1, value.clone(), "two".to_owned(), value));
    }

    #[test]
    fn options_within_options_arrive_unchanged() {
        arrives(Some(()));
        arrives(None::<()>);
        arrives(Some(Some(())));
        arrives(Some(Unit));
        arrives(Some(None::<u8>));
        arrives(None::<Option<u8>>);
        arrives(Some(Some(3_u8)));
        arrives(Some(Some(None::<Option<()>>)));
        arrives(Some(New(None)));
        arrives(vec![Some(None), None, Some(Some(vec![None, Some(Some(1_u8))]))]);
    }

    #[test]
    fn they_arrive_beside_unit_structs_and_in_types_that_are_chosen_by_a_tag() {
        for inside in [None, Some(None), Some(Some(3))] {
            arrives((Unit, inside));
            let tagged = Tagged::One { inside, unit: Unit };
            arrives(tagged.clone());
            arrives(Some(Some(tagged.clone())));
            arrives(Flat { tagged, outer: Unit });
        }
    }

    #[test]
    fn unit_structs_arrive_in_types_that_are_chosen_by_their_form() {
        for value in [Untagged::Number(3), Untagged::Unit(Unit), Untagged::Absent(Some(()))] {
            arrives(value.clone());
            arrives(Some(value.clone()));
            arrives(vec![(value.clone(), Some(Some(value)))]);
        }
    }

    #[test]
    fn a_value_without_the_second_option_is_a_clear_error() {
        let encoded = encode_to_vec(&Some(None::<u8>)).unwrap();
        let error = decode::<Option<u8>>(&encoded, ValueFormat::MessagePack).unwrap_err();
        assert_eq!(error, "expected an integer, got nil");
    }

    /// Types that accept an option around any value must not ask for ever.
    #[test]
    fn an_absent_value_within_no_option_is_an_error() {
        let encoded = [0x92, 0xd4, super::ABSENT as u8, 0, 0xa1, b'a'];
        let expected = Err("an absent value that is within no option".to_owned());
        let decoded = decode::<(rmpv::Value, u8)>(&encoded, ValueFormat::MessagePack);
        assert_eq!(decoded.map(|_| ()), expected);
        let decoded = decode::<(IgnoredAny, u8)>(&encoded, ValueFormat::MessagePack);
        assert_eq!(decoded.map(|_| ()), expected);
        let decoded = decode::<(Option<u8>, String)>(&encoded, ValueFormat::MessagePack);
        assert_eq!(decoded.map(|_| ()), expected);
        let arguments = Arguments::read(&mut Reader::new(&encoded)).unwrap();
        let error = arguments.parse::<(rmpv::Value, u8)>().unwrap_err().to_string();
        assert_eq!(error, "argument 1: an absent value that is within no option");
    }

    #[test]
    fn a_type_of_any_values_takes_the_most_options_as_nil() {
        let decoded = super::decode::<rmpv::Value>(&[0xd4, super::ABSENT as u8, 255]);
        assert_eq!(decoded, Ok(rmpv::Value::Nil));
    }

    fn options() -> impl Strategy<Value = Option<Option<u8>>> {
        proptest::option::of(proptest::option::of(any::<u8>()))
    }

    fn choices() -> impl Strategy<Value = Choice> {
        let text = proptest::option::of(proptest::option::of(proptest::option::of(".{0,3}")));
        prop_oneof![
            Just(Choice::Unit),
            options().prop_map(Choice::New),
            (any::<u8>(), proptest::option::of(Just(()))).prop_map(|(a, b)| Choice::Tuple(a, b)),
            text.prop_map(|inside| Choice::Struct { inside }),
        ]
    }

    proptest! {
        #[test]
        fn all_values_arrive_unchanged(
            choices in proptest::collection::vec(choices(), 0..6),
            map in proptest::collection::btree_map(
                any::<u8>(),
                proptest::option::of(proptest::option::of(any::<i64>())),
                0..4,
            ),
            new in proptest::option::of(proptest::option::of(any::<u8>()).prop_map(New)),
            pair in (proptest::option::of(proptest::option::of(any::<char>())), -1e9..1e9),
            bytes in proptest::collection::vec(any::<u8>(), 0..20),
            address in any::<std::net::IpAddr>(),
        ) {
            let text = "text".to_owned();
            arrives(Record { choices, map, new, pair, text, bytes, address });
        }

        #[test]
        fn no_bytes_cause_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0_usize..40) {
            let at = at.min(bytes.len());
            bytes.splice(at..at, [0xd4, 4]);
            let _ = super::is_in(&bytes);
            let _ = super::decode::<Option<Option<u8>>>(&bytes);
            let _ = super::decode::<Record>(&bytes);
            let _ = super::decode::<rmpv::Value>(&bytes);
            let _ = super::decode::<IgnoredAny>(&bytes);
        }
    }
}
