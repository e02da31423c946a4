//! A gateway that listens, and its end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use taskfork_certificates::Certificates;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::GatewayError;
use crate::builder::Options;
use crate::clients::Clients;
use crate::connection::{Shared, serve};
use crate::log::LogLimit;
use crate::slots::Slots;

/// How often the files of certificates are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);

/// How long the gateway accepts nothing after the system could not.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A gateway that listens. [`run`](Self::run) serves its clients.
///
/// Made by [`Gateway::builder`]. Dropping it closes the listener.
///
/// ```no_run
/// use taskfork_gateway::Gateway;
///
/// # async fn example() -> Result<(), taskfork_gateway::GatewayError> {
/// let gateway = Gateway::builder()
///     .server("unix:/run/adder.sock")
///     .tls("0.0.0.0:7000", "cert.pem", "key.pem")
///     .bind()
///     .await?;
/// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
/// let running = tokio::spawn(gateway.run(async {
///     let _ = stopped.await;
/// }));
/// # drop((stop, running));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Gateway {
    pub(crate) tls: Option<TlsListener>,
    #[cfg(feature = "nats")]
    pub(crate) node: Option<crate::nats::Node>,
    #[cfg(feature = "dashboard")]
    pub(crate) dashboard: Option<crate::page::Page>,
    /// The listener has it too.
    #[cfg(feature = "nats")]
    pub(crate) shutdown_grace: Duration,
}

/// Where a gateway accepts clients by TLS.
#[derive(Debug)]
pub(crate) struct TlsListener {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// Makes a gateway read its certificates again, also while it runs.
///
/// ```no_run
/// # fn example(gateway: taskfork_gateway::Gateway) {
/// let reloader = gateway.reloader();
/// tokio::spawn(gateway.run(std::future::pending()));
/// if let Err(error) = reloader.reload() {
///     eprintln!("the previous certificates stay in use: {error}");
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Reloader {
    tls: Option<Arc<Shared>>,
    #[cfg(feature = "dashboard")]
    page: Option<taskfork_dashboard::Reloader>,
}

impl Reloader {
    /// Reads the certificates, the key and the authorities of clients again, those of the page too, for connections that are
    /// made from now on. Those that exist are not concerned. Blocks while it reads the files.
    ///
    /// A running gateway does the same by itself within about a second after a file has changed. Without
    /// TLS it has no certificates, and this does nothing.
    ///
    /// # Errors
    /// If a file cannot be used. Then all that was read with it before stays in use.
    ///
    /// ```no_run
    /// # fn example(reloader: taskfork_gateway::Reloader) -> Result<(), taskfork_gateway::GatewayError> {
    /// reloader.reload()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload(&self) -> Result<(), GatewayError> {
        if let Some(shared) = &self.tls {
            shared.reload()?;
        }
        #[cfg(feature = "dashboard")]
        if let Some(page) = &self.page {
            page.reload()?;
        }
        Ok(())
    }
}

