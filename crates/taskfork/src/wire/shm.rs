//! What the two sides of a connection say of memory that they lend each other: the message of kind 7, from
//! either side.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::WireError;
use super::frame::HEADER_LEN;
use super::msgpack::{Reader, put_array, put_bool, put_map, put_str, put_uint};
use super::native::{SHM, list, meta};

/// Names memory within its connection, among that of its owner.
pub(crate) type BufferId = u32;

/// So many times a message may refer to memory.
pub(crate) const MAX_BUFFER_REFS: usize = 1024;

/// The most ids in a list: many times what either side keeps mapped, which is 16 pieces.
const MAX_IDS: usize = 1024;

/// Who owns memory that a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BufferOwner {
    /// Who sends the message.
    Sender,
    /// Who gets it.
    Receiver,
}

/// The beginning of a piece of memory in the place of so many bytes of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferRef {
    pub(crate) owner: BufferOwner,
    pub(crate) id: BufferId,
    pub(crate) length: usize,
}

/// Names a connection for as long as this process and its children live.
pub(crate) type PoolId = u64;

/// Where bytes are that need not be sent on the connection of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) pool: PoolId,
    pub(crate) id: BufferId,
    /// It is this side's memory.
    pub(crate) is_local: bool,
}

/// Bytes that came without being sent.
#[derive(Debug, Clone)]
pub(crate) struct SharedBytes {
    pub(crate) bytes: Bytes,
    pub(crate) origin: Origin,
}

/// All of it may be nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ShmMessage {
    /// A worker shares memory from here on, and keeps so many bytes of the client's mapped.
    pub(crate) agreed: Option<usize>,
    /// Memory of the sender, each with a descriptor that comes with this message.
    pub(crate) new: Vec<BufferId>,
    /// What the next message refers to.
    pub(crate) uses: Vec<BufferRef>,
    /// Memory of the receiver that the sender does not read any more, and how many times it was lent. That
    /// holds once the next message has been read.
    pub(crate) free: Vec<(BufferId, u64)>,
    /// Memory of the sender that it will not use again.
    pub(crate) gone: Vec<BufferId>,
    /// Memory of the receiver that it must not write to again.
    pub(crate) unwanted: Vec<BufferId>,
    /// The sender has had nothing to do for a while.
    pub(crate) idle: bool,
}

/// Where bytes have been put that need not be sent.
#[derive(Debug, Clone)]
pub(crate) struct PlacedBytes {
    pub(crate) place: BufferRef,
    /// They stay there as long as this.
    pub(crate) bytes: Bytes,
    /// The file of memory that the other side does not know yet.
    pub(crate) new: Option<Arc<OwnedFd>>,
    /// Has the owner keep the memory until the message is sent.
    #[expect(dead_code, reason = "it only has to be there")]
    pub(crate) held: Option<Arc<()>>,
}

impl ShmMessage {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What is to be said of bytes that the next message refers to.
    pub(crate) fn of(placed: &[PlacedBytes]) -> Self {
        let new = placed.iter().filter(|placed| placed.new.is_some());
        Self {
            new: new.map(|placed| placed.place.id).collect(),
            uses: placed.iter().map(|placed| placed.place).collect(),
            ..Self::default()
        }
    }

