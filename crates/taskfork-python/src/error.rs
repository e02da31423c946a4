//! Errors of calls as exceptions of the package.

use std::fmt;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use taskfork::error::{
    Activity, CallError, Death, End, Error, Failure, FatalError, Hung, InterfaceError,
};

use crate::decode::{Object, decode};
use crate::input::Feed;

/// The interface's own error: its texts, and its value if the interface is typed.
pub(crate) struct OwnError {
    failure: Failure,
    value: Option<Object>,
}

impl InterfaceError for OwnError {
    fn from_wire(failure: Failure, value: Option<&[u8]>) -> Result<Self, String> {
        Ok(Self { failure, value: value.map(decode).transpose()? })
    }
}

impl fmt::Display for OwnError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.failure.fmt(out)
    }
}

/// The error of a call, and what the iterable of its input has raised.
pub(crate) struct Failed {
    error: Box<Error<OwnError>>,
    /// Not taken before the exception is made: a thread that waits looks there for Ctrl-C.
    feed: Feed,
}

impl Failed {
    pub(crate) fn new(error: Error<OwnError>, feed: &Feed) -> Self {
        Self { error: Box::new(error), feed: feed.clone() }
    }
}

/// The exception for an error.
pub(crate) fn exception<'py>(py: Python<'py>, failed: Failed) -> PyResult<Bound<'py, PyAny>> {
    let Failed { error, feed } = failed;
    let is_input = matches!(&*error, Error::Call { error: CallError::Input(_), .. });
    let made = of_error(py, *error)?;
    if is_input && let Some(raised) = feed.take_raised() {
        made.setattr("__cause__", raised)?;
    }
    Ok(made)
}

fn of_error<'py>(py: Python<'py>, error: Error<OwnError>) -> PyResult<Bound<'py, PyAny>> {
    let may_have_run = error.may_have_run();
    let stack = error.site().stack().map(str::to_owned);
    let kind = error.site().error_type().map(str::to_owned);
    let notes: Vec<String> = error.site().notes().map(str::to_owned).collect();
    let message = error.to_string();
    let fields = PyDict::new(py);
    fields.set_item("may_have_run", may_have_run)?;
    match error {
        Error::Call { error, .. } => {
            let name = call_fields(error, stack, kind, notes, &fields)?;
            make(py, name, message, &fields)
        }
        Error::Fatal { cause, .. } => {
            let name = fatal_fields(&cause, &fields)?;
            let made = make(py, name, message, &fields)?;
            if let FatalError::CannotConnect { reason, .. } = &cause {
                made.setattr("__cause__", system_error(py, reason)?)?;
            }
            Ok(made)
        }
        _ => make(py, "Error", message, &fields),
    }
}

/// An exception of the package that no call of the client in Rust has returned.
pub(crate) fn aborted<'py>(
    py: Python<'py>,
    message: &str,
    may_have_run: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let fields = PyDict::new(py);
    fields.set_item("may_have_run", may_have_run)?;
    make(py, "Aborted", message.to_owned(), &fields)
}

fn make<'py>(
    py: Python<'py>,
    name: &str,
    message: String,
    fields: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    py.import("taskfork.errors")?.getattr(name)?.call((message,), Some(fields))
}

/// Sets the fields of an error that leaves its checkout usable, and returns the exception's class.
fn call_fields(
    error: CallError<OwnError>,
    stack: Option<String>,
    kind: Option<String>,
    notes: Vec<String>,
    fields: &Bound<'_, PyDict>,
) -> PyResult<&'static str> {
    match error {
        CallError::Interface(OwnError { failure, value }) => {
            fields.set_item("causes", failure.causes().collect::<Vec<_>>())?;
            fields.set_item("value", value.map(|Object(value)| value))?;
            fields.set_item("stack", stack)?;
            fields.set_item("type", kind)?;
            fields.set_item("notes", notes)?;
            Ok("InterfaceError")
        }
        CallError::Panic(panic) => {
            let location = panic.location.map(|at| (at.file, at.line, at.column));
            fields.set_item("location", location)?;
            fields.set_item("stack", panic.stack)?;
            Ok("PanicError")
        }
        CallError::UnknownMethod { known, .. } => {
            fields.set_item("known", known)?;
            Ok("UnknownMethod")
        }
        CallError::Setup { failure } => {
            fields.set_item("causes", failure.causes().collect::<Vec<_>>())?;
            Ok("SetupError")
        }
        CallError::Arguments { .. } => Ok("ArgumentsError"),
        CallError::Input(_) => Ok("InputError"),
        CallError::Result { .. } | CallError::Decode { .. } => Ok("ResultError"),
        CallError::Dropped { .. } => Ok("Dropped"),
        _ => Ok("CallError"),
    }
}

