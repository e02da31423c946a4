//! In a worker: the time that the call that runs has, and who has made it.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::sys;
use crate::time_limit::nanoseconds;
use crate::worker::scoreboard::now;

/// The worker's connection, which is open for as long as the worker lives.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static CONNECTION: OnceLock<BorrowedFd<'static>> = OnceLock::new();

/// When the call's time is over, in nanoseconds on the clock of the scoreboard; 0 for never.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static DEADLINE: AtomicU64 = AtomicU64::new(0);

/// The process at the other end of a worker's unix socket, as the kernel has recorded it when the
/// socket was connected. See [`Context::peer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Peer {
    /// Its effective user id.
    pub uid: u32,
    /// Its effective group id.
    pub gid: u32,
    /// Its process id, or 0 if the worker's PID namespace does not show that process.
    pub pid: u32,
}

/// The call that runs in this worker, as [`context`] gives it.
///
/// When the time that the caller has given the call is over, the worker gets SIGALRM: a system call
/// that blocks ends with `EINTR`, which Rust's own functions pass over and C's do not. Code that
/// looks at [`is_cancelled`](Self::is_cancelled) can clean up, log, and return an error that the
/// caller gets as any other. It has the client's [`grace`](crate::client::ClientBuilder::grace) for that;
/// then the worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    deadline: Option<Duration>,
}

/// The call that runs in this worker. Outside of calls, and of workers, it has no deadline.
///
/// ```
/// use taskfork::worker::context;
/// use taskfork::Methods;
///
/// let methods = Methods::new().function("count", |up_to: u64| {
///     for number in 0..up_to {
///         if context().is_cancelled() {
///             return Err(format!("interrupted at {number}").into());
///         }
///     }
///     Ok(up_to)
/// });
/// # let _: Methods<()> = methods;
/// ```
pub fn context() -> Context {
    let nanoseconds = DEADLINE.load(Ordering::Relaxed);
    Context { deadline: (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds)) }
}

impl Context {
    /// When the call's time is over; nothing if it has no limit.
    pub fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.remaining()?)
    }

    /// How much of the call's time is left, zero once it is over; nothing if it has no limit.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(now()))
    }

    /// The process that has connected to this worker. Nothing on a TCP connection, and outside of
    /// workers.
    ///
    /// The user and group ids can be relied upon. The process may have ended since, and its id may
    /// belong to another one.
    ///
    /// ```
    /// use taskfork::worker::context;
    /// use taskfork::Methods;
    ///
    /// let methods = Methods::new().function("who_am_i", || match context().peer() {
    ///     Some(peer) => Ok(peer.uid),
    ///     None => Err("only through a unix socket".into()),
    /// });
    /// # let _: Methods<()> = methods;
    /// ```
    pub fn peer(&self) -> Option<Peer> {
        sys::peer_credentials(CONNECTION.get()?)
    }

    /// The address of the client of this worker on a TCP connection. Nothing on a unix socket, and
    /// outside of workers. Who is behind the address is not known.
    ///
    /// ```
    /// assert_eq!(taskfork::worker::context().peer_address(), None);
    /// ```
    pub fn peer_address(&self) -> Option<SocketAddr> {
        sys::peer_address(CONNECTION.get()?)
    }

    /// Whether nobody wants the call's result any more, as its time is over.
    pub fn is_cancelled(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }
}

/// In a worker: a call begins whose time is over then, on the clock of the scoreboard, or it has
/// ended.
pub(crate) fn set(deadline: Option<Duration>) {
    DEADLINE.store(deadline.map_or(0, nanoseconds), Ordering::Relaxed);
}

/// In a worker: it serves this connection.
pub(crate) fn serves(connection: BorrowedFd<'static>) {
    // A worker serves one connection.
    let _ = CONNECTION.set(connection);
}
