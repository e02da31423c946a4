//! Arguments and results that are not copied: byte strings and open files.

use std::borrow::Borrow;
use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::shm_pool::ShmBufferMut;
use crate::sys::{Sealed, SealedError, Writable};
use crate::wire::attachments::{self, Attachment, Attachments};
use crate::wire::byte_slice::ByteSlice;
use crate::wire::gather_frame::{self, Backing};
use crate::wire::json_bytes;
use crate::wire::nested_option;
use crate::wire::shm::{ReceivedBytes, SharedBytes};

/// A byte string that client and worker exchange without copying it.
///
/// A blob can be an argument, a result, or any part of one. The sender writes it to the socket from
/// where it lies, and a received blob is a slice of the received message. A blob of less than 16 KiB
/// is copied, because that is faster. Clones share the bytes.
///
/// The other side can also receive it as another type for binary data, such as those of `serde_bytes`,
/// or as a [`Value`](crate::client::Value). A text or a list of numbers can be received as a blob.
///
/// Through unix sockets both sides can share memory, and long blobs are not sent at all:
///
/// - A blob made from a [`BlobMut`] is mapped by the other side, in constant time. So is a received
///   blob of this kind that is sent on. The receiver limits its length by
///   [`ClientBuilder::max_blob`](crate::client::ClientBuilder::max_blob) and
///   [`ServerBuilder::max_blob`](crate::ServerBuilder::max_blob).
/// - Any other long blob is copied once, into memory that the connection keeps and reuses. This
///   begins with the third long blob of a connection. A blob received in this way is not copied when it
///   returns to its sender. The amount of memory is limited by
///   [`ClientBuilder::shared_memory`](crate::client::ClientBuilder::shared_memory) and
///   [`ServerBuilder::shared_memory`](crate::ServerBuilder::shared_memory). The sender does not reuse the
///   memory of a received blob until the blob is dropped.
///
/// Memory of the second kind is shared only between processes of one user, and the kernel does not keep
/// the sender from writing to it. If the sender runs an attacker's code, the bytes of a received blob
/// can change, and code that reads them as `&[u8]` has undefined behaviour. For such workers set
/// [`ClientBuilder::copy_shared_memory`](crate::client::ClientBuilder::copy_shared_memory). Memory of the
/// first kind is sealed and cannot change.
///
/// A blob that is a slice of a message keeps the whole message in memory.
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
#[derive(Clone, Default)]
pub struct Blob {
    bytes: Bytes,
    backing: Backing<Arc<OwnedFd>>,
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, backing: Backing::Private }
    }
}

impl From<SharedBytes> for Blob {
    fn from(SharedBytes { bytes, origin }: SharedBytes) -> Self {
        Self { bytes, backing: origin.map_or(Backing::Private, Backing::Shared) }
    }
}

impl Blob {
    /// Maps a memfd received with the message, if it is sealed and not too long.
    fn in_file(file: Arc<OwnedFd>) -> Result<Self, String> {
        let bytes = map(&file, attachments::max_blob())?;
        Ok(Self { bytes, backing: Backing::Memfd(file) })
    }
}

impl From<Blob> for Bytes {
    fn from(blob: Blob) -> Self {
        blob.bytes
    }
}

impl From<Blob> for Vec<u8> {
    /// Returns the bytes. It copies them if they are shared.
    fn from(blob: Blob) -> Self {
        blob.bytes.into()
    }
}

