//! What is known of one server: its last status, and what has happened before. There is no I/O and no clock here: times are
//! arguments, in milliseconds.

#[cfg(feature = "nats")]
mod recent;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use taskfork::server::{DeathStatus, ServerStatus, WorkerStatus};

use crate::causes::irregular;
use crate::curve::Curve;
use crate::model::{Client, Death, Method, Node, Point, Pool, Progress, WaitingClient, Worker};
use crate::rates::{Change, Rates};
use crate::sanitize::{MAX_ERROR, MAX_NAME, bounded, sanitize};
use crate::slow::SlowCalls;

#[cfg(feature = "nats")]
pub(crate) use recent::RecentAnswer;

/// How many deaths and clients are kept or shown, whatever a server says.
const MAX_DEATHS: usize = 50;
const MAX_CLIENTS: usize = 50;

/// By how much the beginnings of what a worker does may differ in two answers that mean the same, in milliseconds. The clocks
/// differ by as long as an answer takes.
const SAME_BEGINNING: f64 = 2000.0;

/// An hour in minutes, for deaths.
const HOUR: u64 = 60;

#[derive(Debug)]
pub(crate) struct PoolState {
    id: String,
    fleet: Option<String>,
    node: Option<Node>,
    /// The status socket, for a server on this machine.
    socket: Option<PathBuf>,
    slow_seconds: f64,
    state: &'static str,
    since: f64,
    error: Option<String>,
    /// The last status, and when it came.
    last: Option<(ServerStatus, f64)>,
    started: f64,
    restarts: u64,
    /// The workers as they are shown, by number, and what the last update has shown.
    workers: BTreeMap<u64, Worker>,
    shown: BTreeMap<u64, Worker>,
    shown_methods: Vec<Method>,
    rates: Rates,
    curve: Curve,
    deaths: VecDeque<Death>,
    new_deaths: usize,
    /// The number of the last death of this process that has arrived.
    last_death: u64,
    /// Deaths before this time of the server are not in the differences of its counters.
    counted_from: f64,
    /// How many workers died in each minute, by cause.
    deaths_by_minute: BTreeMap<u64, BTreeMap<&'static str, u64>>,
    slow: SlowCalls,
}

