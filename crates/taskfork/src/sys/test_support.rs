//! What the tests of this directory share.

use rustix::fs::{SealFlags, fcntl_add_seals};

use super::memory_file::memory_file;

/// Forks, runs `run` in the child, and returns the status that the child exits with.
pub(super) fn in_child(run: impl FnOnce() -> i32) -> i32 {
    // SAFETY: `run` only makes system calls and accesses memory of its test.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = run();
        // SAFETY: the function accesses no memory and does not return.
        unsafe { libc::_exit(status) }
    }
    wait_for(child)
}

/// Waits until a child of this process exits, and returns its status.
pub(super) fn wait_for(child: i32) -> i32 {
    let mut status = -1;
    // SAFETY: the kernel writes one `int`, to a local variable.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    libc::WEXITSTATUS(status)
}

/// Asserts that `is_refused` holds for a memory file of 4096 bytes that lacks any one of `seals`.
pub(super) fn assert_refuses_missing_seals(
    seals: SealFlags,
    is_refused: impl Fn(&std::os::fd::OwnedFd) -> bool,
) {
    for missing in seals.iter() {
        let file = memory_file("test", 4096).unwrap();
        fcntl_add_seals(&file, seals.difference(missing)).unwrap();
        assert!(is_refused(&file), "{missing:?}");
    }
}
