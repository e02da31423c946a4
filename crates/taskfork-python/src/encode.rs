//! Python objects to MessagePack, without anything in between.
//!
//! The serializer bounds the depth, and the frame its length. Containers are copied before their elements are visited: what
//! is run meanwhile, such as a finalizer, may change them, and their length is written first.

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{
    PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple,
};
use serde::ser::{Error, Serialize, SerializeMap, SerializeSeq, Serializer};
use taskfork::__private::{Keywords, Pickled};
use taskfork::blob::{Blob, OpenFile};

use crate::copies::Target;
use crate::interruption;
use crate::passed;
use crate::pickles::{outside, pickled};
use crate::sys::{Buffer, duplicate};

/// Byte strings of this length or more are not copied.
pub(crate) const LONG: usize = 16 << 10;

/// Why an array of objects has no encoding.
const HAS_OBJECTS: &str = "an array of Python objects cannot be encoded: send a list";

/// The most characters of a value's `repr` in an error.
const MOST_SHOWN: usize = 100;

/// A Python object as a value of a call.
pub(crate) struct Value<'a, 'py>(pub(crate) &'a Bound<'py, PyAny>, pub(crate) Target<'a, 'py>);

/// An object that is encoded later.
pub(crate) struct Owned(pub(crate) Py<PyAny>);

impl Serialize for Owned {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Python::attach(|py| Value(self.0.bind(py), Target::Copy).serialize(serializer))
    }
}

/// The arguments of a call.
pub(crate) fn arguments<'a, 'py>(
    args: &'a [Bound<'py, PyAny>],
    target: Target<'a, 'py>,
) -> Vec<Value<'a, 'py>> {
    args.iter().map(|arg| Value(arg, target)).collect()
}

impl Serialize for Value<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(value, target) = *self;
        if value.is_none() {
            serializer.serialize_unit()
        } else if let Ok(text) = value.cast::<PyString>() {
            serializer.serialize_str(&text.to_cow().map_err(refusal(value))?)
        } else if let Ok(truth) = value.cast::<PyBool>() {
            serializer.serialize_bool(truth.is_true())
        } else if let Ok(number) = value.cast::<PyInt>() {
            integer(number, serializer)
        } else if let Ok(number) = value.cast::<PyFloat>() {
            serializer.serialize_f64(number.value())
        } else if let Ok(bytes) = value.cast::<PyBytes>() {
            byte_string(bytes, target, serializer)
        } else if let Ok(list) = value.cast::<PyList>() {
            sequence(&list.to_tuple(), target, serializer)
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            sequence(tuple, target, serializer)
        } else if let Ok(map) = value.cast::<PyDict>() {
            let map = map.copy().map_err(refusal(value))?;
            let mut out = serializer.serialize_map(Some(map.len()))?;
            for (key, value) in map.iter() {
                out.serialize_entry(&Value(&key, target), &Value(&value, target))?;
            }
            out.end()
        } else if value.is_exact_instance_of::<PyMemoryView>() {
            // Without a question to Python: the arrays of an executor are sent where no code in Python may run.
            let buffer = Buffer::of(value).map_err(refusal(value))?;
            match has_objects(&buffer.format()) {
                true => pickle(value, HAS_OBJECTS.to_owned(), serializer),
                false => memory(buffer, target, serializer),
            }
        } else {
            other(value, target, serializer)
        }
    }
}

fn integer<S: Serializer>(number: &Bound<'_, PyInt>, serializer: S) -> Result<S::Ok, S::Error> {
    if let Ok(number) = number.extract::<i64>() {
        return serializer.serialize_i64(number);
    }
    match number.extract::<u64>() {
        Ok(number) => serializer.serialize_u64(number),
        Err(_) => {
            let reason = "an integer has more than 64 bits: send it as a text".to_owned();
            pickle(number.as_any(), reason, serializer)
        }
    }
}

fn byte_string<S: Serializer>(
    bytes: &Bound<'_, PyBytes>,
    target: Target<'_, '_>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let there = bytes.as_bytes();
    if there.len() < LONG {
        return serializer.serialize_bytes(there);
    }
    if let Target::Shared(_) = target
        && let Some(blob) = passed::find(there.as_ptr(), there.len())
    {
        return blob.serialize(serializer);
    }
    let held = PyBackedBytes::from(bytes.clone());
    Blob::from(bytes::Bytes::from_owner(held)).serialize(serializer)
}

fn memory<'py, S: Serializer>(
    buffer: Buffer<'py>,
    target: Target<'_, 'py>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let py = buffer.py();
    let failed = |error: PyErr| S::Error::custom(cause(py, &error));
    if buffer.len() < LONG {
        return serializer.serialize_bytes(&buffer.append_to(Vec::new()).map_err(failed)?);
    }
    target.blob(buffer).map_err(failed)?.serialize(serializer)
}

fn sequence<'py, S: Serializer>(
    elements: &Bound<'py, PyTuple>,
    target: Target<'_, 'py>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut out = serializer.serialize_seq(Some(elements.len()))?;
    for element in elements.iter() {
        out.serialize_element(&Value(&element, target))?;
    }
    out.end()
}

