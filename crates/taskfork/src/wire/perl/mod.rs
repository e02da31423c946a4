//! The protocol of AnyEvent::Task: a sequence of JSON arrays without separators. `scan` finds where they end, `bounds`
//! checks their limits, `parse` reads their values, `convert` writes MessagePack as JSON, and `message` translates
//! whole messages to and from the native protocol.

mod bounds;
mod convert;
mod message;
mod parse;
mod scan;

pub(crate) use message::{
    FromClient, encode_call, error_text, from_client, from_worker, put_done, put_error, put_result,
};
pub(crate) use scan::Scanner;

/// The first byte of a message that is not blank.
pub(crate) const FIRST: u8 = b'[';

/// The first byte that is not blank.
pub(crate) fn first_byte(received: &[u8]) -> Option<u8> {
    received.iter().copied().find(|&byte| !is_blank(byte))
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
