//! Functions that inspect processes and end those that a test has started.

use std::process::{Child, ExitStatus};

pub(crate) fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// Sends SIGSTOP, and waits until the process has stopped.
pub(crate) async fn stop(pid: u32) {
    signal(pid, libc::SIGSTOP);
    super::until("the process has stopped", || state(pid) == Some('T')).await;
}

/// The letter for a process's state, as in `ps`.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// A process that is not there, or is dead and waits to be reaped by its parent.
pub(crate) fn is_gone(pid: u32) -> bool {
    state(pid).is_none_or(|state| state == 'Z')
}

pub(crate) fn command_line(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ")
}

/// A server's workers, and what else it has started but for its guardian.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    all_children(pid).into_iter().filter(|&child| !is_guardian(child)).collect()
}

pub(crate) fn guardian(server: u32) -> Option<u32> {
    all_children(server).into_iter().find(|&child| is_guardian(child))
}

fn is_guardian(pid: u32) -> bool {
    command_line(pid).starts_with("taskfork-guardian:")
}

pub(crate) fn all_children(pid: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .map(|child| child.parse().unwrap())
        .collect()
}

/// All that a process has started, and what that has started.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let children = all_children(pid);
    let below: Vec<u32> = children.iter().flat_map(|&child| descendants(child)).collect();
    [children, below].concat()
}

pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call on a process of the test's own.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(sent, 0, "cannot signal {pid}");
}

/// Changes what a process may use from here on.
pub(crate) fn set_limit(pid: u32, resource: libc::__rlimit_resource_t, most: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it reads and writes what is there, and changes a process of the test's own.
    #[allow(unsafe_code)]
    let set = unsafe {
        libc::prlimit(pid as i32, resource, std::ptr::null(), &raw mut limit);
        limit.rlim_cur = most;
        libc::prlimit(pid as i32, resource, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0, "cannot limit {pid}");
}

/// A program that a test has started; it does not outlive the test.
pub(crate) struct Program(Option<Child>);

impl Program {
    pub(crate) fn new(child: Child) -> Self {
        Self(Some(child))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    /// Waits for the program's end.
    pub(crate) async fn end(mut self) -> ExitStatus {
        let mut child = self.0.take().unwrap();
        tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap()
    }

    pub(crate) async fn kill(self) -> ExitStatus {
        signal(self.pid(), libc::SIGKILL);
        self.end().await
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
