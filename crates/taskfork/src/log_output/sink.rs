//! The destination of a log: standard error or a file. Writing never waits for a reader.

use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};
use rustix::io::{Errno, ReadWriteFlags, pwritev2, write};
use rustix::net::{SendFlags, send};
use rustix::process::{Resource, getrlimit};

#[derive(Debug)]
pub(super) struct Sink {
    /// The log file. `None` for standard error.
    path: Option<PathBuf>,
    file: Option<OwnedFd>,
    /// An open file description of standard error that does not block, with the identity of the
    /// file.
    nonblocking_stderr: Option<(Identity, OwnedFd)>,
}

type Identity = (u64, u64, u64);

/// How many bytes are written at a time to a terminal that cannot be opened again.
const TERMINAL_PIECE: usize = 64;

impl Sink {
    pub(super) const fn new() -> Self {
        Self { path: None, file: None, nonblocking_stderr: None }
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes to this file from now on.
    pub(super) fn open(&mut self, path: PathBuf) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND;
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        self.file = Some(open(&path, flags, Mode::from_raw_mode(0o640))?);
        self.path = Some(path);
        Ok(())
    }

    /// All open descriptors except standard error.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let stderr = self.nonblocking_stderr.as_ref().map(|(_, descriptor)| descriptor);
        self.file.iter().chain(stderr).map(AsFd::as_fd)
    }

    /// In a forked process: forgets the descriptors, which belong to the other process or are
    /// closed.
    pub(super) fn forget(&mut self) {
        std::mem::forget((self.file.take(), self.nonblocking_stderr.take()));
    }

    /// Writes as much as can be written at once. [`Errno::AGAIN`] means nothing.
    pub(super) fn write(&mut self, bytes: &[u8]) -> rustix::io::Result<usize> {
        if let Some(file) = &self.file {
            return write_to_file(file.as_fd(), &fstat(file)?, bytes);
        }
        let stderr = rustix::stdio::stderr();
        let stat = fstat(stderr)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Socket => send(stderr, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            // O_NONBLOCK belongs to the open file description, which other processes share.
            FileType::Fifo => self.write_to_reader(&stat, bytes),
            FileType::CharacterDevice if rustix::termios::isatty(stderr) => {
                self.write_to_reader(&stat, bytes)
            }
            _ => write_to_file(stderr, &stat, bytes),
        }
    }

    /// Writes to a pipe or a terminal.
    fn write_to_reader(&mut self, stat: &Stat, bytes: &[u8]) -> rustix::io::Result<usize> {
        let identity = (stat.st_dev, stat.st_ino, stat.st_rdev);
        if self.nonblocking_stderr.as_ref().is_none_or(|(of, _)| *of != identity) {
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            match open("/proc/self/fd/2", flags, Mode::empty()) {
                Ok(descriptor) => self.nonblocking_stderr = Some((identity, descriptor)),
                Err(Errno::NXIO) => return Err(Errno::PIPE),
                // It belongs to another user, or there is no `/proc`.
                Err(_) => return write_if_ready(bytes),
            }
        }
        match &self.nonblocking_stderr {
            Some((_, descriptor)) => write(descriptor, bytes),
            None => write_if_ready(bytes),
        }
    }
}

/// Writes to a pipe or a terminal whose open file description may block.
fn write_if_ready(bytes: &[u8]) -> rustix::io::Result<usize> {
    let stderr = rustix::stdio::stderr();
    match pwritev2(stderr, &[IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT) {
        // A terminal, or a kernel before 6.4.
        Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::SPIPE) => {}
        written => return written,
    }
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)];
    if poll(&mut watched, Some(&now))? == 0 {
        return Err(Errno::AGAIN);
    }
    let most = if rustix::termios::isatty(stderr) { TERMINAL_PIECE } else { bytes.len() };
    write(stderr, &bytes[..bytes.len().min(most)])
}

/// Writes to a file that never blocks. Checks the limit of file sizes first, because the kernel
/// sends a signal beyond it.
fn write_to_file(file: BorrowedFd<'_>, stat: &Stat, bytes: &[u8]) -> rustix::io::Result<usize> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && let Some(most) = getrlimit(Resource::Fsize).current
    {
        let position = rustix::fs::tell(file).unwrap_or(0);
        let end = position.max(stat.st_size.unsigned_abs());
        if end.saturating_add(bytes.len() as u64) > most {
            return Err(Errno::FBIG);
        }
    }
    write(file, bytes)
}
