//! A client and its options.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::call::Call;
use super::checkout::Checkout;
use super::config::Config;
use super::core::Core;
use super::driver::drive;
use super::driver_queue::DriverQueue;
use super::pool::{Overload, PoolLimits};
use super::stats::Stats;
use crate::address::{Address, AddressError, Place};
use crate::busy_poll::BusyPoll;
use crate::display::debug_as_text;
use crate::server::SpawnedServer;
use crate::shm_pool::DEFAULT_SHARED_MEMORY;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::arguments::IntoArguments;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME};
use crate::wire::hello::MIN_FRAME;
use crate::wire::native::DEFAULT_GRACE;

/// A pool of connections to the workers of one server.
///
/// Cloning is cheap, and all clones share the pool. The last clone to be dropped, with the last
/// checkout and call, closes the connections.
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
#[derive(Debug, Clone)]
pub struct Client {
    core: Arc<Core>,
    _driver: Arc<DriverLease>,
}

/// Wakes the driver when the last client is gone, so that it can see that.
#[derive(Debug)]
struct DriverLease(Arc<DriverQueue>);

impl Drop for DriverLease {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Client {
    /// A client with every option but the address at its default.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            addresses: Vec::new(),
            name: "taskfork".to_owned(),
            min_workers: None,
            max_workers: 20,
            max_checkouts: None,
            max_queue: None,
            overload: Overload::default(),
            timeout: TimeLimit::new(Duration::from_secs(30)),
            grace: DEFAULT_GRACE,
            busy_poll: BusyPoll::default(),
            connect_timeout: TimeLimit::new(Duration::from_secs(5)),
            reuse_after_error: false,
            max_frame: DEFAULT_MAX_FRAME,
            max_blob: DEFAULT_MAX_BLOB,
            protocol: Protocol::Native,
            pass_descriptors: true,
            shared_memory: DEFAULT_SHARED_MEMORY,
        }
    }

    /// Takes a worker, or a place in the queue for one; returns at once. Checkouts are served in
    /// the order in which they are made.
    pub fn checkout(&self) -> Checkout {
        Checkout::new(&self.core)
    }

    /// Takes a worker if one is idle now, and no place in the queue otherwise: for shedding load
    /// instead of letting it wait.
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
        Checkout::try_new(&self.core)
    }

    /// A checkout of one call of an untyped interface.
    ///
    /// # Errors
    /// As for [`Checkout::call`].
    #[track_caller]
    pub fn call<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        self.checkout().call(method, args)
    }

    /// A checkout of one call that names no method.
    ///
    /// # Errors
    /// As for [`Checkout::call`].
    #[track_caller]
    pub fn invoke<T>(&self, args: impl IntoArguments) -> Call<T> {
        self.checkout().invoke(args)
    }

    /// How many workers and waiting checkouts there are now, and what there has been so far.
    pub fn stats(&self) -> Stats {
        let pool = self.core.pool();
        let unreachable = pool.unreachable().map(|unreachable| unreachable.reason.clone());
        let counts = pool.counts();
        drop(pool);
        self.core.counters.stats(counts, unreachable)
    }
}

/// Collects the options of a [`Client`].
#[derive(Debug, Clone)]
#[must_use = "a client is made by `build`"]
pub struct ClientBuilder {
    addresses: Vec<Result<Address, AddressError>>,
    name: String,
    min_workers: Option<usize>,
    max_workers: usize,
    max_checkouts: Option<u64>,
    max_queue: Option<usize>,
    overload: Overload,
    timeout: TimeLimit,
    grace: TimeLimit,
    busy_poll: BusyPoll,
    connect_timeout: TimeLimit,
    reuse_after_error: bool,
    max_frame: usize,
    max_blob: usize,
    protocol: Protocol,
    pass_descriptors: bool,
    shared_memory: usize,
}

/// Why a client cannot be built.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No address was given.
    #[error(
        "the client has no address: set one with `address`, as in address(\"unix:/run/app.sock\")"
    )]
    NoAddress,
    /// The address given is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An inherited listener can be listened on only.
    #[error(
        "{address} is a listening descriptor, to which a client cannot connect: use unix:PATH or tcp:HOST:PORT"
    )]
    NotConnectable {
        /// The address.
        address: String,
    },
    /// `max_workers` is 0.
    #[error("max_workers is 0, so that no checkout could ever be served: set it to 1 or more")]
    NoWorkers,
    /// `max_workers` is below `min_workers`.
    #[error("max_workers is {max_workers}, which is less than min_workers, {min_workers}")]
    MaxBelowMin {
        /// The least workers.
        min_workers: usize,
        /// The most workers.
        max_workers: usize,
    },
    /// `max_checkouts` is 0.
    #[error("max_checkouts is 0, so that no worker could serve anything: set it to 1 or more")]
    NoCheckouts,
    /// An option has a value with which no call could succeed.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// There is no runtime for the client's task.
    #[error(
        "a client is built inside a tokio runtime: call `build` from async code, or use \
         `taskfork::blocking::Client` in a program without async"
    )]
    NoRuntime,
}

