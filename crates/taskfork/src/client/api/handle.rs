//! The client handle: checkouts and calls begin here.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::call::Call;
use super::checkout::Checkout;
use super::single_call::{call_once, stream_once};
use super::stream::StreamCall;
use crate::client::config::{CheckoutOptions, Config};
use crate::client::io::core::Core;
use crate::client::io::driver::drive;
use crate::client::io::driver_queue::DriverQueue;
use crate::client::observe::stats::Stats;
use crate::wire::arguments::IntoArguments;

/// A pool of connections to the workers of a server.
///
/// A client is cheap to clone, and all clones share one pool. The connections close when the last
/// clone is dropped, together with the last [`Checkout`] and [`Call`].
///
/// All methods may be called from any thread and any task. A client needs the tokio runtime in
/// which it was built: when that runtime shuts down, all checkouts that wait fail with
/// [`FatalError::Aborted`](crate::error::FatalError::Aborted).
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use taskfork::Client;
///
/// let client = Client::builder().address("unix:/run/adder.sock").build()?;
/// let sum: i64 = client.call("add", (2, 3)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    options: CheckoutOptions,
    _driver: Arc<DriverLease>,
    /// How often a call of an idempotent method that died with its worker is made again.
    retries: u32,
    #[cfg(feature = "nats")]
    runtime: Handle,
}

/// Wakes the driver when the last client is dropped, so that the driver task can end.
#[derive(Debug)]
struct DriverLease(Arc<DriverQueue>);

impl Drop for DriverLease {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (counts, closed) = {
            let pool = self.core.pool();
            (pool.counts(), pool.is_closed())
        };
        out.debug_struct("Client")
            .field("name", &self.core.config.name)
            .field("addresses", &self.core.config.addresses)
            .field("idle", &counts.idle)
            .field("busy", &counts.busy)
            .field("connecting", &counts.connecting)
            .field("queued", &counts.queued)
            .field("closed", &closed)
            .finish()
    }
}

impl Client {
    /// Starts the client's driver task on a runtime.
    pub(super) fn start(config: Config, runtime: &Handle) -> Self {
        let core = Arc::new(Core::new(config));
        let driver_queue = core.driver_queue.clone();
        runtime.spawn(drive(Arc::downgrade(&core), driver_queue.clone()));
        Self {
            options: core.config.checkout_options(),
            core,
            _driver: Arc::new(DriverLease(driver_queue)),
            retries: 0,
            #[cfg(feature = "nats")]
            runtime: runtime.clone(),
        }
    }

    /// Starts another client in the same runtime. Its checkouts have the options of this handle.
    #[cfg(feature = "nats")]
    pub(super) fn sibling(&self, config: Config) -> Self {
        Self { options: self.options, retries: self.retries, ..Self::start(config, &self.runtime) }
    }

    pub(super) fn retries(&self) -> u32 {
        self.retries
    }

    /// Waits, in the client's runtime, until the nodes know of all sessions that have ended.
    #[cfg(feature = "nats")]
    pub(crate) fn flush_nats(&self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let nats = self.core.config.connector.nats.clone()?;
        Some(async move { nats.flush().await })
    }

    pub(in crate::client) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(super) fn options(&self) -> CheckoutOptions {
        self.options
    }

    /// Returns a handle of the same client with other options of checkouts.
    pub(super) fn with_options(&self, change: impl FnOnce(&mut CheckoutOptions)) -> Self {
        let mut client = self.clone();
        change(&mut client.options);
        client
    }

