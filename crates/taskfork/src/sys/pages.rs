//! Memory that a server shares with its workers: a page for each worker, and a page that all workers can read and
//! only the server can write.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::fs::{SealFlags, fcntl_add_seals, fcntl_get_seals, fstat};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};

use super::memory::MappedFile;
use super::memory_file::memory_file;

/// Words that stay mapped until the process ends. Another process may write to them at any time, so they are atomics.
pub(crate) type AtomicWords = &'static [AtomicU64];

/// How many pages one file has, if a process can seal its mapping of one of them. A fork takes longer with each
/// separate mapping, also with one that the child does not get.
const PAGES_OF_FILE: usize = 512;

/// Pages of which a forked process inherits only its own.
///
/// A process that has one page of a file could map the others (`mremap(2)`, `remap_file_pages(2)`), unless it has
/// [sealed](Self::seal) its mapping. Kernels before 6.10 cannot seal, so each page is a file of its own there.
#[derive(Debug)]
pub(crate) struct Pages {
    made: Vec<AtomicWords>,
    /// The pages of the last file that have not been made.
    unused: AtomicWords,
    can_seal: bool,
}

impl Pages {
    pub(crate) fn new() -> Self {
        Self { made: Vec::new(), unused: &[], can_seal: seal(&[]).is_ok() }
    }

    /// Makes one more page. Its index is the number of pages made before.
    pub(crate) fn add(&mut self) -> io::Result<()> {
        let bytes = rustix::param::page_size();
        if self.unused.is_empty() {
            // The limit of file sizes may allow a page and not more.
            let many = if self.can_seal { Some(map_file(PAGES_OF_FILE * bytes)) } else { None };
            self.unused = match many {
                Some(Ok(pages)) => pages,
                _ => map_file(bytes)?,
            };
        }
        let (page, unused) = self.unused.split_at(bytes / size_of::<AtomicU64>());
        self.made.push(page);
        self.unused = unused;
        Ok(())
    }

    /// In the process that has inherited this page: makes it impossible to map other pages of the file by way of
    /// this one. Only code that the process trusts may run before.
    pub(crate) fn seal(&self, index: usize) -> io::Result<()> {
        match self.can_seal {
            true => seal(self.made[index]),
            false => Ok(()),
        }
    }

    /// Returns the page with this index, as this process has it mapped.
    pub(crate) fn page(&self, index: usize) -> AtomicWords {
        self.made[index]
    }

