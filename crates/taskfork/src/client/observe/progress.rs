//! How far a call has got, for the tasks that watch it.

use std::sync::Mutex;
use std::task::Waker;

use crate::progress::Progress;
use crate::sync::lock;

/// The last report of a call's progress, and the tasks that wait for the next one. A session sets it while it is
/// locked, and the core wakes the tasks when no session is locked.
#[derive(Debug, Default)]
pub(crate) struct ProgressCell(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    latest: Option<Progress>,
    /// How many reports there have been.
    version: u64,
    /// No more will come.
    is_over: bool,
    /// Each waiting task with the number of its watcher.
    waiting: Vec<(u64, Waker)>,
    watchers: u64,
}

/// What a watcher learns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// This report, with its number.
    Report(Progress, u64),
    /// There is none yet.
    None,
    /// The call is over.
    Over,
}

impl ProgressCell {
    /// A new report. [`wake`](Self::wake) must follow.
    pub(crate) fn set(&self, progress: Progress) {
        let mut state = lock(&self.0);
        state.latest = Some(progress);
        state.version += 1;
    }

    /// No more reports will come. [`wake`](Self::wake) must follow.
    pub(crate) fn end(&self) {
        lock(&self.0).is_over = true;
    }

    /// Wakes the tasks that wait. No session may be locked.
    pub(crate) fn wake(&self) {
        let waiting = std::mem::take(&mut lock(&self.0).waiting);
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// The number of a new watcher.
    pub(crate) fn add_watcher(&self) -> u64 {
        let mut state = lock(&self.0);
        state.watchers += 1;
        state.watchers
    }

    pub(crate) fn remove_watcher(&self, watcher: u64) {
        lock(&self.0).waiting.retain(|(number, _)| *number != watcher);
    }

    pub(crate) fn latest(&self) -> Option<Progress> {
        lock(&self.0).latest.clone()
    }

    /// What has changed since the report with the number `seen`. If nothing has, wakes the task later.
    pub(crate) fn poll(&self, watcher: u64, seen: u64, waker: &Waker) -> Change {
        let mut state = lock(&self.0);
        match &state.latest {
            Some(latest) if state.version > seen => Change::Report(latest.clone(), state.version),
            _ if state.is_over => Change::Over,
            _ => {
                state.waiting.retain(|(number, _)| *number != watcher);
                state.waiting.push((watcher, waker.clone()));
                Change::None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_gets_the_latest_report_once_and_then_the_end() {
        let (cell, waker) = (ProgressCell::default(), Waker::noop());
        assert_eq!(cell.poll(1, 0, waker), Change::None);
        cell.set(Progress::new(1, 3, "steps"));
        cell.set(Progress::new(2, 3, "steps"));
        assert_eq!(cell.poll(1, 0, waker), Change::Report(Progress::new(2, 3, "steps"), 2));
        assert_eq!(cell.poll(1, 2, waker), Change::None);
        cell.set(Progress::new(3, 3, "steps"));
        cell.end();
        assert_eq!(cell.poll(1, 2, waker), Change::Report(Progress::new(3, 3, "steps"), 3));
        assert_eq!(cell.poll(1, 3, waker), Change::Over);
    }

    #[test]
    fn each_watcher_waits_with_one_waker() {
        let (cell, waker) = (ProgressCell::default(), Waker::noop());
        for _ in 0..3 {
            cell.poll(1, 0, waker);
            cell.poll(2, 0, waker);
        }
        assert_eq!(lock(&cell.0).waiting.len(), 2);
        cell.remove_watcher(1);
        assert_eq!(lock(&cell.0).waiting.len(), 1);
        cell.wake();
        assert_eq!(lock(&cell.0).waiting.len(), 0);
    }
}
