//! Clients that wait for room, in the order in which they began to wait. No I/O; time is an argument.

use std::time::{Duration, Instant};

use crate::fleet::RENEWAL;
use crate::wire::Request;

/// A client that has not renewed its place for this long has gone.
const FORGOTTEN: Duration = Duration::from_millis(RENEWAL.as_millis() as u64 * 5 / 2);

/// More clients than this have no place. They ask again, and get one when others have gone.
const MAX_WAITERS: usize = 4096;

/// The queue of one node.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// The client that has waited longest is first.
    queue: Vec<Waiter>,
}

/// A client with a place in the queue.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Where it expects a session.
    pub(super) inbox: String,
    pub(super) request: Request,
    since: Instant,
    renewed: Instant,
    /// When it was last looked for room for it.
    looked: Option<Instant>,
}

impl Waiters {
    /// Gives a client a place according to how long it has waited, or keeps the one that it has.
    pub(super) fn renew(&mut self, now: Instant, inbox: &str, request: Request) {
        if let Some(waiter) = self.queue.iter_mut().find(|waiter| waiter.inbox == inbox) {
            waiter.renewed = now;
            waiter.request = request;
            return;
        }
        if self.queue.len() >= MAX_WAITERS {
            return;
        }
        let since = now.checked_sub(Duration::from_millis(request.waited_ms)).unwrap_or(now);
        let place = self.queue.partition_point(|waiter| waiter.since <= since);
        let inbox = inbox.to_owned();
        self.queue.insert(place, Waiter { inbox, request, since, renewed: now, looked: None });
    }

    /// Whether a client waits at this inbox.
    pub(super) fn has(&self, inbox: &str) -> bool {
        self.queue.iter().any(|waiter| waiter.inbox == inbox)
    }

    /// The request of the client that waits at this inbox. `None` also if this was called for it just before: a message
    /// that nodes pass on can come back.
    pub(super) fn look(&mut self, now: Instant, inbox: &str) -> Option<Request> {
        let waiter = self.queue.iter_mut().find(|waiter| waiter.inbox == inbox)?;
        let is_new = waiter.looked.is_none_or(|looked| looked + RENEWAL / 2 <= now);
        is_new.then(|| {
            waiter.looked = Some(now);
            waiter.request.clone()
        })
    }

    /// Puts a client, if it still waits, in front of those that have sessions: room was made for it. Those that have none
    /// keep their turn.
    pub(super) fn prefer(&mut self, inbox: &str) {
        let Some(place) = self.queue.iter().position(|waiter| waiter.inbox == inbox) else {
            return;
        };
        let ahead = &self.queue[..place];
        let behind = ahead.iter().rposition(|waiter| waiter.request.sessions == 0);
        self.queue[behind.map_or(0, |last| last + 1)..=place].rotate_right(1);
    }

    /// Takes a client's place away.
    pub(super) fn cancel(&mut self, inbox: &str) {
        self.queue.retain(|waiter| waiter.inbox != inbox);
    }

    /// Takes the client that has waited longest.
    pub(super) fn take(&mut self, now: Instant) -> Option<Waiter> {
        self.forget(now);
        if self.queue.is_empty() { None } else { Some(self.queue.remove(0)) }
    }

    /// Forgets the clients that have gone. When to do so again, if any are left.
    pub(super) fn forget(&mut self, now: Instant) -> Option<Instant> {
        self.queue.retain(|waiter| waiter.renewed + FORGOTTEN > now);
        self.queue.iter().map(|waiter| waiter.renewed + FORGOTTEN).min()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MIN_PAYLOAD, Offer, Route, VERSION};

    fn request(waited_ms: u64) -> Request {
        let offer = Offer::new(0, MIN_PAYLOAD, Duration::from_secs(2));
        Request {
            version: VERSION,
            client: String::new(),
            number: 0,
            sessions: 0,
            offer,
            labels: vec![],
            waited_ms,
            cancel: false,
            route: Route::Relayed,
            avoid: Vec::new(),
        }
    }

    fn taken(waiters: &mut Waiters, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| waiters.take(now)).map(|waiter| waiter.inbox).collect()
    }

    #[test]
    fn who_has_waited_longest_is_first() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        for (inbox, waited) in [("b", 200), ("d", 0), ("a", 300), ("c", 100), ("e", 0)] {
            waiters.renew(now, inbox, request(waited));
        }

        assert_eq!(taken(&mut waiters, now), ["a", "b", "c", "d", "e"]);
    }

    #[test]
    fn a_renewed_place_stays_where_it_is() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        waiters.renew(now, "a", request(0));
        waiters.renew(now + Duration::from_millis(1), "b", request(0));
        waiters.renew(now + RENEWAL, "a", request(5000));
        waiters.renew(now + RENEWAL, "b", request(9000));

        assert_eq!(taken(&mut waiters, now + RENEWAL), ["a", "b"]);
    }

    #[test]
    fn a_client_for_which_room_was_made_passes_those_that_have_sessions() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        for (inbox, waited, sessions) in
            [("a", 500, 1), ("b", 400, 0), ("c", 300, 2), ("d", 200, 1), ("e", 100, 0)]
        {
            waiters.renew(now, inbox, Request { sessions, ..request(waited) });
        }
        waiters.prefer("e");
        waiters.prefer("gone");

        assert!(waiters.has("c") && !waiters.has("gone"));
        assert_eq!(taken(&mut waiters, now), ["a", "b", "e", "c", "d"]);
    }

    #[test]
    fn it_is_not_looked_for_room_again_and_again() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        waiters.renew(now, "a", request(0));
        assert!(waiters.look(now, "a").is_some() && waiters.look(now, "a").is_none());
        assert!(waiters.look(now, "gone").is_none());
        assert!(waiters.look(now + RENEWAL, "a").is_some());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        waiters.renew(now, "gone", request(9));
        waiters.renew(now + 2 * RENEWAL, "here", request(0));
        waiters.renew(now + 2 * RENEWAL, "cancelled", request(0));
        waiters.cancel("cancelled");

        assert_eq!(waiters.forget(now), Some(now + FORGOTTEN));
        assert_eq!(taken(&mut waiters, now + 3 * RENEWAL), ["here"]);
        assert!(waiters.take(now).is_none());
    }

    #[test]
    fn the_queue_is_bounded() {
        let now = Instant::now();
        let mut waiters = Waiters::default();
        for n in 0..MAX_WAITERS + 10 {
            waiters.renew(now, &n.to_string(), request(0));
        }

        assert_eq!(taken(&mut waiters, now).len(), MAX_WAITERS);
    }
}