    /// Replaces the memory of this page by a new file of its own, which is returned. A process that has the file can
    /// map it again after it has executed a program, and no other page by way of it. Other processes keep the memory that
    /// they have.
    pub(crate) fn renew(&mut self, index: usize) -> io::Result<OwnedFd> {
        let words = self.made[index];
        let bytes = size_of_val(words);
        let file = sealed_file(bytes)?;
        let (start, access) =
            (words.as_ptr().cast_mut().cast(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: the range is one page that this module has mapped, of which nobody but this module changes the mapping.
        // It stays mapped without a gap, and `words` stays valid: every bit pattern is a valid `AtomicU64`.
        unsafe { mmap(start, bytes, access, MapFlags::SHARED | MapFlags::FIXED, &file, 0) }?;
        hide_from_children(words)?;
        Ok(file)
    }

    /// Lets processes that are forked from now on inherit this page.
    pub(crate) fn share_with_children(&self, index: usize) -> io::Result<()> {
        let words = self.made[index];
        let start = words.as_ptr().cast_mut().cast();
        // SAFETY: the range is a mapping that is never removed. The advice changes nothing in this process, and a child
        // gets the same mapping of atomics.
        unsafe { madvise(start, size_of_val(words), Advice::LinuxDoFork) }?;
        Ok(())
    }

    /// Keeps this page from processes that are forked from now on.
    pub(crate) fn hide_from_children(&self, index: usize) -> io::Result<()> {
        hide_from_children(self.made[index])
    }
}

/// Words that this process writes. Processes forked from it can only read them.
#[derive(Debug)]
pub(crate) struct PublishedPage {
    /// Forked processes do not inherit this mapping.
    writable: AtomicWords,
    readable: AtomicWords,
    file: MappedFile,
    descriptor: Option<OwnedFd>,
}

impl PublishedPage {
    /// `keeps_file` says whether the file stays open, so that other processes can map it.
    pub(crate) fn new(keeps_file: bool) -> io::Result<Self> {
        let bytes = rustix::param::page_size();
        let file = memory_file("taskfork-server", bytes)?;
        let writable = map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        hide_from_children(writable)?;
        // A mapping made from here on stays read-only: `mprotect` fails too.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        let readable = map(&file, bytes, ProtFlags::READ)?;
        let mapped = MappedFile::of(&file)?;
        Ok(Self { writable, readable, file: mapped, descriptor: keeps_file.then_some(file) })
    }

    /// Returns the file, if it is open. Its seals allow to map it for reading only, and not to write to it.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Returns the file whose mapping only this process and those forked from it have.
    pub(crate) fn file(&self) -> &MappedFile {
        &self.file
    }

    /// Returns the words for the process that made them.
    pub(crate) fn writable(&self) -> AtomicWords {
        self.writable
    }

    /// Returns the words for reading, also in forked processes. To store to them raises SIGSEGV.
    pub(crate) fn readable(&self) -> AtomicWords {
        self.readable
    }
}

/// Maps the page of a worker, whose file this process has inherited ([`Pages::renew`]).
pub(crate) fn map_inherited_page(file: &OwnedFd) -> io::Result<AtomicWords> {
    map_inherited(file, ProtFlags::READ | ProtFlags::WRITE)
}

/// Maps a published page, whose file this process has inherited, for reading ([`PublishedPage::descriptor`]). To store to
/// the words raises SIGSEGV.
pub(crate) fn map_inherited_published(file: &OwnedFd) -> io::Result<AtomicWords> {
    map_inherited(file, ProtFlags::READ)
}

fn map_inherited(file: &OwnedFd, access: ProtFlags) -> io::Result<AtomicWords> {
    let bytes = rustix::param::page_size();
    let is_page = u64::try_from(fstat(file)?.st_size) == Ok(bytes as u64);
    // Without the seals, another process could make the file shorter, and an access would raise SIGBUS.
    if !is_page || !fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    map(file, bytes, access)
}

/// Maps whole pages of a file whose size is fixed, for as long as the process lives.
fn map(file: &OwnedFd, bytes: usize, access: ProtFlags) -> io::Result<AtomicWords> {
    // SAFETY: the kernel chooses a free range of addresses, so no other mapping changes.
    let start = unsafe { mmap(null_mut(), bytes, access, MapFlags::SHARED, file, 0) }?;
    // SAFETY: the mapping has `bytes` bytes, begins at a page, and is never removed. The caller passes a file of that
    // length, whose size it has sealed or seals before it shares the file. Every bit pattern is a valid `AtomicU64`, and
    // no process accesses the words otherwise than atomically. `PublishedPage::readable` documents that a read-only
    // mapping is only loaded from.
    Ok(unsafe { slice::from_raw_parts(start.cast::<AtomicU64>(), bytes / size_of::<AtomicU64>()) })
}

/// Maps a new file of this many bytes, which processes that are forked from now on do not inherit.
fn map_file(bytes: usize) -> io::Result<AtomicWords> {
    let file = sealed_file(bytes)?;
    let words = map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
    hide_from_children(words)?;
    Ok(words)
}

/// A new file of this many bytes, which keeps its length.
fn sealed_file(bytes: usize) -> io::Result<OwnedFd> {
    let file = memory_file("taskfork-slots", bytes)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Makes the kernel refuse to move, grow, copy, remap or remove a mapping, for as long as this process has it. No
/// words at all are sealed wherever the kernel has the call.
#[taskfork_macros::startup_code]
fn seal(words: AtomicWords) -> io::Result<()> {
    let bytes = size_of_val(words);
    let start = if bytes == 0 { 0 } else { words.as_ptr().addr() };
    // SAFETY: the range is empty, or a mapping that this process never changes.
    match unsafe { libc::syscall(libc::SYS_mseal, start, bytes, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps this mapping from processes that are forked from now on.
fn hide_from_children(words: AtomicWords) -> io::Result<()> {
    let start = words.as_ptr().cast_mut().cast();
    // SAFETY: the advice changes nothing in this process. A child has no memory at these addresses, and does not use
    // them: it reads published words through `readable`, and its own page was shared with it before the fork.
    unsafe { madvise(start, size_of_val(words), Advice::LinuxDontFork) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

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
        let mut pages = Pages::new();
        pages.add().unwrap();
        pages.add().unwrap();
        pages
    }

    #[test]
    fn no_page_is_in_the_file_of_another_where_mappings_cannot_be_sealed() {
        let mut pages = Pages { can_seal: false, ..Pages::new() };
        pages.add().unwrap();
        pages.add().unwrap();
        let [one, other] = [0, 1].map(|index| {
            assert_eq!(size_of_val(pages.page(index)), rustix::param::page_size());
            MappedFile::at(pages.page(index).as_ptr().addr()).unwrap()
        });
        assert_ne!(one, other);
    }

    #[test]
    fn a_sealed_page_leads_to_no_other_page() {
        let pages = two_pages();
        if !pages.can_seal {
            return;
        }
        pages.share_with_children(1).unwrap();
        let status = in_child(|| {
            let bytes = rustix::param::page_size();
            let start = pages.page(1).as_ptr().cast_mut().cast();
            let is_sealed = pages.seal(1).is_ok();
            // SAFETY: the calls fail, or the assertion below does; nothing uses the memory after them.
            let reached = unsafe {
                [
                    libc::mremap(start, 0, bytes, libc::MREMAP_MAYMOVE) != libc::MAP_FAILED,
                    libc::mremap(start, bytes, 2 * bytes, libc::MREMAP_MAYMOVE) != libc::MAP_FAILED,
                    libc::mremap(start, bytes, 2 * bytes, 0) != libc::MAP_FAILED,
                    libc::syscall(libc::SYS_remap_file_pages, start, bytes, 0, 0, 0) == 0,
                    libc::munmap(start, bytes) == 0,
                ]
            };
            i32::from(!is_sealed || reached.contains(&true))
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_renewed_page_is_a_file_that_leads_to_no_other_page() {
        let mut pages = two_pages();
        pages.page(0)[0].store(5, SeqCst);
        pages.page(1)[0].store(6, SeqCst);
        let [first, second] = [0, 1].map(|index| pages.renew(index).unwrap());
        assert_eq!([0, 1].map(|index| pages.page(index)[0].load(SeqCst)), [0, 0]);
        let again = map_inherited_page(&first).unwrap();
        assert_eq!(size_of_val(again), rustix::param::page_size());
        again[0].store(7, SeqCst);
        assert_eq!([0, 1].map(|index| pages.page(index)[0].load(SeqCst)), [7, 0]);
        let at = |words: AtomicWords| MappedFile::at(words.as_ptr().addr()).unwrap();
        assert_eq!(at(again), at(pages.page(0)));
        assert_ne!(at(again), at(pages.page(1)));
        // Whoever has the old file does not reach the new one.
        let newer = pages.renew(0).unwrap();
        again[0].store(8, SeqCst);
        assert_eq!(pages.page(0)[0].load(SeqCst), 0);
        drop((second, newer));
    }

    #[test]
    fn only_a_page_that_keeps_its_length_is_mapped() {
        let bytes = rustix::param::page_size();
        let unsealed = memory_file("test", bytes).unwrap();
        let long = sealed_file(2 * bytes).unwrap();
        let pipe = rustix::pipe::pipe().unwrap().0;
        for file in [unsealed, long, pipe] {
            assert!(map_inherited_page(&file).is_err());
            assert!(map_inherited_published(&file).is_err());
        }
    }

    #[test]
    fn the_file_of_published_words_can_only_be_read() {
        let published = PublishedPage::new(true).unwrap();
        let file = published.descriptor().unwrap().try_clone_to_owned().unwrap();
        published.writable()[0].store(9, SeqCst);
        let words = map_inherited_published(&file).unwrap();
        assert_eq!(words[0].load(SeqCst), 9);
        assert_eq!(make_writable(words).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(map_inherited_page(&file).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(rustix::io::write(&file, b"x"), Err(rustix::io::Errno::PERM));
        assert!(PublishedPage::new(false).unwrap().descriptor().is_none());
    }

    #[test]
    fn published_words_can_be_read_and_never_be_made_writable() {
        let published = PublishedPage::new(false).unwrap();
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
        let published = PublishedPage::new(false).unwrap();
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
