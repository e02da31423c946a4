//! The file of a unix socket, and the lock file beside it. All calls use a folder that is opened
//! once, and names without a path. None of them follows a symbolic link. Another user may be able
//! to write to the folder.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[cfg(not(test))]
use rustix::fs::flock;
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, Stat, fstat, open, openat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::error::ServerError;
use super::log;
use crate::display::seconds;
#[cfg(test)]
use without_locks::flock;

/// How long to wait for another server that is starting or stopping at the same path.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// A path, as an open folder and a name in it.
#[derive(Debug)]
pub(super) struct SocketPath {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl SocketPath {
    pub(super) fn open(path: &Path) -> Result<Self, ServerError> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let failed =
            |errno: Errno| ServerError::Folder { folder: folder.to_owned(), source: errno.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = path.file_name().ok_or_else(|| failed(Errno::ISDIR))?.to_owned();
        let folder = open(folder, flags, Mode::empty()).map_err(failed)?;
        Ok(Self { folder, name, path: path.to_owned() })
    }

    pub(super) fn stat(&self) -> rustix::io::Result<Stat> {
        self.stat_of(&self.name)
    }

    fn stat_of(&self, name: &OsStr) -> rustix::io::Result<Stat> {
        statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn remove(&self) -> rustix::io::Result<()> {
        unlinkat(&self.folder, &self.name, AtFlags::empty())
    }

    /// Returns the socket that this process has just bound.
    pub(super) fn bound(&self) -> rustix::io::Result<SocketFile> {
        let file = self.stat()?;
        // Otherwise the path leads to another folder now.
        if !is_own_socket(&file) {
            return Err(Errno::STALE);
        }
        Ok(SocketFile::owned(&self.path, Identity::of(&file)))
    }

    /// Locks the path, so that no two servers find it free. Waits up to `within` for a server that
    /// holds the lock. Returns `None` on file systems without locks. There, two servers that start at
    /// the same time can both take the path if a dead server has left its socket.
    ///
    /// The lock is the file `PATH.lock` beside the socket. It belongs to this user and has the mode
    /// 0600, so no other user can hold it. It exists only while a server starts or stops.
    pub(super) fn lock(&self, within: Duration) -> Result<Option<Lock<'_>>, ServerError> {
        let mut name = self.name.clone();
        name.push(".lock");
        let deadline = Instant::now() + within;
        let failed = |source: io::Error| {
            let mut path = self.path.clone();
            path.set_file_name(&name);
            ServerError::Lock { path, source }
        };
        let refused = |kind, reason: String| Err(failed(io::Error::new(kind, reason)));
        let unusable = |errno: Errno| failed(errno.into());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            let mode = Mode::RUSR | Mode::WUSR;
            let file = openat(&self.folder, &name, flags | OFlags::NONBLOCK, mode);
            let file = file.map_err(unusable)?;
            let opened = fstat(&file).map_err(unusable)?;
            if opened.st_uid != geteuid().as_raw() {
                let reason = format!("it belongs to the user {}", opened.st_uid);
                return refused(ErrorKind::PermissionDenied, reason);
            }
            // The file must have no other name. A process that can read a file under another name
            // could hold the lock.
            let is_file = FileType::from_raw_mode(opened.st_mode) == FileType::RegularFile;
            if !is_file || opened.st_nlink > 1 {
                let reason = "it is no regular file, or it has another name".to_owned();
                return refused(ErrorKind::InvalidInput, reason);
            }
            let mut lock = Lock { socket_path: self, name: name.clone(), file, is_held: false };
            loop {
                match flock(&lock.file, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(Errno::WOULDBLOCK) => {
                        let held = seconds(within);
                        let reason = format!("another server has held it for {held}");
                        return refused(ErrorKind::TimedOut, reason);
                    }
                    Err(errno) if is_unsupported(errno) => {
                        let path = self.path.display();
                        log::warn!(
                            "the file system of {path} has no locks ({errno}): do not start two \
                             servers there at the same time"
                        );
                        lock.remove();
                        return Ok(None);
                    }
                    Err(errno) => return Err(unusable(errno)),
                }
            }
            // The server that held the lock before has removed the file, and another may have made
            // a new one.
            lock.is_held = lock.is_there();
            if lock.is_held {
                return Ok(Some(lock));
            }
            if Instant::now() >= deadline {
                let reason = "other servers remove it again and again".to_owned();
                return refused(ErrorKind::TimedOut, reason);
            }
        }
    }
}

fn is_own_socket(file: &Stat) -> bool {
    FileType::from_raw_mode(file.st_mode) == FileType::Socket && file.st_uid == geteuid().as_raw()
}

