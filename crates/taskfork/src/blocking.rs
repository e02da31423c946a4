//! The same pool for programs without async.
//!
//! A [`Client`] has a thread of its own that connects workers and enforces time limits. The calling
//! thread itself sends a call and receives its answer. Start servers with
//! [`Server::fork`](crate::Server::fork) before the first client is built, or with
//! [`Server::spawn`](crate::Server::spawn) at any time.
//!
//! ```no_run
//! use taskfork::blocking::Client;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().address("unix:/run/adder.sock").build_blocking()?;
//! let sum: i64 = client.call("add", (2, 3))?;
//!
//! let checkout = client.checkout();
//! let first = checkout.queue::<i64>("add", (1, 1));
//! let second = checkout.queue::<i64>("add", (2, 2));
//! assert_eq!((first.wait()?, second.wait()?), (2, 4));
//! # Ok(())
//! # }
//! ```

mod handle_options;
mod input;
mod map;
mod resize;
mod stream;

use std::io;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

pub use self::stream::StreamCall;
use crate::blob::BlobMut;
use crate::client::typed::Requires;
use crate::client::typed_method::TypedMethod;
use crate::client::{Caller as AsyncCaller, ClientBuilder, ConfigError, Input, Stats};
use crate::display::debug_as_text;
use crate::error::{Error, Failure};
use crate::wire::arguments::IntoArguments;
use crate::wire::call_error::InterfaceError;
use crate::wire::interface_description::Described;

pub use self::input::IntoInput;
pub use self::map::MapCalls;

/// A pool of connections to the workers of a server, for threads that may block.
///
/// A client is cheap to clone, and all clones share one pool. See [`crate::Client`].
///
/// ```no_run
/// use taskfork::blocking::Client;
///
/// fn main() -> Result<(), taskfork::BoxError> {
///     let client = Client::builder().address("unix:/run/adder.sock").build_blocking()?;
///     println!("{}", client.call::<i64>("add", (2, 3))?);
///     Ok(())
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    inner: crate::Client,
    _thread: Arc<RuntimeThread>,
}

/// Why a blocking client cannot be built.
///
/// ```
/// use taskfork::blocking::{BuildError, Client};
/// use taskfork::client::ConfigError;
///
/// let error = Client::builder().build_blocking().unwrap_err();
/// assert!(matches!(error, BuildError::Config(ConfigError::NoAddress)));
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An option is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The client's thread cannot be started.
    #[error("cannot start the client's thread: {0}")]
    Thread(#[from] io::Error),
}

debug_as_text!(BuildError);

impl Client {
    /// Returns the builder of clients, with every option but the address at its default. Finish it with
    /// [`build_blocking`](ClientBuilder::build_blocking).
    ///
    /// ```no_run
    /// let client = taskfork::blocking::Client::builder().address("unix:/run/adder.sock").build_blocking()?;
    /// # Ok::<(), taskfork::BoxError>(())
    /// ```
    pub fn builder() -> ClientBuilder {
        crate::Client::builder()
    }

