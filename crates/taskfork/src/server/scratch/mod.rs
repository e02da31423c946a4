//! Scratch directories: a private directory for each worker, and their removal.
//!
//! A server has one folder for them. A server that may mount gives each directory a file system of its
//! own in memory, with a limit of its size. What is left of a server that was killed is removed by its
//! guardian, or when the next server starts. A lock on the folder shows whether its server lives.

mod remove;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{
    AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, chownat, flock, fstat, mkdirat, openat,
    unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};
use rustix::process::{Gid, Uid, getegid, geteuid};

use self::remove::{DIRECTORY, remove, remove_if_empty, unmount_all};
use super::error::ServerError;
use super::log;
use super::privileges::Identity;

/// The start of the names of folders. The server's process id and a number follow.
const PREFIX: &str = "taskfork-scratch-";

/// How long the removal of one directory may take. What is left is removed with the folder.
pub(crate) const REMOVAL_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the start and the end of a server wait for removals. A later start goes on with them.
pub(crate) const WAITING_TIMEOUT: Duration = Duration::from_secs(2);

/// A limited directory can have one file for each of these bytes of its limit, but at least `MIN_FILES`.
const BYTES_PER_FILE: u64 = 1 << 10;
const MIN_FILES: u64 = 64;

/// The options of scratch directories.
#[derive(Debug, Default)]
pub(crate) struct ScratchOptions {
    /// The largest size of each directory in bytes, where it can be limited. Without it, there are none.
    pub(super) max_bytes: Option<u64>,
    /// Where the server makes its folder.
    pub(super) folder: Option<PathBuf>,
}

/// The folder of a running server, in which each worker has a directory.
#[derive(Debug)]
pub(crate) struct ScratchFolder {
    path: PathBuf,
    folder: OwnedFd,
    /// The directory on which the folder is mounted, if it is mounted. Both are locked.
    below: Option<OwnedFd>,
    max_bytes: u64,
    owner: (Option<Uid>, Option<Gid>),
    /// Directories that could not be removed yet.
    left: Vec<u64>,
}

impl ScratchOptions {
    /// Rejects values that would give workers no usable directory.
    pub(crate) fn check(&self) -> Result<(), ServerError> {
        match (self.max_bytes, &self.folder) {
            (Some(0), _) => {
                Err(ServerError::option("scratch", "with 0 bytes, no file could be written"))
            }
            (None, Some(_)) => Err(ServerError::option(
                "scratch_folder",
                "workers have no scratch directories: set `scratch` as well",
            )),
            _ => Ok(()),
        }
    }
}

