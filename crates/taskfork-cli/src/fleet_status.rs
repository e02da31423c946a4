//! The status of the nodes of a service at NATS: asking for it, and its rows.

use std::time::Duration;

use log_defer::{printable, printable_json};
use taskfork::client::Address;
use taskfork::server::ServerStatus;
use taskfork_gateway::taskfork_nats::{Error, Fleet, FleetOptions, NodeStatus};
use tokio::runtime::Runtime;

use crate::error::CommandError;
use crate::nats_options::NatsFiles;
use crate::server_address::ServerAddress;
use crate::{nats_options, output, status};

/// The headers of the columns of [`row`].
pub(crate) const COLUMNS: [&str; 9] =
    ["node", "version", "workers", "busy", "free", "sessions", "calls", "labels", "state"];

/// A service at NATS that can be asked.
#[derive(Debug)]
pub(crate) struct Service {
    runtime: Runtime,
    fleet: Fleet,
    name: String,
}

impl Service {
    /// Connects to NATS.
    pub(crate) fn connect(
        address: &ServerAddress,
        files: &NatsFiles,
    ) -> Result<Self, CommandError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (fleet, name) = runtime.block_on(connect(address, files))?;
        Ok(Self { runtime, fleet, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Asks all nodes. With `full`, they tell what their workers do too. Blocks for up to two seconds.
    pub(crate) fn nodes(&self, full: bool) -> Result<Vec<NodeStatus>, Error> {
        self.runtime.block_on(self.fleet.status(full))
    }

    /// Asks one node, with its workers. Blocks for up to a second.
    pub(crate) fn node(&self, name: &str) -> Result<Option<NodeStatus>, Error> {
        self.runtime.block_on(self.fleet.node_status(name, true))
    }
}

/// Connects to NATS. Returns the service and its name.
pub(crate) async fn connect(
    address: &ServerAddress,
    files: &NatsFiles,
) -> Result<(Fleet, String), CommandError> {
    // The library says what is wrong with an address.
    let parsed: Address = address.parse().map_err(CommandError::usage)?;
    let text = address.as_os_str().to_string_lossy();
    let Some((urls, name)) = split(&text) else {
        return Err(CommandError::usage(format!("{parsed} is no service at NATS")));
    };
    let options = FleetOptions::new().nats(files.connect_options()?).name("taskfork");
    let fleet = Fleet::connect(&urls, &name, options).await;
    Ok((fleet.map_err(|error| command_error(&error))?, name))
}

/// The NATS servers of an address, as async-nats takes them, and the name of the service.
fn split(address: &str) -> Option<(String, String)> {
    let (scheme, rest) = match address.strip_prefix("nats+tls://") {
        Some(rest) => ("tls://", rest),
        None => ("nats://", address.strip_prefix("nats://")?),
    };
    let (servers, service) = rest.rsplit_once('/')?;
    let urls: Vec<String> = servers.split(',').map(|server| format!("{scheme}{server}")).collect();
    Some((urls.join(","), service.to_owned()))
}

/// The error of NATS in terms of the command's options.
fn command_error(error: &Error) -> CommandError {
    let command_error = match error {
        Error::Credentials { .. }
        | Error::Tls { .. }
        | Error::NoTls { .. }
        | Error::CertificateWanted { .. }
        | Error::Url { .. } => CommandError::usage(error),
        _ => CommandError::fatal(error),
    };
    let command_error = command_error.in_own_terms();
    match nats_options::hint(error) {
        Some(hint) => command_error.hint(hint),
        None => command_error,
    }
}

/// Prints the nodes once.
pub(crate) fn print(
    address: &ServerAddress,
    files: &NatsFiles,
    workers: bool,
    as_json: bool,
) -> Result<(), CommandError> {
    let service = Service::connect(address, files)?;
    let nodes = service.nodes(workers).map_err(|error| command_error(&error))?;
    if as_json {
        return output::line(&json(&nodes)?);
    }
    if nodes.is_empty() {
        let what = format!("the service {} has no node that answers", printable(service.name()));
        return Err(CommandError::fatal(what)
            .hint("start one with `taskfork serve --nats`, or check the name of the service"));
    }
    output::text(&text(&nodes, workers))
}

/// The nodes as one line of JSON.
fn json(nodes: &[NodeStatus]) -> Result<String, CommandError> {
    let json = serde_json::to_string(nodes).map_err(CommandError::fatal)?;
    Ok(printable_json(&json).into_owned())
}

fn text(nodes: &[NodeStatus], workers: bool) -> String {
    let mut out = output::table(&COLUMNS, nodes.iter().map(row));
    for node in nodes.iter().filter(|_| workers) {
        out += &format!("\nnode {}\n", printable(&node.node));
        match server(node) {
            Some(server) => out += &status::text(&server),
            None => out += "it does not tell what its workers do\n",
        }
    }
    out
}

/// What a node tells about its server, if it was asked for that.
pub(crate) fn server(node: &NodeStatus) -> Option<ServerStatus> {
    serde_json::from_value(node.details.get("server")?.clone()).ok()
}

/// A node as a row of a table.
pub(crate) fn row(node: &NodeStatus) -> [String; COLUMNS.len()] {
    let number = |key: &str| node.details.get(key).and_then(serde_json::Value::as_u64);
    let shown = |key: &str| number(key).map(|number| number.to_string()).unwrap_or_default();
    let workers = match (number("workers"), number("max_workers")) {
        (Some(workers), Some(most)) => format!("{workers}/{most}"),
        _ => String::new(),
    };
    let state = match (&node.error, node.draining) {
        (Some(error), _) => printable(error).into_owned(),
        (None, true) => "draining".to_owned(),
        (None, false) => "serving".to_owned(),
    };
    [
        printable(&node.node).into_owned(),
        printable(&node.version).into_owned(),
        workers,
        shown("busy"),
        node.free.to_string(),
        format!("{}/{}", node.sessions.saturating_sub(node.free), node.sessions),
        shown("calls"),
        printable(&node.labels.join(",")).into_owned(),
        state,
    ]
}

/// How long ago a node has answered, for a column behind these.
pub(crate) fn ago(time: Duration) -> String {
    match time.as_secs() {
        0..2 => "now".to_owned(),
        seconds => format!("{seconds}s ago"),
    }
}

#[cfg(test)]
mod tests {
    use log_defer::printable_lines;
    use serde_json::json;

    use super::*;

    #[test]
    fn addresses_are_split_as_async_nats_takes_them() {
        let both = |text: &str| split(text).map(|(urls, name)| format!("{urls} {name}"));
        assert_eq!(both("nats://h:1/s").unwrap(), "nats://h:1 s");
        assert_eq!(both("nats://u:p@a,b:2/s").unwrap(), "nats://u:p@a,nats://b:2 s");
        assert_eq!(both("nats+tls://h/s").unwrap(), "tls://h s");
        assert_eq!(both("unix:/s"), None);
    }

    #[test]
    fn what_a_node_says_is_shown_as_text_only() {
        let nasty = "\u{1b}[2J\u{9b}31m\u{202e}";
        let node: NodeStatus = serde_json::from_value(json!({
            "node": nasty, "id": nasty, "version": nasty, "labels": [nasty], "sessions": 1, "free": 2,
            "draining": false, "error": nasty, "details": { "workers": 1, "max_workers": 2, "calls": nasty },
        }))
        .unwrap();
        let nodes = [node];
        let text = text(&nodes, true);
        assert_eq!(printable_lines(&text), text);
        assert!(text.contains("1/2") && text.contains("0/1"), "{text}");
        let json = json(&nodes).unwrap();
        assert_eq!(printable_lines(&json), json);
    }
}
