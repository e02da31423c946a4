//! All slots of a server, and the page that it publishes to its workers.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use super::layout::{CALLS, SINCE, STACK, STATE, TABLE_WORDS, TAKES_OVER, WAKEUP, WORKERS, pack};
use super::method_table;
use super::server_slot::ServerSlot;
use super::worker_slot::WorkerSlot;
use crate::clock::now;
use crate::sys::{MappedFile, Pages, PublishedPage};
use crate::time_limit::nanoseconds;
use crate::worker::phase::Phase;

#[derive(Debug)]
pub(crate) struct Scoreboard {
    pages: Pages,
    published: PublishedPage,
    /// Workers may execute programs that take over, so that slots are files which can be mapped again.
    has_files: bool,
    /// Slots that have been used and are free again.
    pub(super) free: Vec<usize>,
    /// Slots of dead workers. Processes that such a worker has forked may still write to its slot.
    quarantined: Vec<usize>,
    /// How many slots have been used so far. Unused slots are in no list, because each page that the
    /// server has written to makes its forks slower.
    pub(super) used: usize,
}

impl Scoreboard {
    /// The maximum number of workers of a server.
    pub(crate) const CAPACITY: usize = 16_384;

    /// `has_files` says whether workers may execute programs that take over.
    pub(crate) fn new(has_files: bool) -> io::Result<Self> {
        let (pages, published) = (Pages::new(), PublishedPage::new(has_files)?);
        Ok(Self { pages, published, has_files, free: Vec::new(), quarantined: Vec::new(), used: 0 })
    }

    /// Makes memory for the first workers before one of them is forked.
    pub(crate) fn reserve(&mut self) -> io::Result<()> {
        self.pages.add()?;
        self.free.push(self.used);
        self.used += 1;
        Ok(())
    }

    /// Allocates a slot for the worker that is forked next. Fails if all slots are in use.
    pub(crate) fn allocate(&mut self) -> io::Result<ServerSlot> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.used < Self::CAPACITY => {
                self.pages.add()?;
                self.used += 1;
                self.used - 1
            }
            None => return Err(io::ErrorKind::StorageFull.into()),
        };
        // A file for each worker: whoever has one can map nothing else.
        let file = if self.has_files { self.pages.renew(index).map(Some) } else { Ok(None) };
        let shared = file.and_then(|file| self.pages.share_with_children(index).map(|()| file));
        let file = match shared {
            Ok(file) => file,
            Err(error) => {
                self.free.push(index);
                return Err(error);
            }
        };
        let words = self.pages.page(index);
        // All of them, so that no word of a dead worker is ever forgotten. Stacks have words in front that say whether they are
        // there.
        words[..STACK].iter().for_each(|word| word.store(0, SeqCst));
        method_table::clear(&words[CALLS..CALLS + TABLE_WORDS]);
        let since = now();
        words[SINCE].store(nanoseconds(since), SeqCst);
        words[STATE].store(pack(Phase::Handshake, 0), SeqCst);
        Ok(ServerSlot::new(words, index, since, file))
    }

    /// Ends the sharing after the fork, so that processes forked later do not get the slot.
    pub(crate) fn hide_from_children(&self, slot: &ServerSlot) -> io::Result<()> {
        self.pages.hide_from_children(slot.index())
    }

    /// Returns the slot of a worker that has been reaped or was never forked. The slot is not reused
    /// before [`release_quarantined`](Self::release_quarantined).
    pub(crate) fn quarantine(&mut self, slot: ServerSlot) {
        self.quarantined.push(slot.index());
    }

    /// Frees the quarantined slots, once no process that a dead worker has forked is left.
    pub(crate) fn release_quarantined(&mut self) {
        self.free.append(&mut self.quarantined);
    }

    /// In the process that has just been forked: keeps the slots of others out of its reach. Code of
    /// users must not run before.
    pub(crate) fn seal(&self, slot: &ServerSlot) -> io::Result<()> {
        self.pages.seal(slot.index())
    }

    /// The worker's side of a slot, for the process that has just been forked.
    pub(crate) fn worker_slot(&self, slot: &ServerSlot) -> WorkerSlot {
        WorkerSlot::new(slot.words(), self.published.readable())
    }

    /// Publishes when the server scans the slots next, unless a worker wakes it. `None` is never.
    /// Returns what was published before.
    ///
    /// A worker that begins a call with an earlier deadline, and has seen this time, wakes the server. A
    /// worker that has not seen it is found by a scan that follows this.
    pub(crate) fn set_wakeup(&self, at: Option<Duration>) -> Option<Duration> {
        let before =
            self.published.writable()[WAKEUP].swap(at.map_or(u64::MAX, nanoseconds), SeqCst);
        (before != u64::MAX).then(|| Duration::from_nanos(before))
    }

    /// The published time of the next scan.
    pub(crate) fn wakeup(&self) -> Option<Duration> {
        let at = self.published.writable()[WAKEUP].load(SeqCst);
        (at != u64::MAX).then(|| Duration::from_nanos(at))
    }

    /// Publishes the number of workers.
    pub(crate) fn publish_workers(&self, workers: usize) {
        self.published.writable()[WORKERS].store(workers as u64, Relaxed);
    }

    /// Whether workers may execute programs that take over.
    pub(crate) fn has_files(&self) -> bool {
        self.has_files
    }

    /// Publishes whether the server's programs serve their connections themselves.
    pub(crate) fn publish_takeover(&self, takes_over: bool) {
        self.published.writable()[TAKES_OVER].store(u64::from(takes_over), SeqCst);
    }

    /// The published page as a file that can be mapped for reading. `None` if workers never need it.
    pub(crate) fn published_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.published.descriptor()
    }

    /// The file of the published page. Only this process and the processes forked from it have mapped it.
    pub(crate) fn published_file(&self) -> &MappedFile {
        self.published.file()
    }
}
