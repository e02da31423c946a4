//! What a node tells about its server.

use std::io;
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use taskfork::server::ServerStatus;
use taskfork_nats::Bounds;

/// Reads the status of the server at this status socket.
pub(super) async fn read(path: PathBuf) -> io::Result<ServerStatus> {
    let answer = tokio::task::spawn_blocking(move || ServerStatus::read(path)).await;
    answer.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The details of the node's status: a summary, and the whole status of the server if that is wanted. Workers that do not
/// fit are left out; the summary counts them.
pub(super) async fn details(path: PathBuf, bounds: Bounds) -> Result<Json, String> {
    let status =
        read(path).await.map_err(|error| format!("the server does not answer: {error}"))?;
    details_of(status, bounds.full, bounds.most)
}

fn details_of(mut status: ServerStatus, full: bool, most: usize) -> Result<Json, String> {
    let busy = status.workers.iter().filter(|worker| worker.state == "busy").count();
    let mut details = json!({
        "workers": status.workers.len(),
        "max_workers": status.max_workers,
        "busy": busy,
        "queued": status.queued,
        "calls": status.workers.iter().map(|worker| worker.calls).sum::<u64>(),
        "forked": status.forked,
        "accepting": status.accepting,
    });
    if full {
        loop {
            let server = serde_json::to_value(&status).map_err(|error| error.to_string())?;
            details["server"] = server;
            let length = details.to_string().len();
            if length <= most || status.workers.is_empty() {
                break;
            }
            let fit = status.workers.len() * most / length;
            status.workers.truncate(fit.min(status.workers.len() - 1));
        }
    }
    Ok(details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(workers: usize) -> ServerStatus {
        let worker = |number: usize| {
            json!({
                "number": number, "pid": 1, "state": if number == 1 { "busy" } else { "idle" }, "seconds": 1.0,
                "method": "m".repeat(64), "calls": 2, "checkouts": 0,
            })
        };
        let workers: Vec<_> = (1..=workers).map(worker).collect();
        serde_json::from_value(json!({
            "name": "s", "pid": 1, "seconds": 1.0, "accepting": true, "max_workers": 9, "forked": 1,
            "refused": 0, "deaths": {}, "workers": workers,
        }))
        .unwrap()
    }

    #[test]
    fn workers_that_do_not_fit_are_counted_and_left_out() {
        let short = details_of(status(500), false, 0).unwrap();
        assert_eq!((&short["workers"], &short["busy"]), (&json!(500), &json!(1)));
        assert_eq!((&short["calls"], short.get("server")), (&json!(1000), None));
        for most in [1000, 2000, 10_000, 1 << 20] {
            let full = details_of(status(500), true, most).unwrap();
            assert!(full.to_string().len() <= most, "{most}");
            assert_eq!(full["workers"], json!(500));
            let told = full["server"]["workers"].as_array().unwrap().len();
            assert_eq!(told == 500, most == 1 << 20, "{told} of {most}");
            assert!(told > 0 || most < 2000, "{told} of {most}");
        }
    }
}
