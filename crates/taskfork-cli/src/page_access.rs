//! Who may see the page, for `taskfork dashboard` and for that of a gateway.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use taskfork_dashboard::{Dashboard, DashboardBuilder, DashboardError};

use crate::error::CommandError;

/// The most bytes of a file with a token.
const MAX_TOKEN_FILE: u64 = 8192;

/// What is demanded of those who ask.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PageAccess {
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) allow_actions: bool,
    pub(crate) allowed_hosts: Vec<String>,
    /// The certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    pub(crate) client_ca: Option<PathBuf>,
}

/// What the options are called in errors.
pub(crate) struct OptionNames {
    pub(crate) listen: String,
    pub(crate) token_file: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) client_ca: String,
}

impl PageAccess {
    /// A page with these options. Reads the token.
    pub(crate) fn builder(&self, names: &OptionNames) -> Result<DashboardBuilder, CommandError> {
        let mut builder = Dashboard::builder().allow_actions(self.allow_actions);
        for host in &self.allowed_hosts {
            builder = builder.allow_host(host);
        }
        if let Some(file) = &self.token_file {
            builder = builder.token(read_token(file, &names.token_file)?);
        }
        if let Some((certificate, key)) = &self.identity {
            builder = builder.tls(certificate, key);
        }
        if let Some(file) = &self.client_ca {
            builder = builder.client_ca(file);
        }
        Ok(builder)
    }

    /// What the page's addresses begin with.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.identity.is_some() { "https" } else { "http" }
    }

    /// The error of a dashboard in terms of the command's options.
    pub(crate) fn command_error(&self, error: DashboardError, names: &OptionNames) -> CommandError {
        let OptionNames { listen, token_file, certificate, key, client_ca } = names;
        let command_error = CommandError::usage(&error);
        match &error {
            DashboardError::Token => command_error.hint(format!(
                "make one with `openssl rand -hex 24 > FILE`, and give FILE to {token_file}"
            )),
            DashboardError::NotLoopback { .. } => command_error.hint(format!(
                "{token_file} is a file with a token, {client_ca} one with the authorities of clients, {listen} the address"
            )),
            DashboardError::File(error) => {
                let option = match &self.identity {
                    Some((file, _)) if *file == error.file => certificate,
                    Some((_, file)) if *file == error.file => key,
                    _ => client_ca,
                };
                command_error.hint(format!("{option} must be a file in PEM that this user may read"))
            }
            DashboardError::Listener(_) => CommandError::fatal(error),
            _ => command_error,
        }
    }
}

/// The error for an address at which nothing can be served.
pub(crate) fn listen_error(address: &str, error: &io::Error, option: &str) -> CommandError {
    let command_error = CommandError::usage(format!("cannot listen at {address}: {error}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => command_error
            .hint(format!("another program listens there: choose another port with {option}")),
        _ => command_error.hint(format!("{option} is HOST:PORT, such as 127.0.0.1:9180")),
    }
}

/// Names a server by the name of its socket.
pub(crate) fn name_of(socket: &Path) -> String {
    let name = socket.file_name().unwrap_or(socket.as_os_str()).to_string_lossy();
    let name = name.strip_suffix(".status").unwrap_or(&name);
    name.strip_suffix(".sock").unwrap_or(name).to_owned()
}

fn read_token(file: &Path, option: &str) -> Result<String, CommandError> {
    let read = || {
        let opened = File::open(file)?;
        let mode = opened.metadata()?.permissions().mode();
        let mut text = String::new();
        opened.take(MAX_TOKEN_FILE).read_to_string(&mut text)?;
        Ok::<_, io::Error>((text, mode))
    };
    let (text, mode) = read().map_err(|error| {
        CommandError::usage(format!("the token in {} cannot be read: {error}", file.display()))
            .hint(format!("{option} is a file that has the token and nothing else"))
    })?;
    if mode & 0o077 != 0 {
        tracing::warn!(
            "other users may read the token in {}: chmod 600 changes that",
            file.display()
        );
    }
    Ok(text.trim().to_owned())
}
