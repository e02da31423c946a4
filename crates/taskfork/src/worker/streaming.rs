//! A call that streams: it sends items, takes those of its input, and reads what else the client sends meanwhile.

use std::cell::RefCell;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::connection::{Connection, Frame};
use super::input::{InputItem, InputQueue, Next};
use super::scoreboard::{Phase, WorkerSlot};
use super::shared_memory::SharedMemory;
use super::state::{ExitReason, Worker};
use super::telemetry;
use crate::blob;
use crate::clock::now;
use crate::emitter::{EmitError, Port};
use crate::receiver::{InputPort, ReceiveError};
use crate::sys;
use crate::wire::WireError;
use crate::wire::attachments::{self, Attachments};
use crate::wire::credit::{Allowance, WINDOW, item_cost};
use crate::wire::frame::{self, ATOMIC_WRITE, HEADER_LEN};
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, FromClient};
use crate::wire::shm::{Origin, PlacedBytes};
use crate::wire::values::EncodeError;

/// The connection, while a call runs that streams.
///
/// It owns the connection meanwhile, because the user's code can keep an emitter longer than the call. It is empty after
/// the call.
pub(super) struct Streaming(RefCell<Option<State>>);

struct State {
    connection: Connection,
    shared_memory: SharedMemory,
    slot: WorkerSlot,
    client: ReceiverLimits,
    /// The most bytes of an item that the sandbox allows.
    max_item: usize,
    /// The longest blob in a memfd that an item of the input may have, in bytes.
    max_blob: usize,
    call: Option<u64>,
    /// The credit for the items that are sent. `None` if the client reads none.
    items: Option<Allowance>,
    /// The items of the input. `None` if the client sends none.
    input: Option<InputQueue>,
    /// The number of files that belong to the next message.
    announced_files: usize,
    /// The client no longer wants the call.
    is_cancelled: bool,
    /// Why the worker must exit once the call has ended.
    failure: Option<ExitReason>,
    /// When to look for messages of the client again though none is waited for, on the clock of the scoreboard.
    next_look: Duration,
    out: GatherFrame,
}

/// What ends a wait for an item, beside the client.
#[derive(Clone, Copy)]
struct Interruption<'a> {
    /// This can be read.
    other: Option<BorrowedFd<'a>>,
    /// This time has come.
    until: Option<Instant>,
}

impl Interruption<'_> {
    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

impl<S: 'static> Worker<'_, S> {
    /// Runs the call in `body`, which streams, and leaves its answer in `out`.
    pub(super) fn serve_streaming_call(
        &mut self,
        connection: &mut Connection,
        body: &Bytes,
        files: Attachments,
        times: (Duration, Duration),
    ) -> Result<(), ExitReason> {
        let FromClient::Call { method, args, meta, .. } = FromClient::decode(body)? else {
            return Err(WireError::malformed("a call that cannot be read again").into());
        };
        // The placeholder is not used before the connection is back.
        let placeholder = Connection::new(connection.socket, Vec::new(), &self.config, self.slot);
        let (begun, sent) = times;
        let streaming = Rc::new(Streaming(RefCell::new(Some(State {
            connection: std::mem::replace(connection, placeholder),
            shared_memory: std::mem::take(&mut self.shared_memory),
            slot: self.slot,
            client: ReceiverLimits {
                max_frame: self.max_answer,
                max_blob: self.max_blob,
                max_files: self.client_files,
            },
            max_item: self.config.max_result,
            max_blob: self.config.max_blob,
            call: self.pipeline.number(),
            items: meta.items.map(Allowance::new),
            input: meta.input.then(InputQueue::default),
            announced_files: 0,
            is_cancelled: false,
            failure: None,
            next_look: begun.saturating_add(LOOK_INTERVAL),
            out: GatherFrame::default(),
        }))));
        let served = blob::within(Some(body), files, || {
            self.serve_call(method, args, &meta, begun, sent, Some(&streaming))?;
            attachments::check_blob_limit().map_err(ExitReason::from)
        });
        let Some(state) = streaming.0.take() else { return served };
        *connection = state.connection;
        self.shared_memory = state.shared_memory;
        self.announced_files = state.announced_files;
        match state.failure {
            Some(failure) => Err(failure),
            None => served,
        }
    }
}

