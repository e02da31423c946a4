//! A connection to one worker: frames out, messages in, never blocking.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::disconnect::Disconnect;
use super::handshake::{HandshakeError, PeerLimits, PendingHandshake};
use super::outbox::Outbox;
use super::perl::Perl;
use super::read_budget::ReadBudget;
use super::reply_spin::{ReplySpin, SpinGuard};
use super::stream::Stream;
use super::waker::ConnectionWaker;
use crate::ring::Rings;
use crate::shm_pool::ShmPool;
use crate::sys;
use crate::wire::frame;
use crate::wire::gather_frame::{GatherFrame, MAX_SLICES, OutgoingFile};
use crate::wire::native;
use crate::wire::perl;
use crate::wire::{Protocol, WireError};

/// The most messages, and bytes, that are read to find what a worker said before its connection failed. A buffer of
/// the kernel holds fewer, so that only a worker that goes on sending reaches this.
const MOST_LAST_MESSAGES: usize = 4096;
const MOST_LAST_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) stream: Stream,
    pub(super) inbox: BytesMut,
    pub(super) outbox: Outbox,
    pub(crate) notifier: Arc<ConnectionWaker>,
    pub(super) waker: Waker,
    pub(crate) pid: u32,
    /// The longest frame to be sent, and to be taken.
    pub(crate) max_send: usize,
    pub(super) max_receive: usize,
    /// The longest blob that the worker takes as memory, and that is taken as such.
    pub(super) max_blob_sent: usize,
    pub(super) max_blob: usize,
    /// How many bytes of calls the worker takes before it has answered them.
    pub(crate) pipeline_window: usize,
    /// How many files can go with a message, and come with one.
    pub(crate) files: usize,
    /// Those that have come and belong to messages to come, and how many of them to the next.
    pub(super) files_received: Vec<OwnedFd>,
    pub(super) announced_files: usize,
    pub(super) sharing: Sharing,
    pub(super) shm_pool: ShmPool,
    pub(super) rings: Option<Box<Rings>>,
    /// The worker has agreed to share memory, and they are offered after so many calls.
    pub(super) offers_rings_after: Option<u64>,
    /// Somebody looks for the next message.
    pub(super) spinning: bool,
    /// How many of the next answers are those of calls that the worker has skipped, as one before
    /// them failed.
    to_skip: usize,
    /// How many calls have been answered.
    answered: u64,
    /// A part of a call has been sent, and its rest must come next.
    pub(super) mid_call: bool,
    /// Long messages have been sent.
    has_large_send_buffer: bool,
    /// What has been handled in this turn.
    pub(super) read_budget: ReadBudget,
    /// How many bytes have come since the last answer.
    bytes_since_answer: usize,
    /// The last answer was so long that the server tells of no death in the middle of it.
    last_answer_long: bool,
    spin: ReplySpin,
    /// What is needed to read the other protocol, if that is spoken.
    perl: Option<Perl>,
    /// Set until the worker has sent its hello.
    pub(super) pending_handshake: Option<PendingHandshake>,
}

/// What a new connection is made of.
#[derive(Debug)]
pub(crate) struct NewConnection {
    pub(crate) stream: Stream,
    pub(crate) protocol: Protocol,
    pub(crate) inbox: BytesMut,
    /// 0 if it is not known.
    pub(crate) pid: u32,
    pub(crate) limits: PeerLimits,
    pub(crate) max_receive: usize,
    /// The longest blob that is taken as memory.
    pub(crate) max_blob: usize,
    /// How much of the worker's memory may be mapped here.
    pub(crate) max_shared: usize,
    /// Whether bytes that arrive in shared memory are copied.
    pub(crate) copy_shared_memory: bool,
    pub(crate) spin: ReplySpin,
}

