//! What accompanies a received message: open files, and blobs in memfds or shared-memory buffers. Also blobs that are
//! slices of the message itself.
//!
//! Serde passes no context to `Deserialize`, so [`decode_with`] sets a thread-local variable while a message is decoded.
//! A `Blob` or an `OpenFile` finds its bytes or file there, by the reference that represents it in the message.

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::WireError;
use super::gather_frame::{MIN_SEGMENT, attach_file};
use super::msgpack::{Reader, put_bin_header};
use super::reference::{self, BLOB_FILE, OPEN_FILE, SHARED};
use super::scoped_local;
use super::shm::ReceivedBytes;

/// What accompanies a message.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) shared: Vec<ReceivedBytes>,
    /// The longest blob in a memfd, in bytes.
    pub(crate) max_blob: usize,
    /// The longest message with all blobs inlined, in bytes. A reference of a few bytes can stand for many.
    pub(crate) max_inlined: usize,
}

impl Attachments {
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.shared.is_empty()
    }
}

/// What a reference stands for.
#[derive(Debug)]
pub(crate) enum Attachment {
    OpenFile(Arc<OwnedFd>),
    /// A memfd that contains the bytes of a blob.
    Memfd(Arc<OwnedFd>),
    Shared(ReceivedBytes),
}

/// Maps a memfd of at most this many bytes.
pub(crate) type MapMemfd = fn(&OwnedFd, usize) -> Result<Bytes, String>;

/// The message that is being decoded.
struct Decoding {
    message: Option<Bytes>,
    files: Vec<File>,
    shared: Vec<Shared>,
    map: MapMemfd,
    /// See [`Attachments::max_blob`].
    max_blob: usize,
    /// See [`Attachments::max_inlined`].
    max_inlined: usize,
    /// The length of a blob that exceeded `max_blob`.
    oversize: Option<usize>,
    /// How many bytes of shared memory have been copied.
    copied: usize,
}

struct File {
    file: Option<Arc<OwnedFd>>,
    is_taken: bool,
    /// It was taken as an open file.
    is_open_file: bool,
}

struct Shared {
    bytes: ReceivedBytes,
    is_taken: bool,
}

thread_local! {
    static DECODING: Cell<Option<Box<Decoding>>> = const { Cell::new(None) };
}

/// Accesses the thread-local variable, so that the first message does not wait for the dynamic loader.
pub(crate) fn init_thread_locals() {
    DECODING.set(None);
}

/// Runs `decode`, which decodes `message`: [`slice_or_copy`] returns slices of it, and [`take`] its attachments.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn decode_with<T>(
    message: Option<&Bytes>,
    attachments: Attachments,
    map: MapMemfd,
    decode: impl FnOnce() -> T,
) -> T {
    let message = message.filter(|message| message.len() >= MIN_SEGMENT);
    if message.is_none() && attachments.is_empty() && !is_decoding() {
        return decode();
    }
    let Attachments { files, shared, max_blob, max_inlined } = attachments;
    let file = |file| File { file: Some(Arc::new(file)), is_taken: false, is_open_file: false };
    let decoding = Box::new(Decoding {
        message: message.cloned(),
        files: files.into_iter().map(file).collect(),
        shared: shared.into_iter().map(|bytes| Shared { bytes, is_taken: false }).collect(),
        map,
        max_blob,
        max_inlined,
        oversize: None,
        copied: 0,
    });
    scoped_local::with(&DECODING, decoding, decode).0
}

fn with_decoding<T: Default>(access: impl FnOnce(&mut Decoding) -> T) -> T {
    DECODING.with(|variable| {
        let Some(mut decoding) = variable.take() else { return T::default() };
        let returned = access(&mut decoding);
        variable.set(Some(decoding));
        returned
    })
}

/// Whether a message is being decoded that is long or has attachments. The message that is decoded within it, as in a
/// worker that is itself a client, must not find them.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
fn is_decoding() -> bool {
    DECODING.with(|variable| {
        let decoding = variable.take();
        let is_decoding = decoding.is_some();
        variable.set(decoding);
        is_decoding
    })
}

/// The longest blob in a memfd that the message being decoded may have, in bytes.
pub(crate) fn max_blob() -> usize {
    with_decoding(|decoding| decoding.max_blob)
}

/// Records that the message being decoded has a blob of this length, which exceeds the limit.
pub(crate) fn record_oversize(length: usize) {
    with_decoding(|decoding| decoding.oversize = Some(length));
}

/// Fails if the sender of the message being decoded has exceeded the limit of blobs.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn check_blob_limit() -> Result<(), WireError> {
    match with_decoding(|decoding| decoding.oversize.map(|length| (length, decoding.max_blob))) {
        Some((length, limit)) => Err(WireError::BlobTooLarge { length, limit }),
        None => Ok(()),
    }
}

