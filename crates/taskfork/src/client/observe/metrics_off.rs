//! Without the feature `metrics`: nothing.

use std::time::Duration;

use crate::client::pool::Counts;

#[derive(Debug)]
pub(crate) struct Metrics;

#[derive(Debug)]
pub(crate) struct Stopwatch;

impl Stopwatch {
    pub(crate) fn new() -> Self {
        Self
    }

    pub(crate) fn start(&mut self) {}
}

impl Metrics {
    pub(crate) fn new(_: &str) -> Self {
        Self
    }

    pub(crate) fn waited(&self, _: Duration) {}

    pub(crate) fn refused(&self) {}

    pub(crate) fn answered(&self, _: Option<&str>, _: &Stopwatch, _: bool) {}

    pub(crate) fn connected(&self) {}

    pub(crate) fn died(&self, _: &'static str) {}

    pub(crate) fn publish_gauges(&self, _: Counts) -> Option<Duration> {
        None
    }
}
