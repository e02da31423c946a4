//! A set of connections that one epoll instance watches, in the order of their arrival. The event loop
//! watches only that instance, so thousands of waiting clients cost it one descriptor.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// How many ready connections are handled before other events get their turn.
const BATCH: usize = 64;

#[derive(Debug)]
pub(crate) struct WatchedSet<T> {
    epoll: OwnedFd,
    /// Numbers only grow, so the first entry is the oldest.
    entries: BTreeMap<u64, T>,
    next: u64,
}

impl<T: AsFd> WatchedSet<T> {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, entries: BTreeMap::new(), next: 0 })
    }

    /// Adds a connection and returns its number. Returns the connection if the kernel cannot watch it.
    pub(crate) fn insert(&mut self, entry: T, events: EventFlags) -> Result<u64, (T, Errno)> {
        let number = self.next;
        self.insert_as(number, entry, events).map(|()| number)
    }

    /// Adds a connection with a number that the caller chooses. It must be greater than all before.
    pub(crate) fn insert_as(
        &mut self,
        number: u64,
        entry: T,
        events: EventFlags,
    ) -> Result<(), (T, Errno)> {
        if let Err(errno) = epoll::add(&self.epoll, &entry, EventData::new_u64(number), events) {
            return Err((entry, errno));
        }
        self.next = number + 1;
        self.entries.insert(number, entry);
        Ok(())
    }

    /// Removes a connection and stops watching it.
    pub(crate) fn remove(&mut self, number: u64) -> Option<T> {
        let entry = self.entries.remove(&number)?;
        // Closing it would not do: a worker that has just been forked may hold a copy, and the kernel
        // watches a description until its last copy is closed.
        let _ = epoll::delete(&self.epoll, &entry);
        Some(entry)
    }

    /// Returns the numbers of connections with events, without waiting.
    pub(crate) fn ready(&self) -> Vec<u64> {
        let mut room = [MaybeUninit::uninit(); BATCH];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, &mut room, Some(&at_once)) {
            Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Closes this process's copies, in a process that was forked from the server.
    pub(crate) fn close_copies(&mut self) {
        self.entries.clear();
    }

    /// The descriptors that a worker must close.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [self.epoll.as_fd()].into_iter().chain(self.entries.values().map(AsFd::as_fd))
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.entries.get_mut(&number)
    }

    pub(crate) fn oldest(&self) -> Option<u64> {
        self.entries.first_key_value().map(|(number, _)| *number)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().map(|(number, entry)| (*number, entry))
    }

    /// The entries with this number and later ones.
    pub(crate) fn iter_from(&mut self, first: u64) -> impl Iterator<Item = (u64, &mut T)> {
        self.entries.range_mut(first..).map(|(number, entry)| (*number, entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl<T> AsFd for WatchedSet<T> {
    /// Readable when a connection has an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_connection_is_watched_until_it_is_removed_even_if_a_copy_stays_open() {
        let mut set = WatchedSet::new().unwrap();
        let (mut client, server) = UnixStream::pair().unwrap();
        let _copy = server.try_clone().unwrap();
        let number = set.insert(OwnedFd::from(server), EventFlags::IN).unwrap();
        assert_eq!((set.oldest(), set.ready()), (Some(number), vec![]));
        client.write_all(b"x").unwrap();
        assert_eq!(set.ready(), [number]);
        drop(set.remove(number));
        assert_eq!((set.len(), set.ready()), (0, vec![]));
    }
}
