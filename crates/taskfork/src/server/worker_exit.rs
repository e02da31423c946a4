//! What is known and told of a worker that has ended.

use std::os::fd::OwnedFd;

use log_defer::printable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::Signal;

use super::limits::{Limit, WorkerLimits};
use super::log;
use super::oom::OomKills;
use super::stack;
use crate::context::Peer;
use crate::error::{Activity, End};
use crate::wire::WireError;
use crate::wire::death_notice::DeathNotice;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME};
use crate::worker::scoreboard::{Phase, Retirement, ServerSlot};

/// The causes of deaths, as they are counted.
pub(super) mod cause {
    pub(in crate::server) const TIMED_OUT: &str = "timed_out";
    pub(in crate::server) const HUNG: &str = "hung";
    pub(in crate::server) const CLIENT_GONE: &str = "client_gone";
    pub(in crate::server) const SHUTDOWN: &str = "shutdown";
    pub(in crate::server) const LIMIT: &str = "limit";
    pub(in crate::server) const OUT_OF_MEMORY: &str = "out_of_memory";
    pub(in crate::server) const FINISHED: &str = "finished";
    pub(in crate::server) const EXITED: &str = "exited";
    pub(in crate::server) const SIGNALED: &str = "signaled";
    pub(in crate::server) const SETUP_FAILED: &str = "setup_failed";
    pub(in crate::server) const MAX_AGE: &str = "max_age";
    pub(in crate::server) const MAX_IDLE: &str = "max_idle";
    pub(in crate::server) const MAX_CALLS: &str = "max_calls";
    pub(in crate::server) const MAX_MEMORY: &str = "max_memory";
    pub(in crate::server) const DISMISSED: &str = "dismissed";
    pub(in crate::server) const MADE_ROOM: &str = "made_room";
    pub(in crate::server) const CORRUPT: &str = "corrupt";
}

/// What is left of a worker.
pub(crate) struct WorkerExit {
    pub(crate) slot: ServerSlot,
    pub(crate) news: DeathNotification,
    /// Where it hung, if it was killed for that and has told.
    pub(crate) stack: Option<Vec<u64>>,
    /// Why it ended, as it is counted.
    pub(crate) cause: &'static str,
    /// It never served anybody, and this is why.
    pub(crate) spare_failure: Option<String>,
}

/// What is to be told to a dead worker's client.
pub(crate) struct DeathNotification {
    pub(super) connection: OwnedFd,
    pub(super) notice: Option<DeathNotice>,
}

impl DeathNotification {
    pub(crate) fn tell(self) {
        if let Some(notice) = &self.notice {
            tell(&self.connection, notice);
        }
        // The end of a worker is that of its process, whoever else holds the connection: what the worker has started, or
        // whom it has passed it to.
        let _ = shutdown(&self.connection, Shutdown::Both);
        // A worker can have set it, and closing the connection would then wait for a client that does not read.
        let _ = set_socket_linger(&self.connection, None);
    }

    /// Leaves out what can tell of the server's machine.
    pub(crate) fn omit_details(&mut self) {
        if let Some(notice) = &mut self.notice {
            (notice.stderr, notice.stack, notice.no_stack) = (None, None, None);
        }
    }

    /// In a process that does nothing else: with the names of what is on the stack.
    pub(crate) fn tell_with(mut self, stack: Vec<u64>) {
        if let Some(notice) = &mut self.notice {
            match stack::describe(stack, notice.timed_out) {
                Ok(stack) => notice.stack = Some(stack).filter(|stack| !stack.is_empty()),
                Err(reason) => notice.no_stack = Some(reason),
            }
        }
        self.tell();
    }

    pub(crate) fn has_notice(&self) -> bool {
        self.notice.is_some()
    }
}

