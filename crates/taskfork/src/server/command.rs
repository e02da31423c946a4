//! What the command line tool shares with servers. It runs the pools of a configuration file in
//! processes of their own, and treats signals and the service manager as a server does.

use std::io;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};

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

/// The signals that a server keeps while it starts. Their default action would end it.
const KEPT_SIGNALS: [Signal; 5] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

/// The signals that the command and its gateways keep while they start. Those that end them do so at any time: nobody is
/// served yet.
const KEPT_BY_COMMANDS: [Signal; 3] = [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];

/// Blocks the signals in the gateway that `command` starts, until it calls [`handle_kept_signals`].
pub(crate) fn keep_signals_until_handled(command: &mut Command) -> &mut Command {
    sys::set_blocked_signals(command, KEPT_BY_COMMANDS);
    command
}

/// Blocks these signals in this thread, until a server takes them or [`handle_all_kept_signals`] is called.
pub(crate) fn keep_signals() -> io::Result<()> {
    sys::block_signals(&KEPT_BY_COMMANDS.into_iter().collect()).map(drop)
}

/// Lets a command, which has handlers by now, have the signals that it has kept.
pub(crate) fn handle_all_kept_signals() -> io::Result<()> {
    let kept: SigSet = KEPT_BY_COMMANDS.into_iter().collect();
    kept.thread_unblock().map_err(io::Error::from)
}

/// Lets a gateway, which has handlers by now, have the signals that it has kept. There is no handler for SIGUSR2, so it stays
/// blocked.
pub(crate) fn handle_kept_signals() -> io::Result<()> {
    let handled: SigSet = [Signal::SIGHUP, Signal::SIGUSR1].into_iter().collect();
    handled.thread_unblock().map_err(io::Error::from)
}

/// Blocks the signals in the server that `command` starts, until it handles them. A signal that
/// arrives before stays pending, so a request to end is a graceful shutdown at any time.
pub(crate) fn block_signals_until_served(command: &mut Command) -> &mut Command {
    sys::set_blocked_signals(command, KEPT_SIGNALS);
    command
}
