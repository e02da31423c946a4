//! The fork of a program that becomes the server of its workers.
//!
//! The thread of the clients waits meanwhile, so that it holds no lock that the child would find taken for ever. The child closes
//! the copies of the clients' connections. Otherwise a worker would not see that its client is gone while the child lives.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{SigSet, SigmaskHow};
use pyo3::prelude::*;
use tokio::net::unix::pipe::pipe;

use crate::{interruption, pickles, process, sys};

/// Forks this process, and tells the interpreter. Notes the child's process id in the attribute `pid` of an object, before a
/// handler of a signal can raise something. In the child that stays 0, all signals are blocked, and it has to end by `os._exit`.
#[pyfunction]
pub(crate) fn fork(py: Python<'_>, process: &Bound<'_, PyAny>) -> PyResult<()> {
    let pause = process::pause(py);
    // Handlers of the program, and what wakes its event loop, are in the child for a moment.
    let before =
        SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(io::Error::from)?;
    let forked = sys::fork(py);
    if let Ok(0) = forked {
        if let Some(pause) = &pause {
            pause.descriptors.iter().for_each(Descriptor::close);
        }
        // The thread to resume is not in this process.
        std::mem::forget(pause);
        pickles::forget_calls();
        interruption::forget();
        return Ok(());
    }
    let noted = forked.map_err(PyErr::from).and_then(|child| process.setattr("pid", child));
    before.thread_set_mask().map_err(io::Error::from)?;
    noted
}

/// The signals that have a handler.
#[pyfunction]
pub(crate) fn caught_signals() -> Vec<i32> {
    sys::caught_signals()
}

/// Lets SIGTERM end this process once nobody has the other end of a pipe. It belongs to the process, not to the thread that has started
/// it. Returns false if nobody has it now.
#[pyfunction]
pub(crate) fn end_with(pipe: i32) -> PyResult<bool> {
    Ok(sys::signal_at_end(pipe)?)
}

/// A descriptor, and the file that it is of: another one may get its number.
pub(crate) struct Descriptor {
    number: RawFd,
    inode: u64,
}

impl Descriptor {
    /// Closes the copy of a forked child.
    fn close(&self) {
        if inode(self.number).is_ok_and(|inode| inode == self.inode) {
            sys::close_forgotten(self.number);
        }
    }
}

/// What the runtime of this thread has open: what it waits for, and what it waits with. Nothing if that cannot be found.
pub(crate) fn of_this_runtime() -> Vec<Descriptor> {
    found().unwrap_or_default()
}

fn found() -> io::Result<Vec<Descriptor>> {
    // The kernel shows what an epoll waits for. That of this runtime waits for this pipe.
    let (sender, receiver) = pipe()?;
    let mark = inode(receiver.as_raw_fd())?;
    let ends = [sender.as_raw_fd(), receiver.as_raw_fd()];
    let is_mark = |each: &Descriptor| each.inode == mark && ends.contains(&each.number);
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let Ok(target) = fs::read_link(&path) else { continue };
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let (Some(number), "anon_inode:[eventpoll]") = (number, &*target.to_string_lossy()) else {
            continue;
        };
        let mut watched = watched_by(number)?;
        if watched.iter().any(is_mark) {
            watched.retain(|each| !is_mark(each));
            all.append(&mut watched);
            all.push(Descriptor { number, inode: inode(number)? });
        }
    }
    all.sort_unstable_by_key(|each| each.number);
    all.dedup_by_key(|each| each.number);
    Ok(all)
}

fn inode(number: RawFd) -> io::Result<u64> {
    Ok(fs::metadata(format!("/proc/self/fd/{number}"))?.ino())
}

/// What an epoll waits for: lines such as `tfd: 7 events: 19 data: 7 pos:0 ino:1f3a sdev:9`.
fn watched_by(epoll: RawFd) -> io::Result<Vec<Descriptor>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{epoll}"))?;
    let lines = text.lines().filter_map(|line| line.strip_prefix("tfd:"));
    let parsed = lines.filter_map(|line| {
        let number = line.split_whitespace().next()?.parse().ok()?;
        let inode = line.split_whitespace().find_map(|word| word.strip_prefix("ino:"))?;
        Some(Descriptor { number, inode: u64::from_str_radix(inode, 16).ok()? })
    });
    Ok(parsed.collect())
}
