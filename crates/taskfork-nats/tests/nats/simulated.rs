//! Many nodes in one process, over echo services in memory, and clients that load them while some nodes die.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use taskfork_nats::{Error, Fleet, FleetOptions, Node, Session, SessionError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::server::NatsServer;

const SERVICE: &str = "simulated";

/// Longer than anything takes, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

/// How many nodes start at a time.
const STARTS: usize = 50;

/// What is simulated.
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    /// How many of the nodes are killed, at random times.
    pub(crate) killed: usize,
    /// For how many sessions each node has room.
    pub(crate) room: usize,
    /// How many tasks acquire sessions, and over how many connections.
    pub(crate) clients: usize,
    pub(crate) connections: usize,
    pub(crate) acquisitions: usize,
    /// How long a session is kept, on average.
    pub(crate) hold: Duration,
    pub(crate) heartbeat: Duration,
}

/// What has happened.
#[derive(Default)]
pub(crate) struct Outcome {
    /// How many sessions each node has had at a time that was not killed, on average, while clients acquired.
    pub(crate) load: BTreeMap<String, f64>,
    /// Sessions with their own right answer.
    pub(crate) right: usize,
    /// Sessions with an error that says that a killed node is lost.
    pub(crate) lost: usize,
    /// Everything else.
    pub(crate) wrong: Vec<String>,
    /// How long acquisitions took, and two round trips of NATS itself at the same time.
    pub(crate) acquired: Vec<Duration>,
    pub(crate) bare: Vec<Duration>,
    last: Option<Instant>,
    /// From the first acquisition to the last one. Afterwards some clients wait until a node is lost.
    pub(crate) took: Duration,
}

