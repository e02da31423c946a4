//! Calls to nodes of a service at NATS, over the loopback interface, and bare messages of NATS.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use taskfork::server::ServerHandle;
use taskfork::{Client, Server};
use taskfork_gateway::taskfork_nats::async_nats;
use taskfork_gateway::{Gateway, NatsOptions};
use tokio::runtime::Runtime;

use crate::far_client::{FarClient, runtime};
use crate::pools::text;
use crate::{roles, sample::Sample};

/// The name of the service.
const SERVICE: &str = "compare";

/// How many sessions each of several nodes has.
const SESSIONS: usize = 4;

/// How long the work of nodes sleeps.
pub const SLEEP: Duration = Duration::from_millis(5);

/// The length of a bare message. The server takes 1 MiB; of the lengths from 8 KiB on, this is among the fastest.
const PIECE: usize = 16 << 10;

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program in a role.
fn start(role: &[&str]) -> Process {
    let nothing = std::fs::File::open("/dev/null").expect("/dev/null");
    Process(roles::start(role, nothing.into()))
}

/// A NATS server, or why there is none.
struct Nats {
    url: String,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Nats {
    fn start() -> Result<Self, &'static str> {
        let program = program().ok_or("there is no nats-server on the search path")?;
        let folder = tempfile::tempdir().expect("a folder");
        let child = Command::new(program)
            .args(["--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .expect("a NATS server");
        let file = folder.path().join(format!("nats-server_{}.ports", child.id()));
        let process = Process(child);
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            let ports = std::fs::read(&file).unwrap_or_default();
            if let Ok(ports) = serde_json::from_slice::<serde_json::Value>(&ports) {
                let url = ports["nats"][0].as_str().expect("an address").to_owned();
                return Ok(Self { url, _process: process, _folder: folder });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("the NATS server does not start")
    }
}

fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).collect::<Vec<_>>();
    // Where CI installs it.
    let installed = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/nats/bin");
    let mut found = folders.into_iter().chain([installed]).map(|path| path.join("nats-server"));
    found.find(|program| program.is_file())
}

/// Runs the role that the command line names. Returns false if it names none.
pub fn run(arguments: &[String]) -> bool {
    match arguments {
        [role, url] if role == "answer_nats" => runtime().block_on(async {
            let client = async_nats::connect(url).await.expect("a NATS server");
            let mut requests = client.subscribe("bare").await.expect("a subscription");
            // A request may have several pieces. As a worker, this answers when it has all of them.
            let mut pieces = Vec::new();
            while let Some(message) = requests.next().await {
                pieces.push(message.payload);
                let Some(reply) = message.reply else { continue };
                for piece in pieces.drain(..) {
                    client.publish(reply.clone(), piece).await.expect("a NATS server");
                }
            }
        }),
        [role, url, server, name] if role == "node" => runtime().block_on(async {
            let node = NatsOptions::new(url, SERVICE, name).sessions(SESSIONS);
            let gateway = Gateway::builder().server(&**server).nats(node);
            gateway.bind().await.expect("a gateway").run(std::future::pending()).await;
        }),
        _ => return false,
    }
    true
}

/// A client of bare NATS, and a process that answers.
struct Bare {
    runtime: Runtime,
    client: async_nats::Client,
    _far: Process,
    _nats: Nats,
}

impl Bare {
    fn start() -> Result<Self, &'static str> {
        let (nats, runtime) = (Nats::start()?, runtime());
        let far = start(&["answer_nats", &nats.url]);
        let client = runtime.block_on(async {
            let client = async_nats::connect(&nats.url).await.expect("a NATS server");
            while client.request("bare", "".into()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            client
        });
        Ok(Self { runtime, client, _far: far, _nats: nats })
    }

