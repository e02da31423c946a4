//! The messages of a session as bytes. No I/O, no clock.
//!
//! A session begins with a request and a reply in JSON, which a person can read and later versions can
//! extend. What follows is binary: one byte for the kind, eight for the number of the message, and
//! the rest. The first byte tells the two apart.

use std::io::IoSlice;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::token;

/// The version of this protocol. A node refuses a client with another one.
pub(crate) const VERSION: u32 = 1;

/// The kind and the number in front of each binary message.
pub(crate) const HEADER: usize = 9;

/// What a piece costs besides its bytes, in bytes of credit: about the memory that it takes while it
/// waits in a queue. So many short pieces cannot use more memory than the window allows.
pub(crate) const PIECE_COST: u64 = 256;

/// The longest piece that is sent. Longer ones would leave too few pieces in a window to keep both
/// sides busy.
pub(crate) const MAX_PIECE: usize = 128 * 1024;

/// The smallest window in which a piece of useful length fits twice.
pub(crate) const MIN_WINDOW: u32 = 16 * 1024;

/// The largest window: with the shortest pieces it has as many messages as a subscription may queue.
pub(crate) const MAX_WINDOW: u32 = 8 * 1024 * 1024;

/// How many messages a subscription queues: a whole window of the shortest pieces, and the control
/// messages between them.
pub(crate) const QUEUED_MESSAGES: usize = 2 * (MAX_WINDOW as usize) / (PIECE_COST as usize);

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

/// How many addresses of direct connections a request may exclude.
pub(crate) const MAX_AVOIDED: usize = 8;

/// The longest text of a reason, in bytes.
const MAX_TEXT: usize = 256;

/// A client's request for a session, or for a place in the queue of nodes without room.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Request {
    pub(crate) version: u32,
    /// The client's name, for logs.
    #[serde(default)]
    pub(crate) client: String,
    pub(crate) offer: Offer,
    /// What a node must have. Only for a place in the queue: otherwise the subject says it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) labels: Vec<String>,
    /// For how long the client has waited, in milliseconds.
    #[serde(default)]
    pub(crate) waited_ms: u64,
    /// The client no longer wants its place in the queue.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) cancel: bool,
    /// Which way the client wants its bytes to take.
    #[serde(default, skip_serializing_if = "Route::is_relayed")]
    pub(crate) route: Route,
    /// Addresses where the client wants no direct connection, because it could not make one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) avoid: Vec<String>,
}

/// Which way the bytes between a client and a node take.
///
/// ```
/// use taskfork_nats::Route;
///
/// assert_eq!(Route::default(), Route::Relayed);
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// A direct connection if the node offers one, or else through NATS.
    Auto,
    /// A direct connection. Nodes that do not offer one refuse the client.
    Direct,
    /// Through NATS.
    #[default]
    #[serde(other)]
    Relayed,
}

impl Route {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
    fn is_relayed(&self) -> bool {
        *self == Self::Relayed
    }
}

/// What one side of a session receives and how often it wants to hear from the other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Offer {
    /// How much may be unread, in bytes of credit.
    pub(crate) window: u32,
    /// The longest piece, in bytes.
    pub(crate) piece: u32,
    /// The interval of heartbeats, in milliseconds.
    pub(crate) heartbeat_ms: u32,
}

/// A node's reply to a [`Request`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The session exists. The client sends to `subject`; the node sends to the reply subject of the
    /// request, once it has heard from the client.
    ///
    /// With `direct`, the client may connect there instead, for as long as its token is valid.
    Accept {
        node: String,
        subject: String,
        offer: Offer,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        direct: Option<Direct>,
    },
    /// There is no session.
    Refuse { node: String, why: Refusal, text: String },
}

/// Where a client may connect without NATS, once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Direct {
    /// `HOST:PORT`, where TLS is spoken.
    pub(crate) address: String,
    /// The SHA-256 of the only certificate to trust there, in hexadecimal digits.
    pub(crate) certificate: String,
    /// 128 bits that admit one connection, in hexadecimal digits.
    pub(crate) token: String,
    /// How long they do so, in milliseconds.
    pub(crate) valid_ms: u32,
}

/// Why a node refuses a session.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    /// The node has become full; another one may have room.
    Full,
    /// The node did not understand the request.
    Request,
    /// The node could not reach its server.
    Connect,
    /// The client wants a direct connection, and the node offers none.
    NotDirect,
    /// A kind of refusal that this version does not know.
    #[serde(other)]
    Other,
}

