//! Buffers that one process fills again and again, and another process reads.
//!
//! Seals fix the size of a buffer, and keep every process but its maker from writing to it. No seal keeps
//! the maker from writing while the other process reads: the two processes agree on that.

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};
use rustix::mm::{Advice, madvise};

use super::mapping::{Access, Mapping};
use super::memory_file::memory_file;
use super::user::User;

/// The size is fixed, and no mapping made from then on can be written to.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE);

/// Identifies a memory file on this machine.
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

/// A buffer of this process, which another process can map.
pub(crate) struct LocalBuffer {
    mapping: Mapping,
    identity: MemoryId,
    /// Whether a [`LocalBufferMut`] exists for it.
    filling: AtomicBool,
}

impl LocalBuffer {
    /// Makes a buffer of `length` zeros, and the file that the other process maps. The caller is about to write
    /// to the first `soon` bytes.
    pub(crate) fn new(length: usize, soon: usize) -> io::Result<(Self, OwnedFd)> {
        let file = memory_file("taskfork-buffer", length)?;
        // SAFETY: the file is new, has that length, and no other process has it. The seals added below keep the
        // length, and let no other mapping write.
        let mapping = unsafe { Mapping::new(&file, length, Access::Write) }?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        // To populate the pages at once takes half as long as a page fault for each. If the kernel refuses, the
        // page faults happen.
        let (start, soon) = (mapping.start.cast(), soon.min(length));
        // SAFETY: the range is part of the mapping above. The advice changes no contents.
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

    /// Returns the first `length` bytes.
    ///
    /// # Panics
    /// If the buffer is shorter, or while a [`LocalBufferMut`] exists.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        assert!(!self.filling.load(Ordering::Acquire), "the memory is being filled");
        &self.mapping.bytes()[..length]
    }

    /// Copies `bytes` to the start of the buffer.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub(crate) fn copy_from(&mut self, bytes: &[u8]) {
        // SAFETY: the mapping has that length and allows writing. `&mut self` excludes every other reference of
        // this process, and other processes cannot write.
        let all = unsafe { slice::from_raw_parts_mut(self.mapping.start, self.mapping.length) };
        all[..bytes.len()].copy_from_slice(bytes);
    }
}

/// Exclusive access to a buffer, for filling it in place.
pub(crate) struct LocalBufferMut {
    memory: Arc<LocalBuffer>,
    length: usize,
}

impl LocalBufferMut {
    /// Returns the first `length` bytes of the buffer for writing. `None` if the buffer is shorter, or if the `Arc`
    /// has a clone.
    pub(crate) fn new(memory: &mut Arc<LocalBuffer>, length: usize) -> Option<Self> {
        *Arc::get_mut(memory).filter(|own| length <= own.length())?.filling.get_mut() = true;
        Some(Self { memory: memory.clone(), length })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.mapping.bytes()[..self.length]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `new` checked that the mapping has at least `length` bytes, and that no clone of the `Arc`
        // existed. As long as this value exists, `filling` is set, so `LocalBuffer::bytes` panics and gives out
        // no reference. `&mut self` excludes those that this value gives out. Other processes cannot write.
        unsafe { slice::from_raw_parts_mut(self.memory.mapping.start, self.length) }
    }

    /// Ends the exclusive access. Returns the buffer and the number of bytes that were taken for writing.
    pub(crate) fn freeze(self) -> (Arc<LocalBuffer>, usize) {
        (self.memory.clone(), self.length)
    }
}

impl Drop for LocalBufferMut {
    fn drop(&mut self) {
        self.memory.filling.store(false, Ordering::Release);
    }
}

/// A buffer of another process, mapped for reading.
///
/// Its maker has promised not to write to it while this process reads, but is able to. So [`bytes`](Self::bytes)
/// is sound only if the maker keeps its promise, and [`copy`](Self::copy) is sound in any case.
pub(crate) struct RemoteBuffer {
    mapping: Mapping,
    identity: MemoryId,
}

impl RemoteBuffer {
    /// Maps a file that a process of the user `of` has sent.
    ///
    /// # Errors
    /// A text, if the size of the file is not sealed or exceeds `most`, or if the file is another user's.
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
        // SAFETY: the seals fix the length, and only the maker can write. The maker has the same user as this process
        // and has agreed not to write while this process reads. A maker that breaks the agreement could as well
        // change any memory of this process through ptrace(2); where it could not, the client is to use `copy`.
        // The caller checks that the file is not a `LocalBuffer` of this process.
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

