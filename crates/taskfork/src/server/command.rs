//! What the command line tool shares with servers. It runs the pools of a configuration file in
//! processes of their own, and treats signals and the service manager as a server does.

use std::process::Command;

use nix::sys::signal::Signal;

use super::hangup::Hangup;
use super::service_manager::ServiceManager;
use crate::sys;

/// The meaning of SIGHUP for this process. `restart` is the option
/// [`restart_on_hangup`](crate::ServerBuilder::restart_on_hangup).
pub(crate) fn meaning_of_hangup(restart: Option<bool>) -> Hangup {
    Hangup::of_this_process(restart)
}

/// The service manager of this process, which is not a server itself.
pub(crate) fn service_manager() -> ServiceManager {
    ServiceManager::of_program()
}

/// Blocks SIGHUP, SIGUSR1 and SIGUSR2 in the server that `command` starts, until it handles them. Their
/// default action would end the server while it starts.
pub(crate) fn block_signals_until_served(command: &mut Command) -> &mut Command {
    sys::set_blocked_signals(command, [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2]);
    command
}
