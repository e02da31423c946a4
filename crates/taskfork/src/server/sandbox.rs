//! Preparing the sandbox of workers when a server starts.

use std::sync::Arc;

use taskfork_sandbox::{Level, Sandbox};

use super::error::ServerError;
use super::log;
use super::privileges::WorkerPrivileges;
use super::probe::probe_with_text;
use crate::sys::{self, ThreadCount};
use crate::worker::WorkerSandbox;

/// Checks that the kernel has what the sandbox needs and that a worker may apply it, and makes what each
/// worker applies. Returns `None` if workers are to have no sandbox.
pub(super) fn prepare_sandbox(
    sandbox: &Sandbox,
    privileges: &WorkerPrivileges,
    threads: &ThreadCount,
) -> Result<Option<WorkerSandbox>, ServerError> {
    if sandbox.level() == Level::Off {
        return Ok(None);
    }
    let prepared = sandbox.prepare().map_err(|source| ServerError::Sandbox { source })?;
    let prepared = prepared.on_violation(sys::record_violation);
    // A container may refuse what the kernel has, and the workers' user may not reach a path.
    let refused = probe_with_text(threads, "cannot try out the sandbox of workers", || {
        privileges.give_up().map_err(|error| error.to_string())?;
        prepared.apply(None).map_err(|error| error.to_string())
    })?;
    if let Some(refused) = refused {
        let reason = format!("a worker cannot apply it: {refused}");
        return Err(ServerError::option("sandbox", reason));
    }
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