impl Deref for Blob {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
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

impl PartialEq for Blob {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Blob {}

impl Hash for Blob {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Blob({} bytes)", self.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        gather_frame::offer_bytes(&self.bytes, &self.backing, || serializer.serialize_bytes(self))
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
        Ok(attachments::slice_or_copy(bytes).into())
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
        Ok(Bytes::copy_from_slice(bytes).into())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
        Ok(bytes.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Blob, E> {
        json_bytes::blob_bytes(text).map(Blob::from)
    }

    /// Decodes an extension type, which stands for an attachment of the message.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Blob, D::Error> {
        match deserializer.deserialize_any(FoundVisitor)? {
            Attachment::OpenFile(_) => Err(D::Error::custom("expected bytes, got an open file")),
            Attachment::Shared(bytes) => Ok(bytes.into_shared().into()),
            Attachment::Memfd(file) => Blob::in_file(file).map_err(D::Error::custom),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Blob, A::Error> {
        // The peer may claim any length, so the capacity grows with the elements that arrive.
        let mut bytes = Vec::with_capacity(list.size_hint().unwrap_or(0).min(4096));
        while let Some(byte) = list.next_element()? {
            bytes.push(byte);
        }
        Ok(bytes.into())
    }
}

/// Appends values of the message being decoded to one that is being written, with their attachments.
pub(crate) fn pass_on(values: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    attachments::forward(values, out, |file, out| {
        let blob = Blob::in_file(file.clone())?;
        gather_frame::put_memfd(&blob.bytes, file, out)
            .map_err(|error| format!("a blob cannot be used: {error}"))
    })
}

/// What an extension type in a message stands for, for decoders that take values of any type.
#[derive(Debug)]
pub enum Received {
    /// Bytes in memory that both sides share.
    Bytes(Shared),
    /// A sealed memfd, which contains the bytes.
    Memory(OwnedFd),
    /// An open file.
    File(OwnedFd),
    /// An absent value within options.
    Absent,
    /// The next argument is a map of arguments by name.
    Keywords,
    /// An object of Python, as its module `pickle` has written it.
    Pickled(Vec<u8>),
}

/// Bytes in memory that both sides share. If the other side may change them, they are read once, when they are copied.
#[derive(Debug)]
pub struct Shared(ReceivedBytes);

impl Shared {
    /// How many there are.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks for that")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The bytes, which stay in that memory if only this side's own client can change them.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_shared().bytes
    }

    /// The same as a blob, which is not copied when it is sent back.
    pub fn to_blob(&self) -> Blob {
        self.0.clone().into_shared().into()
    }

    /// Copies them to `target`.
    ///
    /// # Panics
    /// If it has another length.
    pub fn copy_to(&self, target: &mut [MaybeUninit<u8>]) {
        self.0.copy_to(target);
    }
}

/// The first bytes of a blob in memory that both sides share, which are not copied either when they are sent back.
///
/// # Panics
/// If it has fewer.
pub fn first_bytes(blob: &Blob, length: usize) -> Blob {
    Blob { bytes: blob.bytes.slice(..length), backing: blob.backing.clone() }
}

/// A blob of bytes that may change once the call has been made that it is an argument of. Until then
/// [`own_arguments`](crate::__private::binding::own_arguments) must replace it.
pub fn borrowed(bytes: Bytes) -> Blob {
    Blob { bytes, backing: Backing::Borrowed }
}

/// The extension types of [`Keywords`] and [`Pickled`].
const KEYWORDS: i8 = 5;
const PICKLED: i8 = 6;

/// What stands in front of a map of arguments by name.
#[derive(Debug)]
pub struct Keywords;

impl Serialize for Keywords {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(EXTENSION, &(KEYWORDS, ByteSlice(&[])))
    }
}

/// An object of Python, as its module `pickle` has written it.
#[derive(Debug)]
pub struct Pickled<'a>(pub &'a [u8]);

impl Serialize for Pickled<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(EXTENSION, &(PICKLED, ByteSlice(self.0)))
    }
}

/// Takes what the extension type in `deserializer` stands for.
pub fn received<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Received, D::Error> {
    let owned = |file: Arc<OwnedFd>| OpenFile(file).try_into_owned().map_err(D::Error::custom);
    let Extension { kind, data } = deserializer.deserialize_any(ExtensionVisitor)?;
    match kind {
        nested_option::ABSENT => return Ok(Received::Absent),
        KEYWORDS => return Ok(Received::Keywords),
        PICKLED => return Ok(Received::Pickled(data.0.to_vec())),
        _ => {}
    }
    match attachments::take(kind, &data.0).map_err(D::Error::custom)? {
        Attachment::OpenFile(file) => Ok(Received::File(owned(file)?)),
        Attachment::Shared(bytes) => {
            attachments::count_copy(bytes.len()).map_err(D::Error::custom)?;
            Ok(Received::Bytes(Shared(bytes)))
        }
        Attachment::Memfd(file) => {
            // It must be sealed, and not longer than the limit.
            Blob::in_file(file.clone()).map_err(D::Error::custom)?;
            Ok(Received::Memory(owned(file)?))
        }
    }
}

