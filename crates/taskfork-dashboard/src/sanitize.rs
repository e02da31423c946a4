//! Bounds of what a server or a node may tell. Everything else takes a status as it is after this.

use taskfork::server::{DeathStatus, Histogram, ServerStatus, WorkerStatus};
use taskfork::worker::Peer;

/// The most elements of lists.
const MAX_WORKERS: usize = 16_384;
const MAX_CAUSES: usize = 40;
const MAX_METHODS: usize = 128;
const MAX_WAITING: usize = 50;
const MAX_DEATHS: usize = 50;
const MAX_PEER_NAMES: usize = 4;

/// The most bytes of texts.
pub(crate) const MAX_NAME: usize = 256;
pub(crate) const MAX_ERROR: usize = 1024;
const MAX_STDERR: usize = 8 << 10;
pub(crate) const MAX_STACK: usize = 16 << 10;

/// The ranges of a histogram.
const RANGES: usize = Histogram::BOUNDS.len() + 1;

/// A text with at most this many bytes, and a mark if it was longer.
pub(crate) fn bounded(text: &str, most: usize) -> String {
    match text.len() <= most {
        true => text.to_owned(),
        false => format!("{}…", &text[..text.floor_char_boundary(most)]),
    }
}

/// Cuts all lists and texts of a status.
pub(crate) fn sanitize(status: &mut ServerStatus) {
    cut(&mut status.name, MAX_NAME);
    status.seconds = status.seconds.max(0.0);
    // They are not shown.
    (status.sandbox, status.methods) = (None, Vec::new());
    // Names that are the same after the cut are counted together: a metric with one name twice would be no metric.
    for (cause, count) in std::mem::take(&mut status.deaths).into_iter().take(MAX_CAUSES) {
        let all = status.deaths.entry(bounded(&cause, MAX_NAME)).or_default();
        *all = all.saturating_add(count);
    }
    for (method, mut calls) in std::mem::take(&mut status.calls).into_iter().take(MAX_METHODS) {
        cut_times(&mut calls.times);
        let all = status.calls.entry(bounded(&method, MAX_NAME)).or_default();
        all.errors = all.errors.saturating_add(calls.errors);
        all.times.merge(&calls.times);
    }
    cut_times(&mut status.waits);
    shorten(&mut status.waiting_clients, MAX_WAITING);
    status.waiting_clients.iter_mut().for_each(|it| sanitize_peer(&mut it.peer));
    shorten(&mut status.workers, MAX_WORKERS);
    status.workers.iter_mut().for_each(sanitize_worker);
    sanitize_deaths(&mut status.recent_deaths);
}

/// Cuts a list of deaths, and their texts.
pub(crate) fn sanitize_deaths(deaths: &mut Vec<DeathStatus>) {
    shorten(deaths, MAX_DEATHS);
    deaths.iter_mut().for_each(sanitize_death);
}

fn sanitize_worker(worker: &mut WorkerStatus) {
    cut(&mut worker.state, MAX_NAME);
    sanitize_peer(&mut worker.peer);
    worker.method.iter_mut().for_each(|it| cut(it, MAX_NAME));
    worker.progress.iter_mut().for_each(|it| cut(&mut it.what, MAX_NAME));
    worker.stack.iter_mut().for_each(|it| cut(it, MAX_STACK));
}

fn sanitize_death(death: &mut DeathStatus) {
    cut(&mut death.cause, MAX_NAME);
    sanitize_peer(&mut death.peer);
    cut(&mut death.text, MAX_ERROR);
    death.method.iter_mut().for_each(|it| cut(it, MAX_NAME));
    death.stderr.iter_mut().for_each(|it| cut(it, MAX_STDERR));
    death.stack.iter_mut().for_each(|it| cut(it, MAX_STACK));
}

fn sanitize_peer(peer: &mut Option<Peer>) {
    match peer {
        Some(Peer::Tls { names, address, .. }) => {
            shorten(names, MAX_PEER_NAMES);
            names.iter_mut().chain(address).for_each(|it| cut(it, MAX_NAME));
        }
        Some(Peer::Nats { name, address, .. }) => {
            name.iter_mut().chain(address).for_each(|it| cut(it, MAX_NAME));
        }
        _ => {}
    }
}

fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        *text = bounded(text, most);
    }
}

fn cut_times(times: &mut Histogram) {
    shorten(&mut times.counts, RANGES);
}

/// Cuts a list, and frees what it has needed.
fn shorten<T>(list: &mut Vec<T>, most: usize) {
    if list.len() > most {
        list.truncate(most);
        list.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn json_length(value: &impl serde::Serialize) -> usize {
        serde_json::to_string(value).unwrap().len()
    }

    #[test]
    fn whatever_a_node_tells_is_bounded() {
        let long = "ä".repeat(100_000);
        let names = |count: usize, value: Value| -> Value {
            let pairs = (0..count).map(|number| (format!("{number} {long}"), value.clone()));
            Value::Object(pairs.take(200).collect())
        };
        let times = json!({ "seconds": 1.0, "counts": vec![1; 100_000] });
        let worker = json!({ "number": 1, "pid": 1, "state": long, "seconds": 1.0, "method": long, "calls": 1,
            "checkouts": 0, "stack": long, "peer": { "kind": "tls", "names": vec![long.clone(); 100], "address": long },
             "progress": { "done": 1, "total": null, "what": long } });
        let death = json!({ "number": 1, "at": 1.0, "worker": 1, "pid": 1, "cause": long, "text": long, "calls": 1,
            "method": long, "stderr": long, "stack": long });
        let mut status: ServerStatus = serde_json::from_value(json!({
            "name": long, "pid": 1, "seconds": -5.0, "accepting": true, "max_workers": 1, "forked": 0, "refused": 0,
            "sandbox": long, "methods": [long], "deaths": names(200, json!(1)), "waits": times,
            "calls": names(200, json!({ "errors": 0, "times": times })), "workers": [worker],
            "waiting_clients": vec![json!({ "seconds": 1.0 }); 1000], "recent_deaths": vec![death; 60],
        }))
        .unwrap();
        sanitize(&mut status);
        let (worker, death) =
            (json_length(&status.workers[0]), json_length(&status.recent_deaths[0]));
        assert!(worker < MAX_STACK + 10 * MAX_NAME, "{worker}");
        assert!(death < MAX_STACK + MAX_STDERR + MAX_ERROR + 10 * MAX_NAME, "{death}");
        let deaths = std::mem::take(&mut status.recent_deaths);
        let rest = json_length(&status);
        assert!(rest < worker + 50 * 20 + (MAX_CAUSES + MAX_METHODS) * 2 * MAX_NAME, "{rest}");
        status.recent_deaths = deaths;
        assert_eq!((status.deaths.len(), status.calls.len()), (MAX_CAUSES, MAX_METHODS));
        assert_eq!((status.seconds, status.waiting_clients.len()), (0.0, MAX_WAITING));
        assert!(status.calls.values().all(|calls| calls.times.counts.len() == RANGES));
        let once = status.clone();
        sanitize(&mut status);
        assert_eq!(status, once);
    }

    #[test]
    fn names_that_differ_behind_the_cut_are_counted_together() {
        let name = |end: &str| format!("{}{end}", "n".repeat(MAX_NAME));
        let calls =
            |count: u64| json!({ "errors": count, "times": { "seconds": 1.0, "counts": [count] } });
        let mut status: ServerStatus = serde_json::from_value(json!({
            "name": "n", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 1, "forked": 0, "refused": 0,
            "deaths": { name("a"): 2, name("b"): 3 }, "calls": { name("a"): calls(2), name("b"): calls(3) },
            "workers": [],
        }))
        .unwrap();
        sanitize(&mut status);
        assert_eq!(status.deaths.values().collect::<Vec<_>>(), [&5]);
        let calls: Vec<_> = status.calls.values().collect();
        assert_eq!((calls.len(), calls[0].errors, calls[0].times.count()), (1, 5, 5));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(bounded("äöü", 3), "ä…");
        assert_eq!(bounded("abc", 3), "abc");
    }
}
