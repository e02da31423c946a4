//! A server of the command that is a node.

use std::path::Path;
use std::process::{Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{self, Server, taskfork, until};
use crate::nats_server::NatsServer;

/// The service of all tests. Each has a NATS server of its own.
pub(crate) const SERVICE: &str = "work";

/// A command that serves as a node of this name.
pub(crate) fn command(folder: &Path, url: &str, node: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taskfork"));
    command.args(["serve", "--protocol", "json", "--listen", &common::address(folder)]);
    command.args(["--nats", url, "--service", SERVICE, "--node", node]).args(more);
    command.arg("--").arg(common::worker()).env_remove("RUST_LOG");
    command
}

/// Starts a node, and waits until it serves.
pub(crate) fn start(nats: &NatsServer, node: &str, more: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let command = command(folder.path(), &nats.url(), node, more);
    let server = Server::run(folder, command);
    until("the node", || server.log().contains(&format!("the node {node} serves {SERVICE}")));
    server
}

/// Asks a server to end.
pub(crate) fn terminate(server: &Server) {
    let pid = Pid::from_raw(server.program.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
}

/// Waits for the end of a server.
pub(crate) fn wait(server: &mut Server) -> ExitStatus {
    server.program.wait().unwrap()
}

pub(crate) fn address(nats: &NatsServer) -> String {
    format!("{}/{SERVICE}", nats.url())
}

/// What `taskfork status --json` prints about the nodes.
pub(crate) fn status(nats: &NatsServer, more: &[&str]) -> Value {
    let output = taskfork().args(["status", &address(nats), "--json"]).args(more).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}
