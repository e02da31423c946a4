//! Clients that have the methods of one interface.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::Duration;

use futures_core::Stream;

use super::builder::ClientBuilder;
use super::config_error::ConfigError;
use super::handle::Client;
use super::items::Items;
use super::map::MapCalls;
use super::typed_checkout::TypedCheckout;
use crate::client::observe::stats::Stats;
use crate::wire::interface_description::Described;

/// A client with the methods of one interface: the type `…Client` that the attribute
/// [`interface`](macro@crate::interface) makes of a trait. Programs do not implement it. What such a client has beside the
/// methods of its interface, it has from [`TypedHandle`].
///
/// It tells the server what it requires when it connects a worker, and the server compares that with what it serves.
/// If they differ, all calls fail with [`FatalError::WrongInterface`](crate::error::FatalError::WrongInterface). A client of
/// a service at NATS first tries other nodes, for some 2 seconds.
///
/// ```no_run
/// use taskfork::Client;
/// use taskfork::client::{ConfigError, TypedClient};
///
/// /// A client of any interface, with the options of this program.
/// fn connect<C: TypedClient>() -> Result<C, ConfigError> {
///     Client::builder().address("unix:/run/app.sock").max_workers(8).build_as()
/// }
/// # #[taskfork::interface]
/// # trait Nothing {}
/// # let _ = connect::<NothingClient>;
/// ```
pub trait TypedClient: From<Client> + Deref<Target = TypedHandle<Self>> {
    /// What [`checkout`](TypedHandle::checkout) returns: the type `…Checkout`.
    type Checkout: From<TypedCheckout> + Deref<Target = TypedCheckout>;
    #[doc(hidden)]
    type Interface: Described;
    #[doc(hidden)]
    fn of(handle: TypedHandle<Self>) -> Self;
}

/// What every typed client has beside the methods of its interface: checkouts, options, many calls, statistics.
///
/// The type `…Client` that the attribute [`interface`](macro@crate::interface) makes of a trait dereferences to this, so these
/// are methods of its values. Each does what the method of [`Client`] with its name does, and returns typed clients and
/// checkouts.
///
/// ```no_run
/// use std::time::Duration;
///
/// #[taskfork::interface]
/// trait Thumbnails {
///     fn shrink(&mut self, image: &[u8]) -> Vec<u8>;
/// }
///
/// async fn shrink_all(client: &ThumbnailsClient, images: Vec<Vec<u8>>) -> Result<u64, taskfork::Error> {
///     let patient = client.with_timeout(None).with_run_timeout(Duration::from_secs(5)).with_priority(-1);
///     let mut small = patient.map(images, |client, image| client.shrink(&image)).concurrency(4);
///     let mut bytes = 0;
///     while let Some(image) = small.next().await {
///         bytes += image?.len() as u64;
///     }
///     println!("{} workers are idle", client.stats().idle);
///     Ok(bytes)
/// }
/// # let _ = shrink_all;
/// ```
pub struct TypedHandle<C> {
    client: Client,
    kind: PhantomData<fn() -> C>,
}

impl<C: TypedClient> TypedHandle<C> {
    /// Requires the interface of the servers, from the next connection on.
    #[doc(hidden)]
    pub fn new(client: Client) -> Self {
        client.require::<C::Interface>();
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
        TypedCheckout::new(self.client.checkout()).into()
    }

    /// Checks a worker out if one is idle now. Returns `None` otherwise, and never joins the queue. See
    /// [`Client::try_checkout`].
    pub fn try_checkout(&self) -> Option<C::Checkout> {
        self.client.try_checkout().map(|checkout| TypedCheckout::new(checkout).into())
    }

    /// A client whose calls of methods with `#[taskfork(idempotent)]` are made again, up to `times` times each, if they
    /// die with their workers. Calls of checkouts are not. Defaults to 0. See [`Client::retry`].
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

    /// Makes a call for each item, a bounded number of them at a time, and returns a stream of their results. See
    /// [`Client::map`].
    pub fn map<I, F, Fut>(&self, items: I, make: F) -> MapCalls<Items<I::IntoIter>, F, Fut, C>
    where
        I: IntoIterator,
        F: FnMut(&C, I::Item) -> Fut,
        Fut: Future,
    {
        self.map_stream(Items::new(items), make)
    }

    /// The same as [`map`](Self::map) for the items of a stream. See [`Client::map_stream`].
    pub fn map_stream<S, F, Fut>(&self, items: S, make: F) -> MapCalls<S, F, Fut, C>
    where
        S: Stream + Unpin,
        F: FnMut(&C, S::Item) -> Fut,
        Fut: Future,
    {
        MapCalls::new(&self.client, Self::typed(self.client.clone()), items, make)
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
    pub fn close(&self) -> impl Future<Output = ()> + Send + use<C> {
        self.client.close()
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

impl ClientBuilder {
    /// Builds a client with the methods of one interface: the type `…Client` that the attribute
    /// [`interface`](macro@crate::interface) has made of a trait. Otherwise the same as [`build`](Self::build).
    ///
    /// # Errors
    /// As for [`build`](Self::build). Whether the server serves the interface shows at the first call:
    /// [`FatalError::WrongInterface`](crate::error::FatalError::WrongInterface).
    ///
    /// ```no_run
    /// use taskfork::Client;
    ///
    /// #[taskfork::interface]
    /// trait Passwords {
    ///     fn hash(&mut self, plain: String) -> String;
    /// }
    ///
    /// # async fn example() -> Result<(), taskfork::BoxError> {
    /// let passwords: PasswordsClient =
    ///     Client::builder().address("unix:/run/passwords.sock").build_as()?;
    /// println!("{}", passwords.hash("secret").await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_as<C: TypedClient>(self) -> Result<C, ConfigError> {
        self.requiring::<C::Interface>().build().map(C::from)
    }

    /// Requires an interface of the server.
    pub(crate) fn requiring<I: Described>(mut self) -> Self {
        self.required.push(I::DESCRIPTION);
        self
    }

    /// Requires interfaces of which only the names are known.
    pub(super) fn requiring_names(mut self, names: Vec<String>) -> Self {
        self.required_names.extend(names);
        self
    }
}

impl Client {
    /// Requires an interface of the servers, from the next connection on.
    pub(crate) fn require<I: Described>(&self) {
        self.core().require(I::DESCRIPTION);
    }
}
