//! Why a gateway cannot start, or cannot reload its certificates.

use std::{fmt, io};

use taskfork::client::AddressError;
use taskfork_certificates::FileError;

/// Why a gateway cannot start, or cannot reload its certificates.
///
/// ```
/// use taskfork_gateway::{Gateway, GatewayError};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let error = Gateway::builder().server("unix:/run/adder.sock").bind().await.unwrap_err();
/// assert!(matches!(error, GatewayError::NoListener));
/// # });
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// No server was set.
    #[error(
        "the gateway has no server: set one with `server`, as in server(\"unix:/run/app.sock\")"
    )]
    NoServer,
    /// The server's address cannot be parsed.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The server's address is no unix socket.
    #[error(
        "{address} is no unix socket with a path: a gateway runs on the machine of its server, so let the server \
         listen at unix:PATH and give the gateway this address"
    )]
    NotLocal {
        /// The address.
        address: String,
    },
    /// Neither an address to listen at nor a service at NATS was set.
    #[error(
        "no client can reach the gateway: set an address, a certificate and its key with `tls`, as in \
         tls(\"0.0.0.0:7000\", \"cert.pem\", \"key.pem\"), or a service at NATS with `nats` (feature \
         `nats`)"
    )]
    NoListener,
    /// The gateway cannot listen at its address.
    #[error("the gateway cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// The system's error.
        source: io::Error,
    },
    /// A file of certificates, or of a key, cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// `allow_name` was set without `client_ca`.
    #[error(
        "names are allowed but no client has to prove its own: set the authority of the clients' \
         certificates with `client_ca`"
    )]
    AllowedNamesWithoutAuthority,
    /// The gateway cannot be a node of its service at NATS.
    #[cfg(feature = "nats")]
    #[error(transparent)]
    Nats(#[from] taskfork_nats::Error),
    /// The page cannot be served.
    #[cfg(feature = "dashboard")]
    #[error(transparent)]
    Dashboard(#[from] taskfork_dashboard::DashboardError),
    /// An option has a value with which no client could be served.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Why its value is not allowed.
        reason: &'static str,
    },
}

/// The same text as `Display`, so that a `main` that returns the error prints it for people.
impl fmt::Debug for GatewayError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}
