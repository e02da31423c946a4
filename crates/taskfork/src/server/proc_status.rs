//! What `/proc` says of a process: its memory, and which signals it handles.

use rustix::process::Signal;

/// The resident memory of a process and its children, and the sum of their peaks, in bytes.
pub(crate) fn memory(pid: u32) -> (Option<u64>, Option<u64>) {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    children.map(memory_of).fold(memory_of(pid), |all, child| {
        let add = |one: Option<u64>, other: Option<u64>| Some(one? + other.unwrap_or(0));
        (add(all.0, child.0), add(all.1, child.1))
    })
}

fn memory_of(pid: u32) -> (Option<u64>, Option<u64>) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// What a process does with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SignalAction {
    /// It runs a handler at once.
    Handled,
    /// It has a handler, but its main thread blocks the signal.
    Blocked,
    /// It ignores the signal, or the signal ends it.
    Other,
}

/// What a process does with a signal. `None` if that is unknown.
pub(crate) fn signal_action(pid: u32, signal: Signal) -> Option<SignalAction> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bit = 1_u64.checked_shl(signal.as_raw().cast_unsigned().checked_sub(1)?)?;
    let has = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(u64::from_str_radix(line.trim(), 16).ok()? & bit != 0)
    };
    Some(match (has("SigCgt:")?, has("SigBlk:")?) {
        (true, false) => SignalAction::Handled,
        (true, true) => SignalAction::Blocked,
        (false, _) => SignalAction::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_handles_the_signals_that_it_has_handlers_for() {
        let own = std::process::id();
        // The handler of the standard library, for stack overflows. The main thread blocks all signals while
        // it starts the threads of other tests.
        let handles = || signal_action(own, Signal::SEGV) == Some(SignalAction::Handled);
        assert!((0..10_000).any(|_| handles() || {
            std::thread::yield_now();
            false
        }));
        assert_eq!(signal_action(own, Signal::USR2), Some(SignalAction::Other));
        assert_eq!(signal_action(u32::MAX, Signal::SEGV), None);
    }
}
