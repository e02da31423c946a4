//! The options of privileges: the sandbox, the user and groups of workers, their environment, and what they may
//! gain.

use std::ffi::OsStr;
use std::path::PathBuf;

use taskfork_sandbox::Sandbox;

use super::ServerBuilder;

impl<S> ServerBuilder<S> {
    /// Sets the sandbox of workers: what their code may do. Defaults to none,
    /// [`Sandbox::off`](crate::sandbox::Sandbox::off).
    ///
    /// A worker applies it after [`setup`](Self::setup), which may open a database or load a model, and
    /// before the first call. With [`before_setup`](crate::sandbox::Sandbox::before_setup) it does so
    /// before `setup`. It cannot be undone. `setup` must leave no thread running in the first case, because
    /// the kernel confines only the thread that asks for it: such a worker ends. A worker that is a
    /// [program](crate::worker::Executable) has the sandbox when it is executed.
    ///
    /// A forbidden operation is an error in the worker's code (EPERM or EACCES). With
    /// [`kill`](crate::sandbox::Sandbox::kill), a forbidden system call ends the worker, and the death names
    /// the call. The [module](crate::sandbox) says what a confined worker still has. The most important
    /// point: it is a copy of its server, and can read what the server had in its memory.
    ///
    /// [`run`](crate::Server::run) fails with [`ServerError::Sandbox`](crate::ServerError::Sandbox), which
    /// names what the kernel lacks, unless
    /// [`best_effort`](crate::sandbox::Sandbox::best_effort) is set. Then the server logs a warning.
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::sandbox::Sandbox;
    ///
    /// let sandbox = Sandbox::compute().read("/usr/share/fonts").connect_tcp(5432);
    /// let server = Server::builder().sandbox(sandbox);
    /// # let _ = server;
    /// ```
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.options.sandbox = sandbox;
        self
    }

    /// Gives each worker a private directory of at most this many bytes, which
    /// [`Context::scratch`](crate::worker::Context::scratch) returns. Defaults to none.
    ///
    /// Only the worker's [`user`](Self::user) may enter it (mode 0700). A worker with a sandbox may write
    /// there, whatever its level. Programs that are workers find it in the variables `TMPDIR` and
    /// `TASKFORK_SCRATCH`. The server removes it when the worker has ended. What is left of a server that
    /// was killed is removed by its guardian, or when a server starts.
    ///
    /// If the server may mount (CAP_SYS_ADMIN), each directory is a file system in memory of that size, in
    /// which no program can be executed. It has at most one file for each KiB. Otherwise it is an ordinary
    /// directory **without a limit of its size**: the server logs that, and
    /// [`scratch_folder`](Self::scratch_folder) can be on a file system with a quota.
    ///
    /// 0 is an error of [`run`](crate::Server::run), and so is a folder in which the server cannot make
    /// directories.
    ///
    /// ```
    /// use taskfork::worker::context;
    /// use taskfork::{Methods, Server};
    ///
    /// let server = Server::builder().scratch(64 << 20).interface(Methods::new().function(
    ///     "unpack",
    ///     |archive: Vec<u8>| {
    ///         let scratch = context().scratch().ok_or("there is no scratch directory")?;
    ///         std::fs::write(scratch.join("archive"), &archive)?;
    ///         Ok(archive.len())
    ///     },
    /// ));
    /// # let _ = server;
    /// ```
    pub fn scratch(mut self, max_bytes: u64) -> Self {
        self.options.scratch.max_bytes = Some(max_bytes);
        self
    }

    /// Sets the folder in which the server makes a folder of its own for [`scratch`](Self::scratch).
    /// Defaults to `TMPDIR`, or `/tmp`. Workers must be able to search it. Without `scratch` it is an
    /// error of [`run`](crate::Server::run).
    ///
    /// ```
    /// let server = taskfork::Server::builder().scratch(64 << 20).scratch_folder("/var/lib/app");
    /// # let _ = server;
    /// ```
    pub fn scratch_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.options.scratch.folder = Some(folder.into());
        self
    }

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
    /// [`shared_memory`](Self::shared_memory). But a client of the server's own user cannot see that workers
    /// have another: it sees the credentials of the server. If workers may run an attacker's code, set
    /// [`copy_shared_memory`](crate::client::ClientBuilder::copy_shared_memory) at such a client.
    ///
    /// A server without CAP_SYS_PTRACE cannot read the mark of processes of another user, by which it
    /// recognizes what a worker has left behind. It needs the mark if it is process 1 of a container, or
    /// has been restarted. Set [`cgroup`](Self::cgroup) there, which ends all processes of a worker.
    ///
    /// The server looks names up once, when it starts.
    /// [`run`](crate::Server::run) fails if the user does not exist, or if this process lacks the right to
    /// become that user or to kill that user's processes.
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
