//! The status of a server, and reading it from the status socket.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::{Deserialize, Serialize};

use crate::display::seconds;
use crate::histogram::Histogram;
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
    /// A number that no other process of the server has, even if it has the same process id, as in containers.
    #[serde(default)]
    pub instance: u64,
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
    /// Whether all clients may learn what dead workers wrote to standard error, and stacks, as
    /// [`share_details`](crate::ServerBuilder::share_details) says. This socket tells that in any case.
    #[serde(default)]
    pub share_details: bool,
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
    /// The calls that have ended with an answer, by the first 64 bytes of the method's name. At most 100 methods have an
    /// entry of their own, and at most 8 of each worker; `(other)` has the rest. If the server knows its
    /// [`methods`](Self::methods), no other name takes the place of one of them. `(unknown)` has the calls of methods
    /// that do not exist.
    #[serde(default)]
    pub calls: BTreeMap<String, MethodStatus>,
    /// How long connections have waited for a worker. A connection that gets a worker at once counts too.
    #[serde(default)]
    pub waits: Histogram,
    /// The connections in the queue that have waited longest, at most 50.
    #[serde(default)]
    pub waiting_clients: Vec<WaitingClientStatus>,
    /// The living workers, by number.
    pub workers: Vec<WorkerStatus>,
    /// The number of the last of all deaths that [`recent_deaths`](Self::recent_deaths) can have.
    #[serde(default)]
    pub last_death: u64,
    /// The last workers that have died, oldest first, at most 50. Workers that have left in order are not among them, such
    /// as those that were replaced. Empty unless [`read_details`](Self::read_details) has asked for them.
    #[serde(default)]
    pub recent_deaths: Vec<DeathStatus>,
    /// Whether the worker that was to be [dismissed](Self::dismiss) or [killed](Self::kill) was there. `None` in other
    /// answers.
    #[serde(default)]
    pub done: Option<bool>,
}

/// The calls of a method that have ended with an answer.
///
/// ```
/// let calls = taskfork::server::MethodStatus::default();
/// assert_eq!((calls.errors, calls.times.count()), (0, 0));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MethodStatus {
    /// How many of them were answered with an error.
    pub errors: u64,
    /// How long they ran in the worker.
    pub times: Histogram,
}

/// A connection that waits for a worker.
///
/// ```no_run
/// let status = taskfork::server::ServerStatus::read("/run/adder.sock.status")?;
/// println!("{:?}", status.waiting_clients.first().map(|client| client.seconds));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaitingClientStatus {
    /// Who is at its other end. `None` for a client on TCP.
    pub peer: Option<Peer>,
    /// The seconds for which it has waited.
    pub seconds: f64,
}

/// How a worker died.
///
/// ```no_run
/// let status = taskfork::server::ServerStatus::read_details("/run/adder.sock.status", 0, None)?;
/// for death in &status.recent_deaths {
///     println!("{} {}: {}", death.pid, death.cause, death.stderr.as_deref().unwrap_or_default());
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DeathStatus {
    /// The number of the death: the first one of a server has 1.
    pub number: u64,
    /// When it was noticed, in seconds since the start of the server.
    pub at: f64,
    /// The number of the worker.
    pub worker: u64,
    /// The process id that it had.
    pub pid: u32,
    /// The process id of the program that it was, if it was one
    /// ([`Executable`](crate::worker::Executable)).
    #[serde(default)]
    pub program: Option<u32>,
    /// The cause, as in [`ServerStatus::deaths`].
    pub cause: String,
    /// How the process ended, such as `was killed by signal 11 (SIGSEGV)`, and why.
    pub text: String,
    /// The first 64 bytes of the name of the method that ran.
    pub method: Option<String>,
    /// The number of calls that it had begun.
    pub calls: u64,
    /// Who was at the other end of its connection.
    pub peer: Option<Peer>,
    /// The end of what it wrote to standard error, at most 4 KiB.
    pub stderr: Option<String>,
    /// Where it hung: the functions and lines of its stack. `None` if it did not hang, or if they are not known.
    pub stack: Option<String>,
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
    /// The process id of the program that it is, if it is one ([`Executable`](crate::worker::Executable)): `pid` is that of
    /// the process in front of it.
    #[serde(default)]
    pub program: Option<u32>,
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
    /// The processor time that the worker and the processes that it has started have used, in seconds. Those that have
    /// ended count if the worker has waited for them.
    #[serde(default)]
    pub cpu_seconds: Option<f64>,
    /// Who is at the other end of its connection. `None` for a client on TCP, and for a spare worker.
    #[serde(default)]
    pub peer: Option<Peer>,
    /// A number that its client has chosen for itself, by which the workers of one client can be found. `None` for clients
    /// that do not tell.
    #[serde(default)]
    pub client: Option<u64>,
    /// How many checkouts of that client waited for a worker when it told that last, through any of its workers.
    #[serde(default)]
    pub client_queued: Option<u64>,
    /// Where its call is: the functions and lines of its stack. `None` unless [`ServerStatus::read_details`] has asked for
    /// it.
    #[serde(default)]
    pub stack: Option<String>,
}

