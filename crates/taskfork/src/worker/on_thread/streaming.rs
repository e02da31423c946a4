//! A call that streams from a worker on a thread.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use super::connection::Connection;
use crate::emitter::{EmitError, Port};
use crate::wire::WireError;
use crate::wire::credit::item_cost;
use crate::wire::frame::HEADER_LEN;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, FromClient};
use crate::wire::values::EncodeError;

/// The connection, while a call runs that streams. It is empty after the call, because the user's code can keep an
/// emitter longer.
pub(super) struct Streaming(RefCell<Option<State>>);

struct State {
    connection: Rc<RefCell<Connection>>,
    call: u64,
    client: ReceiverLimits,
    /// How much credit the client has given in all, and how much of it the items have used.
    credit: u64,
    used: u64,
    end: Option<End>,
}

/// Why no more items are sent.
enum End {
    /// The client no longer wants them, or has left.
    Unwanted,
    /// The client has broken the protocol.
    Broken(WireError),
}

impl Streaming {
    /// For the call with this number, whose client takes answers of at most `max_answer` bytes.
    pub(super) fn begin(
        connection: Rc<RefCell<Connection>>,
        call: u64,
        credit: u64,
        max_answer: usize,
    ) -> Self {
        let client = ReceiverLimits { max_frame: max_answer, max_blob: 0, max_files: 0 };
        let state = State { connection, call, client, credit, used: 0, end: None };
        Self(RefCell::new(Some(state)))
    }

    /// Ends the stream, whoever has kept an emitter.
    ///
    /// # Errors
    /// If the client has broken the protocol meanwhile.
    pub(super) fn end(&self) -> Result<(), WireError> {
        match self.0.take().and_then(|state| state.end) {
            Some(End::Broken(error)) => Err(error),
            Some(End::Unwanted) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Streaming {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Streaming")
    }
}

impl Port for Streaming {
    fn send(
        &self,
        encode: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(), EmitError> {
        let mut state = self.0.try_borrow_mut().map_err(|_| {
            EmitError::Item("it is sent while another item is being encoded".to_owned())
        })?;
        let state = state.as_mut().ok_or(EmitError::Closed)?;
        state.wait_for_credit();
        if state.end.is_some() {
            return Err(EmitError::Closed);
        }
        let (frame, cost) = state.prepare(encode)?;
        if state.connection.borrow().write(&frame).is_err() {
            state.end = Some(End::Unwanted);
            return Err(EmitError::Closed);
        }
        state.used = state.used.saturating_add(cost);
        Ok(())
    }
}

impl State {
    /// Handles what the client has sent, and waits until an item may be sent.
    fn wait_for_credit(&mut self) {
        let connection = self.connection.clone();
        let mut connection = connection.borrow_mut();
        if !connection.receive_available() {
            self.end.get_or_insert(End::Unwanted);
        }
        while self.end.is_none() {
            let received = match connection.take_received() {
                Ok(None) if self.used < self.credit => return,
                Ok(None) => connection.read(),
                other => other,
            };
            let handled = received.and_then(|message| match message {
                Some(message) => self.handle(&message),
                None => Ok(Some(End::Unwanted)),
            });
            self.end = handled.unwrap_or_else(|error| Some(End::Broken(error)));
        }
    }

    /// Handles a message of the client. Returns whether it ends the stream.
    fn handle(&mut self, message: &[u8]) -> Result<Option<End>, WireError> {
        match FromClient::decode(message)? {
            FromClient::Credit { call, credit } if call == self.call => {
                if credit < self.credit {
                    return Err(WireError::malformed("a client took credit back".to_owned()));
                }
                self.credit = credit;
                Ok(None)
            }
            FromClient::Cancel(call) => Ok((call == self.call).then_some(End::Unwanted)),
            // Credit of a call that has ended.
            FromClient::Credit { .. } | FromClient::QueueLength(_) => Ok(None),
            _ => Err(WireError::malformed(
                "a message behind a call that streams, before its answer".to_owned(),
            )),
        }
    }

    /// Encodes an item for the client. Returns its frame and its cost.
    fn prepare(
        &self,
        encode: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(Vec<u8>, u64), EmitError> {
        let limit = self.client.max_frame;
        let mut out = GatherFrame::default();
        out.write(limit, |out| {
            native::put_item(out);
            encode(out)
        })
        .map_err(|error: EncodeError| EmitError::Item(error.0))?;
        // Without descriptors: all blobs of such a worker are in the frame.
        let cost = item_cost(out.len() - HEADER_LEN, 0);
        native::set_item_call(&mut out.bytes[HEADER_LEN..], self.call);
        native::set_item_cost(&mut out.bytes[HEADER_LEN..], cost);
        out.fit(self.client).map_err(EmitError::Item)?;
        match out.len() - HEADER_LEN {
            length if length > limit => {
                Err(EmitError::Item(WireError::TooLarge { length, limit }.to_string()))
            }
            _ => Ok((out.copy_from(0), cost)),
        }
    }
}
