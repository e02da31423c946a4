//! Calls that a worker's loop passes to Python.
//!
//! The Python object, `_Worker` in the package, runs the user's code and catches every exception. It answers with a tuple,
//! whose first element says what it is: `ok` and a value; `items` and an iterator; `item` and a value; `unread` if the method
//! streams items that the caller does not read; `unfed` if it takes an input that the caller does not stream; `error` with message, causes, the
//! number of those left out, stack, type, notes, and the seconds that the call had run if its time was over; `method` with known names; or `arguments` with a text.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use taskfork::__private::{Raised, Reply, Request, ResultMemory, encoded};
use taskfork::error::Failure;
use taskfork::worker::{ArgumentsError, EmitError, Interface, context, logger};

use crate::copies::Target;
use crate::decode::{Argument, Object};
use crate::encode::{Owned, Value};
use crate::passed::OfCall;
use crate::pickles;
use crate::receiver::Receiver;
use crate::sys::send;

/// The methods of a Python object.
pub(crate) struct PythonInterface {
    object: Py<PyAny>,
    names: Vec<String>,
}

impl PythonInterface {
    pub(crate) fn new(object: Py<PyAny>, names: Vec<String>) -> Self {
        Self { object, names }
    }

    pub(crate) fn object(&self) -> &Py<PyAny> {
        &self.object
    }
}

