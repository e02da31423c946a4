//! The sessions of a node, and the places that they free for clients that wait.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::task::{Id, JoinSet};

use super::shares::{Held, Holder, choose};
use super::usage::{SessionUsage, Usage};
use crate::fleet::RENEWAL;
use crate::wire::Request;

/// A session that has been asked to leave and is in use for longer than this is no longer relied on.
const PATIENCE: Duration = RENEWAL;

/// The tasks of the sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    tasks: JoinSet<()>,
    entries: HashMap<Id, Entry>,
}

#[derive(Debug)]
struct Entry {
    holder: Holder,
    usage: SessionUsage,
    /// Set if the session leaves.
    promise: Option<Promise>,
}

/// For whom a session leaves.
#[derive(Debug)]
struct Promise {
    inbox: String,
    holder: Holder,
    since: Instant,
}

impl Promise {
    fn new(inbox: &str, holder: &Holder, since: Instant) -> Self {
        Self { inbox: inbox.to_owned(), holder: holder.clone(), since }
    }
}

impl Sessions {
    /// Counts a session until its task is over.
    pub(super) fn spawn(
        &mut self,
        holder: Holder,
        usage: SessionUsage,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        self.entries.insert(id, Entry { holder, usage, promise: None });
    }

    /// Waits until a session is over. `None` if there are none. Returns the inbox of the client for which it left, if it did.
    /// Cancelling loses nothing.
    pub(super) async fn next_ended(&mut self) -> Option<Option<String>> {
        let ended = self.tasks.join_next_with_id().await?;
        let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
        let promise = self.entries.remove(&id).and_then(|entry| entry.promise);
        Some(promise.map(|promise| promise.inbox))
    }

    /// Asks a session to leave for the client that waits at this inbox, unless one does already. Returns false if none
    /// has to. `waits` says of other inboxes whether a client waits there.
    pub(super) fn make_room(
        &mut self,
        now: Instant,
        inbox: &str,
        request: &Request,
        waits: impl Fn(&str) -> bool,
    ) -> bool {
        let holder = request.holder();
        let is_late = |promise: &Promise| now.saturating_duration_since(promise.since) >= PATIENCE;
        let mut waits_in_vain = false;
        for promise in self.entries.values_mut().filter_map(|entry| entry.promise.as_mut()) {
            if promise.inbox == inbox {
                if !is_late(promise) {
                    return true;
                }
                waits_in_vain = true;
            } else if !is_late(promise) && !waits(&promise.inbox) {
                // That client has gone.
                *promise = Promise::new(inbox, &holder, promise.since);
                return true;
            }
        }
        let mut held = Vec::with_capacity(self.entries.len());
        for (id, Entry { holder, usage, promise }) in &self.entries {
            let (began, usage) = usage.get();
            match promise {
                None => held.push(Held { id: *id, holder, began, usage }),
                // The place counts as that of the other client, and nobody takes it away.
                Some(Promise { inbox: other, holder, .. }) if other != inbox && waits(other) => {
                    held.push(Held { id: *id, holder, began, usage: Usage::Unknown });
                }
                Some(_) => {}
            }
        }
        if waits_in_vain {
            // Only what leaves at once helps. Otherwise a client would make one session after the other leave.
            for session in held.iter_mut().filter(|session| session.usage == Usage::Used) {
                session.usage = Usage::Unknown;
            }
        }
        let Some(id) = choose(now, &held, &holder, request.sessions > 0) else { return false };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.promise = Some(Promise::new(inbox, &holder, now));
            entry.usage.leave();
        }
        true
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn abort_all(&mut self) {
        self.tasks.abort_all();
    }
}

impl Request {
    /// Who wants the session.
    pub(super) fn holder(&self) -> Holder {
        Holder { client: self.client.clone(), number: self.number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{MIN_PAYLOAD, Offer, Route, VERSION};

    const HOUR: Duration = Duration::from_secs(3600);

    fn request(client: &str) -> Request {
        Request {
            version: VERSION,
            client: client.to_owned(),
            number: 1,
            sessions: 0,
            offer: Offer::new(0, MIN_PAYLOAD, Duration::from_secs(2)),
            labels: vec![],
            waited_ms: 0,
            cancel: false,
            route: Route::Relayed,
            avoid: vec![],
        }
    }

    /// Sessions of this client that do not end by themselves.
    fn sessions(client: &str, used: usize, unused: usize) -> Sessions {
        let mut sessions = Sessions::default();
        for number in 0..used + unused {
            let usage = SessionUsage::new();
            usage.set_used(number < used);
            sessions.spawn(request(client).holder(), usage, std::future::pending());
        }
        sessions
    }

    fn leaving(sessions: &Sessions) -> usize {
        sessions.entries.values().filter(|entry| entry.promise.is_some()).count()
    }

    #[tokio::test]
    async fn a_client_that_waits_often_gets_half_of_the_places() {
        let mut sessions = sessions("many", 0, 8);
        let now = Instant::now() + HOUR;
        let made: Vec<_> = (0..8)
            .map(|number| sessions.make_room(now, &number.to_string(), &request("new"), |_| true))
            .collect();
        assert_eq!(made, [true, true, true, true, false, false, false, false]);
        assert_eq!(leaving(&sessions), 4);
    }

    #[tokio::test]
    async fn a_session_in_use_for_long_is_not_waited_for_when_others_are_unused() {
        let mut sessions = sessions("many", 3, 0);
        let now = Instant::now() + HOUR;
        assert!(sessions.make_room(now, "a", &request("new"), |_| true));
        assert!(sessions.make_room(now + PATIENCE / 2, "a", &request("new"), |_| true));
        assert_eq!(leaving(&sessions), 1, "one leaves already");
        let late = now + PATIENCE;
        assert!(!sessions.make_room(late, "a", &request("new"), |_| true));
        assert_eq!(leaving(&sessions), 1, "a second one in use does not help");

        let mut stay = sessions.entries.values().filter(|entry| entry.promise.is_none());
        stay.next().unwrap().usage.set_used(false);
        assert!(sessions.make_room(late + PATIENCE, "a", &request("new"), |_| true));
        assert_eq!(leaving(&sessions), 2);
    }

    #[tokio::test]
    async fn a_session_that_leaves_for_nobody_leaves_for_the_next_one() {
        let mut sessions = sessions("many", 0, 4);
        let now = Instant::now() + HOUR;
        assert!(sessions.make_room(now, "gone", &request("one"), |_| true));
        assert!(sessions.make_room(now, "next", &request("other"), |inbox| inbox != "gone"));
        assert_eq!(leaving(&sessions), 1);
        let promises: Vec<_> =
            sessions.entries.values().filter_map(|entry| entry.promise.as_ref()).collect();
        assert_eq!(promises[0].inbox, "next");
    }

    #[tokio::test]
    async fn the_inbox_comes_with_the_end_of_the_session() {
        let mut sessions = Sessions::default();
        let usage = SessionUsage::new();
        usage.set_used(false);
        let leaves = usage.clone();
        sessions.spawn(request("many").holder(), usage, async move { leaves.leaves().await });
        let now = Instant::now() + HOUR;
        assert!(sessions.make_room(now, "a", &request("new"), |_| true));
        assert_eq!(sessions.next_ended().await, Some(Some("a".to_owned())));
        assert_eq!(sessions.next_ended().await, None);
    }
}
