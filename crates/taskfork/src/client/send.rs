//! Sending the calls of a checkout: the first one at once, and those behind it before it is answered, many in
//! one write.

use std::task::Poll;
use std::time::Instant;

use super::connection::Connection;
use super::disconnect::Disconnect;
use super::entries::{Entries, Entry, Operation, Progress};
use super::io::time;
use crate::time_limit::TimeLimit;
use crate::wire::frame::HEADER_LEN;
use crate::wire::native::{self, CallMode, NO_LIMIT};

/// Calls up to this size, in bytes, are copied into the outbox, so that one write sends several.
const SMALL: usize = 4 << 10;

/// The outbox is sent when it has this many bytes.
const BATCH: usize = 32 << 10;

/// The state of sending on a connection.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// When the last sequential call was sent. The timeouts of calls pipelined behind it count from then.
    /// `None` if it had no timeout.
    deadline_base: Option<Instant>,
    /// Calls are pipelined. This stops when the window is full, until half of it is free.
    filling: bool,
    /// A write has failed.
    write_closed: bool,
    /// The first call has been sent.
    started: bool,
}

impl Sender {
    /// Returns true once: when the first call is about to be sent.
    pub(super) fn start_first_call(&mut self, calls: &mut Entries) -> bool {
        !self.started && calls.next().is_some() && !std::mem::replace(&mut self.started, true)
    }

    /// Sends as much as possible without waiting. With `only_first`, it pipelines no call.
    ///
    /// # Errors
    /// If a write fails and the first unanswered call was not sent in full.
    pub(super) fn send(
        &mut self,
        calls: &mut Entries,
        connection: &mut Connection,
        only_first: bool,
    ) -> Result<(), Disconnect> {
        if self.write_closed {
            return Ok(());
        }
        let Poll::Ready(Err(lost)) = self.poll(calls, connection, only_first) else {
            return Ok(());
        };
        // Answers of calls that were sent before can still be read.
        let first = calls.head().and_then(|(_, head)| head.number());
        self.write_closed = first.is_some_and(|first| first <= connection.calls_sent());
        if self.write_closed { Ok(()) } else { Err(lost) }
    }

    fn poll(
        &mut self,
        calls: &mut Entries,
        connection: &mut Connection,
        only_first: bool,
    ) -> Poll<Result<(), Disconnect>> {
        loop {
            let mode =
                if calls.unanswered == 0 { CallMode::Sequential } else { CallMode::Pipelined };
            let bytes = calls.unanswered_bytes;
            if bytes >= connection.pipeline_window {
                self.filling = false;
            } else if bytes <= connection.pipeline_window / 2 {
                self.filling = true;
            }
            let may_send = mode == CallMode::Sequential || self.filling && !only_first;
            let Some(entry) = calls.next() else { break };
            if matches!(entry.progress, Progress::Queued)
                && !(may_send && self.prepare(entry, mode, connection))
            {
                break;
            }
            let Operation::Call(frame, fitted) = &entry.operation else { break };
            let frame = fitted.as_deref().unwrap_or(frame);
            let number = match &mut entry.progress {
                Progress::Sending(sent) => std::task::ready!(connection.poll_send(frame, sent))?,
                _ => connection.put_call(&frame.bytes),
            };
            calls.mark_sent(number);
            if connection.unsent_bytes() >= BATCH {
                std::task::ready!(connection.poll_flush())?;
            }
        }
        connection.poll_flush()
    }

    /// Prepares a call for this connection. Returns whether it can be sent now.
    fn prepare(&mut self, entry: &mut Entry, mode: CallMode, connection: &mut Connection) -> bool {
        let Operation::Call(frame, fitted) = &mut entry.operation else { return false };
        if mode == CallMode::Sequential {
            self.deadline_base = entry.deadline.map(|_| time::now());
            // The worker may begin before this session is advanced again.
            entry.timing.begin();
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
            fits = connection.fit(&mut copy);
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
            entry.progress = Progress::Sending(0);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use super::*;
    use crate::client::log::Timing;
    use crate::client::metrics::Stopwatch;
    use crate::client::rings::tests::{connect, run};
    use crate::ring::tests::frame;
    use crate::wire::gather_frame::{GatherFrame, OutgoingFile};

    fn call(files: Vec<OutgoingFile>) -> Entry {
        let mut body = Vec::new();
        native::put_call(&mut body, None, native::CallMeta::default());
        native::put_argument_count(&mut body, 0);
        let frame = GatherFrame { bytes: frame(&body), files, ..GatherFrame::default() };
        Entry {
            method: None,
            operation: Operation::Call(frame, None),
            progress: Progress::Queued,
            deadline: None,
            waker: None,
            abandoned: false,
            timing: Timing::Off,
            sent: Stopwatch::new(),
            replay: None,
        }
    }

    #[test]
    fn sent_calls_may_be_answered_after_a_later_write_has_failed() {
        run(async {
            let file =
                || vec![OutgoingFile::new(Arc::new(File::open("/dev/null").unwrap().into()))];
            for (first, sent) in [(Vec::new(), 1), (file(), 0)] {
                let (here, there) = UnixStream::pair().unwrap();
                let (mut connection, _worker) = connect(here);
                connection.pipeline_window = 1 << 16;
                let mut calls = Entries::default();
                calls.push(call(first));
                calls.push(call(file()));
                drop(there);
                let result = Sender::default().send(&mut calls, &mut connection, false);
                assert_eq!((connection.calls_sent(), result.is_ok()), (sent, sent > 0));
            }
        });
    }
}
