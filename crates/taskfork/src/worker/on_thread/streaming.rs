//! A call that streams, in a worker on a thread.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;

use super::connection::{Connection, attachments};
use crate::emitter::{EmitError, Port};
use crate::receiver::{InputPort, ReceiveError};
use crate::wire::WireError;
use crate::wire::credit::{Allowance, WINDOW, item_cost};
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, HEADER_LEN};
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, CallMeta, FromClient};
use crate::wire::values::EncodeError;
use crate::worker::input::{InputItem, InputQueue, Next};

/// The connection, while a call runs that streams. It is empty after the call, because the user's code can keep an
/// emitter or a receiver longer.
pub(super) struct Streaming(RefCell<Option<State>>);

struct State {
    connection: Rc<RefCell<Connection>>,
    call: u64,
    client: ReceiverLimits,
    /// The credit for the items that are sent. `None` if the client reads none.
    items: Option<Allowance>,
    /// The items of the input. `None` if the client sends none.
    input: Option<InputQueue>,
    end: Option<End>,
}

/// Why the stream is over before the call is.
enum End {
    /// The client no longer wants the call, or has left.
    Unwanted,
    /// The client has broken the protocol.
    Broken(WireError),
}

impl Streaming {
    /// For the call with this number, whose client takes answers of at most `max_answer` bytes. `None` if the call does
    /// not stream.
    pub(super) fn begin(
        connection: &Rc<RefCell<Connection>>,
        call: u64,
        meta: &CallMeta<'_>,
        max_answer: usize,
    ) -> Option<Self> {
        if meta.items.is_none() && !meta.input {
            return None;
        }
        let client = ReceiverLimits { max_frame: max_answer, max_blob: 0, max_files: 0 };
        let (items, input) = (meta.items.map(Allowance::new), meta.input.then(InputQueue::default));
        let connection = connection.clone();
        Some(Self(RefCell::new(Some(State { connection, call, client, items, input, end: None }))))
    }

    /// Whether the client reads items.
    pub(super) fn sends_items(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|state| state.items.is_some())
    }

    /// Whether the client streams an input.
    pub(super) fn has_input(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|state| state.input.is_some())
    }

    /// Ends the stream, whoever has kept an emitter or a receiver.
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
        state.items.iter_mut().for_each(|items| items.spend(cost));
        Ok(())
    }
}

impl InputPort for Streaming {
    fn open(&self) {
        let mut state = self.0.borrow_mut();
        let Some(state) = state.as_mut() else { return };
        if let Some(input) = state.input.as_mut().filter(|input| !input.is_open) {
            input.is_open = true;
            state.give_credit(WINDOW);
        }
    }

    fn next(
        &self,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<bool, ReceiveError> {
        let item = {
            let mut state = self.0.try_borrow_mut().map_err(|_| {
                ReceiveError::Item("it is taken while another item is being encoded".to_owned())
            })?;
            let state = state.as_mut().ok_or(ReceiveError::Closed)?;
            let Some(item) = state.next_item()? else { return Ok(false) };
            item
        };
        match item.decode(DEFAULT_MAX_FRAME, decode) {
            Ok(decoded) => decoded.map(|()| true),
            Err(error) => {
                if let Some(state) = self.0.borrow_mut().as_mut() {
                    state.end = Some(End::Broken(error));
                }
                Err(ReceiveError::Closed)
            }
        }
    }

    /// Nothing else is read in such a worker, which is no program's.
    fn next_or(
        &self,
        _other: Option<BorrowedFd<'_>>,
        _until: Option<Instant>,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<bool>, ReceiveError> {
        self.next(decode).map(Some)
    }

    fn prepare_wait(&self) -> Option<BorrowedFd<'static>> {
        None
    }
}

impl State {
    /// Handles what the client has sent, and waits until an item may be sent.
    fn wait_for_credit(&mut self) {
        if !self.connection.borrow_mut().receive_available() {
            self.end.get_or_insert(End::Unwanted);
        }
        while self.end.is_none() {
            let received = self.connection.borrow_mut().take_received();
            match received {
                Ok(None) if self.items.as_ref().is_some_and(Allowance::allows) => return,
                Ok(None) => self.read_message(),
                Ok(Some(message)) => self.handle_message(message),
                Err(error) => self.end = Some(End::Broken(error)),
            }
        }
    }

    /// Waits for an item of the input. Returns `None` behind the last one.
    fn next_item(&mut self) -> Result<Option<InputItem>, ReceiveError> {
        loop {
            let input = self.input.as_mut().filter(|_| self.end.is_none());
            match input.ok_or(ReceiveError::Closed)?.next() {
                Next::Item(item, credit) => {
                    credit.into_iter().for_each(|credit| self.give_credit(credit));
                    return Ok(Some(item));
                }
                Next::End(None) => return Ok(None),
                Next::End(Some(error)) => return Err(ReceiveError::Failed(error)),
                Next::Wait => self.read_message(),
            }
        }
    }

    /// Lets the client send items of the input until they have used this credit in all.
    fn give_credit(&mut self, credit: u64) {
        let mut out = Vec::new();
        frame::put(&mut out, |out| native::put_credit(out, self.call, credit));
        if self.connection.borrow().write(&out).is_err() {
            self.end = Some(End::Unwanted);
        }
    }

    /// Waits for a message of the client and handles it.
    fn read_message(&mut self) {
        let received = self.connection.borrow_mut().read();
        match received {
            Ok(Some(message)) => self.handle_message(message),
            Ok(None) => self.end = Some(End::Unwanted),
            Err(error) => self.end = Some(End::Broken(error)),
        }
    }

    fn handle_message(&mut self, message: Bytes) {
        if let Err(error) = self.try_handle_message(message) {
            self.end = Some(End::Broken(error));
        }
    }

    fn try_handle_message(&mut self, message: Bytes) -> Result<(), WireError> {
        let (length, cost) = match FromClient::decode(&message)? {
            FromClient::Item(item) if item.call == Some(self.call) => (item.value.len(), item.cost),
            FromClient::InputEnd(end) if end.call == self.call => {
                return self.input.iter_mut().try_for_each(|input| input.end(end));
            }
            FromClient::Credit { call, credit } if call == self.call => {
                let granted = self.items.iter_mut().try_for_each(|items| items.grant(credit));
                return granted.map_err(|what| WireError::malformed(format!("a client {what}")));
            }
            FromClient::Cancel(call) => {
                if call == self.call {
                    self.end = Some(End::Unwanted);
                }
                return Ok(());
            }
            // What belongs to a call that has ended.
            FromClient::Credit { .. }
            | FromClient::QueueLength(_)
            | FromClient::Item(_)
            | FromClient::InputEnd(_) => return Ok(()),
            _ => {
                return Err(WireError::malformed(
                    "a message behind a call that streams, before its answer",
                ));
            }
        };
        match &mut self.input {
            Some(input) => {
                input.receive(InputItem { message, length, attachments: attachments(), cost })
            }
            None => Err(WireError::malformed("a client sent an item for a call without an input")),
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
                Err(EmitError::Item(WireError::TooLarge { length, limit }.for_sender()))
            }
            _ => Ok((out.copy_from(0), cost)),
        }
    }
}
