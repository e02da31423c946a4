//! `taskfork call`: calls a method and prints its result.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use log_defer::{Log, Message, Style, printable_bytes, printable_json, timeline};
use taskfork::Client;
use taskfork::client::{ClientBuilder, ConfigError, Value};

use crate::config::ProtocolName;
use crate::error::{CommandError, truncated};
use crate::nats_options::{NatsFiles, NodeChoice};
use crate::server_address::ServerAddress;
use crate::units::Time;
use crate::values::{self, CallArguments};
use crate::{logging, option_names, output, progress_bar, stream, wait_notices};

/// How long the command waits at its end until its connections are closed.
const END: Duration = Duration::from_secs(2);

/// What to call, and how.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 for a result, 1 if the call failed, 2 for a mistake in the \
                        command, 3 if the server or the worker is gone."
)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// The method; without it the call names no method. The items of a method that streams are printed as they come, a
    /// line of JSON each, and then its result. A method that takes an input gets the lines of standard input, a JSON
    /// value each. --timeout counts the time until these have been read: for a long pipe, or to type them, give more, or
    /// 0 for none
    method: Option<String>,
    #[command(flatten)]
    args: CallArguments,
    /// Show what the worker logs as a timeline, on standard error
    #[arg(long)]
    log: bool,
    /// How often to call, each time on a checkout of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    repeat: usize,
    /// How many of these calls run at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    concurrency: usize,
    /// Print text and bytes as they are; on a terminal, control characters are escaped
    #[arg(long)]
    raw: bool,
}

impl Options {
    /// Whether standard input can be the input of the call, or why not.
    fn standard_input(&self) -> Result<(), CommandError> {
        if self.args.read_standard_input() {
            return Err(CommandError::usage(
                "standard input is the input of this method, and cannot be an argument as well",
            )
            .hint("give the argument as JSON, or as @FILE"));
        }
        if self.repeat > 1 {
            return Err(CommandError::usage(
                "this method takes an input, so it cannot be called more than once (--repeat)",
            )
            .hint("standard input can be read once"));
        }
        Ok(())
    }
}

/// The server, and how to call it: the options that `call` and `bench` share.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// Where the server listens: unix:PATH, PATH, tcp:HOST:PORT or tls:HOST:PORT; or nats://HOST:PORT/SERVICE for any
    /// node of a service
    pub(crate) address: ServerAddress,
    /// Which protocol to speak
    #[arg(long, default_value = "native")]
    protocol: ProtocolName,
    /// The time limit of each call, 0 for none
    #[arg(long, value_name = "TIME", default_value = "30s", allow_negative_numbers = true)]
    timeout: Time,
    /// For tls:HOST:PORT, the file with the authorities of gateways, in PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The certificate by which a gateway recognizes this client, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The private key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The name that the gateway's certificate must have [default: the host in the address]
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    #[command(flatten)]
    nats: NatsFiles,
    #[command(flatten)]
    choice: NodeChoice,
}

impl Target {
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout.limit()
    }

    /// A client of that server with at most this many workers.
    pub(crate) fn client(&self, workers: usize) -> Result<Client, CommandError> {
        let protocol = match self.protocol {
            ProtocolName::Native => taskfork::client::Protocol::Native,
            ProtocolName::Json => taskfork::client::Protocol::Perl,
        };
        let mut client: ClientBuilder = Client::builder()
            .address(self.address.parse().map_err(CommandError::usage)?)
            .name("taskfork")
            .protocol(protocol)
            .pass_descriptors(false)
            .min_workers(0)
            .max_workers(workers)
            .timeout(self.timeout());
        if let Some(file) = &self.ca {
            client = client.tls_ca(file);
        }
        if let (Some(certificate), Some(key)) = (&self.cert, &self.key) {
            client = client.tls_identity(certificate, key);
        }
        if let Some(name) = &self.tls_name {
            client = client.tls_name(name);
        }
        if self.address.is_nats() || self.nats != NatsFiles::default() {
            client = client.nats(self.nats.connect_options()?);
        }
        let client = self.choice.route(client).build();
        let chosen = client.and_then(|client| self.choice.client(client));
        chosen.map_err(|error| self.command_error(error))
    }
}

