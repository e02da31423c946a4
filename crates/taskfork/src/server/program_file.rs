//! The file from which a restart executes this program again. It is the path by which the program
//! was started, where a new version may be by then.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Access, access};

/// The running program, even after its file has been replaced or removed.
const RUNNING: &str = "/proc/self/exe";

/// The suffix that the kernel appends to the name of a removed file.
const DELETED: &[u8] = b" (deleted)";

static PATH: OnceLock<PathBuf> = OnceLock::new();

/// The path by which this program was started. It is resolved at the first call: a relative path
/// depends on the working directory, so the first call should be early.
pub(crate) fn path() -> &'static Path {
    PATH.get_or_init(resolve)
}

/// Returns the path that the kernel was given, if it still leads to the running program. It may go
/// through symbolic links, which a new version may change. Otherwise returns the name of the
/// running program's own file.
fn resolve() -> PathBuf {
    let given = OsStr::from_bytes(rustix::param::linux_execfn().to_bytes());
    let given = std::path::absolute(given).ok();
    // These paths lead to the running program for ever, or only as long as a descriptor is open.
    let lasts = |path: &PathBuf| !path.starts_with("/proc") && !path.starts_with("/dev/fd");
    match given.filter(lasts).filter(|path| is_running(path)) {
        Some(path) => path,
        None => without_deleted(std::fs::read_link(RUNNING).unwrap_or_else(|_| RUNNING.into())),
    }
}

fn without_deleted(path: PathBuf) -> PathBuf {
    match path.as_os_str().as_bytes().strip_suffix(DELETED) {
        // A file can really have this name.
        Some(name) if !is_running(&path) => {
            PathBuf::from(std::ffi::OsString::from_vec(name.into()))
        }
        _ => path,
    }
}

/// Whether this is the file of the running program.
fn is_running(path: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(path).is_some_and(|file| Some(file) == identity(Path::new(RUNNING)))
}

/// Checks whether the file can be executed now.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let file = std::fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("the program {shown} is missing: put it back"),
        _ => format!("the program {shown} cannot be read: {error}"),
    })?;
    if !file.is_file() {
        return Err(format!("{shown} is no file, so it cannot be the program"));
    }
    access(path, Access::EXEC_OK)
        .map_err(|_| format!("the program {shown} is not executable: run `chmod +x` on it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_leads_to_the_running_program() {
        assert!(is_running(path()), "{}", path().display());
        assert!(path().is_absolute());
        assert_eq!(check(path()), Ok(()));
    }

    #[test]
    fn the_mark_of_removed_files_is_no_part_of_the_name() {
        let path = without_deleted("/opt/app (deleted)".into());
        assert_eq!(path, Path::new("/opt/app"));
        assert_eq!(without_deleted("/opt/app".into()), Path::new("/opt/app"));
        // A running program whose name has the suffix.
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("app (deleted)");
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &named).unwrap();
        assert_eq!(without_deleted(named.clone()), named);
    }

    #[test]
    fn what_cannot_be_started_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app");
        let reason = || check(&file).unwrap_err();
        assert!(reason().contains("app is missing"), "{}", reason());
        std::fs::write(&file, "").unwrap();
        assert!(reason().contains("app is not executable"), "{}", reason());
        let folder_itself = check(folder.path()).unwrap_err();
        assert!(folder_itself.contains("is no file"), "{folder_itself}");
    }
}
