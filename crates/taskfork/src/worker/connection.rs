//! A worker's side of its connection. Reads and writes block, signals do not interrupt them, and the
//! buffers are limited.

use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use super::init::WorkerConfig;
use super::scoreboard::WorkerSlot;
use super::telemetry;
use crate::busy_poll::{SpinLoop, SpinPolicy};
use crate::clock::now;
use crate::display::seconds;
use crate::ring::Rings;
use crate::sys::{self, User};
use crate::time_limit::{TimeLimit, timespec};
use crate::wire::WireError;
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::gather_frame::{self, GatherFrame, LARGE_BUFFER};
use crate::wire::hello::MAX_HELLO;
use crate::wire::{Protocol, first_message, perl};

/// A buffer above this size is freed after `BUFFER_IDLE_TIME` without a message.
const MAX_KEPT_BUFFER: usize = 1 << 20;
const BUFFER_IDLE_TIME: Duration = Duration::from_secs(1);

/// The default maximum time of spinning for the next call.
const MAX_SPIN: Duration = Duration::from_micros(50);

/// A connection to a client.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) socket: BorrowedFd<'static>,
    pub(super) inbox: Vec<u8>,
    /// How many bytes of `inbox` have been consumed.
    pub(super) consumed: usize,
    pub(super) max_frame: usize,
    /// How long the client may stop in the middle of a frame.
    stall_timeout: TimeLimit,
    /// Descriptors that have arrived for later messages. `None` if none are accepted.
    files: Option<Vec<OwnedFd>>,
    /// When the client's first message must be complete. `None` if it is complete.
    handshake_deadline: Option<Instant>,
    /// How long to wait for the beginning of a frame. `None` is for ever.
    idle_timeout: Option<Duration>,
    pub(super) rings: Option<Box<Rings>>,
    /// The socket has a larger buffer, because a long message has been sent.
    has_large_send_buffer: bool,
    spin_policy: SpinPolicy,
    /// The number of CPUs that this process may use.
    pub(super) cores: usize,
    slot: WorkerSlot,
}

/// The place of the body of a frame that has been read.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(super) place: Range<usize>,
    pub(super) is_in_ring: bool,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error("the client is gone")]
    Closed,
    #[error("the client closed the connection in the middle of a frame")]
    Truncated,
    #[error("the client stopped for {} in the middle of a frame", seconds(*.0))]
    Stalled(Duration),
    #[error("the client's first message was not complete in time (handshake_timeout)")]
    HandshakeTimeout,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

impl ConnectionError {
    fn of_read(errno: Errno) -> Self {
        let error = io::Error::from(errno);
        match WireError::of_read(&error) {
            Some(error) => Self::Wire(error),
            None => Self::Io(error),
        }
    }
}

#[taskfork_macros::startup_code]
impl Connection {
    /// A connection through a socket that stays open until the worker exits.
    pub(crate) fn new(
        socket: BorrowedFd<'static>,
        inbox: Vec<u8>,
        limits: &WorkerConfig,
        slot: WorkerSlot,
    ) -> Self {
        let WorkerConfig { max_frame, stall_timeout, busy_poll, cores, .. } = *limits;
        let spin_policy = SpinPolicy::new(busy_poll, MAX_SPIN);
        let files = sys::supports_descriptors(&socket).then(Vec::new);
        let (consumed, idle_timeout, handshake_deadline) = (0, None, None);
        Self {
            socket,
            inbox,
            consumed,
            max_frame,
            stall_timeout,
            files,
            handshake_deadline,
            idle_timeout,
            rings: None,
            has_large_send_buffer: false,
            spin_policy,
            cores,
            slot,
        }
    }

