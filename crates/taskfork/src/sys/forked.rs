//! Whether this is the process that began to serve, and not one that user code has forked from it.

use std::ptr::null_mut;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64};

use rustix::io::write;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::process::getpid;
use rustix::stdio::stderr;

/// Of a page that the kernel fills with zeros in each process that is forked from this one, whichever system call does
/// that. So a look at it costs no system call. There is none in a process that is no worker, and where the kernel is
/// older than 4.14.
#[unsafe(link_section = "taskfork_worker")]
static MARK: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
/// The worker's process id; 0 in a process that is no worker.
#[unsafe(link_section = "taskfork_worker")]
static WORKER: AtomicI32 = AtomicI32::new(0);

/// With which a process ends that user code has forked and that came back from there, as `EX_SOFTWARE` of sysexits.
pub(crate) const STRAY_CHILD_STATUS: i32 = 70;

const SAID: &[u8] =
    b"taskfork: a process that user code has forked came back from that code. It is no worker, \
answers nothing, and ends here. End such a process with _exit.\n";

/// Remembers this process as the worker.
pub(crate) fn remember_worker_process() {
    WORKER.store(getpid().as_raw_nonzero().get(), Relaxed);
    // A worker may run a server itself: then it is that of the worker from which this one descends.
    MARK.store(null_mut(), Relaxed);
    let bytes = rustix::param::page_size();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an address of the kernel's choice cannot overlap any other mapping.
    let Ok(page) = (unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) }) else {
        return;
    };
    // SAFETY: it changes nothing for this process; a child finds zeros, of which a word may consist.
    if unsafe { madvise(page, bytes, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: nobody has been told of it.
        let _ = unsafe { munmap(page, bytes) };
        return;
    }
    let word = page.cast::<AtomicU64>();
    // SAFETY: the page is there, at an address that suits a word, and is never unmapped from here on.
    unsafe { &*word }.store(1, Relaxed);
    MARK.store(word, Relaxed);
}

/// Whether a worker has forked this process. It is safe in a signal handler.
pub(crate) fn is_forked() -> bool {
    // SAFETY: what was stored, if anything was, is mapped for as long as the process lives.
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

/// Ends this process if a worker has forked it: it shares with the worker all that this could be seen by.
pub(crate) fn exit_if_forked() {
    if is_forked() {
        exit_forked_child();
    }
}

/// Says so and ends, with nothing that another thread of the worker may have held when it forked.
#[cold]
pub(crate) fn exit_forked_child() -> ! {
    let _ = write(stderr(), SAID);
    super::exit_now(STRAY_CHILD_STATUS)
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;
    use crate::sys::test_support::{in_child, wait_for};

    #[test]
    fn an_ordinary_process_is_not_a_child_of_a_worker() {
        assert!(!is_forked());
    }

    #[test]
    fn a_child_is_recognized_with_a_wiped_page_and_without() {
        let is_recognized = |has_page: bool| {
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
