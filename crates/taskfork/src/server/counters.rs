//! What a server counts for its status.

use std::collections::BTreeMap;

use super::call_totals::CallTotals;
use super::recent_deaths::RecentDeaths;
use crate::histogram::Histogram;

/// The counters of a server.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) refused: u64,
    pub(crate) deaths: BTreeMap<&'static str, u64>,
    /// The calls of workers that have ended.
    pub(crate) calls: CallTotals,
    /// How long connections have waited for a worker.
    pub(crate) waits: Histogram,
    pub(crate) recent_deaths: RecentDeaths,
}
