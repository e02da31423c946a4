//! Where a message begins and ends in a stream. Each side sends eight bytes that name the protocol, and then frames:
//! the length of the body in 32 bits, little-endian, and the body.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};

use super::WireError;

/// What each side sends first. Its first byte differs from that of JSON messages, which begin with `[`.
pub(crate) const PREAMBLE: &[u8; 8] = b"taskfork";

/// The default limit of a frame's body, in bytes.
pub(crate) const DEFAULT_MAX_FRAME: usize = 64 << 20;

/// The default limit of a blob that is passed as a memfd, in bytes. It is larger than a frame, because the bytes are
/// not sent.
pub(crate) const DEFAULT_MAX_BLOB: usize = 4 * DEFAULT_MAX_FRAME;

/// The bytes of a frame before its body.
pub(crate) const HEADER_LEN: usize = 4;

/// The kernel takes a write of at most this many bytes as a whole: a worker that is killed during one has sent all
/// or nothing.
pub(crate) const ATOMIC_WRITE: usize = 4096;

/// A body of at most this many bytes is copied out of the receive buffer: a copy costs less than new memory for the
/// bytes that follow.
const MAX_COPIED: usize = 1 << 10;

/// Appends the frame of a control message, which has no values of the program. The default limit applies.
///
/// # Errors
/// [`WireError::TooLarge`], after which `out` is unchanged.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn write_control(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<(), WireError> {
    write(out, DEFAULT_MAX_FRAME, |out| {
        body(out);
        Ok(())
    })
}

/// Appends a frame whose body `body` writes. After an error `out` is unchanged.
///
/// # Errors
/// The error of `body`, or [`WireError::TooLarge`] if the body has more than `limit` bytes.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
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
                set_length(out, start, header);
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

/// Appends a frame whose body `body` writes. For messages whose length is bounded by their kind.
pub(crate) fn put(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    body(out);
    let length = (out.len() - start - HEADER_LEN) as u32;
    set_length(out, start, length);
}

/// Sets the header of the frame that begins at `start`.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(super) fn set_length(out: &mut [u8], start: usize, length: u32) {
    out[start..start + HEADER_LEN].copy_from_slice(&length.to_le_bytes());
}

/// Removes the preamble from the front of `inbox`. Returns `false` while it is incomplete.
pub(crate) fn take_preamble(inbox: &mut BytesMut) -> Result<bool, WireError> {
    let received = inbox.len().min(PREAMBLE.len());
    if inbox[..received] != PREAMBLE[..received] {
        let began = String::from_utf8_lossy(&inbox[..received]).into_owned();
        return Err(WireError::Preamble { began });
    }
    if received < PREAMBLE.len() {
        return Ok(false);
    }
    inbox.advance(PREAMBLE.len());
    Ok(true)
}

/// Removes the first frame from the front of `inbox` and returns its body; `None` while it is incomplete. A length
/// over `limit` is an error as soon as the header has been received.
pub(crate) fn take(inbox: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, WireError> {
    let Some(body) = find(inbox, limit)? else { return Ok(None) };
    inbox.advance(HEADER_LEN);
    if body.len() <= MAX_COPIED {
        let copy = Bytes::copy_from_slice(&inbox[..body.len()]);
        inbox.advance(body.len());
        return Ok(Some(copy));
    }
    Ok(Some(inbox.split_to(body.len()).freeze()))
}

/// The place of the first frame's body in `received`; `None` while the frame is incomplete.
pub(crate) fn find(received: &[u8], limit: usize) -> Result<Option<Range<usize>>, WireError> {
    let Some(length) = announced_length(received) else { return Ok(None) };
    if length > limit {
        return Err(WireError::TooLarge { length, limit });
    }
    let body = HEADER_LEN..HEADER_LEN + length;
    Ok((received.len() >= body.end).then_some(body))
}

/// How many bytes to reserve before the next read: the missing bytes of the first frame, but at most as many as have
/// been received, or 64 KiB if these are fewer. So a length field alone reserves little memory.
pub(crate) fn room_for_next_read(inbox: &[u8]) -> usize {
    const MIN: usize = 4 << 10;
    const UNPROVEN: usize = 64 << 10;
    let missing = announced_length(inbox)
        .map_or(0, |length| (HEADER_LEN + length).saturating_sub(inbox.len()));
    missing.clamp(MIN, UNPROVEN.max(inbox.len()))
}

fn announced_length(inbox: &[u8]) -> Option<usize> {
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
        fn frames_are_reassembled_from_any_fragments(
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
        fn a_length_field_alone_reserves_little_memory(length in any::<u32>(), received in 0usize..100_000) {
            let mut inbox = BytesMut::from(&length.to_le_bytes()[..]);
            inbox.resize(HEADER_LEN + received, 0);
            prop_assert!(room_for_next_read(&inbox) <= (64 << 10).max(inbox.len()));
        }
    }

    #[test]
    fn an_oversize_length_is_refused_before_its_body_arrives() {
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
    fn another_protocol_is_recognized_by_its_first_byte() {
        assert_eq!(take_preamble(&mut BytesMut::from(&b"task"[..])), Ok(false));
        assert_eq!(take_preamble(&mut BytesMut::from(&b"taskfork"[..])), Ok(true));
        assert!(take_preamble(&mut BytesMut::from(&b"[\"do\""[..])).is_err());
    }
}
