//! `taskfork bench`: a load on a server, and how long its calls take.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use taskfork::Client;
use taskfork::client::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::call::{Target, end};
use crate::error::CommandError;
use crate::values::CallArguments;
use crate::{logging, output, wait_notices};

/// The load.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    target: Target,
    /// The method
    method: String,
    #[command(flatten)]
    args: CallArguments,
    /// How many calls to make
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    calls: usize,
    /// How many calls run at the same time, each on its own worker
    #[arg(long, value_name = "COUNT", default_value_t = 2)]
    concurrency: usize,
    /// Print the results as JSON, and nothing else, on standard output
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(options: Options, logging: &logging::Options) -> Result<(), CommandError> {
    if options.concurrency == 0 || options.calls == 0 {
        return Err(CommandError::usage("there is nothing to do with 0 calls, or 0 at a time"));
    }
    let args = Arc::new(options.args.values()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measurement = runtime.block_on(load(&options, args, logging))?;
    if options.json {
        output::line(&measurement.json())?;
    } else {
        output::text(&measurement.text())?;
    }
    match measurement.first_error {
        None if measurement.is_interrupted => Err(CommandError::interrupted(format!(
            "interrupted after {} of {} calls",
            measurement.times.len(),
            options.calls
        ))),
        None => Ok(()),
        Some(error) => Err(CommandError::call(format!(
            "{} calls failed; the first: {error}",
            measurement.failed
        ))),
    }
}

/// The result of a load.
struct Measurement {
    times: Histogram<u64>,
    took: Duration,
    failed: usize,
    first_error: Option<String>,
    /// A signal ended it before all calls were made.
    is_interrupted: bool,
}

/// The longest time that is counted, in nanoseconds: an hour.
const MAX_TIME: u64 = 3_600_000_000_000;

async fn load(
    options: &Options,
    args: Arc<Vec<Value>>,
    logging: &logging::Options,
) -> Result<Measurement, CommandError> {
    let (address, timeout) = (&options.target.address, options.target.timeout());
    let client = options.target.client(options.concurrency)?;
    // The first call of each worker waits for its start, so it is not counted.
    let warm = warm_up(&client, options, &args);
    wait_notices::with_wait_notices(&client, address, timeout, logging, warm).await?;
    // A signal before this point has its default effect, since there is nothing to print yet.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let progress = progress_bar(options);
    let remaining = AtomicUsize::new(options.calls);
    let times = std::cell::RefCell::new(
        Histogram::new_with_bounds(1, MAX_TIME, 3).map_err(CommandError::fatal)?,
    );
    let (failed, first_error) = (AtomicUsize::new(0), std::cell::RefCell::new(None));
    let start = Instant::now();
    let caller = || async {
        while remaining.fetch_update(Relaxed, Relaxed, |remaining| remaining.checked_sub(1)).is_ok()
        {
            let begun = Instant::now();
            let outcome = client.call::<Value>(&options.method, &*args).await;
            let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(MAX_TIME);
            times.borrow_mut().saturating_record(nanoseconds);
            if let Err(error) = outcome {
                failed.fetch_add(1, Relaxed);
                first_error.borrow_mut().get_or_insert_with(|| error.to_string());
            }
            progress.inc(1);
        }
    };
    let callers: Vec<_> = (0..options.concurrency).map(|_| caller()).collect();
    let is_interrupted = tokio::select! {
        biased;
        () = join_all(callers) => false,
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
    };
    let took = start.elapsed();
    progress.finish_and_clear();
    end(client.clone()).await;
    Ok(Measurement {
        took,
        failed: failed.into_inner(),
        first_error: first_error.take(),
        times: times.into_inner(),
        is_interrupted,
    })
}

async fn warm_up(client: &Client, options: &Options, args: &[Value]) -> Result<(), CommandError> {
    let checkouts: Vec<_> = (0..options.concurrency).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        match checkout.call::<Value>(&options.method, args).await {
            Err(error) if error.is_fatal() => return Err(CommandError::of(&error)),
            _ => {}
        }
    }
    Ok(())
}

/// Runs all futures in this task.
async fn join_all(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(|one| (Box::pin(one), false)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in &mut futures {
            *done = *done || future.as_mut().poll(context).is_ready();
        }
        match futures.iter().all(|(_, done)| *done) {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}

fn progress_bar(options: &Options) -> ProgressBar {
    let bar = ProgressBar::new(options.calls as u64);
    if options.json || !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} calls  {per_sec}  {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

const PERCENTILES: [(f64, &str); 5] =
    [(50.0, "p50"), (90.0, "p90"), (99.0, "p99"), (99.9, "p99.9"), (100.0, "max")];

impl Measurement {
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn json(&self) -> serde_json::Value {
        let times = PERCENTILES.map(|(percentile, name)| {
            (name.to_owned(), json!(self.times.value_at_percentile(percentile) as f64 / 1000.0))
        });
        json!({
            "calls": self.times.len(),
            "failed": self.failed,
            "interrupted": self.is_interrupted,
            "seconds": self.took.as_secs_f64(),
            "calls_per_second": self.rate(),
            "mean_us": self.times.mean() / 1000.0,
            "times_us": serde_json::Map::from_iter(times),
        })
    }

    fn text(&self) -> String {
        let mut out = format!(
            "{} calls in {:.2} s, {:.0} a second, {} failed\n\n",
            self.times.len(),
            self.took.as_secs_f64(),
            self.rate(),
            self.failed
        );
        for (percentile, name) in PERCENTILES {
            let time = self.times.value_at_percentile(percentile);
            out += &format!("{name:>6}  {}\n", format_time(time as f64));
        }
        out.push('\n');
        out + &self.histogram()
    }

    /// The times as bars. Each covers the times from its label up to twice that.
    fn histogram(&self) -> String {
        const WIDTH: f64 = 50.0;
        let mut bars: Vec<(u64, u64)> = Vec::new();
        let mut from = self.times.min().max(1).next_power_of_two() / 2;
        while from <= self.times.max() {
            bars.push((from, self.times.count_between(from, from * 2 - 1)));
            from = (from * 2).max(1);
        }
        let most = bars.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        bars.iter()
            .map(|(from, count)| {
                let bar = "█".repeat((*count as f64 / most as f64 * WIDTH).ceil() as usize);
                format!("{:>9}  {bar} {count}\n", format_time(*from as f64))
            })
            .collect()
    }
}

/// A time in a suitable unit.
fn format_time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.0} ns"),
        ..1e6 => format!("{:.1} µs", nanoseconds / 1e3),
        ..1e9 => format!("{:.1} ms", nanoseconds / 1e6),
        _ => format!("{:.2} s", nanoseconds / 1e9),
    }
}
