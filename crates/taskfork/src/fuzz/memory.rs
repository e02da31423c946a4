//! Attachments of messages, shared memory and rings.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use rmpv::Value;

use super::Input;
use crate::blob::{Blob, OpenFile};
use crate::ring::{MAX_RECORD, Put, Rings};
use crate::shm_pool::ShmPool;
use crate::sys::{self, Sealed, SharedAtomics, Writable};
use crate::wire::WireError;
use crate::wire::arguments::Arguments;
use crate::wire::arguments::IntoArguments;
use crate::wire::attachments::{self, Attachments, decode_with};
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, HEADER_LEN};
use crate::wire::gather_frame::{Backing, GatherFrame, ReceiverLimits, Segment};
use crate::wire::native::FromClient;
use crate::wire::shm::{Origin, ReceivedBytes, SharedBytes};
use crate::wire::values::{self, ValueFormat, encode, encode_to_vec};

/// Decodes arguments with files and shared bytes as several types.
pub fn arguments(data: &[u8]) {
    let mut input = Input(data);
    let (files, lent) = (input.byte() % 4, input.byte() % 3);
    let kinds: Vec<u8> = (0..files).map(|_| input.byte()).collect();
    let lengths: Vec<u8> = (0..lent).map(|_| input.byte()).collect();
    let count = usize::from(input.byte());
    let message = Bytes::copy_from_slice(input.0);
    let most = message.len() + (256 << 10);
    let attachments = || Attachments {
        files: kinds.iter().filter_map(|&kind| file(kind)).collect(),
        shared: lengths
            .iter()
            .enumerate()
            .map(|(id, &length)| ReceivedBytes::Stable(lend(id, length)))
            .collect(),
        max_blob: 1 << 20,
        max_inlined: most,
    };
    let map = |file: &OwnedFd, most| {
        Sealed::new(file, most).map(Bytes::from_owner).map_err(|error| format!("{error:?}"))
    };
    let args = || Arguments::new(count, &message);
    decode_with(Some(&message), attachments(), map, || {
        let _ = args().parse::<(Blob, Blob)>();
        let _ = args().parse::<(String, Vec<u8>, BTreeMap<String, i64>)>();
        let _ = args().parse::<Vec<Vec<()>>>();
        let _ = args().parse::<Vec<Option<(u8, f32, char)>>>();
        let _ = args().parse::<(OpenFile,)>();
    });
    decode_with(Some(&message), attachments(), map, || {
        let _ = attachments::forward(&message, &mut Vec::new(), |_, _| Ok(()));
    });
    if let Ok(values) = args().parse::<Vec<Value>>() {
        // The first decoding reads malformed strings as bytes; further ones change nothing.
        let mut first = Vec::new();
        if IntoArguments::encode(&values, &mut first).is_ok() {
            let again = values::decode::<Vec<Value>>(&first, ValueFormat::MessagePack).unwrap();
            let mut second = Vec::new();
            IntoArguments::encode(&again, &mut second).unwrap();
            assert_eq!(second, first);
        }
    }
    let _ = values::decode::<Value>(&message, ValueFormat::MessagePack);
}

fn file(kind: u8) -> Option<OwnedFd> {
    let memory = |length: usize| Writable::new(length).ok();
    match kind % 5 {
        0 => Some(File::open("/dev/null").ok()?.into()),
        1 => Some(File::open("/").ok()?.into()),
        2 => Some(UnixStream::pair().ok()?.0.into()),
        3 => memory(0)?.seal().ok()?.1.try_clone().ok(),
        _ => memory(usize::from(kind) << 8)?.seal().ok()?.1.try_clone().ok(),
    }
}

fn lend(id: usize, length: u8) -> SharedBytes {
    let origin = Origin { pool: 1, id: id as u32, is_local: length % 2 == 0 };
    SharedBytes { bytes: Bytes::from(vec![length; usize::from(length) << 8]), origin: Some(origin) }
}

