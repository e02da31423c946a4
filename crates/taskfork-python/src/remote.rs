//! The options of a client whose workers are on other machines: TLS, NATS, and which nodes of a service it uses.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use taskfork::Client;
use taskfork::client::{ClientBuilder, ConfigError, NatsConnectOptions, NatsRoute};

/// The most bytes of a file of credentials, which has some hundred.
const MAX_CREDENTIALS: u64 = 1 << 20;

#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Remote {
    tls_ca: Option<PathBuf>,
    tls_identity: Option<(PathBuf, PathBuf)>,
    tls_name: Option<String>,
    nats_creds: Option<PathBuf>,
    nats_ca: Option<PathBuf>,
    nats_identity: Option<(PathBuf, PathBuf)>,
    nats_route: Option<String>,
    labels: Vec<String>,
    key: Option<String>,
}

impl Remote {
    /// Sets how the client connects. `ValueError` for credentials that cannot be used.
    pub(crate) fn connecting(&self, mut builder: ClientBuilder) -> PyResult<ClientBuilder> {
        if let Some(file) = &self.tls_ca {
            builder = builder.tls_ca(file);
        }
        if let Some((certificate, key)) = &self.tls_identity {
            builder = builder.tls_identity(certificate, key);
        }
        if let Some(name) = &self.tls_name {
            builder = builder.tls_name(name);
        }
        if let Some(name) = &self.nats_route {
            builder = builder.nats_route(route(name)?);
        }
        if let Some(options) = self.nats()? {
            builder = builder.nats(options);
        }
        // The client of the chosen nodes connects none ahead of time, so this one must not either.
        Ok(if self.is_placed() { builder.min_workers(0) } else { builder })
    }

    /// The options of the connection to NATS. `None` if none is set: a client without NATS must not have any.
    fn nats(&self) -> PyResult<Option<NatsConnectOptions>> {
        let Self { nats_creds: creds, nats_ca: authorities, nats_identity: identity, .. } = self;
        if creds.is_none() && authorities.is_none() && identity.is_none() {
            return Ok(None);
        }
        let mut options = NatsConnectOptions::new();
        if let Some(file) = creds {
            let wrong = |why: &dyn std::fmt::Display| {
                let file = file.display();
                PyValueError::new_err(format!(
                    "nats_creds is {file}, which cannot be used: {why}: it takes a file with the JWT and the seed of a user"
                ))
            };
            let text = read_bounded(file).map_err(|error| wrong(&error))?;
            options = options.credentials(&text).map_err(|error| wrong(&error))?;
        }
        if let Some(file) = authorities {
            options = options.add_root_certificates(file.clone());
        }
        if let Some((certificate, key)) = identity {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(Some(options))
    }

    fn is_placed(&self) -> bool {
        !self.labels.is_empty() || self.key.is_some()
    }

    /// The client of the chosen nodes.
    pub(crate) fn placed(&self, mut client: Client) -> Result<Client, ConfigError> {
        if !self.labels.is_empty() {
            client = client.with_labels(&self.labels)?;
        }
        match &self.key {
            Some(key) => client.by_key(key),
            None => Ok(client),
        }
    }
}

/// How the package names an option of the library.
pub(crate) fn own_name(option: &str) -> &str {
    match option {
        "nats" => "nats_creds, nats_ca or nats_identity",
        "with_labels" => "labels",
        "by_key" => "key",
        own => own,
    }
}

fn route(name: &str) -> PyResult<NatsRoute> {
    Ok(match name {
        "auto" => NatsRoute::Auto,
        "direct" => NatsRoute::Direct,
        "relayed" => NatsRoute::Relayed,
        _ => return Err(PyValueError::new_err(format!("there is no route {name:?}"))),
    })
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MAX_CREDENTIALS + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CREDENTIALS {
        return Err(io::Error::other(format!("it has more than {MAX_CREDENTIALS} bytes")));
    }
    Ok(text)
}
