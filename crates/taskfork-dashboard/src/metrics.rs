//! The metrics for Prometheus, as text.

use std::collections::BTreeSet;
use std::fmt::Write;

use taskfork::server::{Histogram, ServerStatus, WorkerStatus};

use crate::causes::{IRREGULAR, REGULAR};
use crate::pool::PoolState;

/// A metric: its name, its kind and what it is.
type Description = (&'static str, &'static str, &'static str);

/// The metrics of `/metrics`: the name, the kind, and what it is. Each has the label `pool`, the name under which a server
/// was given, or `SERVICE/NODE`.
///
/// ```
/// assert!(taskfork_dashboard::METRICS.iter().any(|(name, ..)| *name == "taskfork_server_up"));
/// ```
pub const METRICS: [Description; 18] = [
    ("taskfork_server_up", "gauge", "1 if the server answers, otherwise 0"),
    ("taskfork_server_accepting", "gauge", "1 if the server accepts connections, otherwise 0"),
    ("taskfork_server_start_time_seconds", "gauge", "when the server started, since 1970"),
    ("taskfork_server_restarts_total", "counter", "how often another process took the place"),
    ("taskfork_server_workers", "gauge", "workers, by state"),
    ("taskfork_server_workers_max", "gauge", "the maximum number of workers"),
    ("taskfork_server_checkouts_queued", "gauge", "checkouts that wait for a worker"),
    ("taskfork_server_connections_waiting", "gauge", "connections that wait for a worker"),
    ("taskfork_server_memory_bytes", "gauge", "the resident memory of all workers"),
    ("taskfork_server_cpu_cores", "gauge", "the processor time that all workers use, in cores"),
    ("taskfork_server_slow_calls", "gauge", "calls that run for longer than the threshold"),
    (
        "taskfork_server_longest_call_seconds",
        "gauge",
        "how long the longest call has run that is longer than the threshold, otherwise 0",
    ),
    ("taskfork_server_deaths_total", "counter", "workers that have ended, by cause"),
    ("taskfork_server_workers_forked_total", "counter", "workers that were forked"),
    ("taskfork_server_connections_refused_total", "counter", "connections that were refused"),
    ("taskfork_server_call_errors_total", "counter", "calls answered with an error, by method"),
    ("taskfork_server_call_seconds", "histogram", "how long calls ran, by method"),
    ("taskfork_server_wait_seconds", "histogram", "how long connections waited for a worker"),
];

/// The metrics of all pools.
pub(crate) fn text(pools: &[PoolState], now: f64) -> String {
    let mut out = Out::default();
    for description in METRICS {
        out.begin(description);
        for pool in pools {
            let labels = Labels::new(pool);
            let up = pool.last_status();
            match description.0 {
                "taskfork_server_up" => out.value(&labels, &[], f64::from(u8::from(up.is_some()))),
                "taskfork_server_restarts_total" => out.value(&labels, &[], pool.restarts() as f64),
                name => {
                    if let Some(status) = up {
                        of_status(&mut out, name, &labels, pool, status, now);
                    }
                }
            }
        }
    }
    out.text
}

fn of_status(
    out: &mut Out,
    name: &str,
    labels: &Labels,
    pool: &PoolState,
    status: &ServerStatus,
    now: f64,
) {
    let single = match name {
        "taskfork_server_accepting" => Some(f64::from(u8::from(status.accepting))),
        "taskfork_server_start_time_seconds" => Some(pool.started() / 1000.0),
        "taskfork_server_workers_max" => Some(status.max_workers as f64),
        "taskfork_server_checkouts_queued" => Some(status.queued as f64),
        "taskfork_server_connections_waiting" => Some(status.waiting as f64),
        "taskfork_server_memory_bytes" => pool.memory().map(|memory| memory as f64),
        "taskfork_server_cpu_cores" => pool.cpu(),
        "taskfork_server_longest_call_seconds" => {
            let began = pool.first_beginning();
            Some(began.map_or(0.0, |began| (now - began).max(0.0) / 1000.0))
        }
        "taskfork_server_slow_calls" => Some(pool.running_slow_calls() as f64),
        "taskfork_server_workers_forked_total" => Some(status.forked as f64),
        "taskfork_server_connections_refused_total" => Some(status.refused as f64),
        _ => None,
    };
    if let Some(value) = single {
        return out.value(labels, &[], value);
    }
    match name {
        "taskfork_server_workers" => {
            // All states, so that no series begins late.
            for state in WorkerStatus::STATES {
                let count = status.workers.iter().filter(|it| it.state == state).count();
                out.value(labels, &[("state", state)], count as f64);
            }
        }
        "taskfork_server_deaths_total" => {
            // Causes without deaths too: a rate does not see that a series begins with 1.
            let known = REGULAR.into_iter().chain(IRREGULAR);
            let counted = status.deaths.keys().map(String::as_str);
            for cause in known.chain(counted).collect::<BTreeSet<_>>() {
                let count = status.deaths.get(cause).copied().unwrap_or(0);
                out.value(labels, &[("cause", cause)], count as f64);
            }
        }
        "taskfork_server_call_errors_total" => {
            for (method, calls) in status.calls.iter() {
                out.value(labels, &[("method", method)], calls.errors as f64);
            }
        }
        "taskfork_server_call_seconds" => {
            for (method, calls) in status.calls.iter() {
                out.histogram(labels, &[("method", method)], &calls.times);
            }
        }
        "taskfork_server_wait_seconds" => out.histogram(labels, &[], &status.waits),
        _ => {}
    }
}

/// The labels of a pool, as text.
struct Labels(String);

impl Labels {
    fn new(pool: &PoolState) -> Self {
        let mut text = label("pool", pool.id());
        if let Some(fleet) = pool.fleet() {
            text += &format!(",{}", label("fleet", fleet));
        }
        Self(text)
    }
}

fn label(name: &str, value: &str) -> String {
    // It is not cut here: two names could become one.
    format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[derive(Default)]
struct Out {
    text: String,
    name: &'static str,
}

impl Out {
    fn begin(&mut self, (name, kind, what): Description) {
        let _ = writeln!(self.text, "# HELP {name} {what}\n# TYPE {name} {kind}");
        self.name = name;
    }

    fn value(&mut self, pool: &Labels, labels: &[(&str, &str)], value: f64) {
        self.line("", pool, labels, value);
    }

    fn line(&mut self, suffix: &str, Labels(pool): &Labels, labels: &[(&str, &str)], value: f64) {
        let labels: String =
            labels.iter().map(|(name, value)| format!(",{}", label(name, value))).collect();
        let _ = writeln!(self.text, "{}{suffix}{{{pool}{labels}}} {value}", self.name);
    }

    fn histogram(&mut self, pool: &Labels, labels: &[(&str, &str)], times: &Histogram) {
        let mut below = 0_u64;
        for (range, bound) in Histogram::BOUNDS.iter().enumerate() {
            below = below.saturating_add(times.counts.get(range).copied().unwrap_or(0));
            let bound = bound.to_string();
            let labels = [labels, &[("le", &*bound)]].concat();
            self.line("_bucket", pool, &labels, below as f64);
        }
        let all = times.count() as f64;
        self.line("_bucket", pool, &[labels, &[("le", "+Inf")]].concat(), all);
        self.line("_sum", pool, labels, times.seconds);
        self.line("_count", pool, labels, all);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text_of(status: serde_json::Value) -> String {
        let mut pool = PoolState::new("a \"b\"\n".to_owned(), None, 1.0, 0.0);
        pool.handle_answer(serde_json::from_value(status).unwrap(), 100_000.0);
        text(&[pool], 100_000.0)
    }

    #[test]
    fn every_metric_is_there_and_labels_are_escaped() {
        let text = text_of(json!({
            "name": "n", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 4, "forked": 2,
            "refused": 0, "deaths": { "exited": 1 }, "workers": [],
            "calls": { "<\"x\\\n": { "errors": 1, "times": { "seconds": 0.5, "counts": [1, 0, 2] } } },
        }));
        for (name, kind, _) in METRICS {
            let suffix = if kind == "histogram" { "_bucket" } else { "" };
            let start = format!("{name}{suffix}{{pool=\"a \\\"b\\\"\\n\"");
            assert!(text.lines().any(|line| line.starts_with(&start)), "{start} in {text}");
        }
        let method = r#"method="<\"x\\\n""#;
        for line in [
            format!("taskfork_server_call_errors_total{{pool=\"a \\\"b\\\"\\n\",{method}}} 1"),
            format!(
                "taskfork_server_call_seconds_bucket{{pool=\"a \\\"b\\\"\\n\",{method},le=\"0.00002\"}} 1"
            ),
            format!(
                "taskfork_server_call_seconds_bucket{{pool=\"a \\\"b\\\"\\n\",{method},le=\"0.00004\"}} 3"
            ),
            format!("taskfork_server_call_seconds_count{{pool=\"a \\\"b\\\"\\n\",{method}}} 3"),
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in {text}");
        }
        assert!(text.is_ascii());
        // Causes without deaths too.
        for cause in ["hung", "max_calls"] {
            let end = format!("cause=\"{cause}\"}} 0");
            assert!(text.lines().any(|line| line.ends_with(&end)), "{text}");
        }
    }

    #[test]
    fn long_names_of_servers_stay_different() {
        let name = |end: &str| format!("/{}/{end}", "folder".repeat(100));
        let pools = ["a", "b"].map(|end| PoolState::new(name(end), None, 1.0, 0.0));
        let text = text(&pools, 1.0);
        let up: BTreeSet<_> =
            text.lines().filter(|line| line.starts_with("taskfork_server_up{")).collect();
        assert_eq!(up.len(), 2);
    }

    #[test]
    fn memory_that_is_not_known_is_left_out_and_the_longest_call_has_its_time() {
        let text = text_of(json!({
            "name": "n", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 4, "forked": 2,
            "refused": 0, "deaths": {}, "workers": [{ "number": 1, "pid": 2, "state": "busy", "seconds": 7.0,
            "calls": 1, "checkouts": 0 }],
        }));
        let line = |start: &str| text.lines().find(|line| line.starts_with(start));
        assert_eq!(line("taskfork_server_memory_bytes"), None);
        assert!(
            line("taskfork_server_longest_call_seconds{").is_some_and(|it| it.ends_with("} 7"))
        );
    }

    #[test]
    fn a_server_that_is_gone_has_only_what_is_true() {
        let mut pool = PoolState::new("a".to_owned(), None, 1.0, 0.0);
        pool.handle_failure("gone", 1.0);
        let text = text(&[pool], 1.0);
        let values: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected =
            ["taskfork_server_up{pool=\"a\"} 0", "taskfork_server_restarts_total{pool=\"a\"} 0"];
        assert_eq!(values, expected);
    }
}
