//! Control groups of workers (cgroup version 2): one for each worker, below a group that has been
//! delegated to the server. Their limits hold for a worker and all processes that it starts. Such a
//! process can leave its group only if it may write to the files of groups: as root or the server's user,
//! without a sandbox that forbids it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstatfs, mkdirat, openat, unlinkat};
use rustix::io::write;

use super::error::ServerError;
use super::limits::{Limit, WorkerLimits};

/// The type of the file system of control groups, version 2.
const CGROUP2: i64 = 0x6367_7270;

/// The start of the names of groups. The server's process id and the worker's number follow.
const PREFIX: &str = "taskfork-";

/// The file with the limit of swapped memory, which the kernel has only if it can swap.
const SWAP_LIMIT: &str = "memory.swap.max";

/// How often the removal of a group is tried again, and how long that waits. Killed processes stay in
/// their group until they have ended.
const MAX_REMOVALS: u32 = 200;
const REMOVAL_PAUSE: Duration = Duration::from_millis(5);

/// The period in microseconds in which a group may use its share of the processor.
const CPU_PERIOD: u64 = 100_000;

/// The groups of a server's workers.
#[derive(Debug)]
pub(crate) struct WorkerGroups {
    path: PathBuf,
    folder: OwnedFd,
    settings: Vec<(&'static str, String)>,
    has_memory_limit: bool,
    /// Workers whose groups could not be removed yet.
    left: Vec<u64>,
}

impl WorkerGroups {
    /// Opens the group that is delegated to the server, and checks that the server may use it.
    pub(crate) fn open(limits: &WorkerLimits) -> Result<Option<Self>, ServerError> {
        let Some(path) = &limits.group else { return Ok(None) };
        let failed = |what: String, source: io::Error| {
            let reason = format!("{what}: {source}");
            ServerError::Option { option: "cgroup", reason, source: Some(source) }
        };
        let named = path.display();
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| failed(format!("cannot open {named}"), errno.into()))?;
        if !fstatfs(&folder).is_ok_and(|system| system.f_type == CGROUP2) {
            let reason = format!("{named} is not a control group of version 2");
            return Err(ServerError::option("cgroup", reason));
        }
        let controllers = read(folder.as_fd(), "cgroup.controllers").unwrap_or_default();
        let needed = controllers_of(limits);
        if let Some(missing) = missing(&needed, &controllers) {
            let reason = format!(
                "{named} does not have the controller `{missing}`, which `limit` needs: delegate it"
            );
            return Err(ServerError::option("cgroup", reason));
        }
        for controller in needed {
            put(folder.as_fd(), "cgroup.subtree_control", &format!("+{controller}")).map_err(
                |error| failed(format!("cannot enable `{controller}` below {named}"), error),
            )?;
        }
        let groups = Self {
            path: path.clone(),
            folder,
            settings: settings(limits),
            has_memory_limit: limits.has(Limit::Memory),
            left: Vec::new(),
        };
        groups.remove_stale();
        // No worker has this number.
        groups.add(0).map_err(|error| failed(format!("cannot make a group in {named}"), error))?;
        groups.discard(0);
        Ok(Some(groups))
    }

