//! The options of connections through TLS: their values, and what they mean together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};

use crate::address::{Address, AddressKind};
use crate::client::io::transport::tls::{PROTOCOL, TlsContext};

/// The options as they were set.
#[derive(Debug, Clone, Default)]
pub(super) struct TlsOptions {
    pub(super) authorities: Option<PathBuf>,
    pub(super) identity: Option<(PathBuf, PathBuf)>,
    pub(super) name: Option<String>,
}

/// An option that cannot be used, and why.
#[derive(Debug)]
pub(super) struct WrongOption {
    pub(super) option: &'static str,
    pub(super) reason: String,
}

impl TlsOptions {
    /// What a client with these addresses needs for TLS, if one of them does.
    pub(super) fn check(&self, addresses: &[Address]) -> Result<Option<TlsContext>, WrongOption> {
        let is_tls = |address: &Address| matches!(address.0, AddressKind::Tls { .. });
        if addresses.iter().any(is_tls) {
            return self.context(self.roots()?).map(Some);
        }
        #[cfg(feature = "nats")]
        if self.identity.is_some()
            && self.authorities.is_none()
            && self.name.is_none()
            && addresses.iter().any(|address| matches!(address.0, AddressKind::Nats(_)))
        {
            // Nodes name the certificates of their gateways, so nobody else is trusted.
            return self.context(RootCertStore::empty()).map(Some);
        }
        // Somebody expects encryption here.
        let set = [
            ("tls_ca", self.authorities.is_some()),
            ("tls_identity", self.identity.is_some()),
            ("tls_name", self.name.is_some()),
        ];
        match set.into_iter().find(|(_, is_set)| *is_set) {
            Some((option, _)) => Err(wrong(
                option,
                "the client has no address tls:HOST:PORT, so nothing would be encrypted".to_owned(),
            )),
            None => Ok(None),
        }
    }

    fn context(&self, roots: RootCertStore) -> Result<TlsContext, WrongOption> {
        let name = match &self.name {
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| {
                wrong("tls_name", format!("`{name}` is neither a DNS name nor an IP address"))
            })?),
            None => None,
        };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| wrong("tls_ca", error.to_string()))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let option = "tls_identity";
                let chain = certificates(option, certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
                    pem::Error::NoItemsFound => {
                        in_file(option, key, "it has no unencrypted private key in PEM".to_owned())
                    }
                    error => in_file(option, key, text(&error)),
                })?;
                config.with_client_auth_cert(chain, private).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        let reason = format!(
                            "it is not the key of the certificate in {}",
                            certificate.display()
                        );
                        in_file(option, key, reason)
                    }
                    error => in_file(option, key, error.to_string()),
                })?
            }
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(TlsContext { config: Arc::new(config), name })
    }

    /// The authorities that this client trusts.
    fn roots(&self) -> Result<RootCertStore, WrongOption> {
        let mut roots = RootCertStore::empty();
        let Some(file) = &self.authorities else {
            let found = rustls_native_certs::load_native_certs();
            // A system may have some that this implementation does not know. One is enough.
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let errors = found.errors.iter().map(|error| format!(" ({error})"));
                let reason = format!(
                    "the system has no trusted authorities{}: install its package ca-certificates, or \
                     set the file with the authority of the gateway",
                    errors.collect::<String>()
                );
                return Err(wrong("tls_ca", reason));
            }
            return Ok(roots);
        };
        for authority in certificates("tls_ca", file)? {
            let added = roots.add(authority);
            added.map_err(|error| in_file("tls_ca", file, error.to_string()))?;
        }
        Ok(roots)
    }
}

/// All certificates in a file, at least one.
fn certificates(
    option: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, WrongOption> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| in_file(option, file, text(&error)))?;
    match read.is_empty() {
        true => Err(in_file(option, file, "it has no certificate in PEM".to_owned())),
        false => Ok(read),
    }
}

fn wrong(option: &'static str, reason: String) -> WrongOption {
    WrongOption { option, reason }
}

fn in_file(option: &'static str, file: &Path, reason: String) -> WrongOption {
    wrong(option, format!("the file {} cannot be used: {reason}", file.display()))
}

/// The system's own text, if the system caused the error.
fn text(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::MissingSectionEnd { .. } => {
            "the end of a section in PEM is missing: the file may be a part of another".to_owned()
        }
        error => error.to_string(),
    }
}
