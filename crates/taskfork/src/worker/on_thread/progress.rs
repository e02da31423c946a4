//! The reports of progress of a worker on a thread. A thread of its own sends them, so that whoever reports never
//! waits, and the last report arrives while the call goes on without another.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex};

use super::connection::Output;
use crate::progress::Progress;
use crate::sync::{ignore_poison, lock};
use crate::sys;
use crate::wire::frame;
use crate::wire::native;
use crate::worker::telemetry::INTERVAL;

thread_local! {
    /// The reports of the call that this thread runs, if it is a worker in the process of its client.
    static ON_THREAD: RefCell<Option<Arc<Shared>>> = const { RefCell::new(None) };
}

/// The reports of one worker. The thread that sends them ends when this is dropped.
#[derive(Debug)]
pub(super) struct ProgressReports(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when there is something to send, and when a call or the worker ends.
    changed: Condvar,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct State {
    /// How many calls have ended.
    calls: u64,
    /// What the current call has reported, until it is sent.
    progress: Option<Progress>,
    has_thread: bool,
    is_over: bool,
}

impl ProgressReports {
    pub(super) fn new(output: Arc<Output>) -> Self {
        let state = Mutex::default();
        Self(Arc::new(Shared { state, changed: Condvar::new(), output }))
    }

    /// Begins the reports of a call, which this thread runs.
    pub(super) fn begin_call(&self) {
        ON_THREAD.set(Some(self.0.clone()));
    }

    /// Ends the reports of the call. None is sent behind this.
    pub(super) fn end_call(&self) {
        ON_THREAD.set(None);
        // This waits for a report that is being sent.
        let _writing = self.0.output.lock();
        let mut state = lock(&self.0.state);
        state.calls += 1;
        // The answer says that all is done.
        state.progress = None;
        self.0.changed.notify_one();
    }
}

impl Drop for ProgressReports {
    fn drop(&mut self) {
        lock(&self.0.state).is_over = true;
        self.0.changed.notify_one();
    }
}

/// Records how far the call has got that this thread runs. Returns false if the thread is no worker.
pub(in crate::worker) fn record(progress: &Progress) -> bool {
    ON_THREAD.with_borrow(|shared| {
        let Some(shared) = shared else { return false };
        let mut state = lock(&shared.state);
        state.progress = Some(progress.clone());
        if !state.has_thread {
            let sender = shared.clone();
            // Without the thread there are no reports. The call needs none.
            let spawned = sys::spawn_without_signals("taskfork-notes", move || sender.send());
            state.has_thread = spawned.is_ok();
        }
        shared.changed.notify_one();
        true
    })
}

impl Shared {
    /// Sends the latest report at each end of an interval.
    fn send(&self) {
        loop {
            let waited = self
                .changed
                .wait_while(lock(&self.state), |state| state.progress.is_none() && !state.is_over);
            let state = ignore_poison(waited);
            let call = state.calls;
            let is_same = |state: &mut State| state.calls == call && !state.is_over;
            drop(self.changed.wait_timeout_while(state, INTERVAL, is_same));
            let writing = self.output.lock();
            let mut state = lock(&self.state);
            if state.is_over {
                return;
            }
            // That of another call waits for its own interval.
            let progress = if state.calls == call { state.progress.take() } else { None };
            drop(state);
            let Some(progress) = progress else { continue };
            let mut out = Vec::new();
            frame::put(&mut out, |out| native::put_progress(out, &progress));
            // If this fails, sending the answer fails as well.
            let _ = self.output.write(&writing, &out);
        }
    }
}
