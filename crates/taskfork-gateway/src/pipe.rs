//! The bytes of one direction that have been received and not sent.

/// The least and the most bytes of room. A connection with short messages keeps little memory.
const LEAST: usize = 4 << 10;
const MOST: usize = 128 << 10;

/// After so many short reads in a row the room shrinks.
const SHORT_READS: u32 = 64;

/// A buffer that is filled while it is empty, and then emptied.
#[derive(Debug)]
pub(crate) struct Pipe {
    bytes: Vec<u8>,
    /// What is in use.
    sent: usize,
    received: usize,
    short_reads: u32,
}

impl Pipe {
    /// A pipe with these bytes in it.
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self { received: bytes.len(), bytes, sent: 0, short_reads: 0 }
    }

    /// What is to be sent.
    pub(crate) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..self.received]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.received
    }

    /// Where to receive, while the pipe is empty.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        debug_assert!(self.is_empty());
        if self.bytes.len() < LEAST {
            self.bytes.resize(LEAST, 0);
        } else if self.received == self.bytes.len() && self.bytes.len() < MOST {
            // The last read has filled it, so more will follow.
            self.bytes = vec![0; (self.bytes.len() * 4).min(MOST)];
        } else if self.short_reads > SHORT_READS && self.bytes.len() > LEAST {
            self.bytes = vec![0; LEAST];
        }
        (self.sent, self.received) = (0, 0);
        &mut self.bytes
    }

    /// Records that so many bytes were received, and returns them.
    pub(crate) fn record_received(&mut self, received: usize) -> &[u8] {
        self.received = received;
        self.short_reads = if received > LEAST { 0 } else { self.short_reads.saturating_add(1) };
        self.unsent()
    }

    pub(crate) fn record_sent(&mut self, sent: usize) {
        self.sent += sent;
    }

    /// Forgets all but the first bytes that were just received.
    pub(crate) fn truncate(&mut self, length: usize) {
        self.received = self.received.min(self.sent + length);
    }

    /// Forgets what is in it.
    pub(crate) fn clear(&mut self) {
        self.sent = self.received;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(pipe: &mut Pipe, most: usize) -> usize {
        let room = pipe.room().len();
        let received = room.min(most);
        pipe.record_received(received);
        pipe.record_sent(received);
        assert!(pipe.is_empty());
        room
    }

    #[test]
    fn the_room_grows_with_long_messages_and_shrinks_afterwards() {
        let mut pipe = Pipe::new(b"hello".to_vec());
        assert_eq!(pipe.unsent(), b"hello");
        pipe.record_sent(2);
        assert_eq!(pipe.unsent(), b"llo");
        pipe.clear();
        let rooms: Vec<_> = (0..5).map(|_| pass(&mut pipe, usize::MAX)).collect();
        assert_eq!(rooms, [LEAST, 4 * LEAST, 16 * LEAST, MOST, MOST]);
        let rooms: Vec<_> = (0..SHORT_READS + 2).map(|_| pass(&mut pipe, 10)).collect();
        assert_eq!((rooms[0], rooms.last()), (MOST, Some(&LEAST)));
    }
}