/// What the Python object has answered.
enum Answer<'py> {
    Value(Bound<'py, PyAny>),
    Items(Bound<'py, PyAny>),
    Item(Bound<'py, PyAny>),
    Error(Raised),
    /// The method streams, and its caller does not read that.
    Unread,
    /// The method takes an input, and its caller streams none.
    Unfed,
    UnknownMethod(Vec<String>),
    WrongArguments(String),
}

impl<'py> Answer<'py> {
    fn of(answer: PyResult<Bound<'py, PyAny>>) -> Self {
        answer.and_then(|answer| Self::read(&answer)).unwrap_or_else(|error| {
            Self::Error(Raised { message: error.to_string(), ..Raised::default() })
        })
    }

    fn read(answer: &Bound<'py, PyAny>) -> PyResult<Self> {
        let answer = answer.cast::<PyTuple>()?;
        let kind = answer.get_item(0)?;
        let field = |index| answer.get_item(index);
        Ok(match &*kind.cast::<PyString>()?.to_cow()? {
            "ok" => Self::Value(field(1)?),
            "items" => Self::Items(field(1)?),
            "item" => Self::Item(field(1)?),
            "unread" => Self::Unread,
            "unfed" => Self::Unfed,
            "method" => Self::UnknownMethod(field(1)?.extract()?),
            "arguments" => Self::WrongArguments(field(1)?.extract()?),
            "error" => Self::Error(Raised {
                message: field(1)?.extract()?,
                causes: field(2)?.extract()?,
                more: field(3)?.extract()?,
                stack: field(4)?.extract()?,
                type_name: field(5)?.extract()?,
                notes: field(6)?.extract()?,
                ran_for: field(7)?.extract::<Option<f64>>()?.map(seconds),
            }),
            other => return Err(PyValueError::new_err(format!("no answer is called {other}"))),
        })
    }

    fn reply(self, mut request: Request<'_>) -> Reply {
        match self {
            Self::Value(value) | Self::Item(value) | Self::Items(value) => {
                let memory = ResultMemory::of(&mut request);
                let alloc = |length| memory.alloc(length);
                request.value(&Value(&value, Target::Shared(&alloc)))
            }
            Self::Error(raised) => request.failed(raised),
            Self::Unread => match request.emitter::<Owned>() {
                Ok(_) => request.value(&()),
                Err(reply) => reply,
            },
            Self::Unfed => match request.receiver::<Object>() {
                Ok(_) => request.value(&()),
                Err(reply) => reply,
            },
            Self::UnknownMethod(known) => request.unknown_method(known.iter().map(String::as_str)),
            Self::WrongArguments(message) => {
                request.untyped::<(), ArgumentsError>(Err(message.into()))
            }
        }
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

impl PythonInterface {
    fn answer<'py>(
        &self,
        py: Python<'py>,
        request: &Request<'_>,
        args: Vec<Argument>,
        input: Option<&Py<Receiver>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let args = PyTuple::new(py, args.into_iter().map(|Argument(value)| value))?;
        let remaining = context().remaining().map(|left| left.as_secs_f64());
        let level = logger().verbosity().rounded_up();
        let object = self.object.bind(py);
        let reads_items = request.reads_items();
        object.call_method1("call", (request.method(), args, remaining, level, reads_items, input))
    }

    /// Asks the object this about a method.
    fn says(&self, question: &str, method: Option<&str>) -> bool {
        Python::attach(|py| {
            let said = self.object.call_method1(py, question, (method,));
            said.and_then(|said| said.extract(py)).unwrap_or(false)
        })
    }

    /// Sends the items of an iterator. What a generator returns is the result of the call.
    fn stream(&self, py: Python<'_>, items: &Bound<'_, PyAny>, request: Request<'_>) -> Reply {
        let mut emitter = match request.emitter() {
            Ok(emitter) => emitter,
            Err(reply) => return reply,
        };
        let object = self.object.bind(py);
        let mut unsent = None;
        loop {
            let item = match Answer::of(object.call_method1("step", (items, unsent.take()))) {
                Answer::Item(item) => Owned(item.unbind()),
                end => return end.reply(request),
            };
            match send(py, &mut emitter, &item) {
                Ok(()) => {}
                Err(EmitError::Closed) => {
                    let closed = object.call_method1("close", (items,));
                    return Answer::of(closed).reply(request);
                }
                Err(error) => unsent = Some(error.to_string()),
            }
        }
    }
}

impl Interface<()> for PythonInterface {
    fn call(&self, (): &mut (), request: Request<'_>) -> Reply {
        // Most calls have none, and Python need not be asked.
        let takes_views =
            request.may_have_long_bytes() && self.says("takes_views", request.method());
        let (passed, args) = OfCall::of(|| pickles::taking_views(takes_views, || request.parse()));
        let args = match args {
            Ok(args) => args,
            Err(reply) => return reply,
        };
        Python::attach(|py| {
            let input = Receiver::of(&request).map(|input| Py::new(py, input)).transpose();
            let (answer, input) = match input {
                Ok(input) => (self.answer(py, &request, args, input.as_ref()), input),
                Err(error) => (Err(error), None),
            };
            let reply = match Answer::of(answer) {
                Answer::Items(generator) => self.stream(py, &generator, request),
                answer => answer.reply(request),
            };
            if let Some(input) = input {
                input.get().end();
            }
            // With the interpreter: it has objects.
            drop(passed);
            reply
        })
    }

    fn streams(&self, method: Option<&str>, _: Option<&str>) -> bool {
        self.says("streams", method)
    }

    fn takes_input(&self, method: Option<&str>, _: Option<&str>) -> bool {
        self.says("takes_input", method)
    }

    fn method_names(&self) -> Vec<String> {
        self.names.clone()
    }
}

/// Runs `setup` of the user. The object returns the messages of its error and of the causes, or none.
pub(crate) fn set_up(object: &Py<PyAny>) -> Result<(), Failure> {
    call(object, "set_up")
}

/// Runs `checkout_done` of the user in the same way.
pub(crate) fn end_checkout(object: &Py<PyAny>) -> Result<(), Failure> {
    call(object, "end_checkout")
}

fn call(object: &Py<PyAny>, method: &str) -> Result<(), Failure> {
    let messages = Python::attach(|py| object.call_method0(py, method)?.extract(py));
    let messages: Vec<String> = messages.unwrap_or_else(|error: PyErr| vec![error.to_string()]);
    let mut messages = messages.into_iter();
    match messages.next() {
        None => Ok(()),
        Some(first) => Err(messages.fold(Failure::new(first), Failure::caused_by)),
    }
}

/// Whether the time of the running call is over.
#[pyfunction]
pub(crate) fn is_cancelled() -> bool {
    context().is_cancelled()
}

/// Who is at the other end of the worker's connection, as text.
#[pyfunction]
pub(crate) fn peer() -> Option<String> {
    context().peer().map(|peer| peer.to_string())
}

/// Reports how far the running call has got.
#[pyfunction]
#[pyo3(signature = (done, total, what))]
pub(crate) fn progress(done: u64, total: Option<u64>, what: std::borrow::Cow<'_, str>) {
    context().progress(done, total, &what);
}

/// Adds a Log::Defer message to the log of the running call.
#[pyfunction]
pub(crate) fn log(message: &Bound<'_, PyAny>) -> PyResult<()> {
    let invalid = |error: String| PyValueError::new_err(format!("this cannot be logged: {error}"));
    // Who reads a log has agreed to nothing.
    let encoded = pickles::without(|| encoded(&Value(message, Target::Copy))).map_err(invalid)?;
    let message = rmp_serde::from_slice(&encoded).map_err(|error| invalid(error.to_string()))?;
    logger().merge(message);
    Ok(())
}
