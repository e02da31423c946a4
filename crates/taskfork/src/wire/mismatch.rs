//! Says why a value does not have the type that a program asked for.
//!
//! The decoder of MessagePack names only the marker that it found. After it has failed, the value is decoded once more
//! through the wrappers in this file. They name the field, the type that was expected, and the type that came.

use std::cell::RefCell;
use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, Expected, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};

use super::msgpack::Reader;
use super::reference;

/// The most characters of a peer's text that a message repeats.
const MAX_QUOTED: usize = 64;

/// Describes why `value` could not be decoded as a `T`. `error` is the decoder's own text.
pub(super) fn describe<'a, T: Deserialize<'a>>(
    value: &'a [u8],
    error: &rmp_serde::decode::Error,
) -> String {
    // The first attempt has taken attachments, which a second one would not find.
    if !has_references(value) {
        let mut decoder = rmp_serde::Deserializer::from_read_ref(value);
        if let Err(mismatch) = T::deserialize(Explained { inner: &mut decoder, key: None }) {
            return mismatch.0;
        }
    }
    error.to_string()
}

/// Whether the value refers to attachments of its message.
fn has_references(value: &[u8]) -> bool {
    let mut tokens = Reader::new(value);
    std::iter::from_fn(|| tokens.token().ok().flatten())
        .any(|token| reference::parse(token).is_some())
}

/// Why a value cannot be decoded.
#[derive(Debug)]
pub(super) struct Mismatch(String);

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Mismatch {}