impl PoolState {
    pub(crate) fn new(id: String, fleet: Option<String>, slow_seconds: f64, now: f64) -> Self {
        Self {
            id,
            fleet,
            node: None,
            socket: None,
            slow_seconds,
            state: "unknown",
            since: now,
            error: None,
            last: None,
            started: 0.0,
            restarts: 0,
            workers: BTreeMap::new(),
            shown: BTreeMap::new(),
            shown_methods: Vec::new(),
            rates: Rates::default(),
            curve: Curve::default(),
            deaths: VecDeque::new(),
            new_deaths: 0,
            last_death: 0,
            counted_from: 0.0,
            deaths_by_minute: BTreeMap::new(),
            slow: SlowCalls::default(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The service, for a node.
    pub(crate) fn fleet(&self) -> Option<&str> {
        self.fleet.as_deref()
    }

    pub(crate) fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    pub(crate) fn set_socket(&mut self, path: PathBuf) {
        self.socket = Some(path);
    }

    /// What to ask the server for: the deaths after this one, and the stack of this worker.
    pub(crate) fn next_request(&mut self) -> (u64, Option<u64>) {
        (self.last_death, self.slow.next_sample())
    }

    pub(crate) fn last_status(&self) -> Option<&ServerStatus> {
        self.last.as_ref().map(|(status, _)| status).filter(|_| self.is_up())
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, "serving" | "stopping")
    }

    /// Whether clients can get workers.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == "serving" && self.error.is_none()
    }

    pub(crate) fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Since when it is in this state.
    pub(crate) fn since(&self) -> f64 {
        self.since
    }

    /// The process id of a worker.
    pub(crate) fn pid_of(&self, worker: u64) -> Option<u32> {
        self.workers.get(&worker).map(|worker| worker.pid)
    }

    /// The node has answered.
    #[cfg(feature = "nats")]
    pub(crate) fn set_node(&mut self, node: Node) {
        self.node = Some(node);
    }

    /// The server has answered.
    pub(crate) fn handle_answer(&mut self, mut status: ServerStatus, now: f64) {
        sanitize(&mut status);
        let is_first = self.last.is_none();
        let is_other = self.last.as_ref().is_some_and(|(last, _)| {
            // A server in a container may have the same process id again.
            (last.pid, last.instance) != (status.pid, status.instance)
                || status.seconds < last.seconds
        });
        if is_other {
            self.restarts += 1;
            self.rates.reset();
            self.slow.end_all(now);
            self.workers.clear();
            self.counted_from = 0.0;
        }
        if is_first {
            self.counted_from = status.seconds;
        }
        if is_first || is_other {
            self.started = now - status.seconds * 1000.0;
        }
        self.set_state(if status.accepting { "serving" } else { "stopping" }, now);
        self.error = None;
        self.count_deaths(&status, is_other, now);
        match is_other {
            // This was asked for with a number of the process before.
            true => self.last_death = 0,
            false => self.add_deaths(&status.recent_deaths),
        }
        self.update_workers(&status, is_other, now);
        let change = self.rates.update(&status);
        self.curve.push(self.point(&status, &change, now));
        let shown =
            status.workers.iter().filter_map(|it| Some((it, self.workers.get(&it.number)?)));
        self.slow.update(shown, self.slow_seconds, now);
        status.recent_deaths.clear();
        self.last = Some((status, now));
    }

    /// The server has not answered, and is taken for gone.
    pub(crate) fn handle_failure(&mut self, error: &str, now: f64) {
        self.set_state("gone", now);
        self.error = Some(bounded(error, MAX_ERROR));
        self.slow.lose_all(now);
        self.workers.clear();
        self.curve.push(Point { at: now, ..Point::default() });
    }

    fn set_state(&mut self, state: &'static str, now: f64) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }

    /// Adds the deaths that have arrived. The next request asks for those after them: an answer may lack some.
    fn add_deaths(&mut self, deaths: &[DeathStatus]) {
        for death in deaths {
            if death.number <= self.last_death {
                continue;
            }
            self.last_death = death.number;
            if death.at < self.counted_from {
                self.count(minute_of(self.started + death.at * 1000.0), &death.cause, 1);
            }
            if self.deaths.len() == MAX_DEATHS {
                self.deaths.pop_front();
            }
            self.deaths.push_back(death_of(death, self.started));
            self.new_deaths = (self.new_deaths + 1).min(MAX_DEATHS);
        }
    }

    fn count(&mut self, minute: u64, cause: &str, deaths: u64) {
        if let Some(cause) = irregular(cause) {
            *self.deaths_by_minute.entry(minute).or_default().entry(cause).or_default() += deaths;
        }
    }

    /// Counts the deaths since the last answer. Those before the first one count when they arrive with their times.
    fn count_deaths(&mut self, status: &ServerStatus, is_other: bool, now: f64) {
        let minute = minute_of(now);
        let last = self.last.as_ref().map(|(last, _)| last);
        let new = status.deaths.iter().filter_map(|(cause, &count)| {
            let before = last?.deaths.get(cause).filter(|_| !is_other).copied();
            let new = count.saturating_sub(before.unwrap_or(0));
            (new > 0).then(|| (cause.clone(), new))
        });
        let new: Vec<_> = new.collect();
        new.iter().for_each(|(cause, new)| self.count(minute, cause, *new));
        self.deaths_by_minute.retain(|&at, _| at + HOUR > minute && at <= minute);
    }

    fn update_workers(&mut self, status: &ServerStatus, is_other: bool, now: f64) {
        let before = std::mem::take(&mut self.workers);
        let last = self.last.as_ref().filter(|_| !is_other);
        let seconds = last.map(|(last, _)| status.seconds - last.seconds).filter(|it| *it > 0.0);
        let cpu: BTreeMap<u64, f64> = last
            .iter()
            .flat_map(|(last, _)| &last.workers)
            .filter_map(|worker| Some((worker.number, worker.cpu_seconds?)))
            .collect();
        for worker in &status.workers {
            let mut shown = worker_of(worker, now);
            if let Some(same) = before.get(&worker.number)
                && (&same.state, same.calls) == (&shown.state, shown.calls)
                && (same.since - shown.since).abs() < SAME_BEGINNING
            {
                // A worker whose state has not changed does not change here. Between two answers it may have done something
                // else without a call, and be what it was again.
                shown.since = same.since;
            }
            let used = cpu.get(&worker.number).zip(worker.cpu_seconds).zip(seconds);
            shown.cpu = used.map(|((before, now), seconds)| {
                let percent = (now - before).max(0.0) / seconds * 100.0;
                percent.round() as f32
            });
            self.workers.insert(worker.number, shown);
        }
    }

    fn point(&self, status: &ServerStatus, change: &Change, now: f64) -> Point {
        let quantile = |part| change.times.quantile(part).map(|seconds| seconds as f32);
        let busy = status.workers.iter().filter(|it| it.state == "busy").count();
        let is_complete = self.is_complete();
        Point {
            at: now.round(),
            calls: change.calls,
            errors: change.errors,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            queue: Some(status.queued.saturating_add(status.waiting as u64) as f32),
            busy: is_complete.then_some(busy as f32),
            workers: is_complete.then_some(status.workers.len() as f32),
            memory: self.memory_of(status).map(|memory| memory as f32),
        }
    }

    /// Whether all workers are known. The message of a node may have no room for all.
    fn is_complete(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.left_out == 0)
    }

    /// The memory of all workers, if it is known.
    fn memory_of(&self, status: &ServerStatus) -> Option<u64> {
        let known = status.workers.iter().filter_map(|it| it.memory);
        let is_known = status.workers.is_empty() || known.clone().next().is_some();
        (is_known && self.is_complete()).then(|| known.fold(0, u64::saturating_add))
    }

    /// The memory of all workers, if the server answers and it is known.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.memory_of(self.last_status()?)
    }