/// Whether the file system has no locks.
fn is_unsupported(errno: Errno) -> bool {
    matches!(errno, Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL)
}

/// A lock on a path, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock<'s> {
    socket_path: &'s SocketPath,
    name: OsString,
    file: OwnedFd,
    is_held: bool,
}

impl Lock<'_> {
    /// Whether the file still has its name.
    fn is_there(&self) -> bool {
        match (fstat(&self.file), self.socket_path.stat_of(&self.name)) {
            (Ok(own), Ok(there)) => Identity::of(&own) == Identity::of(&there),
            _ => false,
        }
    }

    fn remove(&self) {
        if self.is_there() {
            let _ = unlinkat(&self.socket_path.folder, &self.name, AtFlags::empty());
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        // The file is removed while the lock is held. A server that gets the lock next then finds
        // that the name is gone.
        if self.is_held {
            self.remove();
        }
    }
}

/// The file of a unix socket, known by its identity. When the process that made it drops it, the
/// file is removed.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Identity,
    owner: u32,
}

/// The identity of a file on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(file: &Stat) -> Self {
        Self { device: file.st_dev, inode: file.st_ino }
    }

    /// Parses what `Display` shows.
    pub(super) fn from_text(text: &str) -> Option<Self> {
        let (device, inode) = text.split_once(':')?;
        Some(Self { device: device.parse().ok()?, inode: inode.parse().ok()? })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.device, self.inode)
    }
}

impl SocketFile {
    /// A file that this process removes in the end.
    pub(super) fn owned(path: &Path, identity: Identity) -> Self {
        Self { path: path.to_owned(), identity, owner: std::process::id() }
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Leaves the file to another server.
    pub(super) fn disown(&mut self) {
        self.owner = 0;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A worker that was forked from the server drops this too.
        if self.owner != std::process::id() {
            return;
        }
        let Ok(socket_path) = SocketPath::open(&self.path) else { return };
        // The lock keeps a new server from binding its socket in between.
        let _lock = socket_path.lock(LOCK_TIMEOUT);
        if socket_path.stat().is_ok_and(|file| Identity::of(&file) == self.identity) {
            let _ = socket_path.remove();
        }
    }
}

/// Stands for `flock(2)` in tests, as no file system of an ordinary machine lacks it.
#[cfg(test)]
pub(super) mod without_locks {
    use std::cell::Cell;
    use std::os::fd::AsFd;

    use rustix::fs::FlockOperation;
    use rustix::io::{Errno, Result};

    thread_local! {
        static ERROR: Cell<Option<Errno>> = const { Cell::new(None) };
    }

    /// Runs `test` while every `flock` of this thread fails with this error.
    pub(in crate::server) fn run<T>(error: Errno, test: impl FnOnce() -> T) -> T {
        ERROR.set(Some(error));
        let result = test();
        ERROR.set(None);
        result
    }

    pub(in crate::server) fn flock(file: impl AsFd, operation: FlockOperation) -> Result<()> {
        match ERROR.get() {
            Some(error) => Err(error),
            None => rustix::fs::flock(file, operation),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn socket_path(folder: &tempfile::TempDir) -> SocketPath {
        SocketPath::open(&folder.path().join("s")).unwrap()
    }

    #[test]
    fn a_lock_is_held_by_one_at_a_time_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let running = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let socket_path = SocketPath::open(&path).unwrap();
                        let lock = socket_path.lock(LOCK_TIMEOUT).unwrap().unwrap();
                        assert_eq!(running.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_is_for_its_user_alone_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let socket_path = socket_path(&folder);
        let file = folder.path().join("s.lock");
        let lock = socket_path.lock(LOCK_TIMEOUT).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        drop(lock);

        let precious = folder.path().join("precious");
        std::os::unix::fs::symlink(&precious, &file).unwrap();
        let error = socket_path.lock(LOCK_TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("s.lock"), "{error}");
        assert!(!precious.exists());
    }

    #[test]
    fn a_lock_of_another_user_is_refused() {
        if !geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s.lock");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(65_534), Some(65_534)).unwrap();
        let error = socket_path(&folder).lock(LOCK_TIMEOUT).unwrap_err().to_string();
        assert!(error.contains("belongs to the user 65534"), "{error}");
        assert!(file.exists());
    }

    #[test]
    fn a_lock_on_the_folder_does_not_delay_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let reader = open(folder.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let reader = reader.unwrap();
        flock(&reader, FlockOperation::LockExclusive).unwrap();
        // With a lock on the folder it would time out here.
        assert!(socket_path(&folder).lock(LOCK_TIMEOUT).unwrap().is_some());
    }
}
