//! TLS: which files it needs, and reading them again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use taskfork_certificates::Certificates;
use tokio::time::{MissedTickBehavior, interval};

use crate::DashboardError;

/// How often the files of certificates are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(1);

/// The name of the protocol inside TLS (ALPN).
const PROTOCOL: &[u8] = b"http/1.1";

/// The files of certificates, before they are read.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The certificate and its key.
    pub(crate) own: Option<(PathBuf, PathBuf)>,
    pub(crate) client_ca: Option<PathBuf>,
}

/// The certificates that are in use.
pub(crate) type Tls = Arc<Certificates>;

impl Files {
    pub(crate) fn load(self) -> Result<Option<Tls>, DashboardError> {
        let Self { own, client_ca } = self;
        let Some((certificate, key)) = own else {
            return match client_ca {
                Some(_) => Err(DashboardError::AuthorityWithoutTls),
                None => Ok(None),
            };
        };
        let files = taskfork_certificates::Files {
            what: "the dashboard's certificate",
            protocol: PROTOCOL,
            certificate,
            key,
            client_ca,
        };
        Ok(Some(Arc::new(Certificates::load(files)?)))
    }
}

/// Makes a dashboard read its certificates again, also while it serves.
///
/// ```no_run
/// # fn example(dashboard: taskfork_dashboard::Dashboard, listener: tokio::net::TcpListener) {
/// let reloader = dashboard.reloader();
/// tokio::spawn(dashboard.serve(listener));
/// if let Err(error) = reloader.reload() {
///     eprintln!("the previous certificates stay in use: {error}");
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Reloader(pub(crate) Option<Tls>);

impl Reloader {
    /// Reads the certificate, the key and the authorities of clients again, for connections that are made from now on. Those
    /// that exist are not concerned. Blocks while it reads the files.
    ///
    /// A dashboard that serves does the same by itself within about a second after a file has changed. Without TLS it has no
    /// certificates, and this does nothing.
    ///
    /// # Errors
    ///
    /// If a file cannot be used. Then all that was read before stays in use.
    ///
    /// ```no_run
    /// # fn example(reloader: taskfork_dashboard::Reloader) -> Result<(), taskfork_dashboard::DashboardError> {
    /// reloader.reload()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload(&self) -> Result<(), DashboardError> {
        Ok(self.0.as_ref().map_or(Ok(()), |tls| tls.reload())?)
    }
}

/// Reads the files again when they have changed. Does not return.
pub(crate) async fn follow_files(tls: Tls) {
    let mut ticks = interval(LOOK_AT_FILES);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if !tls.have_changed() {
            continue;
        }
        match tls.reload() {
            Ok(()) => tracing::info!("the dashboard has read its certificates again"),
            Err(error) => tracing::warn!("the previous certificates stay in use: {error}"),
        }
    }
}
