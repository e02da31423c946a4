//! A call that streams: it sends items, and reads what the client sends meanwhile.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::connection::Connection;
use super::scoreboard::{Phase, WorkerSlot};
use super::shared_memory::SharedMemory;
use super::state::{ExitReason, Worker};
use super::telemetry;
use crate::blob;
use crate::clock::now;
use crate::emitter::{EmitError, Port};
use crate::sys;
use crate::wire::WireError;
use crate::wire::attachments::{self, Attachments};
use crate::wire::frame::{ATOMIC_WRITE, HEADER_LEN};
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, FromClient, ITEM_OVERHEAD};
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
    call: Option<u64>,
    /// How much credit the client has given in all, and how much of it the items have used.
    credit: u64,
    used: u64,
    /// The client no longer wants the items.
    is_cancelled: bool,
    /// Why the worker must exit once the call has ended.
    failure: Option<ExitReason>,
    out: GatherFrame,
}

impl<S: 'static> Worker<'_, S> {
    /// Runs the call in `body`, which streams, and leaves its answer in `out`. `credit` is that of the call.
    pub(super) fn serve_streaming_call(
        &mut self,
        connection: &mut Connection,
        body: &Bytes,
        files: Attachments,
        credit: u64,
        times: (Duration, Duration),
    ) -> Result<(), ExitReason> {
        let FromClient::Call { method, args, meta, .. } = FromClient::decode(body)? else {
            return Err(WireError::malformed("a call that cannot be read again").into());
        };
        // The placeholder is not used before the connection is back.
        let placeholder = Connection::new(connection.socket, Vec::new(), &self.config, self.slot);
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
            call: self.pipeline.number(),
            credit,
            used: 0,
            is_cancelled: false,
            failure: None,
            out: GatherFrame::default(),
        }))));
        let (begun, sent) = times;
        let served = blob::within(Some(body), files, || {
            self.serve_call(method, args, &meta, begun, sent, Some(&streaming))?;
            attachments::check_blob_limit().map_err(ExitReason::from)
        });
        let Some(state) = streaming.0.take() else { return served };
        *connection = state.connection;
        self.shared_memory = state.shared_memory;
        match state.failure {
            Some(failure) => Err(failure),
            None => served,
        }
    }
}

impl Streaming {
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

/// The buffer of items is freed above this size.
const MAX_KEPT: usize = 1 << 20;

impl State {
    /// Waits until an item may be sent.
    fn wait_for_credit(&mut self) -> Result<(), EmitError> {
        while self.failure.is_none() && !self.is_cancelled && self.used >= self.credit {
            if let Err(reason) = self.read_message() {
                self.failure = Some(reason);
            }
        }
        match self.failure.is_none() && !self.is_cancelled {
            true => Ok(()),
            false => Err(EmitError::Closed),
        }
    }

    /// Waits for a message of the client and handles it.
    fn read_message(&mut self) -> Result<(), ExitReason> {
        let Some(frame) = self.connection.read_frame_or_idle()? else {
            return self.shared_memory.trim(&mut self.connection).map_err(ExitReason::from);
        };
        match FromClient::decode(self.connection.body(&frame))? {
            FromClient::Credit { call, credit } if Some(call) == self.call => {
                if credit < self.credit {
                    return Err(WireError::malformed("a client took credit back").into());
                }
                self.credit = credit;
            }
            // Of a call that has ended.
            FromClient::Credit { .. } => {}
            FromClient::Cancel(call) => self.is_cancelled |= Some(call) == self.call,
            FromClient::QueueLength(checkouts) => self.slot.set_waiting(checkouts, now()),
            FromClient::Shm(message) => {
                self.shared_memory.handle_message(message, &mut self.connection)?;
            }
            other => {
                let what = match other {
                    FromClient::Call { .. } => "a call",
                    FromClient::Done => "the end of a checkout",
                    _ => "a message",
                };
                let what = format!("{what} behind a call that streams, before its answer");
                return Err(WireError::malformed(what).into());
            }
        }
        Ok(())
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
            native::put_item(out, call);
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
        let cost = length as u64 + ITEM_OVERHEAD;
        native::set_item_cost(&mut out.bytes[HEADER_LEN..], cost);
        let shared_memory = &mut self.shared_memory;
        out.fit_with(self.client, |bytes, origin, may_add| {
            shared_memory.store(bytes, origin, may_add)
        })
        .map_err(EmitError::Item)?;
        let (length, limit) = (out.len() - HEADER_LEN, self.client.max_frame);
        match length <= limit {
            true => Ok(cost),
            false => Err(EmitError::Item(WireError::TooLarge { length, limit }.to_string())),
        }
    }

    fn write(&mut self, out: &GatherFrame, cost: u64) -> Result<(), EmitError> {
        self.try_write(out, cost).map_err(|reason| {
            self.failure = Some(reason);
            EmitError::Closed
        })
    }

    fn try_write(&mut self, out: &GatherFrame, cost: u64) -> Result<(), ExitReason> {
        // No frame of the thread that sends telemetry may come into the middle of this one.
        let _sending = telemetry::lock_sending();
        // The server must not report a death behind half a frame.
        let is_long = out.len() > ATOMIC_WRITE;
        if is_long {
            self.slot.enter(Phase::AnsweringLong)?;
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
        self.used = self.used.saturating_add(cost);
        Ok(())
    }
}
