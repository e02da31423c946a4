//! Standard output. A reader that has seen enough and has closed its end is no error.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use crate::failure::Failure;

/// Prints a text.
pub(crate) fn text(text: &str) -> Result<(), Failure> {
    write(|out| out.write_all(text.as_bytes()))
}

/// Prints a line.
pub(crate) fn line(line: &impl Display) -> Result<(), Failure> {
    write(|out| writeln!(out, "{line}"))
}

/// Has something written, and all of it shown.
pub(crate) fn write(
    write: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::fatal(format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}