/// A gather frame contains the same bytes as a frame into which all is copied.
pub fn gather_frame(data: &[u8]) {
    let mut input = Input(data);
    let mut values = Vec::new();
    while !input.is_empty() && values.len() < 8 {
        let length = usize::from(input.short());
        values.push(Blob::from(vec![input.byte(); length]));
    }
    let skip = usize::from(input.short());
    let limit = usize::from(input.short()) << 4;
    let whole = encode_to_vec(&values).unwrap();
    let mut out = GatherFrame::default();
    let written =
        out.write::<WireError>(limit, |out| encode(&values, out).map_err(WireError::malformed));
    assert_eq!(written.is_ok(), whole.len() <= limit);
    if written.is_err() {
        assert_eq!(out.len(), 0);
        return;
    }
    out.fit(ReceiverLimits { max_frame: limit, max_blob: 0, max_files: 0 }).unwrap();
    let all = out.copy_from(0);
    assert_eq!(&all[HEADER_LEN..], &whole);
    assert_eq!(frame::find(&all, DEFAULT_MAX_FRAME).unwrap(), Some(HEADER_LEN..all.len()));
    let skip = skip.min(all.len());
    let (slices, count) = out.slices(skip);
    let sliced: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
    assert!(all[skip..].starts_with(&sliced) && out.copy_from(skip) == all[skip..]);
}

/// Rings whose memory another process overwrites with anything.
pub fn rings(data: &[u8]) {
    let mut input = Input(data);
    let Ok((mut first, file)) = Rings::offer() else { return };
    let Ok(foreign) = SharedAtomics::map(&file, 4144) else {
        panic!("its own memory cannot be mapped")
    };
    let Ok(mut second) = Rings::accept(&file) else { panic!("its own memory cannot be mapped") };
    first.activate(0);
    second.activate(0);
    let mut steps = 0;
    while !input.is_empty() && steps < 10_000 {
        steps += 1;
        let step = input.byte();
        let side = if step & 1 == 0 { &mut first } else { &mut second };
        let unread = usize::from(step >> 5);
        match step >> 1 & 15 {
            0 => foreign[usize::from(input.short()) % foreign.len()].store(input.word(), Relaxed),
            1 => {
                // The offsets of the counters.
                let at = usize::from(input.byte() % 3) * 8 + usize::from(step >> 7) * 2072;
                foreign[at].store(u64::from(input.short()), Relaxed);
            }
            2 | 3 => {
                if let Ok(Some(place)) = side.take(unread, DEFAULT_MAX_FRAME) {
                    let arrived = side.body(place);
                    assert!(arrived.len() <= 2048 * 8);
                }
            }
            4 | 5 => {
                let bytes = vec![step; usize::from(input.short()) % (MAX_RECORD + 100)];
                let put = side.put(&bytes);
                assert!(bytes.len() <= MAX_RECORD || put == Put::Refused);
            }
            6 => {
                let _ = side.prepare_sleep(unread);
            }
            7 => side.set_awake(),
            8 => {
                let _ = (side.has_next(unread), side.has_next_in_ring(unread), side.has_records());
                let _ = (side.has_unread(), side.is_mark_unread(), side.is_peer_awake());
                side.mark();
            }
            9 => side.record_received(usize::from(input.short())),
            10 => side.record_sent(usize::from(input.short())),
            _ => side.activate(unread),
        }
    }
}

/// Frames and their files, which have been sent and not received.
type Line = VecDeque<(Vec<u8>, Vec<OwnedFd>)>;

struct Side {
    shm_pool: ShmPool,
    /// The bytes that have been received, with their value at that time.
    held: Vec<(SharedBytes, u8)>,
}

