//! Following a client's first message: its protocol, its length, and what the server needs of it.

use super::fields::read_map;
use super::frame::{HEADER_LEN, PREAMBLE};
use super::hello::MAX_HELLO;
use super::msgpack::Reader;
use super::native::FromClient;
use super::native::kind::HELLO;
use super::perl::{self, Scanner};
use super::{Protocol, WireError, peer};
use crate::peer::Peer;

/// The most bytes of a first JSON message that the server reads. The worker reads the rest. The kernel accepts about
/// 64 KiB from a TCP client before anything is read.
pub(crate) const MAX_JSON: usize = 32 << 10;

/// The most blanks before a first message.
pub(crate) const MAX_BLANKS: usize = 4096;

/// Follows the first message of one client while it arrives.
#[derive(Debug, Default)]
pub(crate) struct FirstMessage {
    scanner: Scanner,
}

/// How much of the first message has been received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It is incomplete. At most this many bytes can be read without reading beyond a native hello.
    Needs(usize),
    /// It is complete.
    Complete(Protocol),
    /// It is incomplete, and longer than the server reads.
    TooLong(Protocol),
}

impl FirstMessage {
    /// Examines the received bytes. `received` contains all of them, including those of the previous call. `limit` is
    /// the longest frame.
    pub(crate) fn scan(&mut self, received: &[u8], limit: usize) -> Result<Progress, WireError> {
        match protocol(received) {
            None if received.len() >= MAX_BLANKS => {
                Err(WireError::Preamble { began: " ".to_owned() })
            }
            // Every message is at least as long as the preamble.
            None if received.is_empty() => Ok(Progress::Needs(PREAMBLE.len())),
            None => Ok(Progress::Needs(MAX_BLANKS - received.len())),
            Some(Protocol::Native) => scan_hello(received, limit.min(MAX_HELLO)),
            Some(Protocol::Perl) => Ok(match self.scanner.find(received, limit)? {
                Some(_) => Progress::Complete(Protocol::Perl),
                None if received.len() >= MAX_JSON => Progress::TooLong(Protocol::Perl),
                None => Progress::Needs(MAX_JSON - received.len()),
            }),
        }
    }
}

/// The protocol of a client, by its first byte that is not blank; `None` before that byte. Any byte but the first of
/// JSON means the native protocol.
pub(crate) fn protocol(received: &[u8]) -> Option<Protocol> {
    match perl::first_byte(received)? {
        perl::FIRST => Some(Protocol::Perl),
        _ => Some(Protocol::Native),
    }
}

/// What a first message says of its sender, as far as the server needs it.
#[derive(Debug)]
pub(crate) struct Introduction {
    /// The number of a native client; 0 if it has none.
    pub(crate) client_number: u64,
    /// Whose connection a gateway relays; an error if the message does not say that in the right form.
    pub(crate) relayed_peer: Result<Option<Peer>, WireError>,
}

/// Reads what `received` says of its sender, if that begins with a whole hello. The worker ends the connection if it
/// cannot read the message.
pub(crate) fn introduction(received: &[u8]) -> Introduction {
    let frame =
        received.strip_prefix(PREAMBLE).and_then(|frame| frame.split_first_chunk::<HEADER_LEN>());
    let body = frame.and_then(|(length, rest)| rest.get(..u32::from_le_bytes(*length) as usize));
    match body.map(FromClient::decode) {
        Some(Ok(FromClient::Hello(hello))) => {
            Introduction { client_number: hello.client_number, relayed_peer: hello.relayed_peer() }
        }
        _ => {
            let named = body.and_then(named_peer).map(peer::read);
            Introduction { client_number: 0, relayed_peer: named.transpose() }
        }
    }
}

/// What a hello says about a peer that is wrong elsewhere. A gateway passes on what it does not understand, and its
/// client must not count as the gateway.
fn named_peer(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(body);
    if (reader.array().ok()?, reader.int::<u64>().ok()?) != (2, HELLO) {
        return None;
    }
    let mut named = None;
    let read = read_map(&mut reader, |key, reader| {
        let value = reader.value()?;
        if key == peer::KEY {
            named = Some(value);
        }
        Ok(true)
    });
    read.ok().and(named)
}

