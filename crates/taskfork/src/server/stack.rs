//! Resolving the addresses of a worker's stack. A worker is a copy of its server, so the same code
//! has the same addresses.

use std::fmt::Write;
use std::sync::mpsc;
use std::time::Duration;

use crate::display::seconds;

/// Reading the program's debug information may take long. A client whose call has timed out waits
/// for this time.
const AFTER_TIMEOUT: Duration = Duration::from_secs(1);

/// The limit for other clients, which have no time limit or a later one.
const LIMIT: Duration = Duration::from_secs(10);

/// Returns the functions and lines of a stack, innermost first, down to the worker's serve loop.
/// Returns an error if that takes too long. Leaves a thread behind, so it is for a process that
/// exits next.
pub(crate) fn symbolize(addresses: Vec<u64>, timed_out: bool) -> Result<String, String> {
    let limit = if timed_out { AFTER_TIMEOUT } else { LIMIT };
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().spawn(move || sender.send(name(&addresses)));
    thread.map_err(|error| format!("the server cannot start a thread: {error}"))?;
    receiver
        .recv_timeout(limit)
        .map_err(|_| format!("the names of its functions were not found within {}", seconds(limit)))
}

fn name(addresses: &[u64]) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let mut text = String::new();
    let (mut number, mut is_over) = (0, false);
    for (place, &address) in addresses.iter().enumerate() {
        // All addresses but the first are return addresses, which are behind the calls.
        let inside = address + u64::from(place == 0);
        backtrace::resolve(std::ptr::without_provenance_mut(inside as usize), |symbol| {
            let name = symbol.name().map(|name| format!("{name:#}")).unwrap_or_default();
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
    text
}
