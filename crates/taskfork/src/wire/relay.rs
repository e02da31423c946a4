//! What a gateway reads and writes in a stream that it relays: the client's first message, the frames of the worker,
//! and the message behind the last of them. The crate `taskfork-gateway` does the I/O.

use super::error_body::kind;
use super::fields::{MAX_ENTRIES, MapWriter, read_map};
use super::frame::{self, HEADER_LEN, PREAMBLE};
use super::hello::MAX_HELLO;
use super::msgpack::{Reader, put_array, put_map, put_str, put_uint};
use super::native::kind::{CALL, DONE, ERROR, HELLO, OK, PIPELINED_CALL, SINGLE_CALL, SKIPPED};
use super::native::put_end;
pub use super::peer::{MAX_PEER_NAMES, MAX_PEER_TEXT};
use super::{Protocol, WireError, first_message, peer, refusal};

/// What a stream through a gateway cannot carry: open files, and memory that both sides map.
const LOCAL_ONLY: [&str; 2] = ["files", "lent"];

/// A client of another machine, as its gateway tells it to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayedPeer<'a> {
    /// A client that is authenticated by TLS.
    Tls {
        /// The subject alternative names of its certificate. Empty if it has none.
        names: &'a [String],
        /// Its address.
        address: &'a str,
    },
    /// A client that has come by NATS.
    Nats {
        /// The name that it has given itself. It proves nothing.
        name: &'a str,
        /// Its address, if it is connected directly.
        address: Option<&'a str>,
    },
}

impl RelayedPeer<'_> {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let mut map = MapWriter::new(out);
        match *self {
            Self::Tls { names, address } => {
                map.str("kind", "tls");
                let out = map.key("names");
                let names = &names[..names.len().min(MAX_PEER_NAMES)];
                put_array(out, names.len() as u32);
                names.iter().for_each(|name| put_str(out, text(name)));
                map.str("address", text(address));
            }
            Self::Nats { name, address } => {
                map.str("kind", "nats");
                map.str("name", text(name));
                if let Some(address) = address {
                    map.str("address", text(address));
                }
            }
        }
    }
}

/// Why a client's first message is not relayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It is JSON.
    #[error("a gateway relays the native protocol only, and this client speaks JSON")]
    Json,
    /// It is no valid hello, or too long.
    #[error("{0}")]
    Invalid(String),
}

