//! The error of a command: a line that says what failed, a hint, and an exit status for scripts. Text from
//! a peer is escaped, and is cut if it is long.

use std::fmt::{self, Display};
use std::io;
use std::process::ExitCode;

use log_defer::printable_lines;

/// Exit statuses. clap also exits with 2 for a mistake in the command line.
const CALL: u8 = 1;
const FATAL: u8 = 3;
/// As a shell reports a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CommandError {
    status: u8,
    message: String,
    /// What the user can do.
    hint: Option<String>,
    /// The full report, for `--verbose`.
    report: Option<String>,
}

impl CommandError {
    /// The exit status for a mistake in the command line, or in a file.
    pub(crate) const USAGE: i32 = 2;

    /// The call itself failed. The server, its worker and the checkout are usable.
    pub(crate) fn call(message: impl Display) -> Self {
        Self::new(CALL, message)
    }

    /// The command cannot be carried out as it was given.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(Self::USAGE as u8, message)
    }

    /// A server or a worker does not exist, or has ended.
    pub(crate) fn fatal(message: impl Display) -> Self {
        Self::new(FATAL, message)
    }

    /// The command was interrupted before it was done.
    pub(crate) fn interrupted(message: impl Display) -> Self {
        Self::new(INTERRUPTED, message)
    }

    fn new(status: u8, message: impl Display) -> Self {
        Self { status, message: message.to_string(), hint: None, report: None }
    }

    /// Adds a hint.
    pub(crate) fn hint(mut self, hint: impl Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// Names the part in which the mistake is.
    pub(crate) fn within(self, context: &str) -> Self {
        Self { message: format!("{context}: {}", self.message), ..self }
    }

    /// Replaces the message.
    pub(crate) fn with_message(self, message: impl Display) -> Self {
        Self { message: message.to_string(), ..self }
    }

    /// Adds the full report.
    pub(crate) fn with_report(self, report: impl Display) -> Self {
        Self { report: Some(report.to_string()), ..self }
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
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

    /// The error as text. `full` shows long texts without a cut.
    pub(crate) fn text(&self, verbose: bool, full: bool) -> String {
        let most = if full { usize::MAX } else { MAX_SHOWN };
        let mut text = format!("taskfork: {}\n", truncated(&self.message, most));
        match (&self.report, &self.hint) {
            (Some(report), _) if verbose => text += &format!("{}\n", truncated(report, most)),
            (_, Some(hint)) => text += &format!("  {}\n", truncated(hint, most)),
            (_, None) => {}
        }
        text
    }
}

/// The message and the hint in one line.
impl Display for CommandError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hint = self.hint.as_deref().map(|hint| format!(": {hint}")).unwrap_or_default();
        out.write_str(&truncated(&format!("{}{hint}", self.message), MAX_SHOWN))
    }
}

/// The most bytes of a text, without `--full`.
const MAX_SHOWN: usize = 4 << 10;

/// The first `most` bytes of a text, escaped for a terminal, and the full length if that is more.
pub(crate) fn truncated(text: &str, most: usize) -> String {
    let shown = printable_lines(&text[..text.floor_char_boundary(most)]);
    if text.len() <= most {
        return shown.into_owned();
    }
    format!("{shown}…\n  (the beginning of {} bytes; --full shows all of them)", text.len())
}

/// The known name that is most similar to this one, if one is similar.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let with_distance = known.map(|known| (strsim::osa_distance(name, known), known));
    let (distance, nearest) = with_distance.min()?;
    (distance <= 1 + name.chars().count() / 3).then_some(nearest)
}

impl From<io::Error> for CommandError {
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
        let shown = truncated(&text, 101);
        assert!(shown.starts_with(&"é".repeat(50)) && shown.len() < 300);
        assert!(shown.ends_with("(the beginning of 52428800 bytes; --full shows all of them)"));
        assert_eq!(truncated("short\n\u{1b}[2J", 101), "short\n\\x1b[2J");
        assert_eq!(truncated(&text, usize::MAX), text);
    }
}
