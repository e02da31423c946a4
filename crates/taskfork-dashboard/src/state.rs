//! The state that the tasks share: all pools, and the events for pages that are open.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Semaphore, broadcast};

use crate::model::{Pool, Status};
use crate::pool::PoolState;

/// How often pages are told what has changed.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many updates wait for a page that reads slowly. It gets everything again if it has missed one.
const KEPT_UPDATES: usize = 4;

/// The most servers and nodes.
pub(crate) const MAX_POOLS: usize = 256;

/// For how long a node is shown that has not answered, in milliseconds.
const FORGET_NODES: f64 = 15.0 * 60.0 * 1000.0;

/// The most pages that are open at a time. Other connections are left for probes and metrics.
pub(crate) const MAX_STREAMS: usize = 32;

/// The options that requests need.
pub(crate) struct Options {
    pub(crate) token: Option<String>,
    pub(crate) actions: bool,
    pub(crate) hosts: Vec<String>,
    pub(crate) slow: Duration,
    pub(crate) samples: bool,
}

impl Default for Options {
    fn default() -> Self {
        let slow = Duration::from_secs(1);
        Self { token: None, actions: false, hosts: Vec::new(), slow, samples: true }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { token, actions, hosts, slow, samples } = self;
        // The token is a secret, and this may be logged.
        let token = token.as_ref().map(|_| "…");
        out.debug_struct("Options")
            .field("token", &token)
            .field("actions", actions)
            .field("hosts", hosts)
            .field("slow", slow)
            .field("samples", samples)
            .finish()
    }
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: Options,
    /// The services whose nodes are shown.
    fleets: Vec<String>,
    pools: Mutex<Vec<PoolState>>,
    updates: broadcast::Sender<Arc<str>>,
    /// The event with everything, for all pages that are opened before the next update. It is locked after `pools`.
    full: Mutex<Option<Arc<str>>>,
    pub(crate) streams: Arc<Semaphore>,
    /// It was told that a proxy changes the header `Host`.
    host_warning: Once,
}

/// Milliseconds since 1970.
pub(crate) fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs_f64() * 1000.0).round()
}

impl State {
    pub(crate) fn new(options: Options, fleets: Vec<String>) -> Self {
        let (updates, _) = broadcast::channel(KEPT_UPDATES);
        let streams = Arc::new(Semaphore::new(MAX_STREAMS));
        let (pools, full) = (Mutex::default(), Mutex::default());
        Self { options, fleets, pools, updates, full, streams, host_warning: Once::new() }
    }

    /// Says once that a proxy changes the header `Host`.
    pub(crate) fn warn_of_host(&self) {
        self.host_warning.call_once(|| {
            tracing::warn!(
                "a proxy in front of the dashboard changes the header `Host`: let it pass on the browser's, or actions are \
                 refused, and other sites may be able to read the dashboard (DNS rebinding)"
            );
        });
    }

    /// Whether clients can get workers, and in words. Each server must be ready, and one node of each service: nodes come
    /// and go.
    pub(crate) fn readiness(&self) -> (bool, String) {
        let pools = self.pools();
        let servers = || pools.iter().filter(|pool| pool.fleet().is_none());
        let ready = servers().filter(|pool| pool.is_ready()).count();
        let mut is_ready = ready == servers().count();
        let mut text =
            format!("{ready} of {} servers answer and accept connections\n", servers().count());
        for fleet in &self.fleets {
            let nodes = || pools.iter().filter(|pool| pool.fleet() == Some(fleet));
            let ready = nodes().filter(|pool| pool.is_ready()).count();
            is_ready &= ready > 0;
            // No name: this needs no token.
            text += &format!("{ready} of {} nodes of a service do\n", nodes().count());
        }
        (is_ready, text)
    }

