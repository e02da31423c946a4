//! The messages of a session that has begun.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::piece::encode_piece;
use super::{HEADER, MAX_TEXT, shortened};

/// A message of a session that has begun.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Message {
    /// The next bytes of the stream; at least one.
    Piece(Bytes),
    /// How much the receiver of this message may have sent in all, in bytes of credit.
    Credit(u64),
    /// The sender is there.
    Heartbeat,
    /// The sender's stream is at its end.
    Finish,
    /// The session is over.
    End(End),
}

/// The end of a session as its sender describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct End {
    pub(crate) reason: Reason,
    pub(crate) text: String,
}

/// Why a session is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reason {
    /// The sender no longer needs it.
    Closed,
    /// The node shuts down.
    Draining,
    /// The other side broke the protocol.
    Violation,
    /// The sender has not heard from the other side for too long.
    Silent,
    /// The client has got a session from another node.
    Unwanted,
    /// What the node's sessions lead to has failed.
    Failed,
}

impl Message {
    /// The message with its number, as bytes.
    pub(crate) fn encode(&self, number: u64) -> Bytes {
        let (kind, body) = match self {
            Self::Piece(bytes) => return encode_piece(number, bytes),
            Self::Credit(_) => (2, 8),
            Self::Heartbeat => (3, 0),
            Self::Finish => (4, 0),
            Self::End(_) => (5, 1 + MAX_TEXT),
        };
        let mut bytes = BytesMut::with_capacity(HEADER + body);
        bytes.put_u8(kind);
        bytes.put_u64_le(number);
        match self {
            Self::Credit(limit) => bytes.put_u64_le(*limit),
            Self::End(End { reason, text }) => {
                bytes.put_u8(*reason as u8);
                bytes.put_slice(shortened(text).as_bytes());
            }
            Self::Piece(_) | Self::Heartbeat | Self::Finish => {}
        }
        bytes.freeze()
    }

    /// Reads a message and its number. `Err` says what is wrong with it.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<(u64, Self), Malformed> {
        if bytes.len() < HEADER {
            return Err(Malformed::Short(bytes.len()));
        }
        let kind = bytes.get_u8();
        let number = bytes.get_u64_le();
        let message = match (kind, bytes.len()) {
            (1, 1..) => Self::Piece(bytes),
            (2, 8) => Self::Credit(bytes.get_u64_le()),
            (3, 0) => Self::Heartbeat,
            (4, 0) => Self::Finish,
            (5, 1..=257) => {
                let reason = Reason::from_byte(bytes.get_u8()).ok_or(Malformed::Reason)?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Self::End(End { reason, text: shortened(&text) })
            }
            (1..=5, length) => return Err(Malformed::Length { kind, length }),
            _ => return Err(Malformed::Kind(kind)),
        };
        Ok((number, message))
    }
}

impl End {
    /// The reason and its text, for an error.
    pub(crate) fn describe(&self) -> String {
        let reason = match self.reason {
            Reason::Closed => "it was closed",
            Reason::Draining => "the node shuts down",
            Reason::Violation => "this side broke the protocol",
            Reason::Silent => "this side was silent",
            Reason::Unwanted => "the client has another session",
            Reason::Failed => "its server failed",
        };
        if self.text.is_empty() { reason.into() } else { format!("{reason}: {}", self.text) }
    }
}

impl Reason {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Closed, Self::Draining, Self::Violation, Self::Silent, Self::Unwanted, Self::Failed]
            .into_iter()
            .find(|reason| *reason as u8 == byte)
    }
}

/// What is wrong with the bytes of a message.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("a message of {0} bytes, shorter than its header")]
    Short(usize),
    #[error("a message of the unknown kind {0}")]
    Kind(u8),
    #[error("a message of the kind {kind} with {length} bytes after its header")]
    Length { kind: u8, length: usize },
    #[error("an end with an unknown reason")]
    Reason,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_message() -> impl Strategy<Value = Message> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..300)
                .prop_map(|bytes| Message::Piece(bytes.into())),
            any::<u64>().prop_map(Message::Credit),
            Just(Message::Heartbeat),
            Just(Message::Finish),
            (0u8..6, "[a-zé ]{0,400}").prop_map(|(reason, text)| {
                let reason = Reason::from_byte(reason).unwrap();
                Message::End(End { reason, text: shortened(&text) })
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(message in any_message(), number: u64) {
            let bytes = message.encode(number);

            prop_assert_eq!(Message::decode(bytes), Ok((number, message)));
        }
    }
}
