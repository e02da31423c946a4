//! The variables by which a service manager tells one process of its sockets, its readiness and its watchdog.
//! They name that process or are meant for it alone, so workers do not have them.

use super::parent;
use crate::sys;

pub(super) const LISTEN_PID: &str = "LISTEN_PID";
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// Those that a new server must not have: it gets its listener from the server before it, and the watchdog
/// names that server. Without `WATCHDOG_PID` the watchdog is whoever's has `WATCHDOG_USEC`.
pub(super) const NOT_FOR_SUCCESSORS: [&str; 5] =
    [LISTEN_PID, "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", WATCHDOG_PID];

const NOT_FOR_WORKERS: [&str; 8] = [
    LISTEN_PID,
    "LISTEN_PIDFDID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "NOTIFY_SOCKET",
    WATCHDOG_PID,
    "WATCHDOG_USEC",
    parent::VARIABLE,
];

/// Those that workers must remove, of those that this process has.
pub(super) fn found() -> Vec<&'static str> {
    NOT_FOR_WORKERS.into_iter().filter(|name| std::env::var_os(name).is_some()).collect()
}

/// In a process that was forked to be the server: has the variables name it instead of `before`, its parent.
pub(super) fn rename(before: u32) {
    let named = |name| std::env::var(name).is_ok_and(|pid| pid == before.to_string());
    for name in [LISTEN_PID, WATCHDOG_PID] {
        if named(name) {
            sys::set_variable(name, &std::process::id().to_string());
        }
    }
}