    /// Returns the first `length` bytes.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        &self.mapping.bytes()[..length]
    }

    /// Copies the first `length` bytes to `copy`, whose memory is used. See [`copy_to`](Self::copy_to).
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub(crate) fn copy(&self, length: usize, mut copy: Vec<u8>) -> Vec<u8> {
        copy.clear();
        copy.reserve(length);
        self.copy_to(&mut copy.spare_capacity_mut()[..length]);
        // SAFETY: the vector has that capacity, and these bytes have just been written.
        unsafe { copy.set_len(length) };
        copy
    }

    /// Copies the first bytes to `target`. If the maker writes at the same time, the copy has a mixture of old and
    /// new bytes, and does not change afterwards.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub(crate) fn copy_to(&self, target: &mut [MaybeUninit<u8>]) {
        assert!(target.len() <= self.mapping.length, "the buffer is shorter");
        // SAFETY: the mapping is that long, and starts at a page. The target is another object of this process.
        unsafe { copy_changing(self.mapping.start, target) }
    }
}

/// Copies bytes that another process may change meanwhile.
///
/// # Safety
/// From `start`, which is aligned to a word, there must be as many words mapped as begin within the length of the target.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_changing(start: *const u8, target: &mut [MaybeUninit<u8>]) {
    // SAFETY: the instruction writes all of the target, and reads as many bytes from `start`. The compiler does not know what it
    // reads, and no reference to that exists, so another process may write at the same time. The direction flag is clear, as it is
    // in all code in Rust. Words that are read one by one take twice as long.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") target.len() => _,
            inout("rsi") start => _,
            inout("rdi") target.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// The same by words, for other processors.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_changing(start: *const u8, target: &mut [MaybeUninit<u8>]) {
    // SAFETY: the word is aligned and mapped. The read is volatile and creates no reference, so another process may write at the
    // same time.
    let word = |index| unsafe { start.cast::<u64>().add(index).read_volatile() };
    let (words, rest) = target.as_chunks_mut::<{ size_of::<u64>() }>();
    let count = words.len();
    for (index, part) in words.iter_mut().enumerate() {
        *part = word(index).to_ne_bytes().map(MaybeUninit::new);
    }
    if !rest.is_empty() {
        copy_to_uninit(rest, &word(count).to_ne_bytes()[..rest.len()]);
    }
}

/// Copies bytes. The method of slices that does so needs Rust 1.93.
///
/// # Panics
/// If there are more or fewer than the target has.
pub(crate) fn copy_to_uninit(target: &mut [MaybeUninit<u8>], bytes: &[u8]) {
    assert_eq!(target.len(), bytes.len(), "a copy of another length");
    // SAFETY: both have that length, and a reference that can be written to overlaps no other.
    unsafe { bytes.as_ptr().copy_to_nonoverlapping(target.as_mut_ptr().cast(), bytes.len()) };
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
        // SAFETY: the seals make the call fail, so there is no mapping.
        assert!(unsafe { Mapping::new(&file, 10_000, Access::Write) }.is_err());
        assert!(rustix::io::pwrite(&file, b"x", 0).is_err());
        assert!(ftruncate(&file, 10).is_err());
        assert!(ftruncate(&file, 20_000).is_err());
    }

    #[test]
    fn a_copy_has_the_bytes_of_any_length_and_does_not_change() {
        let (mut own, file) = LocalBuffer::new(10_001, 0).unwrap();
        let foreign = RemoteBuffer::new(&file, effective_user(), 10_001).unwrap();
        let pattern: Vec<u8> = (0..10_001_u32).map(|index| (index % 251) as u8).collect();
        own.copy_from(&pattern);
        let lengths = [0, 1, 7, 8, 9, 4096, 10_000, 10_001];
        let copies = lengths.map(|length| foreign.copy(length, vec![7; 3]));
        own.copy_from(&[0; 10_001]);
        for (length, copy) in lengths.into_iter().zip(copies) {
            assert_eq!(copy, pattern[..length]);
        }
        assert!(std::panic::catch_unwind(|| foreign.copy(10_002, Vec::new())).is_err());
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
