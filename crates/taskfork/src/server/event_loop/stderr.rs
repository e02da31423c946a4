//! Reading the standard error of workers. The server pauses for workers that write too much.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};

use super::{EventLoop, token};
use crate::server::log;
use crate::server::log_limit::WINDOW;
use crate::server::stderr::{MAX_BYTES_PER_SLICE, MIN_BYTES_PER_SLICE, ReadOutcome};

/// Workers whose standard error exceeds a limit.
#[derive(Debug, Default)]
pub(super) struct LimitedStderr {
    /// It is not read before this time.
    paused: Vec<(Instant, u64)>,
    /// Lines were omitted, and that has not been logged.
    omitted: BTreeSet<u64>,
}

impl EventLoop {
    /// Reads what a worker has written to standard error.
    pub(super) fn read_stderr(&mut self, number: u64) {
        let Some(child) = self.children.get_mut(number) else { return };
        let limit = (MAX_BYTES_PER_SLICE / (self.logs.limited_stderr.paused.len() + 1))
            .max(MIN_BYTES_PER_SLICE);
        match child.forward_stderr(&mut self.logs.stderr, limit) {
            None | Some(ReadOutcome::MayHaveMore) => {}
            Some(ReadOutcome::Ended(pipe)) => {
                let _ = epoll::delete(&self.process.epoll, &pipe);
                drop(pipe);
                // A new worker must not close what gets this number next.
                let forks = &self.process.partial_forks;
                self.children.note_low(number, |descriptor| forks.is_low(descriptor));
            }
            Some(ReadOutcome::Paused(until)) => {
                // A watch without events would still report the end of the pipe, in a loop.
                if let Some(pipe) = child.stderr() {
                    let _ = epoll::delete(&self.process.epoll, pipe);
                }
                self.logs.limited_stderr.paused.push((until, number));
            }
        }
        let Some(child) = self.children.get_mut(number) else { return };
        let omitted = child.report_omitted_lines(&mut self.logs.stderr, Instant::now());
        if omitted.is_some() {
            self.logs.limited_stderr.omitted.insert(number);
        }
    }

    /// Ends the pauses that are over, and logs how many lines were omitted. Returns the time until
    /// something is due.
    pub(super) fn resume_stderr(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let due: Vec<_> =
            self.logs.limited_stderr.paused.extract_if(.., |(until, _)| *until <= now).collect();
        for (_, number) in due {
            let Some(pipe) = self.children.get(number).and_then(|child| child.stderr()) else {
                continue;
            };
            if let Err(error) = self.watch(pipe.as_fd(), token(number, 1), EventFlags::IN) {
                log::error!("the standard error of worker {number} cannot be read: {error}");
                self.logs.limited_stderr.paused.push((now + WINDOW, number));
            }
        }
        let LimitedStderr { paused, omitted } = &mut self.logs.limited_stderr;
        let mut next = paused.iter().map(|(until, _)| until.saturating_duration_since(now)).min();
        omitted.retain(|&number| {
            let child = self.children.get_mut(number);
            let left = child.and_then(|it| it.report_omitted_lines(&mut self.logs.stderr, now));
            next = next.into_iter().chain(left).min();
            left.is_some()
        });
        next
    }
}
