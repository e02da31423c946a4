//! A gateway as a node of a service at NATS.
//!
//! `node` joins the service and leaves it; `session` relays one client; `calls` answers calls in JSON, and `json`
//! writes their results; `status` is what the node tells about its server.

mod calls;
pub(crate) mod direct;
mod json;
mod node;
mod session;
mod status;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use taskfork_nats::Label;
use taskfork_nats::async_nats::ConnectOptions;

pub(crate) use node::Node;

/// How long a call in JSON may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How a gateway is a node of a service at NATS. Each setter replaces what was set before.
///
/// ```
/// use taskfork_gateway::NatsOptions;
///
/// # fn example() -> Result<(), taskfork_gateway::taskfork_nats::Error> {
/// let options = NatsOptions::new("nats://nats.example:4222", "resize", "node-1")
///     .labels(&["gpu=a100".parse()?])
///     .sessions(16);
/// # let _ = options;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "options are given to `GatewayBuilder::nats`"]
pub struct NatsOptions {
    pub(crate) url: String,
    pub(crate) service: String,
    pub(crate) node: String,
    pub(crate) labels: Vec<Label>,
    pub(crate) connect: ConnectOptions,
    pub(crate) sessions: Option<usize>,
    pub(crate) status_socket: Option<PathBuf>,
    pub(crate) version: Option<String>,
    pub(crate) methods: Vec<String>,
    pub(crate) call_timeout: Duration,
    pub(crate) direct: direct::Offer,
}

/// Without the address, which may have a password.
impl fmt::Debug for NatsOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NatsOptions")
            .field("service", &self.service)
            .field("node", &self.node)
            .field("labels", &self.labels)
            .field("sessions", &self.sessions)
            .finish_non_exhaustive()
    }
}

impl NatsOptions {
    /// The options of the node `node` of the service `service`. Both names have 1 to 64 letters, digits, `-` or `_`.
    /// `url` is `nats://HOST:PORT` or `tls://HOST:PORT`, or several of them with commas.
    ///
    /// Wrong names and addresses are errors of [`Gateway::check`](crate::Gateway::check).
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222,nats://b:4222", "resize", "node-1");
    /// # let _ = options;
    /// ```
    pub fn new(
        url: impl Into<String>,
        service: impl Into<String>,
        node: impl Into<String>,
    ) -> Self {
        Self {
            url: url.into(),
            service: service.into(),
            node: node.into(),
            labels: Vec::new(),
            connect: ConnectOptions::new(),
            sessions: None,
            status_socket: None,
            version: None,
            methods: Vec::new(),
            call_timeout: CALL_TIMEOUT,
            direct: direct::Offer::Automatic,
        }
    }

    /// Sets properties of the node that clients can ask for, at most 5. Defaults to none.
    ///
    /// ```
    /// # fn example() -> Result<(), taskfork_gateway::taskfork_nats::Error> {
    /// # use taskfork_gateway::NatsOptions;
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").labels(&["gpu=a100".parse()?]);
    /// # let _ = options;
    /// # Ok(())
    /// # }
    /// ```
    pub fn labels(mut self, labels: &[Label]) -> Self {
        self.labels = labels.to_vec();
        self
    }

    /// Sets credentials, TLS and reconnecting, as async-nats has them. Defaults to none. The `event_callback` of these options
    /// has no effect, because the node needs it.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    /// use taskfork_gateway::taskfork_nats::async_nats::ConnectOptions;
    ///
    /// let nats = ConnectOptions::new().user_and_password("node".into(), "secret".into());
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").connect_options(nats);
    /// # let _ = options;
    /// ```
    pub fn connect_options(mut self, options: ConnectOptions) -> Self {
        self.connect = options;
        self
    }

    /// Sets how many sessions the node has at a time, at least 1. Defaults to the greatest number of workers of
    /// the server, which the node learns from the server's status socket. It joins the service when it has.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").sessions(16);
    /// # let _ = options;
    /// ```
    pub fn sessions(mut self, sessions: usize) -> Self {
        self.sessions = Some(sessions);
        self
    }

    /// Sets the path of the server's status socket. Defaults to that of the server's socket with `.status` behind
    /// it, as servers have it.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1")
    ///     .status_socket("/run/resize/status");
    /// # let _ = options;
    /// ```
    pub fn status_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.status_socket = Some(path.into());
        self
    }

    /// Sets the version of the service, three numbers as in `1.2.0`. Defaults to the version of this crate.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").version("1.2.0");
    /// # let _ = options;
    /// ```
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets the methods of the workers, for the metadata of the micro service. Defaults to those that the server's status
    /// names, or to none with [`sessions`](Self::sessions): the server is not asked then.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").methods(["shrink"]);
    /// # let _ = options;
    /// ```
    pub fn methods<M: Into<String>>(mut self, methods: impl IntoIterator<Item = M>) -> Self {
        self.methods = methods.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the address, `HOST:PORT`, by which clients of the service reach the gateway's TLS listener from their
    /// machines, for direct connections. Defaults to the address at which the gateway listens. Without this option
    /// there are no direct connections if the gateway listens at all addresses of its machine, or wants
    /// certificates of clients ([`client_ca`](crate::GatewayBuilder::client_ca)).
    ///
    /// A token that the node has given admits such a client. It stands for no certificate: with `client_ca` the
    /// client needs one as well. Without one, it fails behind the TLS handshake, and takes the way through NATS.
    ///
    /// A wrong address is an error of [`bind`](crate::GatewayBuilder::bind), and so is a gateway without
    /// [`tls`](crate::GatewayBuilder::tls).
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1")
    ///     .direct("node-1.example:7000");
    /// # let _ = options;
    /// ```
    pub fn direct(mut self, address: impl Into<String>) -> Self {
        self.direct = direct::Offer::At(address.into());
        self
    }

    /// Offers no direct connections. Clients that want nothing else are refused.
    ///
    /// ```
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1").no_direct();
    /// # let _ = options;
    /// ```
    pub fn no_direct(mut self) -> Self {
        self.direct = direct::Offer::Off;
        self
    }

    /// Sets how long a call in JSON may take, with its wait for a worker. Then it is cancelled, and its reply has
    /// the code 504. Defaults to 30 seconds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use taskfork_gateway::NatsOptions;
    ///
    /// let options = NatsOptions::new("nats://a:4222", "resize", "node-1")
    ///     .call_timeout(Duration::from_secs(5));
    /// # let _ = options;
    /// ```
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }
}
