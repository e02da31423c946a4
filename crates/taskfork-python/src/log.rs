//! Logs of checkouts, which a function of the user gets as dicts.

use log_defer::{Log, Message};
use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::decode::{Object, decode};
use crate::pickles::{self, Terms};

/// The log of a checkout, and the user's function. What a call has logged is handed over when the call ends.
///
/// The function may refer to the checkout. So whoever has this object shows it to the collector, and each has a reference of its
/// own: the collector counts them.
pub(crate) struct CheckoutLog {
    log: Log,
    callback: Py<PyAny>,
}

impl CheckoutLog {
    /// `last` gets what is logged after the last call, in any thread and without the interpreter.
    pub(crate) fn new(callback: Py<PyAny>, last: impl FnOnce(Message) + Send + 'static) -> Self {
        Self { log: Log::new(last), callback }
    }

    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    pub(crate) fn callback(&self) -> &Py<PyAny> {
        &self.callback
    }

    pub(crate) fn clone_ref(&self, py: Python<'_>) -> Self {
        Self { log: self.log.clone(), callback: self.callback.clone_ref(py) }
    }

    /// Hands over what has been logged since the last time.
    pub(crate) fn hand_over(&self, py: Python<'_>) -> PyResult<()> {
        hand_over(py, &self.callback, &self.log.take())
    }

    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.callback)
    }
}

/// Calls the user's function. An `Exception` of it ends nothing: Python prints it, as those of finalizers. Others are returned.
pub(crate) fn hand_over(py: Python<'_>, callback: &Py<PyAny>, message: &Message) -> PyResult<()> {
    if message.logs.is_empty() && message.timers.is_empty() && message.data.is_empty() {
        return Ok(());
    }
    let encoded = rmp_serde::to_vec_named(message).map_err(|error| error.to_string());
    let decoded =
        pickles::within(Terms::default(), || encoded.and_then(|encoded| decode(&encoded)));
    let Ok(Object(message)) = decoded else { return Ok(()) };
    match callback.call1(py, (message,)) {
        Err(error) if error.is_instance_of::<PyException>(py) => {
            error.write_unraisable(py, Some(callback.bind(py)));
            Ok(())
        }
        called => called.map(drop),
    }
}
