//! Objects that are pickled because they have no other encoding, where both sides have agreed to that.
//!
//! Values are encoded and decoded deep within calls of the library. So who makes or polls a call says for its thread whether its
//! client has agreed. A worker's server says it for its process, which is the server of nothing else.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::LocalKey;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

thread_local! {
    /// What has interrupted the object that was unpickled last, as Ctrl-C and the end of a call's time do.
    static INTERRUPTION: Cell<Option<PyErr>> = const { Cell::new(None) };

    /// The terms of the running call; `None` outside of the calls of a client.
    static OF_CALL: Cell<Option<Terms>> = const { Cell::new(None) };

    /// Whether the arguments of a worker's call are decoded for a method that takes views of memory.
    static TAKES_VIEWS: Cell<bool> = const { Cell::new(false) };

    /// Whether a client makes or polls a call, also while that runs code of the user.
    static IS_CLIENT: Cell<bool> = const { Cell::new(false) };
}

/// How a client, or the workers of a server, exchange values.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// It has agreed to pickled values.
    pub(crate) pickles: bool,
    /// Long bytes become a `bytearray`, which can be written to, as arrays of a pickled value need it.
    pub(crate) writable: bool,
}

/// The terms of this worker.
static PICKLES: AtomicBool = AtomicBool::new(false);
static WRITABLE: AtomicBool = AtomicBool::new(false);

/// Sets the terms of this process, which serves.
pub(crate) fn set_for_worker(Terms { pickles, writable }: Terms) {
    PICKLES.store(pickles, Ordering::Relaxed);
    WRITABLE.store(writable, Ordering::Relaxed);
}

/// Runs what encodes or decodes values of a client.
pub(crate) fn within<T>(terms: Terms, run: impl FnOnce() -> T) -> T {
    let _before = Before(&IS_CLIENT, IS_CLIENT.replace(true));
    replaced(Some(terms), run)
}

/// Runs what encodes values that are never pickled.
pub(crate) fn without<T>(run: impl FnOnce() -> T) -> T {
    replaced(Some(Terms::default()), run)
}

/// Runs what decodes the arguments of a worker's call, whose method may take views of memory.
pub(crate) fn taking_views<T>(takes_views: bool, run: impl FnOnce() -> T) -> T {
    let _before = Before(&TAKES_VIEWS, TAKES_VIEWS.replace(takes_views));
    run()
}

/// Whether long bytes are views of the memory that they have arrived in.
pub(crate) fn are_views() -> bool {
    OF_CALL.get().is_none() && TAKES_VIEWS.get()
}

/// Runs what belongs to no call of a client: code of the user that encoding, decoding or polling a call runs, and what a worker
/// encodes and decodes for its own caller. The agreement of a client, within whose call this may be, does not hold for it.
pub(crate) fn outside<T>(run: impl FnOnce() -> T) -> T {
    replaced(None, run)
}

/// Forgets the calls within which this process has been forked: it returns to none of them.
pub(crate) fn forget_calls() {
    INTERRUPTION.set(None);
    OF_CALL.set(None);
    TAKES_VIEWS.set(false);
    IS_CLIENT.set(false);
}

fn replaced<T>(of_call: Option<Terms>, run: impl FnOnce() -> T) -> T {
    let _before = Before(&OF_CALL, OF_CALL.replace(of_call));
    run()
}

/// Sets a variable of this thread to what it was: code of the user, which is run meanwhile, may use other clients.
struct Before<T: Copy + 'static>(&'static LocalKey<Cell<T>>, T);

impl<T: Copy> Drop for Before<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Whether a client makes or polls a call in this thread, rather than a worker runs one.
pub(crate) fn are_of_client() -> bool {
    IS_CLIENT.get()
}

fn are_agreed() -> bool {
    OF_CALL.get().map_or_else(|| PICKLES.load(Ordering::Relaxed), |terms| terms.pickles)
}

/// Whether long bytes can be written to once they are decoded.
pub(crate) fn are_writable() -> bool {
    OF_CALL.get().map_or_else(|| WRITABLE.load(Ordering::Relaxed), |terms| terms.writable)
}

/// An object that has no other encoding, pickled. `Err` has the text for its call.
pub(crate) fn pickled<'py>(
    value: &Bound<'py, PyAny>,
    reason: String,
) -> PyResult<Result<Bound<'py, PyBytes>, String>> {
    let pickles = value.py().import("taskfork._pickles")?;
    if !are_agreed() {
        return Ok(Err(pickles.call_method1("with_hint", (reason,))?.extract()?));
    }
    let made = outside(|| pickles.call_method1("dumps", (value, reason)))?;
    Ok(match made.cast_into::<PyBytes>() {
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.into_inner().extract()?),
    })
}

/// The object that a peer has pickled.
pub(crate) fn unpickled<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let pickles = py.import("taskfork._pickles")?;
    let agreed = are_agreed();
    let made = outside(|| pickles.call_method1("loads", (PyBytes::new(py, bytes), agreed)));
    made.inspect_err(|error| {
        if !error.is_instance_of::<PyException>(py) {
            INTERRUPTION.set(Some(error.clone_ref(py)));
        }
    })
}

/// Takes what has interrupted the decoding of a value in this thread. The decoder's error has only its text.
pub(crate) fn take_interruption() -> Option<PyErr> {
    INTERRUPTION.take()
}
