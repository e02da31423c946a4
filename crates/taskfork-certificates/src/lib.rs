//! The certificates of a server of TLS 1.3, read from files, and read again when these change.
//!
//! The gateways and the dashboard of [taskfork](https://docs.rs/taskfork) use it.
//!
//! ```no_run
//! use taskfork_certificates::{Certificates, Files};
//!
//! let files = Files {
//!     what: "the gateway's certificate",
//!     protocol: b"taskfork",
//!     certificate: "cert.pem".into(),
//!     key: "key.pem".into(),
//!     client_ca: None,
//! };
//! let certificates = Certificates::load(files)?;
//! let acceptor = tokio_rustls::TlsAcceptor::from(certificates.config());
//! # let _ = acceptor;
//! # Ok::<(), taskfork_certificates::FileError>(())
//! ```
#![forbid(unsafe_code)]

mod certificates;
mod validity;

pub use certificates::{Certificates, FileError, Files};
