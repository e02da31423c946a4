//! The items that a program streams, on their way to the client.

use std::rc::Rc;

use crate::blob;
use crate::emitter::{EmitError, Port};
use crate::wire::attachments::Attachments;
use crate::wire::credit::Window;
use crate::wire::gather_frame::GatherFrame;
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

/// What the program must learn when an item has been passed on.
pub(super) enum Passed {
    Nothing,
    /// The frame that gives it further credit.
    Credit(GatherFrame),
    /// No further items are wanted.
    Unwanted,
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

    /// Passes an item on. Waits while the client is behind. Returns what the program must learn.
    pub(super) fn pass_on(
        &mut self,
        item: &Item<'_>,
        files: Attachments,
    ) -> Result<Passed, WireError> {
        if self.end.is_some() {
            // The program has not seen the cancellation yet.
            return Ok(Passed::Unwanted);
        }
        let sent = blob::within(None, files, || {
            self.port.send(&mut |out| blob::pass_on(item.value, out).map_err(EncodeError))
        });
        if let Err(error) = sent {
            self.end = Some(error);
            return Ok(Passed::Unwanted);
        }
        let Some(credit) = self.window.take(item.cost) else { return Ok(Passed::Nothing) };
        let mut out = GatherFrame::default();
        frame::write_control(&mut out.bytes, |out| native::put_credit(out, self.call, credit))?;
        Ok(Passed::Credit(out))
    }

    /// The error of the call if one of its items could not be sent to the client.
    pub(super) fn error(&self) -> Option<ErrorReply> {
        match &self.end {
            Some(error @ EmitError::Item(_)) => Some(ErrorReply::result(error)),
            Some(EmitError::Closed) | None => None,
        }
    }
}
