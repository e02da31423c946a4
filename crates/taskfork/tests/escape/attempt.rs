//! An attempt to escape, and what it tries to reach.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What an attempt tries to reach. The trials make it; the worker adds what it has itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// Process ids: the server, another worker of it, and the process with the clients.
    pub(crate) server: i32,
    pub(crate) sibling: i32,
    pub(crate) client: i32,
    /// A process of the same user that has nothing to do with the server. It blocks SIGUSR1.
    pub(crate) bystander: i32,
    /// A folder with `secret`, and `writable`, a folder that the opening `Write` names.
    pub(crate) outside: PathBuf,
    /// Ports on loopback that accept connections; the opening `ConnectTcp` names the first.
    pub(crate) tcp: u16,
    pub(crate) other_tcp: u16,
    pub(crate) tcp_v6: u16,
    pub(crate) udp: u16,
    /// Of an abstract unix socket that accepts connections.
    pub(crate) abstract_name: String,
    pub(crate) server_socket: PathBuf,
    pub(crate) status_socket: PathBuf,
    /// The file that the server writes its standard output to.
    pub(crate) output: PathBuf,
    /// The only folder that a confined worker may write to.
    pub(crate) scratch: PathBuf,
    /// Descriptors that the worker's `setup` has opened: the server's terminal, the folder `/`, and a connection to
    /// the first port above.
    pub(crate) terminal: i32,
    pub(crate) root: i32,
    pub(crate) connection: i32,
    /// Memory that the worker shares with its server: where it begins, and its length in bytes. The worker may write to
    /// the first kind, and only read the second.
    pub(crate) shared: Vec<(usize, usize)>,
    pub(crate) published: Vec<(usize, usize)>,
    /// A copy of `cat` that gives root's rights, and a file that only root may read. Empty if root could not make them.
    pub(crate) setuid_program: PathBuf,
    pub(crate) file_of_root: PathBuf,
}

impl Surroundings {
    /// A path in the folder that the opening `Write` names.
    pub(crate) fn writable(&self, name: &str) -> PathBuf {
        self.outside.join("writable").join(name)
    }

    /// A path in that folder that no other worker uses.
    pub(crate) fn new_file(&self, name: &str) -> PathBuf {
        self.writable(&format!("{name}-{}", std::process::id()))
    }

    pub(crate) fn secret(&self) -> PathBuf {
        self.outside.join("secret")
    }
}

/// What a sandbox can be opened for. Each stands for one sandbox: `compute()` with this opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// Of `/etc/passwd`.
    Read,
    /// Of the folder `writable`.
    Write,
    /// Of one program, by which the worker may replace itself.
    Execute,
    ConnectTcp,
    UnixSocket,
    SpawnPrograms,
    /// `Execute` and `SpawnPrograms`: the program may run in processes of its own.
    Programs,
}

impl Opening {
    pub(crate) const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Execute,
        Self::ConnectTcp,
        Self::UnixSocket,
        Self::SpawnPrograms,
        Self::Programs,
    ];
}

/// What happens without a sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unconfined {
    Succeeds,
    /// It succeeds for root. For others it may fail.
    SucceedsForRoot,
    /// It succeeds, or fails with one of these numbers for this reason.
    MayFail(&'static [i32], &'static str),
    /// It fails for this reason.
    Fails(&'static str),
}

#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Surroundings) -> io::Result<()>,
    pub(crate) opened_by: &'static [Opening],
    pub(crate) unconfined: Unconfined,
    /// No sandbox refuses it, for this reason. SECURITY.md says so.
    pub(crate) not_promised: Option<&'static str>,
    /// `no_network()` refuses it too.
    pub(crate) needs_network: bool,
    /// Numbers of errors by which a sandbox refuses it, besides EACCES and EPERM.
    pub(crate) refused_with: &'static [i32],
    /// Whether it has reached its aim. A call may return without an error and have done nothing.
    pub(crate) effect: Option<fn(&Surroundings) -> bool>,
}

/// An attempt that succeeds without a sandbox, and for which no opening exists.
pub(crate) fn attempt(name: &'static str, run: fn(&Surroundings) -> io::Result<()>) -> Attempt {
    Attempt {
        name,
        run,
        opened_by: &[],
        unconfined: Unconfined::Succeeds,
        not_promised: None,
        needs_network: false,
        refused_with: &[],
        effect: None,
    }
}

impl Attempt {
    pub(crate) fn opened_by(self, opened_by: &'static [Opening]) -> Self {
        Self { opened_by, ..self }
    }

    pub(crate) fn for_root(self) -> Self {
        Self { unconfined: Unconfined::SucceedsForRoot, ..self }
    }

    pub(crate) fn may_fail(self, numbers: &'static [i32], why: &'static str) -> Self {
        Self { unconfined: Unconfined::MayFail(numbers, why), ..self }
    }

    pub(crate) fn fails(self, why: &'static str) -> Self {
        Self { unconfined: Unconfined::Fails(why), ..self }
    }

    pub(crate) fn not_promised(self, why: &'static str) -> Self {
        Self { not_promised: Some(why), ..self }
    }

    pub(crate) fn needs_network(self) -> Self {
        Self { needs_network: true, ..self }
    }

    pub(crate) fn refused_with(self, refused_with: &'static [i32]) -> Self {
        Self { refused_with, ..self }
    }

    pub(crate) fn effect(self, effect: fn(&Surroundings) -> bool) -> Self {
        Self { effect: Some(effect), ..self }
    }
}
