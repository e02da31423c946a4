//! Calls whose thread waits for them, without holding the interpreter.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;

use crate::client::{Outcome, Pending};
use crate::error::exception;
use crate::interruption;
use crate::log::CheckoutLog;
use crate::process::OfProcess;
use crate::stream::Reports;

/// After this time a waiting thread looks whether Python has a signal to handle, such as that of Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// After this time a thread that handles no signals looks whether what it waits for has come in another way.
const LONG_CHECK: Duration = Duration::from_secs(1);

/// A thread that waits for a call.
pub(crate) struct Waiter {
    thread: Thread,
    /// The wait is over, whether the call is or not.
    is_over: AtomicBool,
}

impl Waiter {
    pub(crate) fn of_this_thread() -> Arc<Self> {
        Arc::new(Self { thread: thread::current(), is_over: AtomicBool::new(false) })
    }

    /// Ends the wait.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.thread.unpark();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

impl Wake for Waiter {
    fn wake(self: Arc<Self>) {
        self.thread.unpark();
    }
}

/// Waits for the outcome. Raises what a signal handler raises, also in an iterable of the user; the call is dropped then.
pub(crate) fn wait(py: Python<'_>, pending: &mut OfProcess<Pending>) -> PyResult<Outcome> {
    let pending = pending.get_mut()?;
    let waiter = Waiter::of_this_thread();
    let waker = Waker::from(waiter.clone());
    loop {
        let end = Instant::now() + SIGNAL_CHECK;
        let outcome = py.detach(|| wait_for_a_moment(pending, &waiter, &waker, end));
        interruption::check()?;
        if let Some(interruption) = pending.take_interruption(py) {
            return Err(interruption);
        }
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
        py.check_signals()?;
    }
}

/// The moments of which a wait consists. Signals are handled between them.
pub(crate) struct Moments {
    /// When the wait is over.
    end: Option<Instant>,
    length: Duration,
}

impl Moments {
    pub(crate) fn until(end: Option<Instant>) -> Self {
        Self { end, length: SIGNAL_CHECK }
    }

    /// When the moment ends that begins now.
    pub(crate) fn next_end(&self) -> Instant {
        let check = Instant::now() + self.length;
        self.end.map_or(check, |end| end.min(check))
    }

    pub(crate) fn are_over(&self) -> bool {
        self.end.is_some_and(|end| end <= Instant::now())
    }

    /// Handles signals, and raises what a handler raises. It may run any code of the user, which may wait for the same call.
    pub(crate) fn handle_signals(&mut self, py: Python<'_>) -> PyResult<()> {
        py.check_signals()?;
        if self.length < LONG_CHECK && !is_main_thread(py)? {
            self.length = LONG_CHECK;
        }
        Ok(())
    }
}

/// Whether this is the thread in which Python runs the handlers of signals.
pub(crate) fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import(intern!(py, "threading"))?;
    let main = threading.call_method0(intern!(py, "main_thread"))?;
    let own = threading.call_method0(intern!(py, "get_ident"))?;
    main.getattr(intern!(py, "ident"))?.eq(own)
}

/// Waits for the outcome of a call without an input, at most until `end`. `None` if the time is over, or if nobody wants the call
/// any more.
pub(crate) fn wait_until(
    py: Python<'_>,
    pending: &mut OfProcess<Pending>,
    waiter: &Arc<Waiter>,
    end: Instant,
) -> PyResult<Option<Outcome>> {
    let pending = pending.get_mut()?;
    let waker = Waker::from(waiter.clone());
    Ok(py.detach(|| wait_for_a_moment(pending, waiter, &waker, end)))
}

/// Parks this thread until the wait is over, at most until `end`. Returns whether it is.
pub(crate) fn park_until(py: Python<'_>, waiter: &Waiter, end: Instant) -> bool {
    py.detach(|| {
        while !waiter.is_over()
            && let Some(left) = end.checked_duration_since(Instant::now())
        {
            thread::park_timeout(left);
        }
    });
    waiter.is_over()
}

