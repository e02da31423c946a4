//! Requests to end: the first one ends a server gracefully, the second one at once. One request can arrive as
//! two signals: a terminal or a service manager signals every process of a service, and the server's parent
//! passes on what it got itself.

use std::cell::Cell;

/// How many requests have come, and by which of the two ways.
#[derive(Debug, Default)]
pub(crate) struct StopRequests {
    from_parent: Cell<u32>,
    from_others: Cell<u32>,
    /// The terminal has been closed, for example.
    hung_up: Cell<bool>,
}

impl StopRequests {
    /// Counts a signal. Tells whether it is a request of its own, and not one that has come the other way already.
    pub(crate) fn record(&self, is_from_parent: bool) -> bool {
        let before = self.count();
        let way = if is_from_parent { &self.from_parent } else { &self.from_others };
        way.set(way.get().saturating_add(1));
        self.count() > before
    }

    /// The same for a signal that never is the second request.
    pub(crate) fn record_hangup(&self) -> bool {
        let before = self.count();
        self.hung_up.set(true);
        before == 0
    }

    /// How many requests have come.
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
        // A session that ends closes the terminal, and then ends the programs that are left.
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
