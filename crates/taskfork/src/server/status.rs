//! The status of a server, and reading it from the status socket.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

use crate::display::seconds;
use crate::peer::Peer;
use crate::progress::Progress;
use crate::worker::scoreboard::Phase;

/// The status of a server and its workers. A server sends it as JSON through its [status
/// socket](crate::ServerBuilder::status_socket).
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
    /// The name of the server.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// The seconds since its start.
    pub seconds: f64,
    /// Whether it accepts connections. It stops when a shutdown begins.
    pub accepting: bool,
    /// The maximum number of workers.
    pub max_workers: usize,
    /// The level of the workers' sandbox. `None` if they have none.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// The names of the methods that clients can call, at most 1,000. Empty if the server does not know them, because
    /// a [`Function`](crate::worker::Function) or a program finds them itself.
    #[serde(default)]
    pub methods: Vec<String>,
    /// The number of workers that have been forked so far.
    pub forked: u64,
    /// The number of refused connections: too many waited for a worker, the client was not allowed,
    /// or its first message was wrong or late.
    pub refused: u64,
    /// The number of connections whose first message is not complete.
    #[serde(default)]
    pub handshakes: usize,
    /// The number of connections that were closed before their first message was complete.
    #[serde(default)]
    pub handshake_failures: u64,
    /// The number of checkouts that wait for a worker, as reported by clients. A client reports it
    /// when one of its checkouts gets a worker. Clients that speak the protocol of AnyEvent::Task
    /// do not.
    #[serde(default)]
    pub queued: u64,
    /// The number of connections in the queue, because there are `max_workers` workers.
    #[serde(default)]
    pub waiting: usize,
    /// The number of workers that have ended, by cause.
    ///
    /// | cause | meaning |
    /// |---|---|
    /// | `finished` | it exited with status 0 |
    /// | `exited` | it exited with another status |
    /// | `signaled` | a signal killed it |
    /// | `timed_out` | the deadline of its call had passed |
    /// | `hung` | it exceeded `hung_worker_timeout`, or did not leave |
    /// | `client_gone` | its client went away during a call |
    /// | `shutdown` | it was killed during the shutdown |
    /// | `limit` | it reached one of its limits |
    /// | `out_of_memory` | the kernel killed it because memory ran out |
    /// | `setup_failed` | it was a spare worker, and its setup failed |
    /// | `sandbox` | it made a system call for which its sandbox kills it |
    /// | `corrupt` | it wrote an impossible value into the memory that it shares with the server |
    /// | `max_calls`, `max_age`, `max_idle`, `max_memory` | it was replaced |
    /// | `dismissed` | [`dismiss`](Self::dismiss) replaced it |
    /// | `made_room` | it made room for another client |
    pub deaths: BTreeMap<String, u64>,
    /// The living workers, by number.
    pub workers: Vec<WorkerStatus>,
}

/// The status of a worker.
///
/// ```no_run
/// # fn example(server: taskfork::server::ServerHandle) -> std::io::Result<()> {
/// for worker in server.status()?.workers.iter().filter(|worker| worker.state == "busy") {
///     println!("{} runs {:?} for {} s", worker.pid, worker.method, worker.seconds);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// The number of the worker, which is unique among all workers of this server.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
    /// What it does: `spare` (set up, without a client), `greeting`, `setup`, `idle`, `held`
    /// (between two calls of a checkout), `busy`, `answering`, `checkout_done`, `killed`,
    /// `leaving`.
    pub state: String,
    /// The seconds since it does that. For `held` and `answering`, the seconds since the beginning
    /// of its last call.
    pub seconds: f64,
    /// The first 64 bytes of the name of its current or last method.
    pub method: Option<String>,
    /// How far the call that it runs has got, if the worker reports that with
    /// [`Context::progress`](crate::worker::Context::progress).
    #[serde(default)]
    pub progress: Option<Progress>,
    /// The number of calls that it has begun.
    pub calls: u64,
    /// The number of checkouts that it has finished.
    pub checkouts: u64,
    /// The resident memory of the worker and of the processes that it has started, in bytes,
    /// including shared memory.
    pub memory: Option<u64>,
    /// The sum of the peaks of their resident memory, in bytes.
    pub peak_memory: Option<u64>,
    /// Who is at the other end of its connection. `None` for a client on TCP, and for a spare worker.
    #[serde(default)]
    pub peer: Option<Peer>,
}

/// The counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) refused: u64,
    pub(crate) deaths: BTreeMap<&'static str, u64>,
}

