//! Two rings in memory that the two sides of a connection share, one each way, through which short messages go
//! while the side that gets them is awake: neither takes a system call for it then.
//!
//! The socket stays what it was: what is long, what comes with files, and what is for a side that sleeps goes
//! through it, and its end is the end of the connection. Each record of a ring says how many bytes had been sent
//! through the socket before it, so that the order of messages is always known, whichever way they go.
//!
//! A side that is about to sleep says so in the ring, and looks at it once more. Who has put a record there looks
//! whether the other has said so, and sends it an empty frame then, so that it wakes up.

mod spsc;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::{io, mem};

use crate::sys::SharedAtomics;
use crate::wire::WireError;
use crate::wire::frame;
use spsc::{Consumer, Memory, Producer, RingIndex, WORDS};

/// The longest that goes through a ring at once, in bytes.
pub(crate) const MAX_RECORD: usize = 4 << 10;

/// What wakes a side that has gone to sleep: a frame with nothing in it.
pub(crate) const DOORBELL: [u8; frame::HEADER_LEN] = [0; frame::HEADER_LEN];

/// One side's part of the two rings, and what it needs to know of the socket beside them.
#[derive(Debug)]
pub(crate) struct Rings<M = SharedAtomics> {
    words: M,
    consumer: Consumer,
    producer: Producer,
    /// The other side has them too, so that something can be put there.
    active: bool,
    /// How many bytes have been sent, and received, through the socket since the rings are there.
    sent: u64,
    received: u64,
    asleep: bool,
    /// Where in the ring the last message ends that matters if it is not taken.
    marked_end: u64,
    /// The last records that have been taken out of the ring, and how much of them has been read.
    buffered: Vec<u8>,
    buffered_read: usize,
}

/// What came of putting a message into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is there, and will be seen.
    Done,
    /// It is there, and the other side sleeps: it has to be woken.
    PeerAsleep,
    /// It has to go through the socket.
    Refused,
}

impl Memory for SharedAtomics {
    type Word = AtomicU64;
}

impl Rings {
    /// Makes them, for the other side to map what is in the file.
    pub(crate) fn offer() -> io::Result<(Self, OwnedFd)> {
        let (words, file) = SharedAtomics::new(2 * WORDS)?;
        Ok((Self::new(words, RingIndex::First, RingIndex::Second), file))
    }

    /// Takes what the other side has made.
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
            asleep: true,
            marked_end: 0,
            buffered: Vec::new(),
            buffered_read: 0,
        }
    }

    /// From here on the other side's bytes count, of which so many have been received and not been read.
    pub(crate) fn activate(&mut self, unread: usize) {
        self.active = true;
        self.received = unread as u64;
    }

    /// So many bytes have been sent through the socket.
    pub(crate) fn record_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// So many bytes have come through the socket.
    pub(crate) fn record_received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether the other side looks into its ring before it sleeps.
    pub(crate) fn is_peer_awake(&self) -> bool {
        self.active && self.producer.ring.is_awake(&self.words)
    }

    /// Puts whole frames into the ring, if they may go there.
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

    /// Whether the other side has not taken all that was put there.
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

    /// What [`take`](Self::take) has found last.
    pub(crate) fn body(&self, place: Range<usize>) -> &[u8] {
        &self.buffered[place]
    }

    /// This side is about to sleep, with so many bytes of the socket's unread; tells whether it may, as there is nothing to be
    /// taken.
    pub(crate) fn prepare_sleep(&mut self, unread: usize) -> bool {
        if !self.active {
            return true;
        }
        if !mem::replace(&mut self.asleep, true) {
            self.consumer.ring.set_asleep(&self.words);
        }
        if self.has_next(unread) {
            self.set_awake();
            return false;
        }
        true
    }

    /// It is awake, and will look into the ring.
    pub(crate) fn set_awake(&mut self) {
        if self.active && mem::take(&mut self.asleep) {
            self.consumer.ring.set_awake(&self.words);
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod tests;
