//! Differences between two states of the counters of a server: calls and errors per second, and times of calls.

use std::collections::{BTreeMap, VecDeque};

use taskfork::server::{Histogram, MethodStatus, ServerStatus};

use crate::model::Method;

/// For how long quantiles of the curves look back, in milliseconds.
const QUANTILES: f64 = 10_000.0;

/// For how long the table of methods looks back, and how often a state is kept for that.
const METHODS: f64 = 60_000.0;
const STEP: f64 = 10_000.0;

#[derive(Debug, Default)]
pub(crate) struct Rates {
    /// The last state.
    last: Option<Totals>,
    /// States of the last 10 seconds, oldest first.
    recent: VecDeque<(f64, Histogram)>,
    /// States of the last minute, oldest first.
    methods: VecDeque<(f64, BTreeMap<String, MethodStatus>)>,
}

#[derive(Debug, Clone)]
struct Totals {
    at: f64,
    errors: u64,
    times: Histogram,
}

/// What has changed since the last state.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Change {
    /// Per second.
    pub(crate) calls: Option<f32>,
    pub(crate) errors: Option<f32>,
    /// Of the last 10 seconds.
    pub(crate) times: Histogram,
}

impl Rates {
    /// Another process counts from now on.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Takes the state. Its time is that of the server, whose clock is never set back.
    pub(crate) fn update(&mut self, status: &ServerStatus) -> Change {
        let at = status.seconds * 1000.0;
        let mut now = Totals { at, errors: 0, times: Histogram::default() };
        for calls in status.calls.values() {
            now.errors = now.errors.saturating_add(calls.errors);
            now.times.merge(&calls.times);
        }
        let since_before = self.last.as_ref().filter(|last| last.at < at).map(|last| {
            let seconds = (at - last.at) / 1000.0;
            let calls = now.times.count().saturating_sub(last.times.count());
            let errors = now.errors.saturating_sub(last.errors);
            ((calls as f64 / seconds) as f32, (errors as f64 / seconds) as f32)
        });
        while self.recent.get(1).is_some_and(|(next, _)| *next <= at - QUANTILES) {
            self.recent.pop_front();
        }
        let times = self.recent.front().map(|(_, before)| now.times.since(before));
        // A server that stops for long and goes on is asked rarely, so the length is bounded by the interval of a second.
        self.recent.push_back((at, now.times.clone()));
        if self.methods.back().is_none_or(|(last, _)| *last <= at - STEP) {
            self.methods.push_back((at, status.calls.clone()));
        }
        while self.methods.get(1).is_some_and(|(next, _)| *next <= at - METHODS) {
            self.methods.pop_front();
        }
        self.last = Some(now);
        Change {
            calls: since_before.map(|it| it.0),
            errors: since_before.map(|it| it.1),
            times: times.unwrap_or_default(),
        }
    }

    /// The last minute by method. Methods without calls are left out.
    pub(crate) fn methods(&self, status: &ServerStatus) -> Vec<Method> {
        let nothing = MethodStatus::default();
        let before = self.methods.front().map(|(_, before)| before);
        let of = status.calls.iter().filter_map(|(method, now)| {
            let before = before.and_then(|before| before.get(method)).unwrap_or(&nothing);
            let times = now.times.since(&before.times);
            let calls = times.count();
            (calls > 0).then(|| Method {
                method: method.clone(),
                calls,
                errors: now.errors.saturating_sub(before.errors),
                mean: times.seconds / calls as f64,
                p50: times.quantile(0.5).unwrap_or(0.0),
                p99: times.quantile(0.99).unwrap_or(0.0),
            })
        });
        of.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn status(calls: u64, errors: u64, at: f64) -> ServerStatus {
        let mut status: ServerStatus = serde_json::from_str(
            r#"{"name":"n","pid":1,"seconds":1.0,"accepting":true,"max_workers":1,"forked":0,
            "refused":0,"deaths":{},"workers":[]}"#,
        )
        .unwrap();
        status.seconds = at / 1000.0;
        let mut of_method = MethodStatus::default();
        of_method.errors = errors;
        (0..calls).for_each(|_| of_method.times.add(Duration::from_millis(3)));
        status.calls.insert("m".to_owned(), of_method);
        status
    }

    #[test]
    fn rates_are_per_second_and_start_with_the_second_state() {
        let mut rates = Rates::default();
        assert_eq!(rates.update(&status(7, 7, 0.0)), Change::default());
        let change = rates.update(&status(17, 8, 2000.0));
        assert_eq!((change.calls, change.errors), (Some(5.0), Some(0.5)));
        assert_eq!(change.times.count(), 10);
        assert_eq!(rates.methods(&status(17, 8, 2000.0))[0].calls, 10);
        rates.reset();
        assert_eq!(rates.update(&status(1, 0, 3000.0)).calls, None);
    }

    #[test]
    fn old_states_are_forgotten() {
        let mut rates = Rates::default();
        for second in 0..600 {
            rates.update(&status(second, 0, second as f64 * 1000.0));
        }
        assert!(rates.recent.len() <= 12 && rates.methods.len() <= 8, "{rates:?}");
        let change = rates.update(&status(600, 0, 600_000.0));
        assert_eq!((change.calls, change.times.count()), (Some(1.0), 10));
        let calls = rates.methods(&status(600, 0, 600_000.0))[0].calls;
        assert!((60..=70).contains(&calls), "{calls}");
    }
}
