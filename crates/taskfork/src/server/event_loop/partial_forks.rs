//! Forks of workers that do not copy the server's descriptors of all other workers.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys::{self, ForkError, Forked, PartialFork, ThreadCount};

/// From this number of workers on, the server moves its descriptors of each new worker to high numbers. A new worker
/// closes these at once.
const MANY_WORKERS: usize = 64;

/// From this number of workers on, copying and closing their descriptors takes about as long as the process in between
/// of a partial fork.
const TOO_MANY_TO_COPY: usize = 500;

/// Where the server has its descriptors of workers, and how it forks.
#[derive(Debug, Default)]
pub(super) enum PartialForks {
    #[default]
    NotTried,
    Unavailable,
    Available(PartialFork),
}

impl PartialForks {
    /// Prepares partial forks if there are many workers, once.
    pub(super) fn prepare(&mut self, workers: usize, threads: &ThreadCount) {
        if workers >= MANY_WORKERS && matches!(self, Self::NotTried) {
            let prepared = PartialFork::prepare(threads);
            *self = prepared.map_or(Self::Unavailable, Self::Available);
        }
    }

    /// Moves a descriptor of a worker to a high number. If that fails, it keeps its number.
    pub(super) fn move_up(&self, descriptor: &mut OwnedFd) {
        if let Self::Available(fork) = self
            && let Ok(moved) = rustix::io::fcntl_dupfd_cloexec(&*descriptor, fork.limit())
        {
            *descriptor = moved;
        }
    }

    /// Whether this descriptor has a low number, so that each fork copies it.
    pub(super) fn is_low(&self, descriptor: BorrowedFd<'_>) -> bool {
        match self {
            Self::Available(fork) => descriptor.as_raw_fd() < fork.limit(),
            Self::NotTried | Self::Unavailable => true,
        }
    }

    /// Whether a new process can do without all descriptors with high numbers, if it needs these.
    pub(super) fn needs_only_low(&self, mut needed: impl Iterator<Item = RawFd>) -> bool {
        match self {
            Self::Available(fork) => needed.all(|number| number < fork.limit()),
            Self::NotTried | Self::Unavailable => false,
        }
    }

    /// Forks this process. The fork is partial if that is faster with this number of `workers`, and if the new process
    /// [`needs_only_low`](Self::needs_only_low) descriptors.
    ///
    /// # Safety
    /// As for [`sys::fork`]. In addition, a new process that needs only low descriptors must not use or drop a value
    /// that owns a descriptor with a high number.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    #[inline]
    pub(super) unsafe fn fork(
        &self,
        threads: &ThreadCount,
        workers: usize,
        needs_only_low: bool,
    ) -> Result<Forked, ForkError> {
        if let Self::Available(fork) = self
            && needs_only_low
            && workers >= TOO_MANY_TO_COPY
        {
            // SAFETY: the caller has promised what that needs.
            let forked = unsafe { fork.fork(threads) }?;
            if let Some(forked) = forked {
                return Ok(forked);
            }
        }
        // SAFETY: as above.
        unsafe { sys::fork(threads) }
    }

    /// In a new worker that needs only low descriptors: closes those with high numbers.
    ///
    /// # Safety
    /// After the call, this process must neither use nor drop a value that owns one of these descriptors.
    #[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
    pub(super) unsafe fn close_high(&self) {
        if let Self::Available(fork) = self {
            // SAFETY: the caller has promised what that needs.
            unsafe { fork.close_from_limit() };
        }
    }
}
