//! Decoding values that were JSON first. JSON has no binary data: a string with one character for each byte represents
//! it. Only the type that is decoded shows which strings these are.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

thread_local! {
    /// Whether the values being decoded were JSON first.
    static IS_JSON: Cell<bool> = const { Cell::new(false) };
}

/// Runs `decode`; [`blob_bytes`] treats strings as JSON meanwhile.
pub(super) fn with_json_strings<T>(decode: impl FnOnce() -> T) -> T {
    let _restore = Restore(IS_JSON.replace(true));
    decode()
}

struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        IS_JSON.set(self.0);
    }
}

/// The bytes of a blob that is represented by a string. [`FromJson`] does not see this case if serde has buffered the
/// value.
pub(crate) fn blob_bytes<E: Error>(text: &str) -> Result<Vec<u8>, E> {
    match IS_JSON.get() {
        true => bytes(text),
        false => Ok(text.as_bytes().to_vec()),
    }
}

/// Wraps a part of a decoder: where a type asks for bytes, strings are decoded to bytes.
pub(super) struct FromJson<T>(pub(super) T);

/// Forwards values to `visitor`. If it wants bytes, strings become bytes first.
struct JsonVisitor<V> {
    visitor: V,
    wants_bytes: bool,
}

fn json_visitor<V>(visitor: V) -> JsonVisitor<V> {
    JsonVisitor { visitor, wants_bytes: false }
}

/// The bytes that the characters of a string represent.
fn bytes<E: Error>(text: &str) -> Result<Vec<u8>, E> {
    let mut bytes = Vec::with_capacity(text.len());
    for (index, character) in text.chars().enumerate() {
        bytes.push(u8::try_from(character).map_err(|_| {
            E::custom(format!(
                "binary data is a string of one character for each byte, and character {} of this string is \
                 U+{:04X}, which is above U+00FF",
                index + 1,
                u32::from(character)
            ))
        })?);
    }
    Ok(bytes)
}

