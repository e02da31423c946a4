//! The `taskfork` command. Each subcommand is a file; `units` reads times and sizes, `failure` is how
//! everything ends that does not succeed.
#![forbid(unsafe_code)]

mod bench;
mod call;
mod config;
mod failure;
mod generate;
mod hangup;
mod logs;
mod notify;
mod output;
mod pools;
mod serve;
mod status;
mod top;
mod units;
mod values;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exclusive checkouts of forked worker processes: serves programs of any language as workers, calls
/// them, watches and measures them.
#[derive(Debug, Parser)]
#[command(name = "taskfork", version, propagate_version = true)]
struct Command {
    /// Say more: logs of the command itself, and all that is known of an error
    #[arg(long, global = true)]
    verbose: bool,
    /// Show long errors, and long results on a terminal, in full
    #[arg(long, global = true)]
    full: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Serve a program as workers, one process for each connection
    Serve(Box<serve::Options>),
    /// Call a method and print its result as JSON
    Call(call::Options),
    /// Watch a server's workers, live
    Top(top::Options),
    /// Show once what a server and its workers do
    Status(status::Options),
    /// Put a load on a server and measure it
    Bench(bench::Options),
    /// Show Log::Defer messages, one JSON message a line, as timelines
    Logs(logs::Options),
    /// Print completions for a shell
    Completions(generate::Completions),
    /// Print the manual page
    Man,
}

fn main() -> ExitCode {
    let Command { verbose, full, what } = Command::parse();
    let done = match what {
        What::Serve(options) => return serve(*options, verbose, full),
        What::Call(options) => call::run(options, full),
        What::Top(options) => top::run(options),
        What::Status(options) => status::run(options),
        What::Bench(options) => bench::run(options),
        What::Logs(options) => logs::run(options),
        What::Completions(options) => generate::completions(&options),
        What::Man => generate::man(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.show(verbose, full),
    }
}

/// A server's own failure is in its log as well.
fn serve(options: serve::Options, verbose: bool, full: bool) -> ExitCode {
    if let Err(failure) = options.open_log() {
        return failure.show(verbose, full);
    }
    let has_log_file = options.log_file.is_some();
    start_logging(verbose, !has_log_file);
    match serve::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let status = failure.log(verbose, full);
            if has_log_file { failure.show(verbose, full) } else { status }
        }
    }
}

/// A server says what happens on standard error, or in its log file.
fn start_logging(verbose: bool, on_stderr: bool) {
    use tracing_subscriber::filter::LevelFilter;

    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let is_terminal = on_stderr && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(is_terminal)
        .with_target(false)
        .with_writer(taskfork::LogWriter::new)
        .init();
}
