//! Messages about how the next message is transported. Both sides send them.

use super::kind::{END, FILES, RINGS, SET_UP, SHM, kind_of};
use crate::wire::WireError;
use crate::wire::fields::skip_map;
use crate::wire::frame;
use crate::wire::msgpack::{Reader, put_array, put_map, put_uint};

/// Whether a message concerns the transport of others, the worker itself or the end of the stream, and is neither a call
/// nor an answer.
pub(crate) fn is_transport_message(message: &[u8]) -> bool {
    kind_of(message).is_some_and(|kind| [FILES, SHM, RINGS, END, SET_UP].contains(&kind))
}

/// Appends a frame that announces the descriptors of the next message.
pub(in crate::wire) fn put_files(out: &mut Vec<u8>, count: usize) {
    frame::put(out, |out| {
        put_array(out, 3);
        put_uint(out, FILES);
        put_map(out, 0);
        put_uint(out, count as u64);
    });
}

/// Reads what follows the kind of that message.
pub(super) fn read_files(reader: &mut Reader<'_>) -> Result<usize, WireError> {
    skip_map(reader)?;
    reader.int()
}

pub(crate) fn put_rings(out: &mut Vec<u8>) {
    put_array(out, 2);
    put_uint(out, RINGS);
    put_map(out, 0);
}
