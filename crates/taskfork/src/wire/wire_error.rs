//! Why bytes of a peer are not a message.

use std::io;

use crate::sys::{MAX_UNCLAIMED_FILES, TOO_MANY_FILES};

/// A peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("the peer does not speak this protocol: it began with {began:?}")]
    Preamble { began: String },
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLarge { length: usize, limit: usize },
    #[error(
        "the number of received files differs from the number that messages announce: a process may have too many \
         open"
    )]
    Files,
    #[error("more than {limit} files were received before a message announced them")]
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

    /// The peer's violation of the protocol that made a read fail; `None` if the read failed for another reason.
    pub(crate) fn of_read(error: &io::Error) -> Option<Self> {
        let is_files = error.raw_os_error() == Some(TOO_MANY_FILES.raw_os_error());
        is_files.then_some(Self::TooManyFiles { limit: MAX_UNCLAIMED_FILES })
    }
}
