//! Shows logs of Log::Defer. It reads one JSON message a line from standard input, and draws each as a
//! timeline or writes all of them as a trace for Perfetto.
//!
//!     cargo run --example log_view < requests.ndjson
//!     cargo run --example log_view -- --trace trace.json < requests.ndjson
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add log-defer
//! cargo add serde_json
//! ```

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use log_defer::{Message, Style, chrome_trace, timeline};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [] => show(),
        [option, file] if option == "--trace" => trace(file),
        _ => {
            eprintln!("usage: log_view [--trace FILE] < MESSAGES");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // The reader has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("log_view: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Calls `take` with each message. Returns whether all lines were messages.
fn each(mut take: impl FnMut(Message) -> io::Result<()>) -> io::Result<bool> {
    let mut all = true;
    for (number, line) in io::stdin().lock().lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(&line) {
            Ok(message) => take(message)?,
            Err(error) => {
                all = false;
                eprintln!("line {}: not a Log::Defer message: {error}", number + 1);
            }
        }
    }
    Ok(all)
}

fn show() -> io::Result<bool> {
    let style = Style::for_stdout();
    let mut out = io::stdout().lock();
    each(|message| writeln!(out, "{}", timeline(&message, style)))
}

fn trace(file: &str) -> io::Result<bool> {
    let mut messages = Vec::new();
    let all = each(|message| {
        messages.push(message);
        Ok(())
    })?;
    std::fs::write(file, chrome_trace(&messages).to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {file}: {error}")))?;
    Ok(all)
}
