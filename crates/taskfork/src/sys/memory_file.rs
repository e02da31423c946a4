//! New memory as a file, which other processes can map.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, getrlimit};

/// A file of so many zeros that can be sealed. Beyond the limit of file sizes it is an error, as the kernel would
/// send SIGXFSZ, which ends a process by default.
pub(super) fn memory_file(name: &str, length: usize) -> io::Result<OwnedFd> {
    let length = length as u64;
    if let Some(most) = getrlimit(Resource::Fsize).current.filter(|most| length > *most) {
        let what = format!(
            "the limit of file sizes (RLIMIT_FSIZE, `ulimit -f`) is {most} bytes, and {length} are needed"
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    let file = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, length)?;
    Ok(file)
}
