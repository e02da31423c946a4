//! The process of a gateway, beside the server of a pool: it gives up its rights and relays clients.

use std::ffi::CString;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use nix::unistd::{initgroups, setgid, setuid};
use taskfork::__private::handle_kept_signals;
use taskfork::client::Address;
use taskfork::sandbox::Sandbox;
use taskfork_gateway::{FileError, Gateway, GatewayBuilder, GatewayError, taskfork_nats};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::config::PoolOptions;
use crate::error::CommandError;
use crate::gateway_options::{Account, GatewayOptions, TlsOptions, folder};
use crate::replacement::Replacement;
use crate::serve::{OptionSource, Part};
use crate::{option_names, pools};

/// How long running checkouts may go on at a shutdown, unless the pool says otherwise. The server has the same
/// default.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(30);

/// Serves clients of other machines until SIGTERM arrives. With `only_check`, returns once that could begin.
pub(crate) fn run(
    pool: &PoolOptions,
    source: &OptionSource,
    log_file: Option<&Path>,
    only_check: bool,
) -> Result<(), CommandError> {
    let Some(options) = pool.gateway(source)? else {
        return Err(CommandError::usage("the pool has no gateway"));
    };
    // One thread: a sandbox cannot confine others.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let replaced = std::env::var(pools::REPLACES).ok().filter(|_| only_check);
    let replacement = replaced.as_deref().map(Replacement::from_text);
    #[cfg(feature = "dashboard")]
    let page = options.http.as_ref().map(|http| http.bind(source, replacement)).transpose()?;
    let builder = || {
        #[cfg_attr(not(feature = "dashboard"), expect(unused_mut, reason = "there is no page"))]
        let mut builder = builder(&options)?;
        #[cfg(feature = "dashboard")]
        if let (Some(http), Some(listener)) = (&options.http, &page) {
            let _entered = runtime.enter();
            builder = http.add_to(builder, listener, source)?;
        }
        Ok(builder)
    };
    let gateway = bind(&runtime, builder, &options, source, replacement)?;
    if let Some(account) = &options.user {
        become_user(account)?;
    }
    if !only_check {
        // Only now, because the kernel forgets this when a process changes its user.
        pools::end_with_parent(Part::Gateway)?;
    }
    confine(&options, log_file)?;
    // The files have to be readable also for the user and in the sandbox of later days.
    gateway.reloader().reload().map_err(|error| command_error(error, &options, source))?;
    if only_check {
        let checked = runtime.block_on(gateway.check());
        runtime.shutdown_background();
        return check(checked, replacement, &options, source);
    }
    if let Some(address) = gateway.local_addr() {
        tracing::info!("the gateway listens at tls:{address}");
    }
    #[cfg(feature = "dashboard")]
    if let (Some(http), Some(listener)) = (&options.http, page) {
        tracing::info!("the page of the gateway is at {}", http.url(listener.local_addr()?));
        // The gateway has its own copy, and closes that before it waits for its clients.
        drop(listener);
    }
    let served = runtime.block_on(serve(gateway, log_file));
    // A look-up of a name, or a question to a server that hangs, may go on in a thread of its own.
    runtime.shutdown_background();
    served?;
    tracing::info!("the gateway has ended");
    Ok(())
}

/// What the node needs. NATS that is not there now is no error: the node waits for it. But a gateway that serves is not
/// replaced by one that would wait, unless it waits for the same NATS servers. Nor is a node of the same name an error if
/// this one replaces it.
fn check(
    checked: Result<(), GatewayError>,
    replacement: Option<Replacement>,
    options: &GatewayOptions,
    source: &OptionSource,
) -> Result<(), CommandError> {
    match checked {
        Err(GatewayError::Nats(taskfork_nats::Error::NodeNameInUse { .. }))
            if replacement.is_some_and(|replacement| replacement.has_same_name) =>
        {
            Ok(())
        }
        Err(GatewayError::Nats(error))
            if error.is_temporary()
                && replacement.is_none_or(|replacement| replacement.has_same_nats) =>
        {
            tracing::warn!("the node serves nobody yet: {error}");
            Ok(())
        }
        checked => checked.map_err(|error| command_error(error, options, source)),
    }
}

