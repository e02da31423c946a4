//! Resolving the addresses of a worker's stack. A worker is a copy of its server, so the same code
//! has the same addresses.

use std::fmt::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::display::seconds;

/// Reading the program's debug information may take long. A client whose call has timed out waits
/// for this time.
const AFTER_TIMEOUT: Duration = Duration::from_secs(1);

/// The limit for other clients, which have no time limit or a later one.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns the functions and lines of a stack, innermost first, down to the worker's serve loop. There are none if the
/// worker hung in that loop, as one in front of a program does.
/// Returns an error if that takes too long, or if no function has a name. Leaves a thread behind, so it is for a process that
/// exits next.
pub(crate) fn symbolize(addresses: Vec<u64>, timed_out: bool) -> Result<String, String> {
    let names = symbolize_within(addresses, if timed_out { AFTER_TIMEOUT } else { LIMIT })?;
    names.ok_or_else(|| "no function on its stack has a name".to_owned())
}

/// `None` if no function has a name.
fn symbolize_within(addresses: Vec<u64>, limit: Duration) -> Result<Option<String>, String> {
    let late = || format!("the names of its functions were not found within {}", seconds(limit));
    if limit.is_zero() {
        // The thread could be faster than this one.
        return Err(late());
    }
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().spawn(move || sender.send(name(&addresses)));
    thread.map_err(|error| format!("the server cannot start a thread: {error}"))?;
    receiver.recv_timeout(limit).map_err(|_| late())
}

/// How long the names on all stacks of one status may take: on a busy machine one takes more than a second. The reader of the
/// status must not take the server for one that hangs.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

/// Resolves the stacks of a status, in a thread that may be left behind. So it is for a process that exits next.
#[derive(Debug)]
pub(crate) struct Symbolizer {
    until: Instant,
}

impl Symbolizer {
    pub(crate) fn new() -> Self {
        Self { until: Instant::now() + STATUS_LIMIT }
    }

    /// One that has no time left.
    #[cfg(test)]
    pub(crate) fn out_of_time() -> Self {
        Self { until: Instant::now() }
    }

    /// The functions and lines of a stack, `None` if there are none. Fails if that takes too long.
    pub(crate) fn names(&self, addresses: Vec<u64>) -> Result<Option<String>, String> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // A thread could be done before this one waits for it.
            return Err("no time was left for the names of its functions".to_owned());
        }
        let names = symbolize_within(addresses, left)?;
        Ok(names.filter(|names| !names.is_empty()))
    }
}

/// `None` if no function has a name.
fn name(addresses: &[u64]) -> Option<String> {
    let here = std::env::current_dir().unwrap_or_default();
    let mut text = String::new();
    let (mut number, mut is_over) = (0, false);
    let mut has_name = false;
    for (place, &address) in addresses.iter().enumerate() {
        // All addresses but the first are return addresses, which are behind the calls.
        let inside = address + u64::from(place == 0);
        backtrace::resolve(std::ptr::without_provenance_mut(inside as usize), |symbol| {
            let name = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
            has_name |= !name.is_empty();
            is_over |= name.contains("taskfork::worker::");
            if is_over || name.is_empty() {
                return;
            }
            let _ = writeln!(text, "{number:>4}: {name}");
            number += 1;
            if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
                // Shortened as in backtraces of the standard library.
                let place = match file.strip_prefix(&here) {
                    Ok(below) => format!("./{}", below.display()),
                    Err(_) => file.display().to_string(),
                };
                let _ = writeln!(text, "             at {place}:{line}");
            }
        });
        if is_over {
            break;
        }
    }
    has_name.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_without_any_name_is_told_from_that_of_the_serve_loop() {
        let page = Box::new([0_u8; 64]);
        for nameless in [vec![], vec![page.as_ptr().addr() as u64]] {
            let error = symbolize(nameless, false).unwrap_err();
            assert_eq!(error, "no function on its stack has a name");
        }
        let serving = crate::worker::prepare as fn() as usize as u64;
        assert_eq!(symbolize(vec![serving], false), Ok(String::new()));
        let named = a_stack_without_any_name_is_told_from_that_of_the_serve_loop as fn() as usize;
        assert!(symbolize(vec![named as u64], false).unwrap().contains("is_told_from"));
    }
}
