//! What SIGHUP means to `serve --config`: the same as to a server.

use std::fs::File;

/// What a SIGHUP asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    Ignored,
    Restart,
    Shutdown,
}

impl Hangup {
    pub(crate) fn of_this_process(restart: bool) -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if ignores_hangup(&status) {
            Self::Ignored
        } else if restart || File::open("/dev/tty").is_err() {
            Self::Restart
        } else {
            Self::Shutdown
        }
    }
}

/// Whether SIGHUP, the first signal, is in the set of ignored ones.
fn ignores_hangup(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_of_ignored_signals_is_read() {
        let status = |set: &str| format!("Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t{set}\n");
        assert!(ignores_hangup(&status("0000000000001001")));
        assert!(!ignores_hangup(&status("0000000000001000")));
        assert!(!ignores_hangup(""));
    }
}