    fn with_options(options: ClientBuilder) -> Result<Self, BuildError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inner = options.build_on(runtime.handle())?;
        #[cfg(feature = "nats")]
        let flush = inner.flush_nats();
        #[cfg(feature = "nats")]
        let is_awaited = flush.is_some();
        #[cfg(not(feature = "nats"))]
        let is_awaited = false;
        let (stop, stopped) = oneshot::channel();
        let thread =
            thread::Builder::new().name("taskfork-client".to_owned()).spawn(move || {
                runtime.block_on(async {
                    // The sender is only ever dropped: an error is the signal to stop.
                    let _ = stopped.await;
                    #[cfg(feature = "nats")]
                    if let Some(flush) = flush {
                        flush.await;
                    }
                });
            })?;
        let thread = is_awaited.then_some(thread);
        Ok(Self { inner, _thread: Arc::new(RuntimeThread { stop: Some(stop), thread }) })
    }

    /// Checks a worker out, or joins the queue for one. Returns at once, as
    /// [`crate::Client::checkout`] does. The first call waits for the worker.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.call::<()>("begin", ())?;
    /// checkout.call::<()>("commit", ())?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn checkout(&self) -> Checkout {
        Checkout { inner: self.inner.checkout(), _thread: self._thread.clone() }
    }

    /// Checks a worker out if one is idle now. Returns `None` otherwise, and never joins the queue.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// match client.try_checkout() {
    ///     Some(checkout) => checkout.call::<()>("work", ())?,
    ///     None => println!("all workers are busy"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_checkout(&self) -> Option<Checkout> {
        let inner = self.inner.try_checkout()?;
        Some(Checkout { inner, _thread: self._thread.clone() })
    }

    /// Calls a method of an untyped interface, in a checkout of its own, and waits for its result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.call("add", (2, 3))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        args: impl IntoArguments,
    ) -> Result<T, Error> {
        block_on(self.inner.call(method, args))
    }

    /// Calls an interface that is one function, in a checkout of its own, and waits for the result. The
    /// call names no method.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.invoke((2, 3))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn invoke<T: DeserializeOwned>(&self, args: impl IntoArguments) -> Result<T, Error> {
        block_on(self.inner.invoke(args))
    }

    /// Returns a client whose workers belong to nodes with all of these labels. See
    /// [`crate::Client::with_labels`].
    ///
    /// # Errors
    /// As for [`crate::Client::with_labels`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let gpus = client.with_labels(["gpu=a100"])?;
    /// gpus.call::<()>("render", ("scene",))?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "nats")]
    pub fn with_labels<L: AsRef<str>>(
        &self,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<Self, ConfigError> {
        let inner = self.inner.with_labels(labels)?;
        Ok(Self { inner, _thread: self._thread.clone() })
    }

    /// Returns a client that prefers the node to which this key belongs. See [`crate::Client::by_key`].
    ///
    /// # Errors
    /// As for [`crate::Client::by_key`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// client.by_key("tenant-7")?.call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "nats")]
    pub fn by_key(&self, key: impl Into<String>) -> Result<Self, ConfigError> {
        Ok(Self { inner: self.inner.by_key(key)?, _thread: self._thread.clone() })
    }

    /// Returns a client whose calls of idempotent methods are made again if they die with their workers. See
    /// [`crate::Client::retry`].
    ///
    /// ```no_run
    /// #[taskfork::interface]
    /// trait Thumbnails {
    ///     #[taskfork(idempotent)]
    ///     fn shrink(&mut self, image: Vec<u8>) -> Vec<u8>;
    /// }
    ///
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let small = client.retry(2).shrink(vec![0; 1000])?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns another client"]
    pub fn retry(&self, times: u32) -> Self {
        Self { inner: self.inner.retry(times), _thread: self._thread.clone() }
    }

    /// Closes the client, and waits until its last connection is closed. See [`crate::Client::close`].
    ///
    /// The method waits for other threads' checkouts. It never returns while the calling thread holds
    /// one.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// client.call::<()>("work", ())?;
    /// client.close();
    /// assert!(client.is_closed());
    /// # Ok(())
    /// # }
    /// ```
    pub fn close(&self) {
        block_on(self.inner.close());
    }

    /// Whether [`close`](Self::close) has been called on this client or a clone of it.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// let handle = client.clone();
    /// client.close();
    /// assert!(handle.is_closed());
    /// # }
    /// ```
    pub fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    /// Returns the current numbers of workers and checkouts, and the totals since the client was
    /// built.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// println!("{} workers are idle", client.stats().idle);
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

// Here and not beside its other methods, so that the client knows nothing of this module.
impl ClientBuilder {
    /// Checks the options and builds a client for programs without async. It needs no tokio runtime:
    /// the client has a thread of its own.
    ///
    /// # Errors
    /// A [`BuildError`] that names the option at fault, or says why the thread could not be started.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = taskfork::blocking::Client::builder()
    ///     .address("unix:/run/adder.sock")
    ///     .build_blocking()?;
    /// let sum: i64 = client.call("add", (2, 3))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_blocking(self) -> Result<Client, BuildError> {
        Client::with_options(self)
    }
}

/// Holds one worker exclusively, for threads that may block. See [`crate::Checkout`].
///
/// ```no_run
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
/// let checkout = client.checkout();
/// checkout.call::<()>("begin", ())?;
/// checkout.call::<()>("commit", ())?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a checkout is released when it is dropped"]
pub struct Checkout {
    inner: crate::Checkout,
    _thread: Arc<RuntimeThread>,
}

