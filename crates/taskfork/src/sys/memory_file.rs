//! New memory as a file, which other processes can map.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, getrlimit};

/// Makes a file with these parts as its content.
///
/// # Errors
/// As for [`memory_file`].
#[cfg(feature = "server")]
pub(crate) fn memory_with(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file =
        std::fs::File::from(memory_file(name, parts.iter().map(|part| part.len()).sum())?);
    for part in parts {
        io::Write::write_all(&mut file, part)?;
    }
    Ok(file.into())
}

/// Makes a file of `length` zeros that can be sealed.
///
/// # Errors
/// If the length exceeds the limit of file sizes: the kernel would send SIGXFSZ, which ends a process by default. If
/// the system has no descriptor left.
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
