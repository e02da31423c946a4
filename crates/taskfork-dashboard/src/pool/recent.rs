//! What a node is asked for beside its status: its last deaths, and the stack of a call.

use taskfork::server::DeathStatus;

use super::PoolState;
use crate::sanitize::{MAX_STACK, bounded, sanitize_deaths};

/// What a node tells of what happened lately.
#[derive(Debug, serde::Deserialize)]
pub(crate) struct RecentAnswer {
    pid: u32,
    instance: u64,
    #[serde(default)]
    recent_deaths: Vec<DeathStatus>,
    #[serde(default)]
    sampled: Option<Sampled>,
}

/// The stack of a call of a node.
#[derive(Debug, serde::Deserialize)]
struct Sampled {
    worker: u64,
    pid: u32,
    calls: u64,
    stack: String,
}

impl PoolState {
    /// What to ask the node for, beside its status: as [`next_request`](Self::next_request). `None` if nothing is new.
    pub(crate) fn next_recent(&mut self, samples: bool) -> Option<(u64, Option<u64>)> {
        let status = self.last_status()?;
        let (has_deaths, shares) = (status.last_death > self.last_death, status.share_details);
        let sample = if samples && shares { self.slow.next_sample() } else { None };
        (has_deaths || sample.is_some()).then_some((self.last_death, sample))
    }

    /// The node has told what happened lately. Returns whether something of it is new.
    pub(crate) fn handle_recent(&mut self, recent: RecentAnswer) -> bool {
        let is_same = self
            .last_status()
            .is_some_and(|last| (last.pid, last.instance) == (recent.pid, recent.instance));
        if !is_same {
            return false;
        }
        let mut deaths = recent.recent_deaths;
        sanitize_deaths(&mut deaths);
        let before = self.last_death;
        self.add_deaths(&deaths);
        let has_stack = recent.sampled.is_some_and(|Sampled { worker, pid, calls, stack }| {
            self.slow.add_stack((worker, pid, calls), &bounded(&stack, MAX_STACK))
        });
        self.last_death != before || has_stack
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer(instance: u64, extra: &Value) -> RecentAnswer {
        let death = json!({ "number": 1, "at": 90.0, "worker": 2, "pid": 12, "cause": "hung", "text": "", "calls": 1,
            "stderr": "e".repeat(1 << 20), "stack": "s".repeat(1 << 20) });
        let mut answer = json!({ "pid": 1, "instance": instance, "recent_deaths": vec![death; 60],
            "sampled": { "worker": 1, "pid": 11, "calls": 3, "stack": "s".repeat(1 << 20) } });
        for (key, value) in extra.as_object().unwrap() {
            answer[key] = value.clone();
        }
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn a_node_is_asked_for_what_is_new_and_its_answer_is_bounded() {
        let mut pool = PoolState::new("s/n".to_owned(), Some("s".to_owned()), 1.0, 0.0);
        assert_eq!(pool.next_recent(true), None, "it has not answered");
        let status = |shares: bool, last_death: u64| {
            serde_json::from_value(json!({
                "name": "n", "pid": 1, "instance": 7, "seconds": 100.0, "accepting": true, "max_workers": 4, "forked": 0,
                "refused": 0, "deaths": { "hung": 1 }, "share_details": shares, "last_death": last_death,
                "workers": [{ "number": 1, "pid": 11, "state": "busy", "seconds": 9.0, "calls": 3, "checkouts": 0 }],
            }))
            .unwrap()
        };
        pool.handle_answer(status(false, 0), 100_000.0);
        assert_eq!(pool.next_recent(true), None, "its server shares nothing");
        pool.handle_answer(status(true, 1), 100_000.0);
        assert_eq!(pool.next_recent(false), Some((0, None)));
        assert_eq!(pool.next_recent(true), Some((0, Some(1))));
        assert!(!pool.handle_recent(answer(6, &json!({}))));
        assert_eq!(pool.full(100_000.0).recent_deaths.len(), 0, "that was another process");
        assert!(pool.handle_recent(answer(7, &json!({}))));
        let full = pool.full(100_000.0);
        assert_eq!((full.recent_deaths.len(), full.deaths_last_hour["hung"]), (1, 1));
        let slow = full.slow.as_ref().unwrap();
        assert!(slow[0].stack.as_ref().is_some_and(|stack| stack.len() < 20_000));
        assert!(serde_json::to_string(&full).unwrap().len() < 60_000);
        assert_eq!(pool.next_recent(true), None);
        // The stack belongs to another call.
        let other = json!({ "sampled": { "worker": 1, "pid": 11, "calls": 4, "stack": "other" } });
        assert!(!pool.handle_recent(answer(7, &other)), "nothing is new");
        assert!(!format!("{:?}", pool.full(100_000.0).slow).contains("other"));
    }
}
