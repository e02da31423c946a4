//! Standard output. A reader may close the pipe early, which is not an error.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::error::CommandError;

/// Prints a text.
pub(crate) fn text(text: &str) -> Result<(), CommandError> {
    write(|out| out.write_all(text.as_bytes()))
}

/// Prints a line.
pub(crate) fn line(line: &impl Display) -> Result<(), CommandError> {
    write(|out| writeln!(out, "{line}"))
}

/// Writes to standard output and flushes it.
pub(crate) fn write(
    write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>,
) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(CommandError::fatal(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

/// A table with aligned columns, and these headers.
pub(crate) fn table<const N: usize>(
    headers: &[&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let rows: Vec<[String; N]> = std::iter::once(headers.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).filter_map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        out += cells.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
    }
    out
}
