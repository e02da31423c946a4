//! One ring with one producer and one consumer in different processes. The other process can write to all of
//! the memory at any time. So this side reads each number once and checks it before use.

use std::ops::Deref;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use super::MAX_RECORD;

/// A word of shared memory. The model check of the rings uses a type of its own.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// A sequentially consistent fence: no access before it is reordered with one after it.
    fn full_fence();
}

impl Word for AtomicU64 {
    fn load(&self, order: Ordering) -> u64 {
        Self::load(self, order)
    }

    fn store(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    fn full_fence() {
        fence(SeqCst);
    }
}

/// The words of both rings.
pub(crate) trait Memory: Deref<Target = [Self::Word]> {
    type Word: Word;
}

/// The number of words for records in a ring.
pub(super) const CAPACITY: usize = 2048;

/// The number of words in a cache line. Words that different sides write are in different lines.
const CACHE_LINE: usize = 8;

/// The number of words of a ring.
pub(super) const WORDS: usize = 3 * CACHE_LINE + CAPACITY;

/// The words of a ring's header: how many words were put and taken since the start, and whether the consumer is
/// awake.
const WRITE_POSITION: usize = 0;
const READ_POSITION: usize = CACHE_LINE;
const AWAKE: usize = 2 * CACHE_LINE;
const RECORDS: usize = 3 * CACHE_LINE;

/// In the word `AWAKE`, of a consumer that is awake and looks again by itself.
const LOOKING: u64 = 2;

/// The bits of the length in the first word of a record. The bits above them are the number of bytes sent
/// through the socket before the record.
const LENGTH_BITS: u32 = 16;

const WORD: usize = size_of::<u64>();

/// One of the two rings. The maker of the memory sends through the first and receives from the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RingIndex {
    First,
    Second,
}

impl RingIndex {
    fn word<W>(self, words: &[W], at: usize) -> &W {
        match self {
            Self::First => &words[at],
            Self::Second => &words[WORDS + at],
        }
    }

    fn record<W>(self, words: &[W], place: u64) -> &W {
        self.word(words, RECORDS + (place % CAPACITY as u64) as usize)
    }

    pub(super) fn is_awake<W: Word>(self, words: &[W]) -> bool {
        matches!(self.word(words, AWAKE).load(Relaxed), 1 | LOOKING)
    }

    /// Whether the consumer looks at the ring again without being woken.
    pub(super) fn is_looking<W: Word>(self, words: &[W]) -> bool {
        self.word(words, AWAKE).load(Relaxed) == LOOKING
    }

    /// Whether the consumer is awake, after a record was put. The fence guarantees that either this side sees
    /// that the consumer sleeps, or the consumer sees the record before it sleeps.
    pub(super) fn is_awake_after_put<W: Word>(self, words: &[W]) -> bool {
        W::full_fence();
        self.is_awake(words)
    }

    pub(super) fn set_awake<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(1, Relaxed);
    }

    pub(super) fn set_looking<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(LOOKING, Relaxed);
    }

    pub(super) fn set_asleep<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(0, Relaxed);
        W::full_fence();
    }
}

/// The producer's state of a ring.
#[derive(Debug)]
pub(super) struct Producer {
    pub(super) ring: RingIndex,
    written: u64,
    /// The number of words that the other side has taken, when this side last looked.
    read: u64,
}

impl Producer {
    pub(super) fn new(ring: RingIndex) -> Self {
        Self { ring, written: 0, read: 0 }
    }

    /// Puts the bytes as one record, if there is room. Returns whether there was.
    pub(super) fn put<W: Word>(&mut self, words: &[W], bytes: &[u8], sent: u64) -> bool {
        let need = 1 + bytes.len().div_ceil(WORD) as u64;
        if !self.has_room(need) {
            self.read = self.read_position(words);
            if !self.has_room(need) {
                return false;
            }
        }
        let store = |place, word| self.ring.record(words, place).store(word, Relaxed);
        store(self.written, sent << LENGTH_BITS | bytes.len() as u64);
        let mut place = self.written + 1;
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for &chunk in whole {
            store(place, u64::from_le_bytes(chunk));
            place += 1;
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            store(place, u64::from_le_bytes(last));
        }
        self.written += need;
        self.ring.word(words, WRITE_POSITION).store(self.written, Release);
        true
    }

    /// If the other side claims to have taken more than was put, there is no room either.
    fn has_room(&self, need: u64) -> bool {
        self.written.checked_sub(self.read).is_some_and(|there| there + need <= CAPACITY as u64)
    }

    /// The number of words that have been put.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The number of words that the other side claims to have taken.
    pub(super) fn read_position<W: Word>(&self, words: &[W]) -> u64 {
        self.ring.word(words, READ_POSITION).load(Acquire)
    }
}

/// The consumer's state of a ring.
#[derive(Debug)]
pub(super) struct Consumer {
    pub(super) ring: RingIndex,
    read: u64,
}

impl Consumer {
    pub(super) fn new(ring: RingIndex) -> Self {
        Self { ring, read: 0 }
    }

    pub(super) fn has_records<W: Word>(&self, words: &[W]) -> bool {
        self.ring.word(words, WRITE_POSITION).load(Relaxed) != self.read
    }

    /// Whether a record can be taken now.
    pub(super) fn has_next<W: Word>(&self, words: &[W], read: u64) -> bool {
        self.ring.word(words, WRITE_POSITION).load(Acquire) != self.read && self.next(words, read).1
    }

    /// The length of the next record, and whether it can be taken now.
    fn next<W: Word>(&self, words: &[W], read: u64) -> (usize, bool) {
        let first = self.ring.record(words, self.read).load(Relaxed);
        let (length, sent) = (first & ((1 << LENGTH_BITS) - 1), first >> LENGTH_BITS);
        (length as usize, sent == read & (u64::MAX >> LENGTH_BITS))
    }

    /// Appends all records that can be taken after `read` bytes of the socket have been read.
    ///
    /// # Errors
    /// If no correct producer can have put what the ring has.
    pub(super) fn take<W: Word>(
        &mut self,
        words: &[W],
        read: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), ()> {
        let put = self.ring.word(words, WRITE_POSITION).load(Acquire);
        let before = self.read;
        while put != self.read {
            let (length, has_next) = self.next(words, read);
            let there = put.wrapping_sub(self.read);
            let need = 1 + length.div_ceil(WORD) as u64;
            if there > CAPACITY as u64 || need > there || length > MAX_RECORD {
                return Err(());
            }
            if !has_next {
                break;
            }
            let end = out.len() + length;
            for place in self.read + 1..self.read + need {
                let word = self.ring.record(words, place).load(Relaxed);
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.truncate(end);
            self.read += need;
        }
        if self.read != before {
            self.ring.word(words, READ_POSITION).store(self.read, Release);
        }
        Ok(())
    }
}
