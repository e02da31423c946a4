//! A connection to one worker: what it sends, what it receives, and how far its calls have got.

use std::cmp::Ordering;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::call_numbers::CallNumbers;
use super::disconnect::Disconnect;
use super::handshake::{Handshake, PeerLimits, PendingHandshake};
use super::input::Input;
use super::io_types::{End, Event, Need, Transmit};
use super::outbox::Outbox;
use super::perl::Perl;
use super::read_budget::ReadBudget;
use super::ring_offer::RingOffer;
use super::unsent_item::UnsentItem;
use crate::client::now::Now;
use crate::ring::Rings;
use crate::shm_pool::ShmPool;
use crate::sys;
use crate::wire::frame;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::native::{self, FromWorker, StreamEnd};
use crate::wire::{Protocol, WireError};

#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) inbox: BytesMut,
    pub(super) outbox: Outbox,
    pub(super) calls: CallNumbers,
    pub(super) input: Input,
    pub(crate) pid: u32,
    /// The longest frame that the worker accepts, and the longest that this side accepts.
    pub(crate) max_send: usize,
    pub(super) max_receive: usize,
    /// The longest blob in a memfd that the worker accepts, and the longest that this side accepts.
    pub(super) max_blob_sent: usize,
    pub(super) max_blob: usize,
    /// How many bytes of unanswered calls the worker accepts.
    pub(crate) pipeline_window: usize,
    pub(super) accepts_single_calls: bool,
    /// The worker streams items.
    pub(super) sends_items: bool,
    /// The worker takes inputs.
    pub(super) takes_input: bool,
    /// The item that is sent behind the outbox.
    pub(super) item: Option<Box<UnsentItem>>,
    /// The last call ends its checkout, so no other message has to.
    pub(super) is_last_call_single: bool,
    /// The most files that a call may have, and an answer.
    pub(super) files: usize,
    pub(super) max_files: usize,
    /// Received files whose messages have not been taken, and how many of them belong to the next message.
    pub(super) files_received: Vec<OwnedFd>,
    pub(super) announced_files: usize,
    pub(super) sharing: Sharing,
    pub(super) shm_pool: ShmPool,
    pub(super) rings: Option<Box<Rings>>,
    pub(super) ring_offer: RingOffer,
    /// How much has been handled in this turn.
    pub(super) read_budget: ReadBudget,
    /// How many bytes have been received since the last answer.
    bytes_since_answer: usize,
    /// The last answer exceeded an atomic write. A worker that dies in such a write gets no notice of its death.
    last_answer_long: bool,
    /// Answers that the worker has sent can be lost at the end of the connection.
    can_lose_answers: bool,
    /// How many bytes have been sent since the handshake.
    bytes_sent: u64,
    /// The state of reading the protocol of AnyEvent::Task; `None` for the native protocol.
    pub(super) perl: Option<Perl>,
    pub(super) handshake: Handshake,
}

