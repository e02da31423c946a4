//! Servers of the command under test, for all of its tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses what it needs")]

pub mod terminal;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::Command as TestCommand;
use serde_json::Value;

/// Sets SIGHUP to its default action. Tests may run under `nohup`, and their servers would inherit that SIGHUP is
/// ignored.
pub fn reset_sighup() {
    // SAFETY: no handler is set.
    #[allow(unsafe_code)]
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_DFL)
    };
}

pub fn taskfork() -> TestCommand {
    reset_sighup();
    let mut command = TestCommand::new(env!("CARGO_BIN_EXE_taskfork"));
    command.env_remove("RUST_LOG");
    command
}

/// The worker of these tests, an example that is built with them.
pub fn worker() -> PathBuf {
    let folder = Path::new(env!("CARGO_BIN_EXE_taskfork")).parent().unwrap();
    folder.join("examples/plain_worker")
}

/// A server that ends with the test.
pub struct Server {
    pub folder: tempfile::TempDir,
    pub program: Child,
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
        command.args(["serve", "--protocol", "json", "--listen", &address(folder.path())]);
        command.args(options).arg("--").arg(worker());
        Self::run(folder, command)
    }

    pub fn run(folder: tempfile::TempDir, command: Command) -> Self {
        let server = Self::start_only(folder, command);
        until("the server", || server.log().contains("listening at"));
        server
    }

    /// Does not wait until it serves.
    pub fn start_only(folder: tempfile::TempDir, mut command: Command) -> Self {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        command.env_remove("RUST_LOG");
        reset_sighup();
        let program = command.stderr(log).stdin(Stdio::null()).spawn().unwrap();
        Self { folder, program }
    }

    pub fn address(&self) -> String {
        address(self.folder.path())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn call(&self, words: &[&str]) -> TestCommand {
        let mut command = taskfork();
        command.arg("call").arg(self.address()).args(words);
        command
    }

    pub fn status(&self) -> Value {
        let mut command = taskfork();
        let out = command.args(["top", &self.address(), "--once", "--json"]).output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.program.id().cast_signed()).unwrap();
        // The test may have ended it.
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::CONT] {
            let _ = rustix::process::kill_process(pid, signal);
        }
        self.program.wait().unwrap();
    }
}

pub fn address(folder: &Path) -> String {
    format!("unix:{}", folder.join("s").display())
}

pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
