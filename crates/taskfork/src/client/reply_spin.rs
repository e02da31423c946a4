//! Spinning for an answer for a moment before the task that awaits it yields.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Context;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::busy_poll::{BusyPoll, SpinLoop, SpinPolicy};

/// For how long at most, unless told otherwise.
const LONGEST: Duration = Duration::from_micros(50);

/// How many threads of this process look now.
static SPINNING: AtomicUsize = AtomicUsize::new(0);

/// What a connection knows of the answers that it has waited for.
#[derive(Debug)]
pub(crate) struct ReplySpin {
    policy: SpinPolicy,
    cores: usize,
    /// When the call was sent that runs.
    sent: Option<Instant>,
    /// That call has not been looked for yet.
    due: bool,
}

/// A look that goes on. While there is one, its thread counts.
#[derive(Debug)]
pub(crate) struct SpinGuard {
    spin_loop: SpinLoop,
    /// The runtime looks, for this answer and for others.
    shared: bool,
}

impl SpinGuard {
    /// The same for whoever waits in this runtime, if there is one: it looks at all sockets, and runs what else
    /// there is to be run, each time that this is polled again. So many workers are busy, on so many cores.
    pub(crate) fn shared(mut self, busy: usize, cores: usize) -> Self {
        self.shared = Handle::try_current().is_ok();
        if self.shared && busy >= cores {
            self.spin_loop.yield_always();
        }
        self
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    /// Whether this glance is for the socket as well, where there is a ring.
    pub(crate) fn checks_socket(&self) -> bool {
        self.spin_loop.checks_socket()
    }

    /// The last glance was in vain: waits for the next. Tells whether there is one.
    pub(crate) fn pause(&mut self) -> bool {
        self.spin_loop.pause()
    }

    /// Has the task polled again once the runtime has looked.
    pub(crate) fn yield_to_runtime(&self, context: &mut Context<'_>) {
        // It has the runtime wake the task then, and is not needed for more.
        let _ = pin!(tokio::task::yield_now()).poll(context);
    }
}

impl Drop for SpinGuard {
    fn drop(&mut self) {
        SPINNING.fetch_sub(1, Relaxed);
    }
}

impl ReplySpin {
    pub(crate) fn new(mode: BusyPoll, cores: usize) -> Self {
        Self { policy: SpinPolicy::new(mode, LONGEST), cores, sent: None, due: false }
    }

    /// Whether who answers has another core, so that this one may have to be woken.
    pub(crate) fn has_other_cores(&self) -> bool {
        self.cores > 1
    }

    /// A call has been sent.
    pub(crate) fn record_sent(&mut self) {
        self.due = true;
        if self.policy.is_adaptive() {
            self.sent = Some(Instant::now());
        }
    }

    /// Its answer, or a part of it, came without having been looked for.
    pub(crate) fn record_sleep(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.policy.record_sleep(sent.elapsed());
        }
    }

    /// Begins to look for the answer, once a call, if that pays and a core is there for it.
    pub(crate) fn begin(&mut self) -> Option<SpinGuard> {
        if !std::mem::take(&mut self.due) {
            return None;
        }
        let budget = self.policy.budget()?;
        let others = SPINNING.fetch_add(1, Relaxed);
        let spin_guard = SpinGuard {
            spin_loop: SpinLoop::new(&self.policy, budget, self.cores == 1),
            shared: false,
        };
        // One core is for those who answer. A single one is given up to them in between.
        let is_core_free = self.cores == 1 || others + 1 < self.cores;
        (!self.policy.is_adaptive() || is_core_free).then_some(spin_guard)
    }

    /// It came while the runtime looked.
    pub(crate) fn record_found(&mut self) {
        self.sent = None;
        self.policy.record_success();
    }

    /// What came of a look.
    pub(crate) fn finish(&mut self, spin_guard: &SpinGuard, found: bool) {
        self.sent = if found { None } else { self.sent };
        spin_guard.spin_loop.report(&mut self.policy, found);
    }
}
