//! A connection to one worker: it sends frames and receives messages, and never blocks.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::disconnect::Disconnect;
use super::handshake::{HandshakeError, PeerLimits, PendingHandshake};
use super::io::spin::{ReplySpin, SpinGuard};
use super::io::transport::Transport;
use super::io::waker::ConnectionWaker;
use super::outbox::Outbox;
use super::perl::Perl;
use super::read_budget::ReadBudget;
use crate::error::ConnectionError;
use crate::ring::Rings;
use crate::shm_pool::ShmPool;
use crate::sys;
use crate::wire::frame;
use crate::wire::gather_frame::{GatherFrame, MAX_SLICES, OutgoingFile};
use crate::wire::native;
use crate::wire::perl;
use crate::wire::{Protocol, WireError};

/// The most messages and bytes that are read after a failed write, to find the worker's last message. A buffer
/// of the kernel holds fewer, so only a worker that continues to send reaches these limits.
const MOST_LAST_MESSAGES: usize = 4096;
const MOST_LAST_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) stream: Box<dyn Transport>,
    pub(super) inbox: BytesMut,
    pub(super) outbox: Outbox,
    pub(crate) notifier: Arc<ConnectionWaker>,
    pub(super) waker: Waker,
    pub(crate) pid: u32,
    /// The longest frame that the worker accepts, and the longest that this side accepts.
    pub(crate) max_send: usize,
    pub(super) max_receive: usize,
    /// The longest blob in a memfd that the worker accepts, and the longest that this side accepts.
    pub(super) max_blob_sent: usize,
    pub(super) max_blob: usize,
    /// How many bytes of unanswered calls the worker accepts.
    pub(crate) pipeline_window: usize,
    /// The most files that a message in either direction may have.
    pub(crate) files: usize,
    /// Received files whose messages have not been taken, and how many of them belong to the next message.
    pub(super) files_received: Vec<OwnedFd>,
    pub(super) announced_files: usize,
    pub(super) sharing: Sharing,
    pub(super) shm_pool: ShmPool,
    pub(super) rings: Option<Box<Rings>>,
    /// After how many calls rings are offered. `None` unless the worker has agreed to share memory.
    pub(super) offers_rings_after: Option<u64>,
    /// A task spins for the next message.
    pub(super) spinning: bool,
    /// How many of the next answers belong to calls that the worker skips, because a call before them
    /// failed.
    skipped_answers_due: usize,
    /// How many calls have been answered.
    answered: u64,
    /// A part of a call has been sent, and its rest must be sent next.
    pub(super) mid_call: bool,
    /// A long message has been sent, so the socket's send buffer is large.
    has_large_send_buffer: bool,
    /// How much has been handled in this turn.
    pub(super) read_budget: ReadBudget,
    /// How many bytes have been received since the last answer.
    bytes_since_answer: usize,
    /// The last answer exceeded an atomic write. A worker that dies in such a write gets no notice of its death.
    last_answer_long: bool,
    spin: ReplySpin,
    /// The state of reading the protocol of AnyEvent::Task; `None` for the native protocol.
    perl: Option<Perl>,
    /// Set until the worker has sent its hello.
    pub(super) pending_handshake: Option<PendingHandshake>,
}

/// The parts of a new connection.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: Box<dyn Transport>,
    pub(crate) protocol: Protocol,
    pub(crate) inbox: BytesMut,
    /// The worker's process id; 0 if it is not known yet.
    pub(crate) pid: u32,
    pub(crate) limits: PeerLimits,
    pub(crate) max_receive: usize,
    /// The longest blob in a memfd that this side accepts, in bytes.
    pub(crate) max_blob: usize,
    /// The most bytes of the worker's shared memory that may be mapped here.
    pub(crate) max_shared: usize,
    /// Whether bytes that arrive in shared memory are copied.
    pub(crate) copy_shared_memory: bool,
    pub(crate) spin: ReplySpin,
}

/// Whether both sides use shared memory, for long blobs and for rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// The client did not request it.
    Off,
    /// The client requested it, and the worker has not agreed yet.
    Requested {
        /// The most bytes that this side keeps for it.
        max_shared: usize,
    },
    Agreed,
}

