//! `taskfork call`: a method called, its result printed.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use log_defer::{Log, Message, Style, printable_bytes, printable_json, timeline};
use taskfork::Client;
use taskfork::client::{ClientBuilder, Value};

use crate::config::Language;
use crate::failure::{Failure, beginning};
use crate::place::Place;
use crate::units::Time;
use crate::values::{self, Words};
use crate::{logging, output, waiting};

/// Whom to call, and how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 for a result, 1 if the call failed, 2 for a mistake in the \
                        command, 3 if the server or the worker is gone."
)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// The method; none for a call that names no method
    method: Option<String>,
    #[command(flatten)]
    args: Words,
    /// The time that each call has, 0 for no limit
    #[arg(long, value_name = "TIME", default_value = "30s", allow_negative_numbers = true)]
    timeout: Time,
    /// Show what the worker logs as a timeline, on standard error
    #[arg(long)]
    log: bool,
    /// Call so many times, each on a checkout of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    repeat: usize,
    /// Have so many of these run at a time
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    concurrency: usize,
    /// Print text and bytes as they are, or on a terminal without what it would obey
    #[arg(long)]
    raw: bool,
}

/// Which server.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Where the server listens: unix:PATH, PATH or tcp:HOST:PORT
    pub(crate) address: Place,
    /// Which protocol to speak
    #[arg(long, default_value = "native")]
    pub(crate) protocol: Language,
}

impl Target {
    /// A client of that server with so many workers.
    pub(crate) fn client(
        &self,
        workers: usize,
        timeout: Option<Duration>,
    ) -> Result<Client, Failure> {
        let protocol = match self.protocol {
            Language::Native => taskfork::client::Protocol::Native,
            Language::Json => taskfork::client::Protocol::Perl,
        };
        let client: ClientBuilder = Client::builder()
            .address(self.address.address().map_err(Failure::usage)?)
            .name("taskfork")
            .protocol(protocol)
            .pass_descriptors(false)
            .min_workers(0)
            .max_workers(workers)
            .timeout(timeout);
        client.build().map_err(Failure::usage)
    }
}

pub(crate) fn run(options: Options, full: bool, logging: &logging::Options) -> Result<(), Failure> {
    if options.concurrency == 0 {
        return Err(Failure::usage("--concurrency is 0").hint("at least one call runs at a time"));
    }
    let args = options.args.values()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.target.client(options.concurrency, options.timeout.limit())?;
        let calls = (0..options.repeat).map(|_| {
            let log = options.log.then(gathered);
            let mut checkout = client.checkout();
            if let Some((log, _)) = &log {
                checkout = checkout.log(log);
            }
            let call = match &options.method {
                Some(method) => checkout.call::<Value>(method, &args),
                None => checkout.invoke(&args),
            };
            drop(checkout);
            (call, log)
        });
        // All are made before the first is awaited, so that they run beside each other.
        let calls: Vec<_> = calls.collect();
        let done = async {
            let mut failed = None;
            for (call, log) in calls {
                let outcome = call.await;
                if let Some((log, message)) = log {
                    drop(log);
                    let width = Style::for_stdout().width;
                    let style = Style { width, color: logging::colors(&std::io::stderr()) };
                    message.try_iter().for_each(|message| {
                        drop(writeln!(std::io::stderr(), "{}", timeline(&message, style)))
                    });
                }
                match outcome {
                    Ok(value) => print(&value, options.raw, full)?,
                    Err(error) => failed = failed.or(Some(Failure::of(&error))),
                }
            }
            failed.map_or(Ok(()), Err)
        };
        let (place, timeout) = (&options.target.address, options.timeout.limit());
        waiting::watched(&client, place, timeout, logging, done).await
    })
}

/// A log, and where its message arrives once nobody holds it.
fn gathered() -> (Log, Receiver<Message>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    // Nobody misses a message whose receiver is gone.
    (Log::new(move |message| sender.send(message).unwrap_or(())), receiver)
}

/// On a terminal, a longer result is not shown in full unless it is asked for.
const MOST: usize = 64 << 10;

/// Prints a result in a line, or laid out for a terminal.
fn print(value: &Value, raw: bool, full: bool) -> Result<(), Failure> {
    let is_terminal = std::io::stdout().is_terminal();
    let bytes = match value {
        Value::String(text) if raw => Some(text.as_bytes()),
        Value::Binary(bytes) if raw => Some(&bytes[..]),
        _ => None,
    };
    output::write(|out| match bytes {
        Some(bytes) if !is_terminal => out.write_all(bytes),
        bytes => {
            let text = match bytes {
                Some(bytes) => bytes
                    .split(|&byte| byte == b'\n')
                    .map(printable_bytes)
                    .collect::<Vec<_>>()
                    .join("\n"),
                None if is_terminal => format!("{:#}", values::json(value)),
                None => values::json(value).to_string(),
            };
            let most = if is_terminal && !full { MOST } else { usize::MAX };
            match bytes {
                Some(_) => writeln!(out, "{}", beginning(&text, most)),
                // It is JSON still, if it is not cut.
                None if text.len() <= most => writeln!(out, "{}", printable_json(&text)),
                None => writeln!(out, "{}", beginning(&printable_json(&text), most)),
            }
        }
    })
}