macro_rules! deserialize {
    ($($method:ident($($arg:ident: $type:ty),*);)+) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($arg,)* json_visitor(visitor))
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for FromJson<D> {
    type Error = D::Error;

    deserialize! {
        deserialize_any();
        deserialize_bool();
        deserialize_i8();
        deserialize_i16();
        deserialize_i32();
        deserialize_i64();
        deserialize_i128();
        deserialize_u8();
        deserialize_u16();
        deserialize_u32();
        deserialize_u64();
        deserialize_u128();
        deserialize_f32();
        deserialize_f64();
        deserialize_char();
        deserialize_str();
        deserialize_string();
        deserialize_option();
        deserialize_unit();
        deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct(name: &'static str);
        deserialize_seq();
        deserialize_tuple(length: usize);
        deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_map();
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier();
        deserialize_ignored_any();
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_bytes(JsonVisitor { visitor, wants_bytes: true })
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_byte_buf(JsonVisitor { visitor, wants_bytes: true })
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident $type:ty;)+) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.visitor.$method(value)
        }
    )+};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for JsonVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(out)
    }

    visit! {
        visit_bool bool;
        visit_i8 i8;
        visit_i16 i16;
        visit_i32 i32;
        visit_i64 i64;
        visit_i128 i128;
        visit_u8 u8;
        visit_u16 u16;
        visit_u32 u32;
        visit_u64 u64;
        visit_u128 u128;
        visit_f32 f32;
        visit_f64 f64;
        visit_char char;
        visit_bytes &[u8];
        visit_borrowed_bytes &'de [u8];
        visit_byte_buf Vec<u8>;
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<V::Value, E> {
        match self.wants_bytes {
            true if text.is_ascii() => self.visitor.visit_bytes(text.as_bytes()),
            true => self.visitor.visit_byte_buf(bytes(text)?),
            false => self.visitor.visit_str(text),
        }
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<V::Value, E> {
        match self.wants_bytes {
            // ASCII has the same bytes, and needs no copy.
            true if text.is_ascii() => self.visitor.visit_borrowed_bytes(text.as_bytes()),
            true => self.visitor.visit_byte_buf(bytes(text)?),
            false => self.visitor.visit_borrowed_str(text),
        }
    }

    fn visit_string<E: Error>(self, text: String) -> Result<V::Value, E> {
        match self.wants_bytes {
            true if text.is_ascii() => self.visitor.visit_byte_buf(text.into_bytes()),
            true => self.visitor.visit_byte_buf(bytes(&text)?),
            false => self.visitor.visit_string(text),
        }
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.visitor.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_some(FromJson(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.visitor.visit_newtype_struct(FromJson(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(FromJson(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(FromJson(entries))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_enum(FromJson(variant))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for FromJson<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(FromJson(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for FromJson<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(FromJson(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for FromJson<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(FromJson(seed))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(FromJson(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for FromJson<A> {
    type Error = A::Error;
    type Variant = FromJson<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, variant) = self.0.variant_seed(FromJson(seed))?;
        Ok((name, FromJson(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for FromJson<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(FromJson(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, json_visitor(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, json_visitor(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::BTreeMap;
    use std::ffi::CString;

    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};
    use serde_bytes::{ByteArray, ByteBuf};

    use crate::blob::Blob;
    use crate::wire::values::{ValueFormat, decode};

    fn decoded<T: for<'de> Deserialize<'de>>(value: impl Serialize) -> Result<T, String> {
        decode(&rmp_serde::to_vec_named(&value).unwrap(), ValueFormat::Json)
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Shape {
        Plain(ByteBuf),
        Pair(ByteBuf, String),
        Fields { bytes: ByteBuf, text: String },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapped(#[serde(with = "serde_bytes")] Vec<u8>);

    #[derive(Debug, PartialEq, Deserialize)]
    struct All {
        #[serde(with = "serde_bytes")]
        list: Vec<u8>,
        #[serde(with = "serde_bytes")]
        optional: Option<Vec<u8>>,
        array: ByteArray<2>,
        wrapped: Wrapped,
        c: CString,
        by_key: BTreeMap<ByteBuf, Vec<(ByteBuf, String)>>,
        text: String,
        value: rmpv::Value,
        letter: char,
    }

    #[test]
    fn strings_become_bytes_wherever_a_type_asks_for_bytes() {
        let all = serde_json::json!({
            "list": "\u{e9}", "optional": "\u{80}", "array": "\u{0}\u{e9}",
            "wrapped": "\u{e9}", "c": "\u{e9}", "by_key": {"\u{e9}": [["\u{e8}", "\u{e8}"]]},
            "text": "\u{e9}", "value": "\u{e9}", "letter": "\u{e9}",
        });
        let key = BTreeMap::from([(
            ByteBuf::from([0xe9]),
            vec![(ByteBuf::from([0xe8]), "\u{e8}".to_owned())],
        )]);
        assert_eq!(
            decoded::<All>(all).unwrap(),
            All {
                list: vec![0xe9],
                optional: Some(vec![0x80]),
                array: ByteArray::new([0, 0xe9]),
                wrapped: Wrapped(vec![0xe9]),
                c: CString::new([0xe9]).unwrap(),
                by_key: key,
                text: "\u{e9}".to_owned(),
                value: "\u{e9}".into(),
                letter: '\u{e9}',
            }
        );
        for (json, shape) in [
            (serde_json::json!({"Plain": "\u{e9}"}), Shape::Plain(ByteBuf::from([0xe9]))),
            (
                serde_json::json!({"Pair": ["\u{e9}", "\u{e9}"]}),
                Shape::Pair(ByteBuf::from([0xe9]), "\u{e9}".to_owned()),
            ),
            (
                serde_json::json!({"Fields": {"bytes": "\u{e9}", "text": "\u{e9}"}}),
                Shape::Fields { bytes: ByteBuf::from([0xe9]), text: "\u{e9}".to_owned() },
            ),
        ] {
            assert_eq!(decoded::<Shape>(json).unwrap(), shape);
        }
    }

    #[test]
    fn borrowed_bytes_are_copied_only_if_they_differ() {
        #[derive(Deserialize)]
        struct Borrowed<'a>(#[serde(borrow, with = "serde_bytes")] Cow<'a, [u8]>);
        for (text, bytes, is_borrowed) in [("abc", &b"abc"[..], true), ("\u{ff}", b"\xff", false)] {
            let encoded = rmp_serde::to_vec(text).unwrap();
            let Borrowed(found) = decode(&encoded, ValueFormat::Json).unwrap();
            assert_eq!((&*found, matches!(found, Cow::Borrowed(_))), (bytes, is_borrowed));
        }
    }

    #[test]
    fn blobs_are_decoded_where_serde_buffers_values() {
        #[derive(Debug, Deserialize)]
        #[serde(untagged)]
        enum Untagged {
            Blob { blob: Blob },
        }
        let value = BTreeMap::from([("blob", "\u{e9}")]);
        let Untagged::Blob { blob } = decoded(&value).unwrap();
        assert_eq!(&blob[..], [0xe9]);
        let encoded = rmp_serde::to_vec_named(&value).unwrap();
        let Untagged::Blob { blob } = decode(&encoded, ValueFormat::MessagePack).unwrap();
        assert_eq!(&blob[..], [0xc3, 0xa9]);
    }

    #[test]
    fn a_character_above_ff_is_an_error() {
        let error = decoded::<ByteBuf>("ab\u{141}").unwrap_err();
        assert!(error.contains("character 3 of this string is U+0141"), "{error}");
        for error in [
            decoded::<Blob>("\u{1f600}").map(drop).unwrap_err(),
            decoded::<Vec<ByteBuf>>(["\u{100}"]).map(drop).unwrap_err(),
            decoded::<BTreeMap<ByteBuf, u8>>(BTreeMap::from([("\u{100}", 1)]))
                .map(drop)
                .unwrap_err(),
        ] {
            assert!(error.contains("which is above U+00FF"), "{error}");
        }
    }

    #[test]
    fn native_strings_keep_their_bytes() {
        let encoded = rmp_serde::to_vec("\u{e9}").unwrap();
        assert_eq!(decode::<ByteBuf>(&encoded, ValueFormat::MessagePack).unwrap(), [0xc3, 0xa9]);
    }

    proptest! {
        #[test]
        fn any_bytes_survive_a_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let text: String = bytes.iter().map(|&byte| char::from(byte)).collect();
            prop_assert_eq!(&decoded::<ByteBuf>(&text).unwrap(), &bytes);
            prop_assert_eq!(&decoded::<Blob>(&text).unwrap()[..], &bytes);
            prop_assert_eq!(decoded::<String>(&text).unwrap(), text);
        }
    }

    #[test]
    fn values_of_the_greatest_depth_are_decoded_on_a_small_stack() {
        #[derive(Debug, Serialize, Deserialize)]
        enum Tree {
            Leaf,
            Inside { tree: Box<Tree> },
        }
        let run = || {
            let tree = (0..64).fold(Tree::Leaf, |tree, _| Tree::Inside { tree: Box::new(tree) });
            decoded::<Tree>(&tree).unwrap();
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(2 << 20);
            thread.spawn_scoped(scope, run).unwrap().join().unwrap();
        });
    }
}
