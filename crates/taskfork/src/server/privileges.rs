//! What workers may do: their user and groups, whether they can gain privileges, their environment, the
//! permissions of the files that they create, and whether they leave core files.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;

use rustix::fs::Mode;
use rustix::process::{
    Gid, Pid, Resource, Rlimit, Signal, Uid, getegid, getrlimit, set_parent_process_death_signal,
    setrlimit, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::access::id;
use super::environment;
use super::error::ServerError;
use super::limits::{Limit, WorkerLimits};
use super::probe::{Failed, probe};
use super::process::is_child_of;
use crate::sys::{self, ThreadCount};

/// The limit of core files, in bytes, with which there are none. The kernel ignores a limit of 0 if it
/// pipes core files to a program, and takes 1 for "none" in both cases.
const NO_CORE: u64 = 1;

/// The options, before names are looked up.
#[derive(Debug)]
pub(crate) struct Privileges {
    pub(super) user: Option<String>,
    pub(super) group: Option<String>,
    pub(super) groups: Option<Vec<String>>,
    /// The variables that workers keep. `None` if they keep all.
    pub(super) kept_variables: Option<Vec<OsString>>,
    pub(super) umask: Option<u32>,
    pub(super) no_new_privs: bool,
}

impl Default for Privileges {
    fn default() -> Self {
        Self {
            user: None,
            group: None,
            groups: None,
            kept_variables: None,
            umask: None,
            no_new_privs: true,
        }
    }
}

/// The user and the groups that workers take on. `None` leaves what the server has.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    user: Option<Uid>,
    group: Option<Gid>,
    groups: Option<Vec<Gid>>,
}

impl Privileges {
    /// Resolves the names of the user and the groups to ids, and checks the other values.
    pub(crate) fn identity(&self) -> Result<Identity, ServerError> {
        if let Some(mask) = self.umask.filter(|mask| mask & !0o777 != 0) {
            let reason = format!("{mask:o} has bits beyond the permissions, 777");
            return Err(ServerError::option("umask", reason));
        }
        let mut identity = Identity::default();
        if let Some(user) = &self.user {
            let account = sys::account_of(user).map_err(|source| {
                let reason = format!("the user `{user}` cannot be looked up: {source}");
                ServerError::Option { option: "user", reason, source: Some(source) }
            })?;
            identity = match account {
                Some(account) => Identity {
                    user: Some(Uid::from_raw(account.user)),
                    group: Some(Gid::from_raw(account.group)),
                    groups: Some(account.groups.into_iter().map(Gid::from_raw).collect()),
                },
                None => Identity {
                    user: Some(Uid::from_raw(self.unknown_user(user)?)),
                    group: None,
                    groups: Some(Vec::new()),
                },
            };
        }
        let group =
            |option, name: &String| id(option, "group", name, sys::group_id_of).map(Gid::from_raw);
        if let Some(name) = &self.group {
            identity.group = Some(group("group", name)?);
        }
        if let Some(names) = &self.groups {
            let groups = names.iter().map(|name| group("groups", name));
            identity.groups = Some(groups.collect::<Result<_, _>>()?);
        }
        Ok(identity)
    }

    /// The id of a user without an entry in the user database.
    fn unknown_user(&self, user: &str) -> Result<u32, ServerError> {
        let Ok(id) = user.parse() else {
            return Err(ServerError::option("user", format!("there is no user `{user}`")));
        };
        if self.group.is_none() {
            let reason = format!(
                "the user {id} is in no database, so its group is unknown: set `group` as well"
            );
            return Err(ServerError::option("user", reason));
        }
        Ok(id)
    }

    /// The variables of this process that workers do not keep. `refused` are removed in
    /// any case.
    fn removed_variables(&self, refused: &[&str]) -> Vec<OsString> {
        let Some(kept) = &self.kept_variables else {
            return refused.iter().map(Into::into).collect();
        };
        let is_removed = |name: &OsString| {
            // The guardian finds processes of a killed server by that variable.
            let is_kept = kept.contains(name) || name == environment::SERVER_ID;
            !is_kept || refused.iter().any(|refused| name == refused)
        };
        std::env::vars_os().map(|(name, _)| name).filter(is_removed).collect()
    }
}

/// A step in which a worker gives up privileges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    NoNewPrivs,
    Groups,
    Group,
    User,
    Capabilities,
}

impl Step {
    const ALL: [Self; 5] =
        [Self::NoNewPrivs, Self::Groups, Self::Group, Self::User, Self::Capabilities];
}

