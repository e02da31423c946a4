//! The description of a sandbox: a level and its openings. Plain data.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::level::Level;
use crate::prepare::{PrepareError, PreparedSandbox};

/// What a worker may do: a [`Level`] and openings.
///
/// A `Sandbox` is a description. [`prepare`](Self::prepare) makes what a process
/// [applies](PreparedSandbox::apply) to itself. The [first page](crate) has a table of what each level
/// forbids.
///
/// ```
/// use taskfork_sandbox::{Level, Sandbox};
///
/// let sandbox = Sandbox::compute().read("/usr/share/fonts").connect_tcp(5432);
/// assert_eq!(sandbox.level(), Level::Compute);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Sandbox {
    pub(crate) level: Level,
    pub(crate) read: BTreeSet<PathBuf>,
    pub(crate) write: BTreeSet<PathBuf>,
    pub(crate) execute: BTreeSet<PathBuf>,
    pub(crate) tcp_ports: BTreeSet<u16>,
    pub(crate) unix_sockets: BTreeSet<PathBuf>,
    pub(crate) accepts_connections: bool,
    pub(crate) spawns_programs: bool,
    pub(crate) is_best_effort: bool,
    pub(crate) kills: bool,
    applies_before_setup: bool,
    result_limit: Option<usize>,
}

impl Sandbox {
    fn new(level: Level) -> Self {
        Self {
            level,
            read: BTreeSet::new(),
            write: BTreeSet::new(),
            execute: BTreeSet::new(),
            tcp_ports: BTreeSet::new(),
            unix_sockets: BTreeSet::new(),
            accepts_connections: false,
            spawns_programs: false,
            is_best_effort: false,
            kills: false,
            applies_before_setup: false,
            result_limit: None,
        }
    }

    /// For code that computes a result of its arguments and needs nothing else.
    ///
    /// It opens no file outside its scratch directory, creates no socket, starts no process and no
    /// program, and reaches no other process. What it has open before the sandbox applies stays open.
    pub fn compute() -> Self {
        Self::new(Level::Compute)
    }

    /// For a process that passes on what others send: [`compute`](Self::compute), and it accepts connections from
    /// listening sockets that are open before the sandbox applies.
    ///
    /// Where it passes them on is opened by [`unix_socket`](Self::unix_socket) or [`connect_tcp`](Self::connect_tcp), and
    /// its certificates by [`read`](Self::read).
    pub fn gateway() -> Self {
        Self::new(Level::Gateway)
    }

