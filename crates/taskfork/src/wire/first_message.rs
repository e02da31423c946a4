//! How much of a client's first message has come, and in which protocol; and which client it is.

use super::frame::{HEADER_LEN, PREAMBLE};
use super::hello::MAX_HELLO;
use super::native::FromClient;
use super::perl::{self, Scanner};
use super::{Protocol, WireError};

/// The most bytes of a first JSON message that the server reads; the worker reads the rest. A client on
/// TCP can send about 64 KiB before anything is read.
pub(crate) const MAX_JSON: usize = 32 << 10;

/// The most blanks before a first message.
pub(crate) const MAX_BLANKS: usize = 4096;

/// Follows the first message of one client.
#[derive(Debug, Default)]
pub(crate) struct FirstMessage {
    scanner: Scanner,
}

/// How much of the first message is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// This many more bytes can be read without reading beyond a native hello.
    Needs(usize),
    /// All of it is there.
    Complete(Protocol),
    /// It is longer than the server reads.
    TooLong(Protocol),
}

impl FirstMessage {
    /// `received` is everything that has come so far: it begins with what the last call got. `limit` is
    /// the longest frame.
    pub(crate) fn look(&mut self, received: &[u8], limit: usize) -> Result<Progress, WireError> {
        match protocol(received) {
            None if received.len() >= MAX_BLANKS => {
                Err(WireError::Preamble { began: " ".to_owned() })
            }
            // The preamble is shorter than any message.
            None if received.is_empty() => Ok(Progress::Needs(PREAMBLE.len())),
            None => Ok(Progress::Needs(MAX_BLANKS - received.len())),
            Some(Protocol::Native) => look_for_hello(received, limit.min(MAX_HELLO)),
            Some(Protocol::Perl) => Ok(match self.scanner.find(received, limit)? {
                Some(_) => Progress::Complete(Protocol::Perl),
                None if received.len() >= MAX_JSON => Progress::TooLong(Protocol::Perl),
                None => Progress::Needs(MAX_JSON - received.len()),
            }),
        }
    }
}

/// The protocol of a client, by its first byte that is not blank; `None` before that byte. Anything
/// that does not begin JSON counts as native.
pub(crate) fn protocol(received: &[u8]) -> Option<Protocol> {
    match perl::first_byte(received)? {
        perl::FIRST => Some(Protocol::Perl),
        _ => Some(Protocol::Native),
    }
}

/// The number by which a native client tells itself from others; 0 if it says none. `received` begins with its
/// hello.
pub(crate) fn client_number(received: &[u8]) -> u64 {
    let frame =
        received.strip_prefix(PREAMBLE).and_then(|frame| frame.split_first_chunk::<HEADER_LEN>());
    let body = frame.and_then(|(length, rest)| rest.get(..u32::from_le_bytes(*length) as usize));
    match body.map(FromClient::decode) {
        Some(Ok(FromClient::Hello(hello))) => hello.client_number,
        _ => 0,
    }
}

fn look_for_hello(received: &[u8], limit: usize) -> Result<Progress, WireError> {
    let there = received.len().min(PREAMBLE.len());
    if received[..there] != PREAMBLE[..there] {
        let began = String::from_utf8_lossy(&received[..there]).into_owned();
        return Err(WireError::Preamble { began });
    }
    let before_body = PREAMBLE.len() + HEADER_LEN;
    let Some(header) = received[there..].first_chunk::<HEADER_LEN>() else {
        return Ok(Progress::Needs(before_body - received.len()));
    };
    let length = u32::from_le_bytes(*header) as usize;
    if length > limit {
        return Err(WireError::TooLarge { length, limit });
    }
    Ok(match (before_body + length).saturating_sub(received.len()) {
        0 => Progress::Complete(Protocol::Native),
        lacks => Progress::Needs(lacks),
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

    /// What is read of a stream if as much is read as can be, and how that ends.
    fn read(stream: &[u8]) -> (usize, Result<Progress, WireError>) {
        let (mut greeting, mut there) = (FirstMessage::default(), 0);
        loop {
            match greeting.look(&stream[..there], 1 << 20) {
                Ok(Progress::Needs(more)) if there < stream.len() => {
                    assert!(more > 0);
                    there = stream.len().min(there + more);
                }
                end => return (there, end),
            }
        }
    }

    #[test]
    fn of_a_native_client_nothing_is_read_behind_its_hello() {
        for length in [1, 100, MAX_HELLO] {
            let stream = [hello(length), b"a call".to_vec()].concat();
            let end = Ok(Progress::Complete(Protocol::Native));
            assert_eq!(read(&stream), (12 + length, end));
        }
    }

    #[test]
    fn a_json_message_is_complete_or_long() {
        let (there, end) = read(b" [\"do\",{},\"[\"][1");
        assert_eq!((there, end), (16, Ok(Progress::Complete(Protocol::Perl))));
        let long = format!("[\"{}", "x".repeat(100_000));
        assert_eq!(read(long.as_bytes()), (MAX_JSON, Ok(Progress::TooLong(Protocol::Perl))));
    }

    #[test]
    fn what_is_no_greeting_is_an_error_at_once() {
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
        fn it_does_not_matter_how_a_greeting_is_cut(
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
                let progress = greeting.look(&stream[..there], 1 << 20).unwrap();
                let Progress::Needs(more) = progress else { break };
                prop_assert!(there < stream.len());
                there = stream.len().min(there + more.min(cut));
            }
            prop_assert_eq!(there, stream.len());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = FirstMessage::default().look(&bytes, 1 << 20);
        }
    }
}
