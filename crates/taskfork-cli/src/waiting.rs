//! Saying what a call waits for, and giving up where waiting is of no use.

use std::fmt::Display;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use taskfork::Client;

use crate::failure::Failure;
use crate::logging;
use crate::place::Place;

/// How long a command is silent while it has no worker.
const SILENT: Duration = Duration::from_secs(1);

/// How often it looks whether it has one.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for `done`. Until the client has had its first worker, this says what it waits for, and fails at once
/// where this process may not use the server.
pub(crate) async fn watched<T>(
    client: &Client,
    place: &Place,
    timeout: Option<Duration>,
    logging: &logging::Options,
    done: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        outcome = done => outcome,
        failure = watch(client, place, timeout, logging) => Err(failure),
    }
}

async fn watch(
    client: &Client,
    place: &Place,
    timeout: Option<Duration>,
    logging: &logging::Options,
) -> Failure {
    let begun = Instant::now();
    let mut is_told = false;
    loop {
        tokio::time::sleep(LOOK).await;
        let stats = client.stats();
        if stats.checkouts > 0 {
            // From here on it is the call that takes its time.
            return std::future::pending().await;
        }
        if let Some(reason) = &stats.unreachable
            && is_final(place, reason)
        {
            return Failure::fatal(format!("cannot use the server at {place}: {reason}"))
                .hint("check who may use the socket: its permissions, its folder's, and the server's --allow-users");
        }
        if !is_told && begun.elapsed() >= SILENT {
            is_told = true;
            let limit: &dyn Display = match timeout {
                Some(timeout) => {
                    &format_args!("for {} at most (--timeout)", humantime::format_duration(timeout))
                }
                None => &"without a limit (--timeout 0)",
            };
            match stats.unreachable {
                Some(reason) => {
                    logging.say(&format!("waiting for a server at {place}, {limit}: {reason}"))
                }
                None => logging
                    .say(&format!("waiting for the server at {place} to give a worker, {limit}")),
            }
        }
    }
}

/// Whether the same would happen however often it is tried.
fn is_final(place: &Place, reason: &str) -> bool {
    // A socket that does not exist yet can still be made by a server.
    let is_denied = place
        .socket_path()
        .is_some_and(|path| access(&path, Access::WRITE_OK) == Err(Errno::ACCESS));
    is_denied
        || reason.contains("may not use this server")
        || reason.contains("this server does not take the")
}