    /// Everything.
    pub(crate) fn full(&self, now: f64) -> Pool {
        Pool {
            points: self.curve.all(),
            workers: self.workers.values().cloned().collect(),
            recent_deaths: self.deaths.iter().cloned().collect(),
            methods: Some(self.methods()),
            slow: Some(self.slow.all()),
            ..self.summary(now)
        }
    }

    /// What has changed since the last time that this was called.
    pub(crate) fn update(&mut self, now: f64) -> Pool {
        let is_changed = |worker: &&Worker| self.shown.get(&worker.number) != Some(worker);
        let workers = self.workers.values().filter(is_changed).cloned().collect();
        let is_gone = |number: &&u64| !self.workers.contains_key(number);
        let gone = self.shown.keys().filter(is_gone).copied().collect();
        self.shown.clone_from(&self.workers);
        let known = self.deaths.len().saturating_sub(std::mem::take(&mut self.new_deaths));
        let methods = Some(self.methods()).filter(|methods| *methods != self.shown_methods);
        if let Some(methods) = &methods {
            self.shown_methods.clone_from(methods);
        }
        Pool {
            points: self.curve.take_new(),
            workers,
            gone,
            recent_deaths: self.deaths.range(known..).cloned().collect(),
            methods,
            slow: self.slow.take_changed(),
            ..self.summary(now)
        }
    }

    fn methods(&self) -> Vec<Method> {
        let Some(status) = self.last_status() else { return Vec::new() };
        self.rates.methods(status)
    }

    fn summary(&self, now: f64) -> Pool {
        let mut pool = Pool {
            id: self.id.clone(),
            fleet: self.fleet.clone(),
            node: self.node.clone(),
            state: self.state.to_owned(),
            since: self.since,
            error: self.error.clone(),
            restarts: self.restarts,
            deaths_last_hour: self.deaths_last_hour(now),
            ..Pool::default()
        };
        let Some((status, at)) = &self.last else { return pool };
        pool.name = status.name.clone();
        pool.pid = status.pid;
        pool.started = self.started;
        pool.max_workers = status.max_workers;
        pool.forked = status.forked;
        pool.refused = status.refused;
        pool.deaths.clone_from(&status.deaths);
        if !self.is_up() {
            return pool;
        }
        for worker in self.workers.values() {
            *pool.states.entry(worker.state.clone()).or_default() += 1;
        }
        pool.queued = status.queued;
        pool.waiting = status.waiting;
        let waiting = status.waiting_clients.iter().take(MAX_CLIENTS);
        pool.waiting_clients = waiting
            .map(|client| WaitingClient {
                client: peer_text(client.peer.as_ref()),
                since: (at - client.seconds * 1000.0).round(),
            })
            .collect();
        pool.clients = clients(status);
        pool.memory = self.memory_of(status);
        pool.cpu = self.cpu();
        pool
    }

    pub(crate) fn deaths_last_hour(&self, now: f64) -> BTreeMap<String, u64> {
        let mut causes = BTreeMap::new();
        let first = minute_of(now).saturating_sub(HOUR - 1);
        for (cause, count) in self.deaths_by_minute.range(first..).flat_map(|(_, causes)| causes) {
            *causes.entry((*cause).to_owned()).or_default() += count;
        }
        causes
    }

