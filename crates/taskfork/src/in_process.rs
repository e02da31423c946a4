//! Clients whose workers are threads of their own process, for tests and debuggers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;

use crate::address::{Address, AddressKind, LocalServer};
use crate::blocking;
use crate::client::{Client, ClientBuilder, ConfigError};
use crate::worker::{Interface, on_thread};

/// What starts the thread of a worker, which serves this end of a connection.
type Start = Box<dyn Fn(UnixStream) -> io::Result<()> + Send + Sync>;

struct ThreadServer(AssertUnwindSafe<Start>);

impl LocalServer for ThreadServer {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn connection(&self) -> io::Result<[OwnedFd; 2]> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok([ours.into(), theirs.into()])
    }

    fn pass(&self, connection: &OwnedFd) -> io::Result<()> {
        (self.0)(connection.try_clone()?.into())
    }

    fn runs_in_this_process(&self) -> bool {
        true
    }
}

impl Client {
    /// Builds a client whose workers are threads of this process, with the defaults of all other options. It is for unit
    /// tests, and to debug an interface and its caller in one process. See [`ClientBuilder::in_process`].
    ///
    /// # Errors
    /// [`ConfigError::NoRuntime`] outside of a tokio runtime.
    ///
    /// ```
    /// use taskfork::Client;
    ///
    /// #[taskfork::interface]
    /// trait Counter {
    ///     fn add(&mut self, more: u64) -> u64;
    /// }
    ///
    /// struct State(u64);
    ///
    /// impl Counter for State {
    ///     fn add(&mut self, more: u64) -> u64 {
    ///         self.0 += more;
    ///         self.0
    ///     }
    /// }
    ///
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// let client = Client::in_process(|| (CounterInterface, State(40)))?;
    /// assert_eq!(client.add(2).await?, 42);
    /// # Ok::<(), taskfork::BoxError>(())
    /// # })?;
    /// # Ok::<(), taskfork::BoxError>(())
    /// ```
    pub fn in_process<I, S>(
        make: impl Fn() -> (I, S) + Send + Sync + 'static,
    ) -> Result<Self, ConfigError>
    where
        I: Interface<S>,
        S: 'static,
    {
        Self::builder().in_process(make).build()
    }
}

impl blocking::Client {
    /// Builds a client whose workers are threads of this process. See [`ClientBuilder::in_process`].
    ///
    /// # Errors
    /// If the client's own thread cannot be started.
    ///
    /// ```
    /// use taskfork::{Methods, blocking};
    ///
    /// let interface = || Methods::<()>::new().function("add", |a: i64, b: i64| Ok(a + b));
    /// let client = blocking::Client::in_process(move || (interface(), ()))?;
    /// assert_eq!(client.call::<i64>("add", (2, 3))?, 5);
    /// # Ok::<(), taskfork::BoxError>(())
    /// ```
    pub fn in_process<I, S>(
        make: impl Fn() -> (I, S) + Send + Sync + 'static,
    ) -> Result<Self, blocking::BuildError>
    where
        I: Interface<S>,
        S: 'static,
    {
        Self::builder().in_process(make).build_blocking()
    }
}

// Here and not beside its other methods, so that the client knows nothing of this module.
impl ClientBuilder {
    /// Makes the workers threads of this process, instead of connecting to a server. It replaces the addresses, and
    /// sets [`min_workers`](Self::min_workers) to 0, so that no thread starts before a checkout needs it.
    ///
    /// `make` returns the interface and its state. Each worker calls it on its own thread, before its first call, so
    /// neither has to be `Send`. If it panics, the call fails with
    /// [`CallError::Setup`](crate::error::CallError::Setup).
    ///
    /// Checkouts, calls, streams, progress, errors, limits of the queue, logs and traces are as with a server: values are
    /// encoded and decoded on their way, and a worker whose call has failed is replaced, so that the next checkout gets a new state.
    /// [`context`](crate::worker::context), [`logger`](crate::worker::logger) and
    /// [`trace_context::current`](crate::trace_context::current) work on the worker's own thread, but not on threads that
    /// it starts.
    ///
    /// But the code is not isolated:
    ///
    /// - A panic is the error of its call. An abort, an exit or a crash ends this program.
    /// - A thread cannot be killed. When a call's time and its [`grace`](Self::grace) are over, or the call and its
    ///   checkout are dropped, the client goes on with a new thread. The old one ends when its method returns, and its
    ///   state is dropped then. No signal interrupts it; the next [`Emitter::send`](crate::Emitter::send) fails.
    /// - There is no server: no `checkout_done`, no limits of memory or time of one, no sandbox and no status.
    ///   `context().peer()` and `scratch()` return `None`.
    /// - Threads share statics, the environment and the working directory.
    /// - Events of `tracing` go to the subscriber of this process, without the spans of the caller.
    /// - Open files cannot be passed: such a call fails with
    ///   [`CallError::Arguments`](crate::error::CallError::Arguments) or
    ///   [`CallError::Result`](crate::error::CallError::Result), which say so. Blobs are copied. Messages have at most
    ///   64 MiB.
    /// - With [`Protocol::Perl`](crate::client::Protocol::Perl), [`build`](Self::build) fails.
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork::{Client, Methods};
    ///
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// let make = || {
    ///     let methods = Methods::new().method("next", |count: &mut u64| {
    ///         *count += 1;
    ///         Ok(*count)
    ///     });
    ///     (methods, 0)
    /// };
    /// let client = Client::builder().in_process(make).timeout(Duration::from_secs(1)).build()?;
    /// let checkout = client.checkout();
    /// assert_eq!(checkout.call::<u64>("next", ()).await?, 1);
    /// assert_eq!(checkout.call::<u64>("next", ()).await?, 2);
    /// # Ok::<(), taskfork::BoxError>(())
    /// # })?;
    /// # Ok::<(), taskfork::BoxError>(())
    /// ```
    pub fn in_process<I, S>(self, make: impl Fn() -> (I, S) + Send + Sync + 'static) -> Self
    where
        I: Interface<S>,
        S: 'static,
    {
        let make = Arc::new(make);
        let start = move |stream| {
            let make = make.clone();
            let serve = move || {
                if let Err(error) = on_thread::serve(stream, &*make) {
                    tracing::error!("a worker on a thread has ended: {error}");
                }
            };
            thread::Builder::new().name("taskfork-worker".to_owned()).spawn(serve).map(drop)
        };
        let server = ThreadServer(AssertUnwindSafe(Box::new(start)));
        self.address(Address(AddressKind::Spawned(Arc::new(server)))).min_workers(0)
    }
}
