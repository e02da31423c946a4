//! The buffers of this side: which of them can be filled, and when to make or remove one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::{BufferView, MAX_BUFFERS, fork_count};
use crate::sys::{self, MemoryId, User};
use crate::wire::shm::{BufferId, BufferOwner, BufferRef, PlacedBytes, ShmMessage};

/// The number of byte strings that find no buffer before a new one is made. A new buffer of 16 KiB costs as
/// much as it saves in three uses, and one of 1 MiB or more as much as it saves in one.
const MISSES_BEFORE_ALLOC: u32 = 2;

/// The length of a buffer is a multiple of this, and of an eighth of itself, because the next byte string may
/// be somewhat longer. Pages that were never written to occupy no memory.
const GRANULARITY: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct LocalBuffers {
    /// The most bytes of this side's buffers that the other side maps.
    capacity: usize,
    user: User,
    buffers: Vec<Buffer>,
    /// The id of the newest buffer.
    last: BufferId,
    /// The number of byte strings that found no buffer.
    missed: u32,
    /// The removed buffers that the next message names.
    removed: Vec<BufferId>,
    /// Counts the uses of buffers.
    clock: u64,
}

#[derive(Debug)]
struct Buffer {
    id: BufferId,
    memory: Arc<sys::LocalBuffer>,
    /// The file, until the other side has mapped it.
    file: Option<Arc<OwnedFd>>,
    /// A message that refers to the buffer has a clone until it is sent.
    held: Arc<()>,
    /// The other side has asked not to use the buffer again.
    unwanted: bool,
    /// The number of references that the other side has not released.
    references: u64,
    /// The number of forks at the last use.
    forks: u64,
    /// The value of `clock` at the last use.
    last_used: u64,
}

impl LocalBuffers {
    pub(super) fn new(capacity: usize, user: User) -> Self {
        let (buffers, removed) = (Vec::new(), Vec::new());
        Self { capacity, user, buffers, last: 0, missed: 0, removed, clock: 0 }
    }

    pub(super) fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Whether the next message must name removed buffers.
    pub(super) fn has_removed(&self) -> bool {
        !self.removed.is_empty()
    }

    fn find(&mut self, id: BufferId) -> Option<&mut Buffer> {
        self.buffers.iter_mut().find(|buffer| buffer.id == id)
    }

    pub(super) fn has_id(&self, id: BufferId) -> bool {
        self.buffers.iter().any(|buffer| buffer.id == id)
    }