/// Listens at the first address of the host that works. A gateway that is checked listens at another port if only the one that
/// it is to replace is in the way.
fn bind(
    runtime: &Runtime,
    builder: impl Fn() -> Result<GatewayBuilder, CommandError>,
    options: &GatewayOptions,
    source: &OptionSource,
    replacement: Option<Replacement>,
) -> Result<Gateway, CommandError> {
    let Some(tls_options) = &options.tls else {
        let bound = runtime.block_on(builder()?.bind());
        return bound.map_err(|error| command_error(error, options, source));
    };
    let (tls, listen) = (source.option_name("tls"), &tls_options.listen);
    // The runtime would look the name up in a thread.
    let addresses = listen.to_socket_addrs().map_err(|error| {
        CommandError::usage(format!("{tls}: `{listen}` is no address to listen at: {error}"))
            .hint("write HOST:PORT, as in 0.0.0.0:7000 or [::]:7000")
    })?;
    let mut failed = None;
    for mut address in addresses {
        let bind = |address| {
            let builder = with_tls(builder()?, tls_options, address);
            Ok::<_, CommandError>(runtime.block_on(builder.bind()))
        };
        let mut bound = bind(address)?;
        if let Err(GatewayError::Listen { .. }) = &bound
            && replacement.is_some_and(|replacement| replacement.listens_at(address))
        {
            address.set_port(0);
            bound = bind(address)?;
        }
        match bound {
            Ok(gateway) => return Ok(gateway),
            Err(error @ GatewayError::Listen { .. }) => failed = Some(error),
            Err(error) => return Err(command_error(error, options, source)),
        }
    }
    Err(match failed {
        Some(error) => command_error(error, options, source),
        None => CommandError::usage(format!("{tls}: `{listen}` has no address")),
    })
}

/// The options but those of TLS and of the page.
fn builder(options: &GatewayOptions) -> Result<GatewayBuilder, CommandError> {
    let server = Address::unix(options.server.clone()).map_err(CommandError::usage)?;
    let mut builder = Gateway::builder()
        .server(server)
        .shutdown_grace(options.shutdown_grace.unwrap_or(SHUTDOWN_GRACE));
    if let Some(node) = &options.node {
        builder = builder.nats(node.options()?);
    }
    if let Some(time) = options.handshake_timeout {
        builder = builder.handshake_timeout(time);
    }
    if let Some(count) = options.max_handshakes {
        builder = builder.max_handshakes(count);
    }
    Ok(builder)
}

fn with_tls(builder: GatewayBuilder, options: &TlsOptions, address: SocketAddr) -> GatewayBuilder {
    let mut builder = builder.tls(address.to_string(), &options.certificate, &options.key);
    if let Some(file) = &options.client_ca {
        builder = builder.client_ca(file);
    }
    for name in &options.allowed_names {
        builder = builder.allow_name(name);
    }
    builder
}

/// The error of a gateway in terms of the command's options.
fn command_error(
    error: GatewayError,
    options: &GatewayOptions,
    source: &OptionSource,
) -> CommandError {
    let GatewayOptions { tls, user, .. } = options;
    match &error {
        GatewayError::Nats(error) => node_error(error, source),
        GatewayError::Listen { .. } => CommandError::usage(&error).hint(format!(
            "choose an address of this machine and a free port for {}",
            source.option_name("tls")
        )),
        GatewayError::File(FileError { file, .. }) => {
            let option = match file {
                file if tls.as_ref().is_some_and(|tls| tls.certificate == *file) => "cert",
                file if tls.as_ref().is_some_and(|tls| tls.key == *file) => "key",
                _ => "client_ca",
            };
            let option = source.option_name(option);
            CommandError::usage(&error).hint(match user {
                Some(Account { name, .. }) => {
                    format!("{option} must be a file in PEM that the user `{name}` may read")
                }
                None => format!("{option} must be a file in PEM that this user may read"),
            })
        }
        #[cfg(feature = "dashboard")]
        GatewayError::Dashboard(_) => match (&options.http, error) {
            (Some(http), GatewayError::Dashboard(error)) => http.command_error(error, source),
            (_, error) => CommandError::usage(error),
        },
        GatewayError::Option { option, reason } => {
            let reason = reason.replace("`tls`", &source.option_name("tls"));
            CommandError::usage(format!("{} cannot be so: {reason}", source.option_name(option)))
                .hint("`taskfork serve --help` says what each option takes")
        }
        _ => CommandError::usage(&error),
    }
}

