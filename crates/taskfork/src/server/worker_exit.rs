//! How a worker exited: its cause, the log entry, and the notification of its client.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::os::fd::OwnedFd;

use log_defer::printable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use rustix::process::Signal;
use taskfork_sandbox::system_call_name;

use super::limits::{Limit, WorkerLimits};
use super::log;
use super::oom::OomKills;
use super::stack;
use super::status::DeathStatus;
use crate::error::{Activity, End};
use crate::peer::Peer;
use crate::sys;
use crate::wire::death_notice::DeathNotice;
use crate::wire::frame;
use crate::worker::scoreboard::{Phase, Retirement, ServerSlot};

/// The causes of exits, as [`ServerStatus::deaths`](crate::server::ServerStatus::deaths) counts them.
pub(in crate::server) mod cause {
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
    pub(in crate::server) const SANDBOX: &str = "sandbox";
    pub(in crate::server) const CORRUPT: &str = "corrupt";
}

/// In bytes, enough for a notice without standard error and without a stack.
const USUAL_NOTICE: usize = 256;

/// A worker that has been reaped.
pub(crate) struct WorkerExit {
    pub(crate) slot: ServerSlot,
    pub(crate) notification: DeathNotification,
    /// The addresses of its stack, if it was killed after a timeout and has reported them.
    pub(crate) stack: Option<Vec<u64>>,
    pub(crate) cause: &'static str,
    /// Why a spare worker failed before it got a client.
    pub(crate) spare_failure: Option<String>,
    /// What is kept of it, unless it left in order.
    pub(crate) death: Option<DeathStatus>,
}

/// What the server reports to a dead worker's client.
pub(crate) struct DeathNotification {
    pub(super) connection: OwnedFd,
    pub(super) notice: Option<DeathNotice>,
}

impl DeathNotification {
    /// Sends the notice, if there is one, and ends the connection.
    pub(crate) fn send(self) {
        if let Some(notice) = &self.notice {
            send_notice(&self.connection, notice);
        }
        // The connection ends with the worker, even if other processes hold copies of it: processes
        // that the worker has started, or that it has sent it to.
        let _ = shutdown(&self.connection, Shutdown::Both);
        // The worker may have set SO_LINGER, with which closing waits for a client that does not read.
        let _ = set_socket_linger(&self.connection, None);
    }

    /// Sends the notice with the names of the functions on the stack. For a process that exits next.
    pub(crate) fn send_with_stack(mut self, stack: Vec<u64>) {
        if let Some(notice) = &mut self.notice {
            match stack::symbolize(stack, notice.timed_out) {
                Ok(stack) => notice.stack = Some(stack).filter(|stack| !stack.is_empty()),
                Err(reason) => notice.no_stack = Some(reason),
            }
        }
        self.send();
    }

    /// Whether there are details of the server's machine.
    pub(crate) fn has_details(&self) -> bool {
        self.notice.as_ref().is_some_and(|notice| {
            notice.stderr.is_some() || notice.stack.is_some() || notice.no_stack.is_some()
        })
    }

    /// Removes the details of the server's machine.
    pub(crate) fn omit_details(&mut self) {
        if let Some(notice) = &mut self.notice {
            (notice.stderr, notice.stack, notice.no_stack) = (None, None, None);
        }
    }

    pub(crate) fn has_notice(&self) -> bool {
        self.notice.is_some()
    }
}