impl ServerStatus {
    /// Reads the status of the server whose status socket is at `path`. Blocks for at most 10
    /// seconds.
    ///
    /// # Errors
    ///
    /// Returns an error if the socket does not exist, if this process may not use it, or if the
    /// answer is not a status.
    ///
    /// ```no_run
    /// use taskfork::server::ServerStatus;
    ///
    /// let status = ServerStatus::read("/run/adder.sock.status")?;
    /// println!("{} workers, {} clients wait", status.workers.len(), status.waiting);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        Self::request(path.as_ref(), "")
    }

    /// Replaces the worker with this number. An idle worker leaves at once, and a busy one after its
    /// checkout. Returns the status after that. Blocks for at most 10 seconds.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read). An unknown number is not an error.
    ///
    /// ```no_run
    /// use taskfork::server::ServerStatus;
    ///
    /// let path = "/run/adder.sock.status";
    /// for worker in ServerStatus::read(path)?.workers.iter().filter(|it| it.state == "idle") {
    ///     ServerStatus::dismiss(path, worker.number)?;
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn dismiss(path: impl AsRef<Path>, worker: u64) -> io::Result<Self> {
        Self::request(path.as_ref(), &format!("{DISMISS}{worker}\n"))
    }

    fn request(path: &Path, request: &str) -> io::Result<Self> {
        let deadline = Instant::now() + TIMEOUT;
        Self::request_until(connect(path, TIMEOUT)?, request, deadline)
    }

    /// Sends a request to the server at the other end, and reads its status.
    pub(crate) fn request_on(stream: UnixStream, request: &str) -> io::Result<Self> {
        Self::request_until(stream, request, Instant::now() + TIMEOUT)
    }

    fn request_until(mut stream: UnixStream, request: &str, deadline: Instant) -> io::Result<Self> {
        stream.write_all(request.as_bytes())?;
        // This tells the server that the request is complete.
        stream.shutdown(Shutdown::Write)?;
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(serde_json::from_slice(&read_answer(stream, left)?)?)
    }
}

/// Connects within this time. A server that hangs accepts nothing, and the queue of its listener may be full.
fn connect(path: &Path, within: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    // The time in which a unix socket connects is that in which it sends.
    stream.set_write_timeout(Some(within))?;
    match rustix::io::retry_on_intr(|| net::connect(&stream, &address)) {
        Ok(()) => Ok(stream),
        Err(Errno::AGAIN) => {
            let what = format!("the server did not accept within {}", seconds(within));
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Reads until the end of the connection, within this time.
fn read_answer(mut stream: UnixStream, within: Duration) -> io::Result<Vec<u8>> {
    let (deadline, mut text, mut piece) = (Instant::now() + within, Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = "the server did not send its status in time";
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
        if text.len() > MAX_ANSWER {
            let what = format!("the status has more than {MAX_ANSWER} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
    }
}

/// The beginning of a request to dismiss a worker. The worker's number follows.
const DISMISS: &str = "dismiss ";

/// Returns the number of the worker that a request dismisses.
pub(crate) fn parse_dismiss(request: &[u8]) -> Option<u64> {
    std::str::from_utf8(request).ok()?.strip_prefix(DISMISS)?.trim().parse().ok()
}

/// How long connecting and the answer may take together, and how many bytes the answer may have.
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 << 20;

/// The name of a phase in the status.
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

/// All results of [`state_name`].
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
    fn a_server_that_accepts_nothing_is_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let socket = net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&socket, 0).unwrap();
        let _queued = UnixStream::connect(&path).unwrap();
        let (done, outcome) = std::sync::mpsc::channel();
        let connecting = path.clone();
        std::thread::spawn(move || {
            let _ = done.send(connect(&connecting, Duration::from_millis(100)).map(drop));
        });
        let error = outcome.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let missing = connect(&folder.path().join("none"), TIMEOUT).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn reading_an_endless_answer_times_out() {
        let read = |text: &'static [u8], pause| {
            let (here, mut there) = UnixStream::pair().unwrap();
            let writer = std::thread::spawn(move || {
                while there.write_all(text).is_ok() {
                    std::thread::sleep(pause);
                }
            });
            let error = read_answer(here, Duration::from_millis(100)).unwrap_err();
            writer.join().unwrap();
            error
        };
        let error = read(b" ", Duration::from_millis(5));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        let (here, _there) = UnixStream::pair().unwrap();
        let error = read_answer(here, Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
    }
}
