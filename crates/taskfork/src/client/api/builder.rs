//! The options from which a client is built, and their errors.

use std::time::Duration;

use tokio::runtime::Handle;

use super::handle::Client;
#[cfg(feature = "nats")]
use super::nats_options::{NatsSettings, WrongNatsOption};
#[cfg(feature = "tls")]
use super::tls_options::{TlsOptions, WrongOption};
use crate::address::{Address, AddressError, AddressKind};
use crate::busy_poll::BusyPoll;
use crate::client::config::Config;
use crate::client::io::transport::Connector;
use crate::client::pool::{Overload, PoolLimits};
use crate::client::required::RequiredInterfaces;
use crate::client::session::TimeKeeper;
use crate::client::spawned_server::SpawnedServer;
use crate::display::debug_as_text;
use crate::shm_pool::DEFAULT_SHARED_MEMORY;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME};
use crate::wire::hello::MIN_FRAME;
use crate::wire::interface_description::InterfaceDescription;
use crate::wire::native::DEFAULT_GRACE;
use crate::wire::relay::RelayedPeer;

/// Collects the options of a [`Client`]. Each setter replaces what was set before.
///
/// ```
/// use std::time::Duration;
/// use taskfork::Client;
///
/// let builder = Client::builder()
///     .address("unix:/run/adder.sock")
///     .max_workers(8)
///     .timeout(Duration::from_secs(5));
/// # let _ = builder;
/// ```
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
    aging: Duration,
    timeout: TimeLimit,
    run_timeout: TimeLimit,
    grace: TimeLimit,
    busy_poll: BusyPoll,
    connect_timeout: TimeLimit,
    reuse_after_error: bool,
    max_frame: usize,
    max_blob: usize,
    protocol: Protocol,
    pass_descriptors: bool,
    shared_memory: usize,
    copy_shared_memory: bool,
    peer: Option<Vec<u8>>,
    pub(super) required: Vec<&'static InterfaceDescription>,
    #[cfg(feature = "tls")]
    pub(super) tls: TlsOptions,
    #[cfg(feature = "nats")]
    pub(super) nats: NatsSettings,
}

/// Why a client cannot be built.
///
/// ```
/// use taskfork::Client;
/// use taskfork::client::ConfigError;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let error = Client::builder().address("unix:/run/adder.sock").max_workers(0).build().unwrap_err();
/// assert!(matches!(error, ConfigError::NoWorkers));
/// # });
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No address was set.
    #[error(
        "the client has no address: set one with `address`, as in address(\"unix:/run/app.sock\")"
    )]
    NoAddress,
    /// An address cannot be parsed.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address is an inherited listening descriptor, to which a client cannot connect.
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
        /// The value of `min_workers`.
        min_workers: usize,
        /// The value of `max_workers`.
        max_workers: usize,
    },
    /// `max_checkouts` is 0.
    #[error("max_checkouts is 0, so that no worker could serve anything: set it to 1 or more")]
    NoCheckouts,
    /// An option has a value with which no call can succeed.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Why its value is not allowed.
        reason: String,
    },
    /// `build` was called outside a tokio runtime.
    #[error(
        "a client is built inside a tokio runtime: call `build` from async code, or use \
         `taskfork::blocking::Client` in a program without async"
    )]
    NoRuntime,
}

debug_as_text!(ConfigError);

impl Client {
    /// Returns a builder with the default of every option. Only the address has no default.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), taskfork::BoxError> {
    /// let client = taskfork::Client::builder().address("unix:/run/adder.sock").build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            addresses: Vec::new(),
            name: "taskfork".to_owned(),
            min_workers: None,
            max_workers: 20,
            max_checkouts: None,
            max_queue: None,
            overload: Overload::default(),
            aging: Duration::from_secs(1),
            timeout: TimeLimit::new(Duration::from_secs(30)),
            run_timeout: TimeLimit::NEVER,
            grace: DEFAULT_GRACE,
            busy_poll: BusyPoll::default(),
            connect_timeout: TimeLimit::new(Duration::from_secs(5)),
            reuse_after_error: false,
            max_frame: DEFAULT_MAX_FRAME,
            max_blob: DEFAULT_MAX_BLOB,
            protocol: Protocol::Native,
            pass_descriptors: true,
            shared_memory: DEFAULT_SHARED_MEMORY,
            copy_shared_memory: false,
            peer: None,
            required: Vec::new(),
            #[cfg(feature = "tls")]
            tls: Default::default(),
            #[cfg(feature = "nats")]
            nats: Default::default(),
        }
    }
}

