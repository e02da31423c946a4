//! A slice of bytes as serde should see it.

use serde::{Serialize, Serializer};

/// Bytes that are encoded as binary data, and not as a list of numbers.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct ByteSlice<'a>(pub &'a [u8]);

impl Serialize for ByteSlice<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
