//! The environment variables by which servers, their parents and a service manager find each other.

use crate::sys;

/// Names the entry of `init` that an executed copy of the program becomes a server of.
pub(super) const SERVER: &str = "TASKFORK_SERVER";

/// Holds the process id of the parent process that forwards signals to this one, and the descriptor of
/// the channel to it if there is one.
pub(super) const PARENT: &str = "TASKFORK_PARENT";

/// Holds the descriptors that a server passes to its successor: the listener, and the pipe on which the
/// successor reports that it is ready.
pub(super) const RESTART: &str = "TASKFORK_RESTART";

/// Marks the processes that workers of a server start, with a value of that server's own.
pub(super) const SERVER_ID: &str = "TASKFORK_SERVER_ID";

pub(super) const LISTEN_PID: &str = "LISTEN_PID";
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// The variables that a successor must not have. It gets its listener from this server, and the
/// watchdog names this server. `WATCHDOG_USEC` without `WATCHDOG_PID` applies to any process that has
/// it.
pub(super) const NOT_FOR_SUCCESSORS: [&str; 6] =
    [LISTEN_PID, "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", WATCHDOG_PID, SERVER_ID];

const NOT_FOR_WORKERS: [&str; 8] = [
    LISTEN_PID,
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    WATCHDOG_PID,
    "WATCHDOG_USEC",
    PARENT,
];

/// The variables of this process that workers must not have.
pub(super) fn not_for_workers() -> Vec<&'static str> {
    NOT_FOR_WORKERS.into_iter().filter(|name| std::env::var_os(name).is_some()).collect()
}

/// Replaces the process id `before` by that of this process in the service manager's variables. This
/// process was forked from `before`.
pub(super) fn replace_pid(before: u32) {
    let is_named = |name| std::env::var(name).is_ok_and(|pid| pid == before.to_string());
    for name in [LISTEN_PID, WATCHDOG_PID] {
        if is_named(name) {
            sys::set_variable(name, &std::process::id().to_string());
        }
    }
}
