//! The rules of Landlock: which files, TCP ports and processes a sandbox can reach.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, Scope, make_bitflags,
};
use rustix::fs::{Mode, OFlags};

use crate::level::Level;
use crate::prepare::{ApplyError, PrepareError};
use crate::sandbox::Sandbox;

const READ: BitFlags<AccessFs> = make_bitflags!(AccessFs::{ReadFile | ReadDir});
const EXECUTE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{Execute | ReadFile | ReadDir});

/// Everything but devices, sockets and programs.
const WRITE: BitFlags<AccessFs> = make_bitflags!(AccessFs::{
    ReadFile | ReadDir | WriteFile | Truncate | Refer | MakeDir | MakeReg | MakeSym | MakeFifo
    | RemoveDir | RemoveFile
});

/// Devices that hold nothing.
const NULL_DEVICES: &[(&str, BitFlags<AccessFs>)] = &[
    ("/dev/null", make_bitflags!(AccessFs::{ReadFile | WriteFile})),
    ("/dev/zero", make_bitflags!(AccessFs::{ReadFile})),
    ("/dev/random", make_bitflags!(AccessFs::{ReadFile})),
    ("/dev/urandom", make_bitflags!(AccessFs::{ReadFile})),
];

/// The system's shared libraries and their loader.
const LIBRARIES: &[&str] =
    &["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib"];

/// What the loader reads.
const LOADER_FILES: &[&str] = &["/etc/ld.so.cache", "/etc/ld.so.preload"];

/// What interpreters read when they start, beside libraries.
const INTERPRETER_FILES: &[&str] = &[
    "/etc/localtime",
    "/etc/ssl/openssl.cnf",
    "/usr/share/zoneinfo",
    "/usr/share/perl",
    "/usr/share/perl5",
    "/usr/share/nodejs",
    "/usr/share/locale",
    "/usr/local/share/perl",
    "/etc/perl",
];

/// Rules that are ready to be applied.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    /// The version of Landlock that the rules use.
    abi: ABI,
    restricts_files: bool,
    paths: Vec<(PathBuf, BitFlags<AccessFs>)>,
    tcp_ports: Vec<u16>,
}

impl Rules {
    /// Collects the rules of `sandbox` for a kernel with this version of Landlock.
    pub(crate) fn new(sandbox: &Sandbox, abi: u32) -> Result<Self, PrepareError> {
        let abi = ABI::from(i32::try_from(abi).unwrap_or(i32::MAX));
        let mut rules = Self {
            abi,
            restricts_files: sandbox.level != Level::NoNetwork,
            paths: Vec::new(),
            tcp_ports: sandbox.tcp_ports.iter().copied().collect(),
        };
        if rules.restricts_files {
            rules.add_paths(sandbox)?;
        }
        Ok(rules)
    }

    fn add_paths(&mut self, sandbox: &Sandbox) -> Result<(), PrepareError> {
        for path in &sandbox.read {
            self.add(path, READ)?;
        }
        for path in &sandbox.write {
            self.add(path, WRITE)?;
        }
        for path in &sandbox.execute {
            self.add(path, EXECUTE)?;
        }
        for path in &sandbox.unix_sockets {
            self.add(path, AccessFs::ResolveUnix.into())?;
        }
        if sandbox.level != Level::Compute {
            for (path, access) in NULL_DEVICES {
                self.add_if_present(path, *access);
            }
        }
        if sandbox.executes_programs() {
            for path in LIBRARIES {
                self.add_if_present(path, EXECUTE);
            }
            for path in LOADER_FILES {
                self.add_if_present(path, READ);
            }
        }
        if sandbox.level.is_interpreter() {
            for path in INTERPRETER_FILES {
                self.add_if_present(path, READ);
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, access: BitFlags<AccessFs>) -> Result<(), PrepareError> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        match open(&path) {
            Ok(_) => {
                self.paths.push((path, access & AccessFs::from_all(self.abi)));
                Ok(())
            }
            Err(source) => Err(PrepareError::Path { path, source }),
        }
    }

    fn add_if_present(&mut self, path: &str, access: BitFlags<AccessFs>) {
        let _ = self.add(Path::new(path), access);
    }

    /// Restricts the calling thread, for ever. `scratch` is a directory that it may write to.
    pub(crate) fn apply(&self, scratch: Option<&Path>) -> Result<(), ApplyError> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        if self.restricts_files {
            ruleset = ruleset.handle_access(AccessFs::from_all(self.abi))?;
        }
        if self.abi >= ABI::V4 {
            ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
        }
        if self.abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        }
        let mut ruleset = ruleset.create()?;
        if self.restricts_files {
            let scratch = scratch.map(|path| (path, WRITE & AccessFs::from_all(self.abi)));
            let paths = self.paths.iter().map(|(path, access)| (path.as_path(), *access));
            for (path, access) in paths.chain(scratch) {
                let file =
                    open(path).map_err(|source| ApplyError::Path { path: path.into(), source })?;
                ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
            }
        }
        for &port in &self.tcp_ports {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        ruleset.restrict_self()?;
        Ok(())
    }
}

/// Opens a file to name it in a rule. That needs no right to read it.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    Ok(rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?)
}

impl From<RulesetError> for ApplyError {
    fn from(source: RulesetError) -> Self {
        Self::Landlock { source: source.into() }
    }
}
