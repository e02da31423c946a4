//! What is to be sent on a connection before anything else, and how many calls have been sent.

use std::collections::VecDeque;

/// So much room is kept for what comes next.
const KEPT_CAPACITY: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) bytes: Vec<u8>,
    /// How many calls have been sent in full.
    pub(super) calls: u64,
    /// How many bytes have been sent of all that has ever been in here.
    sent: u64,
    /// What is in `bytes` has to go through the socket.
    socket_only: bool,
    /// Where the calls end that are in `bytes`, counted as `sent` is.
    ends: VecDeque<u64>,
}

impl Outbox {
    /// Appends a call; gives its number, from 1.
    pub(super) fn put_call(&mut self, frame: &[u8]) -> u64 {
        self.bytes.extend_from_slice(frame);
        self.ends.push_back(self.sent + self.bytes.len() as u64);
        self.calls + self.ends.len() as u64
    }

    /// Appends what has to go through the socket, with all that is here.
    pub(super) fn put_socket_only(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.socket_only = !self.bytes.is_empty();
    }

    pub(super) fn is_socket_only(&self) -> bool {
        self.socket_only
    }

    /// Whether there are any calls in here, or the rest of one.
    pub(super) fn has_calls(&self) -> bool {
        !self.ends.is_empty()
    }

    /// So many bytes have been sent; gives how many of them were not in here.
    pub(super) fn mark_sent(&mut self, bytes: usize) -> usize {
        let own = bytes.min(self.bytes.len());
        self.bytes.drain(..own);
        // The rest of what has been begun goes the same way.
        self.socket_only |= own > 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_CAPACITY);
            self.socket_only = false;
        }
        self.sent += own as u64;
        while self.ends.front().is_some_and(|&end| end <= self.sent) {
            self.ends.pop_front();
            self.calls += 1;
        }
        bytes - own
    }

    /// A call that was never in here has been sent behind all that was; gives its number.
    pub(super) fn count_direct_call(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_call_counts_as_sent_once_its_last_byte_is(
            calls in proptest::collection::vec((0usize..5, 1usize..20), 1..20),
            pieces in proptest::collection::vec(1usize..30, 1..40),
        ) {
            let (mut outbox, mut ends, mut put) = (Outbox::default(), Vec::new(), 0);
            for &(other, length) in &calls {
                outbox.bytes.extend(vec![0; other]);
                let number = outbox.put_call(&vec![1; length]);
                put += other + length;
                ends.push(put);
                prop_assert_eq!(number, ends.len() as u64);
            }
            let mut sent = 0;
            for piece in pieces {
                let most = put - sent;
                prop_assert_eq!(outbox.mark_sent(piece), piece.saturating_sub(most));
                sent += piece.min(most);
                let expected = ends.iter().filter(|&&end| end <= sent).count();
                prop_assert_eq!(outbox.calls, expected as u64);
            }
        }
    }
}
