//! Bytes ⇄ messages, pure: no I/O and no clock, so that properties, recorded sessions and fuzzing
//! can drive it. `docs/PROTOCOL.md` is its specification. It knows no other room but `error`.

pub(crate) mod arguments;
pub(crate) mod attachments;
pub mod bench;
pub(crate) mod bounds;
pub(crate) mod call_error;
pub(crate) mod death_notice;
mod depth;
pub(crate) mod error_body;
pub(crate) mod first_message;
pub(crate) mod frame;
pub(crate) mod gather_frame;
pub(crate) mod hello;
pub(crate) mod json_bytes;
pub(crate) mod log;
mod msgpack;
pub(crate) mod native;
pub(crate) mod perl;
pub(crate) mod shm;
#[cfg(feature = "spans")]
pub(crate) mod trace;
pub(crate) mod values;

use std::io;

use crate::sys::{MAX_UNCLAIMED_FILES, TOO_MANY_FILES};

/// Which of the two protocols is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// The crate's own, in which all of its features work.
    #[default]
    Native,
    /// That of the Perl module AnyEvent::Task: JSON, one call at a time. Deaths are not explained,
    /// times and traces do not go with calls, and binary data travels as a string of one character
    /// for each byte.
    ///
    /// Such a string is decoded to bytes where a type asks for bytes, as [`Blob`](crate::Blob) and the
    /// types of `serde_bytes` do; a character above U+00FF is an error of the call. A
    /// [`Value`](crate::client::Value) holds it as a string. Inside of types that serde buffers first
    /// (`#[serde(untagged)]`, `#[serde(flatten)]`, `#[serde(tag = "…")]`) only a `Blob` is decoded so: the types
    /// of `serde_bytes` get the string's UTF-8 bytes there.
    Perl,
}

/// Why bytes of a peer are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the peer does not speak this protocol: it began with {began:?}")]
    Preamble { began: String },
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error("more files came than messages tell of, or fewer: a process may have too many open")]
    Files,
    #[error("more files came than messages tell of: at most {limit} are kept until then")]
    TooManyFiles { limit: usize },
    #[error("a blob of {length} bytes is over the limit of {limit} (max_blob)")]
    BlobTooLarge { length: usize, limit: usize },
    #[error("a message is malformed: {0}")]
    Malformed(String),
}

impl WireError {
    pub(crate) fn malformed(what: impl std::fmt::Display) -> Self {
        Self::Malformed(what.to_string())
    }

    /// What the failure of a read says of the peer, if it is the peer's.
    pub(crate) fn of_read(error: &io::Error) -> Option<Self> {
        let is_files = error.raw_os_error() == Some(TOO_MANY_FILES.raw_os_error());
        is_files.then_some(Self::TooManyFiles { limit: MAX_UNCLAIMED_FILES })
    }
}