/// Whether the message being decoded has attachments.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn is_any() -> bool {
    with_decoding(|decoding| !decoding.files.is_empty() || !decoding.shared.is_empty())
}

const MISSING: &str = "a file that did not come with its message";

/// Takes the attachment that a reference stands for. A second reference to it is an error.
pub(crate) fn take(kind: i8, index: &[u8]) -> Result<Attachment, &'static str> {
    let index =
        index.try_into().map(u32::from_be_bytes).map_err(|_| "a file's index is 4 bytes")?;
    let taken = with_decoding(|decoding| {
        let index = usize::try_from(index).ok()?;
        if kind == SHARED {
            let shared = decoding.shared.get_mut(index)?;
            let was_taken = std::mem::replace(&mut shared.is_taken, true);
            return (!was_taken).then(|| Attachment::Shared(shared.bytes.clone()));
        }
        let entry = decoding.files.get_mut(index)?;
        let file = entry.file.clone().filter(|_| !entry.is_taken)?;
        (entry.is_taken, entry.is_open_file) = (true, kind == OPEN_FILE);
        Some(if entry.is_open_file { Attachment::OpenFile(file) } else { Attachment::Memfd(file) })
    });
    match kind {
        BLOB_FILE | OPEN_FILE | SHARED => taken.ok_or(MISSING),
        _ => Err("an extension type that is not known"),
    }
}

/// Makes all attachments available again, because the values are decoded once more.
pub(crate) fn release() {
    with_decoding(|decoding| {
        decoding.files.iter_mut().for_each(|file| file.is_taken = false);
        decoding.shared.iter_mut().for_each(|shared| shared.is_taken = false);
        decoding.copied = 0;
    });
}

/// Counts bytes of shared memory that whoever decodes the message is about to copy. Many references to one buffer can stand
/// for more than all buffers have.
///
/// # Errors
/// If the message would exceed [`Attachments::max_inlined`] with these bytes in it.
pub(crate) fn count_copy(length: usize) -> Result<(), String> {
    let (length, limit) = with_decoding(|decoding| {
        decoding.copied = decoding.copied.saturating_add(length);
        (decoding.copied, decoding.max_inlined)
    });
    if length <= limit { Ok(()) } else { Err(too_long(length, limit)) }
}

fn too_long(length: usize, limit: usize) -> String {
    format!(
        "with the bytes of blobs in their places the message has {length} bytes or more, and the limit is {limit}; only a \
         `Blob` may be longer"
    )
}

/// Decodes values of the message being decoded. If they fail, or do not take all attachments, the program may want
/// a blob as another type of bytes: then they are decoded again with all blobs inlined.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn decode<T, E: From<String>>(
    values: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<T, E> {
    if !is_any() {
        return decode(values);
    }
    let attempt = |values: &[u8]| {
        release();
        decode(values)
    };
    let mut decoded = attempt(values);
    let all_taken = with_decoding(|decoding| {
        decoding.files.iter().all(|file| file.is_taken)
            && decoding.shared.iter().all(|shared| shared.is_taken)
    });
    if !(decoded.is_ok() && all_taken)
        && let Some(inlined) = inline_blobs(values).transpose()
    {
        decoded = attempt(&inlined?);
    }
    if decoded.is_ok() {
        // The value owns the open file alone.
        with_decoding(|decoding| {
            let open = decoding.files.iter_mut().filter(|file| file.is_taken && file.is_open_file);
            open.for_each(|file| file.file = None);
        });
    }
    decoded
}

/// A copy of the values in which the bytes of blobs replace their references; `None` without such references.
///
/// # Errors
/// If an attachment is missing or cannot be mapped, or if the copy would exceed [`Attachments::max_inlined`].
fn inline_blobs(values: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let (mut out, mut is_changed) = (Vec::with_capacity(values.len()), false);
    let (limit, max_blob) = with_decoding(|decoding| (decoding.max_inlined, decoding.max_blob));
    let mut values = Reader::new(values);
    while let Some(token) = values.token().map_err(|error| error.to_string())? {
        let bytes = match reference::parse(token) {
            Some((SHARED, index)) => with_decoding(|decoding| {
                decoding.shared.get(index).map(|shared| shared.bytes.clone().into_shared().bytes)
            })
            .ok_or(MISSING)?,
            Some((BLOB_FILE, index)) => {
                let found = with_decoding(|decoding| {
                    Some((decoding.map, decoding.files.get(index)?.file.clone()?))
                });
                let (map, file) = found.ok_or(MISSING)?;
                map(&file, max_blob)?
            }
            _ => {
                out.extend_from_slice(token);
                continue;
            }
        };
        let length = out.len().saturating_add(bytes.len());
        let header = u32::try_from(bytes.len()).ok().filter(|_| length <= limit);
        put_bin_header(&mut out, header.ok_or_else(|| too_long(length, limit))?);
        out.extend_from_slice(&bytes);
        is_changed = true;
    }
    Ok(is_changed.then_some(out))
}