    /// Waits for the first bytes, which show the protocol.
    pub(crate) fn read_preamble(&mut self) -> Result<Protocol, ConnectionError> {
        loop {
            if perl::first_byte(&self.inbox) == Some(perl::FIRST) {
                return Ok(Protocol::Perl);
            }
            let there = self.inbox.len().min(PREAMBLE.len());
            let is_blank = perl::first_byte(&self.inbox).is_none();
            if !is_blank && self.inbox[..there] != PREAMBLE[..there] {
                let began = String::from_utf8_lossy(&self.inbox[..there]).into_owned();
                return Err(WireError::Preamble { began }.into());
            }
            if is_blank && self.inbox.len() >= first_message::MAX_BLANKS {
                return Err(WireError::Preamble { began: " ".to_owned() }.into());
            }
            if !is_blank && there == PREAMBLE.len() {
                self.consumed = there;
                return Ok(Protocol::Native);
            }
            self.read()?;
        }
    }

    /// Waits for a whole frame. [`body`](Self::body) returns its body.
    pub(crate) fn read_frame(&mut self) -> Result<Frame, ConnectionError> {
        loop {
            if let Some(frame) = self.read_frame_or_idle()? {
                return Ok(frame);
            }
        }
    }

    /// Waits for the client's hello, which is a short frame.
    pub(crate) fn read_hello(&mut self) -> Result<Frame, ConnectionError> {
        let max_frame = std::mem::replace(&mut self.max_frame, MAX_HELLO);
        let read = self.read_frame();
        self.max_frame = max_frame;
        read
    }