impl Offer {
    /// What this side offers, within the limits of the protocol.
    pub(crate) fn new(window: u32, max_payload: usize, heartbeat: Duration) -> Self {
        let window = window.clamp(MIN_WINDOW, MAX_WINDOW);
        let piece = max_payload.saturating_sub(HEADER).min(MAX_PIECE).min(window as usize / 4);
        let heartbeat = heartbeat.clamp(*HEARTBEATS.start(), *HEARTBEATS.end());
        Self { window, piece: piece as u32, heartbeat_ms: heartbeat.as_millis() as u32 }
    }

    /// Whether a peer may offer this.
    pub(crate) fn check(self) -> Result<Self, String> {
        let heartbeat = Duration::from_millis(u64::from(self.heartbeat_ms));
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&self.window) {
            return Err(format!(
                "the window is {} bytes, not {MIN_WINDOW} to {MAX_WINDOW}",
                self.window
            ));
        }
        if self.piece == 0 {
            return Err("the longest piece has no bytes".into());
        }
        if !HEARTBEATS.contains(&heartbeat) {
            return Err(format!(
                "the interval of heartbeats is {heartbeat:?}, not {:?} to {:?}",
                HEARTBEATS.start(),
                HEARTBEATS.end()
            ));
        }
        Ok(self)
    }
}

impl Request {
    /// Reads a request. `Err` has the reason for the client.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let request: Self = decode_json(payload)?;
        if request.version != VERSION {
            return Err(format!(
                "the client speaks version {} of sessions over NATS, this node version {VERSION}: \
                 use the same release of taskfork on both sides",
                request.version
            ));
        }
        request.offer.check()?;
        if request.avoid.len() > MAX_AVOIDED {
            return Err(format!("it excludes more than {MAX_AVOIDED} addresses"));
        }
        Ok(Self { client: shortened(&request.client), ..request })
    }

    pub(crate) fn encode(&self) -> Bytes {
        encode_json(self)
    }
}

impl Reply {
    /// Whether a message is a reply, and not one of a session that has begun.
    pub(crate) fn recognize(payload: &[u8]) -> bool {
        payload.first() == Some(&b'{')
    }

    /// Reads a reply. `Err` says what is wrong with it.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let reply: Self = decode_json(payload)?;
        if let Self::Accept { offer, subject, direct, .. } = &reply {
            offer.check()?;
            direct.as_ref().map_or(Ok(()), Direct::check)?;
            if subject.is_empty()
                || subject.len() > 256
                || subject.bytes().any(|byte| byte <= b' ' || matches!(byte, b'*' | b'>'))
            {
                return Err("its subject is not one that can be sent to".into());
            }
        }
        Ok(match reply {
            Self::Accept { node, subject, offer, direct } => {
                Self::Accept { node: shortened(&node), subject, offer, direct }
            }
            Self::Refuse { node, why, text } => {
                Self::Refuse { node: shortened(&node), why, text: shortened(&text) }
            }
        })
    }

    pub(crate) fn encode(&self) -> Bytes {
        encode_json(self)
    }
}

impl Direct {
    /// Whether a client may connect there.
    fn check(&self) -> Result<(), String> {
        check_address(&self.address)?;
        let valid = Duration::from_millis(self.valid_ms.into());
        if !TOKEN_TIMES.contains(&valid) {
            return Err(format!(
                "a token is valid for {valid:?}, not {:?} to {:?}",
                TOKEN_TIMES.start(),
                TOKEN_TIMES.end()
            ));
        }
        match (self.fingerprint(), self.token()) {
            (Some(_), Some(_)) => Ok(()),
            (None, _) => Err("its fingerprint has not 64 hexadecimal digits".into()),
            (_, None) => Err("its token has not 32 hexadecimal digits".into()),
        }
    }

    pub(crate) fn fingerprint(&self) -> Option<[u8; 32]> {
        token::from_hex(&self.certificate)
    }

    pub(crate) fn token(&self) -> Option<[u8; 16]> {
        token::from_hex(&self.token)
    }
}

