//! Removing a directory whose contents a hostile process has made, and may still be changing.
//!
//! No step follows a symbolic link, opens a file or enters another file system. A deep tree needs neither
//! a deep stack nor many descriptors: directories are moved up to the top, and removed there.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, chmod, openat, renameat_with, unlinkat};
use rustix::io::{Errno, Result};
use rustix::mount::{UnmountFlags, unmount};

/// Opens a directory itself, and no link to one.
pub(super) const DIRECTORY: OFlags =
    OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory with its contents and mounts. Gives up at `deadline`.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr, deadline: Instant) -> Result<()> {
    unmount_all(parent, name);
    while let Some(directory) = remove_if_empty(parent, name)? {
        remove_contents(&directory, deadline)?;
        // Another process may add entries as fast as they are removed.
        if Instant::now() >= deadline {
            return Err(Errno::TIMEDOUT);
        }
    }
    Ok(())
}

/// Removes an empty directory, or what else has this name. Returns the directory if it is not empty.
pub(super) fn remove_if_empty(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR) => {
            unlinkat(parent, name, AtFlags::empty())?;
            Ok(None)
        }
        Err(Errno::NOTEMPTY | Errno::EXIST) => open(parent, name),
        Err(errno) => Err(errno),
    }
}

/// Unmounts what is mounted on a directory and below it.
pub(super) fn unmount_all(parent: BorrowedFd<'_>, name: &CStr) {
    let Ok(name) = name.to_str() else { return };
    let path = format!("/proc/self/fd/{}/{name}", parent.as_raw_fd());
    // The error says that nothing is mounted any more, or that this process could not have mounted it.
    while unmount(&*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
}

/// Opens a directory for reading, whatever its owner has permitted. Returns `None` if it has gone.
fn open(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    let directory = match openat(parent, name, OFlags::PATH | DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    // The path leads to this very directory, whatever has its name now. Only its owner and root may do
    // that; if it fails, the next step says why.
    let _ = chmod(format!("/proc/self/fd/{}", directory.as_raw_fd()), Mode::RWXU);
    openat(&directory, c".", DIRECTORY, Mode::empty()).map(Some)
}

/// Removes the contents of a directory.
fn remove_contents(top: &OwnedFd, deadline: Instant) -> Result<()> {
    let mut next_name = 0;
    loop {
        let mut is_empty = true;
        for entry in Dir::read_from(top)? {
            let entry = entry?;
            let name = entry.file_name();
            if is_own(name) {
                continue;
            }
            is_empty = false;
            if let Some(directory) = remove_entry(top.as_fd(), name)? {
                move_up(&directory, top, &mut next_name)?;
            }
            if Instant::now() >= deadline {
                return Err(Errno::TIMEDOUT);
            }
        }
        if is_empty {
            return Ok(());
        }
    }
}

/// Removes the files of a directory, and moves its directories up to `top`.
fn move_up(directory: &OwnedFd, top: &OwnedFd, next_name: &mut u64) -> Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if is_own(name) || remove_entry(directory.as_fd(), name)?.is_none() {
            continue;
        }
        loop {
            let wanted = format!("moved-{next_name}");
            *next_name += 1;
            match renameat_with(directory, name, top, &*wanted, RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

/// Removes a file of any kind or an empty directory. Returns a directory that is not empty.
fn remove_entry(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(None),
        // Linux says EISDIR; POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => remove_if_empty(parent, name),
        Err(errno) => Err(errno),
    }
}

fn is_own(name: &CStr) -> bool {
    name == c"." || name == c".."
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::Duration;

    use super::*;

    fn removed(build: impl FnOnce(&std::path::Path)) -> (tempfile::TempDir, Result<()>) {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        fs::create_dir(&tree).unwrap();
        build(&tree);
        let parent = fs::File::open(folder.path()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        let result = remove(parent.as_fd(), c"tree", deadline);
        assert!(result.is_err() || !tree.exists());
        (folder, result)
    }

    #[test]
    fn a_deep_tree_needs_few_descriptors() {
        let (_folder, result) = removed(|tree| {
            let mut at: OwnedFd = fs::File::open(tree).unwrap().into();
            for _ in 0..5_000 {
                rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
                at = openat(&at, c"d", DIRECTORY, Mode::empty()).unwrap();
            }
        });
        result.unwrap();
    }

    #[test]
    fn links_are_removed_and_what_they_lead_to_stays() {
        let outside = tempfile::tempdir().unwrap();
        let file = outside.path().join("file");
        fs::write(&file, "kept").unwrap();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        let (_folder, result) = removed(|tree| {
            symlink(outside.path(), tree.join("to a folder")).unwrap();
            symlink("..", tree.join("up")).unwrap();
            symlink("/nonexistent", tree.join("to nothing")).unwrap();
            fs::hard_link(&file, tree.join("hard")).unwrap();
            fs::create_dir(tree.join("sub")).unwrap();
            symlink(outside.path(), tree.join("sub/link")).unwrap();
        });
        result.unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode(), mode);
    }

    #[test]
    fn a_tree_that_is_a_link_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "kept").unwrap();
        let (_folder, result) = removed(|tree| {
            fs::remove_dir(tree).unwrap();
            symlink(outside.path(), tree).unwrap();
        });
        result.unwrap();
        assert!(outside.path().join("file").exists());
    }

    #[test]
    fn directories_without_permissions_and_special_files_are_removed() {
        let (_folder, result) = removed(|tree| {
            let inner = tree.join("a/b");
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join("file"), "").unwrap();
            fs::write(tree.join("moved-0"), "").unwrap();
            let fifo = tree.join("a/fifo");
            rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
                .unwrap();
            let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
            for closed in [&inner, &tree.join("a")] {
                fs::set_permissions(closed, PermissionsExt::from_mode(0o000)).unwrap();
            }
        });
        result.unwrap();
    }

    #[test]
    fn it_gives_up_at_its_deadline() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("tree/a/b")).unwrap();
        let parent = fs::File::open(folder.path()).unwrap();
        let over = Instant::now();
        assert_eq!(remove(parent.as_fd(), c"tree", over), Err(Errno::TIMEDOUT));
    }
}
