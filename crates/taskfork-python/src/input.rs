//! What a call streams to its method: the items of an iterable of the user.
//!
//! A Python object, of `_input` in the package, is asked for them while the call is polled, which is in a thread that runs Python.
//! `take` returns an item in a tuple, None if it will call `wake` of its argument, or a text that says why there are no more items; it
//! raises `StopIteration` at the end, and otherwise what the user's code has raised. `close` is called when nothing is wanted any more.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use pyo3::exceptions::{PyBaseException, PyException, PyStopIteration};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use taskfork::client::Input;

use crate::encode::{Owned, text_of};
use crate::pickles::outside;

/// The iterable of a call's input, and the exception that it has raised, if it has; the call has it too. The iterable may refer
/// to what waits for the call, which shows both to the collector.
#[derive(Clone, Default)]
pub(crate) struct Feed(Arc<State>);

#[derive(Default)]
struct State {
    /// `None` once nothing is wanted of it.
    source: Mutex<Option<Py<PyAny>>>,
    raised: Mutex<Option<Py<PyBaseException>>>,
}

impl Feed {
    /// Takes the exception.
    pub(crate) fn take_raised(&self) -> Option<Py<PyBaseException>> {
        lock(&self.0.raised).take()
    }

    /// Takes an exception that is no `Exception`, as that of Ctrl-C.
    pub(crate) fn take_interruption(&self, py: Python<'_>) -> Option<PyErr> {
        let is_one =
            |error: &mut Py<PyBaseException>| !error.bind(py).is_instance_of::<PyException>();
        let taken = lock(&self.0.raised).take_if(is_one);
        taken.map(|error| PyErr::from_value(error.into_bound(py).into_any()))
    }

    /// Shows the collector what it keeps. Only one object may do so for one call.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(source) = self.0.source.try_lock() {
            visit.call(&*source)?;
        }
        if let Ok(raised) = self.0.raised.try_lock() {
            visit.call(&*raised)?;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The input of a call, and what is known of its iterable.
pub(crate) fn input(source: Option<Py<PyAny>>) -> PyResult<(Option<Input>, Feed)> {
    let Some(source) = source else { return Ok((None, Feed::default())) };
    let wake = Python::attach(|py| Py::new(py, Wake::default()))?;
    let feed = Feed(Arc::new(State { source: Mutex::new(Some(source)), raised: Mutex::default() }));
    Ok((Some(Input::fallible(Items { wake, feed: feed.clone() })), feed))
}

/// Lets a call ask for an item again.
#[pyclass(frozen, module = "taskfork._native")]
#[derive(Default)]
pub(crate) struct Wake(Mutex<Option<Waker>>);

#[pymethods]
impl Wake {
    fn wake(&self) {
        let waker = lock(&self.0).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What `take` returns.
#[derive(FromPyObject)]
enum Taken {
    Item((Py<PyAny>,)),
    /// Why there are no more items.
    Reason(String),
}

struct Items {
    wake: Py<Wake>,
    feed: Feed,
}

/// The text of what the user's code has raised.
#[derive(Debug)]
struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

impl Stream for Items {
    type Item = Result<Owned, Failed>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Python::attach(|py| {
            let wake = self.wake.bind(py);
            let before = lock(&wake.get().0).replace(context.waker().clone());
            drop(before);
            let source = lock(&self.feed.0.source).as_ref().map(|source| source.clone_ref(py));
            let Some(source) = source else { return Poll::Ready(None) };
            // The iterable may be the input of a worker's own call, whose items are not those of this client.
            let taken = outside(|| source.call_method1(py, "take", (wake,)));
            match taken.and_then(|taken| taken.extract::<Option<Taken>>(py)) {
                Ok(Some(Taken::Item((item,)))) => Poll::Ready(Some(Ok(Owned(item)))),
                Ok(Some(Taken::Reason(reason))) => Poll::Ready(Some(Err(Failed(reason)))),
                Ok(None) => Poll::Pending,
                Err(error) if error.is_instance_of::<PyStopIteration>(py) => Poll::Ready(None),
                Err(error) => {
                    let failed = Failed(text_of(py, &error));
                    let before = lock(&self.feed.0.raised).replace(error.into_value(py));
                    drop(before);
                    Poll::Ready(Some(Err(failed)))
                }
            }
        })
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        // Not at the end of the interpreter.
        Python::try_attach(|py| {
            let Some(source) = lock(&self.feed.0.source).take() else { return };
            if let Err(error) = outside(|| source.call_method0(py, "close")) {
                error.write_unraisable(py, Some(source.bind(py)));
            }
        });
    }
}
