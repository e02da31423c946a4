//! Answers for an event loop that is not tokio's: it looks at all connections of a client that run calls, instead of being
//! woken for each answer.
//!
//! While it looks again and again, workers put their answers into the rings, and nobody is woken. Once it stops, each
//! connection announces that it sleeps, as after a spin.

use std::sync::{Arc, Mutex, Weak};

use super::driver_queue::Look;
use super::waker::{ConnectionWaker, Holder};
use crate::client::pool::WorkerKey;
use crate::sync::lock;

/// All connections of a client, by the places of their workers.
#[derive(Debug, Default)]
pub(crate) struct Watched(Mutex<Vec<Weak<ConnectionWaker>>>);

impl Watched {
    pub(crate) fn add(&self, key: WorkerKey, connection: &Arc<ConnectionWaker>) {
        let mut connections = lock(&self.0);
        if connections.len() <= key.index() {
            connections.resize_with(key.index() + 1, Weak::new);
        }
        connections[key.index()] = Arc::downgrade(connection);
    }

    /// The connections, without the lock between them: whoever gets one may run calls.
    fn each(&self) -> impl Iterator<Item = Arc<ConnectionWaker>> {
        let mut next = 0;
        std::iter::from_fn(move || {
            let connections = lock(&self.0);
            loop {
                let connection = connections.get(next)?.upgrade();
                next += 1;
                if connection.is_some() {
                    return connection;
                }
            }
        })
    }

    /// Handles what the workers of running calls have sent. It neither waits nor lets other sides wait: call it again soon,
    /// or [`end`](Self::end). Tasks whose calls have ended are woken.
    pub(crate) fn look(&self, checks_socket: bool) -> Look {
        let mut found = Look::Idle;
        for connection in self.each() {
            if let Holder::Session(session) = connection.holder()
                && let Some(session) = session.upgrade()
            {
                found = found.max(session.look(checks_socket));
            }
        }
        found
    }

    /// Tasks are woken for answers from here on. `poll_idle` polls the connection of an idle worker.
    pub(crate) fn end(&self, poll_idle: impl Fn(WorkerKey)) {
        for connection in self.each() {
            if !connection.set_watched(false) {
                continue;
            }
            match connection.holder() {
                Holder::None => {}
                Holder::Idle(key) => poll_idle(key),
                Holder::Session(session) => {
                    if let Some(session) = session.upgrade() {
                        session.connection_event();
                    }
                }
            }
        }
    }
}