/// Whether memory is shared with the worker, that is memory that is lent, and rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sharing {
    /// It was not asked for.
    No,
    /// The worker has not agreed, and may never; no more than so many bytes would be lent.
    Asked {
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
        let (to_skip, mid_call, bytes_since_answer, last_answer_long) = (0, false, 0, false);
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
            sharing: if max_shared > 0 { Sharing::Asked { max_shared } } else { Sharing::No },
            // The worker keeps no memory before it has agreed to.
            shm_pool: ShmPool::new(0, max_shared, sys::effective_user())
                .copying(copy_shared_memory),
            rings: None,
            offers_rings_after: None,
            spinning: false,
            to_skip,
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

    /// Makes a connection whose handshake is pending, with the expected limits. The hello goes with
    /// the first call.
    pub(crate) fn before_handshake(
        parts: NewConnection,
        notifier: Arc<ConnectionWaker>,
        said: Vec<u8>,
        handshake: PendingHandshake,
    ) -> Self {
        let mut connection = Self::new(parts, notifier);
        connection.outbox.bytes = said;
        connection.pending_handshake = Some(handshake);
        connection
    }

    /// From here on as much is handled as belongs to one turn.
    pub(crate) fn begin_read(&mut self) {
        self.read_budget.begin();
    }

    /// Notes of so many bytes are handled in this turn.
    pub(crate) fn count_notes(&mut self, bytes: usize) {
        self.read_budget.noted(bytes);
    }

    /// Whether a whole turn was not enough for what has come, answers of calls that are not to be run aside. A worker
    /// has not so much to say while no call runs.
    pub(crate) fn sends_unsolicited(&self) -> bool {
        !self.is_skipping() && self.read_budget.is_over()
    }

    /// Whether the worker has sent more messages since its last answer than it has reason to.
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

    pub(crate) fn is_tcp(&self) -> bool {
        self.stream.is_tcp()
    }

    /// Has a call sent with what is sent next; gives its number.
    pub(crate) fn put_call(&mut self, frame: &[u8]) -> u64 {
        if self.outbox.calls > 0 && self.spin.has_other_cores() {
            self.stream.watch_writable();
        }
        self.offer_rings();
        self.outbox.put_call(frame)
    }

    /// How many bytes are to be sent.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.outbox.bytes.len()
    }

    /// Sends a call, but for its first `sent` bytes; gives its number.
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
            // They go with the first of the call's own bytes.
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

    /// Has the rest of a call sent whose beginning has been, and which will not be run.
    pub(crate) fn put_rest(&mut self, rest: &[u8]) {
        self.mid_call = false;
        self.outbox.put_call(rest);
        self.outbox.put_socket_only(&[]);
    }

    /// So many calls that have been sent will not be run, as one before them failed.
    pub(crate) fn skip(&mut self, calls: usize) {
        self.to_skip += calls;
    }

    /// Whether the next answer is that of a call which is not to be run.
    pub(crate) fn is_skipping(&self) -> bool {
        self.to_skip > 0
    }

    /// Takes the number that an answer has. One that is not that of the next call to be answered is an error: the
    /// answer is another call's. The other protocol has no numbers.
    pub(crate) fn accept_answer_number(&mut self, call: Option<u64>) -> Result<(), String> {
        let expected = self.answered + 1;
        if self.is_native() && call != Some(expected) {
            let said = call.map_or("an answer without a number".to_owned(), |call| {
                format!("the answer to call {call}")
            });
            return Err(format!("the worker sent {said} where that to call {expected} was due"));
        }
        self.answered = expected;
        Ok(())
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self) {
        if self.spinning {
            self.spin.record_found();
            self.clear_spinning();
        }
        self.read_budget.answered();
        self.last_answer_long = std::mem::take(&mut self.bytes_since_answer) > frame::ATOMIC_WRITE;
    }

    /// Whether a worker that dies now may still be taken to write its last answer, so that nobody
    /// tells how many calls it has begun: not more than one may be unread then, if another worker is
    /// to take its place.
    pub(crate) fn may_be_answering(&self) -> bool {
        self.last_answer_long
    }

    /// Takes a call back that has been sent, if it has not begun, and if that can be said now.
    pub(crate) fn cancel_call(&mut self, call: u64) -> Result<(), Disconnect> {
        if self.mid_call {
            return Ok(());
        }
        self.put(|out| native::put_cancel(out, call))?;
        // It is to be found while others before it have not been read.
        self.outbox.put_socket_only(&[]);
        self.flush()
    }

    /// Has it said with what is sent next how many checkouts wait.
    pub(crate) fn put_queue_length(&mut self, checkouts: u64) -> Result<(), Disconnect> {
        match self.is_native() {
            true => self.put(|out| native::put_queue_length(out, checkouts)),
            false => Ok(()),
        }
    }

    /// Has the end of the checkout said with what is sent next.
    pub(crate) fn put_done(&mut self) -> Result<(), Disconnect> {
        if !self.is_native() {
            perl::put_done(&mut self.outbox.bytes);
            return Ok(());
        }
        self.put(native::put_done)
    }

    /// Says that the checkout is over, before the connection is closed after an error in it. AnyEvent::Task
    /// does not say so then.
    pub(crate) fn send_done(&mut self) {
        if self.is_native() {
            // One that cannot be sent is not needed.
            let _ = self.put_done().and_then(|()| self.flush());
        }
    }

    fn put(&mut self, message: impl FnOnce(&mut Vec<u8>)) -> Result<(), Disconnect> {
        let said = frame::write_control(&mut self.outbox.bytes, |out| message(out));
        said.map_err(Disconnect::from)
    }

    /// Sends what waits in the outbox, as far as that can be without waiting.
    pub(crate) fn flush(&mut self) -> Result<(), Disconnect> {
        match self.poll_flush() {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Sends what waits in the outbox.
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

    /// Sends some of what waits, and of `call` behind it; gives how much of that.
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
            io::ErrorKind::ConnectionReset => Disconnect::Unread,
            _ => Disconnect::Protocol(error.to_string()),
        })?;
        self.rings.iter_mut().for_each(|rings| rings.record_sent(wrote));
        Poll::Ready(Ok(self.outbox.mark_sent(wrote)))
    }

    /// The message that is there already when a write has failed, whether the reactor has heard of
    /// it or not.
    pub(crate) fn read_last_message(&mut self, lost: Disconnect) -> Result<Bytes, Disconnect> {
        if !self.read_handshake_now()? {
            return Err(Disconnect::NoHandshake(HandshakeError::Closed.to_string()));
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

    /// Makes room for the next read.
    pub(super) fn reserve(&mut self) {
        let room = match &self.perl {
            None => frame::room_for_next_read(&self.inbox),
            Some(_) => Perl::room_for_next_read(&self.inbox),
        };
        self.inbox.reserve(room);
    }

    /// Takes what is there, without asking the reactor.
    pub(super) fn receive_now(&mut self) -> rustix::io::Result<usize> {
        self.reserve();
        let received = self.stream.receive_now(&mut self.inbox, &mut self.files_received)?;
        self.count_received(received);
        Ok(received)
    }

    /// Begins to look for an answer, if it is to be looked for.
    pub(crate) fn start_spin(&mut self) -> Option<SpinGuard> {
        let spin_guard = if self.is_established() { self.spin.begin() } else { None };
        if spin_guard.is_some() {
            self.set_spinning();
        }
        spin_guard
    }

    /// Whether there is something now.
    pub(crate) fn try_receive(&mut self, spin_guard: &SpinGuard) -> bool {
        match self.rings {
            Some(_) if self.has_ring_message() => true,
            Some(_) if !spin_guard.checks_socket() => false,
            // Whatever else it is, it comes again.
            _ => !matches!(self.receive_now(), Err(Errno::AGAIN | Errno::INTR)),
        }
    }

    /// A look is over, with what came of it.
    pub(crate) fn finish_spin(&mut self, spin_guard: &SpinGuard, found: bool) {
        self.spin.finish(spin_guard, found);
        self.clear_spinning();
    }

    /// Whether a message is the answer of a call that is not to be run, for which nobody waits.
    fn discard_skipped(&mut self, message: &[u8]) -> bool {
        if self.to_skip == 0 || native::skipped_call(message) != Some(self.answered + 1) {
            return false;
        }
        self.to_skip -= 1;
        self.answered += 1;
        true
    }

    /// Takes the next message off what has been received, in the words of the native protocol.
    fn take_message(&mut self) -> Result<Option<Bytes>, WireError> {
        match &mut self.perl {
            None => self.take_native(),
            Some(perl) => perl.take(&mut self.inbox, self.max_receive),
        }
    }

    /// The next message's body.
    pub(crate) fn poll_message(&mut self) -> Poll<Result<Bytes, Disconnect>> {
        ready!(self.poll_handshake())?;
        loop {
            ready!(self.poll_read_budget());
            if let Some(body) = self.take_message()? {
                self.read_budget.took();
                self.bytes_since_answer += frame::HEADER_LEN + body.len();
                if self.discard_skipped(&body) {
                    continue;
                }
                if !self.handle_control(&body)? {
                    return Poll::Ready(Ok(body));
                }
                self.read_budget.took_other();
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
                    self.read_budget.read(length);
                    self.spin.record_sleep();
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Poll::Ready(Err(Disconnect::Unread));
                }
                Err(error) => return Poll::Ready(Err(Disconnect::of_read(&error))),
            }
        }
    }
}
