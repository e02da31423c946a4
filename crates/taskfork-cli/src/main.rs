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
        What::Serve(options) => {
            start_logging(verbose);
            serve::run(*options)
        }
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

/// A server says what happens on standard error.
fn start_logging(verbose: bool) {
    use tracing_subscriber::filter::LevelFilter;

    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(is_terminal)
        .with_target(false)
        .with_writer(std::io::stderr)
        .init();
}
