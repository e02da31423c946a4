//! A serializer that refuses values which nest too deeply, before the recursion over them overflows the stack. It also
//! encodes options within options so that none is lost.

use serde::ser::{
    Error, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant,
    SerializeTuple, SerializeTupleStruct, SerializeTupleVariant, Serializer,
};

use super::bounds::{MAX_DEPTH, too_deep};
use super::nested_option;

/// The most nested calls of `serialize`. Options and newtype structs add no level to the encoded value, but they
/// recurse as well.
const MAX_STEPS: usize = 4 * MAX_DEPTH;

/// The nesting of a value.
#[derive(Debug, Clone, Copy, Default)]
struct Depth {
    levels: usize,
    steps: usize,
}

impl Depth {
    /// The nesting of a value inside of this many more arrays or maps.
    fn inside<E: Error>(self, levels: usize) -> Result<Self, E> {
        let depth = Self { levels: self.levels + levels, steps: self.steps + 1 };
        if depth.levels > MAX_DEPTH || depth.steps > MAX_STEPS {
            return Err(E::custom(too_deep()));
        }
        Ok(depth)
    }
}

/// Serializes a value. It is an error if the value nests deeper than [`MAX_DEPTH`] levels.
pub(super) fn serialize<S: Serializer>(
    value: &(impl Serialize + ?Sized),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    value.serialize(Limited { inner: serializer, depth: Depth::default(), options: 0 })
}

struct Limited<S> {
    inner: S,
    depth: Depth,
    /// How many options contain the value directly.
    options: usize,
}

/// A value with its nesting.
struct At<'a, T: ?Sized> {
    value: &'a T,
    depth: Depth,
    options: usize,
}

impl<T: Serialize + ?Sized> Serialize for At<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { value, depth, options } = *self;
        value.serialize(Limited { inner: serializer, depth, options })
    }
}

macro_rules! plain {
    ($($method:ident $type:ty;)+) => {$(
        fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        }
    )+};
}

impl<S: Serializer> Serializer for Limited<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Elements<S::SerializeSeq>;
    type SerializeTuple = Elements<S::SerializeTuple>;
    type SerializeTupleStruct = Elements<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Elements<S::SerializeTupleVariant>;
    type SerializeMap = Elements<S::SerializeMap>;
    type SerializeStruct = Elements<S::SerializeStruct>;
    type SerializeStructVariant = Elements<S::SerializeStructVariant>;

    plain! {
        serialize_bool bool;
        serialize_i8 i8;
        serialize_i16 i16;
        serialize_i32 i32;
        serialize_i64 i64;
        serialize_i128 i128;
        serialize_u8 u8;
        serialize_u16 u16;
        serialize_u32 u32;
        serialize_u64 u64;
        serialize_u128 u128;
        serialize_f32 f32;
        serialize_f64 f64;
        serialize_char char;
        serialize_str &str;
        serialize_bytes &[u8];
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        match self.options {
            0 => self.inner.serialize_none(),
            options => nested_option::serialize(options, self.inner),
        }
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        match self.options {
            0 => self.inner.serialize_unit(),
            options => nested_option::serialize(options, self.inner),
        }
    }

    /// As the unit type: MessagePack's own form, an empty array, is no unit to types that keep a value before they know
    /// its type, such as an untagged enum.
    fn serialize_unit_struct(self, _: &'static str) -> Result<S::Ok, S::Error> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit_variant(name, index, variant)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let (depth, options) = (self.depth.inside(0)?, self.options + 1);
        self.inner.serialize_some(&At { value, depth, options })
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        if name == rmp_serde::MSGPACK_EXT_STRUCT_NAME {
            // An extension type contains no values.
            return self.inner.serialize_newtype_struct(name, value);
        }
        let (depth, options) = (self.depth.inside(0)?, self.options);
        self.inner.serialize_newtype_struct(name, &At { value, depth, options })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let value = At { value, depth: self.depth.inside(1)?, options: 0 };
        self.inner.serialize_newtype_variant(name, index, variant, &value)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        let depth = self.depth.inside(1)?;
        Ok(Elements { inner: self.inner.serialize_seq(length)?, depth })
    }

    fn serialize_tuple(self, length: usize) -> Result<Self::SerializeTuple, S::Error> {
        let depth = self.depth.inside(1)?;
        Ok(Elements { inner: self.inner.serialize_tuple(length)?, depth })
    }

    fn serialize_tuple_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        let depth = self.depth.inside(1)?;
        Ok(Elements { inner: self.inner.serialize_tuple_struct(name, length)?, depth })
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let depth = self.depth.inside(2)?;
        let inner = self.inner.serialize_tuple_variant(name, index, variant, length)?;
        Ok(Elements { inner, depth })
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        let depth = self.depth.inside(1)?;
        Ok(Elements { inner: self.inner.serialize_map(length)?, depth })
    }

    fn serialize_struct(
        self,
        name: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStruct, S::Error> {
        let depth = self.depth.inside(1)?;
        Ok(Elements { inner: self.inner.serialize_struct(name, length)?, depth })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let depth = self.depth.inside(2)?;
        let inner = self.inner.serialize_struct_variant(name, index, variant, length)?;
        Ok(Elements { inner, depth })
    }

    fn collect_str<T: std::fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// Serializes the elements of an array or a map.
struct Elements<C> {
    inner: C,
    depth: Depth,
}

macro_rules! elements {
    ($($kind:ident $method:ident;)+) => {$(
        impl<C: $kind> $kind for Elements<C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
                self.inner.$method(&At { value, depth: self.depth, options: 0 })
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.inner.end()
            }
        }
    )+};
}