impl Connection {
    pub(crate) fn new(parts: NewConnection, notifier: Arc<ConnectionWaker>) -> Self {
        let NewConnection {
            stream,
            protocol,
            inbox,
            pid,
            limits,
            max_receive,
            max_blob,
            max_shared,
            copy_shared_memory,
            spin,
        } = parts;
        let PeerLimits { max_send, max_blob: max_blob_sent, pipeline_window, files } = limits;
        let perl = (protocol == Protocol::Perl).then(Perl::default);
        let waker = Waker::from(notifier.clone());
        let outbox = Outbox::default();
        let (mid_call, bytes_since_answer, last_answer_long) = (false, 0, false);
        Self {
            stream,
            inbox,
            outbox,
            notifier,
            waker,
            pid,
            max_send,
            max_receive,
            max_blob_sent,
            max_blob,
            pipeline_window,
            files,
            files_received: Vec::new(),
            announced_files: 0,
            sharing: if max_shared > 0 { Sharing::Requested { max_shared } } else { Sharing::Off },
            // The capacity is 0 until the worker agrees.
            shm_pool: ShmPool::new(0, max_shared, sys::effective_user())
                .copying(copy_shared_memory),
            rings: None,
            offers_rings_after: None,
            spinning: false,
            skipped_answers_due: 0,
            answered: 0,
            mid_call,
            has_large_send_buffer: false,
            read_budget: ReadBudget::default(),
            bytes_since_answer,
            last_answer_long,
            spin,
            perl,
            pending_handshake: None,
        }
    }

    /// Creates a connection whose handshake is pending, with the expected limits. The outbox begins with
    /// `hello`, so that it goes out with the first call.
    pub(crate) fn before_handshake(
        parts: NewConnection,
        notifier: Arc<ConnectionWaker>,
        hello: Vec<u8>,
        handshake: PendingHandshake,
    ) -> Self {
        let mut connection = Self::new(parts, notifier);
        connection.outbox.bytes = hello;
        connection.pending_handshake = Some(handshake);
        connection
    }

    /// Begins a turn of reading. See [`ReadBudget`].
    pub(crate) fn begin_read(&mut self) {
        self.read_budget.begin();
    }

    /// Counts telemetry of this length as handled in this turn.
    pub(crate) fn count_telemetry(&mut self, bytes: usize) {
        self.read_budget.count_telemetry(bytes);
    }

    /// Whether a whole turn was too short for what the worker sent while no call runs. Answers of skipped calls
    /// do not count.
    pub(crate) fn sends_unsolicited(&self) -> bool {
        !self.is_skipped_answer_due() && self.read_budget.is_over()
    }

    /// Whether the worker has sent too many messages since its last answer.
    pub(crate) fn is_flooding(&self) -> bool {
        self.read_budget.is_flooding()
    }

    /// How many calls have been sent in full.
    pub(crate) fn calls_sent(&self) -> u64 {
        self.outbox.calls
    }

    pub(crate) fn is_native(&self) -> bool {
        self.perl.is_none()
    }

    /// Whether answers that the worker has sent can be lost at the end of the connection.
    pub(crate) fn can_lose_answers(&self) -> bool {
        self.stream.can_lose_answers()
    }

    /// Appends a call to the outbox. Returns the call's number.
    pub(crate) fn put_call(&mut self, frame: &[u8]) -> u64 {
        if self.outbox.calls > 0 && self.spin.has_other_cores() {
            self.stream.watch_writable();
        }
        self.offer_rings();
        self.outbox.put_call(frame)
    }