impl Plan {
    pub(crate) async fn run(self, server: &NatsServer) -> Outcome {
        let plan = Arc::new(self);
        let mut random = Random(plan.seed);
        let (nodes, doomed) = plan.start_nodes(server).await;
        let doomed_names: Vec<String> = doomed.iter().map(|doomed| doomed.name.clone()).collect();
        let mut kills: Vec<(usize, Doomed)> = doomed
            .into_iter()
            .map(|doomed| (random.below(plan.acquisitions * 3 / 4), doomed))
            .collect();
        // The next one is last.
        kills.sort_by_key(|(when, _)| std::cmp::Reverse(*when));

        let shared = Arc::new(Shared {
            outcome: Mutex::default(),
            begun: AtomicUsize::new(0),
            kills: Mutex::new(kills),
            doomed: doomed_names,
        });
        let bare = measure_bare(server, Arc::clone(&shared), plan.acquisitions).await;
        let loads = measure_load(nodes, Arc::clone(&shared), plan.room, plan.acquisitions);
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for connection in 0..plan.connections {
            let options = FleetOptions::new().heartbeat(plan.heartbeat).answer_timeout(LONG);
            let fleet = Fleet::connect(&server.url(), SERVICE, options).await.unwrap();
            for client in (connection..plan.clients).step_by(plan.connections) {
                let (plan, fleet, shared) = (Arc::clone(&plan), fleet.clone(), Arc::clone(&shared));
                let random = Random(random.next() ^ client as u64);
                clients.spawn(plan.client(fleet, shared, random));
            }
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        let bare = bare.await.unwrap();
        let (nodes, load) = loads.await.unwrap();
        assert!(shared.kills.lock().unwrap().is_empty(), "not all nodes were killed");
        // Nothing is left: each node that lives has room for all again.
        for node in &nodes {
            let free = tokio::time::timeout(LONG, node.wait_for_free(plan.room)).await;
            assert!(free.is_ok(), "sessions are left at {}: room {}", node.name(), node.free());
        }
        let mut outcome = std::mem::take(&mut *shared.outcome.lock().unwrap());
        (outcome.bare, outcome.load) = (bare, load);
        outcome.took = outcome.last.map_or(Duration::ZERO, |last| last - began);
        outcome
    }

    async fn start_nodes(&self, server: &NatsServer) -> (Vec<Node>, Vec<Doomed>) {
        let (url, room, heartbeat) = (server.url(), self.room, self.heartbeat);
        let doomed = stream::iter(0..self.killed)
            .map(|n| Doomed::start(format!("doomed-{n}"), url.clone(), room, heartbeat))
            .buffer_unordered(STARTS);
        let nodes = stream::iter(self.killed..self.nodes)
            .map(|n| start(format!("node-{n}"), url.clone(), room, heartbeat))
            .buffer_unordered(STARTS);
        (nodes.collect().await, doomed.collect().await)
    }

    async fn client(self: Arc<Self>, fleet: Fleet, shared: Arc<Shared>, mut random: Random) {
        // Not all at once.
        tokio::time::sleep(self.hold.mul_f64(random.exponential())).await;
        loop {
            let number = shared.begun.fetch_add(1, Ordering::Relaxed);
            if number >= self.acquisitions {
                return;
            }
            shared.kill(number);
            let began = Instant::now();
            let session = match fleet.acquire_within(&[], None, LONG).await {
                Ok(session) => session,
                Err(error) => {
                    shared.note(|outcome| outcome.wrong.push(describe(&error)));
                    continue;
                }
            };
            let now = Instant::now();
            let node = session.peer().to_owned();
            let hold = self.hold.mul_f64(random.exponential());
            let bytes = random.bytes(number);
            let result = exchange(session, &bytes, hold).await;
            shared.note(|outcome| {
                outcome.acquired.push(now - began);
                outcome.last = outcome.last.max(Some(now));
                match result {
                    Ok(answer) if answer == bytes => outcome.right += 1,
                    Ok(_) => {
                        outcome.wrong.push(format!("{node}: the answer to {number} is not its own"))
                    }
                    Err(error) if shared.doomed.contains(&node) && is_lost(&error) => {
                        outcome.lost += 1
                    }
                    Err(error) => outcome.wrong.push(format!("{node}: {error}")),
                }
            });
        }
    }
}

fn describe(error: &Error) -> String {
    format!("no session: {error}")
}

/// Whether the error says that the node is gone.
fn is_lost(error: &io::Error) -> bool {
    let source = error.get_ref().and_then(|source| source.downcast_ref::<SessionError>());
    matches!(source, Some(SessionError::NodeLost { .. }))
}

/// Sends bytes, keeps the session for a while, and reads as many bytes.
async fn exchange(mut session: Session, bytes: &[u8], hold: Duration) -> io::Result<Vec<u8>> {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut answer = vec![0; bytes.len()];
    let (first_answer, second_answer) = answer.split_at_mut(first.len());
    session.write_all(first).await?;
    session.read_exact(first_answer).await?;
    tokio::time::sleep(hold).await;
    session.write_all(second).await?;
    session.read_exact(second_answer).await?;
    Ok(answer)
}

struct Shared {
    outcome: Mutex<Outcome>,
    begun: AtomicUsize,
    /// Before which acquisition each doomed node is killed; the next one is last.
    kills: Mutex<Vec<(usize, Doomed)>>,
    doomed: Vec<String>,
}

impl Shared {
    fn kill(&self, number: usize) {
        let mut kills = self.kills.lock().unwrap();
        while kills.last().is_some_and(|(when, _)| *when <= number) {
            drop(kills.pop());
        }
    }

