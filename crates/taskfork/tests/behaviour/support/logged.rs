//! Servers whose log a test reads.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use taskfork::server::ServerStatus;

use super::processes::{Program, is_gone, signal};
use super::until;

/// A server that a test has started in a session of its own, with a log. What has taken over from it ends with it.
pub(crate) struct Logged {
    folder: PathBuf,
    group: u32,
    program: Option<Program>,
}

impl Logged {
    /// Starts it; its status socket is to be `s.status` in this folder.
    pub(crate) async fn start(folder: &Path, mut command: Command) -> Self {
        let log = File::create(folder.join("log")).unwrap();
        let program =
            Program::new(command.stderr(log.try_clone().unwrap()).stdout(log).spawn().unwrap());
        let group = program.pid();
        let server = Self { folder: folder.to_owned(), group, program: Some(program) };
        until("the server", || server.server().is_some()).await;
        server
    }

    /// The process that was started.
    pub(crate) fn pid(&self) -> u32 {
        self.program.as_ref().unwrap().pid()
    }

    /// The process that serves now.
    pub(crate) fn server(&self) -> Option<u32> {
        ServerStatus::read(self.folder.join("s.status")).ok().map(|status| status.pid)
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub(crate) async fn logs(&self, text: &str) {
        until(&format!("`{text}` in the log"), || self.log().contains(text)).await;
    }

    /// Waits until a call runs.
    pub(crate) async fn is_busy(&self) {
        let busy = || {
            let status = ServerStatus::read(self.folder.join("s.status"));
            status.is_ok_and(|status| status.workers.iter().any(|worker| worker.state == "busy"))
        };
        until("a busy worker", busy).await;
    }

    /// Starts a new server that takes over, and returns its process id.
    pub(crate) async fn restart(&self) -> u32 {
        let before = self.server().unwrap();
        signal(if is_gone(self.pid()) { before } else { self.pid() }, libc::SIGHUP);
        self.takes_over_from(before).await
    }

    /// Waits until another server serves, and gives its process id.
    pub(crate) async fn takes_over_from(&self, before: u32) -> u32 {
        let mut next = None;
        until("a new server", || {
            next = self.server().filter(|&pid| pid != before);
            next.is_some() && is_gone(before)
        })
        .await;
        next.unwrap()
    }

    /// Waits for the end of the program that was started.
    pub(crate) async fn end(mut self) -> ExitStatus {
        self.program.take().unwrap().end().await
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        // The servers have not left the group, and it may be empty.
        // SAFETY: a plain system call on processes of the test's own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(-self.group.cast_signed(), libc::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
