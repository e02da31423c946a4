//! The numbers of the kinds of messages, and what calls and answers have in common. A message is an array whose first element is its kind.

// From both sides, while a call runs that streams in that direction.
pub(super) const ITEM: u64 = 11;
pub(super) const CREDIT: u64 = 12;

// From the client, behind the last item of the input.
pub(super) const INPUT_END: u64 = 13;

// From both sides.
pub(in crate::wire) const HELLO: u64 = 0;
pub(super) const FILES: u64 = 6;
pub(in crate::wire) const SHM: u64 = 7;
pub(super) const RINGS: u64 = 8;

// From the client.
pub(in crate::wire) const CALL: u64 = 1;
pub(in crate::wire) const DONE: u64 = 2;
pub(in crate::wire) const PIPELINED_CALL: u64 = 3;
pub(super) const CANCEL: u64 = 4;
pub(super) const QUEUE_LENGTH: u64 = 5;
pub(in crate::wire) const SINGLE_CALL: u64 = 9;

// From the worker, or from the server in its place.
pub(in crate::wire) const OK: u64 = 1;
pub(in crate::wire) const ERROR: u64 = 2;
pub(in crate::wire) const DEATH: u64 = 3;
pub(super) const TELEMETRY: u64 = 4;
pub(in crate::wire) const SKIPPED: u64 = 5;
pub(super) const QUEUED: u64 = 9;
pub(super) const SET_UP: u64 = 14;

// From a gateway, behind what the worker and the server have sent.
pub(super) const END: u64 = 10;

/// The key of the metadata that marks values which were JSON first.
pub(super) const JSON: &str = "json";

/// Where the kind is in an encoded message: behind the header of the array, which is one byte.
const KIND_OFFSET: usize = 1;

/// The kind of an encoded message, without decoding it.
pub(super) fn kind_of(message: &[u8]) -> Option<u64> {
    message.get(KIND_OFFSET).copied().map(u64::from)
}

/// Replaces the kind of an encoded message.
pub(super) fn set_kind(message: &mut [u8], kind: u64) {
    if let Some(byte) = message.get_mut(KIND_OFFSET) {
        *byte = kind as u8;
    }
}
