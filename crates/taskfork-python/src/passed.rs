//! Long bytes of a worker's call that came in memory which it shares with its client.
//!
//! A method may return them, or an array that is a view of them. They are not copied then: the answer refers to the client's own memory.
//! What is known of them is where they are: in that memory, or in `bytes`, which nobody can change.

use std::cell::{Cell, RefCell};

use pyo3::prelude::*;
use taskfork::__private::first_bytes;
use taskfork::Blob;

thread_local! {
    /// Those of the running call.
    static PASSED: RefCell<Vec<Passed>> = const { RefCell::new(Vec::new()) };

    /// Whether its arguments are decoded now. The method may decode much else.
    static ARE_DECODED: Cell<bool> = const { Cell::new(false) };
}

struct Passed {
    /// Where the method has them.
    start: usize,
    blob: Blob,
    /// The object that has them there, so that nothing else comes to that place.
    _object: Option<Py<PyAny>>,
}

/// Notes bytes of the call. `object` has a copy of them, if there is one, at `start`.
pub(crate) fn note(blob: Blob, start: *const u8, object: Option<Py<PyAny>>) {
    let passed = Passed { start: start as usize, blob, _object: object };
    PASSED.with_borrow_mut(|all| all.push(passed));
}

/// Whether bytes are noted.
pub(crate) fn are_noted() -> bool {
    ARE_DECODED.get()
}

/// The bytes at this place, if they are those of the call from the first one on.
pub(crate) fn find(start: *const u8, length: usize) -> Option<Blob> {
    PASSED.with_borrow(|passed| {
        let is_same =
            |passed: &&Passed| passed.start == start as usize && length <= passed.blob.len();
        let found = passed.iter().find(is_same)?;
        Some(first_bytes(&found.blob, length))
    })
}

/// What is noted of a call, until this is dropped, which must be before the answer is sent.
pub(crate) struct OfCall(());

impl OfCall {
    /// Decodes the arguments of a call.
    pub(crate) fn of<T>(decode: impl FnOnce() -> T) -> (Self, T) {
        let of_call = Self(());
        ARE_DECODED.set(true);
        let decoded = decode();
        ARE_DECODED.set(false);
        (of_call, decoded)
    }
}

impl Drop for OfCall {
    fn drop(&mut self) {
        ARE_DECODED.set(false);
        // Outside of the cell: an object may run code when it goes.
        let passed = PASSED.take();
        drop(passed);
    }
}
