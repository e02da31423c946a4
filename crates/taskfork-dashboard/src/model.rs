//! What `/api/status` and `/api/events` send, as JSON. Times are in milliseconds since 1970, on the clock of the
//! dashboard's machine; durations are in seconds, sizes in bytes.
//!
//! The event `full` is a [`Status`]. The event `update` is one too, with these differences: `points` has only the points
//! since the last event; `workers` has only those that have changed, and `gone` those that have ended; `recent_deaths` has
//! only new ones; `methods` and `slow` are there only if they have changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// All servers and nodes.
///
/// ```
/// let text = r#"{"now": 1.0, "actions": false, "slow_seconds": 1.0, "pools": []}"#;
/// let status: taskfork_dashboard::model::Status = serde_json::from_str(text)?;
/// assert!(status.pools.is_empty());
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The time.
    pub now: f64,
    /// Whether workers can be dismissed and killed.
    pub actions: bool,
    /// A call that runs for longer than this is slow.
    pub slow_seconds: f64,
    /// The servers in the order in which they were given, then the nodes.
    pub pools: Vec<Pool>,
}

/// A server, or the server of a node.
///
/// ```
/// let pool = taskfork_dashboard::model::Pool::default();
/// assert!(pool.workers.is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Pool {
    /// The name under which it was given, or `SERVICE/NODE`.
    pub id: String,
    /// The service, for a node.
    pub fleet: Option<String>,
    /// The node, for a node.
    pub node: Option<Node>,
    /// `serving`, `stopping` (it accepts no connections), `gone`, or `unknown` before the first answer.
    pub state: String,
    /// Since when it is in this state.
    pub since: f64,
    /// Why it is gone, or what is wrong.
    pub error: Option<String>,
    /// The name of the server.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started: f64,
    /// How often another process has taken its place since the dashboard started.
    pub restarts: u64,
    /// The maximum number of workers.
    pub max_workers: usize,
    /// The number of workers by state.
    pub states: BTreeMap<String, usize>,
    /// The checkouts that wait for a worker, as clients have reported them.
    pub queued: u64,
    /// The connections that wait for a worker.
    pub waiting: usize,
    /// Those that have waited longest.
    pub waiting_clients: Vec<WaitingClient>,
    /// The clients that have workers, with the most waiting checkouts first, at most 50.
    pub clients: Vec<Client>,
    /// How many workers were forked.
    pub forked: u64,
    /// How many connections were refused.
    pub refused: u64,
    /// The workers that have ended, by cause.
    pub deaths: BTreeMap<String, u64>,
    /// Deaths by cause in the last hour, as far as this dashboard has seen them, without workers that left in order, such as
    /// those that were replaced.
    pub deaths_last_hour: BTreeMap<String, u64>,
    /// The memory of all workers. `None` if it is not known, for example because a node's message has no room for all.
    pub memory: Option<u64>,
    /// The processor time that all workers use, in cores. `None` if it is not known.
    pub cpu: Option<f64>,
    /// The last minute by method.
    pub methods: Option<Vec<Method>>,
    /// The curves.
    pub points: Vec<Point>,
    /// The workers, by number.
    pub workers: Vec<Worker>,
    /// In an update: the numbers of workers that have ended.
    pub gone: Vec<u64>,
    /// The last deaths, oldest first.
    pub recent_deaths: Vec<Death>,
    /// Slow calls: those that run, and the last ones that have ended.
    pub slow: Option<Vec<SlowCall>>,
}

/// A node of a service.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Node::default().free, 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// The version of its service.
    pub version: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// How many sessions it has at most.
    pub sessions: u64,
    /// For how many more it has room.
    pub free: u64,
    /// How many of its workers are not listed, because its message has no room for them.
    pub left_out: u64,
    /// Whether its server shares details: otherwise its deaths have neither standard error nor stacks, and its slow calls no
    /// stacks.
    #[serde(default)]
    pub shares_details: bool,
}

/// A connection that waits for a worker.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::WaitingClient::default().since, 0.0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaitingClient {
    /// Who it is.
    pub client: String,
    /// Since when it waits.
    pub since: f64,
}

/// A client with workers.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Client::default().workers, 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Client {
    /// Who it is.
    pub client: String,
    /// How many workers it has.
    pub workers: usize,
    /// How many of them are busy.
    pub busy: usize,
    /// How many of its checkouts wait.
    pub queued: u64,
}

/// The calls of a method in the last minute.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Method::default().calls, 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Method {
    /// Its name.
    pub method: String,
    /// The calls that were answered.
    pub calls: u64,
    /// Those that were answered with an error.
    pub errors: u64,
    /// The mean time.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// The time that 99 % of the calls did not exceed.
    pub p99: f64,
}

/// A point of the curves. Missing values were not known.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Point::default().calls, None);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Point {
    /// The time.
    pub at: f64,
    /// Calls per second.
    pub calls: Option<f32>,
    /// Errors per second.
    pub errors: Option<f32>,
    /// The median of the times of calls in the last 10 seconds.
    pub p50: Option<f32>,
    /// The time that 90 % of them did not exceed.
    pub p90: Option<f32>,
    /// The time that 99 % of them did not exceed.
    pub p99: Option<f32>,
    /// Checkouts and connections that wait.
    pub queue: Option<f32>,
    /// Busy workers.
    pub busy: Option<f32>,
    /// All workers.
    pub workers: Option<f32>,
    /// The memory of all workers.
    pub memory: Option<f32>,
}

/// A worker.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Worker::default().number, 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Worker {
    /// Its number.
    pub number: u64,
    /// Its process id.
    pub pid: u32,
    /// What it does.
    pub state: String,
    /// Since when.
    pub since: f64,
    /// Its current or last method.
    pub method: String,
    /// How far its call has got.
    pub progress: Option<Progress>,
    /// The calls that it has begun.
    pub calls: u64,
    /// Its memory.
    pub memory: Option<u64>,
    /// The processor time that it uses, in percent of a core.
    pub cpu: Option<f32>,
    /// Who is at the other end of its connection.
    pub client: String,
}

/// How far a call has got.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Progress::default().total, None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// How much is done.
    pub done: u64,
    /// How much there is in all.
    pub total: Option<u64>,
    /// What is counted.
    pub what: String,
}

/// The death of a worker.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::Death::default().pid, 0);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct Death {
    /// When.
    pub at: f64,
    /// The number of the worker.
    pub worker: u64,
    /// Its process id.
    pub pid: u32,
    /// The cause, as the server counts it.
    pub cause: String,
    /// How it ended.
    pub text: String,
    /// The method that ran.
    pub method: Option<String>,
    /// Who was at the other end of its connection.
    pub client: String,
    /// The end of its standard error.
    pub stderr: Option<String>,
    /// Where it hung.
    pub stack: Option<String>,
}

/// A call that has run for longer than the threshold. The dashboard has seen it running.
///
/// ```
/// assert_eq!(taskfork_dashboard::model::SlowCall::default().ended, None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(default)]
pub struct SlowCall {
    /// The number of the worker.
    pub worker: u64,
    /// Its process id.
    pub pid: u32,
    /// The number of the call among those of the worker.
    pub call: u64,
    /// The method.
    pub method: String,
    /// Who called.
    pub client: String,
    /// When it began.
    pub began: f64,
    /// When it was seen to have ended. `None` while it runs.
    pub ended: Option<f64>,
    /// Where it was when it was looked at.
    pub stack: Option<String>,
}
