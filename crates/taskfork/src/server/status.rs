//! What a server tells of itself and its workers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::error::ServerError;
use super::event_loop::plain;
use super::listener::Listener;
use super::log;
use super::options::Options;
use super::runtime_directory::runtime_directory;
use crate::address::{Address, Place};
use crate::display::seconds;
use crate::worker::scoreboard::Phase;

/// What a server says of itself, as JSON, to whoever connects to its
/// [status socket](crate::ServerBuilder::status_socket).
///
/// ```no_run
/// let status = taskfork::server::ServerStatus::read("/run/adder.sock.status")?;
/// for worker in &status.workers {
///     println!("{} has been {} for {} s", worker.pid, worker.state, worker.seconds);
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerStatus {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// For how many seconds it has run.
    pub seconds: f64,
    /// Whether it takes connections: it does until it is told to shut down.
    pub accepting: bool,
    /// The most workers at a time.
    pub max_workers: usize,
    /// How many workers have been forked.
    pub forked: u64,
    /// How many connections were refused: too many waited for a worker, the client was not allowed, or its first
    /// message was wrong or late.
    pub refused: u64,
    /// How many connections wait for their clients' first messages.
    #[serde(default)]
    pub handshakes: usize,
    /// How many connections were closed before their clients' first messages were complete.
    #[serde(default)]
    pub handshake_failures: u64,
    /// How many checkouts wait for a worker, as far as clients have told: each tells when one of its
    /// checkouts gets a worker. Those that speak AnyEvent::Task's protocol do not.
    #[serde(default)]
    pub queued: u64,
    /// How many connections wait for a worker, as there are `max_workers`.
    #[serde(default)]
    pub waiting: usize,
    /// How many workers have ended, by cause: `finished`, `exited`, `signaled`, `timed_out`, `hung`,
    /// `client_gone`, `shutdown`, `limit`, `out_of_memory`, `setup_failed` (of spares), `corrupt` (the worker
    /// wrote an impossible value into the memory that it shares with the server), and those that were replaced:
    /// `max_calls`, `max_age`, `max_idle`, `max_memory`, `dismissed`, `made_room` (for another client).
    pub deaths: BTreeMap<String, u64>,
    /// Those that live, by their numbers.
    pub workers: Vec<WorkerStatus>,
}

/// What a server says of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The worker's number, which no other of this server ever has.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
    /// What it does: `spare` (set up and without a client), `greeting`, `setup`, `idle`, `held`
    /// (between two calls of a checkout), `busy`, `answering`, `checkout_done`, `killed`, `leaving`.
    pub state: String,
    /// For how many seconds; if it is `held` or `answering`, from the beginning of its last call.
    pub seconds: f64,
    /// The method that it runs or has run last, up to 64 bytes of its name.
    pub method: Option<String>,
    /// How many calls it has begun.
    pub calls: u64,
    /// How many checkouts it has finished.
    pub checkouts: u64,
    /// How many bytes of memory it and the processes that it has started occupy, what they share
    /// included.
    pub memory: Option<u64>,
    /// The most that each of them has ever occupied, added up.
    pub peak_memory: Option<u64>,
}

/// What a server counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) refused: u64,
    pub(crate) deaths: BTreeMap<&'static str, u64>,
}

impl ServerStatus {
    /// Asks the server whose status socket is at `path`. Blocks until it has answered, for 10 seconds at most.
    ///
    /// # Errors
    /// When there is no such socket, this process may not use it, or what answers is no status.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::ask(path.as_ref(), "")
    }

    /// Has a worker leave, by its number: at once if it is idle, and otherwise when its checkout is
    /// done. Gives the status after that. Blocks until the server has answered, for 10 seconds at most.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn dismiss(path: impl AsRef<Path>, worker: u64) -> io::Result<Self> {
        Self::ask(path.as_ref(), &format!("{DISMISS}{worker}\n"))
    }

    fn ask(path: &Path, wish: &str) -> io::Result<Self> {
        Self::ask_on(UnixStream::connect(path)?, wish)
    }

    /// Asks the server that has the other end.
    pub(crate) fn ask_on(mut stream: UnixStream, wish: &str) -> io::Result<Self> {
        stream.write_all(wish.as_bytes())?;
        // So that the server does not wait for more.
        stream.shutdown(Shutdown::Write)?;
        Ok(serde_json::from_slice(&read_answer(stream, ANSWER_WAIT)?)?)
    }
}

