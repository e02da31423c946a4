//! Two rings in memory that the two sides of a connection share, one for each direction. Short messages go
//! through them without a system call while the receiver is awake.
//!
//! Long messages, messages with files and messages to a side that sleeps go through the socket. The end of the
//! socket is the end of the connection. Each record of a ring states how many bytes had been sent through the
//! socket before it. So the receiver knows the order of all messages.
//!
//! A client may also announce that it looks at its ring again by itself. Then its worker does not wake it before it sleeps.
//!
//! A side that is about to sleep announces that in the ring, and then checks the ring once more. After a side has
//! put a record into the ring, it checks whether the other side sleeps. If so, it sends an empty frame to wake it.

mod spsc;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::{io, mem};

use crate::sys::SharedAtomics;
use crate::wire::WireError;
use crate::wire::frame;
use spsc::{Consumer, Memory, Producer, RingIndex, WORDS};

/// The most bytes of one record.
pub(crate) const MAX_RECORD: usize = 4 << 10;

/// An empty frame, which wakes a side that sleeps.
pub(crate) const DOORBELL: [u8; frame::HEADER_LEN] = [0; frame::HEADER_LEN];

/// One side's state of the two rings, and of the socket beside them.
#[derive(Debug)]
pub(crate) struct Rings<M = SharedAtomics> {
    words: M,
    consumer: Consumer,
    producer: Producer,
    /// Whether the other side has mapped the rings.
    active: bool,
    /// The bytes that have been sent and received through the socket since the rings became active.
    sent: u64,
    received: u64,
    announced: Announced,
    /// The position in the ring at which the last message ends that must not be lost.
    marked_end: u64,
    /// The records that were last taken from the ring, and how many of their bytes have been read.
    buffered: Vec<u8>,
    buffered_read: usize,
}

/// What this side has announced to the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announced {
    Asleep,
    Awake,
    Looking,
}

/// The result of putting a message into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The message is in the ring, and the other side will see it.
    Done,
    /// The message is in the ring. The other side sleeps and must be woken.
    PeerAsleep,
    /// The message must go through the socket.
    Refused,
}

impl Memory for SharedAtomics {
    type Word = AtomicU64;
}

impl Rings {
    /// Makes the rings. The other side maps the file.
    pub(crate) fn offer() -> io::Result<(Self, OwnedFd)> {
        let (words, file) = SharedAtomics::new(2 * WORDS)?;
        Ok((Self::new(words, RingIndex::First, RingIndex::Second), file))
    }

    /// Maps the rings that the other side has made.
    pub(crate) fn accept(file: &OwnedFd) -> io::Result<Self> {
        SharedAtomics::map(file, 2 * WORDS)
            .map(|words| Self::new(words, RingIndex::Second, RingIndex::First))
    }
}

impl<M: Memory> Rings<M> {
    fn new(words: M, producer: RingIndex, consumer: RingIndex) -> Self {
        Self {
            words,
            consumer: Consumer::new(consumer),
            producer: Producer::new(producer),
            active: false,
            sent: 0,
            received: 0,
            announced: Announced::Asleep,
            marked_end: 0,
            buffered: Vec::new(),
            buffered_read: 0,
        }
    }

    /// Begins to count received bytes. `unread` bytes after this point of the stream have been received
    /// already.
    pub(crate) fn activate(&mut self, unread: usize) {
        self.active = true;
        self.received = unread as u64;
    }

    /// Whether the other side has mapped the rings.
    pub(crate) fn is_active(&self) -> bool {
        self.active
    }

    /// Counts bytes that have been sent through the socket.
    pub(crate) fn record_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Counts bytes that have been received through the socket.
    pub(crate) fn record_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether the other side reads its ring before it sleeps.
    pub(crate) fn is_peer_awake(&self) -> bool {
        self.active && self.producer.ring.is_awake(&self.words)
    }

    /// Puts whole frames into the ring, if they fit and the other side is awake.
    pub(crate) fn put(&mut self, frames: &[u8]) -> Put {
        if frames.len() > MAX_RECORD || !self.is_peer_awake() {
            return Put::Refused;
        }
        if !self.producer.put(&self.words, frames, self.sent) {
            return Put::Refused;
        }
        match self.producer.ring.is_awake_after_put(&self.words) {
            true => Put::Done,
            false => Put::PeerAsleep,
        }
    }