impl Target {
    /// The error of a client in terms of the command's options.
    fn command_error(&self, error: ConfigError) -> CommandError {
        let named = match &error {
            ConfigError::Option { option, reason } => {
                option_names::of_client(option).map(|option| format!("{option}: {reason}"))
            }
            _ => None,
        };
        let text = named.unwrap_or_else(|| error.to_string());
        CommandError::usage(option_names::in_text(&text))
    }
}

pub(crate) fn run(
    options: Options,
    full: bool,
    logging: &logging::Options,
) -> Result<(), CommandError> {
    if options.concurrency == 0 {
        return Err(
            CommandError::usage("--concurrency is 0").hint("at least one call runs at a time")
        );
    }
    let args = options.args.values()?;
    let is_terminal = std::io::stdout().is_terminal();
    let format = Format { is_raw: options.raw, is_full: full, is_indented: is_terminal };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.target.client(options.concurrency)?;
        let calls = (0..options.repeat).map(|_| {
            let log = options.log.then(log_channel);
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
        // All calls are made before the first is awaited, so that they run at the same time.
        let calls: Vec<_> = calls.collect();
        let done = async {
            let mut failed = None;
            for (call, log) in calls {
                let mut outcome = progress_bar::await_with_bar(call).await;
                if let Some(method) = &options.method {
                    let checkout = || match &log {
                        Some((log, _)) => client.checkout().log(log),
                        None => client.checkout(),
                    };
                    let standard_input = options.standard_input();
                    let format = Format { is_indented: false, ..format };
                    outcome = stream::call_again(
                        outcome,
                        checkout,
                        method,
                        &args,
                        standard_input,
                        format,
                    )
                    .await?;
                }
                if let Some((log, message)) = log {
                    drop(log);
                    let width = Style::for_stdout().width;
                    let style = Style { width, color: logging::colors(&std::io::stderr()) };
                    message.try_iter().for_each(|message| {
                        drop(writeln!(std::io::stderr(), "{}", timeline(&message, style)))
                    });
                }
                match outcome {
                    Ok(value) => print(&value, format)?,
                    Err(error) => failed = failed.or(Some(CommandError::of(&error))),
                }
            }
            failed.map_or(Ok(()), Err)
        };
        let (address, timeout) = (&options.target.address, options.target.timeout());
        let done = wait_notices::with_wait_notices(&client, address, timeout, logging, done).await;
        end(client).await;
        done
    })
}

/// Closes a client, so that nodes at NATS know that its sessions have ended. What hangs is left behind.
pub(crate) async fn end(client: Client) {
    let _ = tokio::time::timeout(END, client.close()).await;
}

/// A log, and the receiver of its message, which arrives when the last handle is dropped.
fn log_channel() -> (Log, Receiver<Message>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    // Without a receiver the message is not needed.
    (Log::new(move |message| sender.send(message).unwrap_or(())), receiver)
}

/// The most bytes of a result on a terminal, without `--full`.
const MAX_SHOWN: usize = 64 << 10;

/// How values are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    /// Text and bytes as they are.
    pub(crate) is_raw: bool,
    /// Without a limit of the length.
    pub(crate) is_full: bool,
    /// In several lines, for people.
    pub(crate) is_indented: bool,
}

/// Prints a value.
pub(crate) fn print(value: &Value, format: Format) -> Result<(), CommandError> {
    let is_terminal = std::io::stdout().is_terminal();
    let bytes = match value {
        Value::String(text) if format.is_raw => Some(text.as_bytes()),
        Value::Binary(bytes) if format.is_raw => Some(&bytes[..]),
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
                None if format.is_indented => format!("{:#}", values::json(value)),
                None => values::json(value).to_string(),
            };
            let most = if is_terminal && !format.is_full { MAX_SHOWN } else { usize::MAX };
            match bytes {
                Some(_) => writeln!(out, "{}", truncated(&text, most)),
                // JSON that is not cut stays valid JSON.
                None if text.len() <= most => writeln!(out, "{}", printable_json(&text)),
                None => writeln!(out, "{}", truncated(&printable_json(&text), most)),
            }
        }
    })
}
