//! `taskfork logs`: draws Log::Defer messages, or converts them for a trace viewer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;

use log_defer::{Message, Style, chrome_trace, timeline};

use crate::error::CommandError;

/// The messages, and how to show them.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// A file with a message in each line [default: standard input]
    file: Option<PathBuf>,
    /// Write all messages to this file as a trace for Perfetto or chrome://tracing instead
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

pub(crate) fn run(options: Options) -> Result<(), CommandError> {
    let mut input: Box<dyn BufRead> = match &options.file {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(BufReader::new(File::open(path).map_err(|error| {
            CommandError::usage(format!("cannot read {}: {error}", path.display()))
        })?)),
    };
    let mut messages = Vec::new();
    let mut wrong = Vec::new();
    let style = Style::for_stdout();
    let mut out = io::stdout().lock();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Message>(&line) {
            Ok(message) if options.trace.is_some() => messages.push(message),
            Ok(message) => match writeln!(out, "{}", timeline(&message, style)) {
                // The reader has closed the pipe.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            },
            Err(error) => wrong.push(format!("line {number}: {error}")),
        }
    }
    if let Some(path) = &options.trace {
        std::fs::write(path, chrome_trace(&messages).to_string()).map_err(|error| {
            CommandError::usage(format!("cannot write {}: {error}", path.display()))
        })?;
    }
    match wrong.first() {
        None => Ok(()),
        Some(first) => Err(CommandError::call(format!(
            "{} of the lines are no Log::Defer messages; {first}",
            wrong.len()
        ))
        .hint("each line is one message as JSON, as log_defer::JsonLines writes it")),
    }
}
