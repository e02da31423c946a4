//! The page about the gateway's server.

use std::future::Future;
use std::path::Path;

use taskfork_dashboard::{Dashboard, DashboardBuilder, DashboardError, Reloader};
use tokio::net::TcpListener;

/// A page that may be served.
#[derive(Debug)]
pub(crate) struct Page {
    listener: TcpListener,
    dashboard: Dashboard,
}

impl Page {
    /// The page about the server at this socket, if the options name no other server.
    pub(crate) fn new(
        listener: TcpListener,
        mut options: DashboardBuilder,
        server: &Path,
    ) -> Result<Self, DashboardError> {
        if !options.has_sources() {
            let name = server.file_name().unwrap_or(server.as_os_str()).to_string_lossy();
            let name = name.strip_suffix(".sock").unwrap_or(&name);
            let mut status_socket = server.as_os_str().to_owned();
            status_socket.push(".status");
            options = options.server(name, status_socket);
        }
        let dashboard = options.build()?;
        dashboard.check_address(listener.local_addr().map_err(DashboardError::Listener)?)?;
        Ok(Self { listener, dashboard })
    }

    pub(crate) fn reloader(&self) -> Reloader {
        self.dashboard.reloader()
    }

    /// Serves the page, to new connections until `closing` is ready. Does not return.
    pub(crate) async fn serve(self, closing: impl Future<Output = ()>) {
        if let Err(error) = self.dashboard.serve_until(self.listener, closing).await {
            tracing::error!("the page is not served: {error}");
        }
        std::future::pending().await
    }
}
