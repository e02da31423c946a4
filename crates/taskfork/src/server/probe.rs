//! Trying something out in a process that exits at once, because a process cannot undo it.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, test_kill_process, waitpid};

use super::error::ServerError;
use crate::sys::{self, Forked, ThreadCount};

/// What failed: its number among the steps of the attempt, and the system's error.
pub(super) type Failed = (usize, io::Error);

/// The result of an attempt.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) failed: Option<Failed>,
    /// Whether this process may kill the process that made the attempt.
    pub(super) may_kill: bool,
}

/// Runs `attempt` in a forked process that exits at once. The result depends on privileges, limits and
/// the container. `what` names the attempt in an error of the fork.
pub(super) fn probe(
    threads: &ThreadCount,
    what: &'static str,
    attempt: impl FnOnce() -> Result<(), Failed>,
) -> Result<Probed, ServerError> {
    let (message, may_kill) = run_in_child(threads, what, || match attempt() {
        Ok(()) => Vec::new(),
        Err((step, error)) => encode(step, &error).to_vec(),
    })?;
    // A child that has succeeded writes nothing.
    let failed = message.try_into().ok().map(decode);
    Ok(Probed { failed, may_kill })
}

/// As [`probe`], for an attempt whose error is a text. Returns the error.
pub(super) fn probe_with_text(
    threads: &ThreadCount,
    what: &'static str,
    attempt: impl FnOnce() -> Result<(), String>,
) -> Result<Option<String>, ServerError> {
    let text = || attempt().err().unwrap_or_default().into_bytes();
    let (text, _) = run_in_child(threads, what, text)?;
    Ok((!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned()))
}

/// Runs `attempt` in a forked process. Returns its message, and whether this process may kill the other.
#[expect(unsafe_code, reason = "a caller of an unsafe function of `sys`")]
fn run_in_child(
    threads: &ThreadCount,
    what: &'static str,
    attempt: impl FnOnce() -> Vec<u8>,
) -> Result<(Vec<u8>, bool), ServerError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(ServerError::system(what))?;
    // SAFETY: the child writes only to its pipe, and leaves by `exit_now`.
    match unsafe { sys::fork(threads) } {
        Ok(Forked::Parent { child }) => {
            drop(writer);
            let mut message = Vec::new();
            let read = File::from(reader).read_to_end(&mut message);
            let mut may_kill = true;
            if let Some(pid) = Pid::from_raw(child.as_raw()) {
                // A zombie still has its user. There is none if the program ignores SIGCHLD.
                may_kill = test_kill_process(pid) != Err(rustix::io::Errno::PERM);
                let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
            }
            read.map_err(|source| ServerError::System { what, source })?;
            Ok((message, may_kill))
        }
        Ok(Forked::Child) => {
            drop(reader);
            // The server waits for this message.
            let _ = File::from(writer).write_all(&attempt());
            sys::exit_now(0);
        }
        Err(error) => Err(ServerError::System { what, source: io::Error::other(error) }),
    }
}

fn encode(step: usize, error: &io::Error) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(step as u32).to_ne_bytes());
    bytes[4..].copy_from_slice(&error.raw_os_error().unwrap_or_default().to_ne_bytes());
    bytes
}

fn decode([a, b, c, d, e, f, g, h]: [u8; 8]) -> Failed {
    let errno = i32::from_ne_bytes([e, f, g, h]);
    (u32::from_ne_bytes([a, b, c, d]) as usize, io::Error::from_raw_os_error(errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_the_child_is_decoded() {
        for (step, errno) in [(0, 0), (3, 13), (1 << 20, i32::MAX), (0, -1)] {
            let (again, error) = decode(encode(step, &io::Error::from_raw_os_error(errno)));
            assert_eq!((again, error.raw_os_error()), (step, Some(errno)));
        }
    }
}
