//! Requests to end. The first one shuts a server down gracefully, and the second one kills its
//! workers. One request can arrive as two signals: a terminal or a service manager signals every
//! process of a service, and the server's parent forwards its own signal.

use std::cell::Cell;

/// The number of requests that have arrived in each way.
#[derive(Debug, Default)]
pub(crate) struct StopRequests {
    from_parent: Cell<u32>,
    from_others: Cell<u32>,
    /// A SIGHUP asked for a shutdown, for example because the terminal has been closed.
    hung_up: Cell<bool>,
}

impl StopRequests {
    /// Counts a signal. Returns whether it is a new request, and not one that has arrived the other
    /// way already.
    pub(crate) fn record(&self, is_from_parent: bool) -> bool {
        let before = self.count();
        let way = if is_from_parent { &self.from_parent } else { &self.from_others };
        way.set(way.get().saturating_add(1));
        self.count() > before
    }

    /// Counts a SIGHUP, which is never the second request. Returns whether it is the first one.
    pub(crate) fn record_hangup(&self) -> bool {
        let before = self.count();
        self.hung_up.set(true);
        before == 0
    }

    /// The number of requests.
    pub(crate) fn count(&self) -> u32 {
        self.from_parent.get().max(self.from_others.get()).max(u32::from(self.hung_up.get()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_comes_both_ways_counts_once() {
        let requests = StopRequests::default();
        assert!(requests.record(false));
        assert!(!requests.record(true));
        assert!(requests.record(true));
        assert!(!requests.record(false));
        assert!(requests.record(false));
    }

    #[test]
    fn some_signals_are_a_request_only_at_first() {
        let requests = StopRequests::default();
        assert!(requests.record_hangup() && !requests.record_hangup());
        // The end of a session closes the terminal and then ends the remaining programs.
        assert!(!requests.record(false));
        assert!(!requests.record(true));
        assert!(requests.record(true));
    }

    #[test]
    fn repeated_requests_count_whichever_way_they_come() {
        for from_parent in [false, true] {
            let requests = StopRequests::default();
            assert!(requests.record(from_parent) && requests.record(from_parent));
        }
    }
}
