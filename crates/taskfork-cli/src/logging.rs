//! The command's standard error: the log, notices and errors, as text or as JSON.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use taskfork::server::LogWriter;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::CommandError;

/// The options of the log.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Options {
    /// Log events of this level and above: off, error, warn, info, debug or trace [default: RUST_LOG;
    /// without it, info for `serve` and warn for the others]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<LevelFilter>,
    /// The format of the log, notices and errors on standard error [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<Format>,
    /// Log only errors, whatever the environment says.
    #[arg(skip)]
    pub(crate) is_quiet: bool,
}

/// The target of events that [`taskfork::server::Stderr::Log`] makes from lines of workers' standard error.
const STDERR: &str = "taskfork::stderr";

/// The format of standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line of text, coloured on a terminal unless NO_COLOR is set
    #[default]
    Text,
    /// A line with a JSON object
    Json,
}

impl Options {
    pub(crate) fn is_json(&self) -> bool {
        self.log_format == Some(Format::Json)
    }

    /// Whether an option says how much is logged.
    pub(crate) fn has_level(&self) -> bool {
        self.log_level.is_some()
    }

    /// The filter of the log. The option takes precedence, then `--verbose`, the variable and the default. Workers'
    /// standard error is shown at every level, as it is when it does not go through the log.
    fn filter(&self, verbose: bool, default: LevelFilter) -> Targets {
        let all = |level| Targets::new().with_default(level).with_target(STDERR, LevelFilter::INFO);
        if let Some(level) = self.log_level.or(verbose.then_some(LevelFilter::DEBUG)) {
            return all(level);
        }
        if self.is_quiet {
            return all(LevelFilter::ERROR);
        }
        let wanted = std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.trim().is_empty());
        let Some(wanted) = wanted else { return all(default) };
        match wanted.parse::<Targets>() {
            Ok(filter) if wanted.contains(STDERR) => filter,
            Ok(filter) => filter.with_target(STDERR, LevelFilter::INFO),
            Err(error) => {
                self.notice(&format!("RUST_LOG is ignored: {error}"));
                all(default)
            }
        }
    }

    /// Starts the log.
    pub(crate) fn start(
        &self,
        verbose: bool,
        default: LevelFilter,
        is_server: bool,
        on_stderr: bool,
    ) {
        // A server must not wait for the reader of its log. Other commands wait, so that all lines are written.
        let writer = move || -> Box<dyn Write> {
            match is_server {
                true => Box::new(LogWriter::new()),
                false => Box::new(io::stderr()),
            }
        };
        let format =
            tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
        let layer = if self.is_json() {
            format.event_format(Json).with_ansi(false).boxed()
        } else {
            format.with_ansi(on_stderr && colors(&io::stderr())).with_target(false).boxed()
        };
        let filter = self.filter(verbose, default);
        tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    }

    /// Writes a message that is neither a result nor an error.
    pub(crate) fn notice(&self, message: &str) {
        if self.is_quiet || self.log_level.is_some_and(|level| level < LevelFilter::WARN) {
            return;
        }
        let text = match self.is_json() {
            true => json_line(Level::WARN, fields(message)),
            false => format!("taskfork: {message}"),
        };
        // Standard error may be closed. The command continues.
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Writes the command's error. Returns the status to exit with.
    pub(crate) fn report(&self, error: &CommandError, verbose: bool, full: bool) -> ExitCode {
        // Without a reader, the status still reports the failure.
        let _ = io::stderr().write_all(self.text(error, verbose, full).as_bytes());
        error.status()
    }

    /// Writes the error to a server's log, without waiting for its reader.
    pub(crate) fn log_error(&self, error: &CommandError, verbose: bool, full: bool) {
        let _ = LogWriter::new().write_all(self.text(error, verbose, full).as_bytes());
    }

    fn text(&self, error: &CommandError, verbose: bool, full: bool) -> String {
        if !self.is_json() {
            return error.text(verbose, full);
        }
        let mut fields = fields(error.message());
        let more = [("hint", error.hint_text()), ("report", error.report())];
        fields.extend(
            more.into_iter().filter_map(|(name, text)| Some((name.to_owned(), json!(text?)))),
        );
        format!("{}\n", json_line(Level::ERROR, fields))
    }
}

/// Whether text on this stream may have colours.
pub(crate) fn colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn fields(message: &str) -> Map<String, Value> {
    Map::from_iter([("message".to_owned(), json!(message))])
}

/// A message of the log as one line of JSON.
fn json_line(level: Level, fields: Map<String, Value>) -> String {
    let timestamp = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let head = [("timestamp", timestamp), ("level", level.to_string())];
    let head = head.map(|(name, value)| (name.to_owned(), Value::String(value)));
    let line = Value::Object(head.into_iter().chain(fields).collect()).to_string();
    // The line may be shown on a terminal, which must not interpret its text.
    log_defer::printable_json(&line).into_owned()
}

/// Writes each event as a line of JSON that contains its message and fields.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        fields.0.insert("target".to_owned(), json!(metadata.target()));
        writeln!(writer, "{}", json_line(*metadata.level(), fields.0))
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, json!(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, json!(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, json!(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, json!(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, json!(format!("{value:?}")));
    }
}