/// What a new connection starts with.
#[derive(Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) protocol: Protocol,
    /// What has been received behind the worker's hello.
    pub(crate) inbox: BytesMut,
    /// The worker's process id; 0 if it is not known yet.
    pub(crate) pid: u32,
    pub(crate) limits: PeerLimits,
    pub(crate) max_receive: usize,
    /// The longest blob in a memfd that this side accepts, in bytes.
    pub(crate) max_blob: usize,
    /// The most files that this side accepts with an answer.
    pub(crate) max_files: usize,
    /// The most bytes of the worker's shared memory that may be mapped here.
    pub(crate) max_shared: usize,
    /// Whether bytes that arrive in shared memory are copied.
    pub(crate) copy_shared_memory: bool,
    /// Whether answers that the worker has sent can be lost at the end of the connection.
    pub(crate) can_lose_answers: bool,
    /// The worker says when its `setup` is over.
    pub(crate) announces_setup: bool,
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
    pub(crate) fn new(config: ConnectionConfig) -> Self {
        let ConnectionConfig {
            protocol,
            inbox,
            pid,
            limits,
            max_receive,
            max_blob,
            max_files,
            max_shared,
            copy_shared_memory,
            can_lose_answers,
            announces_setup,
        } = config;
        let PeerLimits {
            max_send,
            max_blob: max_blob_sent,
            pipeline_window,
            files,
            accepts_single_calls,
            sends_items,
            takes_input,
        } = limits;
        Self {
            inbox,
            outbox: Outbox::default(),
            calls: CallNumbers::default(),
            input: Input::Open,
            pid,
            max_send,
            max_receive,
            max_blob_sent,
            max_blob,
            pipeline_window,
            accepts_single_calls,
            sends_items,
            takes_input,
            item: None,
            is_last_call_single: false,
            files,
            max_files,
            files_received: Vec::new(),
            announced_files: 0,
            sharing: if max_shared > 0 { Sharing::Requested { max_shared } } else { Sharing::Off },
            // The capacity is 0 until the worker agrees.
            shm_pool: ShmPool::new(0, max_shared, sys::effective_user())
                .copying(copy_shared_memory),
            rings: None,
            ring_offer: RingOffer::Never,
            read_budget: ReadBudget::default(),
            bytes_since_answer: 0,
            last_answer_long: false,
            can_lose_answers,
            bytes_sent: 0,
            perl: (protocol == Protocol::Perl).then(Perl::default),
            handshake: Handshake::after_hello(announces_setup),
        }
    }

    /// Creates a connection whose handshake is pending, with the expected limits. It sends `hello` first, so that it
    /// goes out with the first call.
    pub(crate) fn before_handshake(
        config: ConnectionConfig,
        hello: Vec<u8>,
        handshake: PendingHandshake,
    ) -> Self {
        let mut connection = Self::new(config);
        connection.outbox = Outbox::new(hello);
        connection.handshake = Handshake::Pending(Box::new(handshake));
        connection
    }

    // What has happened.

    /// Where to append received bytes, for how many to ask, and where to append received files.
    #[inline]
    pub(crate) fn buffer(&mut self) -> (&mut BytesMut, usize, &mut Vec<OwnedFd>) {
        let room = match &self.perl {
            None => frame::room_for_next_read(&self.inbox),
            Some(_) => Perl::room_for_next_read(&self.inbox),
        };
        (&mut self.inbox, room, &mut self.files_received)
    }

    /// Records that `received` bytes were put into the buffer.
    #[inline]
    pub(crate) fn handle_input(&mut self, received: usize) {
        self.read_budget.count_bytes(received);
        if let Some(rings) = &mut self.rings {
            rings.record_received(received);
            rings.set_awake();
        }
        if let Input::LastMessage { bytes, .. } = &mut self.input {
            *bytes += received;
        }
    }

    /// No bytes have arrived, though the connection asked for them.
    pub(crate) fn handle_no_input(&mut self) {
        if let Input::LastMessage { is_exhausted, .. } = &mut self.input {
            *is_exhausted = true;
        }
        self.handshake.handle_no_input();
    }

    /// The worker will send no more.
    pub(crate) fn handle_end(&mut self, end: End) {
        match &mut self.input {
            Input::LastMessage { is_exhausted, .. } => *is_exhausted = true,
            input => *input = Input::Ended(end),
        }
        self.handshake.handle_no_input();
    }

    /// All that the worker has sent has been received.
    pub(crate) fn record_complete(&mut self) {
        self.can_lose_answers = false;
    }

    /// [`Need::InputStop`] has been met. `is_stopped` says whether the worker can send no more.
    pub(crate) fn handle_input_stopped(&mut self, is_stopped: bool) {
        self.handshake.handle_input_stopped(is_stopped);
    }

    /// Records that `sent` bytes of what [`poll_transmit`](Self::poll_transmit) returned were sent. Returns how
    /// many of them belong to a call that is not in the outbox.
    #[inline]
    pub(crate) fn handle_sent(&mut self, sent: usize) -> usize {
        self.bytes_sent += sent as u64;
        self.rings.iter_mut().for_each(|rings| rings.record_sent(sent));
        if let RingOffer::Due(_) = &self.ring_offer
            && self.outbox.is_empty()
        {
            self.handle_ring_offer_sent(sent);
            return 0;
        }
        let (excess, calls) = self.outbox.mark_sent(sent);
        self.calls.record_sent(calls);
        if excess > 0 && self.item.is_some() {
            self.handle_item_sent(excess);
            return 0;
        }
        excess
    }

    /// Records that `sent` further bytes of `call`, which is not in the outbox, were sent. Returns the call's number
    /// if it was sent in full.
    pub(crate) fn handle_call_sent(&mut self, call: &GatherFrame, sent: usize) -> Option<u64> {
        if self.calls.partial() == 0 && sent > 0 {
            self.shm_pool.mark_sent(&call.references);
        }
        let sent = self.calls.partial() + sent;
        self.calls.record_partial(sent);
        (sent == call.len()).then(|| {
            self.is_last_call_single = self.is_single(&call.bytes);
            self.outbox.mark_direct_call_sent();
            self.calls.complete_partial()
        })
    }

    /// Nothing can be sent now.
    pub(crate) fn handle_blocked(&mut self) {
        self.postpone_ring_offer();
    }

    /// Sending has failed. What the worker has sent before can still be read.
    pub(crate) fn handle_write_error(&mut self, error: io::Error) -> Disconnect {
        match error.kind() {
            io::ErrorKind::BrokenPipe => self.close_reason(),
            io::ErrorKind::ConnectionReset => self.unread_reason(),
            _ => Disconnect::of_system(error),
        }
    }

    /// After a failed write: searches what the worker has sent for its last message. The event that follows is the
    /// end of the connection.
    pub(crate) fn find_last_message(&mut self, lost: Disconnect) {
        self.input = Input::LastMessage { lost, messages: 0, bytes: 0, is_exhausted: false };
    }

    /// Aborts a handshake whose time is over, unless the hello has arrived. An event follows.
    pub(crate) fn handle_timeout(&mut self, now: &Now) {
        if self.poll_timeout().is_some_and(|due| due <= now.get()) {
            self.handshake.handle_timeout();
        }
    }

    // What to do.

    /// What to send next, with `call` behind the outbox. `None` if there is nothing.
    #[inline]
    pub(crate) fn poll_transmit<'a>(
        &'a self,
        call: Option<&'a GatherFrame>,
    ) -> Option<Transmit<'a>> {
        if let Some(frame) = call {
            let sent = self.calls.partial();
            let bytes = self.outbox.unsent();
            // Files accompany the first byte of their call, so no other bytes may precede it in the write.
            return Some(match sent == 0 && !frame.files.is_empty() {
                true if !bytes.is_empty() => self.transmit_outbox(),
                true => Transmit::Socket { bytes, call: Some((frame, sent)), files: &frame.files },
                false => Transmit::Socket { bytes, call: Some((frame, sent)), files: &[] },
            });
        }
        if !self.outbox.is_empty() {
            return Some(self.transmit_outbox());
        }
        if let Some(item) = &self.item {
            return Some(item.transmit());
        }
        match &self.ring_offer {
            RingOffer::Due(offer) => {
                Some(Transmit::Socket { bytes: &offer.bytes, call: None, files: &offer.files })
            }
            _ => None,
        }
    }

    /// Whether [`poll_transmit`](Self::poll_transmit) returns something without a call.
    #[inline]
    pub(crate) fn has_to_send(&self) -> bool {
        !self.outbox.is_empty()
            || self.item.is_some()
            || matches!(self.ring_offer, RingOffer::Due(_))
    }

    fn transmit_outbox(&self) -> Transmit<'_> {
        match self.can_use_ring() {
            true => Transmit::Ring,
            false => Transmit::Socket { bytes: self.outbox.unsent(), call: None, files: &[] },
        }
    }

    /// What the connection needs before it can go on.
    #[inline]
    pub(crate) fn need(&self) -> Need {
        match &self.input {
            _ if self.handshake.needs_input_stop() => Need::InputStop,
            Input::LastMessage { .. } => Need::ArrivedInput,
            _ if self.handshake.needs_arrived_input() => Need::ArrivedInput,
            _ => Need::Input,
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    #[inline]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.handshake.due()
    }

    // What the peer did.

    /// Returns what the peer has done next, as far as it has been received.
    #[inline]
    pub(crate) fn poll_event(&mut self, now: &Now) -> Option<Event> {
        match self.handshake {
            Handshake::Done => self.poll_message(),
            Handshake::Setup(_) => self.poll_setup(now),
            Handshake::Pending(_) => self.poll_handshake(now),
        }
    }

    /// Returns the next message, or the end of the connection.
    #[inline]
    pub(super) fn poll_message(&mut self) -> Option<Event> {
        if self.input.is_over_limits() {
            return self.poll_end();
        }
        match (self.take_message(), &mut self.input) {
            (Ok(Some(body)), _) => return Some(self.handle_message(body)),
            (Ok(None), _) => {}
            (Err(_), Input::LastMessage { is_exhausted, .. }) => *is_exhausted = true,
            (Err(error), _) => return Some(Event::Ended(error.into())),
        }
        self.poll_end()
    }

    #[inline]
    fn handle_message(&mut self, body: Bytes) -> Event {
        self.read_budget.count_message();
        self.bytes_since_answer += frame::HEADER_LEN + body.len();
        if self.discard_skipped(&body) {
            return self.count_handled();
        }
        match self.handle_control(&body) {
            Ok(true) => {
                self.read_budget.count_other();
                self.count_handled()
            }
            Err(reason) => Event::Ended(reason),
            Ok(false) if matches!(self.input, Input::LastMessage { .. }) => {
                Event::Ended(Disconnect::of_message(FromWorker::decode(&body)))
            }
            Ok(false) => Event::Message(body),
        }
    }

    fn count_handled(&mut self) -> Event {
        if let Input::LastMessage { messages, .. } = &mut self.input {
            *messages += 1;
        }
        Event::Handled
    }

    #[inline]
    fn poll_end(&mut self) -> Option<Event> {
        match &self.input {
            Input::Open => return None,
            Input::LastMessage { is_exhausted: false, .. } if !self.input.is_over_limits() => {
                return None;
            }
            Input::LastMessage { .. } | Input::Ended(_) => {}
        }
        let closed = Input::Ended(End::Closed { has_unread: false });
        Some(Event::Ended(match std::mem::replace(&mut self.input, closed) {
            Input::LastMessage { lost, .. } => lost,
            Input::Ended(End::Closed { has_unread: true }) => self.unread_reason(),
            Input::Ended(End::Failed(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.unread_reason()
            }
            Input::Ended(End::Failed(error)) => Disconnect::of_read(error),
            Input::Ended(End::Closed { has_unread: false }) | Input::Open => self.close_reason(),
        }))
    }

    /// Discards a message if it is the answer of a skipped call. Returns whether it was one.
    #[inline]
    fn discard_skipped(&mut self, message: &[u8]) -> bool {
        let is_skipped = self.calls.is_skipped_answer_due()
            && self.calls.is_next_sent()
            && !self.has_announced_files()
            && native::skipped_call(message) == Some(self.calls.next_answer());
        if is_skipped {
            self.calls.record_answer();
            self.read_budget.record_answer();
        }
        is_skipped
    }

    /// Takes the next received message, translated to the native protocol.
    #[inline]
    pub(super) fn take_message(&mut self) -> Result<Option<Bytes>, WireError> {
        match &mut self.perl {
            None => self.take_native(),
            Some(perl) => perl.take(&mut self.inbox, self.max_receive),
        }
    }

    // What this side wants.

    /// Prevents the worker from sending its hello, or the message that `setup` is over, so that it begins no call. An
    /// event says whether it had sent that before. The connection cannot be used after this.
    pub(crate) fn abort_handshake(&mut self) {
        self.handshake.abort();
    }

    // The state.

    /// Begins a turn of reading. See [`ReadBudget`].
    #[inline]
    pub(crate) fn begin_turn(&mut self) {
        self.read_budget.begin();
    }

    pub(crate) fn read_budget(&mut self) -> &mut ReadBudget {
        &mut self.read_budget
    }

    /// Whether a whole turn was too short for what the worker sent while no call runs. A turn with an answer does not
    /// count, nor one in which that of a skipped call is due.
    pub(crate) fn sends_unsolicited(&self) -> bool {
        !self.calls.is_skipped_answer_due() && self.read_budget.is_spent_without_answer()
    }

    /// How many calls have been sent in full.
    #[inline]
    pub(crate) fn calls_sent(&self) -> u64 {
        self.calls.sent()
    }

    /// How many calls are sent, or in the outbox, and wait for their answers.
    #[inline]
    pub(crate) fn calls_unanswered(&self) -> u64 {
        self.calls.unanswered()
    }

    /// How many calls have been sent in full and wait for their answers.
    pub(crate) fn calls_sent_unanswered(&self) -> u64 {
        self.calls.sent_unanswered()
    }

    /// Whether the worker has the call whose answer is due next.
    pub(crate) fn is_next_call_sent(&self) -> bool {
        self.calls.is_next_sent()
    }

    /// Whether some bytes of a call that is not in the outbox have been sent, and more must follow.
    pub(crate) fn is_call_partly_sent(&self) -> bool {
        self.calls.partial() > 0
    }

    /// Whether the next answer belongs to a skipped call.
    pub(crate) fn is_skipped_answer_due(&self) -> bool {
        self.calls.is_skipped_answer_due()
    }

    pub(crate) fn is_native(&self) -> bool {
        self.perl.is_none()
    }

    /// Whether the worker has sent too many messages since its last answer, for a call that has run this long.
    pub(crate) fn is_flooding(&self, time: Duration) -> bool {
        self.read_budget.is_flooding(time)
    }

    /// Whether the connection waits for nothing but what has arrived, or for its end. Most often it ends then.
    #[inline]
    pub(crate) fn waits_for_arrived(&self) -> bool {
        matches!(self.input, Input::LastMessage { .. }) || self.handshake.waits_for_arrived()
    }

    #[inline]
    pub(crate) fn is_established(&self) -> bool {
        !matches!(self.handshake, Handshake::Pending(_))
    }

    /// Whether the worker has sent all that comes before it begins calls.
    #[inline]
    pub(crate) fn is_started(&self) -> bool {
        matches!(self.handshake, Handshake::Done)
    }

    /// Whether answers that the worker has sent can be lost at the end of the connection.
    pub(crate) fn can_lose_answers(&self) -> bool {
        self.can_lose_answers
    }

    /// How many bytes the outbox holds.
    pub(crate) fn unsent_bytes(&self) -> usize {
        self.outbox.unsent().len()
    }

    /// Accepts the number in an answer.
    ///
    /// # Errors
    /// If it is not the number of the next call that is due: then the answer belongs to another call. The protocol
    /// of AnyEvent::Task has no numbers. And if the worker does not have all of that call.
    pub(crate) fn accept_answer_number(&mut self, call: Option<u64>) -> Result<(), String> {
        let expected = self.calls.next_answer();
        if !self.calls.is_next_sent() {
            return Err(format!("the worker answered call {expected} before it had all of it"));
        }
        if self.is_native() && call != Some(expected) {
            let received = call.map_or("an answer without a number".to_owned(), |call| {
                format!("the answer to call {call}")
            });
            return Err(format!(
                "the worker sent {received} where that to call {expected} was due"
            ));
        }
        self.calls.record_answer();
        Ok(())
    }

    /// Records that an answer was received.
    pub(crate) fn record_answer(&mut self) {
        self.read_budget.record_answer();
        self.last_answer_long = std::mem::take(&mut self.bytes_since_answer) > frame::ATOMIC_WRITE;
    }

    /// Records that an item of the running call was received. Its credit bounds how many come.
    pub(crate) fn record_item(&mut self) {
        self.read_budget.record_item();
    }

    /// The number of the call whose answer is due next.
    pub(crate) fn next_answer(&self) -> u64 {
        self.calls.next_answer()
    }

    /// Whether the worker may still write its last answer. If it dies then, its notice has no count of begun calls.
    /// So at most one call may be unread, or no other worker can take over.
    pub(crate) fn may_be_answering(&self) -> bool {
        self.last_answer_long
    }

    /// Classifies the end that a gateway reports. It comes behind all that the worker has sent, so no answer is lost.
    pub(super) fn handle_stream_end(&mut self, end: StreamEnd) -> Disconnect {
        if !std::mem::take(&mut self.can_lose_answers) {
            return Disconnect::violation("a gateway reported an end, but there is no gateway");
        }
        match end.passed.cmp(&self.bytes_sent) {
            Ordering::Greater => Disconnect::violation("the gateway passed on more than was sent"),
            // What has not reached the worker is unread too.
            Ordering::Less => self.unread_reason(),
            Ordering::Equal if end.is_unread => self.unread_reason(),
            Ordering::Equal => self.close_reason(),
        }
    }

    /// Classifies the end of a connection whose worker left bytes in the socket unread. They are those of the
    /// last call only if nothing was sent behind it, also no part of another call.
    fn unread_reason(&self) -> Disconnect {
        match self.outbox.ends_with_call() && self.calls.partial() == 0 {
            true => Disconnect::Unread,
            false => self.close_reason(),
        }
    }

    /// Classifies the end of a connection that the worker has closed.
    fn close_reason(&self) -> Disconnect {
        match &self.rings {
            Some(rings) if rings.is_mark_unread() => Disconnect::Unread,
            _ => Disconnect::Closed,
        }
    }
}