fn wait_for_a_moment(
    pending: &mut Pending,
    waiter: &Waiter,
    waker: &Waker,
    end: Instant,
) -> Option<Outcome> {
    loop {
        if let Poll::Ready(outcome) = pending.poll(&mut Context::from_waker(waker), true) {
            return Some(outcome);
        }
        if waiter.is_over() {
            return None;
        }
        let left = end.checked_duration_since(Instant::now())?;
        thread::park_timeout(left);
    }
}

/// The result that a thread has waited for, or its exception.
pub(crate) fn finish(py: Python<'_>, outcome: Outcome) -> PyResult<Py<PyAny>> {
    outcome.or_else(|error| Err(PyErr::from_value(exception(py, error)?)))
}

/// A call that was made without waiting for it.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Queued {
    state: Mutex<State>,
    /// `None` once the call is over.
    log: Mutex<Option<CheckoutLog>>,
}

enum State {
    Running(Box<OfProcess<Pending>>),
    /// A thread waits for it.
    Waiting,
    /// A thread has been interrupted while it waited, and the call was dropped.
    Dropped,
    Done(Result<Py<PyAny>, Py<PyBaseException>>),
}

impl Queued {
    pub(crate) fn new(pending: OfProcess<Pending>, log: Option<CheckoutLog>) -> Self {
        Self { state: Mutex::new(State::Running(Box::new(pending))), log: Mutex::new(log) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Queued {
    /// How far the call has got.
    fn progress(&self) -> PyResult<Reports> {
        match &*self.lock() {
            State::Running(pending) => Ok(pending.get()?.progress()),
            State::Waiting => {
                let said = "another thread waits for this call: ask for its progress before that";
                Err(PyRuntimeError::new_err(said))
            }
            State::Dropped | State::Done(_) => Ok(Reports::new(None)),
        }
    }

    /// Waits for the result and returns it.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let before = mem::replace(&mut *self.lock(), State::Waiting);
        let (state, result) = match before {
            State::Running(mut pending) => match wait(py, &mut pending) {
                Ok(outcome) => {
                    let result = finish(py, outcome).map_err(|error| error.into_value(py));
                    (State::Done(copy(py, &result)), raised(py, result))
                }
                Err(interrupted) => (State::Dropped, Err(interrupted)),
            },
            State::Done(result) => (State::Done(copy(py, &result)), raised(py, result)),
            State::Waiting => {
                (State::Waiting, Err(PyRuntimeError::new_err("another thread waits for this call")))
            }
            State::Dropped => {
                let said = "the call was dropped when its thread was interrupted";
                (State::Dropped, Err(PyRuntimeError::new_err(said)))
            }
        };
        let is_over = matches!(state, State::Done(_) | State::Dropped);
        *self.lock() = state;
        if is_over {
            let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
            log.map_or(Ok(()), |log| log.hand_over(py))?;
        }
        result
    }

    /// Tells the collector what is kept. An input, a function for logs and a result may refer to this object.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(log) = self.log.try_lock()
            && let Some(log) = &*log
        {
            log.traverse(&visit)?;
        }
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        match &*state {
            State::Running(pending) => match pending.peek() {
                Some(pending) => pending.traverse(&visit),
                None => Ok(()),
            },
            State::Done(Ok(value)) => visit.call(value),
            State::Done(Err(error)) => visit.call(error),
            State::Waiting | State::Dropped => Ok(()),
        }
    }

    fn __clear__(&self) {
        let state = mem::replace(&mut *self.lock(), State::Dropped);
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop((state, log));
    }
}

fn raised<T>(py: Python<'_>, result: Result<T, Py<PyBaseException>>) -> PyResult<T> {
    result.map_err(|error| PyErr::from_value(error.into_bound(py).into_any()))
}

fn copy(
    py: Python<'_>,
    result: &Result<Py<PyAny>, Py<PyBaseException>>,
) -> Result<Py<PyAny>, Py<PyBaseException>> {
    match result {
        Ok(value) => Ok(value.clone_ref(py)),
        Err(error) => Err(error.clone_ref(py)),
    }
}
