//! Asking servers and services once a second.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use taskfork::server::ServerStatus;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::state::{State, now};

/// How often a server is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// A server that has not answered for so long is shown as gone. Its answer is awaited nevertheless, so that a server which
/// hangs has one request at a time. A server takes three seconds for stacks, so this is longer.
const SILENCE: Duration = Duration::from_secs(5);

/// How often in a row asking a server must fail before it is shown as gone, and how soon it is asked again before that.
const FAILURES: u32 = 3;
const RETRY: Duration = Duration::from_millis(100);

/// Asks the server at this status socket again and again. Does not return.
pub(crate) async fn server(state: Arc<State>, id: String, path: PathBuf) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failures = 0;
    loop {
        match failures {
            1..FAILURES => sleep(RETRY).await,
            _ => drop(ticks.tick().await),
        }
        let request = state.with_pool(&id, None, |pool| pool.next_request());
        let (after, sample) = request.unwrap_or_default();
        let sample = sample.filter(|_| state.options.samples);
        let asked = path.clone();
        // It returns after 10 seconds at the latest.
        let read = move || ServerStatus::read_details(asked, after, sample);
        let mut answer = tokio::task::spawn_blocking(read);
        let answered = match timeout(SILENCE, &mut answer).await {
            Ok(answered) => answered,
            Err(_) => {
                let what = format!("{} has not answered for {SILENCE:?}", path.display());
                state.with_pool(&id, None, |pool| pool.handle_failure(&what, now()));
                answer.await
            }
        };
        match answered.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(status) => {
                failures = 0;
                state.with_pool(&id, None, |pool| pool.handle_answer(status, now()));
            }
            Err(error) => {
                failures = if is_gone(&error) { FAILURES } else { failures.saturating_add(1) };
                if failures >= FAILURES {
                    fail(&state, &id, &path, &error);
                }
            }
        }
    }
}

/// Whether nobody listens at the socket. Other errors may pass.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn fail(state: &State, id: &str, path: &Path, error: &io::Error) {
    let what = format!("cannot read {}: {error}", path.display());
    state.with_pool(id, None, |pool| pool.handle_failure(&what, now()));
}

#[cfg(feature = "nats")]
pub(crate) use fleet::fleet;

#[cfg(feature = "nats")]
mod fleet {
    use std::collections::{BTreeMap, BTreeSet, HashMap};
    use std::sync::Arc;
    use std::time::Duration;

    use taskfork::server::ServerStatus;
    use taskfork_nats::{Fleet, NodeStatus, Recent};
    use tokio::task::{Id, JoinSet};
    use tokio::time::{Instant, MissedTickBehavior, interval};

    use crate::model::Node;
    use crate::pool::RecentAnswer;
    use crate::questions::Questions;
    use crate::sanitize::{MAX_NAME, bounded};
    use crate::state::{State, now};

    /// How often the nodes are asked, all at once.
    const INTERVAL: Duration = Duration::from_secs(2);

    /// How often a node may be silent before it is shown as gone: an answer can be late.
    const SILENT: u32 = 2;

    const MAX_LABELS: usize = 32;

    /// How many nodes are asked at a time for what happened lately.
    const MAX_ASKED: usize = 16;

