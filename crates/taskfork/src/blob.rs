//! Long byte strings as arguments and results.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

use bytes::Bytes;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::wire::parts;

/// Bytes that travel between client and worker without being copied.
///
/// As an argument or a result, or anywhere in one, it is sent from where it lies, and one that arrives
/// is a part of the message that was received. Below 16 KiB it is copied, which is faster. Clones
/// share the bytes. On the wire it is binary data, as that of `serde_bytes`; it also takes a text or a
/// list of numbers.
///
/// One that arrives keeps its whole message in memory, at most that of one call or answer.
///
/// ```
/// use taskfork::{Blob, Methods};
///
/// let methods = Methods::new().function("invert", |image: Blob| {
///     Ok(Blob::from(image.iter().map(|byte| !byte).collect::<Vec<u8>>()))
/// });
/// # let _: Methods<()> = methods;
///
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let image = Blob::from(vec![0; 4 << 20]);
/// let inverted: Blob = client.call("invert", (&image,)).await?;
/// assert_eq!(inverted[0], 255);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob(Bytes);

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.0
    }
}

impl From<Blob> for Vec<u8> {
    /// Copies the bytes, unless nobody else has them.
    fn from(blob: Blob) -> Self {
        blob.0.into()
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Blob({} bytes)", self.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        parts::offer(&self.0, || serializer.serialize_bytes(self))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BlobVisitor)
    }
}

struct BlobVisitor;

impl<'de> Visitor<'de> for BlobVisitor {
    type Value = Blob;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("bytes")
    }

    fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<Blob, E> {
        Ok(Blob(parts::taken(bytes)))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Blob(Bytes::copy_from_slice(bytes)))
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(bytes.into())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Blob, E> {
        self.visit_bytes(text.as_bytes())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blob, A::Error> {
        // The length that is claimed is no reason to allocate as much.
        let mut bytes = Vec::with_capacity(list.size_hint().unwrap_or(0).min(4096));
        while let Some(byte) = list.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}
