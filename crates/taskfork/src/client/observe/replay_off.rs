//! Replaces `replay` without the feature `spans`: nothing is replayed.

use std::sync::Arc;

use bytes::Bytes;

/// There is never one.
#[derive(Debug)]
pub(crate) enum Replay {}

impl Replay {
    pub(crate) fn for_caller() -> Option<(u8, Arc<Self>)> {
        None
    }

    pub(crate) fn push(&self, _pid: u32, _records: Bytes) {
        match *self {}
    }

    pub(crate) fn play(&self) {
        match *self {}
    }
}