/// A value of a type that is not built in: memory, an open file, a number of NumPy, an object with a buffer, or one that is sent
/// as a plain value.
fn other<'py, S: Serializer>(
    value: &Bound<'py, PyAny>,
    target: Target<'_, 'py>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let found = outside(|| Other::of(value));
    match found.unwrap_or_else(|error| Other::Unknown(cause(value.py(), &error))) {
        Other::Plain(plain) => Value(&plain, target).serialize(serializer),
        Other::Blob(blob) => blob.serialize(serializer),
        Other::File(file) => file.serialize(serializer),
        Other::Keywords => Keywords.serialize(serializer),
        Other::Number(number) => Value(&number, target).serialize(serializer),
        Other::Memory(buffer) => memory(buffer, target, serializer),
        Other::Refused(reason) => Err(S::Error::custom(reason)),
        Other::Unknown(reason) => pickle(value, reason, serializer),
    }
}

/// An object without another encoding.
fn pickle<S: Serializer>(
    value: &Bound<'_, PyAny>,
    reason: String,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match pickled(value, reason).map_err(refusal(value))? {
        Ok(bytes) => Pickled(bytes.as_bytes()).serialize(serializer),
        Err(reason) => Err(S::Error::custom(reason)),
    }
}

enum Other<'py> {
    /// What the package's converters have made of it. They know none for that.
    Plain(Bound<'py, PyAny>),
    Blob(Blob),
    File(OpenFile),
    /// The next argument is a dict of arguments by name.
    Keywords,
    Number(Bound<'py, PyAny>),
    Memory(Buffer<'py>),
    /// It cannot be sent in any way.
    Refused(String),
    /// It has no encoding of its own.
    Unknown(String),
}

impl<'py> Other<'py> {
    fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = value.py();
        let plain = py.import("taskfork._sending")?.getattr("to_plain")?.call1((value,))?;
        if !plain.is(value) {
            return Ok(Self::Plain(plain));
        }
        let shared = py.import("taskfork.shared")?;
        if value.is_instance(&shared.getattr("Blob")?)? {
            return Self::blob(value);
        }
        if value.is_instance(&py.import("taskfork._keywords")?.getattr("Keywords")?)? {
            return Ok(Self::Keywords);
        }
        if value.is_instance(&shared.getattr("BlobMut")?)? {
            let said = "a BlobMut cannot be sent before it is frozen, by `freeze`";
            return Ok(Self::Refused(said.to_owned()));
        }
        if value.is_instance(&py.import("io")?.getattr("IOBase")?)? {
            let file = duplicate(py, value.call_method0("fileno")?.extract()?)?;
            return Ok(Self::File(file.into()));
        }
        if is_numpy_scalar(value)? {
            let number = value.call_method0("item")?;
            // A time would be a number or a text, depending on its unit.
            let kind: String = value.getattr("dtype")?.getattr("kind")?.extract()?;
            let is_plain = !is_numpy_scalar(&number)? && !matches!(kind.as_str(), "m" | "M");
            return Ok(if is_plain { Self::Number(number) } else { Self::Unknown(unknown(value)) });
        }
        let buffer = match Buffer::of(value) {
            Ok(buffer) => buffer,
            Err(error) => {
                interruption::note(py, &error);
                return Ok(Self::Unknown(unknown(value)));
            }
        };
        if has_objects(&buffer.format()) {
            return Ok(Self::Unknown(HAS_OBJECTS.to_owned()));
        }
        Ok(Self::Memory(buffer))
    }

    fn blob(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let py = value.py();
        if !value.getattr("is_shareable")?.extract::<bool>()? {
            return Ok(Self::Memory(Buffer::of(&value.getattr("view")?)?));
        }
        let file = duplicate(py, value.call_method0("fileno")?.extract()?)?;
        match taskfork::__private::sealed_memory(file) {
            Ok(blob) => Ok(Self::Blob(blob)),
            Err(reason) => Ok(Self::Refused(reason)),
        }
    }
}

/// Whether this is a number, or another single value, of NumPy.
fn is_numpy_scalar(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    // Who has such a value has imported NumPy.
    let modules = value.py().import("sys")?.getattr("modules")?;
    match modules.get_item("numpy") {
        Ok(numpy) => value.is_instance(&numpy.getattr("generic")?),
        Err(_) => Ok(false),
    }
}

/// Why a value of this type cannot be encoded.
fn unknown(value: &Bound<'_, PyAny>) -> String {
    let kind = value.get_type().name().map_or_else(|_| "value".to_owned(), |name| name.to_string());
    // Code of the user, which may raise anything.
    match value.repr() {
        Ok(shown) => {
            let shown: String = shown.to_string_lossy().chars().take(MOST_SHOWN).collect();
            format!("a {kind} cannot be encoded: {shown}")
        }
        Err(error) => {
            interruption::note(value.py(), &error);
            format!("a {kind} cannot be encoded")
        }
    }
}

/// Whether the format of a buffer has objects of Python in it. The names of fields are between colons.
fn has_objects(format: &str) -> bool {
    format.split(':').step_by(2).any(|types| types.contains('O'))
}

fn refusal<'a, E: Error>(value: &'a Bound<'_, PyAny>) -> impl Fn(PyErr) -> E + 'a {
    move |error| E::custom(cause(value.py(), &error))
}

/// The text of an exception that code of the user has raised while a value was encoded or decoded. One that is no `Exception` is
/// raised where the call was made or polled.
pub(crate) fn cause(py: Python<'_>, error: &PyErr) -> String {
    interruption::note(py, error);
    text_of(py, error)
}

/// The text of an exception, whose `__str__` may raise another one.
pub(crate) fn text_of(py: Python<'_>, error: &PyErr) -> String {
    let value = error.value(py);
    match value.str() {
        Ok(text) if !text.is_empty().unwrap_or(true) => text.to_string_lossy().into_owned(),
        _ => error.get_type(py).name().map_or_else(|_| "an error".to_owned(), |it| it.to_string()),
    }
}
