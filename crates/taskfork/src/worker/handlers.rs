//! The user's code around the calls: `setup` and `checkout_done`.

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use super::error_reply::ErrorReply;
use super::executable::{Executable, Made};
use super::sandbox::WorkerSandbox;
use super::user_code::catch_panic;
use crate::error::Failure;
use crate::sys;

/// Gets the sandbox of the program that it starts, if it starts one.
type Setup<S> = Box<dyn Fn(Option<&WorkerSandbox>) -> Result<Made<S>, Failure>>;
type CheckoutDone<S> = Box<dyn Fn(&mut S) -> Result<(), Failure>>;

pub(crate) struct Handlers<S> {
    pub(crate) setup: Setup<S>,
    /// `setup` is code of the user, or a program, and may take long.
    pub(crate) has_setup: bool,
    pub(crate) checkout_done: Option<CheckoutDone<S>>,
    /// The program that `setup` starts. The sandbox confines it, and not the worker, which runs no code of a user.
    pub(crate) program: Option<Executable>,
}

#[taskfork_macros::startup_code]
impl<S> Handlers<S> {
    /// Runs `setup` and returns the worker's state.
    pub(super) fn set_up(&self, sandbox: Option<&WorkerSandbox>) -> Result<Made<S>, ErrorReply> {
        let server = getppid();
        let result = catch_panic(|| (self.setup)(sandbox));
        ask_for_death_signal();
        if getppid() != server {
            // The server has ended already.
            sys::exit_now(0);
        }
        match result {
            Ok(result) => result.map_err(ErrorReply::setup),
            Err(panic) => Err(ErrorReply::setup(Failure::new(panic.to_string()))),
        }
    }

    /// Runs `checkout_done`, if there is one.
    pub(super) fn end_checkout(&self, state: &mut S) -> Result<(), ErrorReply> {
        let Some(checkout_done) = &self.checkout_done else { return Ok(()) };
        match catch_panic(|| checkout_done(state)) {
            Ok(result) => result.map_err(|failure| ErrorReply::interface(&failure)),
            Err(panic) => Err(ErrorReply::panic(panic)),
        }
    }
}

/// Logs that `setup` failed. A client without a call, and the client of another user, do not learn the
/// reason.
pub(super) fn log_setup_error(worker: u64, error: &ErrorReply) {
    tracing::error!(worker, "the setup of a worker failed: {}", error.setup_reason());
}

/// Asks the kernel to kill this worker when its server ends.
///
/// The worker asks again after `setup`, because the kernel drops the request when a process changes its
/// user or group.
#[taskfork_macros::startup_code]
fn ask_for_death_signal() {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        tracing::error!(
            "prctl(PR_SET_PDEATHSIG) failed after `setup`, so that this worker may outlive a server that is killed: {error}"
        );
    }
}