    /// Asks the nodes of a service again and again. Does not return.
    pub(crate) async fn fleet(state: Arc<State>, service: String, fleet: Fleet) {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent = BTreeMap::<String, u32>::new();
        let mut asking = Asking::new();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = asking.wait_for_one() => {
                    asking.ask(&state, &service, &fleet);
                    continue;
                }
            }
            let (nodes, why) = match fleet.status(true).await {
                Ok(nodes) => (nodes, "the node does not answer".to_owned()),
                Err(error) => (Vec::new(), error.to_string()),
            };
            let answered: BTreeSet<String> =
                nodes.iter().map(|node| id_of(&service, node)).collect();
            nodes.into_iter().for_each(|node| handle_node(&state, &service, node));
            asking.ask(&state, &service, &fleet);
            silent.retain(|id, _| !answered.contains(id));
            for pool in state.pools().iter_mut() {
                if pool.fleet() != Some(&*service) || answered.contains(pool.id()) {
                    continue;
                }
                let times = silent.entry(pool.id().to_owned()).or_default();
                *times += 1;
                if *times >= SILENT {
                    pool.handle_failure(&why, now());
                }
            }
            silent.retain(|id, _| state.pools().iter().any(|pool| pool.id() == id));
        }
    }

    /// Questions to nodes for their new deaths, and for the stack of a call that hangs. Nothing waits for the answers.
    struct Asking {
        questions: Questions,
        /// Each returns whether the answer had something new. Dropping this ends them.
        pending: JoinSet<bool>,
        /// The ids of the pools, by the tasks: one that has panicked returns none.
        ids: HashMap<Id, String>,
    }

    impl Asking {
        fn new() -> Self {
            let (questions, pending) = (Questions::default(), JoinSet::new());
            Self { questions, pending, ids: HashMap::new() }
        }

        /// Waits until a question has ended. Does not return if there is none.
        async fn wait_for_one(&mut self) {
            let (task, has_news) = match self.pending.join_next_with_id().await {
                Some(Ok(ended)) => ended,
                Some(Err(error)) => (error.id(), false),
                None => std::future::pending().await,
            };
            if let Some(id) = self.ids.remove(&task) {
                self.questions.end(&id, has_news, Instant::now());
            }
        }

        /// Asks those nodes that may be asked and have something to tell.
        fn ask(&mut self, state: &Arc<State>, service: &str, fleet: &Fleet) {
            let now = Instant::now();
            let mut pools = state.pools();
            let of_service = || pools.iter().filter(|pool| pool.fleet() == Some(service));
            let ids: BTreeSet<String> = of_service().map(|pool| pool.id().to_owned()).collect();
            self.questions.retain(|id| ids.contains(id));
            for id in self.questions.due(ids.into_iter(), now) {
                if self.pending.len() >= MAX_ASKED {
                    break;
                }
                let Some(pool) = pools.iter_mut().find(|pool| pool.id() == id) else { continue };
                let node = id.strip_prefix(service).and_then(|it| it.strip_prefix('/'));
                let Some(node) = node.map(str::to_owned) else { continue };
                let Some((after, sample)) = pool.next_recent(state.options.samples) else {
                    continue;
                };
                self.questions.begin(&id, now);
                let recent = Recent::new(after, sample);
                let asking = ask_node(Arc::clone(state), fleet.clone(), id.clone(), node, recent);
                self.ids.insert(self.pending.spawn(asking).id(), id);
            }
        }
    }

    /// Asks one node. Returns whether its answer had something new.
    async fn ask_node(
        state: Arc<State>,
        fleet: Fleet,
        id: String,
        node: String,
        recent: Recent,
    ) -> bool {
        let Ok(Some(answer)) = fleet.node_recent(&node, recent).await else { return false };
        let Ok(answer) = serde_json::from_value::<RecentAnswer>(answer.details) else {
            tracing::debug!("{id} does not tell its deaths");
            return false;
        };
        let mut pools = state.pools();
        pools.iter_mut().find(|pool| pool.id() == id).is_some_and(|pool| pool.handle_recent(answer))
    }

    fn id_of(service: &str, node: &NodeStatus) -> String {
        format!("{service}/{}", bounded(&node.node, MAX_NAME))
    }

    fn handle_node(state: &State, service: &str, node: NodeStatus) {
        let NodeStatus { version, labels, sessions, free, error, .. } = &node;
        let labels = labels.iter().take(MAX_LABELS).map(|label| bounded(label, MAX_NAME)).collect();
        let (sessions, free) = (*sessions, *free);
        let server = node.details.get("server").cloned();
        let server: Option<ServerStatus> =
            server.and_then(|server| serde_json::from_value(server).ok());
        let all = node.details.get("workers").and_then(serde_json::Value::as_u64).unwrap_or(0);
        let told = server.as_ref().map_or(0, |server| server.workers.len() as u64);
        let left_out = all.saturating_sub(told);
        let version = bounded(version, MAX_NAME);
        let shares_details = server.as_ref().is_some_and(|server| server.share_details);
        let shown = Node { version, labels, sessions, free, left_out, shares_details };
        state.with_pool(&id_of(service, &node), Some(service), |pool| {
            pool.set_node(shown);
            match (error, server) {
                (Some(error), _) => pool.handle_failure(error, now()),
                (None, Some(server)) => pool.handle_answer(server, now()),
                (None, None) => {
                    pool.handle_failure("the node does not tell what its workers do", now());
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::state::Options;

    #[tokio::test]
    async fn one_failed_answer_is_tried_again_and_many_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.status");
        let listener = UnixListener::bind(&path).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&asked);
        // Each second answer is none, until all are.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, number) = (stream.unwrap(), counter.fetch_add(1, SeqCst));
                let _ = stream.read_to_end(&mut Vec::new());
                if number % 2 == 0 && number < 4 {
                    let status = r#"{"name":"n","pid":1,"seconds":1.0,"accepting":true,"max_workers":1,
                        "forked":0,"refused":0,"deaths":{},"workers":[]}"#;
                    let _ = stream.write_all(status.as_bytes());
                }
            }
        });
        let options = Options { samples: false, ..Options::default() };
        let state = Arc::new(State::new(options, Vec::new()));
        tokio::spawn(server(Arc::clone(&state), "p".to_owned(), path));
        let shown = || state.with_pool("p", None, |pool| (pool.is_up(), pool.since())).unwrap();
        let until = async |count: u32| {
            while asked.load(SeqCst) < count {
                sleep(Duration::from_millis(10)).await;
            }
        };
        until(2).await;
        let since = shown().1;
        until(4).await;
        assert_eq!(shown(), (true, since), "one failure changes nothing");
        until(7).await;
        while shown().0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
}
