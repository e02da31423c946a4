//! A mapping of a memory file, which is unmapped when it is dropped.

use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    /// What others write is seen.
    Read,
    /// Nobody writes any more.
    ReadSealed,
}

/// A mapping of a whole file of memory.
pub(super) struct Mapping {
    pub(super) start: *mut u8,
    pub(super) length: usize,
}

// SAFETY: it is memory that belongs to this value alone, or that nobody can write to.
unsafe impl Send for Mapping {}
// SAFETY: as above; whoever has only a reference can only read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file.
    ///
    /// # Safety
    /// The file has so many bytes for as long as the mapping lives. Nobody writes to them meanwhile, here or elsewhere,
    /// but through this value, or as words that are read and written at once; or its maker has agreed not to.
    pub(super) unsafe fn new(file: &impl AsFd, length: usize, access: Access) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { start: ptr::NonNull::dangling().as_ptr(), length });
        }
        let (access, flags) = match access {
            Access::Write => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Access::Read => (ProtFlags::READ, MapFlags::SHARED),
            // Older kernels refuse to share what is sealed; nothing is ever copied.
            Access::ReadSealed => (ProtFlags::READ, MapFlags::PRIVATE),
        };
        // SAFETY: an address of the kernel's choice cannot overlap any other mapping.
        let start = unsafe { mmap(ptr::null_mut(), length, access, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: so many bytes are mapped for as long as this value lives. The file cannot become
        // shorter: it is this process's own until it is sealed, and sealed then. Nobody writes to
        // it meanwhile: that takes this value mutably, or is kept from all by the seals, or is agreed
        // with its maker, who is of the same user and could write anywhere in this process.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: nothing refers to it any more.
            let _ = unsafe { munmap(self.start.cast(), self.length) };
        }
    }
}
