//! The databases of users and groups.

use std::ffi::CString;
use std::io;

use nix::unistd::{Group, Uid, User};

/// A user's entry in the user database, with all of its groups.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
    pub(crate) groups: Vec<u32>,
}

/// Looks up a user by name or id. Returns `None` if there is no entry.
pub(crate) fn account_of(user: &str) -> io::Result<Option<Account>> {
    let found = match user.parse() {
        Ok(id) => User::from_uid(Uid::from_raw(id))?,
        Err(_) => User::from_name(user)?,
    };
    let Some(found) = found else { return Ok(None) };
    let groups = nix::unistd::getgrouplist(&CString::new(found.name)?, found.gid)?;
    let groups = groups.into_iter().map(|group| group.as_raw()).collect();
    Ok(Some(Account { user: found.uid.as_raw(), group: found.gid.as_raw(), groups }))
}

/// Returns the supplementary groups of this process.
pub(crate) fn groups_of_this_process() -> io::Result<Vec<u32>> {
    Ok(nix::unistd::getgroups()?.into_iter().map(|group| group.as_raw()).collect())
}

/// Looks up the id of a user by name.
pub(crate) fn user_id_of(name: &str) -> io::Result<Option<u32>> {
    Ok(User::from_name(name)?.map(|user| user.uid.as_raw()))
}

/// Looks up the id of a group by name.
pub(crate) fn group_id_of(name: &str) -> io::Result<Option<u32>> {
    Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
}
