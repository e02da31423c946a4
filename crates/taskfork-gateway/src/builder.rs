//! The options of a gateway.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use taskfork::client::{Address, AddressError};
use taskfork_certificates::{Certificates, Files};

use crate::gateway::TlsListener;
#[cfg(feature = "dashboard")]
use crate::page::Page;
use crate::{Gateway, GatewayError};

/// 100 years: a longer time means no limit.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The name of the protocol inside TLS (ALPN).
const PROTOCOL: &[u8] = b"taskfork";

const DEFAULT_HANDSHAKES: usize = 1000;
const DEFAULT_CONNECTIONS: usize = 10_000;

/// One client has one of so many parts of all connections, unless an option says otherwise.
const CLIENT_SHARE: usize = 4;

/// Collects the options of a [`Gateway`]. Each setter replaces what was set before, but
/// [`allow_name`](Self::allow_name), which adds a name.
///
/// ```
/// use std::time::Duration;
/// use taskfork_gateway::Gateway;
///
/// let builder = Gateway::builder()
///     .server("unix:/run/adder.sock")
///     .tls("0.0.0.0:7000", "cert.pem", "key.pem")
///     .handshake_timeout(Duration::from_secs(2));
/// # let _ = builder;
/// ```
#[derive(Debug)]
#[must_use = "a gateway is made by `bind`"]
pub struct GatewayBuilder {
    server: Option<Result<Address, AddressError>>,
    listen: Option<(String, PathBuf, PathBuf)>,
    client_ca: Option<PathBuf>,
    #[cfg(feature = "nats")]
    nats: Option<crate::nats::NatsOptions>,
    #[cfg(feature = "dashboard")]
    dashboard: Option<(tokio::net::TcpListener, taskfork_dashboard::DashboardBuilder)>,
    allowed_names: Vec<String>,
    max_handshakes: Option<usize>,
    max_connections: Option<usize>,
    max_client_connections: Option<usize>,
    handshake_timeout: Duration,
    shutdown_grace: Duration,
}

/// The options after all checks.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) server: PathBuf,
    /// Empty if every client with a valid certificate is served.
    pub(crate) allowed_names: Vec<String>,
    pub(crate) max_handshakes: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_client_connections: usize,
    pub(crate) handshake_timeout: Duration,
    pub(crate) shutdown_grace: Duration,
}

