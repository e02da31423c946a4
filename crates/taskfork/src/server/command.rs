//! What the command line tool shares with servers. It serves the pools of a file, each in a process of its own, and
//! treats signals and the service manager as a server does.

use std::process::Command;

use nix::sys::signal::Signal;

use super::hangup::Hangup;
use super::service_manager::ServiceManager;
use crate::sys;

/// What SIGHUP means to this process, where `restart` is the option of
/// [`restart_on_hangup`](crate::ServerBuilder::restart_on_hangup).
pub(crate) fn meaning_of_hangup(restart: Option<bool>) -> Hangup {
    Hangup::of_this_process(restart)
}

/// The service manager that has started this process, which is no server itself.
pub(crate) fn service_manager() -> ServiceManager {
    ServiceManager::of_program()
}

/// Has the program that `command` starts, a server, keep SIGHUP, SIGUSR1 and SIGUSR2 until it handles them. By
/// default they would end it while it starts.
pub(crate) fn block_signals_until_served(command: &mut Command) -> &mut Command {
    sys::set_blocked_signals(command, [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]);
    command
}
