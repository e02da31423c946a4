//! What a node knows of the load of others, and whether it passes a request on. No I/O; time is an argument.
//!
//! NATS chooses a member of a queue group at random. With that alone some nodes have twice as many sessions as
//! others. So a node that has more than the others passes a request on to the group, which costs half a round trip.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The share of a node's room that is in use, in millionths.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Load(u32);

/// What a node tells another one. NATS may choose the node itself, which then ignores it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Told {
    pub(super) load: Load,
    /// The id of the node's instance.
    pub(super) id: String,
}

/// How often a node tells another one of its load, if it has changed.
const INTERVAL: Duration = Duration::from_millis(500);

/// What is known of others is forgotten after this time without news.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// How many loads make up the mean. More are more exact, and follow a change more slowly.
const MEMORY: f64 = 8.0;

/// A request is passed on so often at most.
const MOST_PASSES: u8 = 2;

/// With a larger mean load, nodes with room are too few to look for a better one.
const CROWDED: f64 = 900_000.0;

/// The longest message that is read.
const MAX_BYTES: usize = 128;

impl Load {
    const ALL: u64 = 1_000_000;

    pub(super) fn new(used: usize, room: usize) -> Self {
        let load = (used as u64).saturating_mul(Self::ALL) / (room as u64).max(1);
        Self(load.min(Self::ALL) as u32)
    }
}

impl Told {
    /// Reads what a node has sent.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let told = payload.len() <= MAX_BYTES;
        let told = told.then(|| serde_json::from_slice::<Self>(payload).ok()).flatten()?;
        (u64::from(told.load.0) <= Load::ALL).then_some(told)
    }

    pub(super) fn encode(&self) -> String {
        format!("{{\"load\":{},\"id\":\"{}\"}}", self.load.0, self.id)
    }
}

/// The mean load of other nodes, as far as this node has heard.
#[derive(Debug, Default)]
pub(super) struct Balance {
    mean: f64,
    /// How many loads are in the mean, up to [`MEMORY`].
    count: f64,
    heard: Option<Instant>,
    told: Option<(Instant, Load)>,
}

impl Balance {
    /// Another node has this load.
    pub(super) fn hear(&mut self, now: Instant, load: Load) {
        if !self.is_fresh(now) {
            (self.mean, self.count) = (0.0, 0.0);
        }
        self.heard = Some(now);
        self.count = (self.count + 1.0).min(MEMORY);
        self.mean += (f64::from(load.0) - self.mean) / self.count;
    }

    /// Whether to tell another node of the own load now.
    pub(super) fn tell(&mut self, now: Instant, load: Load) -> bool {
        let due = self.told.is_none_or(|(when, told)| told != load && when + INTERVAL <= now);
        if due {
            self.told = Some((now, load));
        }
        due
    }

    /// Whether to pass on a request that was passed on so often.
    pub(super) fn passes_on(&self, now: Instant, load: Load, passes: u8) -> bool {
        passes < MOST_PASSES
            && self.is_fresh(now)
            && self.mean < CROWDED
            && f64::from(load.0) > self.mean
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| heard + FORGOTTEN > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(balance: &mut Balance, now: Instant, loads: impl IntoIterator<Item = usize>) {
        for used in loads {
            balance.hear(now, Load::new(used, 100));
        }
    }

    #[test]
    fn a_node_with_more_than_the_mean_passes_requests_on() {
        let now = Instant::now();
        let mut balance = Balance::default();
        told(&mut balance, now, [10, 20, 30]);

        assert!(balance.passes_on(now, Load::new(21, 100), 0));
        assert!(!balance.passes_on(now, Load::new(20, 100), 0));
        assert!(!balance.passes_on(now, Load::new(90, 100), MOST_PASSES));
        told(&mut balance, now, [80; 50]);
        assert!(!balance.passes_on(now, Load::new(70, 100), 0), "the mean follows");
    }

    #[test]
    fn a_node_that_has_heard_nothing_accepts() {
        let now = Instant::now();
        let mut balance = Balance::default();
        assert!(!balance.passes_on(now, Load::new(90, 100), 0));
        told(&mut balance, now, [1]);

        assert!(balance.passes_on(now, Load::new(90, 100), 0));
        assert!(!balance.passes_on(now + FORGOTTEN, Load::new(90, 100), 0));
    }

    #[test]
    fn nodes_of_a_crowded_fleet_accept() {
        let now = Instant::now();
        let mut balance = Balance::default();
        told(&mut balance, now, [95, 95]);

        assert!(!balance.passes_on(now, Load::new(99, 100), 0));
    }

    #[test]
    fn a_load_is_told_when_it_has_changed_and_not_too_often() {
        let now = Instant::now();
        let mut balance = Balance::default();
        let [one, two] = [1, 2].map(|used| Load::new(used, 3));

        assert!(balance.tell(now, one));
        assert!(!balance.tell(now, two));
        assert!(!balance.tell(now + INTERVAL, one));
        assert!(balance.tell(now + INTERVAL, two));
    }

    #[test]
    fn what_another_node_sends_is_checked() {
        let told = Told { load: Load::new(1, 3), id: "a1".into() };
        assert_eq!(Told::decode(told.encode().as_bytes()), Some(told));
        for wrong in ["", "1", "1000001", "-1", "1e3"] {
            let text = format!("{{\"load\":{wrong},\"id\":\"a1\"}}");
            let accepted = Told::decode(text.as_bytes()).is_some();
            assert_eq!(accepted, wrong == "1", "{text}");
        }
        let long = Told { load: Load::new(1, 3), id: "x".repeat(MAX_BYTES) };
        assert_eq!(Told::decode(long.encode().as_bytes()), None);
    }
}
