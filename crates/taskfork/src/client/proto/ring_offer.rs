//! Whether and when rings are offered on a connection.

use crate::ring::Rings;
use crate::wire::gather_frame::OutgoingFile;

/// Rings are offered after this many calls. If the socket has no room then, after as many more. Unit tests make few
/// calls on a connection.
pub(super) const CALLS_BEFORE_RINGS: u64 = if cfg!(test) { 2 } else { 32 };

/// Whether rings are offered to the worker.
#[derive(Debug)]
pub(super) enum RingOffer {
    /// They cannot be offered, or the worker has accepted them.
    Never,
    /// After this many calls.
    After(u64),
    /// Next, before any other bytes.
    Due(Box<Offer>),
    /// They have been offered, and the worker may accept them.
    Sent,
}

/// An offer of rings.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) bytes: Vec<u8>,
    /// The rings' memory accompanies the first byte of the offer.
    pub(super) files: [OutgoingFile; 1],
    pub(super) rings: Rings,
}
