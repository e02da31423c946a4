//! A client's figures for the recorder of the crate `metrics` that the program has, if any.

use std::time::{Duration, Instant};

use metrics::{
    SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::client::pool::Counts;

/// How often what there is now is shown.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Metrics {
    client: SharedString,
}

/// When a call began to run, as far as is known here.
#[derive(Debug)]
pub(crate) struct Stopwatch(Option<Instant>);

impl Stopwatch {
    pub(crate) fn new() -> Self {
        Self(None)
    }

    pub(crate) fn start(&mut self) {
        self.0.get_or_insert_with(Instant::now);
    }
}

impl Metrics {
    pub(crate) fn new(client: &str) -> Self {
        describe();
        Self { client: SharedString::from_shared(client.into()) }
    }

    fn client(&self) -> SharedString {
        self.client.clone()
    }

    pub(crate) fn waited(&self, time: Duration) {
        histogram!("taskfork_checkout_wait_seconds", "client" => self.client()).record(time);
    }

    pub(crate) fn refused(&self) {
        counter!("taskfork_checkouts_refused_total", "client" => self.client()).increment(1);
    }

    pub(crate) fn answered(&self, method: Option<&str>, began: &Stopwatch, failed: bool) {
        let Some(began) = began.0 else { return };
        let method = method.unwrap_or_default().to_owned();
        let outcome = if failed { "error" } else { "ok" };
        let labels = [
            ("client", self.client()),
            ("method", method.into()),
            ("outcome", SharedString::const_str(outcome)),
        ];
        histogram!("taskfork_call_seconds", &labels).record(began.elapsed());
    }

    pub(crate) fn connected(&self) {
        counter!("taskfork_workers_connected_total", "client" => self.client()).increment(1);
    }

    pub(crate) fn died(&self, cause: &'static str) {
        counter!("taskfork_worker_deaths_total", "client" => self.client(), "cause" => cause)
            .increment(1);
    }

    pub(crate) fn publish_gauges(&self, counts: Counts) -> Option<Duration> {
        let workers = |state: &'static str, count: usize| {
            gauge!("taskfork_client_workers", "client" => self.client(), "state" => state)
                .set(count as f64);
        };
        workers("idle", counts.idle);
        workers("busy", counts.busy);
        workers("connecting", counts.connecting);
        gauge!("taskfork_queue_length", "client" => self.client()).set(counts.queued as f64);
        Some(INTERVAL)
    }
}

fn describe() {
    describe_histogram!(
        "taskfork_checkout_wait_seconds",
        Unit::Seconds,
        "how long checkouts have waited for a worker"
    );
    describe_counter!(
        "taskfork_checkouts_refused_total",
        "checkouts for which there was no place in the queue"
    );
    describe_histogram!(
        "taskfork_call_seconds",
        Unit::Seconds,
        "how long calls took from the moment they were sent to their answers"
    );
    describe_counter!("taskfork_workers_connected_total", "workers that have been connected");
    describe_counter!("taskfork_worker_deaths_total", "workers that have been lost, by cause");
    describe_gauge!("taskfork_client_workers", "workers that a client has, by state");
    describe_gauge!("taskfork_queue_length", "checkouts that wait for a worker");
}