impl From<WireError> for HelloError {
    fn from(error: WireError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The length of a client's preamble and hello, at the beginning of what was received. `None` while they are
/// incomplete. No more than this many bytes are needed: see [`most_hello_bytes`].
///
/// # Errors
/// As soon as the bytes can be no hello that a gateway relays.
pub fn hello_length(received: &[u8]) -> Result<Option<usize>, HelloError> {
    match first_message::protocol(received) {
        Some(Protocol::Perl) => return Err(HelloError::Json),
        Some(Protocol::Native) => {}
        None => return Ok(None),
    }
    let compared = received.len().min(PREAMBLE.len());
    let (preamble, rest) = received.split_at(compared);
    if preamble != &PREAMBLE[..compared] {
        let began = String::from_utf8_lossy(preamble).into_owned();
        return Err(WireError::Preamble { began }.into());
    }
    Ok(frame::find(rest, MAX_HELLO)?.map(|body| compared + body.end))
}

/// The most bytes of a preamble and a hello.
pub const fn most_hello_bytes() -> usize {
    PREAMBLE.len() + HEADER_LEN + MAX_HELLO
}

/// Rewrites a preamble and a hello, which are all of `first`: it names `peer`, whatever the client wrote there, and
/// offers nothing that only works on one machine. Everything else stays as it was.
///
/// # Errors
/// If `first` is no complete hello, or the hello would be too long for a server.
pub fn rewrite_hello(first: &[u8], peer: &RelayedPeer<'_>) -> Result<Vec<u8>, HelloError> {
    let incomplete = || HelloError::Invalid("the first message is incomplete".to_owned());
    let body = first.get(PREAMBLE.len() + HEADER_LEN..).ok_or_else(incomplete)?;
    let mut reader = Reader::new(body);
    if (reader.array()?, reader.int::<u64>()?) != (2, HELLO) {
        return Err(HelloError::Invalid("the first message is no hello".to_owned()));
    }
    let (mut entries, mut kept) = (0, Vec::new());
    read_map(&mut reader, |key, reader| {
        let value = reader.value()?;
        if key != peer::KEY && !LOCAL_ONLY.contains(&key) {
            entries += 1;
            put_str(&mut kept, key);
            kept.extend_from_slice(value);
        }
        Ok(true)
    })?;
    if !reader.rest().is_empty() {
        return Err(HelloError::Invalid("the first message has bytes behind its end".to_owned()));
    }
    if entries as usize >= MAX_ENTRIES {
        // The server could not read it, nor whom it is about.
        return Err(HelloError::Invalid(format!("the first message has {entries} keys")));
    }
    let mut out = PREAMBLE.to_vec();
    let written = frame::write(&mut out, MAX_HELLO, |out| {
        put_array(out, 2);
        put_uint(out, HELLO);
        put_map(out, entries + 1);
        out.extend_from_slice(&kept);
        put_str(out, peer::KEY);
        peer.put(out);
        Ok::<_, WireError>(())
    });
    match written {
        Ok(()) => Ok(out),
        Err(WireError::TooLarge { .. }) => Err(HelloError::Invalid(format!(
            "the first message has more than {MAX_HELLO} bytes with the names of the certificate: \
             shorten the client's name, or use a certificate with fewer names"
        ))),
        Err(error) => Err(error.into()),
    }
}

/// As much of a text about a peer as a server reads.
fn text(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_PEER_TEXT)]
}

/// Follows both directions of a stream behind the client's hello.
#[derive(Debug, Default)]
pub struct Streams {
    client: Frames,
    worker: Frames,
    usage: Usage,
}

/// What a checkout still has to get. Each call has one answer, and answers come in the order of calls.
#[derive(Debug, Default)]
struct Usage {
    stage: Stage,
    /// How many calls have no answer, also those of earlier checkouts.
    unanswered: u64,
}

/// Whether a checkout uses the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Idle,
    /// Until the client says that it is over.
    Checkout,
    /// Until the last answer.
    SingleCall,
}

impl Usage {
    fn handle_client(&mut self, kind: u8) {
        self.stage = match u64::from(kind) {
            CALL | PIPELINED_CALL => Stage::Checkout,
            SINGLE_CALL => Stage::SingleCall,
            DONE => Stage::Idle,
            _ => return,
        };
        if self.stage != Stage::Idle {
            self.unanswered = self.unanswered.saturating_add(1);
        }
    }

    fn handle_worker(&mut self, kind: u8) {
        if [OK, ERROR, SKIPPED].contains(&u64::from(kind)) {
            // An error without a call is a refusal.
            self.unanswered = self.unanswered.saturating_sub(1);
            if self.stage == Stage::SingleCall && self.unanswered == 0 {
                self.stage = Stage::Idle;
            }
        }
    }
}

impl Streams {
    /// Follows what the client has sent next.
    pub fn handle_client(&mut self, bytes: &[u8]) {
        if let Frames(Place::Preamble(_)) = self.client {
            self.client = Frames(Place::HEADER);
        }
        let usage = &mut self.usage;
        self.client.advance(bytes, |kind| usage.handle_client(kind));
    }

    /// Follows what the client has sent next, up to where its checkout ends. Returns how many bytes that are. The rest
    /// belongs to the next checkout.
    pub fn handle_client_checkout(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() && !self.is_client_between_checkouts() {
            let part = self.client.part(&bytes[used..]);
            self.handle_client(part);
            used += part.len();
        }
        used
    }

