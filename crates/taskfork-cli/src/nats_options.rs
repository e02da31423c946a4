//! How the command connects to NATS: the options of a node, and those of clients; and which nodes clients use.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use taskfork::Client;
use taskfork::client::{ClientBuilder, ConfigError, NatsRoute};
use taskfork_gateway::taskfork_nats::Error;
use taskfork_gateway::taskfork_nats::async_nats::ConnectOptions;

use crate::error::CommandError;

/// The most bytes of a file of credentials, which has some hundred.
const MAX_CREDENTIALS: u64 = 1 << 20;

/// The files for a connection to NATS.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub(crate) struct NatsFiles {
    /// For NATS, the file with the credentials of this user
    #[arg(long, value_name = "FILE")]
    pub(crate) creds: Option<PathBuf>,
    /// For NATS with TLS, the file with the authorities of its servers, in PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_ca: Option<PathBuf>,
    /// The certificate by which a NATS server recognizes this user, in PEM
    #[arg(long, value_name = "FILE", requires = "nats_key")]
    pub(crate) nats_cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "nats_cert")]
    pub(crate) nats_key: Option<PathBuf>,
}

impl NatsFiles {
    /// The options of async-nats. Reads the credentials; the other files are read when a connection is made.
    pub(crate) fn connect_options(&self) -> Result<ConnectOptions, CommandError> {
        let mut options = ConnectOptions::new();
        if let Some(file) = &self.creds {
            let wrong = |why: &dyn std::fmt::Display| {
                let shown = file.display();
                CommandError::usage(format!("the credentials in {shown} cannot be used: {why}"))
                    .hint("--creds is a file that `nsc` has made, with a JWT and a seed")
            };
            let text = read_bounded(file).map_err(|error| wrong(&error))?;
            options = options.credentials(&text).map_err(|error| wrong(&error))?;
        }
        if let Some(file) = &self.nats_ca {
            options = options.add_root_certificates(file.clone());
        }
        if let (Some(certificate), Some(key)) = (&self.nats_cert, &self.nats_key) {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        Ok(options)
    }
}

/// Which nodes of a service a client uses, and which way its bytes take.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NodeChoice {
    /// For a service at NATS, a label that its node must have, such as gpu=a100; for more labels, give it again
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// For a service at NATS, a key: calls with the same key prefer the same node
    #[arg(long, value_name = "KEY")]
    by_key: Option<String>,
    /// For a service at NATS, which way the bytes take [default: auto]
    #[arg(long, value_name = "ROUTE")]
    route: Option<RouteName>,
}

/// Which way the bytes of a session take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum RouteName {
    /// By TLS to the node, if it offers that and can be reached; otherwise through NATS
    Auto,
    /// By TLS to the node
    Direct,
    /// Through NATS
    Relayed,
}

impl NodeChoice {
    /// Sets the way of the bytes.
    pub(crate) fn route(&self, client: ClientBuilder) -> ClientBuilder {
        match self.route {
            None => client,
            Some(RouteName::Auto) => client.nats_route(NatsRoute::Auto),
            Some(RouteName::Direct) => client.nats_route(NatsRoute::Direct),
            Some(RouteName::Relayed) => client.nats_route(NatsRoute::Relayed),
        }
    }

    /// The client of the chosen nodes.
    pub(crate) fn client(&self, mut client: Client) -> Result<Client, ConfigError> {
        if !self.label.is_empty() {
            client = client.with_labels(&self.label)?;
        }
        match &self.by_key {
            Some(key) => client.by_key(key),
            None => Ok(client),
        }
    }
}

/// What to do about an error of NATS, in terms of the command's options. `None` if its text says it.
pub(crate) fn hint(error: &Error) -> Option<&'static str> {
    match error {
        Error::Credentials { .. } => Some("--creds is the file with the credentials of a user"),
        Error::Tls { .. } => Some("--nats-ca is the file with the authorities of the NATS servers"),
        _ => None,
    }
}

fn read_bounded(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(file)?.take(MAX_CREDENTIALS + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CREDENTIALS {
        return Err(std::io::Error::other(format!("it has more than {MAX_CREDENTIALS} bytes")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_that_cannot_be_used_are_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("creds");
        let options = NatsFiles { creds: Some(file.clone()), ..NatsFiles::default() };
        let error = options.connect_options().unwrap_err();
        assert!(error.message().contains("No such file"), "{error:?}");
        std::fs::write(&file, "no credentials").unwrap();
        let error = options.connect_options().unwrap_err();
        assert!(error.message().contains("creds cannot be used"), "{error:?}");
        let endless = NatsFiles { creds: Some("/dev/zero".into()), ..NatsFiles::default() };
        assert!(endless.connect_options().unwrap_err().message().contains("more than"));
    }
}
