//! Copies of buffers that may change before they are sent, such as those of arrays.
//!
//! A call keeps its arguments while it runs, because it may be made again on another worker. So its result needs memory
//! beside the copy, and an allocator gives what has become free by both back to the system after each call. New memory costs a page fault
//! for each page, which is several times what copying takes. Therefore one copy's memory is kept for the next one.

use std::sync::{Mutex, TryLockError};

use bytes::Bytes;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyMemoryView};

use crate::sys::fill_from;

/// Shorter copies are left to the allocator, which does not ask the system for each of them.
const LEAST: usize = 1 << 20;

/// Memory of this length or less is kept.
const MOST: usize = 64 << 20;

static SPARE: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Changes the memory that is kept. Nothing if another thread does that, which may have been when this process was forked.
fn with_spare<T>(change: impl FnOnce(&mut Vec<u8>) -> T) -> Option<T> {
    match SPARE.try_lock() {
        Ok(mut spare) => Some(change(&mut spare)),
        Err(TryLockError::Poisoned(spare)) => Some(change(&mut spare.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Bytes whose memory is used again.
struct Kept(Vec<u8>);

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.0);
        if memory.capacity() > MOST {
            return;
        }
        // What is not kept is freed outside of the lock.
        let _unwanted = with_spare(|spare| match memory.capacity() > spare.capacity() {
            true => std::mem::replace(spare, memory),
            false => memory,
        });
    }
}

/// A copy of the elements of a buffer, in their order.
pub(crate) enum Copied<'py> {
    Bytes(Bound<'py, PyBytes>),
    Kept(Bytes),
}

impl<'py> Copied<'py> {
    pub(crate) fn of(memory: &Bound<'py, PyMemoryView>) -> PyResult<Self> {
        let length: usize = memory.getattr("nbytes")?.extract()?;
        if length >= LEAST {
            // Only contiguous elements of a type that C has can be seen as bytes.
            if let Ok(bytes) = memory.call_method1("cast", ("B",)) {
                let mut target = with_spare(std::mem::take).unwrap_or_default();
                target.resize(length, 0);
                return Ok(Self::Kept(Bytes::from_owner(Kept(fill_from(target, &bytes)?))));
            }
        }
        // In the order of the elements, also if they are not contiguous.
        Ok(Self::Bytes(memory.call_method0("tobytes")?.cast_into::<PyBytes>()?))
    }
}
