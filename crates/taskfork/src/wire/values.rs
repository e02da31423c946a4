//! Encoding and decoding the values of users.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::attachments;
use super::depth;
use super::gather_frame::GatherWriter;
use super::json_bytes::{self, FromJson};
use super::mismatch;
use super::nested_option;

/// What values were encoded in first, before the native protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueFormat {
    /// MessagePack, which has binary data.
    MessagePack,
    /// JSON, in which a string with one character for each byte represents binary data.
    Json,
}

impl ValueFormat {
    pub(crate) fn from_json_flag(is_json: bool) -> Self {
        if is_json { Self::Json } else { Self::MessagePack }
    }
}

/// Why a value cannot be encoded.
#[doc(hidden)]
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(pub(crate) String);

crate::display::debug_as_text!(EncodeError);

/// Appends `value` as MessagePack. Structs become maps, so that either side may add fields. Long byte strings may
/// become segments of the frame; see [`gather_frame`](super::gather_frame).
pub(crate) fn encode<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    serialize(value, GatherWriter(out))
}

/// Encodes `value`, with all bytes copied.
pub(crate) fn encode_to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut out = Vec::new();
    serialize(value, &mut out).map(|()| out)
}

fn serialize<T: Serialize + ?Sized>(value: &T, out: impl Write) -> Result<(), EncodeError> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    depth::serialize(value, &mut serializer).map_err(|error| EncodeError(error.to_string()))
}

/// Decodes one value.
pub(crate) fn decode<'a, T: Deserialize<'a>>(
    encoded: &'a [u8],
    format: ValueFormat,
) -> Result<T, String> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(encoded);
    let decoded = match format {
        ValueFormat::MessagePack => T::deserialize(&mut decoder),
        ValueFormat::Json => {
            json_bytes::with_json_strings(|| T::deserialize(FromJson(&mut decoder)))
        }
    };
    decoded.or_else(|error| match nested_option::is_in(encoded) {
        true => {
            attachments::release();
            nested_option::decode(encoded)
        }
        false => Err(mismatch::describe::<T>(encoded, &error)),
    })
}