    fn note(&self, change: impl FnOnce(&mut Outcome)) {
        change(&mut self.outcome.lock().unwrap());
    }
}

async fn start(name: String, url: String, room: usize, heartbeat: Duration) -> Node {
    let connect = |_| async {
        let (node, service) = UnixStream::pair()?;
        tokio::spawn(async move {
            let (mut reader, mut writer) = split(service);
            let _ = copy(&mut reader, &mut writer).await;
            let _ = writer.shutdown().await;
        });
        Ok(node)
    };
    let builder = Node::builder(SERVICE, &name, connect).sessions(room).heartbeat(heartbeat);
    builder.start(&url).await.unwrap()
}

/// A node with a runtime and a thread of its own. Dropping it ends all its tasks at once, so that none can say
/// anything.
struct Doomed {
    name: String,
    _kill: oneshot::Sender<()>,
}

impl Doomed {
    async fn start(name: String, url: String, room: usize, heartbeat: Duration) -> Self {
        let (kill, killed) = oneshot::channel::<()>();
        let (ready, started) = oneshot::channel();
        let own = name.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let _node = start(own, url, room, heartbeat).await;
                let _ = ready.send(());
                let _ = killed.await;
            });
            // No task of the runtime is polled again, so nothing that is dropped here can be written.
            drop(runtime);
        });
        started.await.unwrap();
        Self { name, _kill: kill }
    }
}

/// Measures two round trips of NATS, again and again, until the last acquisition has begun.
async fn measure_bare(
    server: &NatsServer,
    shared: Arc<Shared>,
    acquisitions: usize,
) -> JoinHandle<Vec<Duration>> {
    let (client, responder) = (server.client().await, server.client().await);
    let mut requests = responder.subscribe("bare").await.unwrap();
    responder.flush().await.unwrap();
    let respond = tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            responder.publish(message.reply.unwrap(), message.payload).await.unwrap();
        }
    });
    // A responder that has been heard once is known to the server.
    while client.request("bare", "".into()).await.is_err() {}
    tokio::spawn(async move {
        let mut times = Vec::new();
        while shared.begun.load(Ordering::Relaxed) < acquisitions {
            let began = Instant::now();
            for _ in 0..2 {
                client.request("bare", "0123456789".into()).await.unwrap();
            }
            times.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        respond.abort();
        times
    })
}

/// Looks at the nodes again and again, until the last acquisition has begun. It does not count what was before a
/// tenth of them.
fn measure_load(
    nodes: Vec<Node>,
    shared: Arc<Shared>,
    room: usize,
    acquisitions: usize,
) -> JoinHandle<(Vec<Node>, BTreeMap<String, f64>)> {
    tokio::spawn(async move {
        let (mut sums, mut looks) = (vec![0; nodes.len()], 0usize);
        loop {
            let begun = shared.begun.load(Ordering::Relaxed);
            if begun >= acquisitions {
                break;
            }
            if begun >= acquisitions / 10 {
                looks += 1;
                for (sum, node) in sums.iter_mut().zip(&nodes) {
                    *sum += room - node.free();
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let loads = nodes.iter().zip(sums);
        let loads = loads.map(|(node, sum)| (node.name().into(), sum as f64 / looks.max(1) as f64));
        let loads = loads.collect();
        (nodes, loads)
    })
}

impl Outcome {
    /// The mean load of nodes, and how far loads are from even: the smallest, the largest, and the standard
    /// deviation, each by the mean.
    pub(crate) fn loads(&self) -> (f64, [f64; 3]) {
        let count = self.load.len() as f64;
        let mean = self.load.values().sum::<f64>() / count;
        let variance = self.load.values().map(|load| (load - mean).powi(2)).sum::<f64>() / count;
        let ends = self
            .load
            .values()
            .fold((f64::MAX, 0f64), |(least, most), load| (least.min(*load), most.max(*load)));
        (mean, [ends.0 / mean, ends.1 / mean, variance.sqrt() / mean])
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// With a mean of 1.
    fn exponential(&mut self) -> f64 {
        let uniform = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        -(1.0 - uniform).ln()
    }

    /// Bytes that begin with a number, and that no other session has.
    fn bytes(&mut self, number: usize) -> Vec<u8> {
        let mut bytes = number.to_le_bytes().to_vec();
        let length = 16 + self.below(2000);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes
    }
}