impl Streaming {
    /// Whether the client reads items.
    pub(super) fn sends_items(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|state| state.items.is_some())
    }

    /// Whether the client streams an input.
    pub(super) fn has_input(&self) -> bool {
        self.0.borrow().as_ref().is_some_and(|state| state.input.is_some())
    }

    /// Waits for the next item and decodes it. Returns false behind the last one, and `None` if the wait has ended as
    /// [`State::next_item`] says.
    fn take_item(
        &self,
        or: Option<Interruption<'_>>,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<bool>, ReceiveError> {
        // A process that user code has forked must take no message from its worker.
        sys::exit_if_forked();
        let (item, max_frame) = {
            let mut state = self.0.try_borrow_mut().map_err(|_| {
                ReceiveError::Item("it is taken while another item is being encoded".to_owned())
            })?;
            let state = state.as_mut().ok_or(ReceiveError::Closed)?;
            match state.next_item(or)? {
                Next::Item(item, _) => (item, state.connection.max_frame()),
                Next::End(_) => return Ok(Some(false)),
                Next::Wait => return Ok(None),
            }
        };
        match item.decode(max_frame, decode) {
            Ok(decoded) => decoded.map(|()| Some(true)),
            Err(error) => {
                if let Some(state) = self.0.borrow_mut().as_mut() {
                    state.failure = Some(error.into());
                }
                Err(ReceiveError::Closed)
            }
        }
    }

    /// See [`SharedMemory::store`].
    pub(super) fn store(
        &self,
        bytes: &Bytes,
        origin: Option<Origin>,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        self.0.borrow_mut().as_mut()?.shared_memory.store(bytes, origin, may_add)
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
        // A process that user code has forked must take no message from its worker.
        sys::exit_if_forked();
        let mut state = self.0.try_borrow_mut().map_err(|_| {
            EmitError::Item("it is sent while another item is being encoded".to_owned())
        })?;
        let state = state.as_mut().ok_or(EmitError::Closed)?;
        state.wait_for_credit()?;
        let mut out = std::mem::take(&mut state.out);
        let prepared = state.prepare(&mut out, encode);
        let sent = prepared.and_then(|cost| state.write(&out, cost));
        out.bytes.clear();
        out.bytes.shrink_to(MAX_KEPT);
        out.clear_attachments();
        state.out = out;
        sent
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
        // Only a wait that another end is given for ends without an item.
        self.take_item(None, decode).map(|taken| taken.unwrap_or_default())
    }

    fn next_or(
        &self,
        other: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<bool>, ReceiveError> {
        self.take_item(Some(Interruption { other, until }), decode)
    }

    fn prepare_wait(&self) -> Option<BorrowedFd<'static>> {
        self.0.try_borrow_mut().ok()?.as_mut()?.connection.prepare_wait()
    }
}

/// How often a worker that need not wait looks for messages of its client. An item takes about a microsecond, and a look
/// is a system call.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How many bytes such a look reads at most, and of how many it handles the messages.
const MOST_AHEAD: usize = 64 << 10;

/// The buffer of items is freed above this size.
const MAX_KEPT: usize = 1 << 20;

impl State {
    /// Handles what the client has sent, from time to time: it may not want the call any more. Does not wait. Returns
    /// whether there was anything.
    fn look(&mut self) -> bool {
        let now = now();
        if self.is_over() || now < self.next_look {
            return false;
        }
        self.next_look = now.saturating_add(LOOK_INTERVAL);
        self.handle_received(MOST_AHEAD).unwrap_or_else(|reason| {
            self.failure = Some(reason);
            true
        })
    }

    /// Handles the messages that have been received, up to so many bytes: a client may write to a ring without end. Reads
    /// once from the socket, when all before is handled. So at most a part of a message and one read are in the buffer.
    fn handle_received(&mut self, most: usize) -> Result<bool, ExitReason> {
        let (mut handled, mut has_read) = (0, false);
        while handled < most && !self.is_cancelled {
            match self.connection.take_frame()? {
                Some(frame) => {
                    handled += HEADER_LEN + frame.place.len();
                    self.handle_message(&frame)?;
                }
                None if has_read => break,
                None => {
                    self.connection.read_ahead(most);
                    has_read = true;
                }
            }
        }
        Ok(handled > 0)
    }