fn scan_hello(received: &[u8], limit: usize) -> Result<Progress, WireError> {
    let compared = received.len().min(PREAMBLE.len());
    if received[..compared] != PREAMBLE[..compared] {
        let began = String::from_utf8_lossy(&received[..compared]).into_owned();
        return Err(WireError::Preamble { began });
    }
    let before_body = PREAMBLE.len() + HEADER_LEN;
    let Some(header) = received[compared..].first_chunk::<HEADER_LEN>() else {
        return Ok(Progress::Needs(before_body - received.len()));
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length > limit {
        return Err(WireError::TooLarge { length, limit });
    }
    Ok(match (before_body + length).saturating_sub(received.len()) {
        0 => Progress::Complete(Protocol::Native),
        missing => Progress::Needs(missing),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hello(length: usize) -> Vec<u8> {
        let header = (length as u32).to_le_bytes();
        [&PREAMBLE[..], &header, &vec![0x90; length]].concat()
    }

    /// Reads as much of a stream as possible; returns the number of bytes and the result.
    fn read(stream: &[u8]) -> (usize, Result<Progress, WireError>) {
        let (mut greeting, mut there) = (FirstMessage::default(), 0);
        loop {
            match greeting.scan(&stream[..there], 1 << 20) {
                Ok(Progress::Needs(more)) if there < stream.len() => {
                    assert!(more > 0);
                    there = stream.len().min(there + more);
                }
                end => return (there, end),
            }
        }
    }

    #[test]
    fn a_hello_that_is_wrong_elsewhere_still_names_the_peer() {
        use rmpv::Value;
        let hello = |entries: Vec<(Value, Value)>| {
            let mut body = Vec::new();
            let value = Value::Array(vec![0.into(), Value::Map(entries)]);
            rmpv::encode::write_value(&mut body, &value).unwrap();
            [&PREAMBLE[..], &(body.len() as u32).to_le_bytes(), &body].concat()
        };
        let peer = |kind: &str| ("peer".into(), Value::Map(vec![("kind".into(), kind.into())]));
        let wrong = || ("versions".into(), "none".into());
        for entries in [vec![wrong(), peer("tls")], vec![peer("tls"), wrong()], vec![peer("tls")]] {
            let introduced = introduction(&hello(entries.clone())).relayed_peer;
            let expected = Peer::Tls { names: vec![], address: None };
            assert_eq!(introduced, Ok(Some(expected)), "{entries:?}");
        }
        assert_eq!(introduction(&hello(vec![wrong()])).relayed_peer, Ok(None));
        assert!(introduction(&hello(vec![wrong(), peer("else")])).relayed_peer.is_err());
        assert_eq!(introduction(b"taskfork\x01\0\0\0\x92").relayed_peer, Ok(None));
    }

    #[test]
    fn nothing_is_read_beyond_a_native_hello() {
        for length in [1, 100, MAX_HELLO] {
            let stream = [hello(length), b"a call".to_vec()].concat();
            let end = Ok(Progress::Complete(Protocol::Native));
            assert_eq!(read(&stream), (12 + length, end));
        }
    }

    #[test]
    fn a_json_message_is_complete_or_too_long() {
        let (there, end) = read(b" [\"do\",{},\"[\"][1");
        assert_eq!((there, end), (16, Ok(Progress::Complete(Protocol::Perl))));
        let long = format!("[\"{}", "x".repeat(100_000));
        assert_eq!(read(long.as_bytes()), (MAX_JSON, Ok(Progress::TooLong(Protocol::Perl))));
    }

    #[test]
    fn another_first_message_is_an_error_at_once() {
        for stream in [&b"GET / HTTP/1.1"[..], b"taskfurk", b"\0", b" taskfork", b"  {}"] {
            assert!(matches!(read(stream).1, Err(WireError::Preamble { .. })), "{stream:?}");
        }
        let (there, end) = read(&[b' '; 10_000]);
        assert_eq!(there, MAX_BLANKS);
        assert!(matches!(end, Err(WireError::Preamble { .. })));
        let (there, end) = read(&hello(MAX_HELLO + 1));
        assert_eq!(there, 12);
        assert!(matches!(end, Err(WireError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn a_first_message_may_arrive_in_any_fragments(
            is_native in any::<bool>(),
            length in 1usize..200,
            cuts in prop::collection::vec(1usize..50, 1..40),
        ) {
            let stream = match is_native {
                true => hello(length),
                false => format!("  [\"do\",{{}},\"{}\"]", "]".repeat(length)).into_bytes(),
            };
            let (mut greeting, mut there) = (FirstMessage::default(), 0);
            for cut in cuts.into_iter().cycle() {
                let progress = greeting.scan(&stream[..there], 1 << 20).unwrap();
                let Progress::Needs(more) = progress else { break };
                prop_assert!(there < stream.len());
                there = stream.len().min(there + more.min(cut));
            }
            prop_assert_eq!(there, stream.len());
        }

        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = FirstMessage::default().scan(&bytes, 1 << 20);
        }
    }
}
