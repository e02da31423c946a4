//! The same pool for programs without async.
//!
//! A [`Client`] keeps a thread of its own that connects workers and keeps the time; the calling
//! thread itself sends a call and receives its answer. Start servers with
//! [`Server::fork`](crate::Server::fork) before the first client is built, or with
//! [`Server::spawn`](crate::Server::spawn) at any time.
//!
//! ```no_run
//! use taskfork::blocking::Client;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::build(taskfork::Client::builder().address("unix:/run/adder.sock"))?;
//! let sum: i64 = client.call("add", (2, 3))?;
//!
//! let checkout = client.checkout();
//! let first = checkout.queue::<i64>("add", (1, 1));
//! let second = checkout.queue::<i64>("add", (2, 2));
//! assert_eq!((first.wait()?, second.wait()?), (2, 4));
//! # Ok(())
//! # }
//! ```

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::blob::BlobMut;
use crate::client::{Caller as AsyncCaller, ClientBuilder, ConfigError, Stats};
use crate::display::debug_as_text;
use crate::error::{Error, Failure};
use crate::wire::arguments::IntoArguments;
use crate::wire::call_error::InterfaceError;

/// A pool of connections to the workers of one server, for threads that may block.
///
/// Clones share the pool.
#[derive(Debug, Clone)]
pub struct Client {
    inner: crate::Client,
    _thread: Arc<RuntimeThread>,
}

/// Why a blocking client cannot be built.
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
    /// Builds a client of these options. There need be no tokio runtime.
    ///
    /// # Errors
    /// When an option is wrong, or when the client's thread cannot be started.
    pub fn build(options: ClientBuilder) -> Result<Self, BuildError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inner = options.build_on(runtime.handle())?;
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("taskfork-client".to_owned()).spawn(move || {
            // The other end is dropped, never used: both outcomes mean the end.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { inner, _thread: Arc::new(RuntimeThread { _stop: stop }) })
    }

    /// Takes a worker, or a place in the queue for one; does not wait.
    pub fn checkout(&self) -> Checkout {
        Checkout { inner: self.inner.checkout(), _thread: self._thread.clone() }
    }

    /// Takes a worker if one is idle now, and no place in the queue otherwise.
    pub fn try_checkout(&self) -> Option<Checkout> {
        let inner = self.inner.try_checkout()?;
        Some(Checkout { inner, _thread: self._thread.clone() })
    }

    /// A checkout of one call of an untyped interface.
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

    /// A checkout of one call that names no method.
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn invoke<T: DeserializeOwned>(&self, args: impl IntoArguments) -> Result<T, Error> {
        block_on(self.inner.invoke(args))
    }

    /// How many workers and waiting checkouts there are now.
    pub fn stats(&self) -> Stats {
        self.inner.stats()
    }
}

/// A worker held exclusively, for threads that may block. See [`crate::Checkout`].
#[derive(Debug)]
pub struct Checkout {
    inner: crate::Checkout,
    _thread: Arc<RuntimeThread>,
}

impl Checkout {
    /// The time that each call made from now on has; `None` for no limit.
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        Self { inner: self.inner.timeout(timeout), ..self }
    }

    /// Has each call recorded in `log`. See [`crate::Checkout::log`].
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn log(self, log: &log_defer::Log) -> Self {
        Self { inner: self.inner.log(log), ..self }
    }

    /// The trace that each call made from now on belongs to. See
    /// [`crate::Checkout::trace_context`].
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn trace_context(self, context: crate::trace_context::TraceContext) -> Self {
        Self { inner: self.inner.trace_context(context), ..self }
    }

    /// Calls a method of an untyped interface and waits for its result.
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

    /// Makes a call that names no method and waits for its result.
    ///
    /// # Errors
    /// As for [`crate::Checkout::call`].
    #[track_caller]
    pub fn invoke<T: DeserializeOwned>(&self, args: impl IntoArguments) -> Result<T, Error> {
        block_on(self.inner.invoke(args))
    }

    /// Makes a call and does not wait for it.
    #[track_caller]
    pub fn queue<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        Call { inner: self.inner.call(method, args) }
    }

    /// Waits, in turn with the calls, until a worker is there.
    ///
    /// # Errors
    /// When the time runs out before there is one, or the checkout is over already.
    #[track_caller]
    pub fn ready(&self) -> Result<(), Error> {
        block_on(self.inner.ready())
    }

    /// Memory for an argument, to be filled in place. See [`crate::Checkout::alloc_blob`].
    ///
    /// # Errors
    /// When the system has no memory or descriptor for it.
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        self.inner.alloc_blob(length)
    }

    /// Ends the checkout and whatever runs in it.
    pub fn abort(&self, message: impl Into<String>) {
        self.inner.abort(message);
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.abort(message);
    }
}

/// A call that has been made and can be waited for. See [`crate::Call`].
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
    pub fn wait(self) -> Result<T, Error<E>> {
        block_on(self.inner)
    }
}

/// What typed calls can be made on: a [`Checkout`] or a [`Client`].
pub trait Caller {
    /// Makes a call of a typed interface and waits for its result.
    #[doc(hidden)]
    #[track_caller]
    fn typed<T, E>(&self, method: &'static str, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError;
}

impl Caller for Checkout {
    #[track_caller]
    fn typed<T, E>(&self, method: &'static str, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed(method, args))
    }
}

impl Caller for Client {
    #[track_caller]
    fn typed<T, E>(&self, method: &'static str, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.inner.typed(method, args))
    }
}

/// The thread that drives a client; it ends once nothing of the client is left.
#[derive(Debug)]
struct RuntimeThread {
    _stop: oneshot::Sender<()>,
}

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
