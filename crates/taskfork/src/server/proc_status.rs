//! What `/proc` says of a process: its memory, its processor time, and which signals it handles.

use rustix::process::Signal;

/// The resident memory of a process and its children, and the sum of their peaks, in bytes.
pub(crate) fn memory(pid: u32) -> (Option<u64>, Option<u64>) {
    children(pid).into_iter().map(memory_of).fold(memory_of(pid), |all, child| {
        let add = |one: Option<u64>, other: Option<u64>| Some(one? + other.unwrap_or(0));
        (add(all.0, child.0), add(all.1, child.1))
    })
}

/// The processor time that a process and its children have used, in seconds. Children that have ended count if it has waited
/// for them.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let ticks = ticks_of(pid)? + children(pid).into_iter().filter_map(ticks_of).sum::<u64>();
    Some(ticks as f64 / per_second)
}

fn ticks_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name may contain brackets and spaces, so the fields begin after the last bracket.
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    // Its own time for user and system, and those of children that have ended.
    let times: Vec<u64> = fields.take(4).map_while(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| times.into_iter().fold(0, u64::saturating_add))
}

fn children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
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
    use std::io::Read;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_time_of_children_that_have_ended_counts() {
        // The kernel ends the child when it has used a second.
        let script = "(ulimit -t 1; while :; do :; done); echo over; read -r _";
        let mut shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = [0; 4];
        shell.stdout.take().unwrap().read_exact(&mut said).unwrap();
        let used = cpu_seconds(shell.id()).unwrap();
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(used > 0.5, "{used}");
    }

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
