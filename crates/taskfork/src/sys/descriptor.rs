//! Descriptors that came with the process.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
