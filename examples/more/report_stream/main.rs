//! A report that arrives page by page, with a progress bar. The README beside this file says more.
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add indicatif
//! cargo add serde --features derive
//! cargo add tokio --features full
//! ```

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use taskfork::worker::context;
use taskfork::{BoxError, Client, Emitter, Server, ServerBuilder, ServerError};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// How many sales a month has.
const SALES: u64 = 50_000;

#[taskfork::interface]
trait Reports {
    /// Adds up the sales of a year. Emits a page for each month.
    fn sales(&mut self, year: u32, out: &mut Emitter<Page>) -> Result<Summary, BoxError>;
}

#[derive(Serialize, Deserialize)]
struct Page {
    month: String,
    cents: u64,
}

#[derive(Default, Serialize, Deserialize)]
struct Summary {
    pages: u32,
    cents: u64,
}

struct Books;

impl Reports for Books {
    fn sales(&mut self, year: u32, out: &mut Emitter<Page>) -> Result<Summary, BoxError> {
        let mut summary = Summary::default();
        let all = SALES * MONTHS.len() as u64;
        for (number, month) in (0..).zip(MONTHS) {
            let mut cents = 0;
            for sale in 0..SALES {
                // It never waits, so it may be called for each.
                context().progress(number * SALES + sale, all, "sales");
                cents += price(u64::from(year) * all + number * SALES + sale);
            }
            // A slow source of data.
            std::thread::sleep(Duration::from_millis(100));
            summary.pages += 1;
            summary.cents += cents;
            // It waits for the reader if that is far behind, and fails if the reader has left.
            out.send(&Page { month: format!("{month} {year}"), cents })?;
        }
        Ok(summary)
    }
}

/// The price of a sale, which stands for a database.
fn price(sale: u64) -> u64 {
    sale.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52
}

fn reports(server: ServerBuilder) -> Result<(), ServerError> {
    server.name("reports").setup(|| Ok::<_, BoxError>(Books)).interface(ReportsInterface).run()
}

fn main() -> Result<(), BoxError> {
    taskfork::init(&[("reports", reports)]);
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), BoxError> {
    let server = Server::spawn("reports")?;
    let reports: ReportsClient = Client::builder().address(server.address()).build_as()?;

    // It is shown on a terminal only.
    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template("{wide_bar} {percent}% {pos} of {len} sales")?);
    let mut pages = reports.sales(2026);
    let mut progress = pages.progress();
    loop {
        tokio::select! {
            page = pages.next() => {
                let Some(page) = page? else { break };
                bar.suspend(|| println!("{}: {}", page.month, euros(page.cents)));
            }
            Some(report) = progress.changed() => {
                bar.set_length(report.total.unwrap_or(report.done));
                bar.set_position(report.done);
            }
        }
    }
    let summary = pages.finish().await?;
    bar.finish_and_clear();
    println!("{} pages, {} in all", summary.pages, euros(summary.cents));
    Ok(())
}

fn euros(cents: u64) -> String {
    format!("{}.{:02} EUR", cents / 100, cents % 100)
}
