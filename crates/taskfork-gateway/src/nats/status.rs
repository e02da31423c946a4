//! What a node tells about its server.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};
use taskfork::server::{DeathStatus, ServerStatus};
use taskfork_nats::{Bounds, Recent};

/// The part of a message that deaths may have. The rest is for the stack of a call.
const DEATHS_SHARE: usize = 2;

/// Reads the status of the server at this status socket.
pub(super) async fn read(path: PathBuf) -> io::Result<ServerStatus> {
    let answer = tokio::task::spawn_blocking(move || ServerStatus::read(path)).await;
    answer.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The details of the node's status: a summary, and the whole status of the server if that is wanted. Workers that do not
/// fit are left out; the summary counts them.
pub(super) async fn details(path: PathBuf, bounds: Bounds) -> Result<Json, String> {
    let no_answer = |error| format!("the server does not answer: {error}");
    let Some(recent) = bounds.recent else {
        return details_of(read(path).await.map_err(no_answer)?, bounds.full, bounds.most);
    };
    let Recent { after, sample, .. } = recent;
    let asked = move || read_recent(&path, after, sample);
    let answer = tokio::task::spawn_blocking(asked).await;
    let status = answer.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(no_answer)?;
    recent_of(status, sample, bounds.most)
}

/// The status with the deaths after this one and, if the server shares them, with the stacks of deaths and of a worker. The names
/// of functions cost time, and a worker gets a signal for its stack, so the first question is without both: its answer says
/// whether they may be told at all.
fn read_recent(path: &Path, after: u64, sample: Option<u64>) -> io::Result<ServerStatus> {
    let status = ServerStatus::read_deaths(path, after)?;
    match status.share_details {
        true => ServerStatus::read_details(path, after, sample),
        false => Ok(status),
    }
}

/// What happened lately: deaths, oldest first, as many as fit, and the stack of one call. Whoever may ask at NATS is none of
/// the server's own user, so the end of standard error and stacks are there only if the server shares them.
fn recent_of(mut status: ServerStatus, sample: Option<u64>, most: usize) -> Result<Json, String> {
    let json = |death: &DeathStatus| serde_json::to_value(death).map_err(|error| error.to_string());
    let (mut deaths, mut length) = (Vec::new(), 0);
    for mut death in std::mem::take(&mut status.recent_deaths) {
        if !status.share_details {
            withhold(&mut death);
        }
        let mut told = json(&death)?;
        if deaths.is_empty() && told.to_string().len() > most / DEATHS_SHARE {
            // Otherwise no death behind it would ever be told.
            (death.stderr, death.stack) = (None, None);
            told = json(&death)?;
        }
        length += told.to_string().len() + 1;
        if length > most / DEATHS_SHARE {
            break;
        }
        deaths.push(told);
    }
    let sampled = status.workers.iter().find(|worker| Some(worker.number) == sample);
    let sampled = sampled.filter(|worker| worker.stack.is_some() && status.share_details);
    let mut details = json!({
        "pid": status.pid,
        "instance": status.instance,
        "recent_deaths": deaths,
    });
    if let Some(worker) = sampled {
        details["sampled"] = json!({
            "worker": worker.number, "pid": worker.pid, "calls": worker.calls, "stack": worker.stack,
        });
        if details.to_string().len() > most {
            details["sampled"] = Json::Null;
        }
    }
    Ok(details)
}

/// Takes out what only clients of the server's own user may know.
fn withhold(death: &mut DeathStatus) {
    (death.stderr, death.stack) = (None, None);
    if death.cause == "setup_failed" {
        // The rest is what the code of the setup has said.
        let end = death.text.find(": ").unwrap_or(death.text.len());
        death.text.truncate(end);
    }
}

fn details_of(mut status: ServerStatus, full: bool, most: usize) -> Result<Json, String> {
    let busy = status.workers.iter().filter(|worker| worker.state == "busy").count();
    let mut details = json!({
        "workers": status.workers.len(),
        "max_workers": status.max_workers,
        "busy": busy,
        "queued": status.queued,
        "calls": status.calls.values().map(|calls| calls.times.count()).sum::<u64>(),
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
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

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
            "calls": {
                "m": { "errors": 0, "times": { "seconds": 1.0, "counts": [3, 0, 1] } },
                "(other)": { "errors": 1, "times": { "seconds": 0.5, "counts": [0, 2] } },
            },
        }))
        .unwrap()
    }

    fn with_deaths(deaths: usize, share: bool) -> ServerStatus {
        let mut status = status(2);
        let death = |number: usize| {
            json!({
                "number": number, "at": 1.0, "worker": number, "pid": 1, "cause": "setup_failed", "calls": 0,
                "text": "exited with status 1: the password of the database is wrong",
                "stderr": "e".repeat(1000), "stack": "s".repeat(1000),
            })
        };
        let deaths = (1..=deaths).map(|number| serde_json::from_value(death(number)).unwrap());
        status.recent_deaths = deaths.collect();
        status.share_details = share;
        status.workers[0].stack = Some("main".to_owned());
        status
    }

    #[test]
    fn what_workers_said_and_stacks_are_told_only_if_the_server_shares_them() {
        let shared = recent_of(with_deaths(3, true), Some(1), 1 << 20).unwrap();
        assert_eq!(shared["recent_deaths"][2]["stderr"].as_str().unwrap().len(), 1000);
        assert_eq!(shared["sampled"]["stack"], json!("main"));
        let text = recent_of(with_deaths(3, false), Some(1), 1 << 20).unwrap().to_string();
        for secret in ["eee", "sss", "password", "main"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert_eq!(text.matches("exited with status 1\"").count(), 3, "{text}");
    }

    #[test]
    fn a_server_that_shares_nothing_is_asked_for_no_stack() {
        for (shares, expected) in
            [(false, &["deaths 3\n"][..]), (true, &["deaths 3\n", "details 3 1\n"])]
        {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s.status");
            let listener = UnixListener::bind(&path).unwrap();
            let answering = std::thread::spawn(move || {
                let answer = serde_json::to_string(&with_deaths(1, shares)).unwrap();
                let answers = expected.iter().map(|_| {
                    let (mut question, mut stream) = (String::new(), listener.accept().unwrap().0);
                    stream.read_to_string(&mut question).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                    question
                });
                answers.collect::<Vec<_>>()
            });
            assert_eq!(read_recent(&path, 3, Some(1)).unwrap().share_details, shares);
            assert_eq!(answering.join().unwrap(), expected);
        }
    }

    #[test]
    fn deaths_that_do_not_fit_are_for_the_next_answer() {
        for most in [600, 3000, 10_000, 1 << 20] {
            let told = recent_of(with_deaths(50, true), Some(1), most).unwrap();
            assert!(told.to_string().len() <= most, "{most}: {}", told.to_string().len());
            let numbers: Vec<_> = told["recent_deaths"].as_array().unwrap().iter().collect();
            assert!(!numbers.is_empty() && numbers[0]["number"] == json!(1), "{most}");
            assert_eq!(numbers.len() == 50, most == 1 << 20);
        }
    }

    #[test]
    fn workers_that_do_not_fit_are_counted_and_left_out() {
        let short = details_of(status(500), false, 0).unwrap();
        assert_eq!((&short["workers"], &short["busy"]), (&json!(500), &json!(1)));
        assert_eq!((&short["calls"], short.get("server")), (&json!(6), None));
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
