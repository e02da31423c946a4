//! Buffers in memory that both sides of a connection have mapped. A side fills its buffers again and again, so that
//! long byte strings are copied once on their way and need no new pages.
//!
//! A side fills a buffer only if the other side has no reference to it and no value in its own process refers to
//! it. The other side releases its references in a message that accompanies its next one. The owner of a buffer is
//! able to break this rule, see [`copying`](ShmPool::copying).

mod local;
mod remote;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::sys::{self, User};
use crate::wire::WireError;
use crate::wire::shm::{
    BufferId, BufferOwner, BufferRef, Changing, MAX_BUFFER_REFS, Origin, PlacedBytes, PoolId,
    ReceivedBytes, SharedBytes, ShmMessage,
};
use local::LocalBuffers;
use remote::RemoteBuffers;

/// How much memory each side keeps for the other unless configured otherwise.
pub(crate) const DEFAULT_SHARED_MEMORY: usize = 64 << 20;

/// The most buffers of one side that the other side maps.
const MAX_BUFFERS: usize = 16;

/// The buffers of both sides, as one side of a connection uses them.
#[derive(Debug)]
pub(crate) struct ShmPool {
    id: PoolId,
    local: LocalBuffers,
    remote: RemoteBuffers,
    /// The bytes to which the next message refers.
    uses: Vec<ReceivedBytes>,
    /// The references that the other side releases, in effect when the next message has been read.
    releases: Vec<(BufferId, u64)>,
    /// What to send with the next message.
    pending: ShmMessage,
    /// Whether bytes that come in the other side's buffers are copied.
    copies: bool,
}

impl ShmPool {
    /// Makes the pool of a connection between processes of `user`. The other side maps at most `room` bytes of
    /// this side, and this side at most `most` bytes of the other.
    pub(crate) fn new(room: usize, most: usize, user: User) -> Self {
        static POOL_IDS: AtomicU64 = AtomicU64::new(1);
        Self {
            id: POOL_IDS.fetch_add(1, Ordering::Relaxed),
            local: LocalBuffers::new(room, user),
            remote: RemoteBuffers::new(most, user),
            uses: Vec::new(),
            releases: Vec::new(),
            pending: ShmMessage::default(),
            copies: false,
        }
    }

    /// Sets whether bytes that come in the other side's buffers are copied when they are taken. If not, the other side
    /// can change them while they are read.
    pub(crate) fn copying(self, copies: bool) -> Self {
        Self { copies, ..self }
    }

    /// Sets how many bytes of this side's buffers the other side maps.
    pub(crate) fn set_capacity(&mut self, room: usize) {
        self.local.set_capacity(room);
    }

    /// Places bytes in a buffer, so that they need not be sent, if that is faster. With `may_add`, the buffer
    /// may be one that the other side has not mapped yet.
    pub(crate) fn store(
        &mut self,
        bytes: &Bytes,
        origin: Option<Origin>,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        if let Some(Origin { id, is_local, .. }) = origin.filter(|origin| origin.pool == self.id) {
            let length = bytes.len();
            if !is_local && self.remote.is_returnable(id) {
                let buffer = BufferRef { owner: BufferOwner::Receiver, id, length };
                return Some(PlacedBytes {
                    buffer,
                    bytes: bytes.clone(),
                    new_file: None,
                    guard: None,
                });
            }
            let there = if is_local { self.local.reuse(id, bytes, may_add) } else { None };
            if there.is_some() {
                return there;
            }
        }
        self.local.copy_in(bytes, may_add)
    }

    /// Returns a buffer to copy bytes to, if [`store`](Self::store) would have one for them.
    pub(crate) fn alloc_for_copy(&mut self, length: usize) -> Option<ShmBufferMut> {
        self.local.has_one_soon().then(|| self.alloc(length))?
    }

    /// Returns a buffer to fill in place.
    pub(crate) fn alloc(&mut self, length: usize) -> Option<ShmBufferMut> {
        let (id, memory) = self.local.alloc(length)?;
        Some(ShmBufferMut { memory, origin: Origin { pool: self.id, id, is_local: true } })
    }

    /// Records that a message with these references has been sent.
    pub(crate) fn mark_sent(&mut self, placed: &[PlacedBytes]) {
        for PlacedBytes { buffer, .. } in placed {
            if buffer.owner == BufferOwner::Sender {
                self.local.add_reference(buffer.id);
            }
        }
    }

