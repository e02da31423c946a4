//! Memory that a server shares with its workers: pages of which each worker gets one of its own, and words
//! that all of them can read and only the server can write.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_add_seals};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

use super::memory_file::memory_file;

/// SharedAtomics that are mapped for as long as the process lives, each read and written whole. Another process may
/// write to them at any time.
pub(crate) type AtomicWords = &'static [AtomicU64];

/// Pages that are each a file of their own, as a process could remap a page of a file to any other page of it
/// (`remap_file_pages`, `mremap`). A process that is forked has only the one that is given to it.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    made: Vec<AtomicWords>,
}

impl Pages {
    /// Makes one more page. Its index is the number of those before it.
    pub(crate) fn add(&mut self) -> io::Result<()> {
        let bytes = rustix::param::page_size();
        let file = memory_file("taskfork-slots", bytes)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let words = map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        hide_from_children(words)?;
        self.made.push(words);
        Ok(())
    }

    /// One page, as this process has it mapped.
    pub(crate) fn page(&self, index: usize) -> AtomicWords {
        self.made[index]
    }

    /// Processes that are forked from here on have this page.
    pub(crate) fn share_with_children(&self, index: usize) -> io::Result<()> {
        let words = self.made[index];
        let start = words.as_ptr().cast_mut().cast();
        // SAFETY: it changes nothing for this process; a child gets a mapping that it may use as this one does.
        unsafe { madvise(start, size_of_val(words), Advice::LinuxDoFork) }?;
        Ok(())
    }

    /// Processes that are forked from here on do not have this page.
    pub(crate) fn hide_from_children(&self, index: usize) -> io::Result<()> {
        hide_from_children(self.made[index])
    }
}

/// SharedAtomics that this process writes, and that processes forked from it can only read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublishedPage {
    /// Not mapped in forked processes.
    writable: AtomicWords,
    readable: AtomicWords,
}

impl PublishedPage {
    pub(crate) fn new() -> io::Result<Self> {
        let bytes = rustix::param::page_size();
        let file = memory_file("taskfork-server", bytes)?;
        let writable = map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        hide_from_children(writable)?;
        // A mapping made from here on stays read-only: `mprotect` fails too.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let readable = map(&file, bytes, ProtFlags::READ)?;
        Ok(Self { writable, readable })
    }

    /// For the process that has made them.
    pub(crate) fn writable(&self) -> AtomicWords {
        self.writable
    }

    /// For all.
    pub(crate) fn readable(&self) -> AtomicWords {
        self.readable
    }
}

/// Maps whole pages of a file whose size is fixed, for as long as the process lives.
fn map(file: &OwnedFd, bytes: usize, access: ProtFlags) -> io::Result<AtomicWords> {
    // SAFETY: an address of the kernel's choice cannot overlap any other mapping.
    let start = unsafe { mmap(null_mut(), bytes, access, MapFlags::SHARED, file, 0) }?;
    // SAFETY: `bytes` are mapped, at the start of a page, and are never unmapped. The file has them and cannot
    // become shorter. Every value is a valid word, and words are only ever reached through atomics; those of a
    // read-only mapping are only loaded by the callers of this module.
    Ok(unsafe { slice::from_raw_parts(start.cast::<AtomicU64>(), bytes / size_of::<AtomicU64>()) })
}

/// Processes that are forked from here on do not have this mapping.
fn hide_from_children(words: AtomicWords) -> io::Result<()> {
    let start = words.as_ptr().cast_mut().cast();
    // SAFETY: nothing changes for this process. A child does not have the mapping, and uses no reference to it: it
    // takes its own from `readable`, or has a page that was given to it.
    unsafe { madvise(start, size_of_val(words), Advice::LinuxDontFork) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use nix::libc;

    use super::*;
    use crate::sys::test_support::in_child;

    fn make_writable(words: AtomicWords) -> io::Result<()> {
        let start = words.as_ptr().cast_mut().cast();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a mapping of this test's own gets more rights at most.
        match unsafe { libc::mprotect(start, size_of_val(words), access) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn two_pages() -> Pages {
        let mut pages = Pages::default();
        pages.add().unwrap();
        pages.add().unwrap();
        pages
    }

    #[test]
    fn no_page_is_in_the_file_of_another() {
        let pages = two_pages();
        let [one, other] = [0, 1].map(|index| {
            assert_eq!(size_of_val(pages.page(index)), rustix::param::page_size());
            crate::sys::MappedFile::at(pages.page(index).as_ptr().addr()).unwrap()
        });
        assert_ne!(one, other);
    }

    #[test]
    fn published_words_can_be_read_and_never_be_made_writable() {
        let published = PublishedPage::new().unwrap();
        published.writable()[0].store(9, SeqCst);
        assert_eq!(published.readable()[0].load(SeqCst), 9);
        let error = make_writable(published.readable()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_forked_process_inherits_no_mapping_that_is_kept_from_it() {
        let pages = two_pages();
        pages.share_with_children(0).unwrap();
        pages.hide_from_children(0).unwrap();
        pages.share_with_children(1).unwrap();
        let published = PublishedPage::new().unwrap();
        published.writable()[0].store(9, SeqCst);
        let status = in_child(|| {
            let is_mapped = |words: AtomicWords| {
                let mut resident = [0_u8; 1];
                let start = words.as_ptr().cast_mut().cast();
                // SAFETY: it writes one byte for the one page that it is asked about.
                unsafe { libc::mincore(start, 1, resident.as_mut_ptr()) == 0 }
            };
            // The absent pages come first: a later mapping may get the address of one of them.
            let wrong = [
                is_mapped(pages.page(0)),
                is_mapped(published.writable()),
                published.readable()[0].load(SeqCst) != 9,
                pages.page(1)[0].swap(1, SeqCst) != 0,
            ];
            wrong.iter().rposition(|&wrong| wrong).map_or(0, |index| index as i32 + 1)
        });
        assert_eq!(status, 0);
        assert_eq!(pages.page(1)[0].load(SeqCst), 1);
    }
}