/// Whether a text is an address to connect to. `Err` says why not.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    if address.len() > MAX_ADDRESS {
        return Err(format!("it has more than {MAX_ADDRESS} bytes"));
    }
    let (host, port) = address.rsplit_once(':').ok_or("it has no port")?;
    if !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err("its port is not 1 to 65535".into());
    }
    // A colon in an IPv6 address needs brackets, as anywhere else.
    let inner = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or("its host has half a pair of brackets")?,
        None if host.contains(':') => return Err("its host has a colon and no brackets".into()),
        None => host,
    };
    if inner.is_empty() {
        return Err("it has no host".into());
    }
    if !inner.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':')) {
        return Err("its host is neither a name nor an address".into());
    }
    Ok(())
}

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

/// A question for the status of a node. No payload stands for a short one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct StatusRequest {
    /// Whether the answer may be long.
    #[serde(default)]
    pub(crate) full: bool,
}

impl StatusRequest {
    pub(crate) fn encode(self) -> Bytes {
        encode_json(&self)
    }

    /// Anything that is no such question asks for a short answer.
    pub(crate) fn decode(payload: &[u8]) -> Self {
        decode_json(payload).unwrap_or_default()
    }
}

/// How much of a status's message is not the details.
pub(crate) const STATUS_ENVELOPE: usize = 1024;

/// How long the details of a status may be.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Bounds {
    /// Whether all details are wanted, or only a summary.
    pub full: bool,
    /// The most bytes of the details as JSON.
    pub most: usize,
}

/// A piece as bytes, with one copy of the data.
pub(crate) fn encode_piece(number: u64, data: &[u8]) -> Bytes {
    gather_piece(number, &mut Gather::new(&[IoSlice::new(data)]), data.len())
}

/// A piece of the next `length` bytes.
pub(crate) fn gather_piece(number: u64, data: &mut Gather<'_>, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_u8(1);
    bytes.put_u64_le(number);
    data.take(length, &mut bytes);
    bytes.freeze()
}

/// What is left of several slices that are sent as one.
#[derive(Debug)]
pub(crate) struct Gather<'a> {
    slices: &'a [IoSlice<'a>],
    /// How much of the first slice is gone.
    taken: usize,
    left: usize,
}

