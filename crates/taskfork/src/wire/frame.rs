//! Where a message begins and ends in a stream: eight bytes that name the protocol, then frames of
//! a 32-bit little-endian length and that many bytes.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use super::WireError;
use super::gather_frame::{self, GatherFrame};

/// What each side sends first. Its first byte tells the protocol from JSON, which begins with `[`.
pub(crate) const PREAMBLE: &[u8; 8] = b"taskfork";

/// The most bytes of a frame's body unless configured otherwise.
pub(crate) const DEFAULT_MAX_FRAME: usize = 64 << 20;

/// The most bytes of a blob that is handed over as memory unless configured otherwise: four times what could be sent.
pub(crate) const DEFAULT_MAX_BLOB: usize = 4 * DEFAULT_MAX_FRAME;

/// Bytes of a frame before its body.
pub(crate) const HEADER_LEN: usize = 4;

/// The kernel takes so few bytes in one piece: a worker that is killed while it writes them has sent
/// all or none.
pub(crate) const ATOMIC_WRITE: usize = 4096;

/// A body of so few bytes is copied out of what has been received, which costs less than new memory
/// for what comes next.
const COPIED: usize = 1 << 10;

/// Appends a frame whose body is what `body` writes. With an error, `out` is as it was.
pub(crate) fn write<E: From<WireError>>(
    out: &mut Vec<u8>,
    limit: usize,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    let written = body(out).and_then(|()| {
        let length = out.len() - start - HEADER_LEN;
        match u32::try_from(length) {
            Ok(header) if length <= limit => {
                out[start..start + HEADER_LEN].copy_from_slice(&header.to_le_bytes());
                Ok(())
            }
            _ => Err(E::from(WireError::TooLarge { length, limit })),
        }
    });
    if written.is_err() {
        out.truncate(start);
    }
    written
}

/// The same, for a body with parts and files. What may be sent as files does not count against the
/// limit.
pub(crate) fn write_gather<E: From<WireError>>(
    out: &mut GatherFrame,
    limit: usize,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.bytes.len();
    let (written, parts, files) =
        gather_frame::collect_segments(|| write(&mut out.bytes, limit, body));
    written?;
    let own = out.bytes.len() - start - HEADER_LEN;
    let inline = parts.iter().filter(|part| !part.is_in_file());
    let length = own + inline.map(|part| part.bytes.len()).sum::<usize>();
    if length > limit {
        out.bytes.truncate(start);
        return Err(E::from(WireError::TooLarge { length, limit }));
    }
    // Too long for a header is over every limit that a peer can have.
    let header = u32::try_from(own + gather_frame::total(&parts)).unwrap_or(u32::MAX);
    out.bytes[start..start + HEADER_LEN].copy_from_slice(&header.to_le_bytes());
    (out.segments, out.files) = (parts, files);
    Ok(())
}

/// Takes the preamble off the front of `inbox`. `false` while it is not there in full.
pub(crate) fn take_preamble(inbox: &mut BytesMut) -> Result<bool, WireError> {
    let there = inbox.len().min(PREAMBLE.len());
    if inbox[..there] != PREAMBLE[..there] {
        let began = String::from_utf8_lossy(&inbox[..there]).into_owned();
        return Err(WireError::Preamble { began });
    }
    if there < PREAMBLE.len() {
        return Ok(false);
    }
    inbox.advance(PREAMBLE.len());
    Ok(true)
}

/// Takes the body of the first frame off the front of `inbox`; nothing while it is not there in
/// full. A length over `limit` is an error as soon as it is read.
pub(crate) fn take(inbox: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, WireError> {
    let Some(body) = find(inbox, limit)? else { return Ok(None) };
    inbox.advance(HEADER_LEN);
    if body.len() <= COPIED {
        let copy = Bytes::copy_from_slice(&inbox[..body.len()]);
        inbox.advance(body.len());
        return Ok(Some(copy));
    }
    Ok(Some(inbox.split_to(body.len()).freeze()))
}

/// Where the body of the first frame lies in `received`, once it is there in full.
pub(crate) fn find(received: &[u8], limit: usize) -> Result<Option<Range<usize>>, WireError> {
    let Some(length) = announced(received) else { return Ok(None) };
    if length > limit {
        return Err(WireError::TooLarge { length, limit });
    }
    let body = HEADER_LEN..HEADER_LEN + length;
    Ok((received.len() >= body.end).then_some(body))
}

/// How many bytes to make room for before the next read: what the frame at the front still lacks,
/// but never more than has been received already or 64 KiB, whichever is larger, so that a length
/// field alone reserves no memory.
pub(crate) fn room_for_next_read(inbox: &[u8]) -> usize {
    const LEAST: usize = 4 << 10;
    const UNPROVEN: usize = 64 << 10;
    let missing =
        announced(inbox).map_or(0, |length| (HEADER_LEN + length).saturating_sub(inbox.len()));
    missing.clamp(LEAST, UNPROVEN.max(inbox.len()))
}

fn announced(inbox: &[u8]) -> Option<usize> {
    let header = inbox.first_chunk::<HEADER_LEN>()?;
    Some(u32::from_le_bytes(*header) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write::<WireError>(&mut out, DEFAULT_MAX_FRAME, |out| {
            out.extend_from_slice(body);
            Ok(())
        })
        .unwrap();
        out
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_the_stream_is_cut(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
            cuts in proptest::collection::vec(1usize..50, 1..40),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let (mut inbox, mut out, mut at) = (BytesMut::new(), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                while let Some(body) = take(&mut inbox, DEFAULT_MAX_FRAME).unwrap() {
                    out.push(body.to_vec());
                }
                if at == stream.len() {
                    break;
                }
                let end = (at + cut).min(stream.len());
                inbox.extend_from_slice(&stream[at..end]);
                at = end;
            }
            prop_assert_eq!(out, bodies);
            prop_assert!(inbox.is_empty());
        }

        #[test]
        fn a_length_alone_reserves_little(length in any::<u32>(), received in 0usize..100_000) {
            let mut inbox = BytesMut::from(&length.to_le_bytes()[..]);
            inbox.resize(HEADER_LEN + received, 0);
            prop_assert!(room_for_next_read(&inbox) <= (64 << 10).max(inbox.len()));
        }
    }

    #[test]
    fn an_oversize_length_is_refused_before_its_bytes_arrive() {
        let mut inbox = BytesMut::from(&1001u32.to_le_bytes()[..]);
        assert_eq!(take(&mut inbox, 1000), Err(WireError::TooLarge { length: 1001, limit: 1000 }));
    }

    #[test]
    fn a_body_over_the_limit_is_not_written() {
        let mut out = b"before".to_vec();
        let written = write(&mut out, 3, |out| {
            out.extend_from_slice(b"four");
            Ok::<(), WireError>(())
        });
        assert_eq!(written, Err(WireError::TooLarge { length: 4, limit: 3 }));
        assert_eq!(out, b"before");
    }

    #[test]
    fn another_protocol_is_told_by_its_first_byte() {
        assert_eq!(take_preamble(&mut BytesMut::from(&b"task"[..])), Ok(false));
        assert_eq!(take_preamble(&mut BytesMut::from(&b"taskfork"[..])), Ok(true));
        assert!(take_preamble(&mut BytesMut::from(&b"[\"do\""[..])).is_err());
    }
}