impl Gateway {
    /// Returns a builder with the default of every option. The server has none, and clients must be
    /// able to come by [`tls`](GatewayBuilder::tls), by `nats` (feature `nats`), or by both, unless the gateway only
    /// serves a page (feature `dashboard`).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().server("unix:/run/adder.sock");
    /// # let _ = builder;
    /// ```
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder {
            server: None,
            listen: None,
            client_ca: None,
            #[cfg(feature = "nats")]
            nats: None,
            #[cfg(feature = "dashboard")]
            dashboard: None,
            allowed_names: Vec::new(),
            max_handshakes: None,
            max_connections: None,
            max_client_connections: None,
            handshake_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

impl GatewayBuilder {
    /// Sets the address of the server: `unix:PATH`. There is no default.
    ///
    /// The server need not exist yet. Clients that come before it learn that they may try again. The
    /// server believes what the gateway says about clients if both run as the same user.
    ///
    /// An address that cannot be parsed, or is no unix socket, is an error of [`bind`](Self::bind).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().server("unix:/run/adder.sock");
    /// # let _ = builder;
    /// ```
    pub fn server<A>(mut self, address: A) -> Self
    where
        A: TryInto<Address>,
        A::Error: Into<AddressError>,
    {
        self.server = Some(address.try_into().map_err(Into::into));
        self
    }

    /// Sets the address to listen at, as `HOST:PORT`, and two files in PEM: the certificate of this
    /// gateway with those that lead to its authority, and the certificate's private key. There is no
    /// default. With port 0 the kernel chooses one, see [`Gateway::local_addr`].
    ///
    /// TLS 1.3 is spoken. The files are read again when they change, see
    /// [`Reloader::reload`](crate::Reloader::reload).
    ///
    /// Files that cannot be used, a key that does not belong to the certificate, and an address that
    /// is in use are errors of [`bind`](Self::bind).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().tls("[::]:7000", "cert.pem", "key.pem");
    /// # let _ = builder;
    /// ```
    pub fn tls(
        mut self,
        listen: impl Into<String>,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.listen = Some((listen.into(), certificate.into(), key.into()));
        self
    }

    /// Sets a file in PEM with the authorities of clients' certificates: only clients with a
    /// certificate of one of them are served. Defaults to none: anyone who can reach the address is
    /// served.
    ///
    /// The file is read again when it changes. A file that cannot be used is an error of
    /// [`bind`](Self::bind).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().client_ca("/etc/adder/clients.pem");
    /// # let _ = builder;
    /// ```
    pub fn client_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.client_ca = Some(file.into());
        self
    }

    /// Adds a name of clients that are served: a DNS name or a URI among the subject alternative
    /// names of their certificate, as it is written there. DNS names are compared without regard to
    /// case. Defaults to none: all clients with a valid certificate are served.
    ///
    /// Without [`client_ca`](Self::client_ca) it is an error of [`bind`](Self::bind).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder()
    ///     .client_ca("clients.pem")
    ///     .allow_name("web.example.com")
    ///     .allow_name("spiffe://example.com/batch");
    /// # let _ = builder;
    /// ```
    pub fn allow_name(mut self, name: impl Into<String>) -> Self {
        self.allowed_names.push(name.into());
        self
    }

    /// Makes the gateway a node of a service at NATS. Defaults to none. It can do so beside
    /// [`tls`](Self::tls), or without it.
    ///
    /// NATS need not be there yet: [`run`](Gateway::run) tries again until it is.
    /// [`Gateway::check`] tells whether the node could serve now.
    ///
    /// ```
    /// use taskfork_gateway::{Gateway, NatsOptions};
    ///
    /// let builder = Gateway::builder()
    ///     .server("unix:/run/adder.sock")
    ///     .nats(NatsOptions::new("nats://nats.example:4222", "adder", "node-1"));
    /// # let _ = builder;
    /// ```
    #[cfg(feature = "nats")]
    pub fn nats(mut self, options: crate::nats::NatsOptions) -> Self {
        self.nats = Some(options);
        self
    }

    /// Serves a page, health checks and metrics about the gateway's server at this listener, by HTTP, with these options.
    /// Defaults to none. The server need not be there yet, and may go away and return. The listener is
    /// closed when [`run`](Gateway::run) begins to shut down, and open connections when it returns.
    ///
    /// The gateway reads the server's status socket, that of its socket with `.status` behind it; set a server in the
    /// options for another one. So it must run as the server's user, or as root. Without a token and certificates of
    /// clients, only a loopback address can be served.
    ///
    /// Wrong options are errors of [`bind`](Self::bind).
    ///
    /// ```no_run
    /// use taskfork_gateway::Gateway;
    /// use taskfork_gateway::taskfork_dashboard::Dashboard;
    /// use tokio::net::TcpListener;
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let gateway = Gateway::builder()
    ///     .server("unix:/run/adder.sock")
    ///     .tls("0.0.0.0:7000", "cert.pem", "key.pem")
    ///     .dashboard(TcpListener::bind("127.0.0.1:9180").await?, Dashboard::builder())
    ///     .bind()
    ///     .await?;
    /// # drop(gateway);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "dashboard")]
    pub fn dashboard(
        mut self,
        listener: tokio::net::TcpListener,
        options: taskfork_dashboard::DashboardBuilder,
    ) -> Self {
        self.dashboard = Some((listener, options));
        self
    }

    /// Sets how long a client may take for its TLS handshake and its first message together. Then
    /// its connection is closed. Defaults to 10 seconds. 100 years and more mean no limit. 0 is an
    /// error of [`bind`](Self::bind).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork_gateway::Gateway::builder().handshake_timeout(Duration::from_secs(2));
    /// # let _ = builder;
    /// ```
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Sets the maximum number of clients that have not sent their first message. The next client
    /// displaces the one that has waited longest. Defaults to 1000, or to a quarter of the
    /// descriptors that the process may open if that is less. 0 is an error of [`bind`](Self::bind).
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().max_handshakes(100);
    /// # let _ = builder;
    /// ```
    pub fn max_handshakes(mut self, clients: usize) -> Self {
        self.max_handshakes = Some(clients);
        self
    }

    /// Sets the maximum number of connections that are relayed at the same time. Further clients
    /// learn that they may try again. Defaults to 10,000, or to a quarter of the descriptors that the
    /// process may open if that is less: each takes two. 0 is an error of [`bind`](Self::bind).
    ///
    /// Connections of clients that a node has sent here, which have a token of it, are sessions of the node, and do not count.
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder().max_connections(64);
    /// # let _ = builder;
    /// ```
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = Some(connections);
        self
    }

    /// Sets the maximum number of connections of one client that are relayed at the same time. Further
    /// ones learn that they may try again. A client is whoever has a certificate with the same names,
    /// and without a certificate whoever connects from the same IP address (with IPv6, from the same
    /// network of 64 bits). Defaults to a quarter of [`max_connections`](Self::max_connections), and 1 at
    /// least. 0 is an error of [`bind`](Self::bind). Connections with a token of a node do not count.
    ///
    /// ```
    /// let builder = taskfork_gateway::Gateway::builder()
    ///     .max_connections(64)
    ///     .max_client_connections(8);
    /// # let _ = builder;
    /// ```
    pub fn max_client_connections(mut self, connections: usize) -> Self {
        self.max_client_connections = Some(connections);
        self
    }

