//! The counters of a client, and the statistics that are made of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::metrics::{Metrics, Stopwatch};
use crate::client::pool::Counts;
use crate::client::proto::disconnect::Disconnect;
#[cfg(feature = "nats")]
use crate::client::proto::disconnect::PathEnd;
use crate::error::End;
use crate::sync::lock;

/// Numbers of workers and checkouts, and totals since the client was built. See
/// [`Client::stats`](crate::Client::stats).
///
/// ```no_run
/// # fn example(client: taskfork::Client) {
/// let stats = client.stats();
/// let mean = stats.seconds_waited / stats.checkouts.max(1) as f64;
/// println!("{} wait; a checkout took {mean} seconds to get a worker", stats.queued);
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stats {
    /// Workers that no checkout holds.
    pub idle: usize,
    /// Workers that a checkout holds.
    pub busy: usize,
    /// Attempts to connect in progress.
    pub connecting: usize,
    /// Checkouts that wait for a worker now.
    pub queued: usize,
    /// Checkouts that got a worker.
    pub checkouts: u64,
    /// The sum of the times that checkouts waited for their workers, in seconds.
    pub seconds_waited: f64,
    /// The longest of these times, in seconds.
    pub longest_wait: f64,
    /// Checkouts that failed because the queue was full.
    pub refused: u64,
    /// Calls that workers answered, with a result or an error.
    pub calls: u64,
    /// Workers that were connected.
    pub connected: u64,
    /// Workers that were lost, by cause:
    ///
    /// * `finished`: it exited with status 0, because its server ended it or it reached a limit
    /// * `exited`: it exited with another status
    /// * `signaled`: a signal ended it
    /// * `killed`: its server killed it
    /// * `timed_out`: a call's time ran out
    /// * `cancelled`: a call ran that nobody awaited any more
    /// * `closed`: the connection ended without a notice
    /// * `node_lost`: its node at NATS was silent for too long
    /// * `protocol`: the worker broke the protocol
    pub deaths: BTreeMap<String, u64>,
    /// Why the last attempt to connect failed. `None` once an attempt has succeeded.
    #[serde(default)]
    pub unreachable: Option<String>,
}

/// Counts events. Reading it for [`Stats`] takes no snapshot: the numbers may be of slightly
/// different times.
#[derive(Debug)]
pub(crate) struct Counters {
    checkouts: AtomicU64,
    nanoseconds_waited: AtomicU64,
    longest_wait: AtomicU64,
    refused: AtomicU64,
    calls: AtomicU64,
    connected: AtomicU64,
    deaths: Mutex<BTreeMap<&'static str, u64>>,
    metrics: Metrics,
}

impl Counters {
    pub(crate) fn new(client: &str) -> Self {
        Self {
            checkouts: AtomicU64::new(0),
            nanoseconds_waited: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            deaths: Mutex::default(),
            metrics: Metrics::new(client),
        }
    }

    /// Counts a checkout that has got its first worker.
    pub(crate) fn count_checkout(&self, waited: Duration) {
        self.checkouts.fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds_waited.fetch_add(nanoseconds, Relaxed);
        self.longest_wait.fetch_max(nanoseconds, Relaxed);
        self.metrics.waited(waited);
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
        self.metrics.refused();
    }

    pub(crate) fn count_answer(&self, method: Option<&str>, began: &Stopwatch, failed: bool) {
        self.calls.fetch_add(1, Relaxed);
        self.metrics.answered(method, began, failed);
    }

    pub(crate) fn count_connected(&self) {
        self.connected.fetch_add(1, Relaxed);
        self.metrics.connected();
    }

    pub(crate) fn count_death(&self, cause: &'static str) {
        *lock(&self.deaths).entry(cause).or_default() += 1;
        self.metrics.died(cause);
    }

    /// Updates the gauges of the feature `metrics`. Returns after what time to do so again, if at
    /// all.
    pub(crate) fn publish_gauges(&self, counts: Counts) -> Option<Duration> {
        self.metrics.publish_gauges(counts)
    }

    pub(crate) fn stats(&self, counts: Counts, unreachable: Option<String>) -> Stats {
        let seconds = |nanoseconds: &AtomicU64| nanoseconds.load(Relaxed) as f64 / 1e9;
        let deaths = lock(&self.deaths);
        Stats {
            idle: counts.idle,
            busy: counts.busy,
            connecting: counts.connecting,
            queued: counts.queued,
            checkouts: self.checkouts.load(Relaxed),
            seconds_waited: seconds(&self.nanoseconds_waited),
            longest_wait: seconds(&self.longest_wait),
            refused: self.refused.load(Relaxed),
            calls: self.calls.load(Relaxed),
            connected: self.connected.load(Relaxed),
            deaths: deaths.iter().map(|(&cause, &count)| (cause.to_owned(), count)).collect(),
            unreachable,
        }
    }
}

/// Causes that the client itself decides.
pub(crate) const CANCELLED: &str = "cancelled";
pub(crate) const TIMED_OUT: &str = "timed_out";

/// The label under which the end of a connection is counted.
pub(crate) fn death_cause(disconnect: &Disconnect) -> &'static str {
    match disconnect {
        Disconnect::Late => TIMED_OUT,
        Disconnect::Notified(notice) if notice.timed_out => TIMED_OUT,
        Disconnect::Notified(notice) if notice.reason.is_some() => "killed",
        Disconnect::Notified(notice) => match notice.end {
            End::Exited(0) => "finished",
            End::Exited(_) => "exited",
            End::Signaled(_) => "signaled",
            End::Unknown => "closed",
        },
        Disconnect::Closed | Disconnect::Unread | Disconnect::RuntimeShutDown => "closed",
        #[cfg(feature = "nats")]
        Disconnect::Path(PathEnd::NodeLost { .. }) => "node_lost",
        #[cfg(feature = "nats")]
        Disconnect::Path(PathEnd::Closed(_)) => "closed",
        Disconnect::Protocol(_) | Disconnect::NoHandshake(_) => "protocol",
    }
}
