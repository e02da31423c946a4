//! Futures of the standard library, which native code begins, completes and waits for.
//!
//! None of that runs code in Python, so that no handler of a signal comes between. Their attributes are those that the library's own
//! functions for several futures use.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyType};

use crate::waiting::{self, Moments, Waiter};

/// How long a thread leaves the lock of a future to others before it tries again.
const LOCK_PAUSE: Duration = Duration::from_micros(50);

/// For how long a thread that has waited tries to remove its callback.
const LONGEST_REMOVAL: Duration = Duration::from_millis(100);

/// What has become of a future whose call could begin.
pub(crate) enum Begun {
    Yes,
    /// It is cancelled, or complete.
    No {
        /// Who waits for that has been told.
        is_told: bool,
    },
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
        // Only then: what is dropped releases the lock.
        Ok(is_locked.then(|| Self { future, condition }))
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

    fn callbacks(&self) -> PyResult<Bound<'py, PyList>> {
        Ok(self.future.getattr(intern!(self.future.py(), "_done_callbacks"))?.cast_into()?)
    }

    fn has_state(&self, state: &str) -> PyResult<bool> {
        has_state(self.future, state)
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

fn has_state(future: &Bound<'_, PyAny>, state: &str) -> PyResult<bool> {
    future.getattr(intern!(future.py(), "_state"))?.eq(state)
}

fn is_done(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!has_state(future, "PENDING")? && !has_state(future, "RUNNING")?)
}

fn is_empty(list: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(list.len()? == 0)
}

/// Marks a future as running.
pub(crate) fn begin(future: &Bound<'_, PyAny>, may_wait: bool) -> PyResult<Begun> {
    let Some(locked) = Locked::new(future, may_wait)? else { return Ok(Begun::Busy) };
    if !locked.has_state("PENDING")? {
        return Ok(Begun::No { is_told: false });
    }
    locked.set_state(intern!(future.py(), "RUNNING").as_any())?;
    Ok(Begun::Yes)
}

/// Marks a future as running by its own method, which is code in Python: only in a thread that no signal interrupts, which may wait.
/// Who waits for a cancelled one is told.
pub(crate) fn begin_by_library(future: &Bound<'_, PyAny>, may_wait: bool) -> PyResult<Begun> {
    if !may_wait {
        return Ok(Begun::Busy);
    }
    let begun = future.call_method0(intern!(future.py(), "set_running_or_notify_cancel"))?;
    Ok(if begun.is_truthy()? { Begun::Yes } else { Begun::No { is_told: true } })
}

/// Completes a future that runs by a result or an exception, if nobody has to be told. Returns whether it has.
pub(crate) fn complete(
    future: &Bound<'_, PyAny>,
    outcome: &Result<Bound<'_, PyAny>, Bound<'_, PyAny>>,
) -> PyResult<bool> {
    let Some(locked) = Locked::new(future, false)? else { return Ok(false) };
    if !locked.has_state("RUNNING")? || !locked.is_alone()? {
        return Ok(false);
    }
    match outcome {
        Ok(result) => future.setattr(intern!(future.py(), "_result"), result)?,
        Err(error) => future.setattr(intern!(future.py(), "_exception"), error)?,
    }
    locked.set_state(intern!(future.py(), "FINISHED").as_any())?;
    Ok(true)
}

/// Whether a future has an exception of exactly this class.
pub(crate) fn has_raised(future: &Bound<'_, PyAny>, class: &Bound<'_, PyType>) -> PyResult<bool> {
    let error = future.getattr(intern!(future.py(), "_exception"))?;
    Ok(has_state(future, "FINISHED")? && error.is_exact_instance(class))
}

/// Waits until another thread has completed a future, at most until `end`. A `Condition` would not do: an exception between the steps
/// of its Python code could leave it locked for ever.
pub(crate) fn wait_for_others(future: &Bound<'_, PyAny>, end: Option<Instant>) -> PyResult<()> {
    let py = future.py();
    let waiter = Waiter::of_this_thread();
    let alarm = Bound::new(py, Alarm(waiter.clone()))?.into_any();
    {
        let Some(locked) = Locked::for_this_thread(future, end)? else { return Ok(()) };
        if is_done(future)? {
            return Ok(());
        }
        // Before those of the user, which may wait for what this thread has.
        locked.callbacks()?.insert(0, &alarm)?;
    }
    let woken = park_until_done(future, &waiter, end);
    if matches!(woken, Ok(true)) {
        return Ok(());
    }
    let removed = remove(future, &alarm);
    // What a handler of a signal has raised comes first.
    woken.and(removed)
}

/// Waits until the waiter is told, at most until `end`. Returns whether it is.
fn park_until_done(
    future: &Bound<'_, PyAny>,
    waiter: &Waiter,
    end: Option<Instant>,
) -> PyResult<bool> {
    let py = future.py();
    let mut moments = Moments::until(end);
    loop {
        if waiting::park_until(py, waiter, moments.next_end()) {
            return Ok(true);
        }
        // Callbacks are not called if Ctrl-C has come before them, in a thread that has cancelled the future.
        if is_done(future)? || moments.are_over() {
            return Ok(false);
        }
        moments.handle_signals(py)?;
    }
}

/// Removes a callback. It stays if another thread keeps the lock, as one does for ever that was interrupted while it took it.
fn remove(future: &Bound<'_, PyAny>, callback: &Bound<'_, PyAny>) -> PyResult<()> {
    let end = Instant::now() + LONGEST_REMOVAL;
    // If the future is done, another thread goes through the list.
    if let Some(locked) = Locked::for_this_thread(future, Some(end))?
        && !is_done(future)?
    {
        let callbacks = locked.callbacks()?;
        if let Some(place) = callbacks.iter().position(|each| each.is(callback)) {
            callbacks.del_item(place)?;
        }
    }
    Ok(())
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