/// All that comes until the end of the connection, within this time.
fn read_answer(mut stream: UnixStream, within: Duration) -> io::Result<Vec<u8>> {
    let (deadline, mut text, mut piece) = (Instant::now() + within, Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("the server did not tell its status within {}", seconds(within));
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Ok(text),
            Ok(length) => text.extend_from_slice(&piece[..length]),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                _ => return Err(error),
            },
        }
        if text.len() > LONGEST_ANSWER {
            let what = format!("the status has more than {LONGEST_ANSWER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
}

/// Where the status socket is, for [`ServerBuilder::status_socket`](crate::ServerBuilder::status_socket).
#[derive(Debug, Default)]
pub(crate) enum StatusSocket {
    /// Beside the listener, if that is a unix socket.
    #[default]
    Beside,
    At(PathBuf),
    Off,
}

/// The path of the status socket, if the server is to have one and there is a folder for it. The socket of a
/// server whose listener comes from a service manager is in the runtime directory.
pub(super) fn status_path(options: &Options, listener: Option<&Listener>) -> Option<PathBuf> {
    match (&options.status, listener.map(Listener::address)) {
        (StatusSocket::At(path), _) => Some(path.clone()),
        (StatusSocket::Beside, Some(_)) if is_activated(options) => {
            let name = plain(&options.name).replace('/', "?");
            Some(runtime_directory()?.join(format!("{name}.status")))
        }
        (StatusSocket::Beside, Some(Address(Place::Unix(path)))) => {
            let mut name = path.clone().into_os_string();
            name.push(".status");
            Some(name.into())
        }
        _ => None,
    }
}

/// Whether a listener of this server comes from a service manager.
fn is_activated(options: &Options) -> bool {
    options.address.is_none()
}

/// What somebody says who wants a worker to leave, before its number.
const DISMISS: &str = "dismiss ";

/// For how long an answer is waited for, and how many bytes it may have.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 64 << 20;

/// Which worker is to leave, if somebody says so.
pub(crate) fn dismissed(request: &[u8]) -> Option<u64> {
    std::str::from_utf8(request).ok()?.strip_prefix(DISMISS)?.trim().parse().ok()
}

/// How a phase is called.
pub(crate) fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Handshake => "greeting",
        Phase::Setup => "setup",
        Phase::Idle => "idle",
        Phase::Held => "held",
        Phase::Busy => "busy",
        Phase::Answering | Phase::AnsweringLong => "answering",
        Phase::CheckoutDone => "checkout_done",
        Phase::KillPending => "killed",
        Phase::Retired => "leaving",
        Phase::Spare => "spare",
    }
}

/// All that [`state`] can say.
#[cfg(feature = "metrics")]
pub(crate) const STATES: [&str; 10] = [
    "spare",
    "greeting",
    "setup",
    "idle",
    "held",
    "busy",
    "answering",
    "checkout_done",
    "killed",
    "leaving",
];

/// The memory that a process and its children occupy and have ever occupied, in bytes.
pub(crate) fn memory(pid: u32) -> (Option<u64>, Option<u64>) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.map(memory_of).fold(memory_of(pid), |all, child| {
        let add = |one: Option<u64>, other: Option<u64>| Some(one? + other.unwrap_or(0));
        (add(all.0, child.0), add(all.1, child.1))
    })
}

fn memory_of(pid: u32) -> (Option<u64>, Option<u64>) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Whether a process runs a handler for a signal when the signal comes: it has one, and does not block
/// the signal. Nothing if that cannot be known.
pub(crate) fn takes_signal(pid: u32, signal: Signal) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bit = 1_u64.checked_shl(signal.as_raw().cast_unsigned().checked_sub(1)?)?;
    let has = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(u64::from_str_radix(line.trim(), 16).ok()? & bit != 0)
    };
    Some(has("SigCgt:")? && !has("SigBlk:")?)
}

