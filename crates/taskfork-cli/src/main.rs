//! The `taskfork` command. Each subcommand has a file. `units` parses times and sizes, `server_address` addresses,
//! and `values` arguments. `output` is standard output, `logging` standard error, and `error` the error of a command.
#![forbid(unsafe_code)]

mod bench;
mod call;
mod call_error;
mod config;
mod config_command;
#[cfg(feature = "dashboard")]
mod dashboard;
mod error;
mod fleet_status;
mod gateway;
mod gateway_options;
mod generate;
#[cfg(feature = "dashboard")]
mod http_options;
mod listeners;
mod logging;
mod logs;
mod name_servers;
mod nats_options;
mod node_options;
mod option_names;
mod output;
#[cfg(feature = "dashboard")]
mod page_access;
mod pool_signals;
mod pools;
mod progress_bar;
mod replacement;
mod sandbox_command;
mod sandbox_options;
mod serve;
mod server_address;
mod status;
mod stream;
mod top;
mod units;
mod values;
mod wait_notices;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::LevelFilter;

/// Exclusive checkouts of forked worker processes: serves programs of any language as workers, calls
/// them, watches and measures them.
#[derive(Debug, Parser)]
#[command(name = "taskfork", version, propagate_version = true)]
struct CommandLine {
    /// Log more, and show the full report of an error
    #[arg(long, global = true)]
    verbose: bool,
    /// Show long errors, and long results on a terminal, in full
    #[arg(long, global = true)]
    full: bool,
    #[command(flatten)]
    logging: logging::Options,
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Serve a program as workers, one process for each connection
    Serve(Box<serve::Options>),
    /// Call a method and print its result as JSON
    Call(call::Options),
    /// Watch a server's workers, live
    Top(top::Options),
    /// Show once what a server and its workers do
    Status(status::Options),
    /// Serve a page about servers and nodes, with metrics and health checks
    #[cfg(feature = "dashboard")]
    Dashboard(dashboard::Options),
    /// Put a load on a server and measure it
    Bench(bench::Options),
    /// Check a file of pools, or print an example of one
    Config(config_command::Options),
    /// Check what this kernel offers for the sandbox of workers
    Sandbox(sandbox_command::Options),
    /// Show Log::Defer messages, one JSON message a line, as timelines
    Logs(logs::Options),
    /// Print completions for a shell
    Completions(generate::Completions),
    /// Print the manual page
    Man,
}

fn main() -> ExitCode {
    let CommandLine { verbose, full, mut logging, subcommand } = CommandLine::parse();
    let (mut is_server, mut log_file) = (false, false);
    match &subcommand {
        Subcommand::Serve(options) => {
            let has_level = verbose || logging.has_level();
            let prepared = options.prepare(has_level).and_then(|is_quiet| {
                logging.is_quiet = is_quiet;
                options.open_log()
            });
            if let Err(error) = prepared {
                return logging.report(&error, verbose, full);
            }
            log_file = options.log_file.is_some();
            is_server = true;
            logging.start(verbose, LevelFilter::INFO, true, !log_file);
        }
        // A line of the log would overwrite the screen.
        Subcommand::Top(options) if !options.once => {}
        _ => logging.start(verbose, LevelFilter::WARN, false, true),
    }
    let done = match subcommand {
        Subcommand::Serve(options) => serve::run(*options, &logging),
        Subcommand::Call(options) => call::run(options, full, &logging),
        Subcommand::Top(options) => top::run(options),
        Subcommand::Status(options) => status::run(options),
        #[cfg(feature = "dashboard")]
        Subcommand::Dashboard(options) => dashboard::run(&options),
        Subcommand::Bench(options) => bench::run(options, &logging),
        Subcommand::Config(options) => config_command::run(options),
        Subcommand::Sandbox(options) => sandbox_command::run(&options),
        Subcommand::Logs(options) => logs::run(options),
        Subcommand::Completions(options) => generate::completions(&options),
        Subcommand::Man => generate::man(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if is_server {
                logging.log_error(&error, verbose, full);
            }
            match is_server && !log_file {
                true => error.status(),
                false => logging.report(&error, verbose, full),
            }
        }
    }
}
