//! A gateway that listens, and its end.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::GatewayError;
use crate::builder::Options;
use crate::certificates::Certificates;
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
pub struct Reloader(Arc<Shared>);

impl Reloader {
    /// Reads the certificates, the key and the authorities of clients again, for connections that are
    /// made from now on. Those that exist are not concerned. Blocks while it reads the files.
    ///
    /// A running gateway does the same by itself within about a second after a file has changed.
    ///
    /// # Errors
    /// If a file cannot be used. Then all that was read before stays in use.
    ///
    /// ```no_run
    /// # fn example(reloader: taskfork_gateway::Reloader) -> Result<(), taskfork_gateway::GatewayError> {
    /// reloader.reload()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload(&self) -> Result<(), GatewayError> {
        self.0.certificates.reload()
    }
}

impl Gateway {
    pub(crate) async fn listen(
        listen: &str,
        options: Options,
        certificates: Certificates,
    ) -> Result<Self, GatewayError> {
        let failed = |source| GatewayError::Listen { address: listen.to_owned(), source };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let slots = Slots::new(options.max_handshakes);
        let relays = Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS));
        let log = LogLimit::default();
        let shared = Shared { options, certificates, slots, relays, log };
        Ok(Self { listener, address, shared: Arc::new(shared) })
    }

    /// The address at which this gateway listens, with the port that the kernel chose.
    ///
    /// ```no_run
    /// # fn example(gateway: taskfork_gateway::Gateway) {
    /// println!("connect to tls:{}", gateway.local_addr());
    /// # }
    /// ```
    pub fn local_addr(&self) -> SocketAddr {
        self.address
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
        Reloader(self.shared.clone())
    }

    /// Serves clients until `shutdown` is ready, and then ends: it accepts no client any more,
    /// closes connections that no checkout uses, and waits for the others for up to
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
        let Self { listener, shared, .. } = self;
        let (drain, draining) = watch::channel(false);
        // Dropping it ends all tasks.
        let mut tasks = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        let mut files = interval(LOOK_AT_FILES);
        files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                _ = files.tick() => reload_changed(&shared.certificates),
                // A task that panicked concerns its own client only, and the panic was printed.
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let slot = shared.slots.take();
                        tasks.spawn(serve(shared.clone(), stream, address, slot, draining.clone()));
                    }
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        sleep(ACCEPT_AGAIN).await;
                    }
                },
            }
        }
        drop(listener);
        let _ = drain.send(true);
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

/// Reads the certificates again if their files have changed.
fn reload_changed(certificates: &Certificates) {
    if !certificates.have_changed() {
        return;
    }
    match certificates.reload() {
        Ok(()) => tracing::info!("has read its certificates again"),
        Err(error) => {
            tracing::warn!("the previous certificates stay in use: {error}");
        }
    }
}