/// What each new worker does to itself. It is made once, when the server starts.
#[derive(Debug)]
pub(crate) struct WorkerPrivileges {
    identity: Identity,
    no_new_privs: bool,
    no_core: bool,
    umask: Option<Mode>,
    removed_variables: Vec<OsString>,
}

impl WorkerPrivileges {
    /// Resolves names, and checks whether the system lets a worker do this. `refused` are the variables
    /// that no worker gets.
    pub(crate) fn new(
        options: &Privileges,
        limits: &WorkerLimits,
        refused: &[&str],
        threads: &ThreadCount,
    ) -> Result<Self, ServerError> {
        let identity = options.identity()?.without_present();
        // An ordinary user cannot raise a hard limit of 0.
        let may_set_none = getrlimit(Resource::Core).maximum.is_none_or(|most| most >= NO_CORE);
        let own = Self {
            identity,
            no_new_privs: options.no_new_privs,
            no_core: !limits.has(Limit::CoreSize) && may_set_none,
            umask: options.umask.map(Mode::from_raw_mode),
            removed_variables: options.removed_variables(refused),
        };
        own.probe(threads)?;
        Ok(own)
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Checks whether the system lets a worker take on its user, and lets the server kill it after that.
    fn probe(&self, threads: &ThreadCount) -> Result<(), ServerError> {
        if self.identity == Identity::default() {
            return Ok(());
        }
        let attempt = || self.drop_privileges().map_err(|(step, error)| (step as usize, error));
        let probed = probe(threads, "cannot try out the user of workers", attempt)?;
        match probed.failed {
            Some(failed) => Err(self.explain(failed)),
            None if !probed.may_kill => {
                let reason = "the server could not kill workers of another user: it needs CAP_KILL";
                Err(ServerError::option("user", reason))
            }
            None => Ok(()),
        }
    }

    fn explain(&self, (step, source): Failed) -> ServerError {
        let (option, what) = match Step::ALL.get(step) {
            Some(Step::NoNewPrivs) => ("no_new_privs", "set no_new_privs".to_owned()),
            Some(Step::Groups) => {
                let option = if self.identity.user.is_some() { "user" } else { "groups" };
                (option, "change its supplementary groups".to_owned())
            }
            Some(Step::Group) => {
                let group = self.identity.group.map_or(0, Gid::as_raw);
                ("group", format!("take on the group {group}"))
            }
            Some(Step::User) => {
                let user = self.identity.user.map_or(0, Uid::as_raw);
                ("user", format!("become the user {user}"))
            }
            Some(Step::Capabilities) | None => ("user", "drop its capabilities".to_owned()),
        };
        let reason = format!(
            "a worker may not {what} ({source}): start the server as root, or with CAP_SETUID, CAP_SETGID and CAP_KILL"
        );
        ServerError::Option { option, reason, source: Some(source) }
    }
}

#[taskfork_macros::startup_code]
impl WorkerPrivileges {
    /// Applies everything in a new worker, whose server is `server`.
    #[inline]
    pub(crate) fn apply(&self, server: Pid) -> io::Result<()> {
        if let Some(mask) = self.umask {
            umask(mask);
        }
        if self.no_core {
            let none = Rlimit { current: Some(NO_CORE), maximum: Some(NO_CORE) };
            setrlimit(Resource::Core, none)?;
        }
        sys::remove_variables(&self.removed_variables)?;
        self.give_up()?;
        if self.identity != Identity::default() {
            // The kernel drops the request when a process changes its user or group.
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if !is_child_of(server) {
                sys::exit_now(1);
            }
        }
        Ok(())
    }

    /// Takes on the user and the groups, and drops capabilities.
    #[inline]
    pub(crate) fn give_up(&self) -> io::Result<()> {
        self.drop_privileges().map_err(|(_, error)| error)
    }

    #[inline]
    fn drop_privileges(&self) -> Result<(), (Step, io::Error)> {
        fn at(step: Step) -> impl FnOnce(rustix::io::Errno) -> (Step, io::Error) {
            move |errno| (step, errno.into())
        }
        if self.no_new_privs {
            set_no_new_privs(true).map_err(at(Step::NoNewPrivs))?;
        }
        let Identity { user, group, groups } = &self.identity;
        // The system calls concern one thread, and a new worker has only one. Groups come first, because
        // the new user may not change them.
        if let Some(groups) = groups {
            set_thread_groups(groups).map_err(at(Step::Groups))?;
        }
        if let Some(group) = *group {
            set_thread_res_gid(group, group, group).map_err(at(Step::Group))?;
        }
        if let Some(user) = *user {
            empty_bounding_set();
            set_thread_res_uid(user, user, user).map_err(at(Step::User))?;
            drop_capabilities().map_err(at(Step::Capabilities))?;
        }
        Ok(())
    }
}

impl Identity {
    /// The user and the group, where they are not the server's.
    pub(crate) fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        (self.user, self.group)
    }