    /// Handles a message of the other side. The files of its new buffers are the first of `files`.
    pub(crate) fn handle_message(
        &mut self,
        said: ShmMessage,
        files: &mut Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        if files.len() < said.new.len() {
            return Err(WireError::Files);
        }
        for (&id, file) in said.new.iter().zip(files.drain(..said.new.len())) {
            let added = self.remote.add(id, &file, |identity| self.local.contains(identity));
            added.map_err(WireError::Malformed)?;
        }
        if said.uses.len() > MAX_BUFFER_REFS || !self.uses.is_empty() && !said.uses.is_empty() {
            let what = "one message cannot refer to so much";
            return Err(WireError::Malformed(what.to_owned()));
        }
        let changing = if self.copies { self.remote.changing(&said.uses) } else { Vec::new() };
        for place in said.uses {
            let is_local = place.owner == BufferOwner::Receiver;
            let bytes = match is_local {
                true => self.local.returned(place.id, place.length),
                false => self.remote.read(place.id, place.length),
            };
            let bytes = bytes.ok_or_else(|| {
                WireError::Malformed(format!("{place:?} is nothing that has been lent"))
            })?;
            let changing = changing.iter().find(|(id, _)| !is_local && *id == place.id);
            self.uses.push(match changing {
                Some((_, memory)) => {
                    let memory = memory.clone() as Arc<dyn Changing>;
                    ReceivedBytes::Changing { memory, length: place.length }
                }
                None => {
                    let origin = Origin { pool: self.id, id: place.id, is_local };
                    ReceivedBytes::Stable(SharedBytes { bytes, origin: Some(origin) })
                }
            });
        }
        let unknown = |id| WireError::malformed(format!("there is no memory of the number {id}"));
        for (id, times) in said.free {
            if !self.local.has_id(id) {
                // The other side may not know yet that the buffer is removed.
                if self.local.was_made(id) {
                    continue;
                }
                return Err(unknown(id));
            }
            match self.releases.iter_mut().find(|(releases, _)| *releases == id) {
                Some((_, before)) => *before = before.saturating_add(times),
                None => self.releases.push((id, times)),
            }
        }
        for id in said.gone {
            if !self.remote.remove(id) {
                return Err(unknown(id));
            }
        }
        for id in said.unwanted {
            if !self.local.was_made(id) {
                return Err(unknown(id));
            }
            self.local.mark_unwanted(id);
        }
        if said.idle {
            self.local.trim();
        }
        Ok(())
    }

    /// Whether references or releases have been received that the next message brings into effect.
    pub(crate) fn has_received(&self) -> bool {
        !self.uses.is_empty() || !self.releases.is_empty()
    }

    /// Returns the bytes to which the message refers that was just read.
    pub(crate) fn take_received(&mut self) -> Result<Vec<ReceivedBytes>, WireError> {
        self.apply_releases()?;
        Ok(std::mem::take(&mut self.uses))
    }

    /// Applies the releases of the other side.
    pub(crate) fn apply_releases(&mut self) -> Result<(), WireError> {
        for (id, times) in self.releases.drain(..) {
            self.local.release(id, times).map_err(|()| {
                let what = "memory was given back more often than it was lent";
                WireError::Malformed(what.to_owned())
            })?;
        }
        Ok(())
    }

    /// Appends the control message that goes with the next message, if there is something to say.
    pub(crate) fn write_control(&mut self, out: &mut Vec<u8>) {
        if self.is_empty() && !self.local.has_removed() && !self.pending.idle {
            return;
        }
        self.remote.collect(&mut self.pending);
        self.local.collect(&mut self.pending);
        if !self.pending.is_empty() {
            std::mem::take(&mut self.pending).put(out);
        }
    }

    /// Whether neither side has a buffer.
    pub(crate) fn is_empty(&self) -> bool {
        self.local.is_empty() && self.remote.is_empty()
    }

    /// Removes buffers that are not in use, and asks the other side to do the same. For a connection that has
    /// been idle.
    pub(crate) fn trim(&mut self) {
        self.local.trim();
        self.pending.idle = true;
    }

    /// Removes buffers that have become free since [`trim`](Self::trim). For an answer to an idle peer.
    pub(crate) fn trim_again(&mut self) -> Result<(), WireError> {
        self.apply_releases()?;
        self.local.trim();
        Ok(())
    }
}

/// A buffer that this process fills. No other value refers to it.
#[derive(Debug)]
pub(crate) struct ShmBufferMut {
    memory: sys::LocalBufferMut,
    origin: Origin,
}

impl ShmBufferMut {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// Ends the filling. The bytes stay unchanged as long as the returned value or a clone of it exists.
    pub(crate) fn freeze(self) -> SharedBytes {
        let (memory, length) = self.memory.freeze();
        let bytes = Bytes::from_owner(BufferView { memory, length });
        SharedBytes { bytes, origin: Some(self.origin) }
    }
}

/// Bytes of a buffer, which keep the buffer mapped.
#[derive(Debug)]
struct BufferView<M> {
    memory: Arc<M>,
    length: usize,
}

impl AsRef<[u8]> for BufferView<sys::LocalBuffer> {
    fn as_ref(&self) -> &[u8] {
        self.memory.bytes(self.length)
    }
}

impl AsRef<[u8]> for BufferView<sys::RemoteBuffer> {
    fn as_ref(&self) -> &[u8] {
        self.memory.bytes(self.length)
    }
}

#[cfg(not(test))]
use sys::fork_count;
#[cfg(test)]
use tests::fork_count;

#[cfg(test)]
mod tests;
