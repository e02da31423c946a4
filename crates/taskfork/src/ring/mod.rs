//! Two rings in memory that the two sides of a connection share, one each way, through which short messages go
//! while the side that gets them is awake: neither takes a system call for it then.
//!
//! The socket stays what it was: what is long, what comes with files, and what is for a side that sleeps goes
//! through it, and its end is the end of the connection. Each record of a ring says how many bytes had been sent
//! through the socket before it, so that the order of messages is always known, whichever way they go.
//!
//! A side that is about to sleep says so in the ring, and looks at it once more. Who has put a record there looks
//! whether the other has said so, and sends it an empty frame then, so that it wakes up.

mod half;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::{io, mem};

use crate::sys::Words;
use crate::wire::WireError;
use crate::wire::frame;
use half::{Half, Incoming, Memory, Outgoing, WORDS};

/// The longest that goes through a ring at once, in bytes.
pub(crate) const MOST: usize = 4 << 10;

/// What wakes a side that has gone to sleep: a frame with nothing in it.
pub(crate) const DOORBELL: [u8; frame::HEADER_LEN] = [0; frame::HEADER_LEN];

/// One side's part of the two rings, and what it needs to know of the socket beside them.
#[derive(Debug)]
pub(crate) struct Rings<M = Words> {
    words: M,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The other side has them too, so that something can be put there.
    agreed: bool,
    /// How many bytes have been sent, and received, through the socket since the rings are there.
    sent: u64,
    received: u64,
    asleep: bool,
    /// Where in the ring the last message ends that matters if it is not taken.
    end: u64,
    /// The last records that have been taken out of the ring, and how much of them has been read.
    arrived: Vec<u8>,
    read: usize,
}

/// What came of putting a message into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is there, and will be seen.
    Done,
    /// It is there, and the other side sleeps: it has to be woken.
    Unseen,
    /// It has to go through the socket.
    Refused,
}

impl Memory for Words {
    type Word = AtomicU64;
}

impl Rings {
    /// Makes them, for the other side to map what is in the file.
    pub(crate) fn offer() -> io::Result<(Self, OwnedFd)> {
        let (words, file) = Words::new(2 * WORDS)?;
        Ok((Self::new(words, Half::First, Half::Second), file))
    }

    /// Takes what the other side has made.
    pub(crate) fn accept(file: &OwnedFd) -> io::Result<Self> {
        Words::map(file, 2 * WORDS).map(|words| Self::new(words, Half::Second, Half::First))
    }
}

impl<M: Memory> Rings<M> {
    fn new(words: M, outgoing: Half, incoming: Half) -> Self {
        Self {
            words,
            incoming: Incoming::new(incoming),
            outgoing: Outgoing::new(outgoing),
            agreed: false,
            sent: 0,
            received: 0,
            asleep: true,
            end: 0,
            arrived: Vec::new(),
            read: 0,
        }
    }

    /// From here on the other side's bytes count, of which so many have been received and not been read.
    pub(crate) fn agree(&mut self, unread: usize) {
        self.agreed = true;
        self.received = unread as u64;
    }

    /// So many bytes have been sent through the socket.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// So many bytes have come through the socket.
    pub(crate) fn received(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    /// Whether the other side looks into its ring before it sleeps.
    pub(crate) fn is_other_awake(&self) -> bool {
        self.agreed && self.outgoing.half.is_awake(&self.words)
    }

    /// Puts whole frames into the ring, if they may go there.
    pub(crate) fn put(&mut self, frames: &[u8]) -> Put {
        if frames.len() > MOST || !self.is_other_awake() {
            return Put::Refused;
        }
        if !self.outgoing.put(&self.words, frames, self.sent) {
            return Put::Refused;
        }
        match self.outgoing.half.is_awake_still(&self.words) {
            true => Put::Done,
            false => Put::Unseen,
        }
    }

    /// Whether the other side has not taken all that was put there.
    pub(crate) fn is_unseen(&self) -> bool {
        self.outgoing.taken(&self.words) < self.outgoing.end()
    }

    /// Remembers that what was put there last must not be lost.
    pub(crate) fn mark(&mut self) {
        self.end = self.outgoing.end();
    }

    /// Whether the other side has not taken what was marked last.
    pub(crate) fn is_mark_unseen(&self) -> bool {
        self.outgoing.taken(&self.words) < self.end
    }

    /// Whether anything has come, whether it is next in turn or not.
    pub(crate) fn is_anything_there(&self) -> bool {
        self.is_any_left() || self.agreed && self.incoming.is_anything_there(&self.words)
    }

    /// Whether something has come that is next in turn, if `unread` bytes have been received through the socket and
    /// not been read.
    pub(crate) fn is_due(&self, unread: usize) -> bool {
        self.is_any_left() || self.is_next(unread)
    }

    /// The same of what has not been taken out of the ring yet.
    pub(crate) fn is_next(&self, unread: usize) -> bool {
        !self.is_any_left()
            && self.agreed
            && self.incoming.is_due(&self.words, self.position(unread))
    }

    /// Whether some of what has been taken out of the ring has not been read.
    fn is_any_left(&self) -> bool {
        self.read < self.arrived.len()
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
        if !self.is_any_left() {
            self.arrived.clear();
            self.read = 0;
            if !self.agreed || !self.incoming.is_anything_there(&self.words) {
                return Ok(None);
            }
            let read = self.position(unread);
            let Self { words, incoming, arrived, .. } = self;
            incoming.take(words, read, arrived).map_err(|()| {
                WireError::malformed("what is in the ring is no record".to_owned())
            })?;
            if self.arrived.is_empty() {
                return Ok(None);
            }
        }
        let rest = &self.arrived[self.read..];
        let Some(body) = frame::find(rest, limit)? else {
            return Err(WireError::malformed("a record in the ring ends within a frame"));
        };
        let place = self.read + body.start..self.read + body.end;
        self.read = place.end;
        Ok(Some(place))
    }

    /// What [`take`](Self::take) has found last.
    pub(crate) fn body(&self, place: Range<usize>) -> &[u8] {
        &self.arrived[place]
    }

    /// This side is about to sleep, with so many bytes of the socket's unread; tells whether it may, as there is nothing to be
    /// taken.
    pub(crate) fn sleep(&mut self, unread: usize) -> bool {
        if !self.agreed {
            return true;
        }
        if !mem::replace(&mut self.asleep, true) {
            self.incoming.half.sleeps(&self.words);
        }
        if self.is_due(unread) {
            self.wake();
            return false;
        }
        true
    }

    /// It is awake, and will look into the ring.
    pub(crate) fn wake(&mut self) {
        if self.agreed && mem::take(&mut self.asleep) {
            self.incoming.half.wakes(&self.words);
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
pub(crate) mod tests;
