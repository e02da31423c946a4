//! The message about shared-memory buffers, from either side. Each side owns buffers that the other maps, and puts
//! long binary data there instead of sending it.

use std::fmt::Debug;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::panic::RefUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;

use super::WireError;
use super::fields::{MapWriter, read_list, read_map};
use super::frame;
use super::msgpack::{Reader, put_array, put_bool, put_uint};
use super::native::kind::SHM;
use crate::sys;

/// Identifies a buffer among those of its owner on one connection.
pub(crate) type BufferId = u32;

/// The most buffer references of one message.
pub(crate) const MAX_BUFFER_REFS: usize = 1024;

/// The most ids in a list. Each side keeps at most 16 buffers mapped.
const MAX_IDS: usize = 1024;

/// The side that owns a buffer, as seen from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferOwner {
    /// The side that sends the message.
    Sender,
    /// The side that receives it.
    Receiver,
}

/// A reference to the first `length` bytes of a buffer, which replaces these bytes in the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferRef {
    pub(crate) owner: BufferOwner,
    pub(crate) id: BufferId,
    pub(crate) length: usize,
}

/// Identifies the buffer pool of one connection within this process and its children.
pub(crate) type PoolId = u64;

/// The buffer that contains some bytes, so that they need not be sent on the connection of that pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) pool: PoolId,
    pub(crate) id: BufferId,
    /// This side owns the buffer.
    pub(crate) is_local: bool,
}

/// Bytes that came in a shared-memory buffer.
#[derive(Debug, Clone)]
pub(crate) enum ReceivedBytes {
    /// Nobody changes them, as far as this side trusts the other one.
    Stable(SharedBytes),
    /// The first `length` bytes of memory that must be copied before it is read.
    Changing { memory: Arc<dyn Changing>, length: usize },
}

/// Memory that another process may change at any time.
pub(crate) trait Changing: Debug + Send + Sync + RefUnwindSafe {
    /// A copy of all of it. There is one, however often it is asked for.
    fn copy(&self) -> Bytes;

    /// Copies its first bytes to `target`, which is not longer.
    fn copy_to(&self, target: &mut [MaybeUninit<u8>]);
}

impl ReceivedBytes {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Stable(shared) => shared.bytes.len(),
            Self::Changing { length, .. } => *length,
        }
    }

    /// The bytes, which nobody changes.
    pub(crate) fn into_shared(self) -> SharedBytes {
        match self {
            Self::Stable(shared) => shared,
            Self::Changing { memory, length } => {
                SharedBytes { bytes: memory.copy().slice(..length), origin: None }
            }
        }
    }

    /// Copies the bytes to `target`, which has their length.
    ///
    /// # Panics
    /// If it has another length.
    pub(crate) fn copy_to(&self, target: &mut [MaybeUninit<u8>]) {
        assert_eq!(target.len(), self.len(), "a copy of another length");
        match self {
            Self::Stable(shared) => sys::copy_to_uninit(target, &shared.bytes),
            Self::Changing { memory, .. } => memory.copy_to(target),
        }
    }
}

/// Bytes in a shared-memory buffer, or that will go in one.
#[derive(Debug, Clone)]
pub(crate) struct SharedBytes {
    pub(crate) bytes: Bytes,
    /// The buffer that has them, or `None` for a copy.
    pub(crate) origin: Option<Origin>,
}

/// The message. Each field may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ShmMessage {
    /// From the worker: memory is shared from here on, and the worker maps this many bytes of the client's.
    pub(crate) agreed: Option<usize>,
    /// New buffers of the sender. A descriptor of each accompanies this message.
    pub(crate) new: Vec<BufferId>,
    /// The references of the next message.
    pub(crate) uses: Vec<BufferRef>,
    /// Buffers of the receiver that the sender no longer reads, and how many references each had. This takes effect
    /// when the next message has been read.
    pub(crate) free: Vec<(BufferId, u64)>,
    /// Buffers of the sender that it will not use again.
    pub(crate) gone: Vec<BufferId>,
    /// Buffers of the receiver that it must not write to again.
    pub(crate) unwanted: Vec<BufferId>,
    /// The sender has been idle for some time.
    pub(crate) idle: bool,
}

/// Bytes that have been placed in a buffer, and need not be sent.
#[derive(Debug, Clone)]
pub(crate) struct PlacedBytes {
    pub(crate) buffer: BufferRef,
    /// The buffer contains them as long as this value exists.
    pub(crate) bytes: Bytes,
    /// The memfd of a buffer that the other side does not know yet.
    pub(crate) new_file: Option<Arc<OwnedFd>>,
    /// Keeps the owner from reusing the buffer until the message has been sent.
    #[expect(dead_code, reason = "only its existence matters")]
    pub(crate) guard: Option<Arc<()>>,
}

impl ShmMessage {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The message in front of one that refers to these buffers.
    pub(crate) fn of(placed: &[PlacedBytes]) -> Self {
        let new = placed.iter().filter(|placed| placed.new_file.is_some());
        Self {
            new: new.map(|placed| placed.buffer.id).collect(),
            uses: placed.iter().map(|placed| placed.buffer).collect(),
            ..Self::default()
        }
    }