/// For how long a status is sent to a peer that does not read it at once.
const SEND_WITHIN: Duration = Duration::from_secs(2);

/// Sends a status. Gives up after [`SEND_WITHIN`], however slowly the other side reads.
pub(crate) fn answer(connection: &impl AsFd, status: &ServerStatus) {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};

    let _ = rustix::io::ioctl_fionbio(connection, false);
    let Ok(mut text) = serde_json::to_vec(status) else { return };
    text.push(b'\n');
    let (deadline, mut rest) = (Instant::now() + SEND_WITHIN, &text[..]);
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || set_socket_timeout(connection, Timeout::Send, Some(left)).is_err() {
            return;
        }
        match send(connection, rest, SendFlags::NOSIGNAL) {
            Ok(sent) if sent > 0 => rest = &rest[sent..],
            _ => return,
        }
    }
}

/// Sends a status, as far as it is taken at once.
pub(crate) fn answer_at_once(connection: &impl AsFd, status: &ServerStatus) {
    let Ok(mut text) = serde_json::to_vec(status) else { return };
    text.push(b'\n');
    let _ = send(connection, &text, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Opens the status socket. Returns nothing if the server is to have none, or can do without one that nobody asked
/// for.
pub(super) fn open_status(
    options: &Options,
    listener: Option<&Listener>,
) -> Result<Option<Listener>, ServerError> {
    let is_in_runtime_directory = matches!(options.status, StatusSocket::Beside)
        && listener.is_some()
        && is_activated(options);
    let Some(path) = status_path(options, listener) else {
        if is_in_runtime_directory {
            log::warn!(
                "there is no status socket, as neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR names a folder: \
                 set one of them, or `status_socket`"
            );
        }
        return Ok(None);
    };
    if is_in_runtime_directory {
        log::info!(name = options.name, "the status socket is {}", path.display());
    }
    let opened = Listener::open(&Address(Place::Unix(path)), 0o600, &options.access);
    match (&options.status, opened) {
        (StatusSocket::At(_), opened) => opened.map(Some),
        (_, Ok(socket)) => Ok(Some(socket)),
        (_, Err(error)) => {
            log::warn!("there is no status socket: {error}");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_the_signals_that_it_has_handlers_for() {
        let own = std::process::id();
        // Rust's own, for stacks that overflow.
        assert_eq!(takes_signal(own, Signal::SEGV), Some(true));
        assert_eq!(takes_signal(own, Signal::USR2), Some(false));
        assert_eq!(takes_signal(u32::MAX, Signal::SEGV), None);
    }

    #[test]
    fn an_answer_without_end_is_given_up() {
        let read = |said: &'static [u8], pause| {
            let (here, mut there) = UnixStream::pair().unwrap();
            let says = std::thread::spawn(move || {
                while there.write_all(said).is_ok() {
                    std::thread::sleep(pause);
                }
            });
            let error = read_answer(here, Duration::from_millis(100)).unwrap_err();
            says.join().unwrap();
            error
        };
        let error = read(b" ", Duration::from_millis(5));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let (here, _there) = UnixStream::pair().unwrap();
        let error = read_answer(here, Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }

    #[test]
    fn an_answer_at_once_waits_for_no_reader() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let text = r#"{"name":"n","pid":1,"seconds":1.0,"accepting":true,"max_workers":1,"forked":0,
            "refused":0,"deaths":{},"workers":[]}"#;
        let mut status: ServerStatus = serde_json::from_str(text).unwrap();
        answer_at_once(&here, &status);
        status.name = "x".repeat(1 << 20);
        // The peer reads nothing meanwhile.
        for _ in 0..100 {
            answer_at_once(&here, &status);
        }
        drop(here);
        let mut read = String::new();
        there.read_to_string(&mut read).unwrap();
        let first: ServerStatus = serde_json::from_str(read.lines().next().unwrap()).unwrap();
        assert_eq!(first.name, "n");
    }
}
