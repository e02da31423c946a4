//! One ring: who puts records there, who takes them, and what they tell each other. All of it can be written
//! to by the other process at any time, so that each number is read once, and believed as far as it can be true.

use std::ops::Deref;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use super::MAX_RECORD;

/// A word of shared memory. The model check of the rings has a word of its own.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// Orders what comes before it and what comes after it.
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

/// How many words of records a ring has.
pub(super) const CAPACITY: usize = 2048;

/// The words of a cache line. What one side writes and what the other does lie in different ones.
const CACHE_LINE: usize = 8;

/// How many words a ring takes.
pub(super) const WORDS: usize = 3 * CACHE_LINE + CAPACITY;

/// How many words have been put there, and taken, since the beginning, and whether who takes them is awake.
const WRITE_POSITION: usize = 0;
const READ_POSITION: usize = CACHE_LINE;
const AWAKE: usize = 2 * CACHE_LINE;
const RECORDS: usize = 3 * CACHE_LINE;

/// A record's first word: its length, and above that what was sent through the socket before it. The length does
/// not take more bits than this.
const LENGTH_BITS: u32 = 16;

const WORD: usize = size_of::<u64>();

/// Which of the two rings: the one of what the maker of the memory sends, or of what it gets.
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
        self.word(words, AWAKE).load(Relaxed) == 1
    }

    /// The same, after something was put there: either this sees that the other sleeps, or the other, before it
    /// does, what was put there.
    pub(super) fn is_awake_after_put<W: Word>(self, words: &[W]) -> bool {
        W::full_fence();
        self.is_awake(words)
    }

    pub(super) fn set_awake<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(1, Relaxed);
    }

    pub(super) fn set_asleep<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(0, Relaxed);
        W::full_fence();
    }
}

/// The end of who puts records there.
#[derive(Debug)]
pub(super) struct Producer {
    pub(super) ring: RingIndex,
    written: u64,
    /// How many words the other side has taken, as far as has been seen.
    read: u64,
}

impl Producer {
    pub(super) fn new(ring: RingIndex) -> Self {
        Self { ring, written: 0, read: 0 }
    }

    /// Puts these bytes there as one record, if there is room; tells whether there was.
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

    /// There is none either where the other side says that it has taken what was never put there.
    fn has_room(&self, need: u64) -> bool {
        self.written.checked_sub(self.read).is_some_and(|there| there + need <= CAPACITY as u64)
    }

    /// How many words have been put there.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// How many of them the other side says that it has taken.
    pub(super) fn read_position<W: Word>(&self, words: &[W]) -> u64 {
        self.ring.word(words, READ_POSITION).load(Acquire)
    }
}

/// The end of who takes them.
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

    /// Whether there is one whose turn it is.
    pub(super) fn has_next<W: Word>(&self, words: &[W], read: u64) -> bool {
        self.ring.word(words, WRITE_POSITION).load(Acquire) != self.read && self.next(words, read).1
    }

    /// How long the next record is, and whether its turn has come.
    fn next<W: Word>(&self, words: &[W], read: u64) -> (usize, bool) {
        let first = self.ring.record(words, self.read).load(Relaxed);
        let (length, sent) = (first & ((1 << LENGTH_BITS) - 1), first >> LENGTH_BITS);
        (length as usize, sent == read & (u64::MAX >> LENGTH_BITS))
    }

    /// Appends all whose turn it is when so much of what came through the socket has been read. An error is that
    /// what is there cannot have been put there.
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
