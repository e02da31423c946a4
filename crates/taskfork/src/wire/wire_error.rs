//! Why bytes of a peer are not a message.

use std::io;

use crate::sys::{MAX_UNCLAIMED_FILES, TOO_MANY_FILES};

/// The most bytes of a hello, and of an error in its place. A few hundred are needed; the peer may be anyone. No option
/// changes it.
pub(crate) const MAX_HELLO: usize = 16 << 10;

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

    /// The error as text, with what to do if a message of a call was too large for the options of client and server.
    pub(crate) fn for_sender(&self) -> String {
        self.with_advice(
            "send less at once, long byte strings as a `Blob` (native protocol only), or raise `max_frame` of both client \
             and server",
        )
    }

    /// The error as text, with what to do if a message was too large for its option `max_frame`. Only the sender knows
    /// whether an option has set its limit, and whose.
    pub(crate) fn with_advice(&self, advice: &str) -> String {
        match self {
            Self::TooLarge { .. } => format!("{self} (max_frame): {advice}"),
            _ => self.to_string(),
        }
    }

    /// The peer's violation of the protocol that made a read fail; `None` if the read failed for another reason.
    pub(crate) fn of_read(error: &io::Error) -> Option<Self> {
        let is_files = error.raw_os_error() == Some(TOO_MANY_FILES.raw_os_error());
        is_files.then_some(Self::TooManyFiles { limit: MAX_UNCLAIMED_FILES })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sender_whose_frame_is_too_large_is_told_what_to_do() {
        // The limit of a first message, which an option can have too.
        let error = WireError::TooLarge { length: 1 << 30, limit: MAX_HELLO };
        let plain = "a frame of 1073741824 bytes is over the limit of 16384";
        assert_eq!(error.to_string(), plain);
        let told = error.for_sender();
        assert!(told.starts_with(plain), "{told}");
        assert!(told.contains("(max_frame)") && told.contains("`Blob`"), "{told}");
        assert_eq!(WireError::Files.for_sender(), WireError::Files.to_string());
    }
}
