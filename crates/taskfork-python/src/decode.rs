//! MessagePack to Python objects, without anything in between.
//!
//! The client has checked the bytes before: the number of their elements and their depth are bounded.

use std::fmt;
use std::os::fd::IntoRawFd;

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList, PyString, PyTuple};
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use taskfork::__private::{Received, Shared, received};

use crate::encode::{LONG, cause};
use crate::keys::{Collisions, FEW, Places};
use crate::passed;
use crate::pickles::{are_views, are_writable, unpickled};
use crate::sys::{new_bytearray, new_bytes, view};

/// A decoded value.
pub(crate) struct Object(pub(crate) Py<PyAny>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Python::attach(|py| {
            Value { py, place: Place::Inside }.deserialize(deserializer).map(|it| Self(it.unbind()))
        })
    }
}

/// One of the arguments of a call. Only there may be the mark of arguments by name: wherever else a peer writes it, it must not
/// become one of another call.
pub(crate) struct Argument(pub(crate) Py<PyAny>);

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Python::attach(|py| {
            let value = Value { py, place: Place::Argument };
            value.deserialize(deserializer).map(|it| Self(it.unbind()))
        })
    }
}

/// Decodes one value.
pub(crate) fn decode(encoded: &[u8]) -> Result<Object, String> {
    rmp_serde::from_slice(encoded).map_err(|error| error.to_string())
}

#[derive(Clone, Copy)]
struct Value<'py> {
    py: Python<'py>,
    place: Place,
}

/// Where a value is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Argument,
    Inside,
    /// It is the key of a map, or part of one, and must be hashable.
    Key,
}

impl<'de, 'py> DeserializeSeed<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

fn of_python<E: Error>(error: PyErr) -> E {
    E::custom(error)
}

impl<'py> Value<'py> {
    fn of_pickled<E: Error>(self, bytes: &[u8]) -> Result<Bound<'py, PyAny>, E> {
        unpickled(self.py, bytes).map_err(|error| E::custom(cause(self.py, &error)))
    }

    fn plain<E: Error>(self, value: impl IntoPyObjectExt<'py>) -> Result<Bound<'py, PyAny>, E> {
        value.into_bound_py_any(self.py).map_err(of_python)
    }
}

use pyo3::IntoPyObjectExt;

impl<'de, 'py> Visitor<'de> for Value<'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        self.plain(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        self.plain(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        self.plain(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
        self.plain(value)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Self::Value, E> {
        self.plain(value)
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<Self::Value, E> {
        Ok(match value.len() >= LONG && are_writable() {
            true => PyByteArray::new(self.py, value).into_any(),
            false => PyBytes::new(self.py, value).into_any(),
        })
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.py.None().into_bound(self.py))
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        self.deserialize(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        // The peer may claim any length, so the capacity grows with the elements that arrive.
        let mut elements = Vec::with_capacity(list.size_hint().unwrap_or(0).min(1024));
        let element_is = if self.place == Place::Key { Place::Key } else { Place::Inside };
        while let Some(element) = list.next_element_seed(Self { place: element_is, ..self })? {
            elements.push(element);
        }
        match self.place == Place::Key {
            true => PyTuple::new(self.py, elements).map(Bound::into_any).map_err(of_python),
            false => PyList::new(self.py, elements).map(Bound::into_any).map_err(of_python),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        if self.place == Place::Key {
            return Err(A::Error::custom(
                "a map has a key that is a map, which no `dict` can have",
            ));
        }
        let made = PyDict::new(self.py);
        let mut places = None;
        while let Some(key) = map.next_key_seed(Self { place: Place::Key, ..self })? {
            let value = map.next_value_seed(Self { place: Place::Inside, ..self })?;
            if places.is_none() && made.len() >= FEW && !has_secret_hash(&key) {
                places = Some(places_of(&made)?);
            }
            match &mut places {
                Some(places) => insert(&made, places, key, value)?,
                None => made.set_item(key, value).map_err(of_python)?,
            }
        }
        Ok(made.into_any())
    }

    /// Decodes an extension type, which stands for something that came with the message.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        let made = match received(inner)? {
            Received::Absent => return self.visit_unit(),
            Received::Keywords if self.place != Place::Argument => {
                return Err(D::Error::custom(
                    "the mark of arguments by name is no value: it stands between arguments only",
                ));
            }
            Received::Keywords => {
                self.py.import("taskfork._keywords").and_then(|it| it.getattr("KEYWORDS"))
            }
            Received::Pickled(bytes) => return self.of_pickled(&bytes),
            Received::Bytes(shared) => bytes_of(self.py, shared),
            Received::Memory(file) => {
                let shared = self.py.import("taskfork.shared");
                shared.and_then(|shared| shared.call_method1("view_of", (file.into_raw_fd(),)))
            }
            Received::File(file) => {
                let shared = self.py.import("taskfork.shared");
                shared.and_then(|shared| shared.call_method1("opened", (file.into_raw_fd(),)))
            }
        };
        made.map_err(of_python)
    }
}

/// Bytes in memory that both sides share, as the receiver wants them.
fn bytes_of<'py>(py: Python<'py>, shared: Shared) -> PyResult<Bound<'py, PyAny>> {
    let blob = passed::are_noted().then(|| shared.to_blob());
    if are_views() {
        let bytes = shared.into_bytes();
        if let Some(blob) = blob {
            passed::note(blob, bytes.as_ptr(), None);
        }
        return view(py, bytes);
    }
    let fill = |target: &mut [_]| shared.copy_to(target);
    if are_writable() {
        return new_bytearray(py, shared.len(), fill);
    }
    let made = new_bytes(py, shared.len(), fill)?;
    if let (Some(blob), Ok(bytes)) = (blob, made.cast::<PyBytes>()) {
        passed::note(blob, bytes.as_bytes().as_ptr(), Some(made.clone().unbind()));
    }
    Ok(made)
}

/// Whether nobody can choose keys with the same hash: each process hashes texts and bytes in its own way.
fn has_secret_hash(key: &Bound<'_, PyAny>) -> bool {
    key.is_instance_of::<PyString>() || key.is_instance_of::<PyBytes>()
}

fn hash<E: Error>(key: &Bound<'_, PyAny>) -> Result<u64, E> {
    key.hash().map(|hash| hash as u64).map_err(of_python)
}

fn places_of<E: Error>(map: &Bound<'_, PyDict>) -> Result<Places, E> {
    let mut places = Places::default();
    for (key, _) in map.iter() {
        places.insert(hash(&key)?).map_err(refusal)?;
    }
    Ok(places)
}

fn insert<E: Error>(
    map: &Bound<'_, PyDict>,
    places: &mut Places,
    key: Bound<'_, PyAny>,
    value: Bound<'_, PyAny>,
) -> Result<(), E> {
    let (hash, before) = (hash(&key)?, map.len());
    places.look_for(hash).map_err(refusal)?;
    map.set_item(key, value).map_err(of_python)?;
    if map.len() > before {
        places.insert(hash).map_err(refusal)?;
    }
    Ok(())
}

fn refusal<E: Error>(_: Collisions) -> E {
    E::custom("a map has keys whose hashes collide, so that a `dict` of them would take too long")
}