    /// How many bytes the outbox holds.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.outbox.bytes.len()
    }

    /// Sends a call whose first `sent` bytes have been sent. Returns the call's number.
    pub(crate) fn poll_send(
        &mut self,
        frame: &GatherFrame,
        sent: &mut usize,
    ) -> Poll<Result<u64, Disconnect>> {
        if *sent == 0
            && frame.is_large()
            && !std::mem::replace(&mut self.has_large_send_buffer, true)
        {
            self.stream.enlarge_send_buffer();
        }
        if *sent == 0 && !frame.files.is_empty() {
            // The files accompany the first byte of this call, so no other bytes may precede it in the write.
            ready!(self.poll_flush())?;
        }
        while *sent < frame.len() {
            let (slices, count) = frame.slices(*sent);
            let files = if *sent == 0 { &frame.files[..] } else { &[] };
            let wrote = ready!(self.poll_write(&slices[..count], files))?;
            if *sent == 0 && wrote > 0 {
                self.shm_pool.mark_sent(&frame.references);
            }
            *sent += wrote;
            self.mid_call = *sent > 0;
        }
        self.mid_call = false;
        self.spin.record_sent();
        Poll::Ready(Ok(self.outbox.count_direct_call()))
    }

    /// Appends the rest of a partly sent call, which the worker will skip.
    pub(crate) fn put_rest(&mut self, rest: &[u8]) {
        self.mid_call = false;
        self.outbox.put_call(rest);
        self.outbox.put_socket_only(&[]);
    }

    /// Expects answers of this many sent calls that the worker skips, because a call before them failed.
    pub(crate) fn expect_skipped(&mut self, calls: usize) {
        self.skipped_answers_due += calls;
    }

    /// Whether the next answer belongs to a skipped call.
    pub(crate) fn is_skipped_answer_due(&self) -> bool {
        self.skipped_answers_due > 0
    }

    /// Accepts the number in an answer.
    ///
    /// # Errors
    /// If it is not the number of the next call that is due: then the answer belongs to another call. The protocol
    /// of AnyEvent::Task has no numbers.
    pub(crate) fn accept_answer_number(&mut self, call: Option<u64>) -> Result<(), String> {
        let expected = self.answered + 1;
        if self.is_native() && call != Some(expected) {
            let received = call.map_or("an answer without a number".to_owned(), |call| {
                format!("the answer to call {call}")
            });
            return Err(format!(
                "the worker sent {received} where that to call {expected} was due"
            ));
        }
        self.answered = expected;
        Ok(())
    }

    /// Records that an answer was received. `is_another_due` says whether a pipelined call waits for its own.
    pub(crate) fn record_answer(&mut self, is_another_due: bool) {
        if self.spinning {
            self.spin.record_found();
            self.clear_spinning();
        }
        self.spin.record_answer(is_another_due);
        self.read_budget.record_answer();
        self.last_answer_long = std::mem::take(&mut self.bytes_since_answer) > frame::ATOMIC_WRITE;
    }

    /// Whether the worker may still write its last answer. If it dies then, its notice has no count of begun calls.
    /// So at most one call may be unread, or no other worker can take over.
    pub(crate) fn may_be_answering(&self) -> bool {
        self.last_answer_long
    }

    /// Asks the worker to skip a sent call if it has not begun it. Does nothing while another call is partly sent.
    pub(crate) fn cancel_call(&mut self, call: u64) -> Result<(), Disconnect> {
        if self.mid_call {
            return Ok(());
        }
        self.put(|out| native::put_cancel(out, call))?;
        // Through the socket, so that the worker can find it before it has read the calls in front.
        self.outbox.put_socket_only(&[]);
        self.flush()
    }

    /// Appends the number of waiting checkouts to the outbox.
    pub(crate) fn put_queue_length(&mut self, checkouts: u64) -> Result<(), Disconnect> {
        match self.is_native() {
            true => self.put(|out| native::put_queue_length(out, checkouts)),
            false => Ok(()),
        }
    }

    /// Appends the end of the checkout to the outbox.
    pub(crate) fn put_done(&mut self) -> Result<(), Disconnect> {
        if !self.is_native() {
            perl::put_done(&mut self.outbox.bytes);
            return Ok(());
        }
        self.put(native::put_done)
    }

    /// Sends the end of the checkout before the connection is closed after an error. AnyEvent::Task sends none
    /// then.
    pub(crate) fn send_done(&mut self) {
        if self.is_native() {
            // If it cannot be sent, the connection has ended, which tells the worker the same.
            let _ = self.put_done().and_then(|()| self.flush());
        }
    }

    fn put(&mut self, message: impl FnOnce(&mut Vec<u8>)) -> Result<(), Disconnect> {
        let written = frame::write_control(&mut self.outbox.bytes, |out| message(out));
        written.map_err(Disconnect::from)
    }

    /// Sends as much of the outbox as it can without waiting.
    pub(crate) fn flush(&mut self) -> Result<(), Disconnect> {
        match self.poll_flush() {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Sends the outbox.
    pub(crate) fn poll_flush(&mut self) -> Poll<Result<(), Disconnect>> {
        let calls = self.outbox.calls;
        while !self.outbox.bytes.is_empty() {
            if ready!(self.poll_put_in_ring()) {
                continue;
            }
            ready!(self.poll_write(&[], &[]))?;
        }
        if self.outbox.calls > calls {
            self.spin.record_sent();
        }
        Poll::Ready(Ok(()))
    }

    /// Sends some bytes of the outbox followed by `call`. Returns how many bytes of `call` it sent.
    fn poll_write(
        &mut self,
        call: &[IoSlice<'_>],
        files: &[OutgoingFile],
    ) -> Poll<Result<usize, Disconnect>> {
        let mut context = Context::from_waker(&self.waker);
        let mut slices = [IoSlice::new(&self.outbox.bytes); 1 + MAX_SLICES];
        slices[1..=call.len()].copy_from_slice(call);
        let first = usize::from(self.outbox.bytes.is_empty());
        let wrote = self.stream.poll_write(&mut context, &slices[first..=call.len()], files);
        let wrote = ready!(wrote).map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => self.close_reason(),
            io::ErrorKind::ConnectionReset => self.unread_reason(),
            _ => Disconnect::Protocol(ConnectionError::system(error)),
        })?;
        self.rings.iter_mut().for_each(|rings| rings.record_sent(wrote));
        Poll::Ready(Ok(self.outbox.mark_sent(wrote)))
    }

    /// Reads the worker's last message after a failed write. It asks the socket itself, because the reactor
    /// may not have reported the message yet.
    pub(crate) fn read_last_message(&mut self, lost: Disconnect) -> Result<Bytes, Disconnect> {
        if !self.read_handshake_now()? {
            return Err(Disconnect::NoHandshake(HandshakeError::Closed.into()));
        }
        let (mut messages, mut bytes) = (0, 0);
        while messages < MOST_LAST_MESSAGES && bytes < MOST_LAST_BYTES {
            match self.take_message() {
                Ok(None) => {}
                Ok(Some(body)) if self.discard_skipped(&body) || self.handle_control(&body)? => {
                    messages += 1;
                    continue;
                }
                Ok(Some(body)) => return Ok(body),
                Err(_) => return Err(lost),
            }
            match self.receive_now() {
                Ok(length) if length > 0 => bytes += length,
                Err(Errno::INTR) => {}
                _ if self.has_ring_message() => {}
                Ok(_) | Err(_) => return Err(lost),
            }
        }
        Err(lost)
    }

    /// Reserves capacity for the next read.
    pub(super) fn reserve(&mut self) {
        let room = match &self.perl {
            None => frame::room_for_next_read(&self.inbox),
            Some(_) => Perl::room_for_next_read(&self.inbox),
        };
        self.inbox.reserve(room);
    }

    /// Receives what the socket has, without asking the reactor.
    pub(super) fn receive_now(&mut self) -> rustix::io::Result<usize> {
        self.reserve();
        let received = self.stream.receive_now(&mut self.inbox, &mut self.files_received)?;
        self.count_received(received);
        Ok(received)
    }

    /// Starts to spin for an answer, if the policy allows it.
    pub(crate) fn start_spin(&mut self) -> Option<SpinGuard> {
        let spin_guard = if self.is_established() { self.spin.begin() } else { None };
        if spin_guard.is_some() {
            self.set_spinning();
        }
        spin_guard
    }

    /// Whether a message, or the end of the connection, can be read now.
    pub(crate) fn try_receive(&mut self, spin_guard: &SpinGuard) -> bool {
        match self.rings {
            Some(_) if self.has_ring_message() => true,
            Some(_) if !spin_guard.checks_socket() => false,
            // The next read returns any other error again.
            _ => !matches!(self.receive_now(), Err(Errno::AGAIN | Errno::INTR)),
        }
    }

    /// Ends a spin. `found` says whether the answer came.
    pub(crate) fn finish_spin(&mut self, spin_guard: &SpinGuard, found: bool) {
        self.spin.finish(spin_guard, found);
        self.clear_spinning();
    }

    /// Discards a message if it is the answer of a skipped call. Returns whether it was one.
    fn discard_skipped(&mut self, message: &[u8]) -> bool {
        if !self.is_skipped_answer_due() || native::skipped_call(message) != Some(self.answered + 1)
        {
            return false;
        }
        self.skipped_answers_due -= 1;
        self.answered += 1;
        true
    }

    /// Takes the next received message, translated to the native protocol.
    fn take_message(&mut self) -> Result<Option<Bytes>, WireError> {
        match &mut self.perl {
            None => self.take_native(),
            Some(perl) => perl.take(&mut self.inbox, self.max_receive),
        }
    }

    /// Receives the body of the next message.
    pub(crate) fn poll_message(&mut self) -> Poll<Result<Bytes, Disconnect>> {
        ready!(self.poll_handshake())?;
        loop {
            ready!(self.poll_read_budget());
            if let Some(body) = self.take_message()? {
                self.read_budget.count_message();
                self.bytes_since_answer += frame::HEADER_LEN + body.len();
                if self.discard_skipped(&body) {
                    continue;
                }
                if !self.handle_control(&body)? {
                    return Poll::Ready(Ok(body));
                }
                self.read_budget.count_other();
                continue;
            }
            self.reserve();
            let mut context = Context::from_waker(&self.waker);
            let read =
                self.stream.poll_read(&mut context, &mut self.inbox, &mut self.files_received);
            let Poll::Ready(read) = read else {
                match self.prepare_sleep() {
                    true => return Poll::Pending,
                    false => continue,
                }
            };
            match read {
                Ok(0) if self.has_ring_message() => {}
                Ok(0) => return Poll::Ready(Err(self.end_reason())),
                Ok(length) => {
                    self.count_received(length);
                    self.read_budget.count_bytes(length);
                    self.spin.record_sleep();
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Err(self.unread_reason()));
                }
                Err(error) => return Poll::Ready(Err(Disconnect::of_read(error))),
            }
        }
    }
}