fn send_notice(connection: &OwnedFd, notice: &DeathNotice) {
    // Growing it would touch more pages of the server's memory.
    let mut out = Vec::with_capacity(USUAL_NOTICE);
    let written = frame::write_control(&mut out, |out| notice.put(out));
    if written.is_ok() {
        // A client that is gone or does not read sees the end of the connection in any case.
        let _ = send(connection, &out, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// What decides about the cause of an exit, besides the worker's own end.
#[derive(Debug)]
pub(crate) struct WorkerRules<'a> {
    pub(crate) limits: &'a WorkerLimits,
    pub(crate) oom_kills: &'a OomKills,
    pub(crate) is_sandboxed: bool,
    /// The kernel has killed a process of the worker for the limit of its control group.
    pub(crate) is_memory_exceeded: bool,
}

/// Finds the cause of an exit that the server did not bring about, with a text if there is more to
/// say.
pub(super) fn classify_exit(
    end: End,
    slot: &ServerSlot,
    allocation_failed: bool,
    rules: &WorkerRules<'_>,
) -> (&'static str, Cow<'static, str>) {
    let &WorkerRules { limits, oom_kills, is_sandboxed, is_memory_exceeded } = rules;
    let signal = match end {
        End::Exited(0) => {
            let cause = match slot.retirement() {
                Some(Retirement::Age) => cause::MAX_AGE,
                Some(Retirement::Idleness) => cause::MAX_IDLE,
                Some(Retirement::Calls) => cause::MAX_CALLS,
                Some(Retirement::Memory) => cause::MAX_MEMORY,
                Some(Retirement::Requested) => cause::DISMISSED,
                Some(Retirement::Fairness) => cause::MADE_ROOM,
                Some(Retirement::Shutdown) | None => cause::FINISHED,
            };
            return (cause, "".into());
        }
        End::Signaled(signal) => Signal::from_named_raw(signal),
        _ => return (cause::EXITED, "".into()),
    };
    let (cause, text) = match signal {
        Some(Signal::SYS) if is_sandboxed => return (cause::SANDBOX, forbidden(slot.violation())),
        Some(Signal::XCPU) if limits.has(Limit::CpuTime) => {
            (cause::LIMIT, "its limit of processor time was reached")
        }
        Some(Signal::ABORT) if limits.has(Limit::AddressSpace) && allocation_failed => {
            (cause::LIMIT, "its limit of address space was reached")
        }
        Some(Signal::ABORT) if limits.has(Limit::Memory) && allocation_failed => {
            (cause::LIMIT, "its limit of memory was reached")
        }
        Some(Signal::KILL) if is_memory_exceeded => {
            (cause::LIMIT, "its limit of memory was reached")
        }
        Some(Signal::KILL) if oom_kills.count_new() > 0 => (cause::OUT_OF_MEMORY, "out of memory"),
        _ => (cause::SIGNALED, ""),
    };
    (cause, text.into())
}

/// Names the system call for which the sandbox killed a worker. The worker may have written any number. A
/// program that the worker has executed writes none.
fn forbidden(number: Option<u64>) -> Cow<'static, str> {
    match number.and_then(|number| i64::try_from(number).ok()) {
        Some(number) => match system_call_name(number) {
            Some(name) => format!("it called `{name}`, which its sandbox forbids").into(),
            None => format!("it made the system call {number}, which its sandbox forbids").into(),
        },
        None => "it made a system call that its sandbox forbids".into(),
    }
}

/// The log entry of a worker's exit.
pub(super) struct ExitLogEntry<'a> {
    pub(super) worker: u64,
    pub(super) pid: u32,
    /// The connection to the worker's client, if it has one.
    pub(super) connection: Option<&'a OwnedFd>,
    /// The client whose connection a gateway relays. It stands in the place of the gateway's process.
    pub(super) relayed_peer: Option<&'a Peer>,
    pub(super) end: End,
    pub(super) phase: Phase,
    pub(super) slot: &'a ServerSlot,
    pub(super) reason: Option<&'a str>,
    /// The worker exited with status 0 and without a reason, after the server had asked it to leave or
    /// its client had gone.
    pub(super) is_regular: bool,
}

impl ExitLogEntry<'_> {
    /// Logs it. What the entry says is put together only if a subscriber takes it: the dead worker's
    /// client waits for its notice meanwhile.
    pub(super) fn log(&self) {
        let &Self { worker, pid, connection, relayed_peer, end, phase, slot, reason, is_regular } =
            self;
        let connection = connection.filter(|_| relayed_peer.is_none());
        let client = LazyCell::new(|| connection.and_then(sys::peer_credentials));
        let uid = || client.map(|peer| peer.uid);
        let client = || client.map(|peer| peer.pid);
        let peer = || relayed_peer.map(ToString::to_string);
        let activity = phase.activity();
        // The method of the current call.
        let method = || {
            let method = Some(slot.method()).filter(|_| activity == Some(Activity::Call));
            method.filter(|method| !method.is_empty()).map(|method| printable(&method).into_owned())
        };
        let during = || {
            let activity = activity.map(|activity| format!(" {activity}")).unwrap_or_default();
            let method = method().map(|method| format!(" of `{method}`")).unwrap_or_default();
            activity + &method
        };
        match reason {
            _ if is_regular => {
                log::debug!(
                    worker,
                    pid,
                    uid = uid(),
                    client = client(),
                    peer = peer(),
                    "a worker ended"
                );
            }
            Some(reason) => log::warn!(
                worker,
                pid,
                uid = uid(),
                client = client(),
                peer = peer(),
                method = method(),
                "a worker {end}{}: {reason}",
                during()
            ),
            None => log::warn!(
                worker,
                pid,
                uid = uid(),
                client = client(),
                peer = peer(),
                method = method(),
                "a worker {end}{}",
                during()
            ),
        }
    }
}

/// Whether the peer has closed its end of a connection, or has shut down its sending side.
pub(super) fn has_peer_closed(connection: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut watched = [PollFd::new(connection, PollFlags::RDHUP)];
    poll(&mut watched, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_forbidden_call_is_named_whatever_number_the_worker_has_written() {
        assert_eq!(
            forbidden(Some(libc::SYS_ptrace as u64)),
            "it called `ptrace`, which its sandbox forbids"
        );
        for (number, expected) in [
            (Some(999_999), "it made the system call 999999, which its sandbox forbids"),
            (Some(u64::MAX - 1), "it made a system call that its sandbox forbids"),
            (None, "it made a system call that its sandbox forbids"),
        ] {
            assert_eq!(forbidden(number), expected);
        }
    }

    #[test]
    fn closing_a_connection_does_not_linger_even_if_its_worker_has_set_that() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut worker, _) = listener.accept().unwrap();
        worker.set_nonblocking(true).unwrap();
        set_socket_linger(&worker, Some(Duration::from_secs(3600))).unwrap();
        while worker.write(&[0; 65536]).is_ok() {}
        let (done, is_done) = mpsc::channel();
        std::thread::spawn(move || {
            DeathNotification { connection: worker.into(), notice: None }.send();
            done.send(())
        });
        is_done.recv_timeout(Duration::from_secs(30)).unwrap();
        drop(client);
    }
}
