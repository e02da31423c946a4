//! The protocol of AnyEvent::Task: JSON arrays, one behind the other without anything between them.
//! `scan` finds where they end, `bounds` refuses what is nested too deep or has too many values, `parse` reads
//! their values, `convert` writes MessagePack as JSON, and `message` is what they say.

mod bounds;
mod convert;
mod message;
mod parse;
mod scan;

pub(crate) use message::{
    FromClient, encode_call, error_text, from_client, from_worker, put_done, put_error, put_result,
};
pub(crate) use scan::Scanner;

/// How a message of this protocol begins, blanks aside.
pub(crate) const FIRST: u8 = b'[';

/// The first byte that is not blank, if there is one.
pub(crate) fn first_byte(received: &[u8]) -> Option<u8> {
    received.iter().copied().find(|&byte| !is_blank(byte))
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}