/// A blob of the bytes in a sealed memfd.
///
/// # Errors
/// A text, if the file is none or cannot be mapped.
pub fn sealed_memory(file: OwnedFd) -> Result<Blob, String> {
    let bytes = map(&file, usize::MAX)?;
    Ok(Blob { bytes, backing: Backing::Memfd(Arc::new(file)) })
}

/// Runs `decode`. Blobs that it decodes are slices of `message`, or one of the attachments.
pub(crate) fn within<T>(
    message: Option<&Bytes>,
    attachments: Attachments,
    decode: impl FnOnce() -> T,
) -> T {
    attachments::decode_with(message, attachments, map, decode)
}

/// Maps a received memfd, if it is sealed and has at most `most` bytes.
fn map(file: &OwnedFd, most: usize) -> Result<Bytes, String> {
    match Sealed::new(file, most) {
        Ok(memory) => Ok(Bytes::from_owner(memory)),
        Err(SealedError::TooLong { length }) => {
            attachments::record_oversize(length);
            Err(format!("a blob has {length} bytes, and the limit is {most} (max_blob)"))
        }
        Err(SealedError::Unusable(error)) => Err(format!("a blob cannot be used: {error}")),
    }
}

/// Memory that a program fills in place and then passes to the other side as a [`Blob`], which maps it.
///
/// [`new`](Self::new) allocates new memory, and the first write to each page causes a page fault. This
/// pays for bytes that the program produces anyway, for example by decoding an image, and for
/// bytes sent several times. `Blob::from` is faster for bytes that exist already.
/// [`Checkout::alloc_blob`](crate::Checkout::alloc_blob) returns memory that was used before.
///
/// ```
/// use taskfork::blob::BlobMut;
/// use taskfork::Blob;
///
/// # async fn example(client: taskfork::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut image = BlobMut::new(64 << 20)?;
/// image.fill(255);
/// let image: Blob = image.freeze()?;
/// let sum: u64 = client.call("sum", (&image,)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BlobMut(Memory);

#[derive(Debug)]
enum Memory {
    New(Writable),
    /// Memory of a connection's pool.
    Lent(ShmBufferMut),
    /// Private memory, whose bytes are sent through the socket.
    Own(Vec<u8>),
}

impl From<ShmBufferMut> for BlobMut {
    fn from(buffer: ShmBufferMut) -> Self {
        Self(Memory::Lent(buffer))
    }
}

impl BlobMut {
    /// Allocates `length` zero bytes. If the limit of file sizes (`ulimit -f`) allows no shared memory
    /// of this length, the memory is private, and the bytes are sent like those of `Blob::from`.
    ///
    /// # Errors
    /// If the system has no memory or file descriptor left.
    ///
    /// ```
    /// let memory = taskfork::blob::BlobMut::new(1000)?;
    /// assert_eq!(memory.len(), 1000);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(length: usize) -> io::Result<Self> {
        match Writable::new(length) {
            Ok(memory) => Ok(Self(Memory::New(memory))),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let mut bytes = Vec::new();
                bytes.try_reserve_exact(length)?;
                bytes.resize(length, 0);
                Ok(Self(Memory::Own(bytes)))
            }
            Err(error) => Err(error),
        }
    }

    /// Converts the memory to a blob, which is immutable.
    ///
    /// # Errors
    /// If the system cannot seal or map the memory.
    ///
    /// ```
    /// # fn main() -> std::io::Result<()> {
    /// let mut bytes = taskfork::blob::BlobMut::new(1000)?;
    /// bytes[0] = 7;
    /// let blob: taskfork::Blob = bytes.freeze()?;
    /// assert_eq!((blob.len(), blob[0]), (1000, 7));
    /// # Ok(())
    /// # }
    /// ```
    pub fn freeze(self) -> io::Result<Blob> {
        match self.0 {
            Memory::Lent(buffer) => Ok(buffer.freeze().into()),
            Memory::Own(bytes) => Ok(bytes.into()),
            Memory::New(memory) => {
                let (memory, file) = memory.seal()?;
                let bytes = Bytes::from_owner(memory);
                Ok(Blob { bytes, backing: Backing::Memfd(file) })
            }
        }
    }
}

