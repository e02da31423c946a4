//! `taskfork status`: prints the status of a server and its workers once.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use log_defer::{printable, printable_json, printable_lines};
use taskfork::Progress;
use taskfork::server::ServerStatus;

use crate::error::CommandError;
use crate::nats_options::NatsFiles;
use crate::server_address::ServerAddress;
use crate::{fleet_status, output};

/// The server, and the format of its status.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    server: StatusAddress,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print metrics for Prometheus
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
    /// For nats://HOST/SERVICE, show the workers of each node too
    #[arg(long)]
    workers: bool,
}

/// The server whose status is read.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusAddress {
    /// Where the server listens, unix:PATH or PATH, or the path of its status socket; or nats://HOST:PORT/SERVICE for
    /// the nodes of a service
    pub(crate) address: ServerAddress,
    #[command(flatten)]
    pub(crate) nats: NatsFiles,
}

impl StatusAddress {
    /// The path of the server's status socket.
    pub(crate) fn socket(&self) -> Result<PathBuf, CommandError> {
        status_socket(&self.address)
    }

    /// Reads the current status.
    pub(crate) fn read(&self) -> Result<ServerStatus, CommandError> {
        let socket = self.socket()?;
        ServerStatus::read(&socket).map_err(|error| no_answer(&socket, &error))
    }
}

/// The path of the status socket of the server at this address.
pub(crate) fn status_socket(address: &ServerAddress) -> Result<PathBuf, CommandError> {
    let Some(path) = address.socket_path() else {
        if !address.has_scheme() {
            return Ok(address.as_os_str().into());
        }
        let address = address.parse().map_err(CommandError::usage)?;
        let what = format!("a server at {address} tells of itself only at a status socket");
        return Err(CommandError::usage(what).hint("give the path that its --status-socket has"));
    };
    let mut status = path.clone().into_os_string();
    status.push(".status");
    // A path without `unix:` can name the listener or the status socket.
    match address.has_scheme() || Path::new(&status).exists() {
        true => Ok(status.into()),
        false => Ok(path),
    }
}

/// The error for a status socket that does not answer.
pub(crate) fn no_answer(socket: &Path, error: &std::io::Error) -> CommandError {
    CommandError::fatal(format!("no server tells of itself at {}: {error}", socket.display()))
        .hint("start the server, or check the address and who may use the socket")
}

pub(crate) fn run(options: Options) -> Result<(), CommandError> {
    let StatusAddress { address, nats } = &options.server;
    if address.is_nats() {
        if options.metrics {
            return Err(CommandError::usage(
                "the metrics of a service cannot be asked for by NATS",
            )
            .hint("ask each server at its own status socket"));
        }
        return fleet_status::print(address, nats, options.workers, options.json);
    }
    if options.workers {
        return Err(CommandError::usage("--workers is for services at NATS")
            .hint("without it, the workers of a server are shown"));
    }
    let status = options.server.read()?;
    if options.json {
        output::line(&json(&status)?)
    } else if options.metrics {
        output::text(&printable_lines(&metrics(&status)?))
    } else {
        output::text(&text(&status))
    }
}

/// The status as one line of JSON.
pub(crate) fn json(status: &ServerStatus) -> Result<String, CommandError> {
    let json = serde_json::to_string(status).map_err(CommandError::fatal)?;
    Ok(printable_json(&json).into_owned())
}

fn metrics(status: &ServerStatus) -> Result<String, CommandError> {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || status.record_metrics());
    Ok(handle.render())
}

/// The status as text, with a table of the workers.
pub(crate) fn text(status: &ServerStatus) -> String {
    format!("{}\n{}", headline(status), output::table(&COLUMNS, status.workers.iter().map(row)))
}

/// The headers of the columns of [`row`].
pub(crate) const COLUMNS: [&str; 10] = [
    "worker",
    "pid",
    "state",
    "for",
    "method",
    "progress",
    "calls",
    "checkouts",
    "memory",
    "client",
];

/// The status of the server in one line.
pub(crate) fn headline(status: &ServerStatus) -> String {
    let busy = status.workers.iter().filter(|worker| worker.state == "busy").count();
    let deaths: Vec<String> = status
        .deaths
        .iter()
        .map(|(cause, count)| format!("{} {count}", printable(cause)))
        .collect();
    let deaths = if deaths.is_empty() { "none".to_owned() } else { deaths.join(", ") };
    let sandbox = status.sandbox.as_deref().map(|level| format!("; sandbox {}", printable(level)));
    let sandbox = sandbox.unwrap_or_default();
    let state = if status.accepting { "serving" } else { "shutting down" };
    format!(
        "{} (process {}) {state} for {}: {} workers of at most {}, {busy} busy, {} wait for \
         one; {} forked, {} refused, {} connections without a greeting{sandbox}; ended: {deaths}",
        printable(&status.name),
        status.pid,
        time(status.seconds),
        status.workers.len(),
        status.max_workers,
        status.queued,
        status.forked,
        status.refused,
        status.handshakes,
    )
}

/// A worker as a row of a table.
pub(crate) fn row(worker: &taskfork::server::WorkerStatus) -> [String; COLUMNS.len()] {
    [
        worker.number.to_string(),
        worker.pid.to_string(),
        printable(&worker.state).into_owned(),
        time(worker.seconds),
        worker.method.as_deref().map(printable).unwrap_or_default().into_owned(),
        worker.progress.as_ref().map(progress).unwrap_or_default(),
        worker.calls.to_string(),
        worker.checkouts.to_string(),
        worker
            .memory
            .map(|bytes| ByteSize(bytes).display().iec_short().to_string())
            .unwrap_or_default(),
        worker.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}

/// How far a call has got, with the percentage first.
pub(crate) fn progress(progress: &Progress) -> String {
    let text = progress.to_string();
    match progress.fraction() {
        Some(fraction) => format!("{:.0}% {}", (fraction * 100.0).floor(), printable(&text)),
        None => printable(&text).into_owned(),
    }
}

/// A duration. Longer durations are shown with less precision.
fn time(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..120 => format!("{whole}s"),
        120..7200 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_shown_as_text_only() {
        let nasty = r"\u001b[2J\u009b31m\u202e\u007f";
        let status = format!(
            r#"{{"name": "{nasty}", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 1,
            "forked": 1, "refused": 0, "deaths": {{"{nasty}": 1}}, "workers": [{{"number": 1, "pid": 2,
            "state": "{nasty}", "seconds": 1.0, "method": "{nasty}", "calls": 1, "checkouts": 0,
            "progress": {{"done": 1, "total": 3, "what": "{nasty}"}},
            "peer": {{"kind": "tls", "names": ["{nasty}"], "address": "{nasty}"}}}}]}}"#
        );
        let status: ServerStatus = serde_json::from_str(&status).expect("it is a status");
        let is_safe = |text: &str| printable_lines(text) == text;
        assert!(is_safe(&text(&status)) && text(&status).contains(r"\x1b[2J"));
        let json = json(&status).expect("it is JSON");
        assert!(is_safe(&json));
        let again: ServerStatus = serde_json::from_str(&json).expect("it is a status");
        assert_eq!(again, status);
    }
}
