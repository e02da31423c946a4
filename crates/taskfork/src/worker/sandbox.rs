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

/// Whom the sandbox confines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Confined {
    /// The worker itself.
    Worker,
    /// The program that the worker starts in `setup`. The worker passes calls on to it and runs no code
    /// of a user.
    Program,
}