    /// Makes the group of the worker with this number. Returns the file through which a process joins it.
    pub(crate) fn add(&self, number: u64) -> io::Result<OwnedFd> {
        let name = name(std::process::id(), number);
        mkdirat(&self.folder, &*name, Mode::from_raw_mode(0o755))?;
        let set_up = || {
            let group = openat(&self.folder, &*name, DIRECTORY, Mode::empty())?;
            for (file, value) in &self.settings {
                match put(group.as_fd(), file, value) {
                    Err(error)
                        if *file == SWAP_LIMIT && error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            Ok(openat(&group, "cgroup.procs", flags, Mode::empty())?)
        };
        set_up().inspect_err(|_: &io::Error| self.discard(number))
    }

    /// Whether the kernel has killed a process of this worker for the limit of memory.
    pub(crate) fn is_memory_exceeded(&self, number: u64) -> bool {
        if !self.has_memory_limit {
            return false;
        }
        let name = name(std::process::id(), number);
        let group = openat(&self.folder, &*name, DIRECTORY, Mode::empty());
        let events = group.map_err(io::Error::from);
        let events = events.and_then(|group| read(group.as_fd(), "memory.events"));
        events.is_ok_and(|events| has_oom_kill(&events))
    }

    /// Kills what is in the group of a worker that has ended, and removes the group, if that is possible
    /// at once.
    pub(crate) fn remove(&mut self, number: u64) {
        if !kill_and_remove(self.folder.as_fd(), &name(std::process::id(), number)) {
            self.left.push(number);
        }
    }

    /// Removes the groups that could not be removed before.
    pub(crate) fn remove_left(&mut self) {
        for number in std::mem::take(&mut self.left) {
            self.remove(number);
        }
    }

    /// Removes the empty group of a worker that could not be forked.
    pub(crate) fn discard(&self, number: u64) {
        let name = name(std::process::id(), number);
        let _ = unlinkat(&self.folder, &*name, AtFlags::REMOVEDIR);
    }

    /// Removes the groups of servers that are not there any more, if they are empty. Groups with this
    /// process id come from an earlier server, as when each is process 1 of a container, and are removed
    /// with all that is in them.
    fn remove_stale(&self) {
        remove_groups_in(&self.folder, std::process::id());
        for name in names(&self.folder) {
            let is_alive = |pid: &str| Path::new("/proc").join(pid).exists();
            if server_of(&name).is_some_and(|pid| !is_alive(pid)) {
                let _ = unlinkat(&self.folder, &*name, AtFlags::REMOVEDIR);
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor that a worker must close.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Kills all processes in the groups of the workers of a server that has ended, and removes the groups.
pub(crate) fn remove_groups(path: &Path, server: u32) {
    let folder = openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(folder) = folder {
        remove_groups_in(&folder, server);
    }
}

fn remove_groups_in(folder: &OwnedFd, server: u32) {
    let server = server.to_string();
    for name in names(folder).filter(|name| server_of(name) == Some(&server)) {
        for _ in 0..MAX_REMOVALS {
            if kill_and_remove(folder.as_fd(), &name) {
                break;
            }
            std::thread::sleep(REMOVAL_PAUSE);
        }
    }
}

fn name(server: u32, number: u64) -> String {
    format!("{PREFIX}{server}-{number}")
}

/// The process id of the server whose group has this name.
fn server_of(name: &str) -> Option<&str> {
    let (server, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    (is_number(server) && is_number(number)).then_some(server)
}

fn names(folder: &OwnedFd) -> impl Iterator<Item = String> {
    let entries = Dir::read_from(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
}

/// Returns whether the group has gone.
fn kill_and_remove(folder: BorrowedFd<'_>, name: &str) -> bool {
    let Ok(group) = openat(folder, name, DIRECTORY, Mode::empty()) else { return true };
    // Kernels before 5.14 do not have this file. There the server kills what becomes its child.
    let _ = put(group.as_fd(), "cgroup.kill", "1");
    unlinkat(folder, name, AtFlags::REMOVEDIR) != Err(rustix::io::Errno::BUSY)
}

/// The controllers that the limits need.
fn controllers_of(limits: &WorkerLimits) -> Vec<&'static str> {
    let all = [(Limit::Memory, "memory"), (Limit::Processes, "pids"), (Limit::CpuPercent, "cpu")];
    let needed = all.into_iter().filter(|&(limit, _)| limits.has(limit));
    needed.map(|(_, controller)| controller).collect()
}

fn missing<'a>(needed: &[&'a str], available: &str) -> Option<&'a str> {
    let has = |controller: &&str| available.split_whitespace().any(|it| it == *controller);
    needed.iter().find(|controller| !has(controller)).copied()
}

/// The files of a new group and their values.
fn settings(limits: &WorkerLimits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    for &(limit, value) in &limits.limits {
        match limit {
            Limit::Memory => settings.extend([
                ("memory.max", value.to_string()),
                (SWAP_LIMIT, "0".to_owned()),
                // All processes of a worker end together.
                ("memory.oom.group", "1".to_owned()),
            ]),
            Limit::Processes => settings.push(("pids.max", value.to_string())),
            Limit::CpuPercent => {
                let quota = value.saturating_mul(CPU_PERIOD / 100);
                settings.push(("cpu.max", format!("{quota} {CPU_PERIOD}")));
            }
            _ => {}
        }
    }
    settings
}

/// Whether the text of `memory.events` counts a kill.
fn has_oom_kill(events: &str) -> bool {
    let mut lines = events.lines().filter_map(|line| line.split_once(' '));
    lines.any(|(event, count)| event == "oom_kill" && count != "0")
}

fn put(folder: BorrowedFd<'_>, file: &str, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    write(&openat(folder, file, flags, Mode::empty())?, value.as_bytes())?;
    Ok(())
}

fn read(folder: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(folder, file, flags, Mode::empty())?).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(limits: &[(Limit, u64)]) -> WorkerLimits {
        WorkerLimits { limits: limits.to_vec(), ..WorkerLimits::default() }
    }

    #[test]
    fn limits_become_files_of_a_group() {
        let all = limits(&[
            (Limit::Memory, 1 << 20),
            (Limit::OpenFiles, 7),
            (Limit::Processes, 12),
            (Limit::CpuPercent, 150),
        ]);
        let expected = [
            ("memory.max", "1048576"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "12"),
            ("cpu.max", "150000 100000"),
        ];
        assert_eq!(settings(&all), expected.map(|(file, value)| (file, value.to_owned())));
        assert_eq!(controllers_of(&all), ["memory", "pids", "cpu"]);
        assert_eq!(settings(&limits(&[(Limit::OpenFiles, 7)])), []);
    }

    #[test]
    fn a_missing_controller_is_found() {
        assert_eq!(missing(&["memory", "pids"], "cpuset memory pids\n"), None);
        assert_eq!(missing(&["memory", "pids"], "cpuset memory\n"), Some("pids"));
        assert_eq!(missing(&["cpu"], "cpuset"), Some("cpu"));
        assert_eq!(missing(&[], ""), None);
    }

    #[test]
    fn a_kill_for_memory_is_found_in_the_events() {
        let events =
            |kills| format!("low 0\nhigh 3\nmax 12\noom 1\noom_kill {kills}\noom_group_kill 1\n");
        assert!(has_oom_kill(&events(1)) && has_oom_kill(&events(20)));
        assert!(!has_oom_kill(&events(0)) && !has_oom_kill(""));
    }

    #[test]
    fn only_names_of_groups_name_a_server() {
        assert_eq!(server_of(&name(7, 12)), Some("7"));
        for other in ["taskfork-7", "taskfork-x-1", "taskfork-1-x", "other-1-1", "taskfork--1"] {
            assert_eq!(server_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_ordinary_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = Some(folder.path().to_owned());
        let error = WorkerGroups::open(&WorkerLimits { group: path, ..WorkerLimits::default() });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("`cgroup`") && error.contains("version 2"), "{error}");
    }
}
