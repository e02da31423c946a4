//! The arguments of a call as the caller gives them.

use std::io::Write;

use serde::Serialize;

use super::depth;
use super::pack::put_array;
use super::parts::Gather;

/// A list of arguments: a tuple with one serializable element an argument, a `Vec`, an array or a
/// slice.
///
/// ```
/// fn takes(_: impl taskfork::client::IntoArguments) {}
///
/// takes(());
/// takes((2, 3));
/// takes(("one",));
/// takes(vec![1, 2, 3]);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no list of arguments",
    label = "write it as a tuple: `(value,)` for one argument, `()` for none",
    note = "a tuple of up to 12 serializable elements, a `Vec`, an array or a slice can be sent"
)]
pub trait IntoArguments {
    /// Appends the arguments as a MessagePack array.
    #[doc(hidden)]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// Why a value cannot be encoded.
#[doc(hidden)]
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(pub(crate) String);

crate::display::debug_as_text!(EncodeError);

/// Appends `value` as MessagePack, structs as maps so that fields may be added at either end. Long
/// byte strings may stay where they are; see [`parts`](super::parts).
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    serialize(value, Gather(out))
}

/// The same, with all of it copied.
pub(crate) fn encode_whole<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    serialize(value, &mut out).map(|()| out)
}

fn serialize<T: Serialize + ?Sized>(value: &T, out: impl Write) -> Result<(), EncodeError> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    depth::serialize(value, &mut serializer).map_err(|error| EncodeError(error.to_string()))
}

impl IntoArguments for () {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        put_array(out, 0);
        Ok(())
    }
}

impl<T: Serialize> IntoArguments for [T] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        put_array(out, self.len() as u32);
        elements(self, out)
    }
}

impl<T: Serialize, const N: usize> IntoArguments for [T; N] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        IntoArguments::encode(&self[..], out)
    }
}

impl<T: Serialize> IntoArguments for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        IntoArguments::encode(&self[..], out)
    }
}

impl<T: IntoArguments + ?Sized> IntoArguments for &T {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        (**self).encode(out)
    }
}

fn elements<T: Serialize>(values: &[T], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    for (index, value) in values.iter().enumerate() {
        element(index + 1, value, out)?;
    }
    Ok(())
}

fn element<T: Serialize>(index: usize, value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode(value, out).map_err(|error| EncodeError(format!("argument {index}: {error}")))
}

macro_rules! tuples {
    ($($count:literal: $($name:ident $index:tt)+;)+) => {$(
        impl<$($name: Serialize),+> IntoArguments for ($($name,)+) {
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                put_array(out, $count);
                $(element($index + 1, &self.$index, out)?;)+
                Ok(())
            }
        }
    )+};
}

tuples! {
    1: A 0; 2: A 0 B 1; 3: A 0 B 1 C 2; 4: A 0 B 1 C 2 D 3; 5: A 0 B 1 C 2 D 3 E 4;
    6: A 0 B 1 C 2 D 3 E 4 F 5; 7: A 0 B 1 C 2 D 3 E 4 F 5 G 6;
    8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7; 9: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8;
    10: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9;
    11: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10;
    12: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11;
}