    /// For code that works on a few files: [`compute`](Self::compute), and each of `paths` is opened as
    /// by [`write`](Self::write).
    ///
    /// `/dev/null`, `/dev/zero` and `/dev/urandom` are open too.
    pub fn files<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        let mut sandbox = Self::new(Level::Files);
        sandbox.write.extend(paths.into_iter().map(Into::into));
        sandbox
    }

    /// For code that must reach no network and no other process, but may use all files and programs
    /// that its user may.
    ///
    /// It creates no socket and signals only its own processes. Such code can still change the user's
    /// files, and so what programs outside do later.
    pub fn no_network() -> Self {
        Self::new(Level::NoNetwork)
    }

    /// No sandbox.
    ///
    /// [`prepare`](Self::prepare) of this level always succeeds, and applying it does nothing; openings
    /// have no effect.
    pub fn off() -> Self {
        Self::new(Level::Off)
    }

    /// For a program in Python: [`compute`](Self::compute), and what the interpreter needs to start.
    ///
    /// The program may read the system's libraries and its Python modules, below `/usr` and `/lib`, and
    /// may execute programs that [`execute`](Self::execute) names. Open the program's own file, and the
    /// folder of a virtual environment or of an interpreter elsewhere, with [`read`](Self::read).
    pub fn python() -> Self {
        Self::new(Level::Python)
    }

    /// For a program in JavaScript: as [`python`](Self::python), for Node.
    pub fn node() -> Self {
        Self::new(Level::Node)
    }

    /// For a program in Perl: as [`python`](Self::python), for Perl.
    pub fn perl() -> Self {
        Self::new(Level::Perl)
    }

    /// A sandbox of this level, without openings.
    pub fn of_level(level: Level) -> Self {
        Self::new(level)
    }

    /// The file may be read, or everything below the directory.
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.read.insert(path.into());
        self
    }

    /// The file may be read and written, or everything below the directory may also be created, renamed
    /// and removed.
    ///
    /// Devices and sockets cannot be created. Access rights, owners and times of files cannot be changed.
    pub fn write(mut self, path: impl Into<PathBuf>) -> Self {
        self.write.insert(path.into());
        self
    }

    /// The program may be read and executed, or every program below the directory.
    ///
    /// The new program replaces the worker's code, in the same process and under the same sandbox. Add
    /// [`spawn_programs`](Self::spawn_programs) for programs in processes of their own. The system's
    /// shared libraries and their loader are opened too. Memory may be made executable, so libraries can
    /// be loaded.
    pub fn execute(mut self, path: impl Into<PathBuf>) -> Self {
        self.execute.insert(path.into());
        self
    }

    /// TCP connections to this port may be made, at any address.
    ///
    /// Names cannot be looked up, because that needs UDP: connect to an IP address, or look the name up
    /// before the sandbox applies.
    pub fn connect_tcp(mut self, port: u16) -> Self {
        self.tcp_ports.insert(port);
        self
    }

    /// Connections to the unix socket at this path may be made.
    ///
    /// This needs Linux 7.1. With [`best_effort`](Self::best_effort), an older kernel allows connections
    /// to every path that the user may connect to, but not to abstract sockets.
    pub fn unix_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.unix_sockets.insert(path.into());
        self
    }

    /// Connections may be accepted from listening sockets that are open before the sandbox applies.
    ///
    /// This is for a process that relays connections, such as a gateway. It can make no listening socket.
    pub fn accept_connections(mut self) -> Self {
        self.accepts_connections = true;
        self
    }

    /// Processes may be started: copies of the worker, and the programs that [`execute`](Self::execute)
    /// names.
    ///
    /// They are under the same sandbox. The worker may signal them, and they may signal the worker.
    pub fn spawn_programs(mut self) -> Self {
        self.spawns_programs = true;
        self
    }

    /// Applies the sandbox before `setup` runs, instead of after it.
    ///
    /// The library that runs workers reads this; see [`applies_before_setup`](Self::applies_before_setup).
    pub fn before_setup(mut self) -> Self {
        self.applies_before_setup = true;
        self
    }

    /// Goes on if the kernel lacks something that the sandbox needs, without that part.
    ///
    /// [`PreparedSandbox::lacking`] says what is missing. Without this, [`prepare`](Self::prepare) is an
    /// error.
    pub fn best_effort(mut self) -> Self {
        self.is_best_effort = true;
        self
    }

    /// A system call that the level forbids ends the process with SIGSYS, instead of failing with EPERM.
    ///
    /// Files and ports that are not open still fail with EACCES.
    /// [`PreparedSandbox::on_violation`] takes a function that records the system call.
    pub fn kill(mut self) -> Self {
        self.kills = true;
        self
    }

    /// The longest result of a call, in bytes. There is no limit of its own unless this is set.
    ///
    /// The library that runs workers enforces it; see [`result_limit`](Self::result_limit).
    pub fn max_result(mut self, bytes: usize) -> Self {
        self.result_limit = Some(bytes);
        self
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether [`before_setup`](Self::before_setup) is set.
    pub fn applies_before_setup(&self) -> bool {
        self.applies_before_setup
    }

    /// What [`max_result`](Self::max_result) has set.
    pub fn result_limit(&self) -> Option<usize> {
        self.result_limit
    }

    /// Checks the kernel and the paths, and builds the filter of system calls.
    ///
    /// Call this once, in the process that starts workers; it changes nothing there.
    ///
    /// # Errors
    ///
    /// [`PrepareError::Lacking`] names what the kernel lacks, unless [`best_effort`](Self::best_effort)
    /// is set. [`PrepareError::Path`] names a path that cannot be opened.
    pub fn prepare(&self) -> Result<PreparedSandbox, PrepareError> {
        PreparedSandbox::new(self)
    }

    pub(crate) fn executes_programs(&self) -> bool {
        !self.execute.is_empty() || self.level.is_interpreter() || self.level == Level::NoNetwork
    }

    pub(crate) fn starts_processes(&self) -> bool {
        self.spawns_programs || self.level == Level::NoNetwork
    }
}