    /// Checks a worker out, or joins the queue for one. Returns at once.
    ///
    /// Checkouts of one priority are served in the order in which they are made. If the queue is full (see
    /// [`max_queue`](crate::client::ClientBuilder::max_queue)), this checkout or the oldest one in the queue fails: its calls
    /// return [`FatalError::Overloaded`](crate::error::FatalError::Overloaded).
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.call::<()>("begin", ()).await?;
    /// checkout.call::<()>("commit", ()).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn checkout(&self) -> Checkout {
        Checkout::new(&self.core, self.options)
    }

    /// Checks a worker out if one is idle now. Returns `None` otherwise, and never joins the queue.
    ///
    /// Use it to shed load instead of queueing it.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// match client.try_checkout() {
    ///     Some(checkout) => checkout.call::<()>("render", ("page",)).await?,
    ///     None => println!("busy, come back later"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_checkout(&self) -> Option<Checkout> {
        Checkout::try_new(&self.core, self.options)
    }

    /// Calls a method of an untyped interface, in a checkout of its own.
    ///
    /// `args` is a tuple of the arguments. The checkout ends with the call, so two calls may run in
    /// different workers. Use [`checkout`](Self::checkout) where several calls need the same
    /// worker.
    ///
    /// # Errors
    /// As for [`Checkout::call`].
    ///
    /// # Cancellation
    /// Dropping the call before it has begun takes it back. Dropping it while it runs kills its
    /// worker, which the pool replaces.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.call("add", (2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn call<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        call_once(&self.core, self.options, Some(Cow::Owned(method.to_owned())), None, args, 0)
    }

    /// Calls a method that streams items of the type `I`, and returns a result of the type `T` at the end, in a checkout of
    /// its own. See [`Checkout::stream`](crate::Checkout::stream).
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let mut lines = client.stream::<String, u64>("lines", ("words.txt",));
    /// while let Some(line) = lines.next().await? {
    ///     println!("{line}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Checkout::stream`](crate::Checkout::stream).
    ///
    /// # Cancellation
    /// Dropping the stream kills the worker, unless the call has ended.
    #[track_caller]
    pub fn stream<I, T>(&self, method: &str, args: impl IntoArguments) -> StreamCall<I, T> {
        stream_once(&self.core, self.options, Some(Cow::Owned(method.to_owned())), None, args)
    }

    /// Calls an interface that is one function, in a checkout of its own. The call names no method.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.invoke((2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Checkout::call`].
    ///
    /// # Cancellation
    /// As for [`call`](Self::call).
    #[track_caller]
    pub fn invoke<T>(&self, args: impl IntoArguments) -> Call<T> {
        call_once(&self.core, self.options, None, None, args, 0)
    }

    /// Returns a client whose calls of methods with `#[taskfork(idempotent)]` are made again, up to `times` times each,
    /// if they die with their workers. It shares the workers of this client.
    ///
    /// Defaults to 0. Only calls that this client makes itself are made again, and not those of a checkout, because a
    /// checkout ends with its worker. The call goes to another worker, within its time limit, which counts on from when
    /// it was made. A call that has an answer is never made again, also if that is a panic, and a call whose time is
    /// over is not either. A call that had not begun when its worker died goes to another one in any case, whatever its
    /// method.
    ///
    /// The first worker may still run when the second one begins, if only the way to it was lost: through a gateway, a
    /// node or a network.
    ///
    /// ```
    /// use taskfork::Client;
    ///
    /// #[taskfork::interface]
    /// trait Thumbnails {
    ///     #[taskfork(idempotent)]
    ///     fn shrink(&mut self, image: Vec<u8>) -> Vec<u8>;
    /// }
    ///
    /// async fn shrink(client: &ThumbnailsClient, image: Vec<u8>) -> Result<Vec<u8>, taskfork::Error> {
    ///     client.retry(2).shrink(image).await
    /// }
    /// # let _ = shrink;
    /// ```
    #[must_use = "it returns another client"]
    pub fn retry(&self, times: u32) -> Self {
        Self { retries: times, ..self.clone() }
    }

    /// Closes the client, and waits until its last connection is closed.
    ///
    /// A program whose client has an address `nats://HOST:PORT/SERVICE` should await this before its runtime ends: then the nodes
    /// know at once that the sessions have ended. Otherwise they keep the places for two intervals of heartbeats. If NATS does not
    /// take it within a second, this resolves nevertheless.
    ///
    /// The client is closed as soon as this method is called, even if the future is dropped. New
    /// checkouts and checkouts that wait for a worker fail with
    /// [`ClientClosed`](crate::error::FatalError::ClientClosed), and
    /// [`try_checkout`](Self::try_checkout) returns `None`. Idle connections are closed. A checkout that holds a worker goes on, and
    /// its connection is closed when it ends. So the future does not resolve while the task that awaits
    /// it holds a checkout.
    ///
    /// All clones of the client are closed. Further calls of this method wait in the same way.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// client.close().await;
    /// assert!(client.is_closed());
    /// assert!(client.call::<i64>("add", (2, 3)).await.is_err());
    /// # }
    /// ```
    pub fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        self.core.close();
        let core = self.core.clone();
        #[cfg(feature = "nats")]
        let (runtime, flush) = (self.runtime.clone(), self.flush_nats());
        async move {
            core.wait_drained().await;
            #[cfg(feature = "nats")]
            if let Some(flush) = flush {
                // There, because whoever waits may have no timers. If it has ended, nothing can be told.
                let _ = runtime.spawn(flush).await;
            }
        }
    }

    /// Whether [`close`](Self::close) has been called on this client or a clone of it.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let handle = client.clone();
    /// client.close().await;
    /// assert!(handle.is_closed());
    /// # }
    /// ```
    pub fn is_closed(&self) -> bool {
        self.core.pool().is_closed()
    }

    /// Returns the current numbers of workers and checkouts, and the totals since the client was
    /// built.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// println!("{} checkouts wait", client.stats().queued);
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        let pool = self.core.pool();
        let unreachable = pool.unreachable().map(|unreachable| unreachable.reason.to_string());
        let counts = pool.counts();
        drop(pool);
        self.core.counters.stats(counts, unreachable)
    }
}
