//! The worker's side of shared memory: whether the connection uses it, and when idle buffers are
//! freed.

use std::time::Duration;

use bytes::Bytes;

use super::connection::{Connection, ConnectionError};
use crate::clock::now;
use crate::shm_pool::{ShmBufferMut, ShmPool};
use crate::sys::{self, User};
use crate::wire::WireError;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::shm::{BufferOwner, Origin, PlacedBytes, ReceivedBytes, ShmMessage};

/// Buffers that have not been used for this long are freed.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// The pool is created at the first use: each page that a new worker writes to is copied for it.
#[derive(Debug, Default)]
pub(super) struct SharedMemory {
    /// The client's request, until the worker has decided.
    requested: Option<Requested>,
    agreed: Option<Agreed>,
    pool: Option<ShmPool>,
    /// When a buffer was used last, on the clock of the scoreboard.
    last_used: Duration,
    /// The pool has been trimmed, and no buffer has been used since.
    is_trimmed: bool,
}

#[derive(Debug, Clone, Copy)]
struct Requested {
    /// How many bytes of this side's memory the client maps.
    theirs: usize,
    /// How many bytes of the client's memory this side may map.
    ours: usize,
}

#[derive(Debug, Clone, Copy)]
struct Agreed {
    /// How many bytes of this side's memory the client maps.
    capacity: usize,
    /// How many bytes of the client's memory this side maps.
    max_mapped: usize,
    user: User,
}

#[taskfork_macros::startup_code]
impl SharedMemory {
    /// Records the client's request: it maps `theirs` bytes of this side's memory, and this side may
    /// map `ours` bytes of the client's. Zero on either side means no shared memory.
    pub(super) fn request(&mut self, theirs: usize, ours: usize) {
        self.requested = (theirs > 0 && ours > 0).then_some(Requested { theirs, ours });
    }

    /// Whether the client's request is still undecided.
    pub(super) fn is_requested(&self) -> bool {
        self.requested.is_some()
    }

    /// Decides by the current user of this process, and appends the message that agrees.
    pub(super) fn negotiate(&mut self, connection: &Connection, out: &mut Vec<u8>) {
        let Some(Requested { theirs, ours }) = self.requested.take() else { return };
        let Some(user) = connection.common_user() else { return };
        self.agreed = Some(Agreed { capacity: theirs.min(ours), max_mapped: ours, user });
        ShmMessage { agreed: Some(ours), ..ShmMessage::default() }.put(out);
    }

    /// Whether rings are safe: this process still has the user that it had when it agreed. `None` if
    /// the sides have not agreed on shared memory, so that the client must not offer rings.
    pub(super) fn allows_rings(&self) -> Option<bool> {
        self.agreed.map(|agreed| sys::sole_user() == Some(agreed.user))
    }

    fn pool(&mut self) -> Option<&mut ShmPool> {
        let Agreed { capacity, max_mapped, user } = self.agreed?;
        Some(self.pool.get_or_insert_with(|| ShmPool::new(capacity, max_mapped, user)))
    }

    /// Whether any buffer has been used so far.
    pub(super) fn is_used(&self) -> bool {
        self.pool.is_some()
    }

    /// See [`ShmPool::store`].
    pub(super) fn store(
        &mut self,
        bytes: &Bytes,
        origin: Option<Origin>,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        let mut placed = self.pool()?.store(bytes, origin, may_add)?;
        if placed.buffer.owner == BufferOwner::Receiver {
            // The worker sends the answer before anything else, so the bytes need not stay alive.
            placed.bytes = Bytes::new();
        }
        (self.last_used, self.is_trimmed) = (now(), false);
        Some(placed)
    }

    /// See [`ShmPool::alloc_for_copy`].
    pub(super) fn alloc_for_copy(&mut self, length: usize) -> Option<ShmBufferMut> {
        self.pool()?.alloc_for_copy(length)
    }

    /// Appends the pool's messages, which precede an answer.
    pub(super) fn write_control(&mut self, now: Duration, out: &mut Vec<u8>) {
        let Some(pool) = &mut self.pool else { return };
        let idle = now.saturating_sub(self.last_used);
        if !self.is_trimmed && !pool.is_empty() && idle > IDLE_TIME {
            // Calls without blobs keep the connection from becoming idle.
            pool.trim();
            self.is_trimmed = true;
        }
        pool.write_control(out);
    }

    /// Records that an answer with these references has been sent.
    pub(super) fn mark_sent(&mut self, placed: &[PlacedBytes], connection: &mut Connection) {
        let Some(pool) = &mut self.pool else { return };
        pool.mark_sent(placed);
        connection.set_idle_timeout((!self.is_trimmed && !pool.is_empty()).then_some(IDLE_TIME));
    }

    pub(super) fn take_received(&mut self) -> Result<Vec<ReceivedBytes>, WireError> {
        self.pool.as_mut().map_or(Ok(Vec::new()), ShmPool::take_received)
    }

    /// See [`ShmPool::apply_releases`].
    pub(super) fn apply_releases(&mut self) -> Result<(), WireError> {
        self.pool.as_mut().map_or(Ok(()), ShmPool::apply_releases)
    }

    pub(super) fn handle_message(
        &mut self,
        message: ShmMessage,
        connection: &mut Connection,
    ) -> Result<(), ConnectionError> {
        if message.agreed.is_some() {
            let what = "a client said that it agrees to share memory, which only a worker decides";
            return Err(WireError::Malformed(what.to_owned()).into());
        }
        let (is_used, is_trimmed) = (!message.uses.is_empty(), self.is_trimmed);
        let Some(pool) = self.pool() else {
            let what = "a client used shared memory without an agreement";
            return Err(WireError::Malformed(what.to_owned()).into());
        };
        pool.handle_message(message, connection.files())?;
        if is_used {
            (self.last_used, self.is_trimmed) = (now(), false);
        } else if is_trimmed {
            pool.trim_again()?;
            self.send_control(connection)?;
        }
        Ok(())
    }

    /// Frees what is not in use, because the connection is idle.
    pub(super) fn trim(&mut self, connection: &mut Connection) -> Result<(), ConnectionError> {
        if let Some(pool) = self.pool.as_mut().filter(|_| !self.is_trimmed) {
            pool.trim();
            self.is_trimmed = true;
            self.send_control(connection)?;
        }
        connection.set_idle_timeout(None);
        Ok(())
    }

    fn send_control(&mut self, connection: &mut Connection) -> Result<(), ConnectionError> {
        let mut out = GatherFrame::default();
        self.pool.iter_mut().for_each(|pool| pool.write_control(&mut out.bytes));
        connection.write(&out)
    }
}
