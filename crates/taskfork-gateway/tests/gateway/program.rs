//! Programs that the tests start: this binary with a request as its first argument.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Authority, Identity, builder, reason_or_sum};

/// Runs what the arguments request. Returns false if they request nothing.
pub(crate) fn run_requested() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["run-gateway", server, certificate, key] => run_gateway(server, certificate, key),
        ["run-client", address, authority, marker] => run_client(address, authority, marker),
        ["call-by-name", address] => call_by_name(address),
        _ => return false,
    }
    true
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

/// Prints its address, and runs until it is killed.
fn run_gateway(server: &str, certificate: &str, key: &str) {
    let identity = Identity { certificate: certificate.into(), key: key.into() };
    block_on(async {
        let gateway = builder(server, &identity).bind().await.unwrap();
        println!("{}", gateway.local_addr().unwrap());
        gateway.run(std::future::pending()).await;
    });
}

/// Writes its worker's process id to a file, and keeps the worker busy.
fn run_client(address: &str, authority: &str, marker: &str) {
    block_on(async {
        let client = taskfork::Client::builder().address(address).tls_ca(authority);
        let checkout = client.timeout(None).build().unwrap().checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let hanging = checkout.call::<()>("hang", ());
        std::fs::write(marker, pid.to_string()).unwrap();
        hanging.await.unwrap();
    });
}

/// Prints the result of a call, or why there is none, of a client that trusts the system's authorities.
fn call_by_name(address: &str) {
    block_on(async {
        let client = taskfork::Client::builder().address(address).min_workers(0).build().unwrap();
        println!("{}", reason_or_sum(&client).await);
    });
}

/// What [`call_by_name`] prints in a process for which the authorities in this file are the system's.
pub(crate) fn call_with_system_authorities(address: &str, authorities: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["call-by-name", address])
        .env("SSL_CERT_FILE", authorities)
        .env_remove("SSL_CERT_DIR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn start(arguments: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// A gateway in a process of its own.
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    child: Program,
}

/// A program that ends with its test.
pub(crate) struct Program(Child);

impl Process {
    pub(crate) async fn start(server: &str, identity: &Identity) -> Self {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (certificate, key) = (path(&identity.certificate), path(&identity.key));
        let mut child = start(&["run-gateway", server, &certificate, &key]);
        let output = child.stdout.take().unwrap();
        let child = Program(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        Self { address: line.trim().parse().unwrap(), child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill();
    }
}

/// Starts a client that keeps a worker busy, and writes the worker's process id to `marker`.
pub(crate) fn start_client(gateway: SocketAddr, authority: &Authority, marker: &Path) -> Program {
    let address = format!("tls:localhost:{}", gateway.port());
    let (authority, marker) = (authority.file.to_str().unwrap(), marker.to_str().unwrap());
    Program(start(&["run-client", &address, authority, marker]))
}

impl Program {
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
