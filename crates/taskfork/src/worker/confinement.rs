//! Applying the server's sandbox to a worker, or to the program that it runs.

use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use taskfork_sandbox::{ApplyError, PreparedSandbox};

use super::error_reply::ErrorReply;
use super::executable::Made;
use super::state::Worker;
use super::successor::Successor;
use super::telemetry;
use crate::context::context;
use crate::error::Failure;
use crate::sys;

/// The exit status of a worker that cannot be confined: `EX_OSERR` of sysexits.
const UNCONFINED_STATUS: i32 = 71;

/// Applies the sandbox to this process. A worker that cannot be confined exits, and serves nothing.
fn confine(sandbox: &PreparedSandbox, number: u64) {
    sys::record_user_map();
    let Err(error) = sandbox.apply(context().scratch()) else { return };
    let hint = match error {
        ApplyError::Threads => {
            ": start threads in a call and not in `setup`, or set `before_setup`"
        }
        _ => "",
    };
    tracing::error!(worker = number, "a worker cannot be confined, and ends: {error}{hint}");
    eprintln!("this worker cannot be confined: {error}{hint}");
    sys::exit_now(UNCONFINED_STATUS);
}

const TOO_LATE: &str = "the program of this worker could not be started before, and cannot take over a connection with answered \
                        calls: check out another worker";

impl<S: 'static> Worker<'_, S> {
    /// Whether this worker still has to apply its sandbox. Until then it may have one thread only.
    #[taskfork_macros::startup_code]
    fn is_unconfined(&self) -> bool {
        self.sandbox.is_some() && self.handlers.program.is_none()
    }

    /// Applies the sandbox, if there is one that has not been applied.
    #[taskfork_macros::startup_code]
    fn confine(&mut self) {
        if self.handlers.program.is_some() {
            return;
        }
        let Some(sandbox) = self.sandbox.take() else { return };
        sys::set_violation_word(self.slot.violation_word());
        confine(&sandbox.prepared, self.number);
        if let Some(connection) = self.connection {
            telemetry::set_output(connection);
        }
    }

    /// Runs `setup`, and applies the sandbox before or after it. Returns the worker's state.
    #[taskfork_macros::startup_code]
    pub(super) fn set_up(&mut self) -> Result<S, ErrorReply> {
        if let Some(gate) = self.gate.take() {
            // The server's end kills this process.
            while poll(&mut [PollFd::new(&gate, PollFlags::IN)], None) == Err(Errno::INTR) {}
        }
        if self.cannot_be_taken_over() {
            return Err(ErrorReply::setup(Failure::new(TOO_LATE)));
        }
        if self.sandbox.as_ref().is_some_and(|sandbox| sandbox.before_setup) {
            self.confine();
        }
        // If this fails, the client learns it by the answer to a call, and what it has sent is not read once more.
        let successor = self.successor.take();
        let made = match successor {
            Some(_) if self.slot.programs_take_over() => Made::TakesOver,
            _ => self.handlers.set_up(self.sandbox.as_ref())?,
        };
        match made {
            Made::State(state) => {
                self.confine();
                Ok(state)
            }
            Made::TakesOver => Err(self.execute_program(successor)),
        }
    }

    /// Whether only another worker can serve: its program serves connections itself, and this one is past that, because it has
    /// answered a call by an error.
    pub(super) fn cannot_be_taken_over(&self) -> bool {
        let takes_over = self.program_takes_over || self.slot.programs_take_over();
        let is_early = self.successor.is_some() || self.state.is_some();
        self.handlers.program.is_some() && takes_over && !is_early
    }

    /// Executes the program in the place of this process. Returns only if that fails.
    fn execute_program(&mut self, successor: Option<Successor>) -> ErrorReply {
        self.program_takes_over = true;
        let error = match self.handlers.program.as_ref().zip(successor) {
            Some((program, successor)) => {
                let sandbox = self.sandbox.as_ref();
                successor.execute(program, sandbox, self.slot, self.memory.as_ref())
            }
            None => TOO_LATE.into(),
        };
        ErrorReply::setup(Failure::of(&*error))
    }

    /// Starts recording for the client at `connection`. The thread that sends
    /// records starts only after the sandbox applies.
    pub(super) fn start_telemetry(&mut self, connection: BorrowedFd<'static>) {
        if self.is_unconfined() {
            self.connection = Some(connection);
            telemetry::record_for_first_call();
        } else {
            telemetry::start(connection);
        }
    }
}