impl Checkout {
    /// Sets the time limit of each call that is made from now on. `None` means no limit. Defaults
    /// to the client's timeout.
    ///
    /// See [`crate::Checkout::timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use std::time::Duration;
    ///
    /// let checkout = client.checkout().timeout(Duration::from_secs(2));
    /// checkout.call::<()>("begin", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { inner: self.inner.timeout(timeout), ..self }
    }

    /// Sets the time limit of each call that is made from now on, counted from when the call begins to run. See
    /// [`crate::Checkout::run_timeout`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use std::time::Duration;
    ///
    /// let checkout = client.checkout().timeout(None).run_timeout(Duration::from_secs(2));
    /// checkout.call::<()>("begin", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn run_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { inner: self.inner.run_timeout(timeout), ..self }
    }

    /// Records each call that is made from now on in `log`. See [`crate::Checkout::log`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let log = log_defer::Log::new(|message| println!("{} lines", message.logs.len()));
    /// client.checkout().log(&log).call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn log(self, log: &log_defer::Log) -> Self {
        Self { inner: self.inner.log(log), ..self }
    }

    /// Sets the trace that each call made from now on belongs to. See
    /// [`crate::Checkout::trace_context`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// use taskfork::trace_context::TraceContext;
    ///
    /// let context = TraceContext::new("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    /// let context = context.ok_or("a header that is no trace")?;
    /// client.checkout().trace_context(context).call::<()>("work", ())?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn trace_context(self, context: crate::trace_context::TraceContext) -> Self {
        Self { inner: self.inner.trace_context(context), ..self }
    }

    /// Calls a method of an untyped interface and waits for its result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.call::<()>("begin", ())?;
    /// checkout.call::<()>("commit", ())?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        args: impl IntoArguments,
    ) -> Result<T, Error> {
        self.queue(method, args).wait()
    }

    /// Calls an interface that is one function, and waits for the result. The call names no method.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.checkout().invoke((2, 3))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn invoke<T: DeserializeOwned>(&self, args: impl IntoArguments) -> Result<T, Error> {
        block_on(self.inner.invoke(args))
    }

    /// Begins a call of a method of an untyped interface, and returns at once. [`Call::wait`] returns its
    /// result.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let first = checkout.queue::<i64>("add", (1, 1));
    /// let second = checkout.queue::<i64>("add", (2, 2));
    /// assert_eq!((first.wait()?, second.wait()?), (2, 4));
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn queue<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        Call { inner: self.inner.call(method, args) }
    }

    /// Calls a method that streams items of the type `I`, and returns a result of the type `T` at the end. See
    /// [`crate::Checkout::stream`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let mut lines = checkout.stream::<String, u64>("lines", ("words.txt",));
    /// for line in &mut lines {
    ///     println!("{}", line?);
    /// }
    /// println!("{} lines", lines.finish()?);
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream<I, T>(&self, method: &str, args: impl IntoArguments) -> StreamCall<I, T> {
        StreamCall::new(self.inner.stream(method, args))
    }

    /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in
    /// the worker.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.ready()?;
    /// println!("a worker is assigned");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A fatal error if the time runs out first, or if the checkout is over already.
    #[track_caller]
    pub fn ready(&self) -> Result<(), Error> {
        block_on(self.inner.ready())
    }

    /// Allocates memory for an argument, to be filled in place. See
    /// [`crate::Checkout::alloc_blob`].
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let checkout = client.checkout();
    /// let mut image = checkout.alloc_blob(8 << 20)?;
    /// image.fill(7);
    /// let sum: u64 = checkout.call("sum", (image.freeze()?,))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        self.inner.alloc_blob(length)
    }

    /// Ends the checkout: all its calls fail with `message`, those made later included. Call it
    /// from another thread to end a call that blocks. See [`crate::Checkout::abort`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// let checkout = client.checkout();
    /// std::thread::scope(|scope| {
    ///     let call = scope.spawn(|| checkout.call::<()>("hang", ()));
    ///     checkout.abort("the user pressed stop");
    ///     assert!(call.join().is_ok_and(|result| result.is_err()));
    /// });
    /// # }
    /// ```
    pub fn abort(&self, message: impl Into<String>) {
        self.inner.abort(message);
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) {
    /// client.checkout().throw_fatal_error("the user pressed stop");
    /// # }
    /// ```
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.abort(message);
    }
}

/// A call that has been made and not waited for. See [`crate::Call`], also for what dropping it
/// does.
///
/// ```no_run
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
/// let checkout = client.checkout();
/// let (one, two) = (checkout.queue::<i64>("add", (1, 1)), checkout.queue::<i64>("add", (2, 2)));
/// println!("{} and {}", one.wait()?, two.wait()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a call that is dropped at once is taken back"]
pub struct Call<T, E = Failure> {
    inner: crate::Call<T, E>,
}