    fn latencies(&self, calls: usize) -> Vec<Duration> {
        let text = text();
        self.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..calls {
                let start = Instant::now();
                self.client.request("bare", text.clone().into()).await.expect("an answer");
                times.push(start.elapsed());
            }
            times
        })
    }

    /// Sends requests of so many bytes in pieces, and gets them back.
    fn exchanges(&self, bytes: usize, times: usize) -> Vec<Duration> {
        let body = bytes::Bytes::from(vec![b'x'; bytes]);
        self.runtime.block_on(async {
            let inbox = self.client.new_inbox();
            let mut answers = self.client.subscribe(inbox.clone()).await.expect("a subscription");
            let mut all = Vec::new();
            for _ in 0..times {
                let start = Instant::now();
                let (mut rest, mut pieces) = (body.clone(), bytes / PIECE);
                while pieces > 1 {
                    let publish = self.client.publish("bare", rest.split_to(PIECE));
                    publish.await.expect("a NATS server");
                    pieces -= 1;
                }
                let publish = self.client.publish_with_reply("bare", inbox.clone(), rest);
                publish.await.expect("a NATS server");
                let mut received = 0;
                while received < bytes {
                    received += answers.next().await.expect("an answer").payload.len();
                }
                all.push(start.elapsed());
            }
            all
        })
    }
}

/// Nodes with a server each, and a client.
struct Nodes {
    client: FarClient,
    _nodes: Vec<(Process, ServerHandle)>,
    _nats: Nats,
    _folder: tempfile::TempDir,
}

impl Nodes {
    fn start(count: usize, sessions: usize) -> Result<Self, &'static str> {
        let (nats, folder) = (Nats::start()?, tempfile::tempdir().expect("a folder"));
        let nodes = (0..count).map(|number| {
            let name = format!("node-{number}");
            let address = format!("unix:{}", folder.path().join(&name).display());
            let server = Server::spawn_with("listening", &address).expect("a server");
            (start(&["node", &nats.url, &address, &name]), server)
        });
        let nodes = nodes.collect();
        let client = Client::builder().address(format!("{}/{SERVICE}", nats.url));
        let client = FarClient::new(client.max_workers(sessions));
        Ok(Self { client, _nodes: nodes, _nats: nats, _folder: folder })
    }

    /// Calls that sleep, with as many on their way as all nodes have sessions.
    fn rate(&self, calls: usize, sessions: usize) -> f64 {
        let all = |calls: usize| {
            self.client.runtime.block_on(async {
                let calls = (0..calls).map(|_| self.client.client.call::<()>("sleep", ()));
                let mut running = futures_util::stream::iter(calls).buffer_unordered(sessions);
                while let Some(answer) = running.next().await {
                    answer.expect("an answer");
                }
            });
        };
        // Until all sessions are there.
        all(20 * sessions);
        let start = Instant::now();
        all(calls);
        calls as f64 / start.elapsed().as_secs_f64()
    }
}

/// Calls of 64 bytes, one after the other.
pub fn latency(name: &str, calls: usize) -> Sample {
    let times = match name {
        "taskfork nats" => Nodes::start(1, 1).map(|nodes| nodes.client.latencies(calls)),
        "floor nats" => Bare::start().map(|bare| bare.latencies(calls)),
        _ => Err("not known"),
    };
    times.map_or_else(Sample::failed, |mut times| Sample::times(times.split_off(calls / 4)))
}

/// The rate in MB/s of `bytes` bytes there and back, the median of the last exchanges.
pub fn payload(name: &str, bytes: usize) -> Sample {
    const EXCHANGES: usize = 7;
    let times = match name {
        "taskfork nats" => Nodes::start(1, 1).map(|nodes| nodes.client.exchanges(bytes, EXCHANGES)),
        "floor nats" => Bare::start().map(|bare| bare.exchanges(bytes, EXCHANGES)),
        _ => Err("not known"),
    };
    let rate = |mut times: Vec<Duration>| {
        let mut times = times.split_off(2);
        times.sort();
        Sample::of(2.0 * bytes as f64 / times[times.len() / 2].as_secs_f64() / 1e6)
    };
    times.map_or_else(Sample::failed, rate)
}

/// Calls that sleep, on one node or on three.
pub fn nodes(name: &str, calls: usize) -> Sample {
    let count = match name {
        "taskfork on 1 node" => 1,
        "taskfork on 3 nodes" => 3,
        _ => return Sample::failed("not known"),
    };
    let sessions = count * SESSIONS;
    // So that both take as long.
    let rate = Nodes::start(count, sessions).map(|nodes| nodes.rate(calls * count, sessions));
    rate.map_or_else(Sample::failed, Sample::of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_role_is_not_run() {
        assert!(!run(&["answer_tls".to_owned(), "url".to_owned()]));
        assert!(!run(&["node".to_owned()]));
    }
}
