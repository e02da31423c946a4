//! A program's hold on a server that it started.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use super::control::{FirstWord, Link};
use super::error::ServerError;
use crate::address::{Address, Place};
use crate::error::End;

/// A server in a process of its own, started by [`Server::spawn`](crate::Server::spawn) or
/// [`Server::fork`](crate::Server::fork).
///
/// Dropping the handle shuts the server down gracefully without waiting for it. The server also
/// shuts down when this program ends, however it ends.
#[derive(Debug)]
pub struct ServerHandle {
    address: Address,
    process: Process,
}

/// The server's process, reaped once.
struct Process {
    link: Link,
    pidfd: Option<OwnedFd>,
}

impl ServerHandle {
    /// Waits for the server's first word.
    pub(crate) fn start(pid: u32, socket: OwnedFd) -> Result<Self, ServerError> {
        let link = Link::new(pid, socket);
        let pidfd = Pid::from_raw(pid.cast_signed())
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .map_err(ServerError::system("cannot watch the server's process"))?;
        let mut process = Process { link: link.clone(), pidfd: Some(pidfd) };
        match link.first_word() {
            FirstWord::Ready(Some(address)) => Ok(Self { address: address.parse()?, process }),
            FirstWord::Ready(None) => Ok(Self { address: Address(Place::Handle(link)), process }),
            FirstWord::Failed(message) => {
                process.wait();
                Err(ServerError::Startup { message })
            }
            FirstWord::Nothing => {
                let end = process.wait();
                let message = format!("its process {end} before it called `run`");
                Err(ServerError::Startup { message })
            }
        }
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.link.pid()
    }

    /// Where clients reach the server: the address that it listens on, with the port that the
    /// kernel chose, or, without one, a way through this handle that no other process has.
    pub fn address(&self) -> Address {
        self.address.clone()
    }

    /// Asks the server to stop accepting, finish what runs and end. Does not wait.
    pub fn shutdown(&self) {
        self.process.link.shut_down();
    }

    /// Shuts the server down gracefully and waits, blocking, until its process and all its workers
    /// have ended.
    pub fn close(mut self) {
        self.process.link.shut_down();
        self.process.wait();
    }

    /// Kills the server at once, and its workers with it, and waits for its end.
    pub fn kill(mut self) {
        if let Some(pidfd) = &self.process.pidfd {
            // It may have ended already.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
        self.process.wait();
    }
}

impl Process {
    fn wait(&mut self) -> End {
        self.pidfd.take().map_or(End::Unknown, |pidfd| reap(&pidfd))
    }
}

fn reap(pidfd: &OwnedFd) -> End {
    use std::os::fd::AsFd;
    match retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => End::Exited(code),
            (None, Some(signal)) => End::Signaled(signal),
            (None, None) => End::Unknown,
        },
        _ => End::Unknown,
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(pidfd) = self.pidfd.take() else { return };
        self.link.shut_down();
        // Somebody must take the exit status, or a zombie stays. Without a thread to spare it stays
        // until this program ends.
        let _ = std::thread::Builder::new()
            .name("taskfork-reaper".to_owned())
            .spawn(move || reap(&pidfd));
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Process({})", self.link.pid())
    }
}
