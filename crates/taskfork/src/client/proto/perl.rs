//! Reads a worker's messages in the protocol of AnyEvent::Task and translates them to the native one. Pure.

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::WireError;
use crate::wire::perl::{self, Scanner};

/// The search for the end of the next message, and the rest of the last one.
#[derive(Debug, Default)]
pub(super) struct Perl {
    scanner: Scanner,
    /// The answer of a message that had a log too. The log is returned first.
    answer: Option<Bytes>,
}

impl Perl {
    /// Takes the next message from `inbox`. Returns `None` until all of it has been received.
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
        let (telemetry, answer) = perl::from_worker(&message[place.start..], limit)?;
        let answer = Bytes::from(answer);
        let Some(telemetry) = telemetry else { return Ok(Some(answer)) };
        self.answer = Some(answer);
        Ok(Some(Bytes::from(telemetry)))
    }

    /// The capacity to reserve for the next read. Messages do not state their lengths, so it doubles the inbox, within
    /// bounds.
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
