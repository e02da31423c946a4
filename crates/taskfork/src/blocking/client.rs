//! The client: checkouts and calls begin here.

use std::io;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::Checkout;
use super::runtime::{RuntimeThread, block_on};
use crate::client::{ClientBuilder, ConfigError, Stats};
use crate::display::debug_as_text;
use crate::error::Error;
use crate::wire::arguments::IntoArguments;

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
    pub(super) inner: crate::Client,
    pub(super) thread: Arc<RuntimeThread>,
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
        let (inner, thread) = RuntimeThread::run(|runtime| options.build_on(runtime))?;
        Ok(Self { inner, thread: Arc::new(thread) })
    }

    /// A client with the same thread.
    pub(super) fn with_inner(&self, inner: crate::Client) -> Self {
        Self { inner, thread: self.thread.clone() }
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
        Checkout::new(self.inner.checkout(), self.thread.clone())
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
        Some(Checkout::new(self.inner.try_checkout()?, self.thread.clone()))
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
        self.with_inner(self.inner.retry(times))
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