    /// How many slow calls run.
    pub(crate) fn running_slow_calls(&self) -> usize {
        self.slow.running()
    }

    /// When the server started.
    pub(crate) fn started(&self) -> f64 {
        self.started
    }

    /// When the call began that runs longest.
    pub(crate) fn first_beginning(&self) -> Option<f64> {
        self.slow.first_beginning()
    }

    /// The processor time that all workers use, in cores, if it is known.
    pub(crate) fn cpu(&self) -> Option<f64> {
        let known = self.workers.values().filter_map(|it| it.cpu);
        let is_known = self.workers.is_empty() || known.clone().next().is_some();
        // The sum of nothing is -0.
        let all = || f64::from(known.sum::<f32>()) / 100.0 + 0.0;
        (self.is_up() && is_known && self.is_complete()).then(all)
    }
}

fn minute_of(at: f64) -> u64 {
    (at / 60_000.0).max(0.0) as u64
}

fn peer_text(peer: Option<&taskfork::worker::Peer>) -> String {
    peer.map(|peer| bounded(&peer.to_string(), MAX_NAME)).unwrap_or_default()
}

fn worker_of(status: &WorkerStatus, now: f64) -> Worker {
    Worker {
        number: status.number,
        pid: status.pid,
        state: status.state.clone(),
        since: (now - status.seconds * 1000.0).round(),
        method: status.method.clone().unwrap_or_default(),
        progress: status.progress.as_ref().map(|it| Progress {
            done: it.done,
            total: it.total,
            what: it.what.clone(),
        }),
        calls: status.calls,
        memory: status.memory,
        cpu: None,
        client: peer_text(status.peer.as_ref()),
    }
}

fn death_of(status: &DeathStatus, started: f64) -> Death {
    Death {
        at: (started + status.at * 1000.0).round(),
        worker: status.worker,
        pid: status.pid,
        cause: status.cause.clone(),
        text: status.text.clone(),
        method: status.method.clone(),
        client: peer_text(status.peer.as_ref()),
        stderr: status.stderr.clone(),
        stack: status.stack.clone(),
    }
}

