//! Memory that is filled by one process and then handed to others, which can rely on it to stay as it
//! is: sealed, so that nobody can write to it, or shorten it under somebody who reads it.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};

use super::mapping::{Access, Mapping};
use super::memory_file::memory_file;

/// What holds for memory that is handed over.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::WRITE);

/// Memory to be filled.
pub(crate) struct Writable {
    file: OwnedFd,
    mapping: Mapping,
}

impl Writable {
    /// So many zeros.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let file = memory_file("taskfork-blob", length)?;
        // SAFETY: the file is new, has that length, and nobody else has it.
        let mapping = unsafe { Mapping::new(&file, length, Access::Write) }?;
        Ok(Self { file, mapping })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.mapping.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for reading; and the file is in nobody else's hands.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start, self.mapping.length) }
    }

    /// Nobody can write to it from here on.
    pub(crate) fn seal(self) -> io::Result<(Sealed, Arc<OwnedFd>)> {
        let Self { file, mapping } = self;
        let length = mapping.length;
        drop(mapping);
        fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
        // SAFETY: it has that length, and has just been sealed.
        let sealed = unsafe { Sealed::map(&file, length) }?;
        Ok((sealed, Arc::new(file)))
    }
}

/// Memory that stays as it is.
pub(crate) struct Sealed(Mapping);

/// Why memory that somebody has sent is not mapped.
#[derive(Debug)]
pub(crate) enum SealedError {
    /// It has so many bytes, more than were asked for.
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
    /// Maps what somebody has sent, if it is sealed and has no more than `most` bytes.
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
        // SAFETY: the seals keep the length that it has, and everybody from writing to it.
        Ok(unsafe { Self::map(file, length) }?)
    }

    /// # Safety
    /// The file has that length, and is sealed against every change.
    unsafe fn map(file: &OwnedFd, length: usize) -> io::Result<Self> {
        // SAFETY: the caller's promise.
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
        // SAFETY: it is refused.
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
