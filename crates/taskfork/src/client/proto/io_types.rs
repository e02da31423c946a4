//! What a connection's state machine and the code that does its I/O pass to each other.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::Bytes;

use super::disconnect::Disconnect;
use super::handshake::PeerLimits;
use crate::wire::gather_frame::{GatherFrame, MAX_SLICES, OutgoingFile};

/// How receiving has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The worker's side is closed. It may have left bytes of this side unread, if no error reports that.
    Closed {
        has_unread: bool,
    },
    Failed(io::Error),
}

/// What the connection needs before it can go on, if it has nothing to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// More bytes, whenever they come.
    Input,
    /// The bytes that have arrived by now, or the report that there are none.
    ArrivedInput,
    /// That the worker can send no more: what it has sent can still be read. Where that is impossible, that the worker's
    /// server learns that this side sends no more.
    InputStop,
}

/// What the peer did.
#[derive(Debug)]
pub(crate) enum Event {
    /// The worker's hello has come, this long after the connection was made.
    Established(PeerLimits, Duration),
    /// The body of a message for the session.
    Message(Bytes),
    /// A message that concerns only the connection.
    Handled,
    /// The handshake has been aborted. `has_hello` says whether the hello came before that, so that the worker may
    /// have begun calls.
    HandshakeAborted {
        has_hello: bool,
    },
    /// The worker was given up before its `setup` was known to be over. It may have begun the calls up to this number.
    SetupAborted {
        begun: u64,
    },
    Ended(Disconnect),
}

/// What to send next.
#[derive(Debug)]
pub(crate) enum Transmit<'a> {
    /// Bytes for the socket: `bytes`, and the rest of the call behind them.
    Socket {
        bytes: &'a [u8],
        /// A call that is not in `bytes`, and how many of its bytes have been sent.
        call: Option<(&'a GatherFrame, usize)>,
        /// They accompany the first byte.
        files: &'a [OutgoingFile],
    },
    /// The worker is awake, so [`Connection::put_in_ring`] may send without a system call.
    Ring,
}

impl Transmit<'_> {
    /// Calls `write` with the slices and the files to send.
    pub(crate) fn with_slices<T>(
        &self,
        write: impl FnOnce(&[IoSlice<'_>], &[OutgoingFile]) -> T,
    ) -> T {
        let Transmit::Socket { bytes, call, files } = self else { return write(&[], &[]) };
        let Some((frame, sent)) = call else { return write(&[IoSlice::new(bytes)], files) };
        let mut slices = [IoSlice::new(bytes); 1 + MAX_SLICES];
        let (rest, count) = frame.slices(*sent);
        slices[1..=count].copy_from_slice(&rest[..count]);
        write(&slices[usize::from(bytes.is_empty())..=count], files)
    }
}
