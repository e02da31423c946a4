//! What a worker says in the protocol of AnyEvent::Task, taken in the words of the native one. Pure.

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::WireError;
use crate::wire::perl::{self, Scanner};

/// Where the next message ends, and what is still to be told of the last one.
#[derive(Debug, Default)]
pub(super) struct Perl {
    scanner: Scanner,
    /// The answer that came with a log, which is told first.
    answer: Option<Bytes>,
}

impl Perl {
    /// Takes the next message off the front of `inbox`; nothing while it is not there in full.
    pub(super) fn take(
        &mut self,
        inbox: &mut BytesMut,
        limit: usize,
    ) -> Result<Option<Bytes>, WireError> {
        if let Some(answer) = self.answer.take() {
            return Ok(Some(answer));
        }
        let Some(place) = self.scanner.find(inbox, limit)? else {
            inbox.advance(self.scanner.skip_blanks());
            return Ok(None);
        };
        let message = inbox.split_to(place.end);
        let (notes, answer) = perl::from_worker(&message[place.start..], limit)?;
        let answer = Bytes::from(answer);
        let Some(notes) = notes else { return Ok(Some(answer)) };
        self.answer = Some(answer);
        Ok(Some(Bytes::from(notes)))
    }

    /// Messages do not say how long they are: as much room as there is already, within bounds.
    pub(super) fn room_for_next_read(inbox: &[u8]) -> usize {
        inbox.len().clamp(4 << 10, 1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_between_messages_take_no_memory() {
        let (mut perl, mut inbox) = (Perl::default(), BytesMut::new());
        for _ in 0..100 {
            inbox.extend_from_slice(&b" \r\n\t".repeat(100));
            assert_eq!(perl.take(&mut inbox, 1000).unwrap(), None);
            assert!(inbox.is_empty());
        }
        inbox.extend_from_slice(b" [\"ok\", {},");
        assert_eq!(perl.take(&mut inbox, 1000).unwrap(), None);
        inbox.extend_from_slice(b" 1]");
        assert!(perl.take(&mut inbox, 1000).unwrap().is_some());
    }
}
