//! A sandbox that is ready to be applied, and applying it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use crate::filter::{Architecture, Filter, errno};
use crate::kernel::{Feature, KernelSupport};
use crate::level::Level;
use crate::policy::policy;
use crate::rules::Rules;
use crate::sandbox::Sandbox;
use crate::sys;

/// The cause of an error, from a library whose errors are not part of this crate's interface.
type BoxError = Box<dyn Error + Send + Sync>;

/// Why a [`Sandbox`] cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// The kernel lacks features that the sandbox needs.
    #[error(
        "the kernel lacks what the sandbox `{level}` needs: {}; `best_effort` goes on without that",
        list(features)
    )]
    #[non_exhaustive]
    Lacking {
        /// The level of the sandbox.
        level: Level,
        /// What is missing.
        features: Vec<Feature>,
    },
    /// A path of an opening does not exist, or cannot be opened.
    #[error("the sandbox cannot open `{}`: {source}", path.display())]
    #[non_exhaustive]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

fn list(features: &[Feature]) -> String {
    features.iter().map(Feature::to_string).collect::<Vec<_>>().join(", ")
}

/// Why a [`PreparedSandbox`] cannot be applied. The process may be confined in part, so it should exit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The process has other threads, or shares its memory with another process. They would not be
    /// confined.
    #[error(
        "the process has other threads, which a sandbox cannot confine; apply it before they start"
    )]
    Threads,
    /// Whether the process has other threads cannot be found out.
    #[error("whether the process has other threads cannot be found out: {source}")]
    #[non_exhaustive]
    UnknownThreads {
        /// What the system says.
        source: io::Error,
    },
    /// A path of an opening, or the scratch directory, cannot be opened: it is gone, a symbolic link has taken
    /// its place or that of a folder above it, or the user of this process may not reach it.
    #[error("the sandbox cannot open `{}`: {source}", path.display())]
    #[non_exhaustive]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Landlock refuses the rules.
    #[error("the kernel refuses the sandbox's rules: {source}")]
    #[non_exhaustive]
    Landlock {
        /// What the system says.
        source: BoxError,
    },
    /// The kernel refuses the filter of system calls.
    #[error("the kernel refuses the sandbox's filter of system calls: {source}")]
    #[non_exhaustive]
    Seccomp {
        /// What the system says.
        source: BoxError,
    },
    /// The capabilities of the process cannot be dropped.
    #[error("the capabilities of the process cannot be dropped: {source}")]
    #[non_exhaustive]
    Capabilities {
        /// What the system says.
        source: io::Error,
    },
    /// The handler that records a forbidden system call cannot be installed.
    #[error("the handler of forbidden system calls cannot be installed: {source}")]
    #[non_exhaustive]
    Handler {
        /// What the system says.
        source: io::Error,
    },
}

/// A sandbox that is ready to be applied. [`Sandbox::prepare`] makes it.
#[derive(Debug, Clone)]
pub struct PreparedSandbox {
    level: Level,
    rules: Option<Rules>,
    filter: Option<Filter>,
    kills: bool,
    record: Option<fn(i32)>,
    lacking: Vec<Feature>,
}

impl PreparedSandbox {
    pub(crate) fn new(sandbox: &Sandbox) -> Result<Self, PrepareError> {
        let level = sandbox.level;
        let mut prepared = Self {
            level,
            rules: None,
            filter: None,
            kills: sandbox.kills,
            record: None,
            lacking: Vec::new(),
        };
        if level == Level::Off {
            return Ok(prepared);
        }
        let support = KernelSupport::detect();
        let lacking = needed(sandbox).into_iter().filter(|feature| !support.has(*feature));
        prepared.lacking = lacking.collect();
        if !prepared.lacking.is_empty() && !sandbox.is_best_effort {
            return Err(PrepareError::Lacking { level, features: prepared.lacking });
        }
        if let Some(abi) = support.landlock_abi {
            prepared.rules = Some(Rules::new(sandbox, abi)?);
        }
        if let Some(architecture) = Architecture::OWN.filter(|_| support.seccomp) {
            let refuse = if sandbox.kills { libc::SECCOMP_RET_TRAP } else { errno(libc::EPERM) };
            prepared.filter = Some(Filter::new(&policy(sandbox), architecture, refuse));
        }
        Ok(prepared)
    }

    /// The level of the sandbox.
    pub fn level(&self) -> Level {
        self.level
    }

    /// What the kernel lacks. Always empty without [`Sandbox::best_effort`].
    pub fn lacking(&self) -> &[Feature] {
        &self.lacking
    }

    /// Calls `record` with the number of a forbidden system call before the process ends by it. Used only
    /// with [`Sandbox::kill`].
    ///
    /// `record` runs in a signal handler, so it may store atomics and make system calls that are allowed,
    /// but must not allocate, lock or panic. [`system_call_name`](crate::system_call_name) knows the name
    /// of a number. A process that is taken over can prevent that this runs, and for a time its end, but no
    /// forbidden call is ever made.
    #[must_use]
    pub fn on_violation(mut self, record: fn(i32)) -> Self {
        self.record = Some(record);
        self
    }

    /// Confines this process and its future children, for ever.
    ///
    /// The process may write to the directory `scratch`, as with [`Sandbox::write`]. Descriptors that are
    /// open stay open and usable. The process can gain no rights by executing a setuid program any more
    /// (`no_new_privs`), whatever the level but [`Level::Off`].
    ///
    /// All levels but [`Level::Off`] and [`Level::NoNetwork`] also take the capabilities of the process.
    /// So a process of root can open only those files that root may open by their owner and mode.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Threads`] if the process has more than one thread, and others if the kernel refuses.
    /// The process should exit then, because a part may be applied.
    pub fn apply(&self, scratch: Option<&Path>) -> Result<(), ApplyError> {
        if self.level == Level::Off {
            return Ok(());
        }
        match sys::is_single_threaded() {
            Ok(true) => {}
            Ok(false) => return Err(ApplyError::Threads),
            Err(source) => return Err(ApplyError::UnknownThreads { source }),
        }
        if self.kills {
            sys::install_violation_handler(self.record)
                .map_err(|source| ApplyError::Handler { source })?;
        }
        if let Some(rules) = &self.rules {
            rules.apply(scratch)?;
        }
        if self.level != Level::NoNetwork {
            drop_capabilities().map_err(|source| ApplyError::Capabilities { source })?;
        }
        if let Some(filter) = &self.filter {
            let own = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
            filter.install(own).map_err(|source| ApplyError::Seccomp { source: source.into() })?;
        }
        Ok(())
    }
}

/// Gives up all capabilities of this thread. Not even root gets them back by executing a program, because
/// of `no_new_privs`.
fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}

/// What a sandbox needs of the kernel.
fn needed(sandbox: &Sandbox) -> Vec<Feature> {
    let mut features = vec![Feature::Seccomp];
    if sandbox.level != Level::NoNetwork {
        features.push(Feature::FileRules);
    }
    if !sandbox.tcp_ports.is_empty() {
        features.push(Feature::TcpRules);
    }
    if sandbox.starts_processes() || !sandbox.unix_sockets.is_empty() {
        features.push(Feature::Scopes);
    }
    if !sandbox.unix_sockets.is_empty() {
        features.push(Feature::UnixSocketRules);
    }
    features
}