impl Error for Mismatch {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = match &*expected.to_string() {
            name if is_integer(name) => "an integer".to_owned(),
            name => general_name(name).to_owned(),
        };
        Self(format!("expected {expected}, got {}", name_of(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = match &*expected.to_string() {
            name if is_integer(name) => format!("an integer of the type {name}"),
            name => general_name(name).to_owned(),
        };
        match found {
            Unexpected::Str(text) => Self(format!("expected {expected}, got {:?}", quoted(text))),
            found => Self(format!("expected {expected}, got {}", name_of(found))),
        }
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        Self(format!("expected {expected}, got {length} elements"))
    }
}

fn is_integer(name: &str) -> bool {
    matches!(
        name,
        "i8" | "i16"
            | "i32"
            | "i64"
            | "i128"
            | "isize"
            | "u8"
            | "u16"
            | "u32"
            | "u64"
            | "u128"
            | "usize"
    )
}

/// What a type of Rust is called in any language.
fn general_name(expected: &str) -> &str {
    match expected {
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "byte array" | "a byte array" => "bytes",
        "unit" => "nil",
        other => other,
    }
}

fn name_of(found: Unexpected<'_>) -> String {
    let name = match found {
        Unexpected::Unsigned(number) => return format!("the integer {number}"),
        Unexpected::Signed(number) => return format!("the integer {number}"),
        Unexpected::Float(number) => return format!("the number {number:?}"),
        Unexpected::Bool(_) => "a boolean",
        Unexpected::Char(_) | Unexpected::Str(_) => "a string",
        Unexpected::Bytes(_) => "bytes",
        Unexpected::Unit | Unexpected::Option => "nil",
        Unexpected::NewtypeStruct => "a blob or an open file",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        other => return other.to_string(),
    };
    name.to_owned()
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Wraps a part of a decoder so that its errors are a [`Mismatch`]. A wrapped key also stores its text in `key`.
struct Explained<'k, T> {
    inner: T,
    key: Option<&'k RefCell<String>>,
}

fn explained<'k, T>(inner: T) -> Explained<'k, T> {
    Explained { inner, key: None }
}

macro_rules! deserialize {
    ($($method:ident => $inner:ident($($arg:ident: $type:ty),*);)+) => {$(
        fn $method<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, Mismatch> {
            let visitor = Explained { inner: visitor, key: self.key };
            self.inner.$inner($($arg,)* visitor).map_err(Mismatch::custom)
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Explained<'_, D> {
    type Error = Mismatch;

    // The decoder itself refuses a marker that is no number. The visitor does it with both types in its text.
    deserialize! {
        deserialize_any => deserialize_any();
        deserialize_bool => deserialize_any();
        deserialize_i8 => deserialize_any();
        deserialize_i16 => deserialize_any();
        deserialize_i32 => deserialize_any();
        deserialize_i64 => deserialize_any();
        deserialize_u8 => deserialize_any();
        deserialize_u16 => deserialize_any();
        deserialize_u32 => deserialize_any();
        deserialize_u64 => deserialize_any();
        deserialize_f32 => deserialize_any();
        deserialize_f64 => deserialize_any();
        deserialize_i128 => deserialize_i128();
        deserialize_u128 => deserialize_u128();
        deserialize_char => deserialize_char();
        deserialize_str => deserialize_str();
        deserialize_string => deserialize_string();
        deserialize_bytes => deserialize_bytes();
        deserialize_byte_buf => deserialize_byte_buf();
        deserialize_option => deserialize_option();
        deserialize_unit => deserialize_unit();
        deserialize_unit_struct => deserialize_unit_struct(name: &'static str);
        deserialize_newtype_struct => deserialize_newtype_struct(name: &'static str);
        deserialize_seq => deserialize_seq();
        deserialize_tuple => deserialize_tuple(length: usize);
        deserialize_tuple_struct => deserialize_tuple_struct(name: &'static str, length: usize);
        deserialize_map => deserialize_map();
        deserialize_struct =>
            deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum =>
            deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        deserialize_identifier => deserialize_identifier();
        deserialize_ignored_any => deserialize_ignored_any();
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<V> Explained<'_, V> {
    fn record_key(&self, text: &str) {
        if let Some(key) = self.key {
            *key.borrow_mut() = quoted(text);
        }
    }
}

macro_rules! visit {
    ($($method:ident $type:ty;)+) => {$(
        fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value).map_err(|mismatch: Mismatch| E::custom(mismatch))
        }
    )+};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Explained<'_, V> {
    type Value = V::Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(out)
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
        self.record_key(text);
        self.inner.visit_str(text).map_err(|mismatch: Mismatch| E::custom(mismatch))
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<V::Value, E> {
        self.record_key(text);
        self.inner.visit_borrowed_str(text).map_err(|mismatch: Mismatch| E::custom(mismatch))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<V::Value, E> {
        self.record_key(&text);
        self.inner.visit_string(text).map_err(|mismatch: Mismatch| E::custom(mismatch))
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none().map_err(|mismatch: Mismatch| E::custom(mismatch))
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit().map_err(|mismatch: Mismatch| E::custom(mismatch))
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(explained(value)).map_err(D::Error::custom)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(explained(value)).map_err(D::Error::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, values: A) -> Result<V::Value, A::Error> {
        let values = Elements { inner: values, count: 0 };
        self.inner.visit_seq(values).map_err(A::Error::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let entries = Entries { inner: entries, key: RefCell::default() };
        self.inner.visit_map(entries).map_err(A::Error::custom)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(explained(variant)).map_err(A::Error::custom)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Explained<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let deserializer = Explained { inner: deserializer, key: self.key };
        self.inner.deserialize(deserializer).map_err(D::Error::custom)
    }
}

/// The elements of a list, counted for messages.
struct Elements<A> {
    inner: A,
    count: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Elements<A> {
    type Error = Mismatch;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Mismatch> {
        self.count += 1;
        let element = self.inner.next_element_seed(explained(seed));
        element.map_err(|error| Mismatch(format!("element {}: {error}", self.count)))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// The entries of a map or a struct, with the last key for messages.
struct Entries<A> {
    inner: A,
    key: RefCell<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<A> {
    type Error = Mismatch;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Mismatch> {
        self.key.get_mut().clear();
        let seed = Explained { inner: seed, key: Some(&self.key) };
        self.inner.next_key_seed(seed).map_err(Mismatch::custom)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Mismatch> {
        let value = self.inner.next_value_seed(explained(seed));
        let key = self.key.get_mut();
        value.map_err(|error| match key.is_empty() {
            true => Mismatch::custom(error),
            false => Mismatch(format!("field `{key}`: {error}")),
        })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'k, A: EnumAccess<'de>> EnumAccess<'de> for Explained<'k, A> {
    type Error = Mismatch;
    type Variant = Explained<'k, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), Mismatch> {
        let (name, variant) = self.inner.variant_seed(explained(seed)).map_err(Mismatch::custom)?;
        Ok((name, explained(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Explained<'_, A> {
    type Error = Mismatch;

    fn unit_variant(self) -> Result<(), Mismatch> {
        self.inner.unit_variant().map_err(Mismatch::custom)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Mismatch> {
        self.inner.newtype_variant_seed(explained(seed)).map_err(Mismatch::custom)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.inner.tuple_variant(length, explained(visitor)).map_err(Mismatch::custom)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        self.inner.struct_variant(fields, explained(visitor)).map_err(Mismatch::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_bytes::ByteBuf;

    use crate::wire::values::{ValueFormat, decode, encode_to_vec};

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the fields are only decoded")]
    struct Image {
        width: u8,
        tags: Vec<String>,
        scale: Option<f64>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the fields are only decoded")]
    enum Shape {
        Circle(u32),
        Point { x: i64 },
    }

    /// Types that contain themselves: the wrappers must not make a new type at each level.
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the fields are only decoded")]
    struct Tree {
        name: String,
        first: Option<Box<Tree>>,
        others: Vec<Tree>,
        kind: Kind,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "the fields are only decoded")]
    enum Kind {
        Leaf,
        Inner(BTreeMap<String, Tree>),
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[expect(dead_code, reason = "the fields are only decoded")]
    enum Json {
        Number(f64),
        List(Vec<Json>),
        Map(BTreeMap<String, Json>),
    }

    /// The text is the same for values that were JSON first.
    #[track_caller]
    fn check<T: for<'de> Deserialize<'de>>(value: impl Serialize, expected: &str) {
        let encoded = encode_to_vec(&value).unwrap();
        for format in [ValueFormat::MessagePack, ValueFormat::Json] {
            let error = decode::<T>(&encoded, format).map(drop).unwrap_err();
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_plain_value_of_another_type_is_named_with_the_expected_type() {
        check::<i64>("x", "expected an integer, got a string");
        check::<u16>(1.5, "expected an integer, got the number 1.5");
        check::<u8>(300, "expected an integer of the type u8, got the integer 300");
        check::<u64>(-1, "expected an integer of the type u64, got the integer -1");
        check::<f64>(true, "expected a number, got a boolean");
        check::<bool>([1], "expected a boolean, got a list");
        check::<String>(7, "expected a string, got the integer 7");
        check::<ByteBuf>(7, "expected bytes, got the integer 7");
        check::<i64>((), "expected an integer, got nil");
        check::<i64>(ByteBuf::from([1]), "expected an integer, got bytes");
        check::<Vec<u8>>(BTreeMap::from([("a", 1)]), "expected a list, got a map");
        check::<char>("xy", "expected a character, got \"xy\"");
    }

    #[test]
    fn types_that_contain_themselves_are_explained() {
        let leaf = serde_json::json!({"name": "a", "first": null, "others": [], "kind": "Leaf"});
        let wrong = serde_json::json!({"name": 7, "first": null, "others": [], "kind": "Leaf"});
        let tree = |first: &serde_json::Value,
                    other: &serde_json::Value,
                    inner: &serde_json::Value| {
            serde_json::json!({
                "name": "top", "first": first, "others": [leaf, other], "kind": {"Inner": {"key": inner}},
            })
        };
        let expected = "expected a string, got the integer 7";
        check::<Tree>(
            tree(&wrong, &leaf, &leaf),
            &format!("field `first`: field `name`: {expected}"),
        );
        check::<Tree>(
            tree(&leaf, &wrong, &leaf),
            &format!("field `others`: element 2: field `name`: {expected}"),
        );
        check::<Tree>(
            tree(&leaf, &leaf, &wrong),
            &format!("field `kind`: field `key`: field `name`: {expected}"),
        );
        check::<Json>([[true]], "data did not match any variant of untagged enum Json");
    }

    #[test]
    fn the_place_inside_of_a_value_is_named() {
        let image = |width: serde_json::Value, tags: serde_json::Value, scale| serde_json::json!({"width": width, "tags": tags, "scale": scale});
        let (one, none) = (serde_json::json!(1), serde_json::json!(null));
        check::<Image>(
            image("x".into(), serde_json::json!([]), none.clone()),
            "field `width`: expected an integer, got a string",
        );
        check::<Image>(
            image(one.clone(), serde_json::json!(["a", 2]), none),
            "field `tags`: element 2: expected a string, got the integer 2",
        );
        check::<Image>(
            image(one, serde_json::json!([]), "x".into()),
            "field `scale`: expected a number, got a string",
        );
        check::<Image>(BTreeMap::from([("width", 1)]), "missing field `tags`");
        check::<Shape>(BTreeMap::from([("Circle", "x")]), "expected an integer, got a string");
        check::<Shape>(
            BTreeMap::from([("Point", BTreeMap::from([("x", "y")]))]),
            "field `x`: expected an integer, got a string",
        );
        check::<Shape>("Square", "unknown variant `Square`, expected `Circle` or `Point`");
    }

    #[test]
    fn a_long_key_is_cut() {
        let key = "k".repeat(1000);
        let error = format!("field `{}…`: expected an integer, got a string", "k".repeat(64));
        check::<BTreeMap<String, i64>>(BTreeMap::from([(key, "x")]), &error);
    }
}
