//! The addresses of direct connections that a client could not use. No I/O; time is an argument.
//!
//! Without them each new connection would wait for an address that a firewall closes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::wire::{MAX_AVOIDED, MIN_PAYLOAD};

/// How long an address is avoided.
const TIME: Duration = Duration::from_secs(60);

/// How many addresses are remembered. The one that has failed least recently is forgotten first.
const MOST: usize = 64;

/// How many bytes the addresses of a request may take. A request has 4 KiB in all.
const MOST_BYTES: usize = 1024;

/// How many bytes an address takes besides its own, and how many the list does.
const ENTRY: usize = "\"\",".len();
const LIST: usize = ",\"avoid\":[]".len();

/// The addresses that have failed.
#[derive(Debug, Default)]
pub(super) struct Avoided {
    /// Each once, the one that has failed last at the end. Those whose time is over stay, so that they are not new when they
    /// fail again.
    failed: VecDeque<(String, Instant)>,
}

impl Avoided {
    /// The address has failed. Whether it is new here.
    pub(super) fn add(&mut self, now: Instant, address: &str) -> bool {
        let known = self.failed.iter().position(|(failed, _)| failed == address);
        if let Some(index) = known {
            self.failed.remove(index);
        } else if self.failed.len() == MOST {
            self.failed.pop_front();
        }
        self.failed.push_back((address.to_owned(), now + TIME));
        known.is_none()
    }

    /// Whether the address is avoided now.
    pub(super) fn has(&self, now: Instant, address: &str) -> bool {
        self.now(now).any(|failed| failed == address)
    }

    /// What a request says, if messages have at most this many bytes: first the addresses that have failed last. The rest of
    /// a request needs no more than the shortest limit of messages.
    pub(super) fn for_request(&self, now: Instant, payload: usize) -> Vec<String> {
        let most = payload.saturating_sub(MIN_PAYLOAD).min(MOST_BYTES);
        let mut bytes = LIST;
        let fits = |address: &&str| {
            bytes += address.len() + ENTRY;
            bytes <= most
        };
        let first = self.now(now).take(MAX_AVOIDED);
        first.take_while(fits).map(str::to_owned).collect()
    }

    fn now(&self, now: Instant) -> impl Iterator<Item = &str> {
        let failed = self.failed.iter().rev();
        failed.filter(move |(_, until)| now < *until).map(|(address, _)| &address[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: usize = 1 << 20;

    #[test]
    fn an_address_is_avoided_for_a_while_and_new_once() {
        let now = Instant::now();
        let mut avoided = Avoided::default();
        assert!(avoided.add(now, "a:1") && avoided.add(now, "b:1"));
        assert!(avoided.has(now + TIME / 2, "a:1") && !avoided.has(now, "c:1"));
        assert!(!avoided.has(now + TIME, "a:1"));
        assert_eq!(avoided.for_request(now + TIME, PAYLOAD), [""; 0]);

        assert!(!avoided.add(now + TIME, "a:1"), "it is not new");
        assert_eq!(avoided.for_request(now + TIME, PAYLOAD), ["a:1"]);
    }

    #[test]
    fn what_is_remembered_and_sent_is_bounded() {
        let now = Instant::now();
        let mut avoided = Avoided::default();
        for port in 0..1000 {
            avoided.add(now, &format!("node.example:{port}"));
        }
        assert_eq!(avoided.failed.len(), MOST);
        assert!(!avoided.has(now, "node.example:935") && avoided.has(now, "node.example:936"));
        let sent = avoided.for_request(now, PAYLOAD);
        assert_eq!(sent.len(), MAX_AVOIDED);
        assert_eq!(sent[0], "node.example:999");

        let long = "x".repeat(250);
        for port in 0..10 {
            avoided.add(now, &format!("{long}:{port}"));
        }
        for (payload, count) in [(PAYLOAD, 3), (MIN_PAYLOAD + 600, 2), (MIN_PAYLOAD, 0)] {
            let sent = avoided.for_request(now, payload);
            assert_eq!(sent.len(), count);
            let json = format!(",\"avoid\":{}", serde_json::to_string(&sent).unwrap());
            assert!(count == 0 || json.len() <= payload - MIN_PAYLOAD, "{}", json.len());
        }
    }
}
