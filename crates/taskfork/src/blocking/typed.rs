//! Clients and checkouts that have the methods of one interface.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use super::{BuildError, Checkout, Client, MapCalls};
use crate::blob::BlobMut;
use crate::client::{self, ClientBuilder, ConfigError, Items, Stats};
use crate::error::Error;
use crate::wire::interface_description::Described;

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
pub trait TypedClient: From<Client> + Deref<Target = TypedHandle<Self>> {
    /// What [`checkout`](TypedHandle::checkout) returns: the type `…BlockingCheckout`.
    type Checkout: From<TypedCheckout> + Deref<Target = TypedCheckout>;
    /// The async client of the same interface, on which [`map`](TypedHandle::map) makes its calls.
    type Async: client::TypedClient;
    #[doc(hidden)]
    type Interface: Described;
    #[doc(hidden)]
    fn of(handle: TypedHandle<Self>) -> Self;
}

/// What every typed blocking client has beside the methods of its interface. See [`crate::client::TypedHandle`].
///
/// ```no_run
/// #[taskfork::interface]
/// trait Squares {
///     fn square(&mut self, x: i64) -> i64;
/// }
///
/// fn sum(client: &SquaresBlockingClient) -> Result<i64, taskfork::Error> {
///     client.with_priority(5).map(0..1000, |client, x| client.square(x)).concurrency(4).sum()
/// }
/// # let _ = sum;
/// ```
pub struct TypedHandle<C> {
    client: Client,
    kind: PhantomData<fn() -> C>,
}

impl<C: TypedClient> TypedHandle<C> {
    /// Requires the interface of the servers, from the next connection on.
    #[doc(hidden)]
    pub fn new(client: Client) -> Self {
        client.inner.require::<C::Interface>();
        Self::with(client)
    }

    fn with(client: Client) -> Self {
        Self { client, kind: PhantomData }
    }

    /// The typed client of a client that requires the interface already.
    fn typed(client: Client) -> C {
        C::of(Self::with(client))
    }

    /// Checks a worker out, or joins the queue for one. Returns at once. See [`Client::checkout`].
    pub fn checkout(&self) -> C::Checkout {
        TypedCheckout(self.client.checkout()).into()
    }

    /// Checks a worker out if one is idle now. Returns `None` otherwise, and never joins the queue.
    pub fn try_checkout(&self) -> Option<C::Checkout> {
        self.client.try_checkout().map(|checkout| TypedCheckout(checkout).into())
    }

    /// A client whose calls of methods with `#[taskfork(idempotent)]` are made again if they die with their workers. See
    /// [`Client::retry`].
    #[must_use = "it returns another client"]
    pub fn retry(&self, times: u32) -> C {
        Self::typed(self.client.retry(times))
    }

    /// A handle of the same client whose calls have this time limit, counted from when they are made. See
    /// [`Client::with_timeout`].
    #[must_use = "it returns another client"]
    pub fn with_timeout(&self, timeout: impl Into<Option<Duration>>) -> C {
        Self::typed(self.client.with_timeout(timeout))
    }

    /// A handle of the same client whose calls have this time limit, counted from when they begin to run. See
    /// [`Client::with_run_timeout`].
    #[must_use = "it returns another client"]
    pub fn with_run_timeout(&self, timeout: impl Into<Option<Duration>>) -> C {
        Self::typed(self.client.with_run_timeout(timeout))
    }

    /// A handle of the same client whose checkouts have this priority while they wait for a worker. See
    /// [`Client::with_priority`].
    #[must_use = "it returns another client"]
    pub fn with_priority(&self, priority: i8) -> C {
        Self::typed(self.client.with_priority(priority))
    }

    /// A client whose workers belong to nodes that have all of these labels. See [`Client::with_labels`].
    ///
    /// # Errors
    /// As for [`Client::with_labels`].
    #[cfg(feature = "nats")]
    pub fn with_labels<L: AsRef<str>>(
        &self,
        labels: impl IntoIterator<Item = L>,
    ) -> Result<C, ConfigError> {
        self.client.with_labels(labels).map(Self::typed)
    }

    /// A client that prefers the node to which this key belongs. See [`Client::by_key`].
    ///
    /// # Errors
    /// As for [`Client::by_key`].
    #[cfg(feature = "nats")]
    pub fn by_key(&self, key: impl Into<String>) -> Result<C, ConfigError> {
        self.client.by_key(key).map(Self::typed)
    }

    /// Makes a call for each item, a bounded number of them at a time, and returns an iterator of their results. See
    /// [`Client::map`].
    pub fn map<I, F, Fut>(
        &self,
        items: I,
        make: F,
    ) -> MapCalls<Items<I::IntoIter>, F, Fut, C::Async>
    where
        I: IntoIterator,
        F: FnMut(&C::Async, I::Item) -> Fut,
        Fut: Future,
    {
        let caller = C::Async::from(self.client.inner.clone());
        MapCalls::new(caller.map(items, make), self.client.thread.clone())
    }

    /// Changes how many workers the client has, for all its handles. Returns at once. See [`Client::resize`].
    ///
    /// # Errors
    /// As for [`Client::resize`].
    pub fn resize(&self, min_workers: usize, max_workers: usize) -> Result<(), ConfigError> {
        self.client.resize(min_workers, max_workers)
    }

    /// Closes the client and all that share its workers, and waits until the last connection is closed. See
    /// [`Client::close`].
    pub fn close(&self) {
        self.client.close();
    }

    /// Whether `close` has been called on this client or on one that shares its workers.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// The current numbers of workers and checkouts, and the totals since the client was built.
    pub fn stats(&self) -> Stats {
        self.client.stats()
    }

    /// The client that shares these workers and has no methods of an interface.
    pub fn untyped(&self) -> &Client {
        &self.client
    }
}

// Not derived, because a derived one would want the same of the typed client, which has this as its field.
impl<C> Clone for TypedHandle<C> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), kind: PhantomData }
    }
}

impl<C> fmt::Debug for TypedHandle<C> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client.fmt(out)
    }
}

/// What every typed blocking checkout has beside the methods of its interface. See [`crate::client::TypedCheckout`].
///
/// ```no_run
/// #[taskfork::interface]
/// trait Thumbnails {
///     fn shrink(&mut self, image: &[u8]) -> Vec<u8>;
/// }
///
/// fn connect(client: &ThumbnailsBlockingClient) -> Result<(), taskfork::Error> {
///     client.checkout().ready()
/// }
/// # let _ = connect;
/// ```
#[derive(Debug)]
#[must_use = "a checkout is released when it is dropped"]
pub struct TypedCheckout(Checkout);

impl TypedCheckout {
    /// The same checkout with other options.
    #[doc(hidden)]
    pub fn with(self, change: impl FnOnce(Checkout) -> Checkout) -> Self {
        Self(change(self.0))
    }

    /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in the worker.
    ///
    /// # Errors
    /// A fatal error if the time runs out first, or if the checkout is over already.
    #[track_caller]
    pub fn ready(&self) -> Result<(), Error> {
        self.0.ready()
    }

    /// Allocates memory of `length` bytes for an argument, to be filled in place. See [`Checkout::alloc_blob`].
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        self.0.alloc_blob(length)
    }

    /// Ends the checkout: all its calls fail with `message`, those made later included. See [`Checkout::abort`].
    pub fn abort(&self, message: impl Into<String>) {
        self.0.abort(message);
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.0.abort(message);
    }

    /// The same checkout without the methods of an interface.
    pub fn untyped(&self) -> &Checkout {
        &self.0
    }
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