    /// Appends the message as a frame.
    #[cfg_attr(feature = "server", taskfork_macros::startup_code)]
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        frame::put(out, |out| {
            put_array(out, 2);
            put_uint(out, SHM);
            let mut map = MapWriter::new(out);
            map.optional_uint("agreed", self.agreed.map(|bytes| bytes as u64));
            put_ids(&mut map, "new", &self.new);
            if !self.uses.is_empty() {
                let out = map.key("uses");
                put_array(out, self.uses.len() as u32);
                for buffer in &self.uses {
                    put_array(out, 3);
                    put_bool(out, buffer.owner == BufferOwner::Receiver);
                    put_uint(out, u64::from(buffer.id));
                    put_uint(out, buffer.length as u64);
                }
            }
            if !self.free.is_empty() {
                let out = map.key("free");
                put_array(out, self.free.len() as u32);
                for &(id, times) in &self.free {
                    put_array(out, 2);
                    put_uint(out, u64::from(id));
                    put_uint(out, times);
                }
            }
            put_ids(&mut map, "gone", &self.gone);
            put_ids(&mut map, "unwanted", &self.unwanted);
            map.flag("idle", self.idle);
        });
    }

    /// Reads the part of the message after its kind.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut message = Self::default();
        read_map(reader, |key, reader| {
            match key {
                "agreed" => message.agreed = Some(reader.size()?),
                "new" => message.new = read_list(reader, key, MAX_IDS, Reader::int::<BufferId>)?,
                "uses" => message.uses = read_list(reader, key, MAX_BUFFER_REFS, read_use)?,
                "free" => message.free = read_list(reader, key, MAX_IDS, read_free)?,
                "gone" => message.gone = read_list(reader, key, MAX_IDS, Reader::int::<BufferId>)?,
                "unwanted" => {
                    message.unwanted = read_list(reader, key, MAX_IDS, Reader::int::<BufferId>)?;
                }
                "idle" => message.idle = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(message)
    }
}

fn put_ids(map: &mut MapWriter<'_>, key: &str, ids: &[BufferId]) {
    if !ids.is_empty() {
        let out = map.key(key);
        put_array(out, ids.len() as u32);
        ids.iter().for_each(|&id| put_uint(out, u64::from(id)));
    }
}

fn read_use(reader: &mut Reader<'_>) -> Result<BufferRef, WireError> {
    expect_fields(reader, 3)?;
    let owner = if reader.bool()? { BufferOwner::Receiver } else { BufferOwner::Sender };
    Ok(BufferRef { owner, id: reader.int()?, length: reader.int()? })
}

fn read_free(reader: &mut Reader<'_>) -> Result<(BufferId, u64), WireError> {
    expect_fields(reader, 2)?;
    Ok((reader.int()?, reader.int()?))
}

fn expect_fields(reader: &mut Reader<'_>, fields: usize) -> Result<(), WireError> {
    match reader.array()? {
        there if there == fields => Ok(()),
        there => Err(WireError::malformed(format!("{there} fields instead of {fields}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::HEADER_LEN;
    use crate::wire::msgpack::{put_map, put_str};
    use crate::wire::native::{FromClient, FromWorker};

    fn any_reference() -> impl Strategy<Value = BufferRef> {
        (any::<bool>(), any::<u32>(), 0..usize::MAX >> 1).prop_map(|(theirs, id, length)| {
            let owner = if theirs { BufferOwner::Receiver } else { BufferOwner::Sender };
            BufferRef { owner, id, length }
        })
    }

    fn ids() -> impl Strategy<Value = Vec<BufferId>> {
        proptest::collection::vec(any::<BufferId>(), 0..3)
    }

    proptest! {
        #[test]
        fn any_message_is_read_as_it_was_written(
            (new, gone, unwanted) in (ids(), ids(), ids()),
            uses in proptest::collection::vec(any_reference(), 0..3),
            free in proptest::collection::vec((any::<BufferId>(), 0..u64::MAX >> 1), 0..3),
            (agreed, idle) in (proptest::option::of(0..usize::MAX >> 1), any::<bool>()),
        ) {
            let sent = ShmMessage { agreed, new, uses, free, gone, unwanted, idle };
            let mut frame = Vec::new();
            sent.put(&mut frame);
            let (header, body) = frame.split_at(HEADER_LEN);
            prop_assert_eq!(header, &(body.len() as u32).to_le_bytes()[..]);
            let Ok(FromClient::Shm(received)) = FromClient::decode(body) else {
                return Err(TestCaseError::fail("a client's message is another"));
            };
            prop_assert_eq!(&received, &sent);
            let Ok(FromWorker::Shm(received)) = FromWorker::decode(body) else {
                return Err(TestCaseError::fail("a worker's message is another"));
            };
            prop_assert_eq!(&received, &sent);
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_named_in_the_error() {
        let read = |key: &str, items: u32| {
            let mut body = Vec::new();
            put_array(&mut body, 2);
            put_uint(&mut body, SHM);
            put_map(&mut body, 1);
            put_str(&mut body, key);
            put_array(&mut body, items);
            for _ in 0..items {
                match key {
                    "uses" => body.extend(b"\x93\xc3\x01\x01"),
                    "free" => body.extend(b"\x92\x01\x01"),
                    _ => body.push(1),
                }
            }
            FromWorker::decode(&body).map(|_| ()).map_err(|error| error.to_string())
        };
        for key in ["new", "uses", "free", "gone", "unwanted"] {
            assert_eq!(read(key, 1024), Ok(()), "{key}");
            let expected = format!(
                "a message is malformed: the list `{key}` has 1025 items, and the limit is 1024"
            );
            assert_eq!(read(key, 1025), Err(expected));
        }
    }
}
