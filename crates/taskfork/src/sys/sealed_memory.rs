//! Memory that one process fills, seals and then passes to others. No process can write to sealed memory
//! or shorten it, so a receiver can read it even if the sender is hostile.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};

use super::mapping::{Access, Mapping};
use super::memory_file::memory_file;

/// Neither the size nor the contents can change.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// New memory that this process fills.
pub(crate) struct Writable {
    file: OwnedFd,
    mapping: Mapping,
}

impl Writable {
    /// Makes memory of `length` zeros.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let file = memory_file("taskfork-blob", length)?;
        // SAFETY: the file is new and has that length, and no other process has a descriptor of it.
        let mapping = unsafe { Mapping::new(&file, length, Access::Write) }?;
        Ok(Self { file, mapping })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has that length and allows writing. `&mut self` excludes every other reference, and no
        // other process has a descriptor of the file before `seal`.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start, self.mapping.length) }
    }

    /// Seals the memory against every change. Returns it for reading, and the file to send to others.
    pub(crate) fn seal(self) -> io::Result<(Sealed, Arc<OwnedFd>)> {
        let Self { file, mapping } = self;
        let length = mapping.length;
        drop(mapping);
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        // SAFETY: the file has that length, and the line above has sealed it.
        let sealed = unsafe { Sealed::map(&file, length) }?;
        Ok((sealed, Arc::new(file)))
    }
}

/// Sealed memory, mapped for reading.
pub(crate) struct Sealed(Mapping);

/// Why a received file is not mapped.
#[derive(Debug)]
pub(crate) enum SealedError {
    /// It has `length` bytes, more than the limit.
    TooLong {
        length: usize,
    },
    Unusable(io::Error),
}

impl<E: Into<io::Error>> From<E> for SealedError {
    fn from(error: E) -> Self {
        Self::Unusable(error.into())
    }
}

impl Sealed {
    /// Maps a received file, if it is sealed and has at most `most` bytes.
    pub(crate) fn new(file: &OwnedFd, most: usize) -> Result<Self, SealedError> {
        let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let seals = fcntl_get_seals(file).map_err(|_| wrong("it is no memory"))?;
        if !seals.contains(SEALS) {
            return Err(wrong("it is not sealed against changes").into());
        }
        let length = usize::try_from(fstat(file)?.st_size).map_err(|_| wrong("it is too long"))?;
        if length > most {
            return Err(SealedError::TooLong { length });
        }
        // SAFETY: `fstat` returned this length, and the seals keep every process from changing length or contents.
        Ok(unsafe { Self::map(file, length) }?)
    }

    /// # Safety
    /// The file must have that length, and all of [`SEALS`].
    unsafe fn map(file: &OwnedFd, length: usize) -> io::Result<Self> {
        // SAFETY: the caller has promised that the length is right and the file is sealed.
        unsafe { Mapping::new(file, length, Access::ReadSealed) }.map(Self)
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Writable({} bytes)", self.mapping.length)
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::ftruncate;

    use super::*;
    use crate::sys::test_support::assert_refuses_missing_seals;

    #[test]
    fn what_is_sealed_stays_as_it_is() {
        let mut memory = Writable::new(10_000).unwrap();
        memory.bytes_mut()[9_999] = 7;
        let (sealed, file) = memory.seal().unwrap();
        assert_eq!((sealed.as_ref().len(), sealed.as_ref()[9_999]), (10_000, 7));
        assert!(ftruncate(&*file, 10).is_err());
        assert!(rustix::io::pwrite(&*file, b"x", 0).is_err());
        // SAFETY: the seals make the call fail, so there is no mapping.
        assert!(unsafe { Mapping::new(&*file, 10_000, Access::Write) }.is_err());
    }

    #[test]
    fn what_could_change_is_not_taken() {
        let open = || Writable::new(4096).unwrap().file;
        assert!(Sealed::new(&open(), 4096).is_err());
        assert_refuses_missing_seals(SEALS, |file| Sealed::new(file, 4096).is_err());
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(Sealed::new(&reader, 4096).is_err());
        assert!(
            Sealed::new(&std::fs::File::open("/proc/self/exe").unwrap().into(), usize::MAX)
                .is_err()
        );
    }

    #[test]
    fn what_is_too_long_is_not_mapped() {
        let (_, file) = Writable::new(4096).unwrap().seal().unwrap();
        assert!(matches!(Sealed::new(&file, 4095), Err(SealedError::TooLong { length: 4096 })));
        assert!(Sealed::new(&file, 4096).is_ok());
    }

    #[test]
    fn nothing_can_be_shared_as_well() {
        let (sealed, _) = Writable::new(0).unwrap().seal().unwrap();
        assert!(sealed.as_ref().is_empty());
    }
}
