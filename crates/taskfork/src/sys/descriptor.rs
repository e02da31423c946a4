//! Descriptors by number: those that came with the process, and many at once.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::libc;

/// Takes over the descriptor with this number, which the process inherited open.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the borrow ends with this statement; a number that is not open answers EBADF.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, and the user who wrote its number into an address gave it away.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes all of these, neighbours with one system call.
pub(crate) fn close_all(descriptors: impl IntoIterator<Item = OwnedFd>) {
    let mut numbers: Vec<RawFd> = descriptors.into_iter().map(OwnedFd::into_raw_fd).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|left, right| left + 1 == *right) {
        let (first, last) = (run[0].unsigned_abs(), run[run.len() - 1].unsigned_abs());
        // SAFETY: every descriptor from the first to the last was owned by the caller, who gave it
        // away, so that nobody else's is closed.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed != 0 {
            // A kernel before 5.9 has no such call.
            // SAFETY: they are open and owned by nobody else, as above.
            run.iter().for_each(|&number| drop(unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
}