/// The error of a node. Its text says what to do, and this names the option.
fn node_error(error: &taskfork_nats::Error, source: &OptionSource) -> CommandError {
    use taskfork_nats::Error;

    let option = match error {
        Error::Credentials { .. } => "creds",
        Error::Tls { .. } => "nats_ca",
        Error::NodeNameInUse { .. } | Error::InvalidName { what: "node", .. } => "node",
        Error::InvalidName { what: "service", .. } => "service",
        Error::InvalidName { what: "label", .. } | Error::TooManyLabels { .. } => "label",
        Error::InvalidVersion { .. } => "service_version",
        Error::CertificateWanted { .. } => "nats_cert",
        _ => "nats",
    };
    let hint = match error {
        Error::NotPermitted { .. } => {
            "a node publishes to _INBOX.>, SERVICE.node.*, SERVICE.load and SERVICE.acquire.>, and subscribes to SERVICE.>, \
             $SRV.> and _INBOX.>"
        }
        _ => "`taskfork serve --help` says what each option takes",
    };
    let error = error.to_string();
    let error = option_names::in_text(&error);
    CommandError::usage(format!("{}: {error}", source.option_name(option))).hint(hint)
}

/// Takes on the user and its groups.
fn become_user(account: &Account) -> Result<(), CommandError> {
    let Account { name, user, group } = account;
    let called = CString::new(name.as_str()).map_err(CommandError::usage)?;
    let changed =
        initgroups(&called, *group).and_then(|()| setgid(*group)).and_then(|()| setuid(*user));
    changed.map_err(|errno| {
        CommandError::usage(format!("the gateway cannot become the user `{name}`: {errno}"))
    })
}

/// Gives up everything but relaying: no programs, no files but the certificates, no other sockets than connections
/// that come in, and those to the server. A node connects to the ports of NATS too, and looks names up.
fn confine(options: &GatewayOptions, log_file: Option<&Path>) -> Result<(), CommandError> {
    let mut sandbox = Sandbox::gateway()
        // The file of the socket is another after a restart of the server.
        .unix_socket(folder(&options.server))
        // A kernel that cannot do all of it can do a part.
        .best_effort();
    for folder in options.tls.iter().flat_map(TlsOptions::folders) {
        sandbox = sandbox.read(folder);
    }
    if let Some(node) = &options.node {
        sandbox = node.ports().into_iter().fold(sandbox, Sandbox::connect_tcp);
        sandbox = node.readable().into_iter().fold(sandbox, Sandbox::read);
        sandbox = node.status_folder().into_iter().fold(sandbox, Sandbox::unix_socket);
    }
    if let Some(file) = log_file {
        // SIGUSR1 makes a new one.
        sandbox = sandbox.write(folder(file));
    }
    #[cfg(feature = "dashboard")]
    if let Some(http) = &options.http {
        sandbox = http.folders().into_iter().fold(sandbox, Sandbox::read);
        sandbox = sandbox.unix_socket(http.status_folder());
    }
    let failed = |error: &dyn std::error::Error| {
        CommandError::usage(format!("the gateway cannot be confined: {error}"))
            .hint("the folders of the socket, the certificates and the log file must exist")
    };
    let prepared = sandbox.prepare().map_err(|error| failed(&error))?;
    prepared.apply(None).map_err(|error| failed(&error))?;
    for feature in prepared.lacking() {
        tracing::debug!("the sandbox of the gateway lacks a feature of this kernel: {feature}");
    }
    Ok(())
}

/// Relays clients until a signal ends it. A second signal ends all connections.
async fn serve(gateway: Gateway, log_file: Option<&Path>) -> io::Result<()> {
    let reloader = gateway.reloader();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    handle_kept_signals()?;
    let (drain, draining) = oneshot::channel::<()>();
    let mut drain = Some(drain);
    let mut running = pin!(gateway.run(async { drop(draining.await) }));
    loop {
        let ends = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        tokio::select! {
            () = &mut running => return Ok(()),
            () = ends => match drain.take() {
                Some(drain) => {
                    tracing::info!("the gateway waits for its clients' checkouts");
                    drop(drain);
                }
                None => return Ok(()),
            },
            _ = hangup.recv() => match reloader.reload() {
                Ok(()) => tracing::info!("the gateway has read its certificates again"),
                Err(error) => tracing::error!("the previous certificates stay in use: {error}"),
            },
            _ = user1.recv() => pools::reopen(log_file),
        }
    }
}
