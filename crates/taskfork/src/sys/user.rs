//! The user that a process runs as.

use std::os::fd::AsFd;

use nix::libc;

/// A user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User(u32);

impl User {
    /// The owner of a file.
    pub(super) fn of_file(status: &rustix::fs::Stat) -> Self {
        Self(status.st_uid)
    }

    #[cfg(test)]
    pub(super) fn other(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The effective user of this process, who owns the files that it creates.
pub(crate) fn effective_user() -> User {
    User(rustix::process::geteuid().as_raw())
}

/// The user of this process if the peer of this unix socket had the same one when it connected.
///
/// See [`sole_user`] for the processes that this excludes.
pub(crate) fn common_user(socket: &impl AsFd) -> Option<User> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    sole_user().filter(|user| user.0 == peer.uid.as_raw())
}

/// The user of this process if its real, effective and saved user are the same.
///
/// A process with another saved user can become that user again. A process with another real user
/// can be traced by that user.
pub(crate) fn sole_user() -> Option<User> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: the function writes one number to each of the three places, which are this function's own.
    let done = unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) };
    (done == 0 && real == effective && effective == saved).then_some(User(effective))
}
