//! Memory that the two sides of a connection lend each other, filled again and again, so that long bytes
//! are copied once on their way and take no new pages.
//!
//! Whoever owns memory writes to it only while it is lent to nobody and nobody in its own process reads it.
//! The other side says when it has done with it, along with a message that it sends anyway.

mod foreign;
mod own;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::sys::{self, User};
use crate::wire::WireError;
use crate::wire::shm::{
    BufferId, BufferOwner, BufferRef, MAX_BUFFER_REFS, Origin, PlacedBytes, PoolId, SharedBytes,
    ShmMessage,
};
use foreign::Foreign;
use own::Owned;

/// How much memory each side keeps for the other unless configured otherwise.
pub(crate) const DEFAULT_LENT: usize = 64 << 20;

/// So many pieces of memory of one owner are known to the other side at most.
const MOST: usize = 16;

/// What one side of a connection has lent and borrowed.
#[derive(Debug)]
pub(crate) struct Loans {
    link: PoolId,
    own: Owned,
    foreign: Foreign,
    /// What the next message refers to.
    uses: Vec<SharedBytes>,
    /// What the other side has done with, once the next message has been read.
    freed: Vec<(BufferId, u64)>,
    /// What is to be said with the next message.
    to_say: ShmMessage,
}

impl Loans {
    /// Of a connection whose other side keeps `room` bytes of this one's memory, and gets to keep `most`
    /// bytes of its own here; both sides are this user's.
    pub(crate) fn new(room: usize, most: usize, user: User) -> Self {
        static LINKS: AtomicU64 = AtomicU64::new(1);
        Self {
            link: LINKS.fetch_add(1, Ordering::Relaxed),
            own: Owned::new(room, user),
            foreign: Foreign::new(most, user),
            uses: Vec::new(),
            freed: Vec::new(),
            to_say: ShmMessage::default(),
        }
    }

    /// The other side takes so many bytes after all.
    pub(crate) fn set_room(&mut self, room: usize) {
        self.own.set_room(room);
    }

    /// Puts bytes where they need not be sent, if that pays; with `may_add` it can be memory that the other
    /// side does not know yet.
    pub(crate) fn place(
        &mut self,
        bytes: &Bytes,
        home: Option<Origin>,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        if let Some(Origin { id, own, .. }) = home.filter(|home| home.link == self.link) {
            let length = bytes.len();
            if !own && self.foreign.can_go_back(id) {
                let place = BufferRef { owner: BufferOwner::Receiver, id, length };
                return Some(PlacedBytes { place, bytes: bytes.clone(), new: None, held: None });
            }
            let there = if own { self.own.again(id, bytes, may_add) } else { None };
            if there.is_some() {
                return there;
            }
        }
        self.own.put(bytes, may_add)
    }

    /// Memory to be filled in place.
    pub(crate) fn fill(&mut self, length: usize) -> Option<Filling> {
        let (id, memory) = self.own.fill(length)?;
        Some(Filling { memory, home: Origin { link: self.link, id, own: true } })
    }

    /// A message has been sent that refers to these.
    pub(crate) fn sent(&mut self, placed: &[PlacedBytes]) {
        for PlacedBytes { place, .. } in placed {
            if place.owner == BufferOwner::Sender {
                self.own.lend(place.id);
            }
        }
    }

