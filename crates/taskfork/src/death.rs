//! How and why workers end.

use std::fmt;
use std::time::Duration;

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Death {
    /// The worker's process id; 0 where the protocol does not tell it.
    pub pid: u32,
    /// The exit status or the signal, as far as it is known.
    pub end: End,
    /// Why the server killed the worker, where it did, or which of its limits the worker has met,
    /// where that is known.
    pub reason: Option<String>,
    /// What the worker was doing, as far as it is known.
    pub during: Option<Activity>,
    /// The last that it wrote to standard error, up to 4 KiB.
    pub stderr: Option<String>,
    /// Where it hung, if the server killed it for that.
    pub hung: Option<Box<Hung>>,
}

/// Where a worker was when it was killed for taking too long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hung {
    /// For how long it had run the call, or its `setup` or `checkout_done`.
    pub ran_for: Duration,
    /// The functions that it was in, innermost first, with files and lines as far as the program
    /// was built with them.
    pub stack: Option<String>,
    /// Why there is no stack, where that is known.
    pub no_stack: Option<String>,
    /// The last that it wrote to standard error, if it was killed as its call's time was over.
    pub stderr: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// The connection ended and nothing said why: the server is gone too, for example.
    #[default]
    Unknown,
}

/// What a worker is doing.
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
            pid => write!(out, "worker {pid} {}", self.end)?,
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

/// `SIGKILL` and its kin; a real-time signal by its number.
fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) => format!("signal {signal}"),
    }
}