    /// Waits until an item may be sent.
    fn wait_for_credit(&mut self) -> Result<(), EmitError> {
        self.look();
        while !self.is_over() && !self.items.as_ref().is_some_and(Allowance::allows) {
            self.read_message();
        }
        match self.is_over() {
            true => Err(EmitError::Closed),
            false => Ok(()),
        }
    }

    /// Waits for an item of the input, or its end. With `or`, the wait also ends as that says.
    fn next_item(&mut self, or: Option<Interruption<'_>>) -> Result<Next, ReceiveError> {
        let mut has_read = false;
        loop {
            let next = self.input.as_mut().filter(|_| self.failure.is_none() && !self.is_cancelled);
            match next.ok_or(ReceiveError::Closed)?.next() {
                Next::Item(item, credit) => {
                    credit.into_iter().for_each(|credit| self.give_credit(credit));
                    return Ok(Next::Item(item, None));
                }
                Next::End(Some(error)) => return Err(ReceiveError::Failed(error)),
                Next::End(None) => return Ok(Next::End(None)),
                Next::Wait => {
                    let Some(or) = or else {
                        self.read_message();
                        continue;
                    };
                    // The other end may have something to say at any time, and is heard before the client.
                    if or.other.is_some() && self.look() {
                        continue;
                    }
                    // A client that sends other messages without end must not prolong the wait.
                    if has_read && or.is_late() {
                        return Ok(Next::Wait);
                    }
                    match self.read_message_or(or) {
                        Ok(true) => has_read = true,
                        Ok(false) => return Ok(Next::Wait),
                        Err(reason) => self.failure = Some(reason),
                    }
                }
            }
        }
    }

    /// Handles a message that has arrived as a whole, or waits for more of one. Returns false if the wait has ended as `or`
    /// says.
    fn read_message_or(&mut self, or: Interruption<'_>) -> Result<bool, ExitReason> {
        match self.connection.take_frame()? {
            Some(frame) => self.handle_message(&frame).map(|()| true),
            None => Ok(self.connection.read_or(or.other, or.until)?),
        }
    }

    /// Nobody wants the call, or the connection is of no more use.
    fn is_over(&self) -> bool {
        self.failure.is_some() || self.is_cancelled
    }

    /// Lets the client send items of the input until they have used this credit in all.
    fn give_credit(&mut self, credit: u64) {
        let mut out = GatherFrame::default();
        if self.shared_memory.is_used() {
            // The client may reuse its memory that carried the items before.
            self.shared_memory.write_control(now(), &mut out.bytes);
        }
        let call = self.call.unwrap_or_default();
        frame::put(&mut out.bytes, |out| native::put_credit(out, call, credit));
        if let Err(reason) = self.try_write(&out) {
            self.failure = Some(reason);
        }
    }

    /// Waits for a message of the client and handles it.
    fn read_message(&mut self) {
        if let Err(reason) = self.try_read_message() {
            self.failure = Some(reason);
        }
    }

    fn try_read_message(&mut self) -> Result<(), ExitReason> {
        let Some(frame) = self.connection.read_frame_or_idle()? else {
            return self.shared_memory.trim(&mut self.connection).map_err(ExitReason::from);
        };
        self.handle_message(&frame)
    }

    fn handle_message(&mut self, frame: &Frame) -> Result<(), ExitReason> {
        let files = self.connection.take_files(std::mem::take(&mut self.announced_files))?;
        let mut received = None;
        match FromClient::decode(self.connection.body(frame))? {
            FromClient::Credit { call, credit } if Some(call) == self.call => {
                if let Some(items) = &mut self.items {
                    let granted = items.grant(credit);
                    granted.map_err(|what| WireError::malformed(format!("a client {what}")))?;
                }
                // Or the memory of items would be free only behind the stream.
                self.shared_memory.apply_releases()?;
            }
            FromClient::Item(item) if item.call == self.call => {
                received = Some((item.value.len(), item.cost));
            }
            FromClient::InputEnd(end) if Some(end.call) == self.call && self.input.is_some() => {
                self.input.iter_mut().try_for_each(|input| input.end(end))?;
            }
            FromClient::Files(count) if self.input.is_some() => self.announced_files = count,
            // Of a call that has ended.
            FromClient::Credit { .. } => {}
            FromClient::Cancel(call) => self.is_cancelled |= Some(call) == self.call,
            FromClient::QueueLength(checkouts) => self.slot.set_waiting(checkouts, now()),
            FromClient::Shm(message) => {
                self.shared_memory.handle_message(message, &mut self.connection)?;
            }
            other => {
                let what = match other {
                    FromClient::Item(_) | FromClient::InputEnd(_) => "an item of another input",
                    FromClient::Call { .. } => "a call",
                    FromClient::Done => "the end of a checkout",
                    _ => "a message",
                };
                let what = format!("{what} behind a call that streams, before its answer");
                return Err(WireError::malformed(what).into());
            }
        }
        if let Some((length, cost)) = received {
            self.receive_item(frame, length, cost, files)?;
        }
        Ok(())
    }

