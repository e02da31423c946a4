//! Memory that one process fills again and again for another, which reads it. Only its maker can write to
//! it, and nobody can make it shorter. That it stays as it is while it is read is agreed between the two.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};
use rustix::mm::{Advice, madvise};

use super::mapping::{Access, Mapping};
use super::memory_file::memory_file;
use super::user::User;

/// What holds for memory that is lent: it keeps its size, and is written to only where it was mapped first.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// Which file of memory it is, of all that there are on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryId {
    device: u64,
    inode: u64,
}

impl MemoryId {
    fn of(status: &rustix::fs::Stat) -> Self {
        Self { device: status.st_dev, inode: status.st_ino }
    }
}

/// Memory of this process, for another to read.
pub(crate) struct LocalBuffer {
    mapping: Mapping,
    identity: MemoryId,
    /// A [`LocalBufferMut`] has it.
    filling: AtomicBool,
}

impl LocalBuffer {
    /// So many zeros, of which the first `soon` are to be written to at once; with the file that others map.
    pub(crate) fn new(length: usize, soon: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memory_file("taskfork-buffer", length)?;
        // SAFETY: the file is new and has that length, and the seals that follow let nobody else write to it.
        let mapping = unsafe { Mapping::new(&file, length, Access::Write) }?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        // At once takes half as long as page by page, which is what comes of it where the kernel refuses.
        let (start, soon) = (mapping.start.cast(), soon.min(length));
        // SAFETY: it changes nothing that can be seen.
        let _ = unsafe { madvise(start, soon, Advice::LinuxPopulateWrite) };
        let identity = MemoryId::of(&fstat(&file)?);
        Ok((Self { mapping, identity, filling: AtomicBool::new(false) }, file))
    }

    pub(crate) fn length(&self) -> usize {
        self.mapping.length
    }

    pub(crate) fn identity(&self) -> MemoryId {
        self.identity
    }

    /// The first `length` bytes.
    ///
    /// # Panics
    /// When there are fewer, or while they are being filled.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        assert!(!self.filling.load(Ordering::Acquire), "the memory is being filled");
        &self.mapping.bytes()[..length]
    }

    /// Copies these to its beginning.
    ///
    /// # Panics
    /// When there is less room.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) {
        // SAFETY: this process has no other reference to it.
        let all = unsafe { slice::from_raw_parts_mut(self.mapping.start, self.mapping.length) };
        all[..bytes.len()].copy_from_slice(bytes);
    }
}

/// Memory that is written to in place.
pub(crate) struct LocalBufferMut {
    memory: Arc<LocalBuffer>,
    length: usize,
}

impl LocalBufferMut {
    /// The first `length` bytes of memory that nobody else has now.
    pub(crate) fn new(memory: &mut Arc<LocalBuffer>, length: usize) -> Option<Self> {
        *Arc::get_mut(memory).filter(|own| length <= own.length())?.filling.get_mut() = true;
        Some(Self { memory: memory.clone(), length })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.mapping.bytes()[..self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes are there. This was made when nobody else had them, and until it is dropped
        // nobody else is given any.
        unsafe { slice::from_raw_parts_mut(self.memory.mapping.start, self.length) }
    }

    /// The memory, to be read by anybody, and how many of its bytes are meant.
    pub(crate) fn freeze(self) -> (Arc<LocalBuffer>, usize) {
        (self.memory.clone(), self.length)
    }
}

impl Drop for LocalBufferMut {
    fn drop(&mut self) {
        self.memory.filling.store(false, Ordering::Release);
    }
}

/// Memory of another process, to be read.
pub(crate) struct RemoteBuffer {
    mapping: Mapping,
    identity: MemoryId,
}

impl RemoteBuffer {
    /// Maps what a process of this user has sent, if it keeps its size and has no more than `most` bytes.
    pub(crate) fn new(file: &OwnedFd, of: User, most: usize) -> Result<Self, &'static str> {
        let seals = fcntl_get_seals(file).map_err(|_| "it is no memory")?;
        if !seals.contains(SEALS) {
            return Err("its size can change, or others can write to it");
        }
        let status = fstat(file).map_err(|_| "it is of no use")?;
        if User::of_file(&status) != of {
            return Err("it is another user's");
        }
        let length = usize::try_from(status.st_size).ok().filter(|&length| length <= most);
        let length = length.ok_or("it is longer than what was agreed")?;
        // SAFETY: the seals keep the length that it has, and let its maker alone write to it, who is of the same user
        // and has agreed not to while it is lent. It is checked elsewhere that the maker is another process.
        let mapping = unsafe { Mapping::new(file, length, Access::Read) };
        let mapping = mapping.map_err(|_| "it cannot be mapped")?;
        Ok(Self { mapping, identity: MemoryId::of(&status) })
    }

    pub(crate) fn length(&self) -> usize {
        self.mapping.length
    }

    pub(crate) fn identity(&self) -> MemoryId {
        self.identity
    }

    /// The first `length` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        &self.mapping.bytes()[..length]
    }
}

impl fmt::Debug for LocalBuffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LocalBuffer({} bytes)", self.length())
    }
}

impl fmt::Debug for LocalBufferMut {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LocalBufferMut({} bytes)", self.length)
    }
}

impl fmt::Debug for RemoteBuffer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RemoteBuffer({} bytes)", self.length())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::ftruncate;

    use super::*;
    use crate::sys::effective_user;
    use crate::sys::test_support::assert_refuses_missing_seals;

    #[test]
    fn only_its_maker_writes_to_it() {
        let (mut own, file) = LocalBuffer::new(10_000, 100).unwrap();
        let foreign = RemoteBuffer::new(&file, effective_user(), 10_000).unwrap();
        for fill in [3, 4] {
            own.copy_from(&[fill; 10_000]);
            assert!(foreign.bytes(10_000).iter().all(|&byte| byte == fill));
            assert_eq!(own.bytes(10_000), foreign.bytes(10_000));
        }
        // SAFETY: it is refused.
        assert!(unsafe { Mapping::new(&file, 10_000, Access::Write) }.is_err());
        assert!(rustix::io::pwrite(&file, b"x", 0).is_err());
        assert!(ftruncate(&file, 10).is_err());
        assert!(ftruncate(&file, 20_000).is_err());
    }

    #[test]
    fn what_is_filled_is_read_by_nobody() {
        let mut own = Arc::new(LocalBuffer::new(10_000, 0).unwrap().0);
        assert!(LocalBufferMut::new(&mut own, 10_001).is_none());
        let mut filling = LocalBufferMut::new(&mut own, 5000).unwrap();
        filling.bytes_mut().fill(9);
        assert!(LocalBufferMut::new(&mut own, 10).is_none());
        let read = || std::panic::catch_unwind(|| own.bytes(1)[0]);
        assert!(read().is_err());
        let (done, length) = filling.freeze();
        assert_eq!((read().ok(), done.bytes(length)), (Some(9), &[9; 5000][..]));
    }

    #[test]
    fn what_could_change_its_size_is_not_taken() {
        let open = || memory_file("test", 4096).unwrap();
        assert_refuses_missing_seals(SEALS, |file| {
            RemoteBuffer::new(file, effective_user(), 4096).is_err()
        });
        let file = open();
        fcntl_add_seals(&file, SEALS).unwrap();
        assert!(RemoteBuffer::new(&file, effective_user(), 4095).is_err());
        assert!(RemoteBuffer::new(&file, effective_user().other(), 4096).is_err());
        assert!(RemoteBuffer::new(&file, effective_user(), 4096).is_ok());
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(RemoteBuffer::new(&reader, effective_user(), 4096).is_err());
    }
}
