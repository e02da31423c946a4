//! Whether a connection's worker can send more, and the search for its last message after a failed write. Pure.

use super::disconnect::Disconnect;
use super::io_types::End;

/// The most messages and bytes that are read after a failed write, to find the worker's last message. A buffer
/// of the kernel holds fewer, so only a worker that continues to send reaches these limits.
const MOST_LAST_MESSAGES: usize = 4096;
const MOST_LAST_BYTES: usize = 4 << 20;

/// Whether the worker can send more.
#[derive(Debug)]
pub(super) enum Input {
    Open,
    /// It has ended in this way. What has been received before may be unread.
    Ended(End),
    /// A write has failed, for this reason. What the worker sent before is searched for its last message.
    LastMessage {
        lost: Disconnect,
        messages: usize,
        bytes: usize,
        /// Nothing more has arrived.
        is_exhausted: bool,
    },
}

impl Input {
    /// Whether more has been searched for the last message than a kernel's buffer holds.
    pub(super) fn is_over_limits(&self) -> bool {
        matches!(self, Self::LastMessage { messages, bytes, .. }
            if *messages >= MOST_LAST_MESSAGES || *bytes >= MOST_LAST_BYTES)
    }
}
