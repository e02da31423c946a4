//! Memory of this side: what of it can be written to, when there is to be more, and when less.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::{BufferView, MAX_BUFFERS, fork_count};
use crate::sys::{self, MemoryId, User};
use crate::wire::shm::{BufferId, BufferOwner, BufferRef, PlacedBytes, ShmMessage};

/// Before there is memory for them, so many pieces that there is none for are sent: new memory of 16 KiB
/// costs as much as it saves in three uses, of 1 MiB and more as it saves in one.
const MISSES_BEFORE_ALLOC: u32 = 2;

/// The length of memory is a multiple of this, and of an eighth of itself, as what is to be put there next
/// may be somewhat longer. Pages that nothing was written to take no room.
const GRANULARITY: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct LocalBuffers {
    /// How many bytes the other side keeps.
    capacity: usize,
    user: User,
    buffers: Vec<Buffer>,
    /// The number given last.
    last: BufferId,
    /// How many pieces there has been no memory for.
    missed: u32,
    /// What the other side is to be told of.
    removed: Vec<BufferId>,
    /// Counts what is last_used.
    clock: u64,
}

#[derive(Debug)]
struct Buffer {
    id: BufferId,
    memory: Arc<sys::LocalBuffer>,
    /// Until the other side has it.
    file: Option<Arc<OwnedFd>>,
    /// Others have this as long as a message refers to it that is not sent.
    held: Arc<()>,
    /// The other side has asked for it not to be used again.
    unwanted: bool,
    /// How many messages that refer to it the other side has not done with.
    references: u64,
    /// How many forks there had been when it was last last_used.
    forks: u64,
    /// When that was.
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

    /// Whether the other side has not been told of all that is removed.
    pub(super) fn has_removed(&self) -> bool {
        !self.removed.is_empty()
    }

    fn find(&mut self, id: BufferId) -> Option<&mut Buffer> {
        self.buffers.iter_mut().find(|buffer| buffer.id == id)
    }

    pub(super) fn has_id(&self, id: BufferId) -> bool {
        self.buffers.iter().any(|buffer| buffer.id == id)
    }

    #[cfg(test)]
    pub(super) fn ids(&self) -> Vec<BufferId> {
        self.buffers.iter().map(|buffer| buffer.id).collect()
    }

    pub(super) fn contains(&self, identity: MemoryId) -> bool {
        self.buffers.iter().any(|buffer| buffer.memory.identity() == identity)
    }

    /// Bytes that lie in memory of that number already.
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

    /// Copies bytes to where they can be lent.
    pub(super) fn copy_in(&mut self, bytes: &[u8], may_add: bool) -> Option<PlacedBytes> {
        let length = bytes.len();
        let buffer = self.take(length, may_add, false)?;
        Arc::get_mut(&mut buffer.memory)?.copy_from(bytes);
        let view = BufferView { memory: buffer.memory.clone(), length };
        Some(buffer.placed(Bytes::from_owner(view)))
    }

    /// Memory to be filled in place.
    pub(super) fn alloc(&mut self, length: usize) -> Option<(BufferId, sys::LocalBufferMut)> {
        let buffer = self.take(length, true, true)?;
        Some((buffer.id, sys::LocalBufferMut::new(&mut buffer.memory, length)?))
    }

    /// Takes memory that nobody else uses. New memory is made only if there has been need of it often
    /// enough, or if it is asked for.
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

    /// Makes new memory, if it is time to.
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

    /// Gives up what is too short, the one longest unused first, until there is room for so much.
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

    /// A child may read what was last_used before it was made, so that nobody writes there again.
    fn remove_stale(&mut self, forks: u64) {
        let old = self.buffers.iter_mut().filter(|buffer| buffer.forks != forks);
        let old: Vec<BufferId> = old.filter_map(|old| old.is_free().then_some(old.id)).collect();
        old.into_iter().for_each(|id| self.remove(id));
    }

    /// The other side does not want it any more.
    pub(super) fn mark_unwanted(&mut self, id: BufferId) {
        if let Some(buffer) = self.find(id) {
            buffer.unwanted = true;
        }
    }

    fn remove(&mut self, id: BufferId) {
        if let Some(place) = self.buffers.iter().position(|buffer| buffer.id == id) {
            let buffer = self.buffers.swap_remove(place);
            // Of what the other side does not know it need not be told.
            self.removed.extend(buffer.file.is_none().then_some(id));
        }
    }

    /// The other side has been sent a reference to it.
    pub(super) fn add_reference(&mut self, id: BufferId) {
        if let Some(buffer) = self.find(id) {
            buffer.references += 1;
            buffer.file = None;
        }
    }

    /// What the other side sends back.
    pub(super) fn returned(&mut self, id: BufferId, length: usize) -> Option<Bytes> {
        let buffer = self.find(id)?;
        if buffer.references == 0 || length > buffer.memory.length() {
            return None;
        }
        Some(Bytes::from_owner(BufferView { memory: buffer.memory.clone(), length }))
    }

    /// The other side has done with it so many times; an error if it had it less often.
    pub(super) fn release(&mut self, id: BufferId, times: u64) -> Result<(), ()> {
        let Some(buffer) = self.find(id) else { return Ok(()) };
        buffer.references = buffer.references.checked_sub(times).ok_or(())?;
        Ok(())
    }

    /// Gives up all that is not lent now, nor about to be.
    pub(super) fn trim(&mut self) {
        self.missed = 0;
        self.remove_all(|buffer| buffer.references == 0);
    }

    /// Gives up all of these that no message refers to which has not been sent.
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

    /// Nobody reads it, here or elsewhere.
    fn is_free(&mut self) -> bool {
        self.references == 0 && !self.unwanted && Arc::get_mut(&mut self.memory).is_some()
    }
}

fn capacity(length: usize) -> usize {
    length.next_multiple_of((length.next_power_of_two() / 8).max(GRANULARITY))
}