    /// Waits for a whole frame. `None` if none has begun in the time that
    /// [`set_idle_timeout`](Self::set_idle_timeout) has set.
    pub(crate) fn read_frame_or_idle(&mut self) -> Result<Option<Frame>, ConnectionError> {
        self.discard_consumed();
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Takes the next frame if all of it has been received. Does not wait.
    #[inline]
    pub(super) fn take_frame(&mut self) -> Result<Option<Frame>, ConnectionError> {
        loop {
            if let Some(frame) = self.take_from_ring()? {
                return Ok(Some(frame));
            }
            let unread = &self.inbox[self.consumed..];
            let Some(body) = frame::find(unread, self.max_frame)? else { return Ok(None) };
            let place = self.consumed + body.start..self.consumed + body.end;
            self.consumed = place.end;
            if !place.is_empty() || self.rings.is_none() {
                return Ok(Some(Frame { place, is_in_ring: false }));
            }
            // An empty frame only wakes this side.
            self.discard_consumed();
        }
    }

    fn discard_consumed(&mut self) {
        if self.consumed == self.inbox.len() {
            self.inbox.clear();
            self.consumed = 0;
        }
    }

    /// Sets how long to wait for the beginning of a frame. Defaults to for ever.
    pub(crate) fn set_idle_timeout(&mut self, time: Option<Duration>) {
        if self.idle_timeout != time {
            // If this fails, idle memory is freed later.
            let _ = sockopt::set_socket_timeout(self.socket, sockopt::Timeout::Recv, time);
            self.idle_timeout = time;
        }
    }

    /// Waits for a whole message of the JSON protocol.
    pub(crate) fn read_json(
        &mut self,
        scanner: &mut perl::Scanner,
    ) -> Result<Range<usize>, ConnectionError> {
        self.discard_consumed();
        loop {
            if let Some(found) = scanner.find(&self.inbox[self.consumed..], self.max_frame)? {
                let place = self.consumed + found.start..self.consumed + found.end;
                self.consumed = place.end;
                return Ok(place);
            }
            // A client may be silent between messages, but not within one.
            self.consumed += scanner.skip_blanks();
            self.read()?;
        }
    }

    /// Reads without waiting, up to `most` bytes behind the last frame.
    pub(crate) fn read_available(&mut self, most: usize) {
        while self.inbox.len() < self.consumed + most {
            self.inbox.reserve(frame::room_for_next_read(&self.inbox[self.consumed..]));
            match self.receive(false) {
                Ok(length) if length > 0 => {}
                Err(Errno::INTR) => {}
                // The next read gets the same error.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Reads without waiting, up to `most` bytes more than there are. Removes what has been consumed, so no [`Frame`]
    /// stays valid: the buffer does not grow, wherever a read ends.
    pub(super) fn read_ahead(&mut self, most: usize) {
        self.inbox.drain(..self.consumed);
        self.consumed = 0;
        self.read_available(self.inbox.len().saturating_add(most));
    }

    /// The bodies of the whole frames behind the last one.
    pub(crate) fn buffered_bodies(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.inbox[self.consumed..];
        std::iter::from_fn(move || {
            let body = frame::find(rest, self.max_frame).ok()??;
            let (frame, behind) = rest.split_at(body.end);
            rest = behind;
            Some(&frame[body])
        })
    }

    /// What has been received behind the last frame.
    pub(super) fn unread(&self) -> &[u8] {
        &self.inbox[self.consumed..]
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.max_frame
    }

    pub(crate) fn body(&self, frame: &Frame) -> &[u8] {
        match &self.rings {
            Some(rings) if frame.is_in_ring => rings.body(frame.place.clone()),
            _ => &self.inbox[frame.place.clone()],
        }
    }

    /// The text of a message that [`read_json`](Self::read_json) has found.
    pub(crate) fn text(&self, place: Range<usize>) -> &[u8] {
        &self.inbox[place]
    }

    /// The maximum number of files with a message.
    pub(crate) fn max_files(&self) -> usize {
        self.files.as_ref().map_or(0, |_| sys::MAX_FILES)
    }

    /// Accepts no files from here on, although the socket could transfer them.
    pub(super) fn refuse_files(&mut self) {
        self.files = None;
    }

    /// The files that have arrived, and belong to later messages.
    pub(super) fn received_files(&self) -> &[OwnedFd] {
        self.files.as_deref().unwrap_or_default()
    }

    /// The files that have arrived.
    pub(crate) fn files(&mut self) -> &mut Vec<OwnedFd> {
        self.files.get_or_insert_default()
    }

    /// The user of this process and of the client, if both have the same, so that they may share memory.
    pub(crate) fn common_user(&self) -> Option<User> {
        self.files.as_ref().and_then(|_| sys::common_user(&self.socket))
    }

    /// Removes and returns the files of the next message. Fails if fewer have arrived.
    pub(crate) fn take_files(&mut self, count: usize) -> Result<Vec<OwnedFd>, WireError> {
        match &mut self.files {
            _ if count == 0 => Ok(Vec::new()),
            Some(files) if files.len() >= count => Ok(files.drain(..count).collect()),
            _ => Err(WireError::Files),
        }
    }

    /// Receives bytes into the free part of the buffer. With `wait`, waits for the first.
    fn receive(&mut self, wait: bool) -> rustix::io::Result<usize> {
        let Some(files) = &mut self.files else {
            let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
            let room = spare_capacity(&mut self.inbox);
            return recv(self.socket, room, flags).map(|(_, length)| length);
        };
        let received = sys::receive_files(&self.socket, &mut self.inbox, files, wait)?;
        self.rings.iter_mut().for_each(|rings| rings.record_received(received));
        Ok(received)
    }

    /// Removes the body of the last frame from the buffer without a copy, if it is long.
    pub(crate) fn take_long_body(&mut self, frame: &Frame) -> Option<Bytes> {
        let place = &frame.place;
        if frame.is_in_ring || place.len() < gather_frame::MIN_SEGMENT {
            return None;
        }
        let behind = self.inbox[place.end..].to_vec();
        let inbox = std::mem::replace(&mut self.inbox, behind);
        self.consumed = 0;
        Some(Bytes::from(inbox).slice(place.clone()))
    }

    /// Reuses the memory of a body from [`take_long_body`](Self::take_long_body), unless user code has
    /// kept a part of it.
    pub(crate) fn reuse_buffer(&mut self, body: Bytes) {
        let Ok(mut memory) = body.try_into_mut() else { return };
        if self.consumed == self.inbox.len() {
            memory.clear();
            (self.inbox, self.consumed) = (memory.into(), 0);
        }
    }

    /// Sends a whole message.
    pub(crate) fn write(&mut self, message: &GatherFrame) -> Result<(), ConnectionError> {
        // A process that user code has forked shares the connection and the rings with its worker.
        sys::exit_if_forked();
        if let Some(rings) = &mut self.rings {
            rings.record_sent(telemetry::take_sent_bytes());
        }
        if self.try_send_in_ring(message) {
            return Ok(());
        }
        let is_unix = self.files.is_some();
        if is_unix
            && message.is_large()
            && !std::mem::replace(&mut self.has_large_send_buffer, true)
        {
            // If this fails, sending is slower.
            let _ = sockopt::set_socket_send_buffer_size(self.socket, LARGE_BUFFER);
        }
        let mut sent = 0;
        while sent < message.len() {
            let once = || match &message.segments[..] {
                [] if message.files.is_empty() => {
                    send(self.socket, &message.bytes[sent..], SendFlags::NOSIGNAL)
                }
                _ => {
                    let (slices, count) = message.slices(sent);
                    let files = if sent == 0 { &message.files[..] } else { &[] };
                    sys::send_files(&self.socket, &slices[..count], files, SendFlags::empty())
                }
            };
            match retry_on_intr(once) {
                Ok(bytes) => {
                    sent += bytes;
                    self.rings.iter_mut().for_each(|rings| rings.record_sent(bytes));
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ConnectionError::Closed),
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
        Ok(())
    }

    /// Waits for more bytes. Returns false if the idle timeout is over and no frame has begun.
    ///
    /// The stall timeout limits the wait in the middle of a frame.
    fn read(&mut self) -> Result<bool, ConnectionError> {
        let begun = self.inbox.len() > self.consumed;
        if begun {
            self.inbox.drain(..self.consumed);
            self.consumed = 0;
            self.wait()?;
        }
        self.inbox.reserve(frame::room_for_next_read(&self.inbox));
        if !begun && (self.spin() || !self.try_sleep()) {
            return Ok(true);
        }
        // Not an `Instant`: a new worker has the code of this clock in memory, and needs it for a call anyway.
        let since = (!begun && self.spin_policy.is_adaptive()).then(now);
        if !begun
            && self.inbox.capacity() > MAX_KEPT_BUFFER
            && !self.is_readable_within(BUFFER_IDLE_TIME.into())?
        {
            self.inbox = Vec::with_capacity(frame::room_for_next_read(&[]));
        }
        let read = loop {
            match self.receive(true) {
                Err(Errno::INTR) => {}
                read => break read,
            }
        };
        self.rings.iter_mut().for_each(|rings| rings.set_awake());
        if let Some(since) = since {
            self.spin_policy.record_sleep(now().saturating_sub(since));
        }
        match read {
            Ok(0) | Err(Errno::CONNRESET) if begun => Err(ConnectionError::Truncated),
            Ok(0) | Err(Errno::CONNRESET) => Err(ConnectionError::Closed),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(ConnectionError::of_read(errno)),
        }
    }

    /// Spins for the next frame, if the policy allows it. Returns whether bytes have arrived.
    fn spin(&mut self) -> bool {
        let Some(budget) = self.spin_policy.budget() else { return false };
        // The client needs one of the cores. The number of busy workers is unknown here, so this counts all.
        let gives_way = self.slot.workers() >= self.cores || self.spin_policy.shares_core();
        let mut spin_loop = SpinLoop::new(&self.spin_policy, budget, gives_way);
        loop {
            let found = match &self.rings {
                Some(rings) if rings.has_next(self.inbox.len() - self.consumed) => Ok(1),
                Some(_) if !spin_loop.checks_socket() => Err(Errno::AGAIN),
                _ => self.receive(false),
            };
            match found {
                Ok(length) if length > 0 => {
                    spin_loop.report(&mut self.spin_policy, true);
                    return true;
                }
                Err(Errno::AGAIN | Errno::INTR) if spin_loop.pause() => {}
                Err(Errno::AGAIN | Errno::INTR) => break,
                // The next read gets the same error.
                Ok(_) | Err(_) => return false,
            }
        }
        spin_loop.report(&mut self.spin_policy, false);
        false
    }

    /// Whether the worker spins for the next frame before it sleeps.
    pub(super) fn is_spinning(&self) -> bool {
        self.spin_policy.budget().is_some()
    }

    /// Waits for the rest of a frame.
    fn wait(&self) -> Result<(), ConnectionError> {
        if let Some(until) = self.handshake_deadline {
            // Bytes that arrive one by one do not extend it.
            let left = until.saturating_duration_since(Instant::now());
            return match !left.is_zero() && self.is_readable_within(left.into())? {
                true => Ok(()),
                false => Err(ConnectionError::HandshakeTimeout),
            };
        }
        match self.is_readable_within(self.stall_timeout)? {
            true => Ok(()),
            false => Err(ConnectionError::Stalled(self.stall_timeout.get().unwrap_or_default())),
        }
    }

    /// Sets when the client's first message must be complete. `None` if it is complete.
    pub(crate) fn set_handshake_deadline(&mut self, until: Option<Instant>) {
        self.handshake_deadline = until;
    }

    /// Waits until more bytes or a message have arrived, until `other` can be read, or until the time has come. Returns whether
    /// something has arrived. [`take_frame`](Self::take_frame) must have found nothing before.
    ///
    /// The stall timeout limits the wait in the middle of a frame.
    pub(super) fn read_or(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<bool, ConnectionError> {
        self.inbox.drain(..self.consumed);
        self.consumed = 0;
        self.inbox.reserve(frame::room_for_next_read(&self.inbox));
        let may_spin = self.inbox.is_empty() && other.is_none();
        let waits = until.is_none_or(|until| until > Instant::now());
        if may_spin && waits && self.spin() || !self.try_sleep() {
            return Ok(true);
        }
        let since = (waits && self.spin_policy.is_adaptive()).then(now);
        let received = self.receive_or(other, until);
        self.rings.iter_mut().for_each(|rings| rings.set_awake());
        if let Some(since) = since {
            self.spin_policy.record_sleep(now().saturating_sub(since));
        }
        received
    }

    fn receive_or(
        &mut self,
        other: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
    ) -> Result<bool, ConnectionError> {
        let begun = !self.inbox.is_empty();
        let stalled = if begun { self.stall_timeout.after(Instant::now()) } else { None };
        let end = [until, stalled].into_iter().flatten().min();
        loop {
            let left = end.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            let both = [self.socket, other.unwrap_or(self.socket)];
            let mut both = both.each_ref().map(|socket| PollFd::new(socket, PollFlags::IN));
            let count = if other.is_some() { 2 } else { 1 };
            match poll(&mut both[..count], left.as_ref()) {
                Ok(0) if end == stalled && end != until => {
                    return Err(ConnectionError::Stalled(
                        self.stall_timeout.get().unwrap_or_default(),
                    ));
                }
                Ok(0) => return Ok(false),
                // The other one first: what comes from there is waited for by somebody.
                Ok(_) if !both[1].revents().is_empty() && other.is_some() => return Ok(false),
                Ok(_) => match self.receive(false) {
                    Ok(0) | Err(Errno::CONNRESET) if begun => {
                        return Err(ConnectionError::Truncated);
                    }
                    Ok(0) | Err(Errno::CONNRESET) => return Err(ConnectionError::Closed),
                    Ok(_) => return Ok(true),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => return Err(ConnectionError::of_read(errno)),
                },
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }

    /// Prepares for a wait for the socket, elsewhere. Returns `None` if something has arrived.
    pub(super) fn prepare_wait(&mut self) -> Option<BorrowedFd<'static>> {
        let unread = &self.inbox[self.consumed..];
        let is_there = !matches!(frame::find(unread, self.max_frame), Ok(None));
        (!is_there && self.try_sleep()).then_some(self.socket)
    }

    fn is_readable_within(&self, time: TimeLimit) -> Result<bool, ConnectionError> {
        let deadline = time.after(Instant::now());
        loop {
            let left = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
