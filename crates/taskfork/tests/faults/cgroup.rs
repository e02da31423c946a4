//! A group of processes of which the kernel limits the number, where this program may make one.

use std::path::{Path, PathBuf};

/// Where the kernel offers them: in a hierarchy of their own, or in the one for all.
const ROOTS: [&str; 2] = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"];

pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// A new one for this process and what it will start.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        ROOTS.iter().find_map(|root| {
            let path = Path::new(root).join(format!("taskfork-faults-{pid}"));
            std::fs::create_dir(&path).ok()?;
            let cgroup = Self(path);
            let fits = cgroup.0.join("pids.max").exists();
            (fits && cgroup.write("cgroup.procs", &pid.to_string())).then_some(cgroup)
        })
    }

    /// Sets the most processes that the group may have. Existing processes stay.
    pub(crate) fn allow(&self, most: &str) -> bool {
        self.write("pids.max", most)
    }

    fn write(&self, file: &str, text: &str) -> bool {
        std::fs::write(self.0.join(file), text).is_ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // It can be removed once its last process is reaped.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