elements! {
    SerializeSeq serialize_element;
    SerializeTuple serialize_element;
    SerializeTupleStruct serialize_field;
    SerializeTupleVariant serialize_field;
}

macro_rules! fields {
    ($($kind:ident;)+) => {$(
        impl<C: $kind> $kind for Elements<C> {
            type Ok = C::Ok;
            type Error = C::Error;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                name: &'static str,
                value: &T,
            ) -> Result<(), C::Error> {
                self.inner.serialize_field(name, &At { value, depth: self.depth, options: 0 })
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), C::Error> {
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<C::Ok, C::Error> {
                self.inner.end()
            }
        }
    )+};
}

fields! {
    SerializeStruct;
    SerializeStructVariant;
}

impl<C: SerializeMap> SerializeMap for Elements<C> {
    type Ok = C::Ok;
    type Error = C::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_key(&At { value, depth: self.depth, options: 0 })
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        self.inner.serialize_value(&At { value, depth: self.depth, options: 0 })
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use crate::wire::bounds;
    use crate::wire::values::encode_to_vec;
    use crate::wire::values::{self, ValueFormat};

    #[derive(Debug, Serialize, Deserialize)]
    enum Tree {
        Leaf,
        New(Box<Tree>),
        Tuple(u8, Box<Tree>),
        Struct { inside: Box<Tree> },
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Linked {
        next: Option<Box<Linked>>,
    }

    #[derive(Serialize)]
    struct Wrapped(Option<Box<Wrapped>>);

    #[derive(Debug, Serialize, Deserialize)]
    struct List(Vec<List>);

    /// Runs on a stack of 2 MiB, the default of a thread.
    fn on_a_small_stack(run: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(2 << 20);
            thread.spawn_scoped(scope, run).unwrap().join().unwrap();
        });
    }

    fn check<T>(make: impl Fn(usize) -> T + Send, each: usize)
    where
        T: Serialize + for<'de> Deserialize<'de>,
    {
        on_a_small_stack(move || {
            let most = 128 / each;
            let encoded = encode_to_vec(&make(most)).unwrap();
            assert_eq!(bounds::check(&encoded, 1 << 20), Ok(()));
            values::decode::<T>(&encoded, ValueFormat::MessagePack).unwrap();
            let deep = make(most + 1);
            let error = encode_to_vec(&deep).unwrap_err().to_string();
            assert!(error.contains("deeper than 128 levels"), "{error}");
            let far_deeper = make(2000);
            assert!(encode_to_vec(&far_deeper).is_err());
        });
    }

    fn fold<T>(levels: usize, leaf: T, level: impl Fn(T) -> T) -> T {
        (0..levels).fold(leaf, |inside, _| level(inside))
    }

    #[test]
    fn values_nest_to_128_levels_and_deeper_ones_are_errors() {
        check(|levels| fold(levels, Tree::Leaf, |inside| Tree::New(inside.into())), 1);
        check(|levels| fold(levels, Tree::Leaf, |inside| Tree::Tuple(1, inside.into())), 2);
        check(
            |levels| fold(levels, Tree::Leaf, |inside| Tree::Struct { inside: inside.into() }),
            2,
        );
        let end = || Linked { next: None };
        check(
            |levels| fold(levels - 1, end(), |inside| Linked { next: Some(Box::new(inside)) }),
            1,
        );
        check(|levels| fold(levels - 1, List(Vec::new()), |inside| List(vec![inside])), 1);
        check(
            |levels| fold(levels, rmpv::Value::Nil, |inside| rmpv::Value::Array(vec![inside])),
            1,
        );
    }

    #[test]
    fn options_and_newtypes_within_each_other_are_bounded_too() {
        on_a_small_stack(|| {
            let deep = fold(2000, Wrapped(None), |inside| Wrapped(Some(Box::new(inside))));
            assert!(encode_to_vec(&deep).unwrap_err().to_string().contains("128 levels"));
        });
    }
}