impl<T: DeserializeOwned, E: InterfaceError> Call<T, E> {
    /// Waits for the result.
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::BoxError> {
    /// let call = client.checkout().queue::<i64>("add", (1, 1));
    /// // Something else can happen here meanwhile.
    /// println!("{}", call.wait()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn wait(self) -> Result<T, Error<E>> {
        block_on(self.inner)
    }
}

/// A blocking client with the methods of one interface: the type `…BlockingClient` that the attribute
/// [`interface`](macro@crate::interface) makes of a trait. See [`crate::client::TypedClient`].
///
/// ```no_run
/// use taskfork::blocking::{BuildError, Client, TypedClient};
///
/// /// A client of any interface, with the options of this program.
/// fn connect<C: TypedClient>() -> Result<C, BuildError> {
///     Client::builder().address("unix:/run/app.sock").max_workers(8).build_blocking_as()
/// }
/// # #[taskfork::interface]
/// # trait Nothing {}
/// # let _ = connect::<NothingBlockingClient>;
/// ```
pub trait TypedClient: From<Client> {
    #[doc(hidden)]
    type Interface: Described;
}

impl ClientBuilder {
    /// Builds a blocking client with the methods of one interface. See [`build_as`](Self::build_as) and
    /// [`build_blocking`](Self::build_blocking).
    ///
    /// # Errors
    /// As for [`build_blocking`](Self::build_blocking).
    ///
    /// ```no_run
    /// use taskfork::blocking::Client;
    ///
    /// #[taskfork::interface]
    /// trait Passwords {
    ///     fn hash(&mut self, plain: String) -> String;
    /// }
    ///
    /// # fn main() -> Result<(), taskfork::BoxError> {
    /// let passwords: PasswordsBlockingClient =
    ///     Client::builder().address("unix:/run/passwords.sock").build_blocking_as()?;
    /// println!("{}", passwords.hash("secret")?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_blocking_as<C: TypedClient>(self) -> Result<C, BuildError> {
        self.requiring::<C::Interface>().build_blocking().map(C::from)
    }
}

impl Requires for Client {
    fn require_interface<I: Described>(&self) {
        self.inner.require::<I>();
    }
}

/// Makes typed calls: implemented by [`Checkout`] and [`Client`].
///
/// ```
/// #[taskfork::interface]
/// trait Adder {
///     fn add(&mut self, a: i64, b: i64) -> i64;
/// }
///
/// // The interface adds its methods to whatever makes calls.
/// fn sum<C: taskfork::blocking::Caller>(caller: &C) -> Result<i64, taskfork::Error> {
///     caller.add(2, 3)
/// }
/// # let _ = sum::<taskfork::blocking::Client>;
/// ```
pub trait Caller {
    /// Calls a method of a typed interface and waits for its result.
    #[doc(hidden)]
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError;

    /// Calls a method of a typed interface that streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E>;

    /// Calls a method of a typed interface that takes an input, and waits for its result.
    #[doc(hidden)]
    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError;

    /// Calls a method of a typed interface that takes an input and streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E>;
}

impl Caller for Checkout {
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed(method, args))
    }

    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        StreamCall::new(self.inner.streamed(method, args))
    }

    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed_with_input(method, args, input))
    }

    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        StreamCall::new(self.inner.streamed_with_input(method, args, input))
    }
}

impl Caller for Client {
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed(method, args))
    }

    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        StreamCall::new(self.inner.streamed(method, args))
    }

    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed_with_input(method, args, input))
    }

    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        StreamCall::new(self.inner.streamed_with_input(method, args, input))
    }
}

/// The thread that runs a client's task. It ends when the client and all its checkouts are dropped.
#[derive(Debug)]
struct RuntimeThread {
    stop: Option<oneshot::Sender<()>>,
    /// Set if it must be awaited: before the program ends, nodes have to be told that sessions have ended.
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        self.stop = None;
        // A log's callback may drop the last handle in that thread.
        let thread = self.thread.take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
        {
            // A panic in it was printed.
            let _ = thread.join();
        }
    }
}

// The sender is only ever dropped, so a panic cannot leave it half changed.
impl UnwindSafe for RuntimeThread {}
impl RefUnwindSafe for RuntimeThread {}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