impl WorkerStatus {
    /// All values that [`state`](Self::state) can have.
    ///
    /// ```
    /// assert!(taskfork::server::WorkerStatus::STATES.contains(&"idle"));
    /// ```
    pub const STATES: [&str; 10] = [
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

    /// Replaces the worker with this number, if it is the process with this id or no id is given. Numbers of workers begin
    /// anew with each process of the server. An idle worker leaves at once, and a busy one after its checkout. Returns the
    /// status after that, in which [`done`](Self::done) says whether there was such a worker. Blocks for at most 10
    /// seconds.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read). That there is no such worker is not an error.
    ///
    /// ```no_run
    /// use taskfork::server::ServerStatus;
    ///
    /// let path = "/run/adder.sock.status";
    /// for worker in ServerStatus::read(path)?.workers.iter().filter(|it| it.state == "idle") {
    ///     ServerStatus::dismiss(path, worker.number, Some(worker.pid))?;
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn dismiss(path: impl AsRef<Path>, worker: u64, pid: Option<u32>) -> io::Result<Self> {
        Self::request(path.as_ref(), &format!("{DISMISS}{}\n", worker_text(worker, pid)))
    }

    /// Kills the worker with this number, if it is the process with this id or no id is given. Its call fails, and the death
    /// counts as `signaled`. The server logs the request. Returns the status after that, in which [`done`](Self::done)
    /// says whether there was such a worker. Blocks for at most 10 seconds.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read). That there is no such worker is not an error.
    ///
    /// ```no_run
    /// taskfork::server::ServerStatus::kill("/run/adder.sock.status", 7, Some(4711))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn kill(path: impl AsRef<Path>, worker: u64, pid: Option<u32>) -> io::Result<Self> {
        Self::request(path.as_ref(), &format!("{KILL}{}\n", worker_text(worker, pid)))
    }

    /// Reads the status with the deaths whose numbers are larger than `after`. Blocks for at most 10 seconds.
    ///
    /// Stacks of deaths that cannot be resolved within three seconds are left for the next request: ask for the deaths after the
    /// largest number that has arrived.
    ///
    /// For a worker whose call runs, the status can show the stack. The first request for a `sample` during a call has the
    /// worker asked for it, by SIGURG, and later ones during that call show where it was then. System calls of that worker
    /// go on, except those that the kernel never restarts after a handler, which fail with `EINTR`: `poll`, `ppoll`,
    /// `select`, `pselect`, `epoll_wait`, `epoll_pwait`, `nanosleep`, `clock_nanosleep`, `usleep`, `pause`, `sigsuspend`,
    /// `sigtimedwait`, `sigwaitinfo`, `io_getevents`, `msgrcv`, `msgsnd`, `semop`, `semtimedop`, and on sockets with
    /// `SO_RCVTIMEO` or `SO_SNDTIMEO` `accept`, `recv`, `connect`, `send` and their variants. `sleep` returns early.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read).
    ///
    /// ```no_run
    /// use taskfork::server::ServerStatus;
    ///
    /// let path = "/run/adder.sock.status";
    /// let all = ServerStatus::read_details(path, 0, None)?;
    /// let new = ServerStatus::read_details(path, all.last_death, Some(7))?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read_details(
        path: impl AsRef<Path>,
        after: u64,
        sample: Option<u64>,
    ) -> io::Result<Self> {
        let sample = sample.map(|worker| format!(" {worker}")).unwrap_or_default();
        Self::request(path.as_ref(), &format!("{DETAILS}{after}{sample}\n"))
    }

    /// Reads the status with the deaths whose numbers are larger than `after`, without their stacks, so that no names of
    /// functions are looked up. Blocks for at most 10 seconds.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`read`](Self::read).
    ///
    /// ```no_run
    /// use taskfork::server::ServerStatus;
    ///
    /// let status = ServerStatus::read_deaths("/run/adder.sock.status", 0)?;
    /// assert!(status.recent_deaths.iter().all(|death| death.stack.is_none()));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read_deaths(path: impl AsRef<Path>, after: u64) -> io::Result<Self> {
        Self::request(path.as_ref(), &format!("{DEATHS}{after}\n"))
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

