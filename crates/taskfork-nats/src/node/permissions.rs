//! What the NATS server does not permit a node. The server tells it in events, and not to the request that it refuses.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{Event, ServerError};
use bytes::Bytes;

use super::run::Runner;
use crate::error::Error;
use crate::token;

/// How many different refusals are kept. A node has fewer subjects, beside inboxes.
const MAX_REFUSALS: usize = 128;

/// After this time the same refusal is told again.
const AGAIN: Duration = Duration::from_secs(60);

/// How many refusals are named in an error.
const NAMED: usize = 3;

/// What a NATS server says in front of an action and its subject.
const VIOLATION: &str = "permissions violation for ";

/// Something that the NATS server does not permit.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Refusal {
    action: &'static str,
    subject: String,
}

/// The refusals that a connection to NATS has got.
#[derive(Clone, Debug, Default)]
pub(super) struct Permissions {
    noted: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    /// For each refusal when it was last written to the log, if it was.
    refusals: HashMap<Refusal, Option<Instant>>,
    /// The node serves: what comes now is for the log.
    is_serving: bool,
}

impl Permissions {
    /// Takes an event of the connection.
    pub(super) fn note(&self, event: &Event) {
        if matches!(event, Event::Disconnected) && self.noted().is_serving {
            tracing::warn!("the node has lost its NATS server, and connects again");
        }
        let Event::ServerError(ServerError::Other(text)) = event else { return };
        let Some(refusal) = Refusal::parse(text) else { return };
        let mut noted = self.noted();
        let is_known = noted.refusals.contains_key(&refusal);
        if !is_known && noted.refusals.len() < MAX_REFUSALS {
            noted.refusals.insert(refusal, None);
        }
        noted.tell();
    }

    /// The error of what was refused until now.
    fn check(&self) -> Result<(), Error> {
        let noted = self.noted();
        let mut refused: Vec<_> = noted.refusals.keys().collect();
        // The subjects of the service say more than `$SRV`.
        refused.sort_unstable_by_key(|refusal| {
            (refusal.subject.starts_with('$'), refusal.action, &*refusal.subject)
        });
        let mut refused: Vec<_> = refused.into_iter().map(Refusal::to_string).collect();
        let more = refused.len().saturating_sub(NAMED);
        refused.truncate(NAMED);
        match (refused.is_empty(), more) {
            (true, _) => Ok(()),
            (false, 0) => Err(Error::NotPermitted { what: refused.join(", ") }),
            (false, _) => {
                let what = format!("{}, and {more} more", refused.join(", "));
                Err(Error::NotPermitted { what })
            }
        }
    }

    /// From now on refusals are written to the log, also those that have come already.
    pub(super) fn serve(&self) {
        let mut noted = self.noted();
        noted.is_serving = true;
        noted.tell();
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        // Each change is one insertion or assignment.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn tell(&mut self) {
        if !self.is_serving {
            return;
        }
        let now = Instant::now();
        for (refusal, told) in &mut self.refusals {
            if told.is_none_or(|told| now.duration_since(told) >= AGAIN) {
                *told = Some(now);
                tracing::warn!("the NATS server does not permit this node to {refusal}");
            }
        }
    }
}

impl Refusal {
    /// Parses what a server says. Inboxes have random names, and are one.
    fn parse(text: &str) -> Option<Self> {
        let begins = text.get(..VIOLATION.len())?.eq_ignore_ascii_case(VIOLATION);
        let rest = begins.then(|| &text[VIOLATION.len()..])?;
        let (action, rest) = rest.split_once(' ')?;
        let action = match action.to_ascii_lowercase().as_str() {
            "publish" => "publish to",
            "subscription" => "subscribe to",
            _ => return None,
        };
        let subject = rest.split('"').nth(1)?;
        let is_random = |token: &str| token::from_hex::<16>(token).is_some();
        let subject = match subject.rsplit_once('.') {
            Some((prefix, token)) if is_random(token) => format!("{prefix}.>"),
            _ => subject.to_owned(),
        };
        Some(Self { action, subject: crate::wire::shortened(&subject) })
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.action, self.subject)
    }
}

impl Runner {
    /// Uses each subject of the node in a way that has no effect, so that the server tells what it does not permit. What is
    /// subscribed to is left at once: another node gets the requests, and nothing waits for an answer of this one.
    pub(super) async fn try_subjects(&self) -> Result<(), Error> {
        let client = &self.shared.client;
        for subject in self.own_subjects() {
            let mut tried = client.subscribe(subject).await.map_err(Error::closed)?;
            tried.unsubscribe().await.map_err(Error::closed)?;
        }
        let published = [
            token::inbox(client)?,
            // Nodes ignore what is no load, and requests without an inbox.
            self.subjects.load(),
            self.subjects.acquire_from(&self.name),
        ];
        for subject in published {
            client.publish(subject, Bytes::new()).await.map_err(Error::closed)?;
        }
        Ok(())
    }

    /// Whether all of that is permitted. The answer to a message that follows it has come.
    pub(super) fn check_permissions(&self) -> Result<(), Error> {
        self.permissions.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(texts: &[String]) -> Permissions {
        let permissions = Permissions::default();
        for text in texts {
            permissions.note(&Event::ServerError(ServerError::Other(text.clone())));
        }
        permissions
    }

    #[test]
    fn an_error_names_what_is_not_permitted() {
        let inbox =
            format!("Permissions Violation for Publish to \"_INBOX.x.{}\"", "0a".repeat(16));
        let queue = "Permissions Violation for Subscription to \"s.load\" using queue \"s\"";
        let error = noted(&[inbox.clone(), inbox, queue.to_owned()]).check().unwrap_err();
        let expected =
            "the NATS server does not permit this to publish to _INBOX.x.>, subscribe to s.load";
        assert!(error.to_string().starts_with(expected), "{error}");
        let many: Vec<_> =
            (0..1000).map(|n| format!("permissions violation for publish to \"s.{n}\"")).collect();
        let error = noted(&many).check().unwrap_err().to_string();
        assert!(error.contains("publish to s.10, and 125 more"), "{error}");
    }

    #[test]
    fn refusals_are_told_once_the_node_serves() {
        let text = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
        let permissions = noted(&[text("s.a")]);
        let told = |permissions: &Permissions| {
            permissions.noted().refusals.values().filter(|told| told.is_some()).count()
        };
        assert_eq!(told(&permissions), 0);
        permissions.serve();
        assert_eq!(told(&permissions), 1);
        permissions.note(&Event::ServerError(ServerError::Other(text("s.b"))));
        assert_eq!(told(&permissions), 2);
    }

    #[test]
    fn other_errors_are_no_refusals() {
        for text in ["", "Permissions Violation for ", "permissions violation for publish to", "é"]
        {
            assert!(noted(&[text.to_owned()]).check().is_ok(), "{text}");
        }
    }
}