    /// Follows what the worker, or the server, has sent next.
    pub fn handle_worker(&mut self, bytes: &[u8]) {
        let usage = &mut self.usage;
        self.worker.advance(bytes, |kind| usage.handle_worker(kind));
    }

    /// Whether the worker has ended a frame, or the preamble, and begun no other frame.
    pub fn is_worker_between_frames(&self) -> bool {
        matches!(self.worker.0, Place::Header(_, 0))
    }

    /// Whether the client has ended its last checkout, and sent nothing of another one. Answers may be missing.
    pub fn is_client_between_checkouts(&self) -> bool {
        let is_between_frames = matches!(self.client.0, Place::Preamble(0) | Place::Header(_, 0));
        self.usage.stage == Stage::Idle && is_between_frames
    }

    /// Whether neither a checkout, nor an answer, nor a part of a message is on its way. Then the stream can end without
    /// harm.
    pub fn is_idle(&self) -> bool {
        let is_answered = self.usage.unanswered == 0;
        is_answered && self.is_client_between_checkouts() && self.is_worker_between_frames()
    }
}

/// Follows frames by their lengths.
#[derive(Debug)]
struct Frames(Place);

/// The place in a stream.
#[derive(Debug)]
enum Place {
    /// So many bytes of the preamble have come.
    Preamble(usize),
    /// So many bytes of a frame's header have come.
    Header([u8; HEADER_LEN], usize),
    /// So many bytes of a body have come, and so many are missing.
    Body(usize, usize),
    /// The stream is none of this protocol.
    Foreign,
}

impl Default for Frames {
    fn default() -> Self {
        Self(Place::Preamble(0))
    }
}

impl Frames {
    /// These bytes up to where a header or a body ends.
    fn part<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let most = match self.0 {
            Place::Preamble(_) => HEADER_LEN,
            Place::Header(_, count) => HEADER_LEN - count,
            Place::Body(_, missing) => missing,
            Place::Foreign => bytes.len(),
        };
        &bytes[..bytes.len().min(most)]
    }

    /// Follows these bytes, which come next. Calls `on_kind` for the kind of each message.
    fn advance(&mut self, mut bytes: &[u8], mut on_kind: impl FnMut(u8)) {
        while let Some((&first, rest)) = bytes.split_first() {
            (self.0, bytes) = match self.0 {
                Place::Preamble(count) if PREAMBLE[count] != first => (Place::Foreign, rest),
                Place::Preamble(count) if count + 1 == PREAMBLE.len() => (Place::HEADER, rest),
                Place::Preamble(count) => (Place::Preamble(count + 1), rest),
                Place::Header(mut header, count) => {
                    header[count] = first;
                    let place = match count + 1 == HEADER_LEN {
                        true => Place::in_body(0, u32::from_le_bytes(header) as usize),
                        false => Place::Header(header, count + 1),
                    };
                    (place, rest)
                }
                Place::Body(count, missing) => {
                    let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                    // The kind is behind the header of the array, which is one byte.
                    if let Some(&kind) = 1_usize.checked_sub(count).and_then(|at| part.get(at)) {
                        on_kind(kind);
                    }
                    (Place::in_body(count + part.len(), missing - part.len()), rest)
                }
                Place::Foreign => return,
            };
        }
    }
}

impl Place {
    const HEADER: Self = Self::Header([0; HEADER_LEN], 0);

    fn in_body(count: usize, missing: usize) -> Self {
        if missing == 0 { Self::HEADER } else { Self::Body(count, missing) }
    }
}

/// Encodes the message with which a gateway ends the stream of a worker that has ended. `passed` is how many bytes
/// behind its hello the client has sent and the gateway has passed on. `is_unread` says that the worker has not read all
/// of them.
pub fn end_message(passed: u64, is_unread: bool) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, |out| put_end(out, passed, is_unread));
    out
}

