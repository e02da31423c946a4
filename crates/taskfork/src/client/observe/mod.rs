//! What a client shows of its work: statistics, metrics, logs, and the spans of workers.

pub(crate) mod log;
#[cfg_attr(not(feature = "metrics"), path = "metrics_off.rs")]
pub(crate) mod metrics;
pub(crate) mod progress;
#[cfg_attr(not(feature = "spans"), path = "replay_off.rs")]
pub(crate) mod replay;
#[cfg(feature = "spans")]
mod replay_fields;
#[cfg(feature = "spans")]
mod sites;
pub(crate) mod stats;
