//! The `taskfork` command. Each subcommand is a file; `units` reads times and sizes, `place` addresses, `values`
//! arguments. `output` is standard output, `logging` standard error, `failure` how everything ends that does not
//! succeed.
#![forbid(unsafe_code)]

mod bench;
mod call;
mod config;
mod config_command;
mod failure;
mod generate;
mod logging;
mod logs;
mod output;
mod place;
mod pools;
mod serve;
mod status;
mod top;
mod units;
mod values;
mod waiting;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

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
    #[command(flatten)]
    logging: logging::Options,
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
    /// Check a file of pools, or print an example of one
    Config(config_command::Options),
    /// Show Log::Defer messages, one JSON message a line, as timelines
    Logs(logs::Options),
    /// Print completions for a shell
    Completions(generate::Completions),
    /// Print the manual page
    Man,
}

fn main() -> ExitCode {
    let Command { verbose, full, logging, what } = Command::parse();
    let (mut is_server, mut log_file) = (false, false);
    match &what {
        What::Serve(options) => {
            if let Err(failure) = options.open_log() {
                return logging.fail(&failure, verbose, full);
            }
            log_file = options.log_file.is_some();
            is_server = true;
            logging.start(verbose, LevelFilter::INFO, true, !log_file);
        }
        // A line of the log would stand in the middle of the screen.
        What::Top(options) if !options.once => {}
        _ => logging.start(verbose, LevelFilter::WARN, false, true),
    }
    let done = match what {
        What::Serve(options) => serve::run(*options, &logging),
        What::Call(options) => call::run(options, full, &logging),
        What::Top(options) => top::run(options),
        What::Status(options) => status::run(options),
        What::Bench(options) => bench::run(options, &logging),
        What::Config(options) => config_command::run(options),
        What::Logs(options) => logs::run(options),
        What::Completions(options) => generate::completions(&options),
        What::Man => generate::man(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if is_server {
                logging.log_failure(&failure, verbose, full);
            }
            match is_server && !log_file {
                true => failure.status(),
                false => logging.fail(&failure, verbose, full),
            }
        }
    }
}
