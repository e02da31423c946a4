//! The sandbox that a server passes to its workers.

use std::sync::Arc;

use taskfork_sandbox::PreparedSandbox;

/// The sandbox of a worker, and when the worker applies it.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSandbox {
    pub(crate) prepared: Arc<PreparedSandbox>,
    /// The worker applies it before `setup`, and else after it.
    pub(crate) before_setup: bool,
}
