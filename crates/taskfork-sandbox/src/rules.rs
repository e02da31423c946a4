//! The rules of Landlock: which files, TCP ports and processes a sandbox can reach.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, make_bitflags,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::level::Level;
use crate::prepare::{ApplyError, PrepareError};
use crate::sandbox::Sandbox;

/// How files are opened to name them in rules.
const FOR_RULE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

const PROC: &str = "/proc";

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
    paths: Vec<PathRule>,
    tcp_ports: Vec<u16>,
}

/// What may be done below a path.
#[derive(Debug, Clone)]
struct PathRule {
    /// Without symbolic links, except below `/proc`.
    path: PathBuf,
    access: BitFlags<AccessFs>,
    /// Nothing is opened if the path is gone.
    is_optional: bool,
}

impl PathRule {
    /// Resolves the links of `path`. A confined process that may write may change links later. The links in
    /// `/proc`, which it cannot change, lead each process to its own files.
    fn new(path: &Path, access: BitFlags<AccessFs>, is_optional: bool) -> io::Result<Self> {
        let absolute = std::path::absolute(path)?;
        let path = match absolute.starts_with(PROC) {
            true => absolute,
            false => std::fs::canonicalize(absolute)?,
        };
        let rule = Self { path, access, is_optional };
        rule.open()?;
        Ok(rule)
    }

    /// Opens the file to name it in a rule. That needs no right to read it. `None` if the path is optional
    /// and gone.
    fn open(&self) -> io::Result<Option<OwnedFd>> {
        let resolve = match self.path.starts_with(PROC) {
            true => ResolveFlags::empty(),
            false => ResolveFlags::NO_SYMLINKS,
        };
        let opened = rustix::io::retry_on_intr(|| {
            rustix::fs::openat2(rustix::fs::CWD, &self.path, FOR_RULE, Mode::empty(), resolve)
        });
        match opened {
            Err(Errno::NOENT) if self.is_optional => Ok(None),
            opened => Ok(Some(opened?)),
        }
    }
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
        if !matches!(sandbox.level, Level::Compute | Level::Gateway) {
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
        match PathRule::new(path, access & AccessFs::from_all(self.abi), false) {
            Ok(rule) => {
                // The kernel refuses a rule about nothing that it knows.
                if !rule.access.is_empty() {
                    self.paths.push(rule);
                }
                Ok(())
            }
            Err(source) => Err(PrepareError::Path { path: path.to_owned(), source }),
        }
    }

    fn add_if_present(&mut self, path: &str, access: BitFlags<AccessFs>) {
        let access = access & AccessFs::from_all(self.abi);
        self.paths.extend(PathRule::new(Path::new(path), access, true));
    }

    /// Restricts the calling thread, for ever. `scratch` is a directory that it may write to.
    pub(crate) fn apply(&self, scratch: Option<&Path>) -> Result<(), ApplyError> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        if self.restricts_files {
            ruleset = ruleset.handle_access(AccessFs::from_all(self.abi))?;
        } else if self.abi < ABI::V4 {
            // There is nothing that such a kernel could restrict.
            return Ok(());
        }
        if self.abi >= ABI::V4 {
            ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
        }
        if self.abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
        }
        let mut ruleset = ruleset.create()?;
        if self.restricts_files {
            for rule in &self.paths {
                let opened = rule.open();
                let opened = opened
                    .map_err(|source| ApplyError::Path { path: rule.path.clone(), source })?;
                if let Some(file) = opened {
                    ruleset = ruleset.add_rule(PathBeneath::new(file, rule.access))?;
                }
            }
            if let Some(path) = scratch {
                let file =
                    rustix::io::retry_on_intr(|| rustix::fs::open(path, FOR_RULE, Mode::empty()));
                let file = file.map_err(|errno| ApplyError::Path {
                    path: path.to_owned(),
                    source: errno.into(),
                })?;
                let access = WRITE & AccessFs::from_all(self.abi);
                ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
            }
        }
        for &port in &self.tcp_ports {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
        if ruleset.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
            return Err(ApplyError::Landlock {
                source: "the kernel had Landlock before, and has it no more".into(),
            });
        }
        Ok(())
    }
}

impl From<RulesetError> for ApplyError {
    fn from(source: RulesetError) -> Self {
        Self::Landlock { source: source.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_that_takes_the_place_of_an_opening_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let rule = PathRule::new(&link, READ, false).unwrap();
        assert_eq!(rule.path, real.canonicalize().unwrap());
        assert!(rule.open().unwrap().is_some());
        std::fs::remove_dir(&real).unwrap();
        symlink("/etc", &real).unwrap();
        let refused = rule.open().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_missing_path_is_an_error_unless_it_is_optional() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for is_optional in [true, false] {
            std::fs::write(&path, "").unwrap();
            let rule = PathRule::new(&path, READ, is_optional).unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!(rule.open().is_ok_and(|opened| opened.is_none()), is_optional);
        }
        assert!(PathRule::new(&path, READ, false).is_err());
    }

    #[test]
    fn links_of_proc_lead_each_process_to_its_own_files() {
        let rule = PathRule::new(Path::new("/proc/self"), READ, false).unwrap();
        assert_eq!(rule.path, Path::new("/proc/self"));
    }
}