/// Encodes the refusal of a client that may not use the server, in JSON or with the preamble of the native protocol.
pub fn refused(is_json: bool, reason: &str) -> Vec<u8> {
    let protocol = if is_json { Protocol::Perl } else { Protocol::Native };
    refusal::encode(protocol, kind::REFUSED, reason, false)
}

/// Encodes the refusal of a client that may try again later.
pub fn busy(reason: &str) -> Vec<u8> {
    refusal::encode(Protocol::Native, kind::BUSY, reason, false)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use rmpv::Value;

    use super::*;
    use crate::peer::Peer;
    use crate::wire::hello::ClientHello;
    use crate::wire::native::FromClient;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut out = PREAMBLE.to_vec();
        frame::put(&mut out, |out| out.extend_from_slice(body));
        out
    }

    fn encoded(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        rmpv::encode::write_value(&mut out, value).unwrap();
        out
    }

    fn body_of(hello: &[u8]) -> Value {
        assert_eq!(hello_length(hello), Ok(Some(hello.len())));
        let mut body = &hello[PREAMBLE.len() + HEADER_LEN..];
        let value = rmpv::decode::read_value(&mut body).unwrap();
        assert!(body.is_empty());
        value
    }

    fn peer_value(peer: &RelayedPeer<'_>) -> Value {
        let (kind, name, address) = match *peer {
            RelayedPeer::Tls { names, address } => {
                let names = names.iter().map(|name| Value::from(name.as_str())).collect();
                ("tls", ("names", Value::Array(names)), Some(address))
            }
            RelayedPeer::Nats { name, address } => ("nats", ("name", name.into()), address),
        };
        let first = std::iter::once(("kind".into(), kind.into()));
        let named = std::iter::once((name.0.into(), name.1));
        let last = address.map(|address| ("address".into(), address.into()));
        Value::Map(first.chain(named).chain(last).collect())
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            "[a-z]{0,40}".prop_map(Value::from),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Value::Binary),
            Just(Value::Nil),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_rewritten_hello_differs_in_three_keys_only(
            map in prop::collection::vec((prop_oneof![
                Just("peer".to_owned()), Just("files".to_owned()), Just("lent".to_owned()), "[a-z]{1,40}",
            ], value()), 0..30),
            names in prop::collection::vec("[a-z.]{1,40}", 0..5),
            is_nats in any::<bool>(),
        ) {
            let address = names.first().map(String::as_str);
            let peer = match is_nats {
                true => RelayedPeer::Nats { name: "web", address },
                false => RelayedPeer::Tls { names: &names, address: "[::1]:4000" },
            };
            let entries: Vec<_> = map.into_iter().map(|(key, value)| (Value::from(key), value)).collect();
            let hello = Value::Array(vec![0.into(), Value::Map(entries.clone())]);
            let rewritten = rewrite_hello(&framed(&encoded(&hello)), &peer).unwrap();
            let is_kept = |(key, _): &(Value, Value)| {
                !["peer", "files", "lent"].contains(&key.as_str().unwrap())
            };
            let mut expected: Vec<_> = entries.into_iter().filter(is_kept).collect();
            expected.push(("peer".into(), peer_value(&peer)));
            prop_assert_eq!(body_of(&rewritten), Value::Array(vec![0.into(), Value::Map(expected)]));
        }

        #[test]
        fn any_bytes_are_rewritten_to_a_valid_hello_or_refused(
            body in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                prop::collection::vec(any::<u8>(), 0..200).prop_map(|rest| [&[0x92, 0][..], &rest].concat()),
            ],
        ) {
            let peer = RelayedPeer::Tls { names: &[], address: "127.0.0.1:1" };
            if let Ok(rewritten) = rewrite_hello(&framed(&body), &peer) {
                prop_assert_eq!(hello_length(&rewritten), Ok(Some(rewritten.len())));
                let mut reader = Reader::new(&rewritten[PREAMBLE.len() + HEADER_LEN..]);
                reader.value().unwrap();
                prop_assert!(reader.rest().is_empty());
            }
            let _ = hello_length(&body);
        }

        #[test]
        fn a_place_between_frames_is_found_in_any_fragments(
            bodies in prop::collection::vec(0usize..40, 0..6),
            cut in 0usize..300,
            piece in 1usize..9,
        ) {
            let mut stream = PREAMBLE.to_vec();
            let mut ends = vec![stream.len()];
            for body in bodies {
                frame::put(&mut stream, |out| out.extend(vec![b'x'; body]));
                ends.push(stream.len());
            }
            let cut = cut.min(stream.len());
            let mut streams = Streams::default();
            stream[..cut].chunks(piece).for_each(|bytes| streams.handle_worker(bytes));
            prop_assert_eq!(streams.is_worker_between_frames(), ends.contains(&cut));
        }

        #[test]
        fn a_client_is_followed_to_the_end_of_its_checkout(
            calls in 1usize..4,
            padding in 0usize..10,
            piece in 1usize..40,
        ) {
            let mut sent = Vec::new();
            let mut put = |kind: u64| {
                frame::put(&mut sent, |out| {
                    put_array(out, 2);
                    put_uint(out, kind);
                    out.extend(vec![0x80; padding + 1]);
                });
                sent.len()
            };
            for _ in 0..calls {
                put(CALL);
                put(PIPELINED_CALL);
            }
            let end = put(DONE);
            put(CALL);
            put(DONE);
            let mut streams = Streams::default();
            // Before the first call the client has no checkout.
            prop_assert_eq!(streams.handle_client_checkout(&sent), 0);
            streams.handle_client(&sent[..1]);
            let mut used = 1;
            for part in sent[1..].chunks(piece) {
                let now = streams.handle_client_checkout(part);
                used += now;
                if now < part.len() {
                    break;
                }
            }
            prop_assert_eq!(used, end);
            prop_assert!(streams.is_client_between_checkouts());
            streams.handle_worker(&PREAMBLE[..]);
            prop_assert!(!streams.is_idle(), "its calls have no answers");
        }

        #[test]
        fn a_checkout_is_in_use_until_its_end(
            steps in prop::collection::vec((0u8..6, any::<bool>()), 0..40),
            piece in 1usize..9,
        ) {
            let message = |kind: u64| {
                let mut out = Vec::new();
                frame::put(&mut out, |out| {
                    put_array(out, 2);
                    put_uint(out, kind);
                    put_map(out, 0);
                });
                out
            };
            let mut streams = Streams::default();
            streams.handle_worker(&PREAMBLE[..]);
            // The calls without an answer: whether each of them ends a checkout.
            let (mut unanswered, mut is_used) = (VecDeque::new(), false);
            for (step, is_skipped) in steps {
                let (is_client, kind) = match step {
                    0 => (true, CALL),
                    1 => (true, PIPELINED_CALL),
                    2 => (true, SINGLE_CALL),
                    3 => (true, DONE),
                    4 => (false, 4),
                    _ if is_skipped => (false, SKIPPED),
                    _ => (false, OK),
                };
                match kind {
                    CALL | PIPELINED_CALL | SINGLE_CALL if is_client => {
                        is_used = true;
                        let is_single = kind == SINGLE_CALL;
                        // What follows belongs to the next checkout.
                        unanswered.iter_mut().for_each(|ends| *ends = false);
                        unanswered.push_back(is_single);
                    }
                    DONE if is_client => {
                        is_used = false;
                        unanswered.iter_mut().for_each(|ends| *ends = false);
                    }
                    // Telemetry is no answer.
                    4 => {}
                    _ => if unanswered.pop_front() == Some(true) { is_used = false },
                }
                for bytes in message(kind).chunks(piece) {
                    match is_client {
                        true => streams.handle_client(bytes),
                        false => streams.handle_worker(bytes),
                    }
                }
                prop_assert_eq!(streams.is_idle(), !is_used && unanswered.is_empty());
            }
        }
    }

    #[test]
    fn a_clients_own_hello_stays_readable() {
        let hello = ClientHello {
            versions: [1].into_iter().collect(),
            name: "adder",
            max_files: 16,
            shared_memory: 1 << 20,
            client_number: 7,
            ..ClientHello::default()
        };
        let mut body = Vec::new();
        hello.put(&mut body);
        let names = ["client.example".to_owned()];
        let address = "192.0.2.1:5000";
        let owned = Some(address.to_owned());
        let tls = Peer::Tls { names: names.to_vec(), address: owned };
        let nats = |address: Option<&str>| Peer::Nats {
            name: Some("web".to_owned()),
            address: address.map(str::to_owned),
        };
        for (peer, expected) in [
            (RelayedPeer::Tls { names: &names, address }, tls),
            (RelayedPeer::Nats { name: "web", address: None }, nats(None)),
            (RelayedPeer::Nats { name: "web", address: Some(address) }, nats(Some(address))),
        ] {
            let rewritten = rewrite_hello(&framed(&body), &peer).unwrap();
            let read = FromClient::decode(&rewritten[PREAMBLE.len() + HEADER_LEN..]);
            let Ok(FromClient::Hello(read)) = read else { panic!("it is no hello") };
            assert_eq!(read.relayed_peer(), Ok(Some(expected)));
            let kept =
                ClientHello { max_files: 0, shared_memory: 0, peer: read.peer, ..hello.clone() };
            assert_eq!(read, kept);
        }
    }

    #[test]
    fn what_is_no_hello_is_refused() {
        let peer = RelayedPeer::Tls { names: &[], address: "" };
        let call = encoded(&Value::Array(vec![1.into(), Value::Map(vec![])]));
        let refused = |body: &[u8]| rewrite_hello(&framed(body), &peer).unwrap_err().to_string();
        assert!(refused(&call).contains("no hello"));
        assert!(refused(&[0x92, 0, 0x80, 0xc0]).contains("behind its end"));
        // One more than a server reads, with the gateway's own.
        for (keys, is_refused) in [(MAX_ENTRIES - 1, false), (MAX_ENTRIES, true)] {
            let entries = (0..keys).map(|key| (format!("{key}").into(), Value::Nil)).collect();
            let hello = encoded(&Value::Array(vec![0.into(), Value::Map(entries)]));
            let rewritten = rewrite_hello(&framed(&hello), &peer);
            assert_eq!(rewritten.is_err(), is_refused, "{keys}");
        }
        assert!(
            refused(&[0x92, 0, 0x81, 0xa1]).contains("string"),
            "{}",
            refused(&[0x92, 0, 0x81, 0xa1])
        );
        assert_eq!(hello_length(b" [\"do\""), Err(HelloError::Json));
        assert!(hello_length(b"GET / HTTP/1.1").unwrap_err().to_string().contains("GET / HT"));
        let long = [&PREAMBLE[..], &u32::MAX.to_le_bytes()].concat();
        assert!(hello_length(&long).unwrap_err().to_string().contains("16384"));
    }

    #[test]
    fn names_that_do_not_fit_are_refused_and_long_ones_are_cut() {
        let names = vec!["é".repeat(200); MAX_PEER_NAMES + 1];
        let peer = RelayedPeer::Tls { names: &names[..2], address: "" };
        let hello = framed(&[0x92, 0, 0x80]);
        let rewritten = rewrite_hello(&hello, &peer).unwrap();
        let text = format!("{:?}", body_of(&rewritten));
        assert!(text.contains(&"é".repeat(128)) && !text.contains(&"é".repeat(129)));
        let peer = RelayedPeer::Tls { names: &names, address: "" };
        let error = rewrite_hello(&hello, &peer).unwrap_err().to_string();
        assert!(error.contains("fewer names"), "{error}");
    }
}