/// Two sides that share memory, and may also send anything. Bytes must not change while they are held.
pub fn shm(data: &[u8]) {
    const ROOM: usize = 1 << 20;
    let mut input = Input(data);
    let new =
        || Side { shm_pool: ShmPool::new(ROOM, ROOM, sys::effective_user()), held: Vec::new() };
    let (mut sides, mut lines) = ([new(), new()], [Line::new(), Line::new()]);
    let mut is_arbitrary = false;
    let mut steps = 0;
    while !input.is_empty() && steps < 64 {
        steps += 1;
        let step = input.byte();
        let from = usize::from(step & 1);
        match step >> 1 & 7 {
            0..=2 => {
                let length = (16 << 10) + (usize::from(input.byte()) << 6);
                let bytes = Bytes::from(vec![step; length]);
                sides[from].send(&bytes, None, &mut lines[from]);
            }
            3 => {
                // Sends received bytes back.
                let Some((lent, _)) = sides[from].held.last().cloned() else { continue };
                sides[from].send(&lent.bytes, lent.origin, &mut lines[from]);
            }
            4 | 5 => {
                let Some((frames, files)) = lines[from].pop_front() else { continue };
                let received = sides[1 - from].receive(&frames, files);
                if received.is_err() {
                    assert!(is_arbitrary, "{received:?}");
                    return;
                }
            }
            6 if step & 16 == 0 => {
                sides[from].held.pop();
            }
            6 => sides[from].shm_pool.trim(),
            _ => {
                let length = usize::from(input.byte());
                let body = input.take(length);
                let files = (0..step >> 6).filter_map(|kind| file(kind.wrapping_mul(4)));
                let mut frame = (body.len() as u32).to_le_bytes().to_vec();
                frame.extend_from_slice(body);
                lines[from].push_back((frame, files.collect()));
                is_arbitrary = true;
            }
        }
        if !is_arbitrary {
            for (lent, byte) in sides.iter().flat_map(|side| &side.held) {
                assert!(lent.bytes.iter().all(|there| there == byte), "it has changed");
            }
        }
    }
}

impl Side {
    fn send(&mut self, bytes: &Bytes, origin: Option<Origin>, line: &mut Line) {
        let front = HEADER_LEN + 5;
        let mut message = GatherFrame { bytes: vec![0; front], ..GatherFrame::default() };
        let backing = origin.map_or_else(Default::default, Backing::Shared);
        message.segments.push(Segment { offset: front, bytes: bytes.clone(), backing });
        let shm_pool = &mut self.shm_pool;
        let takes = ReceiverLimits { max_frame: usize::MAX, max_blob: 0, max_files: 16 };
        message
            .fit_with(takes, |bytes, origin, may_add| shm_pool.store(bytes, origin, may_add))
            .unwrap();
        shm_pool.mark_sent(&message.references);
        let mut said = Vec::new();
        shm_pool.write_control(&mut said);
        let files = message.files.iter().map(|file| file.as_fd().try_clone_to_owned().unwrap());
        let files = files.collect();
        if !message.references.is_empty() {
            // The frames in front of the message.
            let mut at = 0;
            while let Ok(Some(body)) = frame::find(&message.bytes[at..], DEFAULT_MAX_FRAME) {
                at += body.end;
            }
            said.extend_from_slice(&message.bytes[..at]);
        } else {
            said.extend_from_slice(&1_u32.to_le_bytes());
            said.push(0);
        }
        line.push_back((said, files));
    }

    fn receive(&mut self, mut frames: &[u8], mut files: Vec<OwnedFd>) -> Result<(), WireError> {
        while let Some(body) = frame::find(frames, DEFAULT_MAX_FRAME)? {
            let (message, rest) = (&frames[body.clone()], &frames[body.end..]);
            frames = rest;
            match FromClient::decode(message) {
                Ok(FromClient::Shm(said)) => self.shm_pool.handle_message(said, &mut files)?,
                Ok(FromClient::Files(_)) => {}
                _ => {
                    for lent in self.shm_pool.take_received()? {
                        let lent = lent.into_shared();
                        let byte = lent.bytes.first().copied().unwrap_or_default();
                        self.held.push((lent, byte));
                    }
                }
            }
        }
        Ok(())
    }
}
