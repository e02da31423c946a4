//! What code in a worker can ask about the current call: its deadline and its client.

use std::cell::Cell;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::clock::now;
use crate::peer::Peer;
use crate::sync::lock;
use crate::sys;
use crate::time_limit::nanoseconds;

/// The worker's connection, which stays open until the worker exits. A worker may be a server itself, whose
/// workers inherit this value and the next two, and replace all three.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static CONNECTION: Mutex<Option<BorrowedFd<'static>>> = Mutex::new(None);

/// The client whose connection a gateway relays to this worker.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static RELAYED_PEER: Mutex<Option<&'static Peer>> = Mutex::new(None);

/// This worker's private directory.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static SCRATCH: Mutex<Option<&'static Path>> = Mutex::new(None);

/// The current call's deadline in nanoseconds of [`now`], or 0 if it has none.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static DEADLINE: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The deadline of the call that this thread runs, if it is a worker in the process of its client.
    static ON_THREAD: Cell<Option<Option<Duration>>> = const { Cell::new(None) };
}

/// The current call of this worker. Returned by [`context`].
///
/// At the call's deadline the worker gets SIGALRM. A blocking system call then fails with `EINTR`;
/// most functions of Rust's standard library retry it, and C functions return the error. Code that
/// checks [`is_cancelled`](Self::is_cancelled) can clean up, log, and return an error, which reaches
/// the caller as usual. The server kills the worker after the client's
/// [`grace`](crate::client::ClientBuilder::grace), which defaults to 100 milliseconds.
///
/// ```
/// use taskfork::Methods;
/// use taskfork::worker::context;
///
/// let methods = Methods::<()>::new().function("time_left", || {
///     Ok(context().remaining().map(|left| left.as_secs_f64()))
/// });
/// # let _ = methods;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    deadline: Option<Duration>,
}

/// Returns the current call of this worker. Outside of calls and workers, the result has no deadline.
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
    if let Some(deadline) = ON_THREAD.get() {
        return Context { deadline };
    }
    let nanoseconds = DEADLINE.load(Ordering::Relaxed);
    Context { deadline: (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds)) }
}

impl Context {
    /// The call's deadline, or `None` if it has no time limit.
    ///
    /// ```
    /// use std::time::Instant;
    /// use taskfork::worker::context;
    ///
    /// let late = context().deadline().is_some_and(|deadline| deadline <= Instant::now());
    /// # assert!(!late);
    /// ```
    pub fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.remaining()?)
    }

    /// The time until the deadline, zero after it, or `None` if the call has no time limit.
    ///
    /// ```
    /// use taskfork::worker::context;
    /// use taskfork::Methods;
    ///
    /// let methods = Methods::<()>::new().function("fetch", |host: String| {
    ///     let stream = std::net::TcpStream::connect(host)?;
    ///     stream.set_read_timeout(context().remaining().filter(|left| !left.is_zero()))?;
    ///     Ok(std::io::read_to_string(stream)?)
    /// });
    /// # let _ = methods;
    /// ```
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(now()))
    }

    /// Who is at the other end of this worker's connection: the process that has connected, or the client whose
    /// connection a gateway relays. `None` on a TCP connection of the server itself and outside of workers.
    ///
    /// For a process, the kernel vouches for the user and group ids. For a client on another machine, the gateway
    /// vouches for the names of its certificate. A client over NATS has the name that it gives itself. The server believes
    /// that only from a process of its own user, or of the [`gateway_user`](crate::ServerBuilder::gateway_user).
    ///
    /// ```
    /// use taskfork::worker::{Peer, context};
    /// use taskfork::Methods;
    ///
    /// let methods = Methods::new().function("who_am_i", || match context().peer() {
    ///     Some(Peer::Process { uid, .. }) => Ok(format!("the user {uid}")),
    ///     Some(peer) => Ok(peer.to_string()),
    ///     None => Err("nobody vouches for you".into()),
    /// });
    /// # let _: Methods<()> = methods;
    /// ```
    pub fn peer(&self) -> Option<Peer> {
        if let Some(peer) = relayed_peer() {
            return Some(peer.clone());
        }
        let connection = *lock(&CONNECTION);
        sys::peer_credentials(&connection?).map(Peer::from)
    }

    /// The client's address on a TCP connection, or as a gateway has reported it. `None` on a unix socket without
    /// a gateway, outside of workers, and if the gateway knows no IP address and port. The address does not
    /// authenticate the client.
    ///
    /// ```
    /// assert_eq!(taskfork::worker::context().peer_address(), None);
    /// ```
    pub fn peer_address(&self) -> Option<SocketAddr> {
        if let Some(peer) = relayed_peer() {
            return peer.address()?.parse().ok();
        }
        let connection = *lock(&CONNECTION);
        sys::peer_address(&connection?)
    }

    /// This worker's private directory, or `None` outside of workers, and if the server has not set
    /// [`scratch`](crate::ServerBuilder::scratch).
    ///
    /// It is the same for all calls of a worker, and also in `setup`. Clean it up between checkouts if the
    /// next client must not find what a call has left. The server removes it when the worker has ended.
    ///
    /// ```
    /// assert_eq!(taskfork::worker::context().scratch(), None);
    /// ```
    pub fn scratch(&self) -> Option<&'static Path> {
        *lock(&SCRATCH)
    }

    /// Whether the call's deadline has passed. Always false for a call without a time limit.
    ///
    /// ```
    /// assert!(!taskfork::worker::context().is_cancelled());
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.remaining().is_some_and(|left| left.is_zero())
    }
}

/// Sets the deadline of the call that begins, on the clock of [`now`], or clears it after a call.
#[taskfork_macros::startup_code]
pub(crate) fn set(deadline: Option<Duration>) {
    DEADLINE.store(deadline.map_or(0, nanoseconds), Ordering::Relaxed);
}

/// Sets the deadline of the call that begins on this thread of a client's process, or clears it after a call.
pub(crate) fn set_on_thread(deadline: Option<Option<Duration>>) {
    ON_THREAD.set(deadline);
}

/// Sets this worker's private directory, if it has one.
#[taskfork_macros::startup_code]
pub(crate) fn set_scratch(path: Option<PathBuf>) {
    let path = path.map(|path| -> &'static Path { Box::leak(path.into_boxed_path()) });
    *lock(&SCRATCH) = path;
}

/// Sets the connection that this worker serves.
#[taskfork_macros::startup_code]
pub(crate) fn serves(connection: BorrowedFd<'static>) {
    *lock(&CONNECTION) = Some(connection);
    *lock(&RELAYED_PEER) = None;
}

/// Sets the client whose connection a gateway relays to this worker.
pub(crate) fn set_relayed_peer(peer: Peer) {
    *lock(&RELAYED_PEER) = Some(Box::leak(Box::new(peer)));
}

/// The client whose connection a gateway relays to this worker.
pub(crate) fn relayed_peer() -> Option<&'static Peer> {
    *lock(&RELAYED_PEER)
}
