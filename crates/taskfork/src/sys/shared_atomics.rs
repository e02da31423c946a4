//! Words of memory that two processes share and both write to.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};

use super::mapping::{Access, Mapping};
use super::memory_file::memory_file;

/// The size is fixed.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Words that this process and another one load and store atomically. Their values cannot be trusted.
pub(crate) struct SharedAtomics(Mapping);

impl SharedAtomics {
    /// Makes `length` words that are zero, and the file that the other process maps.
    pub(crate) fn new(count: usize) -> io::Result<(Self, OwnedFd)> {
        let length = count * size_of::<AtomicU64>();
        let file = memory_file("taskfork-ring", length)?;
        // SAFETY: the file is new and has that length, which the seals below keep. The words are only accessed
        // atomically.
        let mapping = unsafe { Mapping::new(&file, length, Access::Write) }?;
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        Ok((Self(mapping), file))
    }

    /// Maps a file of `length` words that another process has sent.
    ///
    /// # Errors
    /// Of the kind [`InvalidData`](io::ErrorKind::InvalidData) if the length differs or is not sealed.
    pub(crate) fn map(file: &OwnedFd, count: usize) -> io::Result<Self> {
        let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let seals = fcntl_get_seals(file).map_err(|_| wrong("it is no memory"))?;
        if !seals.contains(SEALS) {
            return Err(wrong("its size can change"));
        }
        let length = count * size_of::<AtomicU64>();
        if fstat(file)?.st_size != length as i64 {
            return Err(wrong("it has another size than was agreed"));
        }
        // SAFETY: the seals fix the length, which was compared above. This process accesses the words only
        // atomically.
        unsafe { Mapping::new(file, length, Access::Write) }.map(Self)
    }
}

impl Deref for SharedAtomics {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        let count = self.0.length / size_of::<AtomicU64>();
        // SAFETY: the mapping has these words until the value is dropped, begins at a page, and its file has a
        // sealed size. Every bit pattern is a valid `AtomicU64`. This process only makes atomic accesses; other
        // processes are outside of Rust's memory model, and their stores appear as atomic ones.
        unsafe { slice::from_raw_parts(self.0.start.cast::<AtomicU64>(), count) }
    }
}

impl fmt::Debug for SharedAtomics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SharedAtomics({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use rustix::fs::ftruncate;

    use super::*;
    use crate::sys::test_support::assert_refuses_missing_seals;

    #[test]
    fn both_sides_write_to_them() {
        let (here, file) = SharedAtomics::new(1000).unwrap();
        let there = SharedAtomics::map(&file, 1000).unwrap();
        here[0].store(1, Relaxed);
        there[999].store(2, Relaxed);
        assert_eq!((there[0].load(Relaxed), here[999].load(Relaxed)), (1, 2));
        assert!(ftruncate(&file, 10).is_err());
        assert!(ftruncate(&file, 20_000).is_err());
    }

    #[test]
    fn what_could_change_its_size_is_not_taken() {
        let open = || memory_file("test", 4096).unwrap();
        assert_refuses_missing_seals(SEALS, |file| SharedAtomics::map(file, 512).is_err());
        let file = open();
        fcntl_add_seals(&file, SEALS).unwrap();
        assert!(SharedAtomics::map(&file, 511).is_err());
        assert!(SharedAtomics::map(&file, 513).is_err());
        assert!(SharedAtomics::map(&file, 512).is_ok());
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(SharedAtomics::map(&reader, 512).is_err());
    }
}
