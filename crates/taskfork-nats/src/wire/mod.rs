//! What clients and nodes say to each other, as bytes. No I/O, no clock.
//!
//! A session begins with a request and a reply in JSON, which a person can read and later versions can
//! extend. What follows is binary: one byte for the kind, eight for the number of the message, and
//! the rest. The first byte tells the two apart.

mod json;
mod message;
mod piece;
mod reply;
mod request;
mod status;

use std::time::Duration;

pub(crate) use message::{End, Malformed, Message, Reason};
#[cfg(test)]
pub(crate) use piece::encode_piece;
pub(crate) use piece::{Gather, gather_piece};
pub(crate) use reply::{Direct, Refusal, Reply, check_address};
pub use request::Route;
pub(crate) use request::{Offer, Request};
pub use status::{Bounds, Recent};
pub(crate) use status::{STATUS_ENVELOPE, StatusRequest};

/// The version of this protocol. A node refuses a client with another one.
pub(crate) const VERSION: u32 = 1;

/// The kind and the number in front of each binary message.
pub(crate) const HEADER: usize = 9;

/// What a piece costs besides its bytes, in bytes of credit: about the memory that it takes while it
/// waits in a queue. So many short pieces cannot use more memory than the window allows.
pub(crate) const PIECE_COST: u64 = 256;

/// The longest piece that is sent. async-nats reads into a buffer of 64 KiB: longer messages would be copied once more,
/// because the buffer grows for each of them.
pub(crate) const MAX_PIECE: usize = 16 * 1024;

/// The least that a side may offer as its longest piece. Each piece is a message, so shorter ones would be a burden for
/// the other sessions of the node.
pub(crate) const MIN_PIECE: u32 = 512;

/// The smallest window in which a piece of useful length fits twice.
pub(crate) const MIN_WINDOW: u32 = 16 * 1024;

/// The largest window: with the shortest pieces it has as many messages as a subscription may queue.
pub(crate) const MAX_WINDOW: u32 = 8 * 1024 * 1024;

/// How many messages a subscription queues: a whole window of the shortest pieces, and the control
/// messages between them.
pub(crate) const QUEUED_MESSAGES: usize = 2 * (MAX_WINDOW as usize) / (PIECE_COST as usize);

/// How many addresses of direct connections a request may exclude.
pub(crate) const MAX_AVOIDED: usize = 8;

/// The smallest `max_payload` of a NATS server with which sessions work.
pub(crate) const MIN_PAYLOAD: usize = 1024;

/// The shortest and the longest interval of heartbeats.
pub(crate) const HEARTBEATS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_secs(60);

/// How long a token for a direct connection is valid, at least and at most.
pub(crate) const TOKEN_TIMES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);

/// The longest address of a direct connection, in bytes: a name of 253, and a port.
const MAX_ADDRESS: usize = 260;

/// The longest text of a reason, in bytes.
const MAX_TEXT: usize = 256;

/// At most [`MAX_TEXT`] bytes of a text, without control characters.
pub(crate) fn shortened(text: &str) -> String {
    let mut short = String::new();
    for letter in text.chars() {
        let letter = if letter.is_control() { ' ' } else { letter };
        if short.len() + letter.len_utf8() > MAX_TEXT {
            break;
        }
        short.push(letter);
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
            if let Ok((number, message)) = Message::decode(bytes.clone().into()) {
                // An end's text may lose what is not UTF-8; everything else is written as it was read.
                if !matches!(message, Message::End(_)) {
                    prop_assert_eq!(&message.encode(number)[..], &bytes[..]);
                }
            }
        }
    }

    #[test]
    fn requests_and_replies_fit_the_smallest_payload() {
        let offer = Offer::new(u32::MAX, usize::MAX, Duration::MAX);
        let text = shortened(&"é".repeat(1000));
        let request = Request {
            version: u32::MAX,
            number: u32::MAX,
            sessions: u32::MAX,
            client: text.clone(),
            offer,
            labels: vec![format!("{}={}", "k".repeat(32), "v".repeat(32)); 5],
            waited_ms: u64::MAX,
            cancel: true,
            route: Route::Direct,
            avoid: Vec::new(),
        };
        let refusal =
            Reply::Refuse { node: text.clone(), why: Refusal::NotDirect, text: text.clone() };
        let direct = Direct {
            address: format!("{}:65535", "h".repeat(MAX_ADDRESS - 6)),
            certificate: "f".repeat(64),
            token: "0".repeat(32),
            valid_ms: 600_000,
        };
        // The longest name of a node has 64 letters.
        let (node, direct) = ("n".repeat(64), Some(direct));
        let accept = Reply::Accept { node, subject: "s".repeat(256), offer, direct };

        assert!(request.encode().len() <= MIN_PAYLOAD);
        assert!(refusal.encode().len() <= MIN_PAYLOAD);
        assert!(accept.encode().len() <= MIN_PAYLOAD);
        assert_eq!(Reply::decode(&accept.encode()), Ok(accept));
    }
}
