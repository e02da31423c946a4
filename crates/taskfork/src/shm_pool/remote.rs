//! The buffers of the other side that this side reads.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bytes::Bytes;

use super::{BufferView, MAX_BUFFERS, fork_count};
use crate::sync::lock;
use crate::sys::{self, MemoryId, User};
use crate::wire::shm::{BufferId, BufferOwner, BufferRef, Changing, ShmMessage};

#[derive(Debug)]
pub(super) struct RemoteBuffers {
    most: usize,
    user: User,
    known: Vec<Known>,
}

#[derive(Debug)]
struct Known {
    id: BufferId,
    memory: Arc<sys::RemoteBuffer>,
    /// The number of references received since the buffer was last released.
    times: u64,
    /// The number of forks at the first of these references.
    forks: u64,
    /// The owner has been asked not to use the buffer again.
    refused: bool,
    /// The memory of a copy that nobody reads any more, for the next copy.
    spare: Arc<Mutex<Vec<u8>>>,
}

/// A buffer of the other side from which no reference is made, because the other side may write to it.
#[derive(Debug)]
pub(super) struct Unread {
    /// `None` once it has been copied, so that the other side may use it again while the copy lives.
    memory: Mutex<Option<Arc<sys::RemoteBuffer>>>,
    copy: OnceLock<Bytes>,
    /// How many of its bytes are copied.
    length: usize,
    spare: Weak<Mutex<Vec<u8>>>,
}

impl Unread {
    fn memory(&self) -> Option<Arc<sys::RemoteBuffer>> {
        lock(&self.memory).clone()
    }
}

impl Changing for Unread {
    fn copy(&self) -> Bytes {
        let copied = self.copy.get_or_init(|| {
            let Some(memory) = self.memory() else { return Bytes::new() };
            // Another thread may have had the lock when this process was forked, so nothing waits for it.
            let spare = self.spare.upgrade();
            let spare = spare.and_then(|spare| Some(std::mem::take(&mut *spare.try_lock().ok()?)));
            let bytes = memory.copy(self.length, spare.unwrap_or_default());
            Bytes::from_owner(Copy { bytes, spare: self.spare.clone() })
        });
        *lock(&self.memory) = None;
        copied.clone()
    }

    fn copy_to(&self, target: &mut [MaybeUninit<u8>]) {
        match self.memory() {
            Some(memory) => memory.copy_to(target),
            None => sys::copy_to_uninit(target, &self.copy()[..target.len()]),
        }
    }
}

/// The bytes of a copy. Its memory is used again: new memory costs several times what copying takes.
#[derive(Debug)]
struct Copy {
    bytes: Vec<u8>,
    spare: Weak<Mutex<Vec<u8>>>,
}

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // Another thread may have had the lock when this process was forked, so nothing waits for it.
        if let Some(spare) = self.spare.upgrade()
            && let Ok(mut spare) = spare.try_lock()
            && spare.capacity() < self.bytes.capacity()
        {
            std::mem::swap(&mut *spare, &mut self.bytes);
        }
    }
}

impl RemoteBuffers {
    pub(super) fn new(most: usize, user: User) -> Self {
        Self { most, user, known: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(super) fn has_id(&self, id: BufferId) -> bool {
        self.known.iter().any(|known| known.id == id)
    }

    /// Whether the buffer can be named in a message instead of sending its bytes.
    pub(super) fn is_returnable(&self, id: BufferId) -> bool {
        self.known.iter().any(|known| known.id == id && !known.refused)
    }

    /// Maps a new buffer. `is_own` says whether a file belongs to a buffer of this side.
    pub(super) fn add(
        &mut self,
        id: BufferId,
        file: &OwnedFd,
        is_own: impl Fn(MemoryId) -> bool,
    ) -> Result<(), String> {
        if self.has_id(id) {
            return Err(format!("there is memory of the number {id} already"));
        }
        let mapped: usize = self.known.iter().map(|known| known.memory.length()).sum();
        let left =
            if self.known.len() < MAX_BUFFERS { self.most.saturating_sub(mapped) } else { 0 };
        let memory = sys::RemoteBuffer::new(file, self.user, left)
            .map_err(|why| format!("memory that is lent cannot be used: {why}"))?;
        // This side would write to the bytes while it reads them.
        if is_own(memory.identity()) {
            return Err(format!("the new memory of the number {id} is the receiver's own"));
        }
        if let Some(same) =
            self.known.iter().find(|known| known.memory.identity() == memory.identity())
        {
            return Err(format!(
                "the new memory of the number {id} is that of the number {}",
                same.id
            ));
        }
        let memory = Arc::new(memory);
        let (forks, spare) = (fork_count(), Arc::default());
        self.known.push(Known { id, memory, times: 0, forks, refused: false, spare });
        Ok(())
    }

    /// Returns the first bytes of a buffer to which a message refers.
    pub(super) fn read(&mut self, id: BufferId, length: usize) -> Option<Bytes> {
        let known = self.known.iter_mut().find(|known| known.id == id)?;
        if length > known.memory.length() {
            return None;
        }
        if known.times == 0 {
            known.forks = fork_count();
        }
        known.times += 1;
        Some(Bytes::from_owner(BufferView { memory: known.memory.clone(), length }))
    }

    /// The buffers that a message refers to, for copies of their bytes. There is one for each buffer, so that a message of
    /// many references cannot make this side allocate more than the buffers have.
    pub(super) fn changing(&self, uses: &[BufferRef]) -> Vec<(BufferId, Arc<Unread>)> {
        let longest = |id| {
            let of_buffer =
                |place: &&BufferRef| place.owner == BufferOwner::Sender && place.id == id;
            uses.iter().filter(of_buffer).map(|place| place.length).max()
        };
        let unread = |known: &Known| {
            let length = longest(known.id).filter(|&length| length <= known.memory.length())?;
            let (memory, copy) = (Mutex::new(Some(known.memory.clone())), OnceLock::new());
            let spare = Arc::downgrade(&known.spare);
            Some((known.id, Arc::new(Unread { memory, copy, length, spare })))
        };
        self.known.iter().filter_map(unread).collect()
    }

    /// Removes a buffer. Returns whether there was one of this id.
    pub(super) fn remove(&mut self, id: BufferId) -> bool {
        let before = self.known.len();
        self.known.retain(|known| known.id != id);
        self.known.len() < before
    }

    /// Releases the buffers that this process no longer reads. If a child may read one, the owner must not use
    /// it again.
    pub(super) fn collect(&mut self, pending: &mut ShmMessage) {
        for known in self.known.iter_mut().filter(|known| known.times > 0 && !known.refused) {
            if Arc::get_mut(&mut known.memory).is_none() {
                continue;
            }
            if known.forks == fork_count() {
                pending.free.push((known.id, std::mem::take(&mut known.times)));
            } else {
                known.refused = true;
                pending.unwanted.push(known.id);
            }
        }
    }
}
