//! Sending the items of a call's input. Short ones go into the outbox; others are sent behind it from where they lie.

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::unsent_item::UnsentItem;
use crate::wire::credit::item_cost;
use crate::wire::frame::HEADER_LEN;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native::{self, InputEnd};

/// Items up to this size, in bytes, are copied into the outbox, so that one write sends several.
const SMALL: usize = 4 << 10;

/// Further items wait while the outbox has this many bytes.
const BATCH: usize = 32 << 10;

impl Connection {
    /// Whether the worker takes inputs.
    pub(crate) fn takes_input(&self) -> bool {
        self.takes_input
    }

    /// Whether another item can be put now. Otherwise others must be sent first.
    pub(crate) fn has_room_for_item(&self) -> bool {
        self.item.is_none() && self.outbox.unsent().len() < BATCH
    }

    /// Sends an item of the input of this call. Returns its cost.
    ///
    /// # Errors
    /// If the worker cannot receive it. Then nothing has changed.
    pub(crate) fn put_item(&mut self, call: u64, mut frame: GatherFrame) -> Result<u64, String> {
        // Before it gets others in front of it.
        let cost = item_cost(frame.len().saturating_sub(HEADER_LEN), frame.files.len());
        if let Some(body) = frame.bytes.get_mut(HEADER_LEN..) {
            native::set_item_call(body, call);
            native::set_item_cost(body, cost);
        }
        self.fit(&mut frame)?;
        let (length, limit) = (frame.len().saturating_sub(HEADER_LEN), self.max_send);
        if length > limit {
            return Err(format!("it takes {length} bytes, and the limit of a message is {limit}"));
        }
        self.read_budget.record_item();
        // It precedes the item: its memory may fit only after other memory was released.
        self.put_shm_control();
        match frame.len() <= SMALL && frame.files.is_empty() && frame.references.is_empty() {
            true => self.outbox.out().extend_from_slice(&frame.copy_from(0)),
            false => self.item = Some(Box::new(UnsentItem { frame, sent: 0 })),
        }
        Ok(cost)
    }

    /// Says that the input of this call has ended, by this error if there is one.
    pub(crate) fn put_input_end(
        &mut self,
        call: u64,
        error: Option<&str>,
    ) -> Result<(), Disconnect> {
        debug_assert!(self.has_room_for_item(), "the last item must be sent before");
        self.put(|out| InputEnd { call, error }.put(out))
    }

    /// The worker wants no more items of the running call. One of which nothing was sent is dropped.
    pub(crate) fn end_items(&mut self) {
        self.item.take_if(|item| item.sent == 0);
        self.settle_item();
    }

    /// Records that `sent` further bytes of the item were sent.
    pub(super) fn handle_item_sent(&mut self, sent: usize) {
        let Some(item) = &mut self.item else { return };
        if item.sent == 0 && sent > 0 {
            self.shm_pool.mark_sent(&item.frame.references);
        }
        item.sent += sent;
        self.outbox.mark_other_sent();
        if item.sent == item.frame.len() {
            self.item = None;
        }
    }

    /// Lets other messages follow what has been sent of an item: the outbox gets its rest.
    pub(super) fn settle_item(&mut self) {
        if let Some(item) = self.item.take_if(|item| item.sent > 0) {
            self.outbox.out().extend_from_slice(&item.frame.copy_from(item.sent));
            // The rest goes the same way.
            self.outbox.put_socket_only(&[]);
        }
    }
}
