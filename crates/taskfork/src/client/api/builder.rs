//! The options from which a client is built, and their errors.

mod check;
mod message_options;
mod pool_options;
mod time_options;

use std::time::Duration;

use tokio::runtime::Handle;

use super::config_error::ConfigError;
use super::handle::Client;
#[cfg(feature = "nats")]
use super::nats_options::NatsSettings;
#[cfg(feature = "tls")]
use super::tls_options::TlsOptions;
use crate::address::{Address, AddressError};
use crate::busy_poll::BusyPoll;
use crate::client::pool::Overload;
use crate::shm_pool::DEFAULT_SHARED_MEMORY;
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::frame::{DEFAULT_MAX_BLOB, DEFAULT_MAX_FRAME};
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
    pub(super) required_names: Vec<String>,
    #[cfg(feature = "tls")]
    pub(super) tls: TlsOptions,
    #[cfg(feature = "nats")]
    pub(super) nats: NatsSettings,
}

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
            required_names: Vec::new(),
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
}
