//! What follows from a change of a session. A session collects it while it is locked, and the core applies
//! it once no session is locked.

use std::sync::Arc;
use std::task::Waker;

use log_defer::Log;
use smallvec::SmallVec;

use super::connection::Connection;
use super::driver_queue::Driven;
use super::pool::{Lease, Loss};
use super::replay::Replay;
use crate::error::FatalError;

/// What a pool hands workers to. A trait, so that the core need not know what a session is.
pub(crate) trait Waiter: Driven {
    /// Gives it the worker that it waited for. It returns the worker if it has given up.
    fn assign(
        self: Arc<Self>,
        lease: Lease<Box<Connection>>,
    ) -> Result<Effects, Lease<Box<Connection>>>;

    /// Ends it, and all calls of it.
    fn fail(self: Arc<Self>, cause: FatalError);
}

/// What follows from a change of a session, to be done once the session is not locked any more.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// One as a rule, so that it needs no memory of its own.
    pub(crate) wakers: SmallVec<[Waker; 1]>,
    pub(crate) pool_commands: Vec<PoolCommand>,
    /// Who has lost its place in the queue to another.
    pub(crate) evicted: Vec<Arc<dyn Waiter>>,
    /// Logs that are let go of. The last handle of one calls what its user wants called.
    pub(crate) logs: Vec<Log>,
    /// What has spans and events to give to the user's subscriber, or is over.
    pub(crate) replays: Vec<Arc<Replay>>,
}

/// A worker changes hands.
#[derive(Debug)]
pub(crate) enum PoolCommand {
    /// A checkout is over and its worker as good as before.
    Release(Lease<Box<Connection>>),
    /// The worker is of no use any more.
    Lose(Lease<Box<Connection>>, Loss),
    /// It has never greeted, for this reason.
    FailHandshake(Lease<Box<Connection>>, String),
    Assign(Arc<dyn Waiter>, Lease<Box<Connection>>),
    /// The worker was not used, and is for the next one.
    Decline(Lease<Box<Connection>>),
}

impl Effects {
    /// As after most calls there is at most somebody to be woken.
    pub(crate) fn is_only_wakers(&self) -> bool {
        self.pool_commands.is_empty()
            && self.evicted.is_empty()
            && self.logs.is_empty()
            && self.replays.is_empty()
    }
}
