//! Programs that the tests start: this binary with a request as its first argument.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::fixture::{Fleet, SLOW, client_builder, node};

/// Runs what the arguments request. Returns false if they request nothing.
pub(crate) fn run_requested() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run-node", url, name, socket] => run_node(url, name, socket),
        ["run-blocking-client", address] => run_blocking_client(address),
        _ => return false,
    }
    true
}

/// Prints a line when it is a node, and runs until it is killed.
fn run_node(url: &str, name: &str, socket: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let _node = node(name, socket.to_owned(), 8).start(url).await.unwrap();
        println!("started");
        std::future::pending::<()>().await;
    });
}

/// Calls, and ends at once.
fn run_blocking_client(address: &str) {
    let client = client_builder(address).nats_heartbeat(SLOW).build_blocking().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).unwrap(), 3);
}

/// Runs a client without async until its end.
pub(crate) fn call_blocking(address: &str) {
    let own = std::env::current_exe().unwrap();
    let status = Command::new(own).args(["run-blocking-client", address]).status().unwrap();
    assert!(status.success(), "{status}");
}

/// A node in a process of its own. It ends with its test.
pub(crate) struct NodeProcess(Child);

impl NodeProcess {
    pub(crate) fn start(fleet: &Fleet, name: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["run-node", &fleet.nats.url(), name, &fleet.socket()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let process = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        process
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
