//! How a command ends that does not succeed: what went wrong in a line, what to do in another, and an
//! exit status that scripts can tell apart. What comes from a peer is shown as text and nothing else, and
//! the beginning of it if it is long.

use std::fmt::{self, Display};
use std::io;
use std::process::ExitCode;

use log_defer::printable_lines;

/// Exit statuses; 2 is also what a mistake in the command line gives.
const CALL: u8 = 1;
const USAGE: u8 = 2;
const FATAL: u8 = 3;
/// As of a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    what: String,
    /// What to do about it.
    hint: Option<String>,
    /// All that is known, for those who want it.
    report: Option<String>,
}

impl Failure {
    /// The call itself failed: the server, its worker and the checkout are well.
    pub(crate) fn call(what: impl Display) -> Self {
        Self::new(CALL, what)
    }

    /// The command cannot be carried out as it was given.
    pub(crate) fn usage(what: impl Display) -> Self {
        Self::new(USAGE, what)
    }

    /// A server or a worker is not there, or has ended.
    pub(crate) fn fatal(what: impl Display) -> Self {
        Self::new(FATAL, what)
    }

    /// The command was interrupted before it was done.
    pub(crate) fn interrupted(what: impl Display) -> Self {
        Self::new(INTERRUPTED, what)
    }

    fn new(status: u8, what: impl Display) -> Self {
        Self { status, what: what.to_string(), hint: None, report: None }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Says in what the mistake is.
    pub(crate) fn within(self, what: &str) -> Self {
        Self { what: format!("{what}: {}", self.what), ..self }
    }

    /// Of a call's error, with what to do about its kind.
    pub(crate) fn of(error: &taskfork::Error) -> Self {
        use taskfork::Error;
        use taskfork::error::{CallError, FatalError};

        let failure = match error {
            Error::Call { error, .. } => {
                let failure = Self::call(error);
                match error {
                    CallError::UnknownMethod { known, .. } if !known.is_empty() => {
                        let method = error_method(error);
                        match nearest(&method, known.iter().map(String::as_str)) {
                            Some(near) => failure.hint(format!("did you mean `{near}`?")),
                            None => failure.hint("call one of these"),
                        }
                    }
                    CallError::Arguments { .. } => {
                        failure.hint("arguments are JSON; a bare word is a string")
                    }
                    CallError::Setup { .. } => {
                        failure.hint("the server's own setup failed: see its log")
                    }
                    _ => failure,
                }
            }
            Error::Fatal { cause, .. } => {
                let failure = Self::fatal(cause);
                match cause {
                    FatalError::CannotConnect { .. } => {
                        failure.hint("start the server, or check the address")
                    }
                    FatalError::TimedOut { .. } => {
                        failure.hint("give it more time with --timeout, or none with --timeout 0")
                    }
                    FatalError::WorkerDied(death) => match &death.stderr {
                        Some(stderr) => {
                            failure.hint(format!("its last words were:\n{}", stderr.trim_end()))
                        }
                        None => failure.hint("the server's log says more"),
                    },
                    FatalError::Protocol { .. } => failure
                        .hint("is this a server of taskfork? --protocol sets another protocol"),
                    _ => failure,
                }
            }
            _ => Self::fatal(error),
        };
        Self { report: Some(error.report().to_string()), ..failure }
    }

    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    pub(crate) fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub(crate) fn report(&self) -> Option<&str> {
        self.report.as_deref()
    }

    /// The status to exit with.
    pub(crate) fn status(&self) -> ExitCode {
        ExitCode::from(self.status)
    }

    /// It as text. Long texts are shown in full only if they are to be.
    pub(crate) fn text(&self, verbose: bool, full: bool) -> String {
        let most = if full { usize::MAX } else { MOST };
        let mut text = format!("taskfork: {}\n", beginning(&self.what, most));
        match (&self.report, &self.hint) {
            (Some(report), _) if verbose => text += &format!("{}\n", beginning(report, most)),
            (_, Some(hint)) => text += &format!("  {}\n", beginning(hint, most)),
            (_, None) => {}
        }
        text
    }
}

/// What went wrong and what to do about it, in a line.
impl Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = self.hint.as_deref().map(|hint| format!(": {hint}")).unwrap_or_default();
        out.write_str(&beginning(&format!("{}{hint}", self.what), MOST))
    }
}

/// A longer text of an error is not shown in full unless it is asked for.
const MOST: usize = 4 << 10;

/// The first `most` bytes of a text as a terminal can show them, and how much more there is.
pub(crate) fn beginning(text: &str, most: usize) -> String {
    let shown = printable_lines(&text[..text.floor_char_boundary(most)]);
    if text.len() <= most {
        return shown.into_owned();
    }
    format!("{shown}…\n  (the beginning of {} bytes; --full shows all of them)", text.len())
}

fn error_method(error: &taskfork::error::CallError) -> String {
    match error {
        taskfork::error::CallError::UnknownMethod { method: Some(method), .. } => method.clone(),
        _ => String::new(),
    }
}

/// The known name that is most like this one, if one is.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let with_distance = known.map(|known| (strsim::osa_distance(name, known), known));
    let (distance, nearest) = with_distance.min()?;
    (distance <= 1 + name.chars().count() / 3).then_some(nearest)
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::fatal(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_shown_as_its_beginning() {
        let text = "é".repeat(25 << 20);
        let shown = beginning(&text, 101);
        assert!(shown.starts_with(&"é".repeat(50)) && shown.len() < 300);
        assert!(shown.ends_with("(the beginning of 52428800 bytes; --full shows all of them)"));
        assert_eq!(beginning("short\n\u{1b}[2J", 101), "short\n\\x1b[2J");
        assert_eq!(beginning(&text, usize::MAX), text);
    }
}
