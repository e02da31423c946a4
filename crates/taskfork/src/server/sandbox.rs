//! Preparing the sandbox of workers when a server starts.

use std::sync::Arc;

use taskfork_sandbox::{Level, Sandbox};

use super::error::ServerError;
use super::log;
use crate::sys;
use crate::worker::WorkerSandbox;

/// Checks that the kernel has what the sandbox needs, and makes what each worker applies. Returns `None` if
/// workers are to have no sandbox.
pub(super) fn prepare_sandbox(sandbox: &Sandbox) -> Result<Option<WorkerSandbox>, ServerError> {
    if sandbox.level() == Level::Off {
        return Ok(None);
    }
    let prepared = sandbox.prepare().map_err(|source| ServerError::Sandbox { source })?;
    let prepared = prepared.on_violation(sys::record_violation);
    for feature in prepared.lacking() {
        log::warn!(
            "the sandbox of workers is weaker than its level, because the kernel lacks {feature}"
        );
    }
    Ok(Some(WorkerSandbox {
        prepared: Arc::new(prepared),
        before_setup: sandbox.applies_before_setup(),
    }))
}