    /// Sets how long checkouts may go on after [`run`](Gateway::run) was asked to end. Then their
    /// connections are closed. Defaults to 10 seconds. 100 years and more mean no limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork_gateway::Gateway::builder().shutdown_grace(Duration::from_secs(60));
    /// # let _ = builder;
    /// ```
    pub fn shutdown_grace(mut self, grace: Duration) -> Self {
        self.shutdown_grace = grace;
        self
    }

    /// Checks the options, reads the files and listens. Clients can connect from here on, and are
    /// served by [`Gateway::run`]. Dropping the future has no effect but that nothing listens.
    ///
    /// # Errors
    /// A [`GatewayError`] that names the option or the file at fault.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), taskfork_gateway::GatewayError> {
    /// let gateway = taskfork_gateway::Gateway::builder()
    ///     .server("unix:/run/adder.sock")
    ///     .tls("127.0.0.1:0", "cert.pem", "key.pem")
    ///     .bind()
    ///     .await?;
    /// println!("listening at {:?}", gateway.local_addr());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn bind(self) -> Result<Gateway, GatewayError> {
        let address = self.server.ok_or(GatewayError::NoServer)??;
        let Some(server) = address.path() else {
            return Err(GatewayError::NotLocal { address: address.to_string() });
        };
        #[cfg(feature = "nats")]
        let is_node = self.nats.is_some();
        #[cfg(not(feature = "nats"))]
        let is_node = false;
        #[cfg(feature = "dashboard")]
        let has_page = self.dashboard.is_some();
        #[cfg(not(feature = "dashboard"))]
        let has_page = false;
        if self.listen.is_none() && !is_node && !has_page {
            return Err(GatewayError::NoListener);
        }
        if !self.allowed_names.is_empty() && self.client_ca.is_none() {
            return Err(GatewayError::AllowedNamesWithoutAuthority);
        }
        let wrong = |option, reason| Err(GatewayError::Option { option, reason });
        let is_name = |name: &String| !name.is_empty() && !name.contains(char::is_whitespace);
        if !self.allowed_names.iter().all(is_name) {
            return wrong("allow_name", "a DNS name or a URI is not empty and has no blanks");
        }
        if self.handshake_timeout.is_zero() {
            return wrong("handshake_timeout", "with 0, no client could be served in time");
        }
        if self.max_handshakes == Some(0) {
            return wrong("max_handshakes", "with 0, no client could send its first message");
        }
        if self.max_connections == Some(0) {
            return wrong("max_connections", "with 0, no client could be served");
        }
        if self.max_client_connections == Some(0) {
            return wrong("max_client_connections", "with 0, no client could be served");
        }
        let max_connections = self.max_connections.unwrap_or_else(|| share_of(DEFAULT_CONNECTIONS));
        let share = (max_connections / CLIENT_SHARE).max(1);
        let options = Options {
            server: server.to_owned(),
            allowed_names: self.allowed_names,
            max_handshakes: self.max_handshakes.unwrap_or_else(|| share_of(DEFAULT_HANDSHAKES)),
            max_connections,
            max_client_connections: self.max_client_connections.unwrap_or(share),
            handshake_timeout: self.handshake_timeout.min(FOREVER),
            shutdown_grace: self.shutdown_grace.min(FOREVER),
        };
        #[cfg(feature = "dashboard")]
        let dashboard = match self.dashboard {
            Some((listener, page)) => Some(Page::new(listener, page, &options.server)?),
            None => None,
        };
        #[cfg(feature = "nats")]
        let shutdown_grace = options.shutdown_grace;
        #[cfg(feature = "nats")]
        let (server, handshake_timeout) = (options.server.clone(), options.handshake_timeout);
        let tls = match self.listen {
            Some((listen, certificate, key)) => {
                let files = Files {
                    what: "the gateway's certificate",
                    protocol: PROTOCOL,
                    certificate,
                    key,
                    client_ca: self.client_ca,
                };
                let certificates = Certificates::load(files)?;
                #[cfg(feature = "nats")]
                let offer = self.nats.as_ref().map(|nats| &nats.direct);
                let listener = TlsListener::bind(
                    &listen,
                    options,
                    certificates,
                    #[cfg(feature = "nats")]
                    offer,
                );
                Some(listener.await?)
            }
            None => None,
        };
        #[cfg(feature = "nats")]
        let node = match self.nats {
            Some(nats) => {
                let direct = match &tls {
                    Some(tls) => tls.direct(),
                    None => nats.direct.direct(None, false)?,
                };
                Some(crate::nats::Node::new(nats, server, handshake_timeout, direct))
            }
            None => None,
        };
        Ok(Gateway {
            tls,
            #[cfg(feature = "nats")]
            node,
            #[cfg(feature = "dashboard")]
            dashboard,
            #[cfg(feature = "nats")]
            shutdown_grace,
        })
    }
}

/// At most a quarter of the descriptors that this process may open, and at most `most`.
fn share_of(most: usize) -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 4;
    usize::try_from(descriptors).unwrap_or(usize::MAX).clamp(1, most)
}
