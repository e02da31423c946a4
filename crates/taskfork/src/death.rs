//! How and why a worker ended.

use std::fmt;
use std::time::Duration;

/// How a worker ended. It is part of [`FatalError::WorkerDied`](crate::error::FatalError::WorkerDied).
///
/// ```
/// use taskfork::Error;
/// use taskfork::error::{End, FatalError};
///
/// /// The signal that ended the worker of a failed call.
/// fn signal(error: &Error) -> Option<i32> {
///     match error {
///         Error::Fatal { cause: FatalError::WorkerDied(death), .. } => match death.end {
///             End::Signaled(signal) => Some(signal),
///             _ => None,
///         },
///         _ => None,
///     }
/// }
/// # let _ = signal;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// The worker's process id, or 0 if the protocol does not transmit it.
    pub pid: u32,
    /// The process id of the program that was the worker, if it was one
    /// ([`Executable`](crate::worker::Executable)): `pid` is that of the process in front of it. `None` if it is not known.
    pub program: Option<u32>,
    /// The exit status or the signal, if it is known.
    pub end: End,
    /// Why the server killed the worker, or which limit the worker exceeded, if that is known.
    pub reason: Option<String>,
    /// What the worker was doing when it ended, if that is known.
    pub during: Option<Activity>,
    /// The end of its standard error, at most 4 KiB, if the server captures it.
    pub stderr: Option<String>,
    /// Where it hung, if the server killed it because its call took too long.
    pub hung: Option<Box<Hung>>,
}

/// Where a worker was when the server killed it because its call took too long, or when the code of an interpreter was
/// interrupted for that.
///
/// ```
/// use taskfork::Error;
/// use taskfork::error::FatalError;
///
/// /// The stack of a worker whose call took too long.
/// fn stack(error: &Error) -> Option<&str> {
///     match error {
///         Error::Fatal { cause: FatalError::TimedOut { hung: Some(hung), .. }, .. } => hung.stack.as_deref(),
///         _ => None,
///     }
/// }
/// # let _ = stack;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hung {
    /// How long it had run the call, `setup` or `checkout_done`.
    pub ran_for: Duration,
    /// The worker's stack, innermost function first. It has files and lines if the program was built
    /// with debug information.
    pub stack: Option<String>,
    /// Why there is no stack, if that is known.
    pub no_stack: Option<String>,
    /// The end of its standard error, at most 4 KiB, if the server captures it.
    pub stderr: Option<String>,
}

/// How a process ended.
///
/// ```
/// use taskfork::error::End;
///
/// fn is_success(end: End) -> bool {
///     matches!(end, End::Exited(0))
/// }
/// # assert!(is_success(End::Exited(0)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// The connection ended without a notice from the server, for example because the server ended too.
    #[default]
    Unknown,
}

/// What a worker is doing.
///
/// ```
/// use taskfork::error::{Activity, Death};
///
/// /// Whether the death may be a fault of `setup`, and not of a call.
/// fn is_in_setup(death: &Death) -> bool {
///     death.during == Some(Activity::Setup)
/// }
/// # let _ = is_in_setup;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activity {
    /// Running `setup`.
    Setup,
    /// Waiting for a call.
    Idle,
    /// Running a call or answering it.
    Call,
    /// Running `checkout_done`.
    CheckoutDone,
}

impl fmt::Display for Death {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => write!(out, "the worker {}", self.end)?,
            pid => {
                write!(out, "worker {pid}")?;
                if let Some(program) = self.program {
                    write!(out, " (program {program})")?;
                }
                write!(out, " {}", self.end)?;
            }
        }
        if let Some(during) = self.during {
            write!(out, " {during}")?;
        }
        if let Some(reason) = &self.reason {
            write!(out, ": {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(out, "exited with status {status}"),
            Self::Signaled(signal) => write!(out, "was killed by {}", signal_name(*signal)),
            Self::Unknown => out.write_str("closed its connection"),
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Setup => "during setup",
            Self::Idle => "between calls",
            Self::Call => "during a call",
            Self::CheckoutDone => "during checkout_done",
        })
    }
}

/// The name of a signal, as in `SIGKILL`. Real-time signals have none, and are shown by number.
fn signal_name(signal: i32) -> String {
    match NAMES.iter().find(|(number, _)| *number == signal) {
        Some((_, name)) => format!("SIG{name}"),
        None => format!("signal {signal}"),
    }
}

/// Their numbers differ between architectures.
const NAMES: &[(i32, &str)] = &[
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGILL, "ILL"),
    (libc::SIGTRAP, "TRAP"),
    (libc::SIGABRT, "ABRT"),
    (libc::SIGBUS, "BUS"),
    (libc::SIGFPE, "FPE"),
    (libc::SIGKILL, "KILL"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGSEGV, "SEGV"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGPIPE, "PIPE"),
    (libc::SIGALRM, "ALRM"),
    (libc::SIGTERM, "TERM"),
    (libc::SIGCHLD, "CHLD"),
    (libc::SIGCONT, "CONT"),
    (libc::SIGSTOP, "STOP"),
    (libc::SIGTSTP, "TSTP"),
    (libc::SIGTTIN, "TTIN"),
    (libc::SIGTTOU, "TTOU"),
    (libc::SIGURG, "URG"),
    (libc::SIGXCPU, "XCPU"),
    (libc::SIGXFSZ, "XFSZ"),
    (libc::SIGVTALRM, "VTALRM"),
    (libc::SIGPROF, "PROF"),
    (libc::SIGWINCH, "WINCH"),
    (libc::SIGIO, "IO"),
    (libc::SIGPWR, "PWR"),
    (libc::SIGSYS, "SYS"),
    #[cfg(not(any(target_arch = "mips", target_arch = "mips64", target_arch = "sparc64")))]
    (libc::SIGSTKFLT, "STKFLT"),
];

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    #[test]
    fn every_signal_has_its_usual_name() {
        for signal in Signal::iterator() {
            assert_eq!(signal_name(signal as i32), signal.as_str());
        }
        assert_eq!(signal_name(40), "signal 40");
    }
}