impl Deref for BlobMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Memory::New(memory) => memory.bytes(),
            Memory::Lent(memory) => memory.bytes(),
            Memory::Own(bytes) => bytes,
        }
    }
}

impl DerefMut for BlobMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Memory::New(memory) => memory.bytes_mut(),
            Memory::Lent(memory) => memory.bytes_mut(),
            Memory::Own(bytes) => bytes,
        }
    }
}

/// An open file, socket or pipe as an argument or a result. The other side receives a descriptor of the
/// same open file, as by `dup`.
///
/// This needs a unix socket. On another connection, a call with an open file fails before it is sent,
/// and a result with one is an error of the call. One call or answer carries at most 16 open files.
///
/// ```
/// use taskfork::blob::OpenFile;
/// use taskfork::Methods;
///
/// let methods = Methods::new().function("lines", |log: OpenFile| {
///     let log = std::fs::File::from(log.try_into_owned()?);
///     Ok(std::io::read_to_string(log)?.lines().count())
/// });
/// # let _: Methods<()> = methods;
///
/// # async fn example(client: taskfork::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let log = OpenFile::from(std::fs::File::open("/var/log/messages")?);
/// let lines: usize = client.call("lines", (&log,)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct OpenFile(Arc<OwnedFd>);

impl OpenFile {
    /// Returns the descriptor, or a duplicate of it if clones share it.
    ///
    /// # Errors
    /// If the process has reached its limit of open files.
    ///
    /// ```
    /// use taskfork::blob::OpenFile;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let file = OpenFile::from(std::fs::File::open("/dev/null")?);
    /// let file = std::fs::File::from(file.try_into_owned()?);
    /// # let _ = file;
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_into_owned(self) -> io::Result<OwnedFd> {
        match Arc::try_unwrap(self.0) {
            Ok(file) => Ok(file),
            Err(shared) => shared.try_clone(),
        }
    }
}

impl From<OwnedFd> for OpenFile {
    fn from(file: OwnedFd) -> Self {
        Self(Arc::new(file))
    }
}

impl From<File> for OpenFile {
    fn from(file: File) -> Self {
        OwnedFd::from(file).into()
    }
}

impl std::os::fd::AsFd for OpenFile {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Serialize for OpenFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::Error;
        let reference = gather_frame::attach_file(self.0.clone());
        let (kind, index) = reference.ok_or_else(|| {
            S::Error::custom("an open file can be an argument or a result, and part of one, only")
        })?;
        serializer.serialize_newtype_struct(EXTENSION, &(kind, Raw(index)))
    }
}

/// Serialized as an extension type of MessagePack.
const EXTENSION: &str = rmp_serde::MSGPACK_EXT_STRUCT_NAME;

struct Raw([u8; 4]);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for OpenFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_any(FoundVisitor)? {
            Attachment::OpenFile(file) => Ok(Self(file)),
            _ => Err(D::Error::custom("expected an open file, got bytes")),
        }
    }
}

/// An extension type.
struct Extension {
    kind: i8,
    data: Index,
}

struct ExtensionVisitor;

impl<'de> Visitor<'de> for ExtensionVisitor {
    type Value = Extension;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an extension type")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let missing = || A::Error::custom("an extension type without its data");
        let kind = list.next_element()?.ok_or_else(missing)?;
        Ok(Extension { kind, data: list.next_element()?.ok_or_else(missing)? })
    }
}

/// Decodes an extension type and returns the attachment that it stands for.
struct FoundVisitor;

impl<'de> Visitor<'de> for FoundVisitor {
    type Value = Attachment;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an open file")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self::Value, D::Error> {
        inner.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        let Extension { kind, data } = ExtensionVisitor.visit_seq(list)?;
        attachments::take(kind, &data.0).map_err(A::Error::custom)
    }
}

/// The data of an extension type.
struct Index(Vec<u8>);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(BlobVisitor).map(|bytes| Self(bytes.into()))
    }
}
