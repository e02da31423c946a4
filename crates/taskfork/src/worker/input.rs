//! The input of a call that streams: the items that have come and the method has not taken.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::blob;
use crate::receiver::ReceiveError;
use crate::wire::WireError;
use crate::wire::attachments::{self, Attachments};
use crate::wire::bounds;
use crate::wire::credit::Window;
use crate::wire::native::InputEnd;

#[derive(Debug, Default)]
pub(super) struct InputQueue {
    items: VecDeque<InputItem>,
    window: Window,
    /// The client has been given credit.
    pub(super) is_open: bool,
    /// How it has ended: the text of an error, or none.
    end: Option<Option<String>>,
}

/// An item that has not been decoded yet.
#[derive(Debug)]
pub(super) struct InputItem {
    /// The message, and how long the item at its end is.
    pub(super) message: Bytes,
    pub(super) length: usize,
    pub(super) attachments: Attachments,
    pub(super) cost: u64,
}

/// What the method gets next.
#[derive(Debug)]
pub(super) enum Next {
    /// An item, and how much credit the client is to have in all, if it is to have more.
    Item(InputItem, Option<u64>),
    End(Option<String>),
    /// Nothing yet.
    Wait,
}

impl InputQueue {
    /// Appends an item.
    ///
    /// # Errors
    /// How the client has broken the protocol.
    pub(super) fn receive(&mut self, item: InputItem) -> Result<(), WireError> {
        if !self.is_open || self.end.is_some() {
            return Err(WireError::malformed("a client sent an item that the call does not take"));
        }
        let (length, files) = (item.message.len(), item.attachments.files.len());
        let received = self.window.receive(item.cost, length, files);
        received.map_err(|what| WireError::malformed(format!("a client sent {what}")))?;
        self.items.push_back(item);
        Ok(())
    }

    /// No item follows.
    ///
    /// # Errors
    /// How the client has broken the protocol.
    pub(super) fn end(&mut self, end: InputEnd<'_>) -> Result<(), WireError> {
        if !self.is_open || self.end.is_some() {
            return Err(WireError::malformed(
                "a client ended an input that the call does not take",
            ));
        }
        self.end = Some(end.error.map(str::to_owned));
        Ok(())
    }

    pub(super) fn next(&mut self) -> Next {
        match (self.items.pop_front(), &self.end) {
            (Some(item), _) => {
                let credit = self.window.take(item.cost);
                Next::Item(item, credit)
            }
            (None, Some(error)) => Next::End(error.clone()),
            (None, None) => Next::Wait,
        }
    }
}

impl InputItem {
    /// Passes the item to `decode`.
    ///
    /// # Errors
    /// Inside, why it is not of the right type. Outside, how the client has broken the protocol.
    pub(super) fn decode(
        self,
        max_frame: usize,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Result<(), ReceiveError>, WireError> {
        let Self { message, length, attachments, .. } = self;
        let mut value = message.clone();
        value.advance(message.len().saturating_sub(length));
        // A `Fn` may run twice: with blobs inlined, if the first attempt fails.
        let decode = std::cell::RefCell::new(decode);
        let decoded = blob::within(Some(&message), attachments, || {
            let decoded = bounds::check(&value, max_frame)
                .and_then(|()| attachments::decode(&value, |value| (decode.borrow_mut())(value)));
            attachments::check_blob_limit().map(|()| decoded)
        })?;
        Ok(decoded.map_err(ReceiveError::Item))
    }
}
