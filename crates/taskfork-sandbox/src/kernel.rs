//! What the kernel offers for sandboxes.

use std::fmt;
use std::fs;

use crate::filter::Architecture;
use crate::sys;

/// Something that a sandbox may need of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Feature {
    /// Filters of system calls.
    Seccomp,
    /// Rules for files, with Landlock.
    FileRules,
    /// Rules for the ports of TCP connections, with Landlock.
    TcpRules,
    /// A process cannot signal processes outside its sandbox, and cannot connect to their abstract unix
    /// sockets, with Landlock.
    Scopes,
    /// Rules for the paths of unix sockets, with Landlock.
    UnixSocketRules,
}

impl Feature {
    /// All features.
    pub const ALL: [Self; 5] =
        [Self::Seccomp, Self::FileRules, Self::TcpRules, Self::Scopes, Self::UnixSocketRules];

    /// The version of Landlock that has this, if it is part of Landlock.
    const fn landlock_abi(self) -> Option<u32> {
        match self {
            Self::Seccomp => None,
            // The third version was the first to stop `truncate`.
            Self::FileRules => Some(3),
            Self::TcpRules => Some(4),
            Self::Scopes => Some(6),
            Self::UnixSocketRules => Some(9),
        }
    }
}

/// What is missing, and which kernel has it: "rules for files (Landlock 3, Linux 6.2)".
impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Seccomp => "seccomp filters (x86-64 or aarch64)",
            Self::FileRules => "rules for files (Landlock 3, Linux 6.2)",
            Self::TcpRules => "rules for TCP ports (Landlock 4, Linux 6.7)",
            Self::Scopes => "scopes of signals and abstract sockets (Landlock 6, Linux 6.12)",
            Self::UnixSocketRules => "rules for paths of unix sockets (Landlock 9, Linux 7.1)",
        })
    }
}

/// What this kernel offers, as far as this process may use it.
///
/// [`Display`](fmt::Display) writes a table, one line for each feature.
///
/// ```
/// let support = taskfork_sandbox::KernelSupport::detect();
/// println!("{support}");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelSupport {
    /// The version of Landlock. `None` if the kernel does not have it, or has switched it off.
    pub landlock_abi: Option<u32>,
    /// The kernel has seccomp filters, and this crate has filters for the architecture.
    pub seccomp: bool,
    /// The controllers of the process's cgroup that its user may set for cgroups below it. Empty without
    /// cgroup v2, or if nothing is delegated.
    pub cgroup_controllers: Vec<String>,
}

impl KernelSupport {
    /// Asks the kernel. Changes nothing.
    pub fn detect() -> Self {
        Self {
            landlock_abi: sys::landlock_abi().ok(),
            seccomp: Architecture::OWN.is_some()
                && sys::knows_seccomp_action(libc::SECCOMP_RET_ERRNO)
                && sys::knows_seccomp_action(libc::SECCOMP_RET_TRAP),
            cgroup_controllers: delegated_controllers().unwrap_or_default(),
        }
    }

    /// Whether the kernel has this.
    pub fn has(&self, feature: Feature) -> bool {
        match feature.landlock_abi() {
            Some(abi) => self.landlock_abi >= Some(abi),
            None => self.seccomp,
        }
    }
}

impl fmt::Display for KernelSupport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for feature in Feature::ALL {
            let answer = if self.has(feature) { "yes" } else { "no" };
            writeln!(f, "{answer:<4} {feature}")?;
        }
        let controllers = match &self.cgroup_controllers[..] {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        write!(f, "delegated controllers of cgroup v2: {controllers}")
    }
}

/// Returns the controllers that this process can pass on to cgroups below its own.
fn delegated_controllers() -> Option<Vec<String>> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = format!("/sys/fs/cgroup{path}");
    let is_writable = |file: &str| {
        let path = format!("{folder}/{file}");
        rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    };
    if !is_writable("cgroup.procs") || !is_writable("cgroup.subtree_control") {
        return None;
    }
    let controllers = fs::read_to_string(format!("{folder}/cgroup.controllers")).ok()?;
    Some(controllers.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn support(landlock_abi: Option<u32>) -> KernelSupport {
        KernelSupport { landlock_abi, seccomp: true, cgroup_controllers: Vec::new() }
    }

    #[test]
    fn an_older_landlock_has_fewer_features() {
        assert!(!support(None).has(Feature::FileRules));
        assert!(!support(Some(2)).has(Feature::FileRules));
        assert!(support(Some(3)).has(Feature::FileRules));
        assert!(!support(Some(5)).has(Feature::Scopes));
        assert!(support(Some(7)).has(Feature::Scopes));
        assert!(!support(Some(8)).has(Feature::UnixSocketRules));
    }

    #[test]
    fn the_table_has_a_line_for_each_feature() {
        assert_eq!(
            support(Some(7)).to_string(),
            "yes  seccomp filters (x86-64 or aarch64)\n\
             yes  rules for files (Landlock 3, Linux 6.2)\n\
             yes  rules for TCP ports (Landlock 4, Linux 6.7)\n\
             yes  scopes of signals and abstract sockets (Landlock 6, Linux 6.12)\n\
             no   rules for paths of unix sockets (Landlock 9, Linux 7.1)\n\
             delegated controllers of cgroup v2: none"
        );
    }
}