    /// Leaves out groups that this process has already, so that an ordinary user may name itself. Whether
    /// the primary group is listed makes no difference to what a process may do.
    fn without_present(mut self) -> Self {
        let own = getegid();
        let Some(wanted) = &self.groups else { return self };
        let Ok(present) = sys::groups_of_this_process() else { return self };
        let wanted: BTreeSet<u32> =
            wanted.iter().chain([&self.group.unwrap_or(own)]).map(|group| group.as_raw()).collect();
        let present: BTreeSet<u32> = present.into_iter().chain([own.as_raw()]).collect();
        if wanted == present {
            self.groups = None;
        }
        self
    }
}

/// Keeps programs that the worker executes from gaining capabilities. Without CAP_SETPCAP this changes
/// nothing, and then `no_new_privs` does the same.
fn empty_bounding_set() {
    for number in 0..u64::BITS {
        // The first error is at the number that the kernel does not know, or for lack of CAP_SETPCAP.
        let one = CapabilitySet::from_bits_retain(1 << number);
        if remove_capability_from_bounding_set(one).is_err() {
            return;
        }
    }
}

/// Drops all capabilities. For root they do not go with a change of the user.
fn drop_capabilities() -> rustix::io::Result<()> {
    let none = CapabilitySet::empty();
    clear_ambient_capability_set()?;
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_user(user: &str) -> Privileges {
        Privileges { user: Some(user.to_owned()), ..Privileges::default() }
    }

    #[test]
    fn a_user_brings_its_groups() {
        let root = of_user("root").identity().unwrap();
        assert_eq!(root, of_user("0").identity().unwrap());
        assert_eq!((root.user, root.group), (Some(Uid::ROOT), Some(Gid::ROOT)));
        assert!(root.groups.is_some_and(|groups| groups.contains(&Gid::ROOT)));
        let with = Privileges {
            group: Some("4242".to_owned()),
            groups: Some(vec!["7".to_owned(), "root".to_owned()]),
            ..of_user("root")
        };
        let groups = [7, 0].map(Gid::from_raw).to_vec();
        let identity = with.identity().unwrap();
        assert_eq!(identity.group, Some(Gid::from_raw(4242)));
        assert_eq!(identity.groups, Some(groups));
    }

    #[test]
    fn a_user_without_an_entry_needs_a_group() {
        let error = of_user("3999999999").identity().unwrap_err().to_string();
        assert!(error.contains("`user`") && error.contains("set `group` as well"), "{error}");
        let with = Privileges { group: Some("5".to_owned()), ..of_user("3999999999") };
        assert_eq!(with.identity().unwrap().groups, Some(Vec::new()));
    }

    #[test]
    fn names_that_do_not_exist_are_named() {
        let error = of_user("nobody-of-that-name").identity().unwrap_err().to_string();
        assert!(error.contains("there is no user `nobody-of-that-name`"), "{error}");
        let with = Privileges { groups: Some(vec!["no-such-group".to_owned()]), ..of_user("root") };
        let error = with.identity().unwrap_err().to_string();
        assert!(error.contains("`groups`") && error.contains("`no-such-group`"), "{error}");
    }

    #[test]
    fn a_mask_has_permission_bits_only() {
        let mask = |umask| Privileges { umask: Some(umask), ..Privileges::default() }.identity();
        mask(0o777).unwrap();
        assert!(mask(0o1000).unwrap_err().to_string().contains("`umask`"));
    }

    #[test]
    fn the_mark_of_the_server_is_kept_and_what_no_worker_gets_is_removed() {
        let all = Privileges::default();
        assert_eq!(all.removed_variables(&["NOTIFY_SOCKET"]), ["NOTIFY_SOCKET"]);
        let some = Privileges {
            kept_variables: Some(vec!["PATH".into(), "HOME".into()]),
            ..Privileges::default()
        };
        let removed = some.removed_variables(&["HOME"]);
        for (name, _) in std::env::vars_os() {
            let is_kept = name == "PATH" || name == environment::SERVER_ID;
            assert_eq!(removed.contains(&name), !is_kept, "{name:?}");
        }
    }
}
