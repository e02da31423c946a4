//! Sending the calls of a checkout: the first one at once, and those behind it before it is answered, many in
//! one write.

use std::time::Instant;

use super::calls::{Calls, Entry, Operation, Progress};
use crate::client::now::Now;
use crate::client::proto::connection::Connection;
use crate::client::proto::disconnect::Disconnect;
use crate::client::proto::io_types::Transmit;
use crate::time_limit::TimeLimit;
use crate::wire::frame::HEADER_LEN;
use crate::wire::native::{self, CallMode, NO_LIMIT};

/// Calls up to this size, in bytes, are copied into the outbox, so that one write sends several.
const SMALL: usize = 4 << 10;

/// The outbox is sent when it has this many bytes.
const BATCH: usize = 32 << 10;

/// Why a call that streams cannot be sent.
const NO_ITEMS: &str = "the method is called for a stream of items, and this server cannot send one: it speaks a protocol \
                        without streams, or is older";

/// Why a call with an input cannot be sent.
const NO_INPUT: &str = "the call streams an input, and this server cannot take one: it speaks a protocol without streams, \
                        or is older";

/// The sending of one checkout's calls on one connection.
#[derive(Debug, Default)]
pub(super) struct Pipeline {
    stage: Stage,
    /// When the last sequential call was sent. The timeouts of calls pipelined behind it count from then.
    /// `None` if it had no timeout.
    deadline_base: Option<Instant>,
    /// Calls are pipelined. This stops when the window is full, until half of it is free.
    filling: bool,
    /// Why a write has failed, while calls that were sent before may still be answered.
    lost: Option<Disconnect>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No call has been sent.
    #[default]
    New,
    Started,
    /// A write has failed.
    Failed,
}

impl Pipeline {
    /// Returns true once: when the first call is about to be sent.
    pub(super) fn start(&mut self, calls: &mut Calls) -> bool {
        let starts = self.stage == Stage::New && calls.next().is_some();
        if starts {
            self.stage = Stage::Started;
        }
        starts
    }

    /// Records that a write has failed, for this reason.
    pub(super) fn stop(&mut self, lost: Disconnect) {
        self.stage = Stage::Failed;
        self.lost = Some(lost);
    }

    /// Returns once why a write has failed.
    pub(super) fn take_lost(&mut self) -> Option<Disconnect> {
        self.lost.take()
    }

    /// What to send next. With `only_first`, no call is pipelined. With `is_single`, the first call is the only one of
    /// its checkout.
    pub(super) fn poll_transmit<'a>(
        &mut self,
        calls: &'a mut Calls,
        connection: &'a mut Connection,
        only_first: bool,
        is_single: bool,
        now: &Now,
    ) -> Option<Transmit<'a>> {
        if self.stage == Stage::Failed {
            return None;
        }
        loop {
            let mode = match connection.calls_unanswered() {
                0 if is_single && connection.accepts_single_calls() => CallMode::Single,
                0 => CallMode::Sequential,
                _ => CallMode::Pipelined,
            };
            let bytes = calls.unanswered_bytes;
            if bytes >= connection.pipeline_window {
                self.filling = false;
            } else if bytes <= connection.pipeline_window / 2 {
                self.filling = true;
            }
            let may_send = mode != CallMode::Pipelined || self.filling && !only_first;
            if calls.is_streaming() {
                // Its worker reads only what belongs to the stream until that call has ended.
                break;
            }
            let Some(entry) = calls.next() else { break };
            if matches!(entry.progress, Progress::Queued)
                && !(may_send && self.prepare(entry, mode, connection, now))
            {
                break;
            }
            let Some(frame) = entry.frame() else { break };
            if matches!(entry.progress, Progress::Sending) {
                let frame = calls.sending();
                return connection.poll_transmit(frame);
            }
            if connection.wants_rings() {
                if connection.unsent_bytes() == 0 {
                    connection.offer_rings();
                }
                // Without an offer, which needs descriptors, the call goes at once.
                if connection.unsent_bytes() > 0 || connection.has_to_send() {
                    return connection.poll_transmit(None);
                }
            }
            let number = connection.put_call(&frame.bytes);
            calls.mark_sent(number);
            if connection.unsent_bytes() >= BATCH {
                break;
            }
        }
        connection.poll_transmit(None)
    }

    /// Prepares a call for this connection. Returns whether it can be sent now.
    fn prepare(
        &mut self,
        entry: &mut Entry,
        mode: CallMode,
        connection: &mut Connection,
        now: &Now,
    ) -> bool {
        let Operation::Call(frame, fitted) = &mut entry.operation else { return false };
        if entry.items.is_some() && !connection.sends_items() {
            entry.operation = Operation::Unsendable(NO_ITEMS.to_owned());
            return false;
        }
        if entry.input.is_some() && !connection.takes_input() {
            entry.operation = Operation::Unsendable(NO_INPUT.to_owned());
            return false;
        }
        if mode != CallMode::Pipelined {
            self.deadline_base = entry.deadline.map(|_| now.get());
            // The worker may begin before this session is advanced again.
            entry.timing.begin();
            entry.sent.start();
        }
        if connection.is_native() {
            native::set_call_mode(&mut frame.bytes[HEADER_LEN..], mode);
        }
        if let Some(deadline) = entry.deadline.filter(|_| connection.is_native()) {
            let Some(deadline_base) = self.deadline_base else { return false };
            let time = TimeLimit::new(deadline.saturating_duration_since(deadline_base));
            let time = time.microseconds().unwrap_or(NO_LIMIT);
            native::set_timeout(&mut frame.bytes[HEADER_LEN..], time);
        }
        let mut fits = Ok(());
        *fitted = None;
        if !frame.files.is_empty() || !frame.segments.is_empty() {
            let mut copy = frame.clone();
            fits =
                connection.fit(&mut copy).map(|in_buffers| frame.take_placed(&copy, &in_buffers));
            let differs = !frame.files.is_empty() || !copy.references.is_empty();
            *fitted = differs.then(|| Box::new(copy));
        }
        // This precedes the call: the call's memory may fit only after other memory was released.
        connection.put_shm_control();
        let frame = fitted.as_deref().unwrap_or(frame);
        let (length, limit) = (frame.len() - HEADER_LEN, connection.max_send);
        let fits = fits.and_then(|()| match length <= limit {
            true => Ok(()),
            false => {
                Err(format!("they take {length} bytes, and the limit of a message is {limit}"))
            }
        });
        if let Err(reason) = fits {
            entry.operation = Operation::Unsendable(reason);
            return false;
        }
        if frame.len() > SMALL || !frame.files.is_empty() || !frame.references.is_empty() {
            entry.progress = Progress::Sending;
        }
        true
    }
}

/// Records that `sent` further bytes of the call that is being sent were sent.
pub(super) fn handle_call_sent(calls: &mut Calls, connection: &mut Connection, sent: usize) {
    let Some(frame) = calls.sending() else { return };
    if let Some(number) = connection.handle_call_sent(frame, sent)
        && calls.mark_sent(number)
    {
        // Without credit its worker would wait, and the calls behind it as well.
        connection.cancel_call(number);
    }
}