    /// Handles the item of the input at the end of a message.
    fn receive_item(
        &mut self,
        frame: &Frame,
        length: usize,
        cost: u64,
        files: Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        let long = self.connection.take_long_body(frame);
        let message = long.unwrap_or_else(|| Bytes::copy_from_slice(self.connection.body(frame)));
        let attachments = Attachments {
            files,
            shared: self.shared_memory.take_received()?,
            max_blob: self.max_blob,
            max_inlined: self.connection.max_frame(),
        };
        let item = InputItem { message, length, attachments, cost };
        match &mut self.input {
            Some(input) => input.receive(item),
            None => Err(WireError::malformed("a client sent an item for a call without an input")),
        }
    }

    /// Encodes an item for the client. Returns its cost.
    fn prepare(
        &mut self,
        out: &mut GatherFrame,
        encode: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<u64, EmitError> {
        let call = self.call;
        let item = |error: EncodeError| EmitError::Item(error.0);
        out.write(self.client.max_frame, |out| {
            native::put_item(out);
            encode(out)
        })
        .map_err(item)?;
        let length = out.len() - HEADER_LEN;
        if length > self.max_item {
            let limit = self.max_item;
            return Err(EmitError::Item(format!(
                "it has {length} bytes, and the sandbox allows {limit} (max_result)"
            )));
        }
        // Before the frame gets others in front of it.
        let cost = item_cost(length, out.files.len());
        native::set_item_call(&mut out.bytes[HEADER_LEN..], call.unwrap_or_default());
        native::set_item_cost(&mut out.bytes[HEADER_LEN..], cost);
        let shared_memory = &mut self.shared_memory;
        out.fit_with(self.client, |bytes, origin, may_add| {
            shared_memory.store(bytes, origin, may_add)
        })
        .map_err(EmitError::Item)?;
        let (length, limit) = (out.len() - HEADER_LEN, self.client.max_frame);
        match length <= limit {
            true => Ok(cost),
            false => Err(EmitError::Item(WireError::TooLarge { length, limit }.for_sender())),
        }
    }

    fn write(&mut self, out: &GatherFrame, cost: u64) -> Result<(), EmitError> {
        let written = self.write_control().and_then(|()| self.try_write(out));
        written.map_err(|reason| {
            self.failure = Some(reason);
            EmitError::Closed
        })?;
        self.items.iter_mut().for_each(|items| items.spend(cost));
        Ok(())
    }

    /// Tells the client which memory is lent no more. Behind it, an item may bring memory that takes its place.
    fn write_control(&mut self) -> Result<(), ExitReason> {
        let mut out = GatherFrame::default();
        if self.shared_memory.is_used() {
            self.shared_memory.write_control(now(), &mut out.bytes);
        }
        if out.bytes.is_empty() { Ok(()) } else { self.try_write(&out) }
    }

    fn try_write(&mut self, out: &GatherFrame) -> Result<(), ExitReason> {
        // No frame of the thread that sends telemetry may come into the middle of this one.
        let _sending = telemetry::lock_sending();
        // The server must not report a death behind half a frame.
        let is_long = out.len() > ATOMIC_WRITE;
        if is_long {
            self.slot.enter(Phase::SendingItem)?;
        }
        self.connection.write(out)?;
        if is_long {
            self.slot.resume_call()?;
            if self.slot.is_due_before_wakeup() {
                sys::wake_server();
            }
            if self.slot.is_client_gone() {
                return Err(ExitReason::Finished);
            }
        }
        self.shared_memory.mark_sent(&out.references, &mut self.connection);
        Ok(())
    }
}
