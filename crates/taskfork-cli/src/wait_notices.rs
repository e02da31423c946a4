//! Notices about what a call waits for, and an error where waiting cannot succeed.

use std::fmt::Display;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use rustix::io::Errno;
use taskfork::Client;

use crate::error::CommandError;
use crate::server_address::ServerAddress;
use crate::{logging, option_names};

/// How long a command waits for a worker before it writes a notice.
const NOTICE_DELAY: Duration = Duration::from_secs(1);

/// How often the command checks whether it has a worker.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits for `task`. Until the client has its first worker, this writes notices about what it waits for. It fails
/// at once if this process may not use the server.
pub(crate) async fn with_wait_notices<T>(
    client: &Client,
    address: &ServerAddress,
    timeout: Option<Duration>,
    logging: &logging::Options,
    task: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::select! {
        biased;
        outcome = task => outcome,
        error = watch(client, address, timeout, logging) => Err(error),
    }
}

async fn watch(
    client: &Client,
    address: &ServerAddress,
    timeout: Option<Duration>,
    logging: &logging::Options,
) -> CommandError {
    let start = Instant::now();
    let mut is_notified = false;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let stats = client.stats();
        let unreachable = stats.unreachable.as_deref().map(option_names::in_text);
        if stats.checkouts > 0 {
            // From now on the call itself takes the time.
            return std::future::pending().await;
        }
        if let Some(reason) = &unreachable
            && is_permanent(address, reason)
        {
            return CommandError::fatal(format!("cannot use the server at {address}: {reason}"))
                .hint("check who may use the socket: its permissions, its folder's, and the server's --allow-users");
        }
        if !is_notified && start.elapsed() >= NOTICE_DELAY {
            is_notified = true;
            let limit: &dyn Display = match timeout {
                Some(timeout) => {
                    &format_args!("for {} at most (--timeout)", humantime::format_duration(timeout))
                }
                None => &"without a limit (--timeout 0)",
            };
            match unreachable {
                Some(reason) => {
                    logging.notice(&format!("waiting for a server at {address}, {limit}: {reason}"))
                }
                None => logging.notice(&format!(
                    "waiting for the server at {address} to give a worker, {limit}"
                )),
            }
        }
    }
}

/// Whether every further attempt would fail in the same way.
fn is_permanent(address: &ServerAddress, reason: &str) -> bool {
    // If the socket does not exist, a server may still create it.
    let is_denied = address
        .socket_path()
        .is_some_and(|path| access(&path, Access::WRITE_OK) == Err(Errno::ACCESS));
    is_denied
        || reason.contains("may not use this server")
        || reason.contains("this server does not take the")
}
