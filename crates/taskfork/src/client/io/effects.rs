//! The effects of a change of a session. A session collects them while it is locked, and the core applies
//! them once no session is locked.

use std::sync::Arc;
use std::task::Waker;

use log_defer::Log;
use smallvec::SmallVec;

use super::connection::Connection;
use super::driver_queue::Driven;
use crate::client::observe::progress::ProgressCell;
use crate::client::observe::replay::Replay;
use crate::client::pool::{Lease, Loss};
use crate::error::{ConnectionError, FatalError};

/// A checkout to which the pool assigns workers. A trait, so that the core need not know what a session is.
pub(crate) trait Waiter: Driven {
    /// Assigns the worker that it waited for. Returns the worker if it does not wait any more.
    fn assign(self: Arc<Self>, lease: Lease<Connection>) -> Result<Effects, Lease<Connection>>;

    /// Fails the checkout and all of its calls.
    fn fail(self: Arc<Self>, cause: FatalError);
}

/// The effects of a change of a session.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Usually there is one, which needs no allocation.
    pub(crate) wakers: SmallVec<[Waker; 1]>,
    pub(crate) pool_commands: SmallVec<[PoolCommand; 1]>,
    rare: Option<Box<RareEffects>>,
}

/// What most calls and checkouts do not cause.
#[derive(Debug, Default)]
pub(crate) struct RareEffects {
    /// Checkouts that lost their places in the queue to others.
    pub(crate) evicted: Vec<Arc<dyn Waiter>>,
    /// Logs to drop. Dropping the last handle of a log calls the user's callback.
    pub(crate) logs: Vec<Log>,
    /// Replays that have pending records, or are finished.
    pub(crate) replays: Vec<Arc<Replay>>,
    /// Reports of progress for which tasks may wait.
    pub(crate) progress: Vec<Arc<ProgressCell>>,
}

/// A worker changes hands.
#[derive(Debug)]
pub(crate) enum PoolCommand {
    /// The checkout has ended, and its worker can be used again.
    Release(Lease<Connection>),
    /// The worker is dead or must not be used again.
    Lose(Lease<Connection>, Loss),
    /// The worker must not be used again. What its outbox has is sent first.
    Close(Lease<Connection>),
    /// The worker never sent its hello, for this reason.
    FailHandshake(Lease<Connection>, ConnectionError),
    Assign(Arc<dyn Waiter>, Lease<Connection>),
    /// The checkout did not use the worker, so the next one may have it.
    Decline(Lease<Connection>),
}

impl Effects {
    pub(crate) fn of(command: Option<PoolCommand>) -> Self {
        Self { pool_commands: command.into_iter().collect(), ..Self::default() }
    }

    /// Whether there is nothing but tasks to wake, as after most calls.
    pub(crate) fn is_only_wakers(&self) -> bool {
        self.pool_commands.is_empty() && self.rare.is_none()
    }

    pub(crate) fn rare(&mut self) -> &mut RareEffects {
        self.rare.get_or_insert_default()
    }

    /// Removes the effects that are not those of most calls.
    pub(crate) fn take_rare(&mut self) -> RareEffects {
        self.rare.take().map(|rare| *rare).unwrap_or_default()
    }
}