impl ClientBuilder {
    /// Sets the address of the server: `unix:PATH`, `tcp:HOST:PORT`, with the feature `tls` the address
    /// `tls:HOST:PORT` of a gateway, with the feature `nats` the address `nats://HOST:PORT/SERVICE` of a service
    /// with nodes, or the address of a [`ServerHandle`](crate::server::ServerHandle).
    ///
    /// It replaces all addresses that were set before. There is no default. The server need not
    /// exist yet: the client retries until it does.
    ///
    /// An address that cannot be parsed is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().address("unix:/run/adder.sock");
    /// # let _ = builder;
    /// ```
    pub fn address<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.addresses = vec![address.try_into().map_err(Into::into)];
        self
    }

    /// Sets several addresses, in order of preference. They replace all addresses that were set
    /// before.
    ///
    /// For each new worker the client tries the addresses in this order, each for up to the
    /// [`connect_timeout`](Self::connect_timeout), and takes the first that answers. So the workers
    /// of one client may belong to different servers.
    ///
    /// An address that cannot be parsed, or an empty list, is an error of [`build`](Self::build).
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

    /// Sets the name of this client. Servers show it in their logs, and reports and metrics show it
    /// here.
    ///
    /// Defaults to `taskfork`.
    ///
    /// ```
    /// let builder = taskfork::Client::builder().name("adder");
    /// # let _ = builder;
    /// ```
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets how many workers stay connected while there is nothing to do.
    ///
    /// Defaults to 2, or to [`max_workers`](Self::max_workers) if that is less. A value above
    /// `max_workers` is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().min_workers(4);
    /// # let _ = builder;
    /// ```
    pub fn min_workers(mut self, workers: usize) -> Self {
        self.min_workers = Some(workers);
        self
    }

    /// Sets how many workers the client has at most. Checkouts beyond that wait in the queue.
    ///
    /// Defaults to 20. 0 is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().max_workers(8);
    /// # let _ = builder;
    /// ```
    pub fn max_workers(mut self, workers: usize) -> Self {
        self.max_workers = workers;
        self
    }

    /// Sets after how many checkouts a worker is replaced. `None` means never.
    ///
    /// Defaults to `None`. 0 is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder().max_checkouts(1000);
    /// # let _ = builder;
    /// ```
    pub fn max_checkouts(mut self, checkouts: impl Into<Option<u64>>) -> Self {
        self.max_checkouts = checkouts.into();
        self
    }

    /// Sets how many checkouts may wait for a worker. `None` means any number.
    ///
    /// Defaults to `None`. With the queue full, one checkout fails at once with
    /// [`FatalError::Overloaded`](crate::error::FatalError::Overloaded): which one,
    /// [`overload`](Self::overload) says. With 0 no checkout waits.
    ///
    /// ```
    /// use taskfork::Client;
    /// use taskfork::client::Overload;
    ///
    /// let client = Client::builder().max_queue(100).overload(Overload::DropOldest);
    /// # let _ = client;
    /// ```
    pub fn max_queue(mut self, checkouts: impl Into<Option<usize>>) -> Self {
        self.max_queue = checkouts.into();
        self
    }

    /// Sets which checkout fails when the queue has reached [`max_queue`](Self::max_queue).
    ///
    /// Defaults to [`Overload::RefuseNewest`].
    ///
    /// ```
    /// use taskfork::client::Overload;
    ///
    /// let builder = taskfork::Client::builder().max_queue(100).overload(Overload::DropOldest);
    /// # let _ = builder;
    /// ```
    pub fn overload(mut self, overload: Overload) -> Self {
        self.overload = overload;
        self
    }

    /// Sets how much waiting one level of priority is worth. See
    /// [`Client::with_priority`](crate::Client::with_priority).
    ///
    /// Defaults to 1 second. With 0, priorities have no effect.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().priority_aging(Duration::from_millis(100));
    /// # let _ = builder;
    /// ```
    pub fn priority_aging(mut self, level: Duration) -> Self {
        self.aging = level;
        self
    }

    /// Sets the time limit of each call, from when it is made to when its answer arrives. The wait for a
    /// worker counts, and the decoding of the answer does not (see [`max_frame`](Self::max_frame)).
    /// `None` means no limit, and so does a limit of 100 years or more.
    ///
    /// Defaults to 30 seconds. 0 is an error of [`build`](Self::build). [`Checkout::timeout`](crate::Checkout::timeout) sets
    /// another limit for one checkout.
    ///
    /// At the deadline the worker is told, and killed after [`grace`](Self::grace). The call fails
    /// with [`FatalError::TimedOut`](crate::error::FatalError::TimedOut), and its checkout is over.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = taskfork::Client::builder().timeout(Duration::from_secs(5));
    /// # let _ = client;
    /// ```
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into().into();
        self
    }

    /// Sets the time limit of each call, from when it begins to run to when its answer arrives. `None` means no
    /// limit, and so does a limit of 100 years or more. The [`timeout`](Self::timeout) holds as well: what is over
    /// first ends the call, and the error names it.
    ///
    /// Defaults to `None`. 0 is an error of [`build`](Self::build).
    /// [`Checkout::run_timeout`](crate::Checkout::run_timeout) and
    /// [`Client::with_run_timeout`](crate::Client::with_run_timeout) set another limit for some calls.
    ///
    /// A call begins to run when the worker begins it. The wait for a worker does not count, nor does the
    /// worker's `setup`, nor the calls that were made before on the same checkout. So a client can make hundreds of
    /// calls at once, each of which has its own time.
    ///
    /// The worker and its server keep the time, as they do for `timeout`: at the limit the worker is told, and
    /// killed after [`grace`](Self::grace). The client ends a call by itself if the server has not done so 2
    /// seconds later. For that it takes a call to run when the worker has all of it and has answered the calls before
    /// it. For the first call of a checkout it relies on `timeout`, because it does not learn when `setup`, or
    /// `checkout_done` of the checkout before, has ended. A server in Perl keeps no time. There the client ends
    /// each call at the limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let client = taskfork::Client::builder()
    ///     .timeout(Duration::from_secs(600))
    ///     .run_timeout(Duration::from_secs(2));
    /// # let _ = client;
    /// ```
    pub fn run_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.run_timeout = timeout.into().into();
        self
    }

    /// Allows passing open files, and the memory of [`Blob`](crate::Blob)s, as descriptors. They
    /// pass only through unix sockets; elsewhere the bytes of a blob are sent.
    ///
    /// Defaults to true. Set it to false if the client takes results as
    /// [`Value`](crate::client::Value)s: a `Value` cannot hold an open file.
    ///
    /// ```
    /// let builder = taskfork::Client::builder().pass_descriptors(false);
    /// # let _ = builder;
    /// ```
    pub fn pass_descriptors(mut self, may: bool) -> Self {
        self.pass_descriptors = may;
        self
    }

    /// Sets how much memory each side of a connection shares with the other for long
    /// [`Blob`](crate::Blob)s, in bytes. Memory is shared only through unix sockets, and only
    /// between processes of one user.
    ///
    /// Defaults to 64 MiB. The lower of this and the server's limit applies. Blobs that do not fit
    /// are sent. 0 shares nothing.
    ///
    /// The memory grows with use. A worker that has not used it for 5 seconds has all of it freed,
    /// except what blobs still hold.
    ///
    /// A worker that is taken over by its input can change such a blob while the client reads it. If you do
    /// not trust the workers' code, set [`copy_shared_memory`](Self::copy_shared_memory).
    ///
    /// The same option controls the memory for short messages: 33 KiB for each connection, from its
    /// 33rd call on. 0 turns that off as well.
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

    /// Sets whether the client copies the bytes of a result that arrives in shared memory, before it
    /// hands them out as a [`Blob`](crate::Blob) or another type.
    ///
    /// Defaults to false: a `Blob` then refers to memory that a worker of the same user could still
    /// write to. A worker of taskfork does not, but one that runs an attacker's code can. Code that
    /// relies on the `&[u8]` of a blob to stay the same has undefined behaviour in that case. With
    /// true, no result changes after it has arrived. Sealed memory, which a
    /// [`BlobMut`](crate::blob::BlobMut) becomes, cannot change and is not copied in either case.
    ///
    /// The copy takes about as long as to read the bytes twice. A copy is not passed back in place.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let decoders = taskfork::Client::builder().address("unix:/run/decoders").copy_shared_memory(true);
    /// # decoders.build()
    /// # }
    /// ```
    pub fn copy_shared_memory(mut self, copy: bool) -> Self {
        self.copy_shared_memory = copy;
        self
    }

    /// Sets how long a call may go on after its deadline before its worker is killed.
    ///
    /// Defaults to 100 milliseconds. 0 kills the worker at the deadline. 100 years or more mean no
    /// limit.
    ///
    /// At the deadline the worker gets SIGALRM, and [`context`](crate::worker::context) says that
    /// the call is cancelled. An answer within the grace period counts, whether it is a result or
    /// an error. After it the error says where the worker was.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().grace(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace.into();
        self
    }

    /// Sets whether a task polls for the answer of its call for a moment before it yields to the
    /// runtime. Polling saves the time that it takes to wake a sleeping CPU.
    ///
    /// Defaults to [`BusyPoll::Adaptive`]. A task yields after 128 calls that were answered at
    /// once, whatever the mode is, because each call counts against tokio's budget.
    ///
    /// ```
    /// use taskfork::client::BusyPoll;
    ///
    /// let builder = taskfork::Client::builder().busy_poll(BusyPoll::Off);
    /// # let _ = builder;
    /// ```
    pub fn busy_poll(mut self, mode: BusyPoll) -> Self {
        self.busy_poll = mode;
        self
    }

    /// Sets the time limit of one attempt to connect, the handshake included.
    ///
    /// Defaults to 5 seconds. 0 is an error of [`build`](Self::build), and 100 years or more mean
    /// no limit. The client repeats attempts as long as a checkout waits.
    ///
    /// With one address, an attempt may take longer while the server says that it has no free
    /// worker.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder().connect_timeout(Duration::from_secs(1));
    /// # let _ = builder;
    /// ```
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.into();
        self
    }

    /// Sets whether workers stay in the pool after any error of a call.
    ///
    /// Defaults to false: the server says after which errors a worker is replaced (see
    /// [`ServerBuilder::replace_after`](crate::ServerBuilder::replace_after)). By default a worker of a typed interface
    /// is kept if its method returned the error. Others are replaced, because an error may have left their state half
    /// changed. So are those of servers that do not say, and of [`Protocol::Perl`].
    ///
    /// ```
    /// let builder = taskfork::Client::builder().reuse_after_error(true);
    /// # let _ = builder;
    /// ```
    #[doc(alias = "refork")]
    pub fn reuse_after_error(mut self, reuse: bool) -> Self {
        self.reuse_after_error = reuse;
        self
    }

    /// The same as [`reuse_after_error`](Self::reuse_after_error), under the name that
    /// AnyEvent::Task gives it.
    ///
    /// ```
    /// let builder = taskfork::Client::builder().dont_refork_after_error(true);
    /// # let _ = builder;
    /// ```
    pub fn dont_refork_after_error(self, reuse: bool) -> Self {
        self.reuse_after_error(reuse)
    }

    /// Sets the length of the longest message in either direction, in bytes.
    ///
    /// Defaults to 64 MiB. Less than 256 is an error of [`build`](Self::build). Longer arguments
    /// fail the call with [`CallError::Arguments`](crate::error::CallError::Arguments), and a
    /// longer result with [`CallError::Result`](crate::error::CallError::Result).
    ///
    /// This also bounds how long the decoding of one result can keep its task busy, because a result
    /// has at most one element for 8 bytes of it. With the default and a release build, 8 million
    /// elements took 0.1 s as a list of numbers. A list of strings or a
    /// [`Value`](crate::client::Value) took 0.7 s to 1.2 s, and a `HashMap<String, _>` took 5 s. The
    /// call's time limit does not cover the decoding. If a worker is not trusted, or if other tasks of
    /// the same thread must not wait that long, set less: the time shrinks in proportion.
    ///
    /// ```
    /// # fn build() -> Result<taskfork::Client, taskfork::client::ConfigError> {
    /// let client = taskfork::Client::builder().address("unix:/run/adder.sock").max_frame(1 << 20);
    /// # client.build()
    /// # }
    /// ```
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// Sets the length of the longest [`Blob`](crate::Blob) in a result that the worker passes as
    /// memory, in bytes.
    ///
    /// Defaults to 256 MiB. If a result has a longer one that does not fit in a message either (see
    /// [`max_frame`](Self::max_frame)), its call fails with
    /// [`CallError::Result`](crate::error::CallError::Result).
    ///
    /// Mapping a blob takes address space only. But each page that is read becomes memory of the
    /// reader, even if the worker has never written to it. So this bounds the memory that one blob
    /// of a worker can take here. The default is four times that of `max_frame`, because no buffer
    /// has to hold a blob.
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

    /// Sets the protocol that the server speaks.
    ///
    /// Defaults to [`Protocol::Native`]. Use [`Protocol::Perl`] for a program with the Perl module
    /// AnyEvent::Task. A server of this crate speaks both.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use taskfork::Client;
    /// use taskfork::client::Protocol;
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

    /// Checks the options, starts the client's task in the current tokio runtime, and starts
    /// connecting. Does not wait for a connection.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the option at fault, or says that there is no tokio runtime.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = taskfork::Client::builder().address("unix:/run/adder.sock").build()?;
    /// let sum: i64 = client.call("add", (2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn build(self) -> Result<Client, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        self.build_on(&runtime)
    }

    /// For a gateway that makes calls for others: names whom it calls for. Nothing local passes then.
    #[doc(hidden)]
    pub fn relay_for(self, peer: &RelayedPeer<'_>) -> Self {
        let mut encoded = Vec::new();
        peer.put(&mut encoded);
        Self { peer: Some(encoded), ..self.pass_descriptors(false).shared_memory(0) }
    }

    pub(crate) fn build_on(self, runtime: &Handle) -> Result<Client, ConfigError> {
        Ok(Client::start(self.check()?, runtime))
    }

    fn check(self) -> Result<Config, ConfigError> {
        let addresses = self.addresses.into_iter().collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(ConfigError::NoAddress);
        }
        let is_inherited = |address: &&Address| matches!(address.0, AddressKind::Inherited(_));
        if let Some(address) = addresses.iter().find(is_inherited) {
            return Err(ConfigError::NotConnectable { address: address.to_string() });
        }
        let max_workers = self.max_workers;
        let min_workers = self.min_workers.unwrap_or(2.min(max_workers));
        check_workers(min_workers, max_workers)?;
        if self.max_checkouts == Some(0) {
            return Err(ConfigError::NoCheckouts);
        }
        let wrong = |option, reason: String| Err(ConfigError::Option { option, reason });
        if self.timeout.is_zero() {
            let reason =
                "with 0, every call would be late: set a longer time, or `None` for no limit";
            return wrong("timeout", reason.to_owned());
        }
        if self.run_timeout.is_zero() {
            let reason =
                "with 0, every call would be late: set a longer time, or `None` for no limit";
            return wrong("run_timeout", reason.to_owned());
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
        let is_in_process = addresses.iter().any(|address| address.0.is_in_process());
        let time_keeper = match self.protocol {
            Protocol::Perl if is_in_process => {
                let reason = "workers on threads of this process speak the native protocol only";
                return wrong("protocol", reason.to_owned());
            }
            Protocol::Perl => TimeKeeper::Client,
            Protocol::Native if is_in_process => TimeKeeper::ClientAfterGrace,
            Protocol::Native => TimeKeeper::Server,
        };
        let connector = Connector {
            #[cfg(feature = "tls")]
            tls: self
                .tls
                .check(&addresses)
                .map_err(|WrongOption { option, reason }| ConfigError::Option { option, reason })?,
            #[cfg(feature = "nats")]
            nats: self
                .nats
                .check(&addresses, &self.name, self.connect_timeout, self.protocol)
                .map_err(|WrongNatsOption { option, reason }| ConfigError::Option {
                    option,
                    reason: reason.to_owned(),
                })?,
        };
        let links: Vec<_> = addresses.iter().map(SpawnedServer::find).collect();
        // This watches servers in threads: from here on the program cannot fork.
        links.iter().flatten().for_each(SpawnedServer::watch);
        Ok(Config {
            addresses,
            connector,
            links,
            name: self.name,
            limits: PoolLimits {
                min_workers,
                max_workers,
                max_checkouts: self.max_checkouts,
                max_queue: self.max_queue,
                overload: self.overload,
                aging: self.aging,
            },
            timeout: self.timeout,
            run_timeout: self.run_timeout,
            grace: self.grace,
            time_keeper,
            busy_poll: self.busy_poll,
            cores: sys::available_cores(),
            connect_timeout: self.connect_timeout,
            reuse_after_error: self.reuse_after_error,
            max_frame: self.max_frame,
            max_blob: self.max_blob,
            protocol: self.protocol,
            pass_descriptors: self.pass_descriptors,
            shared_memory: self.shared_memory,
            copy_shared_memory: self.copy_shared_memory,
            peer: self.peer,
            required: RequiredInterfaces::new(self.required),
        })
    }
}

/// Checks how many workers a client is to have.
pub(super) fn check_workers(min_workers: usize, max_workers: usize) -> Result<(), ConfigError> {
    if max_workers == 0 {
        return Err(ConfigError::NoWorkers);
    }
    if max_workers < min_workers {
        return Err(ConfigError::MaxBelowMin { min_workers, max_workers });
    }
    Ok(())
}
