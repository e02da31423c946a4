//! A program that a server has started as one of its workers, and that serves the worker's connection by the loop in Rust.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use taskfork::__private::offer;
use tracing_subscriber::filter::LevelFilter;

use crate::interface::{self, PythonInterface};
use crate::pickles::{self, Terms};
use crate::sys::{inherited_descriptor, inherited_worker, pass_alarms_to_python};

/// Says at this descriptor that this program can serve a connection itself, and waits for the end of that connection.
#[pyfunction]
pub(crate) fn offer_to_serve(py: Python<'_>, connection: i32) -> PyResult<()> {
    let connection = inherited_descriptor(connection)?;
    py.detach(|| offer(connection)).map_err(PyRuntimeError::new_err)
}

/// Serves the connection of the worker whose state has this descriptor. Returns the exit status for this process. Python
/// must have a handler for SIGALRM. `interface` is the object that is called; see [`PythonInterface`].
#[pyfunction]
pub(crate) fn serve_inherited(
    py: Python<'_>,
    state: i32,
    interface: Py<PyAny>,
    pickle: bool,
) -> PyResult<i32> {
    let worker = inherited_worker(state).map_err(PyRuntimeError::new_err)?;
    let names = interface.call_method0(py, "names")?.extract(py)?;
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false);
    // A subscriber that the process has already stays.
    let _ = log.with_max_level(LevelFilter::WARN).try_init();
    pickles::set_for_worker(Terms { pickles: pickle, writable: false });
    pass_alarms_to_python(py)?;
    let (object, done) = (interface.clone_ref(py), interface.clone_ref(py));
    let interface = PythonInterface::new(interface, names);
    Ok(py.detach(move || {
        worker.serve(
            move || interface::set_up(&object),
            move |()| interface::end_checkout(&done),
            &interface,
        )
    }))
}
