//! A server in a Python process: workers are forked from it, and serve their connections by the loop of workers in Rust.
//!
//! The interpreter, and all that the program has imported, are memory that workers share. The process has one thread, which
//! does not hold the interpreter while it serves; forks tell the interpreter (`sys`).

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use taskfork::error::Failure;
use taskfork::server::LogWriter;
use taskfork::{Server, ServerBuilder};
use tracing_subscriber::filter::LevelFilter;

use crate::interface::{self, PythonInterface};
use crate::options::limit;
use crate::pickles::{self, Terms};
use crate::sys::{pass_alarms_to_python, tell_interpreter_of_forks};

/// The options of a server.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    name: String,
    max_workers: Option<usize>,
    spare_workers: usize,
    max_calls: Option<u64>,
    share_details: bool,
    hung_worker_timeout: Option<f64>,
    max_frame: Option<usize>,
    shutdown_grace: f64,
    /// Whether SIGHUP starts the program anew. Otherwise it ends the server.
    restarts: bool,
    /// Whether this process is a fork of a program. Then its signals are blocked, and memory is not moved to huge pages, which would
    /// copy what it shares.
    is_fork: bool,
    /// Whether values without another encoding are pickled.
    pickle: bool,
    /// Whether long bytes of arguments can be written to.
    writable: bool,
    /// From which level on is logged: `info`, `warn` or `error`.
    log_level: String,
}

/// Serves until a signal ends the server. Python must have a handler for SIGALRM, which workers use. `interface` is the object that workers call; see [`PythonInterface`].
#[pyfunction]
pub(crate) fn serve(
    py: Python<'_>,
    address: Cow<'_, str>,
    options: Options,
    interface: Py<PyAny>,
) -> PyResult<()> {
    let names = interface.call_method0(py, "names")?.extract(py)?;
    let address = address.into_owned();
    let most: LevelFilter = options
        .log_level
        .parse()
        .map_err(|_| PyValueError::new_err(format!("there is no level `{}`", options.log_level)))?;
    let log = tracing_subscriber::fmt().with_writer(LogWriter::new).with_target(false);
    // A subscriber that the process has already stays.
    let _ = log.with_max_level(most).try_init();
    let hung = limit("hung_worker_timeout", options.hung_worker_timeout)?;
    let grace = limit("shutdown_grace", Some(options.shutdown_grace))?;
    let Options { pickle: pickles, writable, .. } = options;
    pickles::set_for_worker(Terms { pickles, writable });
    if options.is_fork {
        // What ends it stays blocked until the server handles it.
        let stays: SigSet = [Signal::SIGTERM].into_iter().collect();
        stays.thread_set_mask().map_err(io::Error::from)?;
    }
    pass_alarms_to_python(py)?;
    tell_interpreter_of_forks(true);
    let served = py.detach(move || {
        let server = options.builder(&address);
        let server = server.hung_worker_timeout(hung);
        let server = server.shutdown_grace(grace.unwrap_or(Duration::MAX));
        let interface = PythonInterface::new(interface, names);
        run(server, interface)
    });
    tell_interpreter_of_forks(false);
    served.map_err(PyRuntimeError::new_err)
}

impl Options {
    fn builder(self, address: &str) -> ServerBuilder {
        let mut server = Server::builder()
            .listen(address)
            .name(self.name)
            .spare_workers(self.spare_workers)
            .max_calls(self.max_calls)
            .share_details(self.share_details)
            .huge_pages(!self.is_fork);
        if !self.restarts {
            server = server.restart_on_hangup(false);
        }
        if let Some(workers) = self.max_workers {
            server = server.max_workers(workers);
        }
        if let Some(bytes) = self.max_frame {
            server = server.max_frame(bytes);
        }
        server
    }
}

fn run(server: ServerBuilder, interface: PythonInterface) -> Result<(), String> {
    let object = Python::attach(|py| interface.object().clone_ref(py));
    let done = Python::attach(|py| object.clone_ref(py));
    server
        .setup(move || interface::set_up(&object))
        .checkout_done(move |()| interface::end_checkout(&done))
        .interface(interface)
        .run()
        .map_err(|error| Failure::new(error.to_string()).to_string())
}