/// Appends values of the message being decoded to one that is being written, together with their files. `share`
/// appends the reference to a file that contains the bytes of a blob.
pub(crate) fn forward(
    values: &[u8],
    out: &mut Vec<u8>,
    share: impl Fn(Arc<OwnedFd>, &mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    if !is_any() {
        out.extend_from_slice(values);
        return Ok(());
    }
    let mut values = Reader::new(values);
    while let Some(token) = values.token().map_err(|error| error.to_string())? {
        let Some((kind @ (BLOB_FILE | OPEN_FILE), _)) = reference::parse(token) else {
            out.extend_from_slice(token);
            continue;
        };
        match take(kind, &token[2..])? {
            Attachment::Memfd(file) => share(file, out)?,
            Attachment::OpenFile(file) => {
                if let Some((_, index)) = attach_file(file) {
                    out.extend_from_slice(&token[..2]);
                    out.extend(index);
                }
            }
            Attachment::Shared(_) => {}
        }
    }
    Ok(())
}

/// The bytes of a blob that were found in the message being decoded: a slice of it if they are long, else a copy.
pub(crate) fn slice_or_copy(found: &[u8]) -> Bytes {
    let slice = with_decoding(|decoding| {
        let message = decoding.message.as_ref().filter(|_| found.len() >= MIN_SEGMENT)?;
        message.as_ptr_range().contains(&found.as_ptr()).then(|| message.slice_ref(found))
    });
    slice.unwrap_or_else(|| Bytes::copy_from_slice(found))
}

#[cfg(test)]
mod tests {
    use super::super::gather_frame::collect_segments;
    use super::super::shm::SharedBytes;
    use super::*;

    #[test]
    fn references_cannot_expand_a_message_beyond_its_limit() {
        let shared =
            || ReceivedBytes::Stable(SharedBytes { bytes: vec![7; 100_000].into(), origin: None });
        // Three references to the same bytes.
        let values = b"\x93\xd6\x03\0\0\0\0\xd6\x03\0\0\0\0\xd6\x03\0\0\0\0";
        let length = |max_inlined| {
            let attachments =
                Attachments { shared: vec![shared()], max_inlined, ..Attachments::default() };
            let read = || decode(values, |values| Ok::<_, String>(values.len()));
            decode_with(None, attachments, |_, _| Err(String::new()), read)
        };
        let error = length(299_999).unwrap_err();
        assert!(error.contains("the limit is 299999; only a `Blob`"), "{error}");
        assert!(length(301_000).is_ok_and(|length| length > 300_000));
    }

    #[test]
    fn copies_cannot_exceed_the_limit_of_the_message() {
        let counted = |times| {
            let attachments = Attachments { max_inlined: 299_999, ..Attachments::default() };
            let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let attachments = Attachments { files: vec![file], ..attachments };
            let count = || (0..times).try_for_each(|_| count_copy(100_000));
            decode_with(None, attachments, |_, _| Err(String::new()), count)
        };
        assert_eq!(counted(2), Ok(()));
        assert!(counted(3).is_err_and(|error| error.contains("the limit is 299999")));
    }

    #[test]
    fn forwarded_files_get_new_references() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let attachments = |count| Attachments {
            files: std::iter::repeat_with(open).take(count).collect(),
            ..Attachments::default()
        };
        // A list of a string, a blob and an open file; then another extension type.
        let values = b"\x93\xa1a\xd6\x01\0\0\0\x01\xd6\x02\0\0\0\0\xd6\x05\0\0\0\0";
        let mut out = b"before".to_vec();
        let share = |_, out: &mut Vec<u8>| {
            out.extend(b"\xc4\x01b");
            Ok(())
        };
        let (passed, _, files) = collect_segments(|| {
            decode_with(
                None,
                attachments(2),
                |_, _| Err(String::new()),
                || forward(values, &mut out, share),
            )
        });
        passed.unwrap();
        assert_eq!(out, b"before\x93\xa1a\xc4\x01b\xd6\x02\0\0\0\0\xd6\x05\0\0\0\0");
        assert_eq!(files.len(), 1);
        // The same file twice.
        let twice = b"\xd6\x01\0\0\0\0\xd6\x01\0\0\0\0";
        let again = decode_with(
            None,
            attachments(1),
            |_, _| Err(String::new()),
            || forward(twice, &mut Vec::new(), share),
        );
        assert_eq!(again, Err("a file that did not come with its message".to_owned()));
        // A message without attachments.
        let mut same = Vec::new();
        forward(values, &mut same, share).unwrap();
        assert_eq!(same, values);
    }
}
