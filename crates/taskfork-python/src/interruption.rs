//! Exceptions that are no `Exception`, such as that of Ctrl-C, which code of the user raises while a value is encoded or decoded.
//!
//! In between is the library, to which such an exception is the error of one call. So it is kept for its thread, and whoever has
//! made or polled the call raises it.

use std::cell::RefCell;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::pickles;

thread_local! {
    static NOTED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Keeps an exception, if it is such a one, for [`check`].
pub(crate) fn note(py: Python<'_>, error: &PyErr) {
    // In a worker it is the error of its call, whatever it is.
    if pickles::are_of_client() && !error.is_instance_of::<PyException>(py) {
        NOTED.set(Some(error.clone_ref(py)));
    }
}

/// Keeps an exception for [`check`].
pub(crate) fn keep(error: PyErr) {
    NOTED.set(Some(error));
}

/// Forgets it, in a forked process that does not return to where it came from.
pub(crate) fn forget() {
    NOTED.set(None);
}

/// Raises the exception that was kept in this thread.
pub(crate) fn check() -> PyResult<()> {
    NOTED.take().map_or(Ok(()), Err)
}
