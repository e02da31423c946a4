//! Replaces `records` without the feature `spans`: it records nothing.

#[derive(Debug, Default)]
pub(super) struct Records;

impl Records {
    pub(super) const fn new() -> Self {
        Self
    }

    pub(super) fn is_empty(&self) -> bool {
        true
    }

    pub(super) fn take(&mut self) -> Self {
        Self
    }

    pub(super) fn frames(&mut self, _limit: usize) -> Vec<Vec<u8>> {
        Vec::new()
    }
}
