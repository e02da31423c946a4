//! The options of privileges: the user and groups of workers, their environment, and what they may
//! gain.

use std::ffi::OsStr;

use super::ServerBuilder;

impl<S> ServerBuilder<S> {
    /// Sets the user of workers, by name or number. Defaults to the server's user.
    ///
    /// A worker also takes on the primary group and the supplementary groups that the user has in the
    /// user database, unless [`group`](Self::group) and [`groups`](Self::groups) set others. It drops
    /// all capabilities, also if the user is root. A user without an entry in the database needs
    /// `group`, and has no supplementary groups.
    ///
    /// A worker does this after its limits and before [`setup`](Self::setup). What needs the server's
    /// privileges belongs in [`preload`](ServerBuilder::preload). The limits of resources of
    /// [`limit`](Self::limit) may need them, and come first. The programs that workers are or start
    /// have the same user.
    ///
    /// Clients of another user than the workers' share no memory with them, see
    /// [`shared_memory`](Self::shared_memory). The server looks names up once, when it starts.
    /// [`run`](crate::Server::run) fails if there is no such user, if this process may not become that
    /// user, or if it may not kill that user's processes.
    ///
    /// ```
    /// let server = taskfork::Server::builder().user("www-data");
    /// # let _ = server;
    /// ```
    pub fn user(mut self, user: impl ToString) -> Self {
        self.options.privileges.user = Some(user.to_string());
        self
    }

    /// Sets the primary group of workers, by name or number. Defaults to that of
    /// [`user`](Self::user), or to the server's.
    ///
    /// An unknown group, and a group that this process may not take on, are errors of
    /// [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().user(4242).group(4242);
    /// # let _ = server;
    /// ```
    pub fn group(mut self, group: impl ToString) -> Self {
        self.options.privileges.group = Some(group.to_string());
        self
    }

    /// Sets the supplementary groups of workers, by name or number. Defaults to those of
    /// [`user`](Self::user), or to the server's. Errors are those of [`group`](Self::group).
    ///
    /// ```
    /// let server = taskfork::Server::builder().user("www-data").groups(["video"]);
    /// let none = taskfork::Server::builder().user("www-data").groups([] as [u32; 0]);
    /// # let _ = (server, none);
    /// ```
    pub fn groups(mut self, groups: impl IntoIterator<Item: ToString>) -> Self {
        let groups = groups.into_iter().map(|group| group.to_string());
        self.options.privileges.groups = Some(groups.collect());
        self
    }

    /// Clears the environment of workers, except for the variables with these names. Defaults to the
    /// server's environment.
    ///
    /// A variable `TASKFORK_SERVER_ID` stays, by which the server finds processes that a worker has
    /// started. A forked worker is a copy of its server and can still find the values in its memory:
    /// this protects them from programs that a worker executes, and from honest code.
    ///
    /// ```
    /// let server = taskfork::Server::builder().clear_env(["PATH", "LANG", "TZ"]);
    /// # let _ = server;
    /// ```
    pub fn clear_env(mut self, except: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        let except = except.into_iter().map(|name| name.as_ref().to_owned());
        self.options.privileges.kept_variables = Some(except.collect());
        self
    }

    /// Sets the mask of the permissions that files of workers do not get. Defaults to the server's. A
    /// mask with other bits than 0777 is an error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().umask(0o077);
    /// # let _ = server;
    /// ```
    pub fn umask(mut self, mask: u32) -> Self {
        self.options.privileges.umask = Some(mask);
        self
    }

    /// Sets whether programs that a worker executes are kept from gaining privileges by their set-user-ID
    /// bit or their file capabilities. Defaults to true. With true, `sudo`, and `ping` on some systems, do
    /// not work in a worker.
    ///
    /// ```
    /// let server = taskfork::Server::builder().no_new_privs(false);
    /// # let _ = server;
    /// ```
    pub fn no_new_privs(mut self, enabled: bool) -> Self {
        self.options.privileges.no_new_privs = enabled;
        self
    }
}
