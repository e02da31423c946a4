//! The input of a call, for the iterator in Python that a method gets.

use std::os::fd::AsRawFd;
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration};
use pyo3::prelude::*;
use taskfork::__private::{InputItems, Request, Taken};
use taskfork::worker::{ReceiveError, context};

use crate::decode::Object;
use crate::pickles::{outside, take_interruption};
use crate::sys::{OfThread, take};

/// The input of one call. The thread that runs the call uses it, until the call ends; any thread may drop it.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Receiver {
    items: OfThread<InputItems>,
}

impl Receiver {
    /// The input of this call; `None` if its caller streams none.
    pub(crate) fn of(request: &Request<'_>) -> Option<Self> {
        InputItems::of(request).map(|items| Self { items: OfThread::new(items) })
    }

    /// The call has ended. The user's code may keep this object.
    pub(crate) fn end(&self) {
        self.items.end();
    }

    fn with<T>(&self, run: impl FnOnce(&InputItems) -> T) -> PyResult<T> {
        self.items.with(run).ok_or_else(|| {
            PyRuntimeError::new_err("this input belongs to the thread of its call, until that ends")
        })
    }
}

#[pymethods]
impl Receiver {
    /// Asks the caller for the first items.
    fn open(&self) -> PyResult<()> {
        self.with(InputItems::open)
    }

    /// Takes the next item, in a tuple. `None` if there is none yet and it does not wait, or if the time of the call is over.
    /// Raises `StopIteration` at the end, or an exception of `taskfork._receiver`.
    fn take(&self, py: Python<'_>, waits: bool) -> PyResult<Option<(Py<PyAny>,)>> {
        let until = if waits { context().deadline() } else { Some(Instant::now()) };
        let taken = self.with(|items| outside(|| take::<Object>(py, items, until)))?;
        if let Some(interruption) = take_interruption() {
            return Err(interruption);
        }
        let (name, text) = match taken {
            Ok(Taken::Item(Object(item))) => return Ok(Some((item,))),
            Ok(Taken::Nothing) => return Ok(None),
            Ok(Taken::End) => return Err(PyStopIteration::new_err(())),
            Err(ReceiveError::Failed(error)) => ("InputFailed", error),
            Err(error @ ReceiveError::Item(_)) => ("ItemError", error.to_string()),
            Err(error) => ("InputClosed", error.to_string()),
        };
        let class = py.import("taskfork._receiver")?.getattr(name)?;
        Err(PyErr::from_value(class.call1((text,))?))
    }

    /// The descriptor that can be read once `take` may have something; `None` if it may have something now.
    fn prepare_wait(&self) -> PyResult<Option<i32>> {
        self.with(|items| items.prepare_wait().map(|socket| socket.as_raw_fd()))
    }
}