    /// Takes what the other side says; the files of new memory are the first of those that have come.
    pub(crate) fn hear(
        &mut self,
        said: ShmMessage,
        files: &mut Vec<OwnedFd>,
    ) -> Result<(), WireError> {
        if files.len() < said.new.len() {
            return Err(WireError::Files);
        }
        for (&id, file) in said.new.iter().zip(files.drain(..said.new.len())) {
            let added = self.foreign.add(id, &file, |identity| self.own.is_any(identity));
            added.map_err(WireError::Malformed)?;
        }
        if said.uses.len() > MAX_BUFFER_REFS || !self.uses.is_empty() && !said.uses.is_empty() {
            let what = "one message cannot refer to so much";
            return Err(WireError::Malformed(what.to_owned()));
        }
        for place in said.uses {
            let own = place.owner == BufferOwner::Receiver;
            let bytes = match own {
                true => self.own.lent(place.id, place.length),
                false => self.foreign.read(place.id, place.length),
            };
            let bytes = bytes.ok_or_else(|| {
                WireError::Malformed(format!("{place:?} is nothing that has been lent"))
            })?;
            let home = Origin { link: self.link, id: place.id, own };
            self.uses.push(SharedBytes { bytes, home });
        }
        for (id, times) in said.free {
            // Of what is gone the other side could not know.
            if !self.own.has(id) {
                continue;
            }
            match self.freed.iter_mut().find(|(freed, _)| *freed == id) {
                Some((_, before)) => *before = before.saturating_add(times),
                None => self.freed.push((id, times)),
            }
        }
        said.gone.into_iter().for_each(|id| self.foreign.remove(id));
        said.unwanted.into_iter().for_each(|id| self.own.give_up(id));
        if said.idle {
            self.own.rest();
        }
        Ok(())
    }

    /// Whether something has been heard that is to be considered once the next message has been read.
    pub(crate) fn is_heard(&self) -> bool {
        !self.uses.is_empty() || !self.freed.is_empty()
    }

    /// What the message refers to that has just been read.
    pub(crate) fn take_uses(&mut self) -> Result<Vec<SharedBytes>, WireError> {
        self.settle()?;
        Ok(std::mem::take(&mut self.uses))
    }

    /// Takes back what the other side has done with.
    pub(crate) fn settle(&mut self) -> Result<(), WireError> {
        for (id, times) in self.freed.drain(..) {
            self.own.free(id, times).map_err(|()| {
                let what = "memory was given back more often than it was lent";
                WireError::Malformed(what.to_owned())
            })?;
        }
        Ok(())
    }

    /// Appends what there is to be said, to go with the next message.
    pub(crate) fn say(&mut self, out: &mut Vec<u8>) {
        if self.is_empty() && !self.own.is_any_gone() && !self.to_say.idle {
            return;
        }
        self.foreign.look(&mut self.to_say);
        self.own.look(&mut self.to_say);
        if !self.to_say.is_empty() {
            std::mem::take(&mut self.to_say).put(out);
        }
    }

    /// Whether there is any memory to be given back when there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.own.is_empty() && self.foreign.is_empty()
    }

    /// Nothing has been lent for a while: gives up what is not in use, and has the other side do so.
    pub(crate) fn rest(&mut self) {
        self.own.rest();
        self.to_say.idle = true;
    }

    /// The other side is at rest, and gets to know what else can be given up.
    pub(crate) fn go_on_resting(&mut self) -> Result<(), WireError> {
        self.settle()?;
        self.own.rest();
        Ok(())
    }
}

/// Memory that is being filled, by the only one who has it.
#[derive(Debug)]
pub(crate) struct Filling {
    memory: sys::Filling,
    home: Origin,
}

impl Filling {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// It stays as it is from here on, for as long as somebody has it.
    pub(crate) fn done(self) -> SharedBytes {
        let (memory, length) = self.memory.done();
        SharedBytes { bytes: Bytes::from_owner(View { memory, length }), home: self.home }
    }
}

/// Reads memory for as long as it is there.
#[derive(Debug)]
struct View<M> {
    memory: Arc<M>,
    length: usize,
}

impl AsRef<[u8]> for View<sys::Own> {
    fn as_ref(&self) -> &[u8] {
        self.memory.bytes(self.length)
    }
}

impl AsRef<[u8]> for View<sys::Foreign> {
    fn as_ref(&self) -> &[u8] {
        self.memory.bytes(self.length)
    }
}

#[cfg(not(test))]
use sys::forks;
#[cfg(test)]
use tests::forks;

#[cfg(test)]
mod tests;
