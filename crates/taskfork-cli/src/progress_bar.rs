//! How far a call has got, in the last line of a terminal.

use std::io::{IsTerminal, Stderr, Write};

use log_defer::Style;
use taskfork::client::Value;
use taskfork::{Call, Error, Progress};

use crate::status;

/// The width of the bar, in characters.
const BAR: usize = 24;

/// The bar of one call, on standard error. It is shown if that is a terminal, as soon as the worker says how far it has
/// got.
pub(crate) struct Bar {
    terminal: Option<Stderr>,
    is_shown: bool,
}

impl Bar {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stderr();
        Self { terminal: terminal.is_terminal().then_some(terminal), is_shown: false }
    }

    pub(crate) fn show(&mut self, progress: &Progress) {
        let Some(terminal) = &mut self.terminal else { return };
        self.is_shown = true;
        let width = Style::for_stdout().width;
        // Nothing depends on the bar, so a terminal that is gone is no error.
        let _ =
            write!(terminal, "\r\x1b[K{}", line(progress, width)).and_then(|()| terminal.flush());
    }

    /// Clears its line, for the output and at the end.
    pub(crate) fn clear(&mut self) {
        if let Some(terminal) = self.terminal.as_mut().filter(|_| self.is_shown) {
            self.is_shown = false;
            let _ = write!(terminal, "\r\x1b[K").and_then(|()| terminal.flush());
        }
    }
}

/// Waits for the result of a call, with a bar.
pub(crate) async fn await_with_bar(mut call: Call<Value>) -> Result<Value, Error> {
    let (mut bar, mut progress) = (Bar::new(), call.progress());
    let outcome = loop {
        tokio::select! {
            biased;
            outcome = &mut call => break outcome,
            Some(progress) = progress.changed() => bar.show(&progress),
        }
    };
    bar.clear();
    outcome
}

/// The line, which leaves the last column of the terminal free, so that the cursor stays in it.
fn line(progress: &Progress, width: usize) -> String {
    let text = status::progress(progress);
    let line = match progress.fraction() {
        Some(fraction) => {
            let filled = (fraction * BAR as f64) as usize;
            format!("[{}{}] {text}", "#".repeat(filled), "-".repeat(BAR - filled))
        }
        None => text,
    };
    line.chars().take(width.saturating_sub(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_part_that_is_done() {
        let half = line(&Progress::new(6, 12, "pages"), 80);
        assert_eq!(half, "[############------------] 50% 6 of 12 pages");
        assert_eq!(line(&Progress::new(7, None, "rows"), 80), "7 rows");
        let all = line(&Progress::new(9, 3, ""), 80);
        assert_eq!(all, "[########################] 100% 9 of 3");
    }

    #[test]
    fn the_line_fits_the_terminal_and_has_no_control_characters() {
        let line = line(&Progress::new(1, 2, "\x1b[2J\n".repeat(10)), 40);
        assert_eq!(line.chars().count(), 39);
        assert!(!line.chars().any(char::is_control), "{line}");
    }
}
