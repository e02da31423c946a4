//! The records that a server sends to its guardian: the process groups of its workers. The server
//! writes a record for each forked worker, and another before it reaps a worker. The guardian reads
//! them when the server has ended, or when the server asks for room in the pipe. So neither waits
//! for the other, and a new worker does not wake the guardian.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, retry_on_intr, write};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;

/// The length of a record: the process id of a worker, negative if the worker is about to be
/// reaped.
const RECORD: usize = size_of::<i32>();

/// The guardian is asked to read after this many bytes. A pipe has room for twice as many.
const ASK_AFTER: usize = 32 << 10;

/// Creates the pipe. Returns the guardian's end and the server's.
pub(crate) fn pipe() -> io::Result<(OwnedFd, RecordWriter)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((reader, RecordWriter { writer, unread: 0 }))
}

/// The server's end.
#[derive(Debug)]
pub(crate) struct RecordWriter {
    writer: OwnedFd,
    /// The bytes that have been written since the guardian was last asked to read.
    unread: usize,
}

/// The result of writing a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    Written,
    /// The record is written, and the guardian has to be asked to read.
    AskToRead,
    /// The pipe is full, because the guardian does not read.
    Full,
}

impl RecordWriter {
    /// Records that a worker has been forked.
    pub(crate) fn record_fork(&mut self, worker: Pid) -> WriteOutcome {
        self.write(worker.as_raw_nonzero().get())
    }

    /// Records that a worker is about to be reaped. Its number may be reused after that.
    pub(crate) fn record_reap(&mut self, worker: Pid) -> WriteOutcome {
        self.write(-worker.as_raw_nonzero().get())
    }

    fn write(&mut self, record: i32) -> WriteOutcome {
        match retry_on_intr(|| write(&self.writer, &record.to_ne_bytes())) {
            Ok(RECORD) => {}
            _ => return WriteOutcome::Full,
        }
        self.unread += RECORD;
        if self.unread < ASK_AFTER {
            return WriteOutcome::Written;
        }
        self.unread = 0;
        WriteOutcome::AskToRead
    }
}

impl AsFd for RecordWriter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.writer.as_fd()
    }
}

/// The process groups of living workers, as the guardian knows them.
#[derive(Debug)]
pub(crate) struct ProcessGroups {
    known: HashSet<Pid>,
    /// Process ids that never count as a worker's.
    refused: [Option<Pid>; 3],
}

impl ProcessGroups {
    /// The groups of the workers that lived when the guardian was forked. Ignores ids of at most 1,
    /// and those in `refused`.
    pub(crate) fn new(living: impl Iterator<Item = Pid>, refused: [Option<Pid>; 3]) -> Self {
        let mut groups = Self { known: HashSet::new(), refused };
        living.for_each(|pid| groups.take(pid.as_raw_nonzero().get()));
        groups
    }

    /// Reads all records that have arrived.
    pub(crate) fn read(&mut self, reader: &OwnedFd) {
        let mut records = [0; 1024 * RECORD];
        loop {
            // Every write is one record, and the buffer holds whole records, so no read splits a
            // record.
            match read(reader, &mut records) {
                Ok(length) if length > 0 => {
                    let (whole, _) = records[..length].as_chunks::<RECORD>();
                    whole.iter().for_each(|record| self.take(i32::from_ne_bytes(*record)));
                }
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn take(&mut self, record: i32) {
        let Some(pid) = record.checked_abs().filter(|&number| number > 1).and_then(Pid::from_raw)
        else {
            return;
        };
        if self.refused.contains(&Some(pid)) {
            return;
        }
        if record > 0 {
            self.known.insert(pid);
        } else {
            self.known.remove(&pid);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Pid> {
        self.known.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn groups_are_those_of_the_workers_that_live() {
        let (reader, mut records) = pipe().unwrap();
        let mut groups = ProcessGroups::new([pid(10)].into_iter(), [None; 3]);
        assert_eq!(records.record_fork(pid(11)), WriteOutcome::Written);
        records.record_fork(pid(12));
        records.record_reap(pid(10));
        records.record_reap(pid(12));
        groups.read(&reader);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [pid(11)]);
    }

    #[test]
    fn some_numbers_are_never_believed() {
        let (reader, mut records) = pipe().unwrap();
        let refused = [Some(pid(20)), Some(pid(21)), None];
        let mut groups = ProcessGroups::new([pid(1), pid(20)].into_iter(), refused);
        for record in [0, 1, -1, 20, 21, i32::MIN, 22] {
            records.write(record);
        }
        groups.read(&reader);
        assert_eq!(groups.iter().collect::<Vec<_>>(), [pid(22)]);
    }

    #[test]
    fn a_guardian_that_does_not_read_is_noticed_and_never_waited_for() {
        let (_reader, mut records) = pipe().unwrap();
        let noted: Vec<_> = (0..20_000).map(|_| records.record_fork(pid(5))).collect();
        let asked = noted.iter().position(|&noted| noted == WriteOutcome::AskToRead).unwrap();
        let full = noted.iter().position(|&noted| noted == WriteOutcome::Full).unwrap();
        assert!(asked < full, "{asked} {full}");
    }
}
