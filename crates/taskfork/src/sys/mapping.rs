//! A mapping of a memory file, which is unmapped when it is dropped.

use std::io;
use std::os::fd::AsFd;
use std::ptr;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Write,
    /// Another process may write, and this one sees what it writes.
    Read,
    /// The file is sealed against writing.
    ReadSealed,
}

/// A mapping of a whole file of memory.
pub(super) struct Mapping {
    pub(super) start: *mut u8,
    pub(super) length: usize,
}

// SAFETY: the mapping belongs to this value, which owns the only pointer to it that unmaps it. No thread has a
// special relation to a mapping.
unsafe impl Send for Mapping {}
// SAFETY: through a shared reference the memory can only be read.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of a file.
    ///
    /// # Safety
    /// The file must have at least `length` bytes for as long as the mapping exists; reading beyond the end of a file
    /// raises SIGBUS. While a reference from [`bytes`](Self::bytes) exists, no process may write to these bytes.
    /// A caller that only uses atomic or volatile accesses needs only the first condition.
    pub(super) unsafe fn new(file: &impl AsFd, length: usize, access: Access) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { start: ptr::NonNull::dangling().as_ptr(), length });
        }
        let (access, flags) = match access {
            Access::Write => (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            Access::Read => (ProtFlags::READ, MapFlags::SHARED),
            // Older kernels refuse a shared mapping of a sealed file. A private one that is never written to has
            // the same pages.
            Access::ReadSealed => (ProtFlags::READ, MapFlags::PRIVATE),
        };
        // SAFETY: the kernel chooses a free range of addresses, so no other mapping changes.
        let start = unsafe { mmap(ptr::null_mut(), length, access, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `length` bytes are mapped until this value is dropped, and the reference borrows it. The caller
        // of `new` has promised that the file keeps its length, and that no process writes while the reference
        // exists. A mapping of no bytes has a dangling pointer, which is valid for an empty slice.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: this value made the mapping, and every reference into it has borrowed this value.
            let _ = unsafe { munmap(self.start.cast(), self.length) };
        }
    }
}
