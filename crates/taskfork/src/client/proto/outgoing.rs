//! Appending messages to the outbox: calls, their cancellation, credit, and the end of a checkout.

use super::connection::Connection;
use super::disconnect::Disconnect;
use crate::wire::frame;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native::{self, CallMode};
use crate::wire::perl;

impl Connection {
    /// Appends a call to the outbox. Returns the call's number.
    pub(crate) fn put_call(&mut self, frame: &[u8]) -> u64 {
        self.settle_item();
        self.is_last_call_single = self.is_single(frame);
        self.outbox.put_call(frame);
        self.calls.assign()
    }

    /// Appends the rest of the partly sent call, which the worker will skip.
    pub(crate) fn put_rest(&mut self, call: &GatherFrame) {
        self.outbox.put_call(&call.copy_from(self.calls.partial()));
        self.outbox.put_socket_only(&[]);
        self.calls.assign_partial();
    }

    pub(super) fn is_single(&self, frame: &[u8]) -> bool {
        self.accepts_single_calls
            && frame.get(frame::HEADER_LEN..).and_then(native::call_mode) == Some(CallMode::Single)
    }

    /// Whether a call may end its checkout. Before its hello, a worker may be one that does not accept this.
    pub(crate) fn accepts_single_calls(&self) -> bool {
        self.accepts_single_calls && self.is_established()
    }

    /// The worker skips all calls that are not answered, because a call before them failed.
    pub(crate) fn skip_unanswered(&mut self) {
        self.calls.skip_unanswered();
    }

    /// Asks the worker to skip a sent call if it has not begun it. Does nothing while another call is partly sent.
    pub(crate) fn cancel_call(&mut self, call: u64) {
        // A number is short, so it can always be encoded.
        if self.calls.partial() == 0 && self.put(|out| native::put_cancel(out, call)).is_ok() {
            // Through the socket, so that the worker can find it before it has read the calls in front.
            self.outbox.put_socket_only(&[]);
        }
    }

    /// Lets the worker send items of a call until they have used this credit in all.
    pub(crate) fn put_credit(&mut self, call: u64, credit: u64) {
        // The worker may reuse its memory that carried the items before.
        self.put_shm_control();
        // Numbers are short, so they can always be encoded.
        let _ = self.put(|out| native::put_credit(out, call, credit));
    }

    /// Whether the worker streams items.
    pub(crate) fn sends_items(&self) -> bool {
        self.sends_items
    }

    /// Appends the number of waiting checkouts to the outbox.
    pub(crate) fn put_queue_length(&mut self, checkouts: u64) -> Result<(), Disconnect> {
        match self.is_native() {
            true => self.put(|out| native::put_queue_length(out, checkouts)),
            false => Ok(()),
        }
    }

    /// Appends the end of the checkout to the outbox, unless the answer of the last call ended it.
    pub(crate) fn put_done(&mut self) -> Result<(), Disconnect> {
        if std::mem::take(&mut self.is_last_call_single) {
            return Ok(());
        }
        if !self.is_native() {
            perl::put_done(self.outbox.out());
            return Ok(());
        }
        self.put(native::put_done)
    }

    pub(super) fn put(&mut self, message: impl FnOnce(&mut Vec<u8>)) -> Result<(), Disconnect> {
        self.settle_item();
        let written = frame::write_control(self.outbox.out(), |out| message(out));
        written.map_err(Disconnect::from)
    }
}