impl TlsListener {
    pub(crate) async fn bind(
        listen: &str,
        options: Options,
        certificates: Certificates,
        #[cfg(feature = "nats")] offer: Option<&crate::nats::direct::Offer>,
    ) -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::Listen { address: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let slots = Slots::new(options.max_handshakes);
        let relays = Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS));
        let clients = Clients::new(options.max_client_connections);
        let log = LogLimit::default();
        #[cfg(feature = "nats")]
        let wants_certificates = certificates.wants_those_of_clients();
        let shared = Shared {
            options,
            certificates,
            slots,
            relays,
            clients,
            log,
            #[cfg(feature = "nats")]
            direct: match offer {
                Some(offer) => offer.direct(Some(address), wants_certificates)?,
                None => None,
            },
        };
        #[cfg(feature = "nats")]
        shared.tell_fingerprint();
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// Serves clients until `draining` becomes true, and then ends.
    async fn run(self, mut draining: watch::Receiver<bool>) {
        let Self { listener, shared, .. } = self;
        // Dropping it ends all tasks.
        let mut tasks = JoinSet::new();
        let drains = draining.clone();
        let mut shutdown = pin!(async {
            let _ = draining.wait_for(|draining| *draining).await;
        });
        let mut files = interval(LOOK_AT_FILES);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = files.tick() => reload_changed(&shared),
                // A task that panicked concerns its own client only, and the panic was printed.
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let slot = shared.slots.take();
                        tasks.spawn(serve(shared.clone(), stream, address, slot, drains.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(listener);
        let ends = async { while tasks.join_next().await.is_some() {} };
        if timeout(shared.options.shutdown_grace, ends).await.is_err() {
            tracing::warn!(
                connections = tasks.len(),
                "closes connections whose checkouts did not end in time"
            );
            tasks.shutdown().await;
        }
    }
}

#[cfg(feature = "nats")]
impl TlsListener {
    /// The tokens that this listener takes.
    pub(crate) fn direct(&self) -> Option<taskfork_nats::Direct> {
        self.shared.direct.clone()
    }
}

impl Gateway {
    /// The address at which this gateway listens, with the port that the kernel chose. `None` without TLS.
    ///
    /// ```no_run
    /// # fn example(gateway: taskfork_gateway::Gateway) {
    /// if let Some(address) = gateway.local_addr() {
    ///     println!("connect to tls:{address}");
    /// }
    /// # }
    /// ```
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(|tls| tls.address)
    }

    /// Checks again what may have changed since the gateway was made: it reads the certificates, and
    /// connects to NATS as the node would, and disconnects. Blocks while it reads files.
    ///
    /// # Errors
    /// If a file cannot be used, NATS cannot be reached or refuses the credentials, or another node has
    /// the node's name. [`run`](Self::run) waits until these errors are gone.
    ///
    /// ```no_run
    /// # async fn example(gateway: &taskfork_gateway::Gateway) {
    /// if let Err(error) = gateway.check().await {
    ///     eprintln!("nobody will be served until this is mended: {error}");
    /// }
    /// # }
    /// ```
    pub async fn check(&self) -> Result<(), GatewayError> {
        self.reloader().reload()?;
        #[cfg(feature = "nats")]
        if let Some(node) = &self.node {
            node.check().await?;
        }
        Ok(())
    }

    /// Returns what makes this gateway read its certificates again.
    ///
    /// ```no_run
    /// # fn example(gateway: taskfork_gateway::Gateway) {
    /// let reloader = gateway.reloader();
    /// # let _ = reloader;
    /// # }
    /// ```
    pub fn reloader(&self) -> Reloader {
        Reloader {
            tls: self.tls.as_ref().map(|tls| tls.shared.clone()),
            #[cfg(feature = "dashboard")]
            page: self.dashboard.as_ref().map(crate::page::Page::reloader),
        }
    }

    /// Serves clients until `shutdown` is ready, and then ends: it accepts no client any more, also none of its page,
    /// leaves the service at NATS, closes connections that no checkout uses, and waits for the others for up to
    /// [`shutdown_grace`](crate::GatewayBuilder::shutdown_grace). When it returns, all connections
    /// are closed and none of its tasks runs.
    ///
    /// Dropping the future closes all connections at once: calls that run fail, and their workers
    /// are killed.
    ///
    /// It logs by the crate `tracing`. Failures of clients never end it.
    ///
    /// ```no_run
    /// # async fn example(gateway: taskfork_gateway::Gateway) {
    /// gateway.run(async { drop(tokio::signal::ctrl_c().await) }).await;
    /// # }
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (drain, draining) = watch::channel(false);
        let begin_to_drain = async {
            shutdown.await;
            // Without a receiver nothing has to end.
            let _ = drain.send(true);
        };
        let serve_tls = async {
            if let Some(tls) = self.tls {
                tls.run(draining.clone()).await;
            }
        };
        #[cfg(feature = "nats")]
        let serve_nats = async {
            if let Some(node) = self.node {
                node.run(draining.clone(), self.shutdown_grace).await;
            }
        };
        #[cfg(not(feature = "nats"))]
        let serve_nats = std::future::ready(());
        let serve_clients = async { tokio::join!(begin_to_drain, serve_tls, serve_nats) };
        // Open pages show how the gateway waits for its clients. The listener is closed before, because the gateway that
        // takes the place of this one needs its address.
        #[cfg(feature = "dashboard")]
        let serve_page = async {
            let mut drains = draining.clone();
            let closing = async move {
                let _ = drains.wait_for(|draining| *draining).await;
            };
            match self.dashboard {
                Some(page) => page.serve(closing).await,
                None => std::future::pending().await,
            }
        };
        #[cfg(not(feature = "dashboard"))]
        let serve_page = std::future::pending::<()>();
        tokio::select! {
            _ = serve_clients => {}
            () = serve_page => {}
        }
    }
}

/// Reads the certificates again if their files have changed.
fn reload_changed(shared: &Shared) {
    if !shared.certificates.have_changed() {
        return;
    }
    match shared.reload() {
        Ok(()) => tracing::info!("has read its certificates again"),
        Err(error) => {
            tracing::warn!("the previous certificates stay in use: {error}");
        }
    }
}
