//! Whether this is the process that began to serve, and not one that user code has forked from it.

use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64};

use rustix::io::write;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::getpid;
use rustix::stdio::stderr;

/// A word of a page that the kernel fills with zeros in each forked process, whichever system call forks it. So
/// the check costs no system call. Null outside of workers, and on kernels before 4.14.
#[unsafe(link_section = "taskfork_worker")]
static MARK: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The page. Null outside of servers and their workers.
#[unsafe(link_section = "taskfork_worker")]
static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The worker's process id, or 0 outside of workers.
#[unsafe(link_section = "taskfork_worker")]
static WORKER: AtomicI32 = AtomicI32::new(0);

/// The exit status of a process that user code has forked and that returns to the worker's loop: `EX_SOFTWARE`.
pub(crate) const STRAY_CHILD_STATUS: i32 = 70;

const SAID: &[u8] =
    b"taskfork: a process that user code has forked came back from that code. It is no worker, \
answers nothing, and ends here. End such a process with _exit.\n";

/// Maps the page of the mark. Processes that are forked later have it, filled with zeros, so a worker need not
/// map one of its own.
pub(crate) fn map_worker_mark() {
    if !PAGE.load(Relaxed).is_null() {
        return;
    }
    let bytes = rustix::param::page_size();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: the kernel chooses a free range of addresses, so no other mapping changes.
    let Ok(page) = (unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) }) else {
        return;
    };
    // SAFETY: the range is the mapping above. The advice changes nothing in this process, and zeros are a valid
    // word.
    if unsafe { madvise(page, bytes, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: this function made the mapping, and no pointer to it has left the function.
        let _ = unsafe { munmap(page, bytes) };
        return;
    }
    PAGE.store(page.cast(), Relaxed);
}

/// Records this process as the worker.
#[taskfork_macros::startup_code]
pub(crate) fn remember_worker_process() {
    WORKER.store(getpid().as_raw_nonzero().get(), Relaxed);
    let page = PAGE.load(Relaxed);
    // SAFETY: the pointer is null, or points to the start of a page that is never unmapped, where a word is aligned.
    if let Some(word) = unsafe { page.as_ref() } {
        word.store(1, Relaxed);
    }
    MARK.store(page, Relaxed);
}

/// Whether a worker has forked this process. It is safe in a signal handler.
pub(crate) fn is_forked() -> bool {
    // SAFETY: the pointer is null, or points to a page that is never unmapped.
    match unsafe { MARK.load(Relaxed).as_ref() } {
        Some(word) => word.load(Relaxed) == 0,
        None => is_other_process(),
    }
}

#[cold]
fn is_other_process() -> bool {
    let worker = WORKER.load(Relaxed);
    worker != 0 && worker != getpid().as_raw_nonzero().get()
}

/// Ends this process if a worker has forked it. It must not use the connections that it shares with the worker.
#[taskfork_macros::startup_code]
pub(crate) fn exit_if_forked() {
    if is_forked() {
        exit_forked_child();
    }
}

/// Writes a message and exits. It takes no lock, because another thread of the worker may have held it at the
/// fork.
#[cold]
pub(crate) fn exit_forked_child() -> ! {
    let _ = write(stderr(), SAID);
    super::exit_now(STRAY_CHILD_STATUS)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::sys::test_support::{in_child, wait_for};

    #[test]
    fn an_ordinary_process_is_not_a_child_of_a_worker() {
        assert!(!is_forked());
    }

    #[test]
    fn a_child_is_recognized_with_a_wiped_page_and_without() {
        let is_recognized = |has_page: bool| {
            map_worker_mark();
            let status = in_child(|| {
                remember_worker_process();
                let is_mapped = !MARK.load(Relaxed).is_null();
                if !has_page {
                    MARK.store(null_mut(), Relaxed);
                }
                let was_forked = is_forked();
                // `in_child` would call glibc's `fork`; `clone` alone must be recognized as well.
                // SAFETY: the child only makes system calls and exits.
                let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
                if child == 0 {
                    // SAFETY: it ends this process.
                    unsafe { libc::_exit(i32::from(is_forked())) }
                }
                i32::from(wait_for(child as i32) == 1 && is_mapped && !was_forked)
            });
            status == 1
        };
        assert!(is_recognized(true));
        assert!(is_recognized(false));
    }
}
