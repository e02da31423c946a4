//! Futures of the standard library, which native code begins, completes and waits for.
//!
//! None of that runs code in Python, so that no handler of a signal comes between. Their attributes are those that the library's own
//! functions for several futures use.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::waiting::{self, Waiter};

/// How long a thread leaves the lock of a future to others before it tries again.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// What has become of a future whose call could begin.
pub(crate) enum Begun {
    Yes,
    /// It is cancelled, or complete.
    No,
    /// Another thread changes it.
    Busy,
}

/// The lock of a future, which is released when this is dropped. It and all that is done with it has no Python code.
struct Locked<'a, 'py> {
    future: &'a Bound<'py, PyAny>,
    condition: Bound<'py, PyAny>,
}

impl<'a, 'py> Locked<'a, 'py> {
    /// `None` if another thread has it, and this one must not wait.
    fn new(future: &'a Bound<'py, PyAny>, may_wait: bool) -> PyResult<Option<Self>> {
        let py = future.py();
        let condition = future.getattr(intern!(py, "_condition"))?;
        let is_locked = condition.call_method1(intern!(py, "acquire"), (may_wait,))?.is_truthy()?;
        Ok(is_locked.then_some(Self { future, condition }))
    }

    /// Waits for other threads at most until `end`.
    fn for_this_thread(
        future: &'a Bound<'py, PyAny>,
        end: Option<Instant>,
    ) -> PyResult<Option<Self>> {
        loop {
            if let Some(locked) = Self::new(future, false)? {
                return Ok(Some(locked));
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                return Ok(None);
            }
            // They need the interpreter.
            future.py().detach(|| thread::sleep(LOCK_PAUSE));
            future.py().check_signals()?;
        }
    }

    fn is_done(&self) -> PyResult<bool> {
        Ok(!self.has_state("PENDING")? && !self.has_state("RUNNING")?)
    }

    fn callbacks(&self) -> PyResult<Bound<'py, PyList>> {
        Ok(self.future.getattr(intern!(self.future.py(), "_done_callbacks"))?.cast_into()?)
    }

    fn has_state(&self, state: &str) -> PyResult<bool> {
        self.future.getattr(intern!(self.future.py(), "_state"))?.eq(state)
    }

    fn set_state(&self, state: &Bound<'py, PyAny>) -> PyResult<()> {
        self.future.setattr(intern!(self.future.py(), "_state"), state)
    }

    /// Whether nobody has to be told when the future is complete.
    fn is_alone(&self) -> PyResult<bool> {
        let py = self.future.py();
        Ok(is_empty(&self.future.getattr(intern!(py, "_waiters"))?)?
            && self.callbacks()?.is_empty()
            && is_empty(&self.condition.getattr(intern!(py, "_waiters"))?)?)
    }
}

impl Drop for Locked<'_, '_> {
    fn drop(&mut self) {
        let py = self.future.py();
        if let Err(error) = self.condition.call_method0(intern!(py, "release")) {
            error.write_unraisable(py, Some(self.future));
        }
    }
}

fn is_empty(list: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(list.len()? == 0)
}

/// Marks a future as running.
pub(crate) fn begin(future: &Bound<'_, PyAny>, may_wait: bool) -> PyResult<Begun> {
    let Some(locked) = Locked::new(future, may_wait)? else { return Ok(Begun::Busy) };
    if !locked.has_state("PENDING")? {
        return Ok(Begun::No);
    }
    locked.set_state(intern!(future.py(), "RUNNING").as_any())?;
    Ok(Begun::Yes)
}

/// Completes a future that runs, if nobody has to be told. Returns whether it has.
pub(crate) fn complete(future: &Bound<'_, PyAny>, result: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Some(locked) = Locked::new(future, false)? else { return Ok(false) };
    if !locked.has_state("RUNNING")? || !locked.is_alone()? {
        return Ok(false);
    }
    future.setattr(intern!(future.py(), "_result"), result)?;
    locked.set_state(intern!(future.py(), "FINISHED").as_any())?;
    Ok(true)
}

/// Waits until another thread has completed a future, at most until `end`. A `Condition` would not do: an exception between the steps
/// of its Python code could leave it locked for ever.
pub(crate) fn wait_for_others(future: &Bound<'_, PyAny>, end: Option<Instant>) -> PyResult<()> {
    let py = future.py();
    let waiter = Waiter::of_this_thread();
    let alarm = Bound::new(py, Alarm(waiter.clone()))?.into_any();
    {
        let Some(locked) = Locked::for_this_thread(future, end)? else { return Ok(()) };
        if locked.is_done()? {
            return Ok(());
        }
        locked.callbacks()?.append(&alarm)?;
    }
    let woken = waiting::park_until(py, &waiter, end);
    if !matches!(woken, Ok(true))
        && let Some(locked) = Locked::for_this_thread(future, None)?
        // Otherwise another thread goes through the list.
        && !locked.is_done()?
    {
        let callbacks = locked.callbacks()?;
        if let Some(place) = callbacks.iter().position(|callback| callback.is(&alarm)) {
            callbacks.del_item(place)?;
        }
    }
    woken.map(drop)
}

/// A callback of a future that wakes the thread that waits.
#[pyclass(frozen, module = "taskfork._native")]
struct Alarm(Arc<Waiter>);

#[pymethods]
impl Alarm {
    fn __call__(&self, _future: &Bound<'_, PyAny>) {
        self.0.end();
    }
}

/// Whether completing this future needs no Python code.
pub(crate) fn is_plain(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Some(locked) = Locked::new(future, false)? else { return Ok(false) };
    locked.is_alone()
}