impl ScratchFolder {
    /// Makes a folder, and removes those of servers that have ended. Returns `None` if workers are to have
    /// no directories.
    pub(crate) fn create(
        options: &ScratchOptions,
        identity: &Identity,
    ) -> Result<Option<Self>, ServerError> {
        let Some(max_bytes) = options.max_bytes else { return Ok(None) };
        let parent = options.folder.clone().unwrap_or_else(std::env::temp_dir);
        let failed = |source: io::Error| {
            let reason = format!("no directory can be made in {}: {source}", parent.display());
            ServerError::Option { option: "scratch", reason, source: Some(source) }
        };
        let opened = openat(CWD, &parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let opened = opened.map_err(|errno| failed(errno.into()))?;
        remove_stale(&opened);
        let folder = Self::create_in(&opened, &parent, max_bytes, identity);
        folder.map(Some).map_err(|errno| failed(errno.into()))
    }

    fn create_in(
        parent: &OwnedFd,
        parent_path: &Path,
        max_bytes: u64,
        identity: &Identity,
    ) -> rustix::io::Result<Self> {
        let mut number = 0;
        let (name, below) = loop {
            let name = format!("{PREFIX}{}-{number}", std::process::id());
            number += 1;
            // Others may search it, and not list it or lock it.
            match mkdirat(parent, &*name, Mode::from_raw_mode(0o711)) {
                Ok(()) => {}
                Err(Errno::EXIST) if number < u32::MAX => continue,
                Err(errno) => return Err(errno),
            }
            // A server that starts right now may take it for one that is left over, and remove it.
            let below = match openat(parent, &*name, DIRECTORY, Mode::empty()) {
                Ok(below) => below,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            let is_locked = flock(&below, FlockOperation::NonBlockingLockExclusive).is_ok();
            if is_locked && fstat(&below)?.st_nlink > 0 {
                break (name, below);
            }
        };
        rustix::fs::fchmod(&below, Mode::from_raw_mode(0o711))?;
        let path = parent_path.join(&name);
        let (folder, below) = match mount_locked(parent, &name) {
            Ok(folder) => (folder, Some(below)),
            Err(errno) => {
                log::info!(
                    "scratch directories are on disk and not limited to {max_bytes} bytes, because this process cannot \
                     mount ({errno}): they are in {}",
                    path.display()
                );
                (below, None)
            }
        };
        Ok(Self { path, folder, below, max_bytes, owner: identity.ids(), left: Vec::new() })
    }

    /// Makes the directory of the worker with this number.
    pub(crate) fn add(&self, number: u64) -> io::Result<PathBuf> {
        let name = number.to_string();
        mkdirat(&self.folder, &*name, Mode::RWXU)?;
        if self.below.is_some() {
            let (user, group) = self.owner;
            let data = CString::new(format!(
                "mode=0700,size={},nr_inodes={},uid={},gid={}",
                self.max_bytes,
                (self.max_bytes / BYTES_PER_FILE).max(MIN_FILES),
                user.unwrap_or_else(geteuid).as_raw(),
                group.unwrap_or_else(getegid).as_raw(),
            ))?;
            if let Err(errno) = mount_memory(self.folder.as_fd(), &name, &data) {
                let _ = unlinkat(&self.folder, &*name, AtFlags::REMOVEDIR);
                return Err(errno.into());
            }
        } else if self.owner != (None, None) {
            let (user, group) = self.owner;
            chownat(&self.folder, &*name, user, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(self.path.join(name))
    }

    /// Removes the directory of a worker that has ended, if that is quick. Otherwise the caller has to
    /// call [`remove_slowly`](Self::remove_slowly) in another process. Returns whether it has to.
    pub(crate) fn remove_quickly(&self, number: u64) -> bool {
        let Ok(name) = CString::new(number.to_string()) else { return false };
        if self.below.is_some() {
            let is_empty = openat(&self.folder, &*name, DIRECTORY, Mode::empty())
                .and_then(|directory| is_empty(&directory));
            if is_empty != Ok(true) {
                return true;
            }
            unmount_all(self.folder.as_fd(), &name);
        }
        !matches!(remove_if_empty(self.folder.as_fd(), &name), Ok(None))
    }

    /// Removes the directory of a worker, however long that takes.
    pub(crate) fn remove_slowly(&self, number: u64) {
        if let Ok(name) = CString::new(number.to_string()) {
            let deadline = Instant::now() + REMOVAL_TIMEOUT;
            // What is left is removed with the folder.
            let _ = remove(self.folder.as_fd(), &name, deadline);
        }
    }

    /// Removes the empty directory of a worker that could not be forked.
    pub(crate) fn discard(&self, number: u64) {
        // It is removed with the folder otherwise.
        let _ = self.remove_quickly(number);
    }

    /// Records a directory that has to be removed later.
    pub(crate) fn postpone(&mut self, number: u64) {
        self.left.push(number);
    }

    /// Returns the directories that have to be removed.
    pub(crate) fn take_postponed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.left)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.folder].into_iter().chain(&self.below).map(AsFd::as_fd)
    }
}

/// Removes a server's folder, with all directories in it. Gives up after `timeout`.
pub(crate) fn remove_folder(path: &Path, timeout: Duration) {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
    let Ok(name) = CString::new(name.as_bytes()) else { return };
    let parent = openat(CWD, parent, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(parent) = parent {
        let _ = remove(parent.as_fd(), &name, Instant::now() + timeout);
    }
}

/// Removes the folders of servers that have ended, as far as they belong to this user and there is time.
fn remove_stale(parent: &OwnedFd) {
    let deadline = Instant::now() + WAITING_TIMEOUT;
    let Ok(entries) = Dir::read_from(parent) else { return };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_owned()));
    for name in names.filter(|name| name.to_bytes().starts_with(PREFIX.as_bytes())) {
        let Ok(folder) = openat(parent, &*name, DIRECTORY, Mode::empty()) else { continue };
        let is_own = fstat(&folder).is_ok_and(|status| status.st_uid == geteuid().as_raw());
        let is_stale = is_own && flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok();
        // Its server may just have removed it, and another one may have taken its name.
        if is_stale && is_named(&folder, parent, &name) {
            let _ = remove(parent.as_fd(), &name, deadline);
        }
    }
}

/// Whether this name leads to this very directory.
fn is_named(folder: &OwnedFd, parent: &OwnedFd, name: &CStr) -> bool {
    let named = openat(parent, name, DIRECTORY, Mode::empty()).and_then(fstat);
    named.is_ok_and(|named| {
        fstat(folder).is_ok_and(|it| (it.st_dev, it.st_ino) == (named.st_dev, named.st_ino))
    })
}

/// Mounts a file system in memory on a directory, and returns its root. The root is locked before others can
/// open it: a server that starts right now would take it for one that is left over.
fn mount_locked(parent: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let settings = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&settings, "source", "taskfork")?;
    fsconfig_set_string(&settings, "mode", "0711")?;
    fsconfig_create(&settings)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mounted = fsmount(&settings, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let root = openat(&mounted, c".", DIRECTORY, Mode::empty())?;
    flock(&root, FlockOperation::NonBlockingLockExclusive)?;
    move_mount(&mounted, c"", parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(root)
}

/// Mounts a file system in memory on a directory, without programs and devices.
fn mount_memory(parent: BorrowedFd<'_>, name: &str, data: &CStr) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("taskfork", &*path, "tmpfs", flags, Some(data))
}

fn is_empty(directory: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_start_at_once_leave_each_others_folders() {
        let parent = tempfile::tempdir().unwrap();
        let options =
            ScratchOptions { max_bytes: Some(1 << 20), folder: Some(parent.path().to_owned()) };
        let start = || {
            for _ in 0..1000 {
                let folder = ScratchFolder::create(&options, &Identity::default());
                let folder = folder.unwrap().unwrap();
                let directory = folder.add(1).unwrap();
                assert!(directory.exists());
                remove_folder(folder.path(), WAITING_TIMEOUT);
            }
        };
        let opened = std::fs::File::open(parent.path()).unwrap().into();
        std::thread::scope(|scope| {
            let servers = [(); 4].map(|()| scope.spawn(start));
            while servers.iter().any(|server| !server.is_finished()) {
                remove_stale(&opened);
            }
        });
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