/// Sets the fields of an error that ends its checkout, and returns the exception's class.
fn fatal_fields(cause: &FatalError, fields: &Bound<'_, PyDict>) -> PyResult<&'static str> {
    match cause {
        FatalError::TimedOut { after, hung, .. } => {
            fields.set_item("after", after.as_secs_f64())?;
            hung_fields(hung.as_deref(), fields)?;
            Ok("TimedOut")
        }
        FatalError::WorkerDied(death) => {
            death_fields(death, fields)?;
            Ok("WorkerDied")
        }
        FatalError::CannotConnect { address, reason, unreachable_for, .. } => {
            fields.set_item("address", address)?;
            fields.set_item("reason", reason.to_string())?;
            fields.set_item("unreachable_for", unreachable_for.as_secs_f64())?;
            Ok("CannotConnect")
        }
        FatalError::WrongInterface { address, difference } => {
            fields.set_item("address", address)?;
            fields.set_item("difference", difference)?;
            Ok("WrongInterface")
        }
        FatalError::Overloaded { queued } => {
            fields.set_item("queued", queued)?;
            Ok("Overloaded")
        }
        FatalError::Aborted { .. } | FatalError::ClientClosed => Ok("Aborted"),
        FatalError::Protocol { .. } => Ok("ProtocolError"),
        _ => Ok("FatalError"),
    }
}

fn hung_fields(hung: Option<&Hung>, fields: &Bound<'_, PyDict>) -> PyResult<()> {
    let Some(hung) = hung else { return Ok(()) };
    fields.set_item("stack", &hung.stack)?;
    fields.set_item("no_stack", &hung.no_stack)?;
    fields.set_item("stderr", &hung.stderr)
}

fn death_fields(death: &Death, fields: &Bound<'_, PyDict>) -> PyResult<()> {
    let (exit, signal) = match death.end {
        End::Exited(status) => (Some(status), None),
        End::Signaled(signal) => (None, Some(signal)),
        _ => (None, None),
    };
    let during = death.during.map(|during| match during {
        Activity::Setup => "setup",
        Activity::Idle => "idle",
        Activity::CheckoutDone => "checkout_done",
        _ => "call",
    });
    // That of `os.getpid` in the code of the worker.
    fields.set_item("pid", death.program.unwrap_or(death.pid))?;
    fields.set_item("worker_pid", death.pid)?;
    fields.set_item("exit", exit)?;
    fields.set_item("signal", signal)?;
    fields.set_item("during", during)?;
    fields.set_item("reason", &death.reason)?;
    hung_fields(death.hung.as_deref(), fields)?;
    match &death.stderr {
        Some(stderr) => fields.set_item("stderr", stderr),
        None => Ok(()),
    }
}

/// The system's error behind another one, as the exception that Python has for it.
fn system_error<'py>(
    py: Python<'py>,
    error: &dyn std::error::Error,
) -> PyResult<Bound<'py, PyAny>> {
    let system = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    match system.and_then(std::io::Error::raw_os_error) {
        Some(number) => {
            let text = py.import("os")?.call_method1("strerror", (number,))?;
            py.import("builtins")?.getattr("OSError")?.call1((number, text))
        }
        None => Ok(py.None().into_bound(py)),
    }
}
