//! The file with the addresses of name servers, which is replaced while a system runs: what a confined gateway may read of
//! it, and when that is no longer enough.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::gateway_options::folder;

/// The file.
pub(crate) const FILE: &str = "/etc/resolv.conf";

/// What a gateway may read. The kernel's rules belong to files and folders, not to paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NameServers {
    /// A folder for such files only, to which a link leads. The file may be replaced there.
    Folder(PathBuf),
    /// The file itself, by its device and inode: others stand beside it. A new file is another one.
    File { path: PathBuf, device: u64, inode: u64 },
}

impl NameServers {
    /// What this file is now. `None` if there is none.
    pub(crate) fn of(file: &Path) -> Option<Self> {
        let target = fs::canonicalize(file).or_else(|_| {
            // It leads to a file that is not there yet.
            fs::read_link(file).map(|target| folder(file).join(target))
        });
        let target = target.ok()?;
        let beside = fs::canonicalize(folder(&target)).ok()?;
        let own = fs::canonicalize(folder(file)).ok()?;
        // The root, a folder in it such as /run, and the folder of the link have much else.
        if beside.components().count() > 2 && !own.starts_with(&beside) {
            return Some(Self::Folder(beside));
        }
        let metadata = fs::metadata(&target).ok()?;
        Some(Self::File { path: target, device: metadata.dev(), inode: metadata.ino() })
    }

    /// What a sandbox opens for reading.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File { path, .. } => path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_its_own_is_open() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (etc, run) = (root.join("etc"), root.join("run"));
        for folder in [&etc, &run] {
            fs::create_dir(folder).unwrap();
        }
        let file = etc.join("resolv.conf");
        let link = |target: &Path| {
            let _ = fs::remove_file(&file);
            std::os::unix::fs::symlink(target, &file).unwrap();
            NameServers::of(&file)
        };
        let found = || NameServers::of(&file).unwrap();
        assert_eq!(NameServers::of(&file), None, "it is not there yet");
        fs::write(&file, "").unwrap();
        assert_eq!(found().path(), file);

        // Links to a file that is not there yet, and then is.
        let expected = Some(NameServers::Folder(run.clone()));
        for target in [run.join("stub.conf"), PathBuf::from("../run/stub.conf")] {
            assert_eq!(link(&target), expected);
        }
        fs::write(run.join("stub.conf"), "").unwrap();
        assert_eq!(NameServers::of(&file), expected);

        // Links to files beside it, and above it.
        for target in [etc.join("resolv.conf.dhcp"), root.join("resolv.conf")] {
            assert_eq!(link(&target), None);
            fs::write(&target, "").unwrap();
            assert_eq!(found().path(), target);
        }
        assert_eq!(NameServers::of(&root.join("none/resolv.conf")), None);
        // A folder in the root has much else.
        assert_eq!(link(Path::new("/run/no-such-file-of-a-test")), None);
    }

    #[test]
    fn a_file_that_takes_the_place_of_another_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (file, new) = (folder.path().join("resolv.conf"), folder.path().join("new"));
        fs::write(&file, "").unwrap();
        let before = NameServers::of(&file);
        fs::write(&file, "nameserver 10.0.0.1").unwrap();
        assert_eq!(NameServers::of(&file), before);
        fs::write(&new, "").unwrap();
        fs::rename(&new, &file).unwrap();
        assert_ne!(NameServers::of(&file), before);
    }
}
