//! The setters of connections through NATS.

use std::time::Duration;

use taskfork_nats::Route;
use taskfork_nats::async_nats::ConnectOptions;

use super::builder::ClientBuilder;

impl ClientBuilder {
    /// Sets how the client connects to NATS, for addresses `nats://HOST:PORT/SERVICE`: credentials, TLS and
    /// reconnecting, as the crate async-nats has them. Defaults to no credentials, the authorities that
    /// the system trusts, and reconnecting without end.
    ///
    /// A client with several such addresses uses these options for all of them. The
    /// `subscription_capacity` and the `name` of these options have no effect.
    ///
    /// A client without an address `nats://HOST:PORT/SERVICE` is an error of [`build`](Self::build).
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use taskfork::Client;
    /// use taskfork::client::NatsConnectOptions;
    ///
    /// let options = NatsConnectOptions::with_credentials_file("/etc/web/nats.creds")
    ///     .await?
    ///     .add_root_certificates("/etc/web/nats-ca.pem".into());
    /// let client = Client::builder().address("nats+tls://nats.example/resize").nats(options).build()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn nats(mut self, options: ConnectOptions) -> Self {
        self.nats.connection = Some(options);
        self
    }

    /// Sets how often client and node tell each other that they are there, in sessions through NATS. A node that is
    /// silent for two intervals is lost: calls that it has end with
    /// [`FatalError::NodeLost`](crate::error::FatalError::NodeLost).
    ///
    /// Defaults to 2 seconds. Values below 50 milliseconds or above 60 seconds are taken as these. The
    /// shorter interval of client and node holds. A client without an address
    /// `nats://HOST:PORT/SERVICE` is an error of [`build`](Self::build).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let builder = taskfork::Client::builder()
    ///     .address("nats://nats.example/resize")
    ///     .nats_heartbeat(Duration::from_millis(500));
    /// # let _ = builder;
    /// ```
    pub fn nats_heartbeat(mut self, interval: Duration) -> Self {
        self.nats.heartbeat = Some(interval);
        self
    }

    /// Sets how many bytes of a session through NATS may have come and be unread before the node waits.
    ///
    /// By default the window begins with 1 MiB, and grows up to 8 MiB while the session moves much and all windows
    /// of the client have at most 16 MiB together. One that is set does not grow. Values below 16 KiB or above 8 MiB are taken as these. A client without an address
    /// `nats://HOST:PORT/SERVICE` is an error of [`build`](Self::build).
    ///
    /// ```
    /// let builder = taskfork::Client::builder()
    ///     .address("nats://nats.example/resize")
    ///     .nats_window(4 << 20);
    /// # let _ = builder;
    /// ```
    pub fn nats_window(mut self, bytes: u32) -> Self {
        self.nats.window = Some(bytes);
        self
    }

    /// Sets which way the bytes of a session take. A node may offer a direct connection by TLS, which other
    /// processes and machines do not see, and which is faster than the way through NATS.
    ///
    /// * [`NatsRoute::Auto`](crate::client::NatsRoute::Auto): directly, if the node offers it and can be reached there; otherwise through NATS. This is the
    ///   default with the feature `tls`.
    /// * [`NatsRoute::Direct`](crate::client::NatsRoute::Direct): only directly. Nodes that do not offer it are not used. It needs the
    ///   feature `tls`.
    /// * [`NatsRoute::Relayed`](crate::client::NatsRoute::Relayed): through NATS. This is the default without the feature `tls`.
    ///
    /// If gateways want certificates of clients, set one with `tls_identity`. A client without an address
    /// `nats://HOST:PORT/SERVICE` is an error of [`build`](Self::build), and so is
    /// [`NatsRoute::Direct`](crate::client::NatsRoute::Direct) without the feature `tls`.
    ///
    /// ```
    /// use taskfork::client::NatsRoute;
    ///
    /// let builder = taskfork::Client::builder()
    ///     .address("nats://nats.example/resize")
    ///     .nats_route(NatsRoute::Relayed);
    /// # let _ = builder;
    /// ```
    pub fn nats_route(mut self, route: Route) -> Self {
        self.nats.route = Some(route);
        self
    }
}