/// A worker in a request.
fn worker_text(worker: u64, pid: Option<u32>) -> String {
    let pid = pid.map(|pid| format!(" {pid}")).unwrap_or_default();
    format!("{worker}{pid}")
}

/// The beginnings of requests. The number of a worker and perhaps its process id follow, or the number of a death and perhaps
/// that of a worker.
const DISMISS: &str = "dismiss ";
const KILL: &str = "kill ";
const DETAILS: &str = "details ";
const DEATHS: &str = "deaths ";

/// What a client of the status socket wants, besides the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StatusRequest {
    /// Nothing else.
    Status,
    /// Replace this worker, if it has this process id.
    Dismiss {
        worker: u64,
        pid: Option<u32>,
    },
    Kill {
        worker: u64,
        pid: Option<u32>,
    },
    /// The deaths after this one, without their stacks.
    Deaths {
        after: u64,
    },
    /// The deaths after this one, and the stack of a worker.
    Details {
        after: u64,
        sample: Option<u64>,
    },
}

impl StatusRequest {
    /// Anything that is no other request asks for the status.
    pub(crate) fn parse(request: &[u8]) -> Self {
        Self::parse_other(request).unwrap_or(Self::Status)
    }

    fn parse_other(request: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(request).ok()?.trim_end();
        if let Some(numbers) = text.strip_prefix(DISMISS) {
            let (worker, pid) = one_or_two(numbers)?;
            return Some(Self::Dismiss { worker, pid });
        }
        if let Some(numbers) = text.strip_prefix(KILL) {
            let (worker, pid) = one_or_two(numbers)?;
            return Some(Self::Kill { worker, pid });
        }
        if let Some(number) = text.strip_prefix(DEATHS) {
            return Some(Self::Deaths { after: number.parse().ok()? });
        }
        let (after, sample) = one_or_two(text.strip_prefix(DETAILS)?)?;
        Some(Self::Details { after, sample })
    }
}

/// A number, and perhaps another one.
fn one_or_two<T: FromStr>(text: &str) -> Option<(u64, Option<T>)> {
    let mut numbers = text.split(' ');
    let first = numbers.next()?.parse().ok()?;
    let second = numbers.next().map(str::parse).transpose().ok()?;
    numbers.next().is_none().then_some((first, second))
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
        Phase::Busy | Phase::SendingItem => "busy",
        Phase::Answering | Phase::AnsweringLong => "answering",
        Phase::CheckoutDone => "checkout_done",
        Phase::KillPending => "killed",
        Phase::Retired => "leaving",
        Phase::Spare => "spare",
    }
}

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
    fn requests_are_told_apart() {
        use StatusRequest::{Deaths, Details, Dismiss, Kill, Status};
        for (text, expected) in [
            ("", Status),
            ("dismiss 7\n", Dismiss { worker: 7, pid: None }),
            ("dismiss 7 4711\n", Dismiss { worker: 7, pid: Some(4711) }),
            ("kill 7\r\n", Kill { worker: 7, pid: None }),
            ("kill 7 8\n", Kill { worker: 7, pid: Some(8) }),
            ("kill 7 8 9\n", Status),
            ("kill 7 -8\n", Status),
            ("details 0\n", Details { after: 0, sample: None }),
            ("details 3 8\n", Details { after: 3, sample: Some(8) }),
            ("details 3 8 9\n", Status),
            ("deaths 3\n", Deaths { after: 3 }),
            ("deaths 3 8\n", Status),
            ("details 3 x\n", Status),
            ("kill -1\n", Status),
        ] {
            assert_eq!(StatusRequest::parse(text.as_bytes()), expected, "{text:?}");
        }
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
