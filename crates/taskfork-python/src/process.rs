//! What belongs to this process alone: the runtime that drives all clients, and values that a forked child must not
//! touch.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use tokio::runtime::{Builder, Handle};

use crate::forking::{Descriptor, of_this_runtime};
use crate::sys::forks;

/// The name of the runtime's thread, and of those that look names of hosts up. The package knows its own threads by it.
const THREAD: &str = "taskfork-client";

/// The runtime of a process, and the process.
static RUNTIME: Mutex<Option<(u32, Handle)>> = Mutex::new(None);

/// The runtime in which all clients of this process connect and keep the time. Its thread starts with the first client,
/// never holds the interpreter, and ends with the process.
pub(crate) fn runtime() -> PyResult<Handle> {
    let process = forks();
    let mut known = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, handle)) = known.as_ref()
        && *of == process
    {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_all().thread_name(THREAD).build()?;
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new().name(THREAD.to_owned());
    thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    // The thread of a parent's runtime is not in this process, so that its handle cannot be dropped either.
    std::mem::forget(known.replace((process, handle.clone())));
    Ok(handle)
}

/// The runtime's thread waits while this exists, between two polls of tasks: it holds no lock and opens no connection.
pub(crate) struct Pause {
    /// What the runtime has open: the connections of all clients, and what it waits with.
    pub(crate) descriptors: Vec<Descriptor>,
    _resumes: Sender<()>,
}

/// Lets the runtime's thread wait. `None` if this process has none, because it has had no client.
pub(crate) fn pause(py: Python<'_>) -> Option<Pause> {
    let process = forks();
    let known = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let handle =
        known.as_ref().filter(|(of, _)| *of == process).map(|(_, handle)| handle.clone())?;
    drop(known);
    let (resumes, resumed) = channel();
    let (tells, told) = channel();
    handle.spawn(wait(tells, resumed));
    // The thread may drop what needs the interpreter before.
    let descriptors = py.detach(move || told.recv()).ok()?;
    Some(Pause { descriptors, _resumes: resumes })
}

/// Blocks the runtime's thread until the other end of `resumed` is dropped.
async fn wait(tells: Sender<Vec<Descriptor>>, resumed: Receiver<()>) {
    if tells.send(of_this_runtime()).is_ok() {
        let _ = resumed.recv();
    }
}

/// A value with connections, which is of no use in a child that has been forked since. There it is never dropped: its
/// sockets and its epoll are those of the parent, which would be disturbed.
#[derive(Debug)]
pub(crate) struct OfProcess<T> {
    value: Option<T>,
    /// How often the process had been forked by then.
    process: u32,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), process: forks() }
    }

    /// The value. `RuntimeError` in a child.
    pub(crate) fn get(&self) -> PyResult<&T> {
        let is_here = self.process == forks();
        self.value.as_ref().filter(|_| is_here).ok_or_else(after_fork)
    }

    /// The value, also in a child.
    pub(crate) fn peek(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// The value, to be changed. `RuntimeError` in a child.
    pub(crate) fn get_mut(&mut self) -> PyResult<&mut T> {
        let is_here = self.process == forks();
        self.value.as_mut().filter(|_| is_here).ok_or_else(after_fork)
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.process != forks() {
            std::mem::forget(self.value.take());
        }
    }
}

fn after_fork() -> PyErr {
    PyRuntimeError::new_err(
        "this client was made before the process was forked, and its connections are the parent's: make a new client in \
         each process",
    )
}