    /// Appends it as a frame.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEADER_LEN]);
        put_array(out, 2);
        put_uint(out, SHM);
        let absent = [
            self.agreed.is_none(),
            self.new.is_empty(),
            self.uses.is_empty(),
            self.free.is_empty(),
            self.gone.is_empty(),
            self.unwanted.is_empty(),
            !self.idle,
        ];
        put_map(out, absent.iter().map(|&absent| u32::from(!absent)).sum());
        if let Some(bytes) = self.agreed {
            put_str(out, "agreed");
            put_uint(out, bytes as u64);
        }
        put_ids(out, "new", &self.new);
        if !self.uses.is_empty() {
            put_str(out, "uses");
            put_array(out, self.uses.len() as u32);
            for place in &self.uses {
                put_array(out, 3);
                put_bool(out, place.owner == BufferOwner::Receiver);
                put_uint(out, u64::from(place.id));
                put_uint(out, place.length as u64);
            }
        }
        if !self.free.is_empty() {
            put_str(out, "free");
            put_array(out, self.free.len() as u32);
            for &(id, times) in &self.free {
                put_array(out, 2);
                put_uint(out, u64::from(id));
                put_uint(out, times);
            }
        }
        put_ids(out, "gone", &self.gone);
        put_ids(out, "unwanted", &self.unwanted);
        if self.idle {
            put_str(out, "idle");
            put_bool(out, true);
        }
        let length = (out.len() - start - HEADER_LEN) as u32;
        out[start..start + HEADER_LEN].copy_from_slice(&length.to_le_bytes());
    }

    /// Reads what follows the kind.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut said = Self::default();
        meta(reader, |key, reader| {
            match key {
                "agreed" => said.agreed = Some(reader.size()?),
                "new" => said.new = list(reader, key, MAX_IDS, Reader::int::<BufferId>)?,
                "uses" => said.uses = list(reader, key, MAX_BUFFER_REFS, read_use)?,
                "free" => said.free = list(reader, key, MAX_IDS, read_free)?,
                "gone" => said.gone = list(reader, key, MAX_IDS, Reader::int::<BufferId>)?,
                "unwanted" => said.unwanted = list(reader, key, MAX_IDS, Reader::int::<BufferId>)?,
                "idle" => said.idle = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(said)
    }
}

fn put_ids(out: &mut Vec<u8>, key: &str, ids: &[BufferId]) {
    if !ids.is_empty() {
        put_str(out, key);
        put_array(out, ids.len() as u32);
        ids.iter().for_each(|&id| put_uint(out, u64::from(id)));
    }
}

fn read_use(reader: &mut Reader<'_>) -> Result<BufferRef, WireError> {
    expect(reader, 3)?;
    let owner = if reader.bool()? { BufferOwner::Receiver } else { BufferOwner::Sender };
    Ok(BufferRef { owner, id: reader.int()?, length: reader.int()? })
}

fn read_free(reader: &mut Reader<'_>) -> Result<(BufferId, u64), WireError> {
    expect(reader, 2)?;
    Ok((reader.int()?, reader.int()?))
}

fn expect(reader: &mut Reader<'_>, fields: usize) -> Result<(), WireError> {
    match reader.array()? {
        there if there == fields => Ok(()),
        there => Err(WireError::malformed(format!("{there} fields instead of {fields}"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::native::{FromClient, FromWorker};

    fn use_of_any() -> impl Strategy<Value = BufferRef> {
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
        fn what_is_said_is_what_is_heard(
            (new, gone, unwanted) in (ids(), ids(), ids()),
            uses in proptest::collection::vec(use_of_any(), 0..3),
            free in proptest::collection::vec((any::<BufferId>(), 0..u64::MAX >> 1), 0..3),
            (agreed, idle) in (proptest::option::of(0..usize::MAX >> 1), any::<bool>()),
        ) {
            let said = ShmMessage { agreed, new, uses, free, gone, unwanted, idle };
            let mut frame = Vec::new();
            said.put(&mut frame);
            let (header, body) = frame.split_at(HEADER_LEN);
            prop_assert_eq!(header, &(body.len() as u32).to_le_bytes()[..]);
            let Ok(FromClient::Shm(heard)) = FromClient::decode(body) else {
                return Err(TestCaseError::fail("a client's is none"));
            };
            prop_assert_eq!(&heard, &said);
            let Ok(FromWorker::Shm(heard)) = FromWorker::decode(body) else {
                return Err(TestCaseError::fail("a worker's is none"));
            };
            prop_assert_eq!(&heard, &said);
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_named() {
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
