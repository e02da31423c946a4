//! What a server tells of itself and its workers.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

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
        Self::request(path.as_ref(), "")
    }

    /// Has a worker leave, by its number: at once if it is idle, and otherwise when its checkout is
    /// done. Gives the status after that. Blocks until the server has answered, for 10 seconds at most.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn dismiss(path: impl AsRef<Path>, worker: u64) -> io::Result<Self> {
        Self::request(path.as_ref(), &format!("{DISMISS}{worker}\n"))
    }

    fn request(path: &Path, request: &str) -> io::Result<Self> {
        Self::request_on(UnixStream::connect(path)?, request)
    }

    /// Asks the server that has the other end.
    pub(crate) fn request_on(mut stream: UnixStream, request: &str) -> io::Result<Self> {
        stream.write_all(request.as_bytes())?;
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

/// What somebody says who wants a worker to leave, before its number.
const DISMISS: &str = "dismiss ";

/// The number of the worker that a request dismisses.
pub(crate) fn parse_dismiss(request: &[u8]) -> Option<u64> {
    std::str::from_utf8(request).ok()?.strip_prefix(DISMISS)?.trim().parse().ok()
}

/// For how long an answer is waited for, and how many bytes it may have.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
const LONGEST_ANSWER: usize = 64 << 20;

/// How a phase is called.
pub(crate) fn state_name(phase: Phase) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
