//! The thread that waits for the end of a server's process, and starts the server again if it died.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Process, Shared, State};
use crate::address::Address;
use crate::display::seconds;
use crate::server::process::wait_for;
use crate::server::starting_process::RunningServer;
use crate::sync::{ignore_poison, lock};

/// A server that has run for this long is replaced at once.
const STABLE_TIME: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

impl Shared {
    /// The thread's function. It returns when the server has ended and is not replaced.
    pub(super) fn watch_process(self: Arc<Self>) {
        let mut delay = Backoff::default();
        loop {
            let state = self.lock_refreshed();
            match &state.process {
                Process::Runs(pidfd) => {
                    let pidfd = pidfd.clone();
                    drop(state);
                    wait_for(&pidfd);
                }
                Process::Restarting => {
                    let end = state.last_end.clone();
                    let ran = end.as_ref().map(|(at, _)| at.saturating_duration_since(state.since));
                    // The lock is released first, because a subscriber may call the server.
                    drop(state);
                    end.into_iter().for_each(|(_, end)| tracing::error!("{end}"));
                    self.replace(&mut delay, ran.unwrap_or_default());
                }
                Process::Ended(end) => {
                    let end = end.clone();
                    drop(state);
                    tracing::info!("{end}");
                    return;
                }
            }
        }
    }

    /// Starts the server again, as often as necessary.
    fn replace(self: &Arc<Self>, delay: &mut Backoff, ran: Duration) {
        let Some(launch) = &self.launch else { return };
        let mut pause = delay.next(ran);
        loop {
            let name = launch.name();
            tracing::info!(name, "the server is started again after {}", seconds(pause));
            let state = lock(&self.state);
            let waited =
                self.changed.wait_timeout_while(state, pause, |state| state.shutdown.is_none());
            let (mut state, _) = ignore_poison(waited);
            if state.shutdown.is_some() {
                return self.cancel_restart(&mut state);
            }
            let previous = state.address.clone();
            drop(state);
            let is_shut_down = || lock(&self.state).shutdown.is_some();
            let started = launch.start(previous.as_ref(), &is_shut_down);
            let mut state = lock(&self.state);
            let RunningServer { pid, pidfd, channel, address } = match started {
                Ok(started) => started,
                Err(_) if state.shutdown.is_some() => return self.cancel_restart(&mut state),
                Err(error) => {
                    state.restart_failure = Some(error.to_string());
                    drop(state);
                    tracing::error!(name, "the server cannot be started again: {error}");
                    pause = delay.next(Duration::ZERO);
                    continue;
                }
            };
            let is_elsewhere = address.as_ref().map(Address::to_string)
                != previous.as_ref().map(Address::to_string);
            *state = State {
                pid,
                channel: Some(channel),
                address,
                process: Process::Runs(Arc::new(pidfd)),
                since: Instant::now(),
                restart_failure: None,
                last_end: state.last_end.take(),
                shutdown: state.shutdown,
                has_watcher: true,
            };
            if state.shutdown.is_some() {
                state.close_channel();
            }
            self.changed.notify_all();
            drop(state);
            tracing::info!(name, "the server runs again, as process {pid}");
            if is_elsewhere {
                tracing::error!(name, "the new server listens at another address");
            }
            return;
        }
    }

    /// Ends the replacement, because of a request to shut the server down.
    fn cancel_restart(&self, state: &mut State) {
        if let Some((_, end)) = &state.last_end {
            state.process = Process::Ended(end.clone());
        }
        self.changed.notify_all();
    }
}

/// The pause before a server is started again.
#[derive(Debug, Default)]
struct Backoff(Duration);

impl Backoff {
    /// The pause after a server that ran for this long.
    fn next(&mut self, ran: Duration) -> Duration {
        self.0 = match ran >= STABLE_TIME {
            true => Duration::ZERO,
            false => (self.0 * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF),
        };
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_dies_again_and_again_is_started_ever_more_seldom() {
        let mut delay = Backoff::default();
        let short = Duration::from_secs(1);
        let pauses: Vec<_> = (0..9).map(|_| delay.next(short).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(delay.next(STABLE_TIME), Duration::ZERO);
        assert_eq!(delay.next(short), FIRST_BACKOFF);
    }
}
