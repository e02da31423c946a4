//! `taskfork dashboard`: serves a page about servers and the nodes of services.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::path::{Path, PathBuf};

use taskfork::__private::{Hangup, meaning_of_hangup};
use taskfork::server::ServerStatus;
use taskfork_dashboard::{DashboardBuilder, Reloader};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::CommandError;
use crate::nats_options::NatsFiles;
use crate::page_access::{OptionNames, PageAccess, listen_error, name_of};
use crate::server_address::ServerAddress;
use crate::units::Time;
use crate::{fleet_status, output, status};

/// What to show, and to whom.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a token and --client-ca only loopback addresses are served. With a token, /metrics and /api need \
                  the header `Authorization: Bearer TOKEN`, and the page asks for it. /healthz and /readyz need none. \
                  SIGHUP makes a dashboard with --cert read its certificates again."
)]
pub(crate) struct Options {
    /// Where servers listen, unix:PATH or PATH, or the paths of their status sockets; or nats://HOST:PORT/SERVICE for
    /// the nodes of a service
    #[arg(required = true)]
    addresses: Vec<ServerAddress>,
    /// Where to serve the page
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9180")]
    listen: String,
    /// The file with the token that requests need, of 16 characters or more
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Serve HTTPS with this certificate, in PEM, with those that lead to its authority. It is read again when it changes
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Serve only those that have a certificate of an authority in this file, in PEM, probes too
    #[arg(long, value_name = "FILE", requires = "cert")]
    client_ca: Option<PathBuf>,
    /// Let those who know the token dismiss and kill workers
    #[arg(long, requires = "token_file")]
    allow_actions: bool,
    /// Serve requests for this host name too, for example that of a proxy; for more names, give it again
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// How long a call may run before it is shown as slow
    #[arg(long, value_name = "TIME", default_value = "1s")]
    slow: Time,
    /// Do not ask workers for the stacks of slow calls, which interrupts system calls such as poll
    #[arg(long)]
    no_stacks: bool,
    #[command(flatten)]
    nats: NatsFiles,
}

pub(crate) fn run(options: &Options) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &Options) -> Result<(), CommandError> {
    let access = options.access();
    let names = OptionNames {
        listen: "--listen".to_owned(),
        token_file: "--token-file".to_owned(),
        certificate: "--cert".to_owned(),
        key: "--key".to_owned(),
        client_ca: "--client-ca".to_owned(),
    };
    let builder =
        access.builder(&names)?.slow_after(options.slow.0).sample_stacks(!options.no_stacks);
    let dashboard = add_sources(builder, options).await?.build();
    let dashboard = dashboard.map_err(|error| access.command_error(error, &names))?;
    let listener = TcpListener::bind(&options.listen).await;
    let listener =
        listener.map_err(|error| listen_error(&options.listen, &error, &names.listen))?;
    let address = listener.local_addr()?;
    dashboard.check_address(address).map_err(|error| access.command_error(error, &names))?;
    // Before anybody knows the address: a signal without a handler would end this process.
    let reload = reload_at_hangup(access.identity.is_some().then(|| dashboard.reloader()))?;
    output::line(&format!("{}://{address}/", access.scheme()))?;
    tokio::select! {
        served = dashboard.serve(listener) => {
            served.map_err(|error| access.command_error(error, &names))
        }
        never = reload => match never {},
    }
}

/// Reads the certificates again at each SIGHUP, unless that is ignored or comes from a terminal that closes.
fn reload_at_hangup(
    reloader: Option<Reloader>,
) -> Result<impl Future<Output = Infallible>, CommandError> {
    let reloader = reloader.filter(|_| meaning_of_hangup(None) == Hangup::Restart);
    let mut reload = match reloader {
        Some(reloader) => Some((reloader, signal(SignalKind::hangup())?)),
        None => None,
    };
    Ok(async move {
        let Some((reloader, hangup)) = &mut reload else { return pending().await };
        loop {
            hangup.recv().await;
            match reloader.reload() {
                Ok(()) => tracing::info!("the dashboard has read its certificates again"),
                Err(error) => tracing::error!("the previous certificates stay in use: {error}"),
            }
        }
    })
}

impl Options {
    fn access(&self) -> PageAccess {
        PageAccess {
            token_file: self.token_file.clone(),
            allow_actions: self.allow_actions,
            allowed_hosts: self.allow_host.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            client_ca: self.client_ca.clone(),
        }
    }
}

async fn add_sources(
    mut builder: DashboardBuilder,
    options: &Options,
) -> Result<DashboardBuilder, CommandError> {
    let mut sockets = Vec::new();
    for address in &options.addresses {
        if address.is_nats() {
            let (fleet, service) = fleet_status::connect(address, &options.nats).await?;
            builder = builder.fleet(service, fleet);
            continue;
        }
        let socket = status::status_socket(address)?;
        check(&socket)?;
        sockets.push(socket);
    }
    for (name, socket) in named(sockets) {
        builder = builder.server(name, socket);
    }
    Ok(builder)
}

/// Tries a status socket once. A server may start later, but a socket that this user may not use stays so.
fn check(socket: &Path) -> Result<(), CommandError> {
    match ServerStatus::read(socket) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(status::no_answer(socket, &error).hint(
                "run the dashboard as the user of the server, or as root: only they may read its status",
            ))
        }
        Err(error) => {
            tracing::warn!("{} does not answer yet: {error}", socket.display());
            Ok(())
        }
    }
}

/// Names servers by the names of their sockets, or by the whole paths if those are not enough.
fn named(sockets: Vec<PathBuf>) -> Vec<(String, PathBuf)> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    sockets.iter().for_each(|path| *times.entry(name_of(path)).or_default() += 1);
    let name = |path: &PathBuf| match times.get(&name_of(path)) {
        Some(1) => name_of(path),
        _ => path.display().to_string(),
    };
    sockets.into_iter().map(|path| (name(&path), path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_the_same_name_are_named_by_their_paths() {
        let sockets = ["/a/x.sock.status", "/b/x.sock.status", "/b/y.sock.status", "/z.status"];
        let names = named(sockets.iter().map(PathBuf::from).collect());
        let names: Vec<_> = names.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["/a/x.sock.status", "/b/x.sock.status", "y", "z"]);
    }
}
