//! Where the bytes of buffers, such as those of arrays, go when they are encoded. They may change later, so what is sent is a copy.
//!
//! A call keeps its arguments while it runs, because it may be made again on another worker. So its result needs memory
//! beside the copy, and an allocator gives what has become free by both back to the system after each call. New memory costs a page fault
//! for each page, which is several times what copying takes. Therefore one copy's memory is kept for the next one.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, TryLockError};

use bytes::Bytes;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use taskfork::__private::borrowed;
use taskfork::Blob;
use taskfork::blob::BlobMut;

use crate::passed;
use crate::sys::Buffer;

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

/// Memory for a copy of this length.
fn memory(length: usize) -> Vec<u8> {
    if length < LEAST {
        return Vec::new();
    }
    let mut memory = with_spare(std::mem::take).unwrap_or_default();
    memory.clear();
    memory
}

/// Bytes whose memory is used again.
struct Kept(Vec<u8>);

impl Kept {
    fn bytes(copy: Vec<u8>) -> Bytes {
        if copy.len() < LEAST { copy.into() } else { Bytes::from_owner(Self(copy)) }
    }
}

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

/// A copy of bytes that are borrowed.
pub(crate) fn copy_of(bytes: &[u8]) -> Bytes {
    let mut copy = memory(bytes.len());
    copy.extend_from_slice(bytes);
    Kept::bytes(copy)
}

/// Where the bytes of buffers go.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a, 'py> {
    /// Memory of this process.
    Copy,
    /// They stay where they are until the call has been made. Most calls have been sent by then, so that their bytes have been copied
    /// to memory that is shared with the worker.
    Borrowed(&'a Borrowed<'py>),
    /// Memory that is shared with the client, if this returns some.
    Shared(&'a dyn Fn(usize) -> Option<BlobMut>),
}

impl<'py> Target<'_, 'py> {
    /// A blob of the elements of a buffer, in their order.
    pub(crate) fn blob(self, buffer: Buffer<'py>) -> PyResult<Blob> {
        match self {
            Self::Borrowed(borrowed) if buffer.is_contiguous() => {
                return Ok(borrowed.blob(buffer));
            }
            Self::Shared(alloc) => {
                if buffer.is_contiguous()
                    && let Some(blob) = passed::find(buffer.start(), buffer.len())
                {
                    return Ok(blob);
                }
                if let Some(mut memory) = alloc(buffer.len()) {
                    buffer.copy_to(&mut memory)?;
                    return memory.freeze().map_err(PyOSError::new_err);
                }
            }
            Self::Borrowed(_) | Self::Copy => {}
        }
        let copy = buffer.append_to(memory(buffer.len()))?;
        Ok(Kept::bytes(copy).into())
    }
}

/// The buffers that a call reads until it has been made.
#[derive(Default)]
pub(crate) struct Borrowed<'py>(RefCell<Vec<(Buffer<'py>, Arc<()>)>>);

impl<'py> Borrowed<'py> {
    fn blob(&self, buffer: Buffer<'py>) -> Blob {
        let token = Arc::new(());
        let blob = borrowed(Bytes::from_owner(buffer.view(token.clone())));
        self.0.borrow_mut().push((buffer, token));
        blob
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        for (buffer, token) in self.0.get_mut().drain(..) {
            // The memory must stay as long as something reads it, which is not so once the call owns its arguments.
            if Arc::strong_count(&token) > 1 {
                std::mem::forget(buffer);
            }
        }
    }
}