    /// Whether there is or was a buffer of this id.
    pub(super) fn was_made(&self, id: BufferId) -> bool {
        (1..=self.last).contains(&id)
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<BufferId> {
        self.buffers.iter().map(|buffer| buffer.id).collect()
    }

    pub(super) fn contains(&self, identity: MemoryId) -> bool {
        self.buffers.iter().any(|buffer| buffer.memory.identity() == identity)
    }

    /// Refers to bytes that are in that buffer already.
    pub(super) fn reuse(
        &mut self,
        id: BufferId,
        bytes: &Bytes,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        let buffer = self.find(id)?;
        (!buffer.unwanted && (may_add || buffer.file.is_none()))
            .then(|| buffer.placed(bytes.clone()))
    }

    /// Copies bytes into a buffer.
    pub(super) fn copy_in(&mut self, bytes: &[u8], may_add: bool) -> Option<PlacedBytes> {
        let length = bytes.len();
        let buffer = self.take(length, may_add, false)?;
        Arc::get_mut(&mut buffer.memory)?.copy_from(bytes);
        let view = BufferView { memory: buffer.memory.clone(), length };
        Some(buffer.placed(Bytes::from_owner(view)))
    }

    /// Whether the next byte string may have a buffer, also if none is free.
    pub(super) fn has_one_soon(&self) -> bool {
        self.missed >= MISSES_BEFORE_ALLOC
    }

    /// Returns a buffer to fill in place.
    pub(super) fn alloc(&mut self, length: usize) -> Option<(BufferId, sys::LocalBufferMut)> {
        let buffer = self.take(length, true, true)?;
        Some((buffer.id, sys::LocalBufferMut::new(&mut buffer.memory, length)?))
    }

    /// Returns a free buffer. Makes a new one only if buffers were missing often enough, or if the caller asks
    /// for one.
    fn take(&mut self, length: usize, may_add: bool, asked: bool) -> Option<&mut Buffer> {
        if length > self.capacity {
            return None;
        }
        let forks = fork_count();
        self.remove_stale(forks);
        self.clock += 1;
        let free = self.buffers.iter_mut().enumerate().filter_map(|(place, buffer)| {
            let fits = buffer.memory.length() >= length && (may_add || buffer.file.is_none());
            (fits && buffer.is_free()).then_some((buffer.memory.length(), place))
        });
        let place = match free.min() {
            Some((_, place)) => place,
            None if may_add => self.add(length, asked)?,
            None => return None,
        };
        let buffer = &mut self.buffers[place];
        (buffer.forks, buffer.last_used) = (forks, self.clock);
        Some(buffer)
    }

    /// Makes a new buffer, if buffers were missing often enough.
    fn add(&mut self, length: usize, asked: bool) -> Option<usize> {
        self.missed = self.missed.saturating_add(1);
        if !asked && self.missed <= MISSES_BEFORE_ALLOC || sys::effective_user() != self.user {
            return None;
        }
        let capacity = capacity(length).min(self.capacity);
        self.make_room(capacity)?;
        let id = self.last.checked_add(1)?;
        let (memory, file) = sys::LocalBuffer::new(capacity, length).ok()?;
        let (memory, file) = (Arc::new(memory), Some(Arc::new(file)));
        let (held, unwanted) = (Arc::new(()), false);
        self.buffers.push(Buffer {
            id,
            memory,
            file,
            held,
            unwanted,
            references: 0,
            forks: 0,
            last_used: 0,
        });
        self.last = id;
        Some(self.buffers.len() - 1)
    }

    /// Removes free buffers, the least recently used first, until a buffer of `length` bytes fits.
    fn make_room(&mut self, length: usize) -> Option<()> {
        loop {
            let there: usize = self.buffers.iter().map(|buffer| buffer.memory.length()).sum();
            if there + length <= self.capacity && self.buffers.len() < MAX_BUFFERS {
                return Some(());
            }
            let free = self
                .buffers
                .iter_mut()
                .filter_map(|buffer| buffer.is_free().then_some((buffer.last_used, buffer.id)));
            let (_, id) = free.min()?;
            self.remove(id);
        }
    }

    /// Removes free buffers that were used before the last fork. A child may still read them, so they must not
    /// be filled again.
    fn remove_stale(&mut self, forks: u64) {
        let old = self.buffers.iter_mut().filter(|buffer| buffer.forks != forks);
        let old: Vec<BufferId> = old.filter_map(|old| old.is_free().then_some(old.id)).collect();
        old.into_iter().for_each(|id| self.remove(id));
    }

    /// Records that the other side asks not to use the buffer again.
    pub(super) fn mark_unwanted(&mut self, id: BufferId) {
        if let Some(buffer) = self.find(id) {
            buffer.unwanted = true;
        }
    }

    fn remove(&mut self, id: BufferId) {
        if let Some(place) = self.buffers.iter().position(|buffer| buffer.id == id) {
            let buffer = self.buffers.swap_remove(place);
            // A buffer whose file was never sent is unknown to the other side.
            self.removed.extend(buffer.file.is_none().then_some(id));
        }
    }

    /// Counts a reference that has been sent.
    pub(super) fn add_reference(&mut self, id: BufferId) {
        if let Some(buffer) = self.find(id) {
            buffer.references += 1;
            buffer.file = None;
        }
    }

    /// Returns the bytes of a buffer of this side that the other side refers to.
    pub(super) fn returned(&mut self, id: BufferId, length: usize) -> Option<Bytes> {
        let buffer = self.find(id)?;
        if buffer.references == 0 || length > buffer.memory.length() {
            return None;
        }
        Some(Bytes::from_owner(BufferView { memory: buffer.memory.clone(), length }))
    }

    /// Releases references of the other side. Fails if it had fewer.
    pub(super) fn release(&mut self, id: BufferId, times: u64) -> Result<(), ()> {
        let Some(buffer) = self.find(id) else { return Ok(()) };
        buffer.references = buffer.references.checked_sub(times).ok_or(())?;
        Ok(())
    }

    /// Removes all buffers without references, except those of a message that has not been sent.
    pub(super) fn trim(&mut self) {
        self.missed = 0;
        self.remove_all(|buffer| buffer.references == 0);
    }

    /// Removes the buffers for which `which` is true, except those of a message that has not been sent.
    fn remove_all(&mut self, which: impl Fn(&Buffer) -> bool) {
        let removed = self.buffers.iter_mut().filter_map(|buffer| {
            let is_held = Arc::get_mut(&mut buffer.held).is_none();
            (which(buffer) && !is_held).then_some(buffer.id)
        });
        let removed: Vec<BufferId> = removed.collect();
        removed.into_iter().for_each(|id| self.remove(id));
    }

    pub(super) fn collect(&mut self, pending: &mut ShmMessage) {
        self.remove_all(|buffer| buffer.unwanted);
        pending.gone.append(&mut self.removed);
    }
}

impl Buffer {
    fn placed(&self, bytes: Bytes) -> PlacedBytes {
        let buffer = BufferRef { owner: BufferOwner::Sender, id: self.id, length: bytes.len() };
        PlacedBytes { buffer, bytes, new_file: self.file.clone(), guard: Some(self.held.clone()) }
    }

    /// Whether neither side reads the buffer.
    fn is_free(&mut self) -> bool {
        self.references == 0 && !self.unwanted && Arc::get_mut(&mut self.memory).is_some()
    }
}

fn capacity(length: usize) -> usize {
    length.next_multiple_of((length.next_power_of_two() / 8).max(GRANULARITY))
}