/// Why a worker ended that the server did not kill, as it is counted, and in words where there is
/// more to say.
pub(super) fn classify_exit(
    end: End,
    retirement: Option<Retirement>,
    allocation_failed: bool,
    limits: &WorkerLimits,
    out_of_memory: &OomKills,
) -> (&'static str, &'static str) {
    let signal = match end {
        End::Exited(0) => {
            let cause = match retirement {
                Some(Retirement::Age) => cause::MAX_AGE,
                Some(Retirement::Idleness) => cause::MAX_IDLE,
                Some(Retirement::Calls) => cause::MAX_CALLS,
                Some(Retirement::Memory) => cause::MAX_MEMORY,
                Some(Retirement::Requested) => cause::DISMISSED,
                Some(Retirement::Fairness) => cause::MADE_ROOM,
                Some(Retirement::Shutdown) | None => cause::FINISHED,
            };
            return (cause, "");
        }
        End::Signaled(signal) => Signal::from_named_raw(signal),
        _ => return (cause::EXITED, ""),
    };
    match signal {
        Some(Signal::XCPU) if limits.has(Limit::CpuTime) => {
            (cause::LIMIT, "its limit of processor time was reached")
        }
        Some(Signal::ABORT) if limits.has(Limit::AddressSpace) && allocation_failed => {
            (cause::LIMIT, "its limit of address space was reached")
        }
        Some(Signal::KILL) if out_of_memory.check() => (cause::OUT_OF_MEMORY, "out of memory"),
        _ => (cause::SIGNALED, ""),
    }
}

/// What the log says of a worker that has ended.
pub(super) struct ExitLogEntry<'a> {
    pub(super) worker: u64,
    pub(super) pid: u32,
    pub(super) client: Option<Peer>,
    pub(super) end: End,
    pub(super) phase: Phase,
    /// The method that it ran, or had run last.
    pub(super) method: &'a str,
    pub(super) reason: Option<&'a str>,
    /// It left though it was not told to, and its client was still there.
    pub(super) is_unexpected: bool,
}

impl ExitLogEntry<'_> {
    /// One line a death, with the worker's client, where that is known.
    pub(super) fn log(&self) {
        let &Self { worker, pid, client, end, phase, reason, is_unexpected, .. } = self;
        let activity = phase.activity();
        let mut during = activity.map(|during| format!(" {during}")).unwrap_or_default();
        let method = Some(self.method).filter(|_| activity == Some(Activity::Call));
        let method = method.filter(|method| !method.is_empty()).map(printable);
        if let Some(method) = &method {
            during += &format!(" of `{method}`");
        }
        let (uid, client) = (client.map(|peer| peer.uid), client.map(|peer| peer.pid));
        match (end, reason) {
            (End::Exited(0), None) if !is_unexpected => {
                log::debug!(worker, pid, uid, client, "a worker ended");
            }
            (_, Some(reason)) => {
                let method = method.as_deref();
                log::warn!(worker, pid, uid, client, method, "a worker {end}{during}: {reason}");
            }
            (_, None) => {
                let method = method.as_deref();
                log::warn!(worker, pid, uid, client, method, "a worker {end}{during}");
            }
        }
    }
}

/// Whether the client has closed its end of a connection, or the half that it sends through.
pub(super) fn has_peer_closed(connection: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::new(connection, PollFlags::RDHUP)];
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn tell(connection: &OwnedFd, notice: &DeathNotice) {
    let mut out = Vec::new();
    let written = frame::write::<WireError>(&mut out, DEFAULT_MAX_FRAME, |out| {
        notice.put(out);
        Ok(())
    });
    if written.is_ok() {
        // A client that is gone or does not read sees the end of the connection all the same.
        let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn closing_a_connection_does_not_wait_for_the_client_as_its_worker_has_wished() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut worker, _) = listener.accept().unwrap();
        worker.set_nonblocking(true).unwrap();
        set_socket_linger(&worker, Some(Duration::from_secs(3600))).unwrap();
        while worker.write(&[0; 65536]).is_ok() {}
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            DeathNotification { connection: worker.into(), notice: None }.tell();
            done.send(())
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(client);
    }
}
