//! One ring: who puts records there, who takes them, and what they tell each other. All of it can be written
//! to by the other process at any time, so that each number is read once, and believed as far as it can be true.

use std::ops::Deref;
use std::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use super::MOST;

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
pub(super) const ROOM: usize = 2048;

/// The words of a cache line. What one side writes and what the other does lie in different ones.
const LINE: usize = 8;

/// How many words a ring takes.
pub(super) const WORDS: usize = 3 * LINE + ROOM;

/// How many words have been put there, and taken, since the beginning, and whether who takes them is awake.
const PUT: usize = 0;
const TAKEN: usize = LINE;
const AWAKE: usize = 2 * LINE;
const RECORDS: usize = 3 * LINE;

/// A record's first word: its length, and above that what was sent through the socket before it. The length does
/// not take more bits than this.
const LENGTH_BITS: u32 = 16;

const WORD: usize = size_of::<u64>();

/// Which of the two rings: the one of what the maker of the memory sends, or of what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    First,
    Second,
}

impl Half {
    fn word<W>(self, words: &[W], at: usize) -> &W {
        match self {
            Self::First => &words[at],
            Self::Second => &words[WORDS + at],
        }
    }

    fn record<W>(self, words: &[W], place: u64) -> &W {
        self.word(words, RECORDS + (place % ROOM as u64) as usize)
    }

    pub(super) fn is_awake<W: Word>(self, words: &[W]) -> bool {
        self.word(words, AWAKE).load(Relaxed) == 1
    }

    /// The same, after something was put there: either this sees that the other sleeps, or the other, before it
    /// does, what was put there.
    pub(super) fn is_awake_still<W: Word>(self, words: &[W]) -> bool {
        W::full_fence();
        self.is_awake(words)
    }

    pub(super) fn wakes<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(1, Relaxed);
    }

    pub(super) fn sleeps<W: Word>(self, words: &[W]) {
        self.word(words, AWAKE).store(0, Relaxed);
        W::full_fence();
    }
}

/// The end of who puts records there.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) half: Half,
    put: u64,
    /// How many words the other side has taken, as far as has been seen.
    taken: u64,
}

impl Outgoing {
    pub(super) fn new(half: Half) -> Self {
        Self { half, put: 0, taken: 0 }
    }

    /// Puts these bytes there as one record, if there is room; tells whether there was.
    pub(super) fn put<W: Word>(&mut self, words: &[W], bytes: &[u8], sent: u64) -> bool {
        let need = 1 + bytes.len().div_ceil(WORD) as u64;
        if !self.has_room(need) {
            self.taken = self.taken(words);
            if !self.has_room(need) {
                return false;
            }
        }
        let store = |place, word| self.half.record(words, place).store(word, Relaxed);
        store(self.put, sent << LENGTH_BITS | bytes.len() as u64);
        let mut place = self.put + 1;
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
        self.put += need;
        self.half.word(words, PUT).store(self.put, Release);
        true
    }

    /// There is none either where the other side says that it has taken what was never put there.
    fn has_room(&self, need: u64) -> bool {
        self.put.checked_sub(self.taken).is_some_and(|there| there + need <= ROOM as u64)
    }

    /// How many words have been put there.
    pub(super) fn end(&self) -> u64 {
        self.put
    }

    /// How many of them the other side says that it has taken.
    pub(super) fn taken<W: Word>(&self, words: &[W]) -> u64 {
        self.half.word(words, TAKEN).load(Acquire)
    }
}

/// The end of who takes them.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) half: Half,
    taken: u64,
}

impl Incoming {
    pub(super) fn new(half: Half) -> Self {
        Self { half, taken: 0 }
    }

    pub(super) fn is_anything_there<W: Word>(&self, words: &[W]) -> bool {
        self.half.word(words, PUT).load(Relaxed) != self.taken
    }

    /// Whether there is one whose turn it is.
    pub(super) fn is_due<W: Word>(&self, words: &[W], read: u64) -> bool {
        self.half.word(words, PUT).load(Acquire) != self.taken && self.next(words, read).1
    }

    /// How long the next record is, and whether its turn has come.
    fn next<W: Word>(&self, words: &[W], read: u64) -> (usize, bool) {
        let first = self.half.record(words, self.taken).load(Relaxed);
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
        let put = self.half.word(words, PUT).load(Acquire);
        let before = self.taken;
        while put != self.taken {
            let (length, is_due) = self.next(words, read);
            let there = put.wrapping_sub(self.taken);
            let need = 1 + length.div_ceil(WORD) as u64;
            if there > ROOM as u64 || need > there || length > MOST {
                return Err(());
            }
            if !is_due {
                break;
            }
            let end = out.len() + length;
            for place in self.taken + 1..self.taken + need {
                let word = self.half.record(words, place).load(Relaxed);
                out.extend_from_slice(&word.to_le_bytes());
            }
            out.truncate(end);
            self.taken += need;
        }
        if self.taken != before {
            self.half.word(words, TAKEN).store(self.taken, Release);
        }
        Ok(())
    }
}
