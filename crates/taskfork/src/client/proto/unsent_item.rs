//! An item of a call's input that is sent without the outbox.

use super::io_types::Transmit;
use crate::wire::gather_frame::GatherFrame;

#[derive(Debug)]
pub(super) struct UnsentItem {
    pub(super) frame: GatherFrame,
    /// How many of its bytes have been sent.
    pub(super) sent: usize,
}

impl UnsentItem {
    pub(super) fn transmit(&self) -> Transmit<'_> {
        let files = if self.sent == 0 { &self.frame.files[..] } else { &[] };
        Transmit::Socket { bytes: &[], call: Some((&self.frame, self.sent)), files }
    }
}
