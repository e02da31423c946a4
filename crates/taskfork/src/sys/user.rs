//! Users and groups: whose a process or a file is, and whether an id stands for one of them alone.

use std::os::fd::AsFd;
use std::sync::OnceLock;

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

/// The user of this process, if the peer of this unix socket had the same one when it connected.
///
/// See [`sole_user`] and [`is_unique_user`] for the processes that this excludes.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn common_user(socket: &impl AsFd) -> Option<User> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    sole_user().filter(|user| user.0 == peer.uid.as_raw() && is_unique_user(user.0))
}

/// The user of this process, if its real, effective and saved user are the same.
///
/// A process with another saved user can become that user again. A process with another real user
/// can be traced by that user.
pub(crate) fn sole_user() -> Option<User> {
    let (mut real, mut effective, mut saved) = (0, 0, 0);
    // SAFETY: the pointers are to three local variables of the type that the function writes.
    let done = unsafe { libc::getresuid(&mut real, &mut effective, &mut saved) };
    (done == 0 && real == effective && effective == saved).then_some(User(effective))
}

/// Whether the id stands for one user alone.
///
/// In a user namespace that does not map every id, the kernel shows the owners of all other ids as the
/// overflow id, `/proc/sys/kernel/overflowuid`. Two processes with that id can have different users.
pub(crate) fn is_unique_user(id: u32) -> bool {
    let maps_every_user = || match MAPS_EVERY_USER.get() {
        Some(&known) => known,
        None => maps_every_id("/proc/self/uid_map"),
    };
    id != overflow_user() || maps_every_user()
}

/// Whether every user has an id here, if a worker has recorded that.
static MAPS_EVERY_USER: OnceLock<bool> = OnceLock::new();

/// Records whether this process's own id stands for one user alone, before a sandbox forbids to open the
/// map of ids.
pub(crate) fn record_user_map() {
    if rustix::process::geteuid().as_raw() == overflow_user() {
        MAPS_EVERY_USER.get_or_init(|| maps_every_id("/proc/self/uid_map"));
    }
}

fn overflow_user() -> u32 {
    static OVERFLOW: OnceLock<u32> = OnceLock::new();
    *OVERFLOW.get_or_init(|| overflow_id("/proc/sys/kernel/overflowuid"))
}

/// Whether the id stands for one group alone. See [`is_unique_user`].
pub(crate) fn is_unique_group(id: u32) -> bool {
    static OVERFLOW: OnceLock<u32> = OnceLock::new();
    let overflow = *OVERFLOW.get_or_init(|| overflow_id("/proc/sys/kernel/overflowgid"));
    id != overflow || maps_every_id("/proc/self/gid_map")
}

fn overflow_id(file: &str) -> u32 {
    /// The kernel's default.
    const DEFAULT: u32 = 65_534;
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT)
}

fn maps_every_id(file: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|map| counts_every_id(&map))
}

/// Whether the ranges of an id map contain all ids. Each line has the first id inside of the namespace, the
/// first one outside, and their number. The last id, -1, means "no id" and is never mapped.
fn counts_every_id(map: &str) -> bool {
    let count = |line: &str| line.split_whitespace().nth(2)?.parse::<u64>().ok();
    map.lines().filter_map(count).sum::<u64>() >= u64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_map_of_all_ids_leaves_the_overflow_id_to_one_user() {
        assert!(counts_every_id("         0          0 4294967295\n"));
        assert!(counts_every_id("0 0 65534\n65534 65534 4294901761\n"));
        for map in ["", "0 1000 1\n", "0 1000 1\n1 100000 65536\n", "65534 0 1\n", "garbage"] {
            assert!(!counts_every_id(map), "{map}");
        }
    }

    #[test]
    fn every_other_id_stands_for_one_user() {
        assert!(is_unique_user(0) && is_unique_user(1000) && is_unique_group(0));
        assert_eq!(overflow_id("/nonexistent"), 65_534);
    }
}