    /// Whether the ring has records that the other side has not taken.
    pub(crate) fn has_unread(&self) -> bool {
        self.producer.read_position(&self.words) < self.producer.written()
    }

    /// Remembers that what was put there last must not be lost.
    pub(crate) fn mark(&mut self) {
        self.marked_end = self.producer.written();
    }

    /// Whether the other side has not taken what was marked last.
    pub(crate) fn is_mark_unread(&self) -> bool {
        self.producer.read_position(&self.words) < self.marked_end
    }

    /// Whether anything has come, whether it is next in turn or not.
    pub(crate) fn has_records(&self) -> bool {
        self.has_buffered() || self.active && self.consumer.has_records(&self.words)
    }

    /// Whether something has come that is next in turn, if `unread` bytes have been received through the socket and
    /// not been read.
    pub(crate) fn has_next(&self, unread: usize) -> bool {
        self.has_buffered() || self.has_next_in_ring(unread)
    }

    /// The same of what has not been taken out of the ring yet.
    pub(crate) fn has_next_in_ring(&self, unread: usize) -> bool {
        !self.has_buffered()
            && self.active
            && self.consumer.has_next(&self.words, self.position(unread))
    }

    /// Whether some of what has been taken out of the ring has not been read.
    fn has_buffered(&self) -> bool {
        self.buffered_read < self.buffered.len()
    }

    /// How much of what came through the socket has been read.
    fn position(&self, unread: usize) -> u64 {
        self.received.wrapping_sub(unread as u64)
    }

    /// Where the [`body`](Self::body) lies of the next frame that has come through the ring and is next in turn, if
    /// `unread` bytes have been received through the socket and not been read. It is before them.
    pub(crate) fn take(
        &mut self,
        unread: usize,
        limit: usize,
    ) -> Result<Option<Range<usize>>, WireError> {
        if !self.has_buffered() {
            self.buffered.clear();
            self.buffered_read = 0;
            if !self.active || !self.consumer.has_records(&self.words) {
                return Ok(None);
            }
            let read = self.position(unread);
            let Self { words, consumer, buffered, .. } = self;
            consumer.take(words, read, buffered).map_err(|()| {
                WireError::malformed("what is in the ring is no record".to_owned())
            })?;
            if self.buffered.is_empty() {
                return Ok(None);
            }
        }
        let rest = &self.buffered[self.buffered_read..];
        let Some(body) = frame::find(rest, limit)? else {
            return Err(WireError::malformed("a record in the ring ends within a frame"));
        };
        let place = self.buffered_read + body.start..self.buffered_read + body.end;
        self.buffered_read = place.end;
        Ok(Some(place))
    }

    /// Returns the body that [`take`](Self::take) found last.
    pub(crate) fn body(&self, place: Range<usize>) -> &[u8] {
        &self.buffered[place]
    }

    /// Announces that this side is about to sleep. Returns false if a message can be taken, so that it must
    /// not. `unread` is the number of received bytes of the socket that have not been read.
    pub(crate) fn prepare_sleep(&mut self, unread: usize) -> bool {
        if !self.active {
            return true;
        }
        if mem::replace(&mut self.announced, Announced::Asleep) != Announced::Asleep {
            self.consumer.ring.set_asleep(&self.words);
        }
        if self.has_next(unread) {
            self.set_awake();
            return false;
        }
        true
    }

    /// Announces that this side is awake and reads the ring.
    pub(crate) fn set_awake(&mut self) {
        if self.active && mem::replace(&mut self.announced, Announced::Awake) != Announced::Awake {
            self.consumer.ring.set_awake(&self.words);
        }
    }

    /// Announces that this side is awake, and reads the ring again without being woken.
    pub(crate) fn set_looking(&mut self) {
        let before = self.announced;
        if self.active && before != Announced::Looking {
            self.announced = Announced::Looking;
            self.consumer.ring.set_looking(&self.words);
        }
    }

    /// Whether the other side reads its ring again without being woken, so that it may be left alone with records in it.
    pub(crate) fn is_peer_looking(&self) -> bool {
        self.active && self.producer.ring.is_looking(&self.words)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod tests;
