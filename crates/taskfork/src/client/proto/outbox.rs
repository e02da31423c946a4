//! The bytes that a connection sends next, and where calls end in them.

use std::collections::VecDeque;

/// The capacity that an empty outbox keeps, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    bytes: Vec<u8>,
    /// How many of `bytes` have been sent. They are removed together, so that those behind them are seldom moved.
    start: usize,
    /// How many bytes of this outbox have ever been sent.
    sent: u64,
    /// The bytes must go through the socket, not through a ring.
    socket_only: bool,
    /// The ends of the calls in the unsent bytes, on the scale of `sent`.
    ends: VecDeque<u64>,
    /// The last byte that was sent through the socket is the last one of a call.
    ends_with_call: bool,
}

impl Outbox {
    /// One with these bytes.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    /// What is sent next.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Where to append bytes.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends a call, or the rest of one.
    pub(super) fn put_call(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
        self.ends.push_back(self.sent + self.unsent().len() as u64);
    }

    /// Appends bytes that must go through the socket. All bytes before them go there too.
    pub(super) fn put_socket_only(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.socket_only = !self.is_empty();
    }

    pub(super) fn is_socket_only(&self) -> bool {
        self.socket_only
    }

    /// Whether the outbox holds a call, or the rest of one.
    pub(super) fn has_calls(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Removes this many sent bytes. Returns by how many they exceed the outbox, and how many calls ended in them.
    pub(super) fn mark_sent(&mut self, bytes: usize) -> (usize, u64) {
        let mut calls = 0;
        let own = bytes.min(self.unsent().len());
        self.start += own;
        // The rest of a partly sent message must go the same way.
        self.socket_only |= own > 0;
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_CAPACITY);
            (self.start, self.socket_only) = (0, false);
        } else if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.sent += own as u64;
        if own > 0 {
            self.ends_with_call = false;
        }
        while let Some(&end) = self.ends.front()
            && end <= self.sent
        {
            self.ends.pop_front();
            self.ends_with_call = end == self.sent;
            calls += 1;
        }
        (bytes - own, calls)
    }

    /// Records that the last bytes through the socket are those of another message, or that the last call went
    /// through a ring.
    pub(super) fn mark_other_sent(&mut self) {
        self.ends_with_call = false;
    }

    /// Whether the last byte that was sent through the socket is the last one of a call. Then unread bytes in
    /// the socket mean that the worker has not begun this call.
    pub(super) fn ends_with_call(&self) -> bool {
        self.ends_with_call
    }

    /// Records that a call was sent without the outbox.
    pub(super) fn mark_direct_call_sent(&mut self) {
        self.ends_with_call = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_call_counts_as_sent_with_its_last_byte(
            calls in proptest::collection::vec((0usize..5, 1usize..20), 1..20),
            pieces in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let (mut outbox, mut ends, mut put) = (Outbox::default(), Vec::new(), 0);
            for &(other, length) in &calls {
                outbox.out().extend(vec![0; other]);
                outbox.put_call(&vec![1; length]);
                put += other + length;
                ends.push(put);
            }
            let (mut sent, mut counted) = (0, 0);
            for piece in pieces {
                let most = put - sent;
                let (excess, calls) = outbox.mark_sent(piece);
                prop_assert_eq!(excess, piece.saturating_sub(most));
                sent += piece.min(most);
                counted += calls;
                let expected = ends.iter().filter(|&&end| end <= sent).count();
                prop_assert_eq!(counted, expected as u64);
                if piece > 0 && most > 0 {
                    prop_assert_eq!(outbox.ends_with_call(), ends.contains(&sent));
                }
            }
        }
    }
}
