//! The items that a program streams, on their way to the client.

use std::rc::Rc;

use crate::blob;
use crate::emitter::{EmitError, Port};
use crate::wire::attachments::Attachments;
use crate::wire::credit::Window;
use crate::wire::native::{self, Item};
use crate::wire::values::EncodeError;
use crate::wire::{WireError, frame};
use crate::worker::error_reply::ErrorReply;

/// How much credit the program has beyond the items that were passed on. The client's own window comes on top of it.
const WINDOW: u64 = 65_536;

/// The items of one call.
pub(super) struct Items {
    port: Rc<dyn Port>,
    call: u64,
    window: Window,
    /// Why no further item is passed on.
    end: Option<EmitError>,
}

impl Items {
    /// The items of the call with this number go to `port`.
    pub(super) fn new(port: Rc<dyn Port>, call: u64) -> Self {
        Self { port, call, window: Window::new(WINDOW), end: None }
    }

    /// How much credit the program has in all.
    pub(super) fn credit(&self) -> u64 {
        self.window.granted()
    }

    /// Counts an item whose message has `length` bytes and `files` descriptors.
    ///
    /// # Errors
    /// How the program has broken the protocol.
    pub(super) fn check(
        &mut self,
        item: &Item<'_>,
        length: usize,
        files: usize,
    ) -> Result<(), String> {
        self.window.receive(item.cost, length, files)
    }

    /// Passes an item on. Waits while the client is behind. Returns a frame for the program, if it must learn something:
    /// further credit, or once that no further items are wanted.
    pub(super) fn pass_on(
        &mut self,
        item: &Item<'_>,
        files: Attachments,
    ) -> Result<Option<Vec<u8>>, WireError> {
        if self.end.is_some() {
            // The program has not seen the cancellation yet.
            return Ok(None);
        }
        let sent = blob::within(None, files, || {
            self.port.send(&mut |out| blob::pass_on(item.value, out).map_err(EncodeError))
        });
        let mut out = Vec::new();
        match sent {
            Ok(()) => match self.window.take(item.cost) {
                None => return Ok(None),
                Some(credit) => {
                    frame::write_control(&mut out, |out| {
                        native::put_credit(out, self.call, credit)
                    })?;
                }
            },
            Err(error) => {
                self.end = Some(error);
                frame::write_control(&mut out, |out| native::put_cancel(out, self.call))?;
            }
        }
        Ok(Some(out))
    }

    /// The error of the call if one of its items could not be sent to the client.
    pub(super) fn error(&self) -> Option<ErrorReply> {
        match &self.end {
            Some(error @ EmitError::Item(_)) => Some(ErrorReply::result(error)),
            Some(EmitError::Closed) | None => None,
        }
    }
}