debug_as_text!(ConfigError);

impl ClientBuilder {
    /// Where the server is: `unix:PATH`, `tcp:HOST:PORT`, or the address of a
    /// [`ServerHandle`](crate::server::ServerHandle). The server need not exist yet.
    pub fn address<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.addresses = vec![address.try_into().map_err(Into::into)];
        self
    }

    /// Sets several addresses, in order of preference. They replace addresses set before.
    ///
    /// For each new worker the client tries the addresses in this order, each for at most
    /// [`connect_timeout`](Self::connect_timeout), and uses the first that answers. The workers of
    /// one client can belong to several servers.
    ///
    /// ```
    /// let client = taskfork::Client::builder()
    ///     .addresses(["unix:/run/adder.sock", "tcp:10.0.0.2:7000"]);
    /// # let _ = client;
    /// ```
    pub fn addresses<A>(mut self, addresses: impl IntoIterator<Item = A>) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        let addresses = addresses.into_iter();
        self.addresses = addresses.map(|address| address.try_into().map_err(Into::into)).collect();
        self
    }

    /// What the client calls itself towards the server, for its logs. `taskfork` unless set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many workers are kept connected when nothing is to be done: 2 unless set, or
    /// `max_workers` if that is less.
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = Some(workers);
        self
    }

    /// The most workers at any time, 20 unless set. Further checkouts wait.
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    /// After how many checkouts a worker is replaced; never unless set.
    pub fn max_checkouts(mut self, checkouts: impl Into<Option<u64>>) -> Self {
        self.max_checkouts = checkouts.into();
        self
    }

    /// The most checkouts that wait for a worker; any number unless set. With more, one is refused
    /// at once, with [`Overloaded`](crate::error::FatalError::Overloaded): the newest, unless
    /// [`overload`](Self::overload) says otherwise. With 0 none ever waits.
    ///
    /// ```
    /// use taskfork::client::Overload;
    /// use taskfork::Client;
    /// let client = Client::builder().max_queue(100).overload(Overload::DropOldest);
    /// # let _ = client;
    /// ```
    pub fn max_queue(mut self, checkouts: impl Into<Option<usize>>) -> Self {
        self.max_queue = checkouts.into();
        self
    }

    /// Who is refused when `max_queue` checkouts wait already: [`Overload::RefuseNewest`] unless
    /// set.
    pub fn overload(mut self, overload: Overload) -> Self {
        self.overload = overload;
        self
    }

    /// The time that a call has, counted from when it is made, waiting included; 30 seconds unless
    /// set, `None`, or 100 years and more, for no limit. When it runs out, the worker is killed and the
    /// checkout is over. 0 is an error of [`build`](Self::build).
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into().into();
        self
    }

    /// Whether the memory of a [`Blob`](crate::Blob) may be handed over or lent instead of being sent, and
    /// open files handed over, where that can be: it may unless this is set to false. For a client that does
    /// not know what results are, and takes them as [`Value`](crate::client::Value), which has no place for an open file.
    pub fn pass_descriptors(mut self, may: bool) -> Self {
        self.pass_descriptors = may;
        self
    }

    /// How much memory each side of a connection keeps for long [`Blob`](crate::Blob)s that it sends to the
    /// other, which has it mapped, in bytes: 64 MiB unless set, or less if the server has set less; 0 for
    /// none. What does not fit is sent. There is as much as has been in use at a time; a worker that has had nothing of the
    /// kind to do for 5 seconds sees to it that all is given back, but for what a blob holds.
    ///
    /// With 0 there is no memory for short messages either: 33 KiB for each connection that has had 32 calls,
    /// through which they go while both sides are awake.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let images = taskfork::Client::builder().address("unix:/run/images").shared_memory(256 << 20);
    /// # images.build()
    /// # }
    /// ```
    pub fn shared_memory(mut self, bytes: usize) -> Self {
        self.shared_memory = bytes;
        self
    }

    /// How long a call may go on after its time is over: 100 milliseconds unless set. At the
    /// deadline the worker gets SIGALRM, and [`context`](crate::worker::context()) says that the call is
    /// cancelled; an answer within this time counts, be it an error. After it the worker is killed,
    /// and the error says where it was. 100 years and more are no limit; with 0 it is killed at the deadline.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.into();
        self
    }

    /// Whether a task looks for the answer of its call for a moment before it yields to the runtime:
    /// [`BusyPoll::Adaptive`] unless set. After 128 calls that were answered at once a task yields
    /// in any case, since each that is sent counts against tokio's budget.
    pub fn busy_poll(mut self, mode: BusyPoll) -> Self {
        self.busy_poll = mode;
        self
    }

    /// The time for one attempt to connect, greetings included; 5 seconds unless set. Attempts are
    /// repeated for as long as somebody waits. 100 years and more are no limit; 0 is an error of
    /// [`build`](Self::build). A server that has no free worker says so; then an attempt takes as long as it is
    /// needed, unless there is another address.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.into();
        self
    }

    /// Keeps workers in which a call has failed. They are replaced unless this is set, since an
    /// error may have left their state half changed.
    #[doc(alias = "refork")]
    pub fn reuse_after_error(mut self, reuse: bool) -> Self {
        self.reuse_after_error = reuse;
        self
    }

    /// The same as [`reuse_after_error`](Self::reuse_after_error), under the name that
    /// AnyEvent::Task gives it.
    pub fn dont_refork_after_error(self, reuse: bool) -> Self {
        self.reuse_after_error(reuse)
    }

    /// The most bytes of one message in either direction, 64 MiB unless set. Less than 256 is an error of
    /// [`build`](Self::build).
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// The most bytes of one [`Blob`](crate::Blob) of a result that the worker hands over as memory: 256 MiB unless
    /// set. A worker is told, and its call fails with an error of the kind
    /// [`CallError::Result`](crate::error::CallError::Result) if a result has a longer one that cannot be sent in a message
    /// either; see [`max_frame`](Self::max_frame).
    ///
    /// To map a blob takes only addresses. But each page of it that is read becomes memory of the reader, also where
    /// the worker has never written to it. So this is the most memory that one blob of a worker can take here. The
    /// default is four times that of `max_frame`, as no buffer has to hold it.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let films = taskfork::Client::builder().address("unix:/run/films").max_blob(2 << 30);
    /// # films.build()
    /// # }
    /// ```
    pub fn max_blob(mut self, bytes: usize) -> Self {
        self.max_blob = bytes;
        self
    }

    /// Which protocol the server speaks: [`Protocol::Native`] unless set. With [`Protocol::Perl`] the
    /// server is a program with the Perl module AnyEvent::Task. A server of this crate speaks both.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use taskfork::client::Protocol;
    /// use taskfork::Client;
    ///
    /// let client = Client::builder().address("unix:/run/task.sock").protocol(Protocol::Perl).build()?;
    /// let sum: i64 = client.call("add", (2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Checks the options and starts connecting.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the option at fault, or says that there is no tokio runtime.
    pub fn build(self) -> Result<Client, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        self.build_on(&runtime)
    }

    pub(crate) fn build_on(self, runtime: &Handle) -> Result<Client, ConfigError> {
        let core = Arc::new(Core::new(self.check()?));
        let driver_queue = core.driver_queue.clone();
        runtime.spawn(drive(Arc::downgrade(&core), driver_queue.clone()));
        Ok(Client { core, _driver: Arc::new(DriverLease(driver_queue)) })
    }

    fn check(self) -> Result<Config, ConfigError> {
        let addresses = self.addresses.into_iter().collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let is_inherited = |address: &&Address| matches!(address.0, Place::Inherited(_));
        if let Some(address) = addresses.iter().find(is_inherited) {
            return Err(ConfigError::NotConnectable { address: address.to_string() });
        }
        let max_workers = self.max_workers;
        if max_workers == 0 {
            return Err(ConfigError::NoWorkers);
        }
        let min_workers = self.min_workers.unwrap_or(2.min(max_workers));
        if max_workers < min_workers {
            return Err(ConfigError::MaxBelowMin { min_workers, max_workers });
        }
        if self.max_checkouts == Some(0) {
            return Err(ConfigError::NoCheckouts);
        }
        let wrong = |option, reason: String| Err(ConfigError::Option { option, reason });
        if self.timeout.is_zero() {
            let reason =
                "with 0, every call would be late: set a longer time, or `None` for no limit";
            return wrong("timeout", reason.to_owned());
        }
        if self.connect_timeout.is_zero() {
            let reason = "with 0, no server could answer in time: set a longer time";
            return wrong("connect_timeout", reason.to_owned());
        }
        if self.max_frame < MIN_FRAME {
            let reason = format!(
                "{} bytes are too few for messages: set {MIN_FRAME} or more",
                self.max_frame
            );
            return wrong("max_frame", reason);
        }
        let links: Vec<_> = addresses.iter().map(SpawnedServer::find).collect();
        // From here on this program has threads.
        links.iter().flatten().for_each(SpawnedServer::watch);
        Ok(Config {
            addresses,
            links,
            name: self.name,
            limits: PoolLimits {
                min_workers,
                max_workers,
                max_checkouts: self.max_checkouts,
                max_queue: self.max_queue,
                overload: self.overload,
            },
            timeout: self.timeout,
            grace: self.grace,
            busy_poll: self.busy_poll,
            cores: sys::available_cores(),
            connect_timeout: self.connect_timeout,
            reuse_after_error: self.reuse_after_error,
            max_frame: self.max_frame,
            max_blob: self.max_blob,
            protocol: self.protocol,
            pass_descriptors: self.pass_descriptors,
            shared_memory: self.shared_memory,
        })
    }
}
