//! References: values of a message that stand for bytes or files outside of it. A reference is an extension type
//! of MessagePack with an index in four bytes.

use rmp::Marker;

/// Binary data in a memfd; the index is that of a descriptor of the message.
pub(super) const BLOB_FILE: i8 = 1;
/// An open file; the index is that of a descriptor of the message.
pub(super) const OPEN_FILE: i8 = 2;
/// Binary data in a shared-memory buffer; the index is that of an entry of `uses` in the message before it.
pub(super) const SHARED: i8 = 3;

pub(super) fn put(out: &mut Vec<u8>, kind: i8, index: usize) {
    out.push(Marker::FixExt4.to_u8());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(index as u32).to_be_bytes());
}

/// The kind and the index of an encoded value, if it is a reference.
pub(super) fn parse(value: &[u8]) -> Option<(i8, usize)> {
    let (&[marker, kind], index) = value.split_first_chunk()?;
    let index = u32::from_be_bytes(index.try_into().ok()?);
    (Marker::from_u8(marker) == Marker::FixExt4)
        .then_some((kind.cast_signed(), usize::try_from(index).ok()?))
}