    pub(crate) fn pools(&self) -> MutexGuard<'_, Vec<PoolState>> {
        // What a panicking task has left is as good as what a server has sent.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the pool with this id. A new one is made if there is room.
    pub(crate) fn with_pool<T>(
        &self,
        id: &str,
        fleet: Option<&str>,
        change: impl FnOnce(&mut PoolState) -> T,
    ) -> Option<T> {
        let mut pools = self.pools();
        if let Some(pool) = pools.iter_mut().find(|pool| pool.id() == id) {
            return Some(change(pool));
        }
        if pools.len() >= MAX_POOLS {
            return None;
        }
        let slow = self.options.slow.as_secs_f64();
        let mut pool = PoolState::new(id.to_owned(), fleet.map(str::to_owned), slow, now());
        let result = change(&mut pool);
        pools.push(pool);
        Some(result)
    }

    fn status_of(&self, pools: Vec<Pool>, now: f64) -> Status {
        let Options { actions, slow, .. } = &self.options;
        Status { now, actions: *actions, slow_seconds: slow.as_secs_f64(), pools }
    }

    pub(crate) fn full(&self) -> Status {
        let now = now();
        let pools = self.pools().iter().map(|pool| pool.full(now)).collect();
        self.status_of(pools, now)
    }

    /// The event with everything, and all updates after that. An update may tell again what is in it.
    pub(crate) fn subscribe(&self) -> Option<(Arc<str>, broadcast::Receiver<Arc<str>>)> {
        let pools = self.pools();
        let receiver = self.updates.subscribe();
        let mut kept = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            let now = now();
            let full = pools.iter().map(|pool| pool.full(now)).collect();
            *kept = event("full", &self.status_of(full, now)).map(Arc::from);
        }
        Some((kept.clone()?, receiver))
    }

    /// Tells open pages once a second what has changed. Does not return.
    pub(crate) async fn send_updates(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.send_update();
        }
    }

    fn send_update(&self) {
        let now = now();
        let mut pools = self.pools();
        pools.retain(|pool| {
            pool.fleet().is_none() || pool.is_up() || pool.since() > now - FORGET_NODES
        });
        *self.full.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let changed = pools.iter_mut().map(|pool| pool.update(now)).collect();
        // Under the lock, so that a page which subscribes meanwhile misses nothing and gets nothing twice.
        if self.updates.receiver_count() > 0
            && let Some(text) = event("update", &self.status_of(changed, now))
        {
            let _ = self.updates.send(text.into());
        }
    }
}

/// A server-sent event. JSON has no line breaks.
pub(crate) fn event(name: &str, status: &Status) -> Option<String> {
    let json = serde_json::to_string(status).ok()?;
    Some(format!("event: {name}\ndata: {json}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_in_no_log() {
        let options =
            Options { token: Some("a secret of some length".to_owned()), ..Options::default() };
        let text = format!("{:?}", State::new(options, Vec::new()));
        assert!(!text.contains("secret") && text.contains("token: Some"), "{text}");
    }

    #[test]
    fn pages_that_are_opened_at_the_same_time_share_what_they_get() {
        let state = State::new(Options::default(), Vec::new());
        state.with_pool("p", None, |_| ());
        let (first, mut updates) = state.subscribe().unwrap();
        assert!(Arc::ptr_eq(&first, &state.subscribe().unwrap().0));
        state.send_update();
        assert!(updates.try_recv().is_ok_and(|text| text.starts_with("event: update\n")));
        assert!(!Arc::ptr_eq(&first, &state.subscribe().unwrap().0));
    }

    #[test]
    fn a_service_is_ready_while_one_node_is() {
        let status = || {
            let text = r#"{"name":"n","pid":1,"seconds":1.0,"accepting":true,"max_workers":1,"forked":0,
                "refused":0,"deaths":{},"workers":[]}"#;
            serde_json::from_str(text).unwrap()
        };
        let state = State::new(Options::default(), vec!["s".to_owned()]);
        assert!(!state.readiness().0, "no node is known");
        state.with_pool("s/a", Some("s"), |pool| pool.handle_answer(status(), 1.0));
        state.with_pool("s/b", Some("s"), |pool| pool.handle_failure("removed", 1.0));
        assert_eq!(
            state.readiness(),
            (
                true,
                "0 of 0 servers answer and accept connections\n1 of 2 nodes of a service do\n"
                    .to_owned()
            )
        );
        state.with_pool("server", None, |pool| pool.handle_failure("gone", 1.0));
        assert!(!state.readiness().0);
    }
}