/// The clients of the workers, with the most waiting checkouts first.
fn clients(status: &ServerStatus) -> Vec<Client> {
    let mut by_client: BTreeMap<(Option<u64>, String), Client> = BTreeMap::new();
    for worker in status.workers.iter().filter(|it| it.state != "spare") {
        let peer = peer_text(worker.peer.as_ref());
        let client = by_client.entry((worker.client, peer.clone())).or_default();
        client.client = peer;
        client.workers += 1;
        client.busy += usize::from(worker.state == "busy");
        client.queued = client.queued.max(worker.client_queued.unwrap_or(0));
    }
    let mut clients: Vec<_> = by_client.into_values().collect();
    clients.sort_by(|a, b| b.queued.cmp(&a.queued).then(b.workers.cmp(&a.workers)));
    clients.truncate(MAX_CLIENTS);
    clients
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(extra: Value) -> ServerStatus {
        let mut status = json!({
            "name": "n", "pid": 1, "seconds": 100.0, "accepting": true, "max_workers": 4, "forked": 0,
            "refused": 0, "deaths": {}, "workers": [],
        });
        for (key, value) in extra.as_object().unwrap() {
            status[key] = value.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    fn worker(number: u64, state: &str, seconds: f64, cpu: f64) -> Value {
        json!({ "number": number, "pid": 10 + number, "state": state, "seconds": seconds, "method": "m",
            "calls": 3, "checkouts": 1, "memory": 1000, "cpu_seconds": cpu })
    }

    fn pool() -> PoolState {
        PoolState::new("p".to_owned(), None, 1.0, 0.0)
    }

    #[test]
    fn an_update_has_what_has_changed() {
        let mut pool = pool();
        let workers = json!([worker(1, "idle", 5.0, 1.0), worker(2, "busy", 0.5, 1.0)]);
        pool.handle_answer(status(json!({ "workers": workers })), 10_000.0);
        assert_eq!(pool.update(10_000.0).workers.len(), 2);
        let workers = json!([worker(1, "idle", 6.001, 1.0), worker(2, "busy", 1.5, 1.5)]);
        pool.handle_answer(status(json!({ "workers": workers, "seconds": 101.0 })), 11_000.0);
        // The first answer could not know the use of the processor.
        assert_eq!(pool.update(11_000.0).workers.len(), 2);
        let workers = json!([worker(1, "idle", 7.003, 1.0), worker(2, "busy", 2.5, 2.1)]);
        pool.handle_answer(status(json!({ "workers": workers, "seconds": 102.0 })), 12_000.0);
        let update = pool.update(12_000.0);
        let changed: Vec<_> = update.workers.iter().map(|it| (it.number, it.cpu)).collect();
        assert_eq!((changed, update.points.len()), (vec![(2, Some(60.0))], 1));
        pool.handle_answer(
            status(json!({ "workers": [worker(1, "idle", 8.0, 1.0)], "seconds": 103.0 })),
            13_000.0,
        );
        let update = pool.update(13_000.0);
        assert_eq!((update.workers.len(), update.gone), (0, vec![2]));
        let full = pool.full(13_000.0);
        assert_eq!((full.workers.len(), full.points.len(), full.memory), (1, 4, Some(1000)));
        assert_eq!(full.slow.unwrap()[0].ended, Some(13_000.0));
    }

    #[test]
    fn methods_are_told_when_they_change_and_a_state_that_has_begun_anew_has_its_own_time() {
        let mut pool = pool();
        let answer = |seconds: f64, idle: f64, calls: u64| {
            let times = json!({ "seconds": 1.0, "counts": [0, calls] });
            let calls = json!({ "m": { "errors": 0, "times": times } });
            status(
                json!({ "seconds": seconds, "workers": [worker(1, "idle", idle, 1.0)], "calls": calls }),
            )
        };
        pool.handle_answer(answer(100.0, 60.0, 1), 100_000.0);
        pool.handle_answer(answer(101.0, 61.0, 2), 101_000.0);
        let update = pool.update(101_000.0);
        assert_eq!(
            (update.methods.map(|it| it.len()), update.workers[0].since),
            (Some(1), 40_000.0)
        );
        pool.handle_answer(answer(102.0, 62.1, 2), 102_000.0);
        assert_eq!(pool.update(102_000.0).methods, None);
        assert_eq!(pool.full(102_000.0).workers[0].since, 40_000.0);
        // It was connected and idle again, without a call.
        pool.handle_answer(answer(103.0, 0.5, 2), 103_000.0);
        let full = pool.full(103_000.0);
        assert_eq!((full.workers[0].since, full.methods.unwrap().len()), (102_500.0, 1));
    }

    #[test]
    fn a_server_goes_away_and_returns_as_another_process() {
        let mut pool = pool();
        assert!(!pool.is_ready());
        let workers = json!([worker(1, "busy", 5.0, 1.0)]);
        let deaths = json!({ "deaths": { "exited": 7 }, "workers": workers, "last_death": 3 });
        pool.handle_answer(status(deaths), 10_000.0);
        assert_eq!((pool.is_ready(), pool.next_request()), (true, (0, Some(1))));
        pool.handle_failure("no such file", 11_000.0);
        pool.handle_failure("no such file", 12_000.0);
        let full = pool.full(12_000.0);
        assert_eq!((&*full.state, full.since, full.workers.len()), ("gone", 11_000.0, 0));
        assert_eq!(full.error.as_deref(), Some("no such file"));
        assert!(pool.last_status().is_none() && !pool.is_ready());
        let other = json!({ "pid": 2, "deaths": { "exited": 1, "max_calls": 9 }, "last_death": 1 });
        pool.handle_answer(status(other), 13_000.0);
        let full = pool.full(13_000.0);
        assert_eq!((&*full.state, full.since, full.restarts), ("serving", 13_000.0, 1));
        assert_eq!((full.error, pool.next_request()), (None, (0, None)));
        assert_eq!(full.deaths_last_hour, BTreeMap::from([("exited".to_owned(), 1)]));
    }

    #[test]
    fn deaths_are_kept_once_and_counted_for_an_hour() {
        let death = |number: u64| {
            json!({ "number": number, "at": 90.0, "worker": number, "pid": 7, "cause": "signaled",
                "text": "", "calls": 1, "stderr": "x".repeat(100_000) })
        };
        let mut pool = pool();
        let deaths: Vec<_> = (11..=60).map(death).collect();
        let both =
            json!({ "recent_deaths": deaths, "last_death": 60, "deaths": { "signaled": 60 } });
        pool.handle_answer(status(both), 100_000.0);
        assert_eq!(pool.update(100_000.0).recent_deaths.len(), MAX_DEATHS);
        assert_eq!(pool.next_request().0, 60);
        let mut later = death(61);
        later["at"] = 100.5.into();
        let both =
            json!({ "recent_deaths": [later], "last_death": 61, "deaths": { "signaled": 61 } });
        pool.handle_answer(status(both), 101_000.0);
        let update = pool.update(101_000.0);
        assert_eq!((update.recent_deaths.len(), update.recent_deaths[0].worker), (1, 61));
        assert!(update.recent_deaths[0].stderr.as_ref().unwrap().len() < 10_000);
        assert_eq!(pool.update(101_000.0).recent_deaths.len(), 0);
        assert_eq!(pool.full(101_000.0).recent_deaths.len(), MAX_DEATHS);
        assert_eq!(pool.deaths_last_hour(101_000.0)["signaled"], 51);
        assert_eq!(pool.deaths_last_hour(101_000.0 + 3_700_000.0).len(), 0);
    }

    #[test]
    fn a_death_that_has_not_arrived_is_asked_for_again() {
        let death = |number: u64| {
            json!({ "number": number, "at": 90.0, "worker": number, "pid": 7, "cause": "hung", "text": "",
                "calls": 1 })
        };
        let mut pool = pool();
        let answer = |deaths: Vec<Value>| {
            status(json!({ "recent_deaths": deaths, "last_death": 3, "deaths": { "hung": 3 } }))
        };
        pool.handle_answer(answer(vec![]), 100_000.0);
        assert_eq!(pool.next_request().0, 0);
        pool.handle_answer(answer(vec![death(1), death(2)]), 101_000.0);
        assert_eq!(pool.next_request().0, 2);
        pool.handle_answer(answer(vec![death(3)]), 102_000.0);
        assert_eq!((pool.next_request().0, pool.full(102_000.0).recent_deaths.len()), (3, 3));
        assert_eq!(pool.deaths_last_hour(102_000.0)["hung"], 3, "each counts once");
    }

    #[test]
    fn another_process_with_the_same_id_is_a_restart() {
        let mut pool = pool();
        let answer = |seconds: f64, instance: u64| {
            status(json!({ "seconds": seconds, "instance": instance, "deaths": { "hung": 2 } }))
        };
        pool.handle_answer(answer(50.0, 0), 100_000.0);
        pool.handle_answer(answer(51.0, 0), 101_000.0);
        assert_eq!(pool.restarts(), 0);
        pool.handle_answer(answer(2.0, 0), 102_000.0);
        assert_eq!((pool.restarts(), pool.started()), (1, 100_000.0));
        // It has run for longer than the one before, which the clock of a day-long gap permits.
        pool.handle_answer(answer(100.0, 1), 300_000.0);
        assert_eq!((pool.restarts(), pool.deaths_last_hour(300_000.0)["hung"]), (2, 4));
    }

    #[test]
    fn a_gap_ends_no_slow_call() {
        let mut pool = pool();
        let answer = |seconds: f64| status(json!({ "workers": [worker(1, "busy", seconds, 1.0)] }));
        pool.handle_answer(answer(5.0), 10_000.0);
        pool.handle_failure("late", 11_000.0);
        pool.handle_answer(answer(7.0), 12_000.0);
        let slow = pool.full(12_000.0).slow.unwrap();
        assert_eq!((slow.len(), slow[0].ended, pool.restarts()), (1, None, 0));
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let mut pool = pool();
        let mut unknown = worker(1, "busy", 5.0, 1.0);
        unknown["memory"] = Value::Null;
        unknown["cpu_seconds"] = Value::Null;
        pool.handle_answer(status(json!({ "workers": [unknown] })), 10_000.0);
        let full = pool.full(10_000.0);
        assert_eq!((full.memory, full.cpu, full.points[0].memory), (None, None, None));
        pool.handle_answer(status(json!({ "seconds": 101.0 })), 11_000.0);
        let full = pool.full(11_000.0);
        assert_eq!((full.memory, full.cpu), (Some(0), Some(0.0)));
        pool.node = Some(Node { left_out: 1, ..Node::default() });
        pool.handle_answer(
            status(json!({ "seconds": 102.0, "workers": [worker(2, "busy", 1.0, 1.0)] })),
            12_000.0,
        );
        let full = pool.full(12_000.0);
        assert_eq!((full.memory, full.cpu, full.points[2].busy), (None, None, None));
    }
}
