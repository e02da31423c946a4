//! A page, health checks and metrics for people who watch servers of [taskfork](https://docs.rs/taskfork).
//!
//! A [`Dashboard`] reads the status sockets of servers once a second, and asks the nodes of services at NATS. It keeps 15
//! minutes of curves, the last 50 deaths and the last 50 slow calls of each server in bounded memory, and serves:
//!
//! | path | what |
//! |---|---|
//! | `/` | the page |
//! | `/healthz` | 200 while this process works |
//! | `/readyz` | 200 if all servers and at least one node of each service answer and accept connections, otherwise 503 |
//! | `/metrics` | metrics for Prometheus |
//! | `/api/status` | everything that the page shows, as JSON: see [`model`] |
//! | `/api/events` | the same as server-sent events: `full` once, then `update` with what has changed |
//! | `/api/actions` | POST: dismisses or kills a worker, if that is allowed |
//!
//! Without a token it serves loopback addresses only, unless it has TLS and demands certificates of clients (feature `tls`). With
//! a token, `/metrics` and everything below `/api` need the header
//! `Authorization: Bearer TOKEN`. Requests for unknown host names are refused, so no page of another site can reach it by
//! its own name. Connections, headers, bodies and waiting are bounded.
//!
//! ```no_run
//! use taskfork_dashboard::Dashboard;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let dashboard = Dashboard::builder().server("adder", "/run/adder.sock.status").build()?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9180").await?;
//! dashboard.serve(listener).await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod builder;
mod causes;
mod curve;
mod http;
mod metrics;
pub mod model;
mod poll;
mod pool;
#[cfg(feature = "nats")]
mod questions;
mod rates;
mod sanitize;
mod slow;
mod state;
#[cfg(feature = "tls")]
mod tls;

pub use builder::{Dashboard, DashboardBuilder, DashboardError};
pub use metrics::METRICS;
#[cfg(feature = "tls")]
pub use tls::Reloader;