impl<'a> Gather<'a> {
    pub(crate) fn new(slices: &'a [IoSlice<'a>]) -> Self {
        Self { slices, taken: 0, left: slices.iter().map(|slice| slice.len()).sum() }
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Moves the next bytes to `out`; at most those that are left.
    fn take(&mut self, mut length: usize, out: &mut BytesMut) {
        while length > 0
            && let Some((first, others)) = self.slices.split_first()
        {
            let rest = &first[self.taken..];
            let part = &rest[..rest.len().min(length)];
            out.put_slice(part);
            length -= part.len();
            self.left -= part.len();
            if part.len() == rest.len() {
                (self.slices, self.taken) = (others, 0);
            } else {
                self.taken += part.len();
            }
        }
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

/// Requests and replies have far fewer bytes; a parser gets no more.
const MAX_JSON: usize = 4096;

fn decode_json<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, String> {
    if payload.len() > MAX_JSON {
        return Err(format!("it has {} bytes, more than {MAX_JSON}", payload.len()));
    }
    serde_json::from_slice(payload).map_err(|error| error.to_string())
}

fn encode_json(value: &impl Serialize) -> Bytes {
    // These types have no map with keys that JSON lacks, and no float: serializing them cannot fail.
    serde_json::to_vec(value).unwrap_or_default().into()
}

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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_false(value: &bool) -> bool {
    !*value
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
        fn pieces_of_several_slices_are_those_of_one(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            length in 1usize..20,
        ) {
            let joined = slices.concat();
            let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let mut gather = Gather::new(&slices);
            for piece in joined.chunks(length) {
                prop_assert_eq!(&gather_piece(7, &mut gather, piece.len())[HEADER..], piece);
            }
            prop_assert_eq!(gather.left(), 0);
        }

        #[test]
        fn a_message_is_read_as_it_was_written(message in any_message(), number: u64) {
            let bytes = message.encode(number);

            prop_assert_eq!(Message::decode(bytes), Ok((number, message)));
        }

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

        #[test]
        fn an_offer_within_the_limits_is_always_accepted(window: u32, payload in MIN_PAYLOAD.., beat: u32) {
            let offer = Offer::new(window, payload, Duration::from_millis(beat.into()));

            prop_assert_eq!(offer.check(), Ok(offer));
            prop_assert!(offer.piece as usize + HEADER <= payload);
            prop_assert!(2 * (u64::from(offer.piece) + PIECE_COST) <= u64::from(offer.window));
        }
    }

    #[test]
    fn requests_and_replies_fit_the_smallest_payload() {
        let offer = Offer::new(u32::MAX, usize::MAX, Duration::MAX);
        let text = shortened(&"é".repeat(1000));
        let request = Request {
            version: u32::MAX,
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

    #[test]
    fn a_refusal_of_a_later_version_is_still_a_refusal() {
        let reply = br#"{"refuse":{"node":"a","why":"weather","text":"rain","more":1}}"#;

        let reply = Reply::decode(reply);

        let expected = Reply::Refuse { node: "a".into(), why: Refusal::Other, text: "rain".into() };
        assert_eq!(reply, Ok(expected));
    }

    #[test]
    fn a_subject_with_wildcards_is_not_sent_to() {
        let offer = Offer::new(MIN_WINDOW, MIN_PAYLOAD, Duration::from_secs(2));
        for subject in ["", "a.*", ">", "a b", "a\r\nPUB x 0"] {
            let (node, subject) = ("a".into(), subject.to_owned());
            let reply = Reply::Accept { node, subject, offer, direct: None };

            assert!(Reply::decode(&reply.encode()).is_err(), "{reply:?}");
        }
    }

    fn direct() -> Direct {
        Direct {
            address: "node.example:7000".into(),
            certificate: "0123456789abcdef".repeat(4),
            token: "0123456789ABCDEF".repeat(2),
            valid_ms: 10_000,
        }
    }

    fn accept(direct: Direct) -> Reply {
        let offer = Offer::new(MIN_WINDOW, MIN_PAYLOAD, Duration::from_secs(2));
        Reply::Accept { node: "a".into(), subject: "s".into(), offer, direct: Some(direct) }
    }

    #[test]
    fn a_request_without_a_route_or_with_an_unknown_one_is_relayed() {
        let request = |route: &str| {
            let offer = r#"{"window":65536,"piece":100,"heartbeat_ms":100}"#;
            let json = format!(r#"{{"version":1,"offer":{offer}{route}}}"#);
            Request::decode(json.as_bytes()).map(|request| request.route)
        };
        assert_eq!(request(""), Ok(Route::Relayed));
        assert_eq!(request(r#","route":"pigeon""#), Ok(Route::Relayed));
        assert_eq!(request(r#","route":"auto""#), Ok(Route::Auto));
        assert_eq!(request(r#","route":"direct""#), Ok(Route::Direct));
        assert!(request(r#","route":7"#).is_err());
    }

    #[test]
    fn a_direct_connection_that_cannot_be_is_refused() {
        type Change = fn(&mut Direct);
        let right = accept(direct());
        assert_eq!(Reply::decode(&right.encode()), Ok(right));
        let wrong: [(Change, &str); 9] = [
            (|direct| direct.address = "node.example".into(), "no port"),
            (|direct| direct.address = "node.example:0".into(), "port is not"),
            (|direct| direct.address = ":7000".into(), "no host"),
            (|direct| direct.address = "a\nb:7000".into(), "neither a name"),
            (|direct| direct.address = format!("{}:7", "a".repeat(300)), "more than 260 bytes"),
            (|direct| direct.certificate.truncate(63), "fingerprint"),
            (|direct| direct.token.replace_range(..1, "+"), "token"),
            (|direct| direct.valid_ms = 0, "valid for"),
            (|direct| direct.valid_ms = u32::MAX, "valid for"),
        ];
        for (change, expected) in wrong {
            let mut direct = direct();
            change(&mut direct);
            let error = Reply::decode(&accept(direct).encode()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_takes_as_an_address_can_be_connected_to(address in "[a-z0-9:.\\[\\] -]{0,20}") {
            if check_address(&address).is_ok() {
                let (host, port) = address.rsplit_once(':').unwrap();
                prop_assert!(!host.is_empty() && port.parse::<u16>().unwrap() > 0);
                prop_assert!(!address.contains(' '));
            }
        }

        #[test]
        fn bytes_are_read_from_the_digits_that_they_were_written_as(bytes: [u8; 16], text in ".{0,40}") {
            prop_assert_eq!(token::from_hex(&token::hex(&bytes)), Some(bytes));
            if let Some(read) = token::from_hex::<16>(&text) {
                prop_assert_eq!(token::hex(&read), text.to_lowercase());
            }
        }
    }
}
