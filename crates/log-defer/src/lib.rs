//! Structured logs of one request, gathered in memory and written as one message.
//!
//! A service that handles many requests at once mixes their log lines. Here each request has a
//! [`Log`] of its own: lines with levels, timers and data. When the last handle is dropped, a callback gets one
//! finished [`Message`], and writes it where your logs go. The message has the structure of Perl's Log::Defer,
//! version 0.312, so programs in both languages can share logs and tools.
//!
//! ```sh
//! cargo add log-defer
//! cargo add serde_json
//! ```
//!
//! ```
//! use log_defer::{JsonLines, Level, Log};
//! use serde_json::json;
//!
//! # fn main() {
//! let lines = JsonLines::new(Vec::new());
//! let log = Log::builder().verbosity(Level::INFO).start(lines.callback());
//! log.info("request received");
//! log.warn(("the cache is cold", json!({ "entries": 0 })));
//! {
//!     let _timer = log.timer("reading the database");
//! }
//! log.data("user", 17);
//! log.debug(|| format!("never built: {:?}", std::time::Instant::now()));
//! drop(log);
//!
//! let written = String::from_utf8(lines.into_inner().unwrap()).unwrap();
//! assert!(written.contains(r#"20,"the cache is cold",{"entries":0}]"#));
//! assert!(!written.contains("never built"));
//! # }
//! ```
//!
//! [`timeline`] draws a message in a terminal. [`chrome_trace`] makes a file for Perfetto and other viewers.
//!
//! # Crate features
//!
//! - `timeline` (on by default): [`timeline`] and [`Style`].
//! - `tracing` (off by default): `emit` emits a message as an event of `tracing`.

mod bounds;
mod items;
mod level;
mod log;
mod message;
mod printable;
mod sink;
mod structure;
#[cfg(feature = "timeline")]
mod timeline;
mod trace;

pub use items::Items;
pub use level::Level;
pub use log::{Builder, Log, Timer};
pub use message::{Entry, InvalidMessage, Message, TimerRecord};
pub use printable::{printable, printable_bytes, printable_json, printable_lines};
pub use sink::JsonLines;
#[cfg(feature = "tracing")]
pub use sink::emit;
#[cfg(feature = "timeline")]
pub use timeline::{Style, timeline};
pub use trace::chrome_trace;

/// The program in README.md, compiled as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeDoctests;
