//! What comes beside the bytes of a message, and what stands for it there: open files, and blobs in memory
//! that is handed over or lent. Also blobs that are parts of the message itself.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use rmp::Marker;

use super::WireError;
use super::gather_frame::{
    BLOB_FILE, LENT, MIN_SEGMENT, OPEN_FILE, RestoreThreadLocal, attach_file,
};
use super::msgpack::{Reader, put_bin_header};
use super::shm::SharedBytes;

/// What comes beside the bytes of a message.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) lent: Vec<SharedBytes>,
    /// How long a blob in a file may be.
    pub(crate) max_blob: usize,
    /// How long the message may become when blobs are put into their places, as a few bytes can stand for many.
    pub(crate) most: usize,
}

impl Attachments {
    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.lent.is_empty()
    }
}

/// What something stands for in a message.
#[derive(Debug)]
pub(crate) enum Attachment {
    OpenFile(Arc<OwnedFd>),
    /// Memory that is the bytes of a blob.
    Memfd(Arc<OwnedFd>),
    Shared(SharedBytes),
}

/// Gives the bytes of memory, if it can be mapped and there are no more than so many.
pub(crate) type Map = fn(&OwnedFd, usize) -> Result<Bytes, String>;

/// The message that is being read.
struct Source {
    message: Option<Bytes>,
    files: Vec<File>,
    /// Gives the bytes of a file that is memory.
    map: Map,
    /// See [`Enclosed::max_blob`].
    max_blob: usize,
    /// See [`Enclosed::most`].
    most: usize,
    /// The length of a blob that was over the limit.
    oversize: Option<usize>,
    /// Whether each has been found.
    lent: Vec<(SharedBytes, bool)>,
}

struct File {
    file: Option<Arc<OwnedFd>>,
    found: bool,
    /// It was found as an open file.
    is_open: bool,
}

thread_local! {
    static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Has the loader look up what a thread's first message needs.
pub(super) fn init_thread_locals() {
    SOURCE.set(None);
}

/// Has [`taken`] find its bytes in `message` while `read` runs, and [`find`] what came beside it.
pub(crate) fn decode_with<T>(
    message: Option<&Bytes>,
    attachments: Attachments,
    map: Map,
    read: impl FnOnce() -> T,
) -> T {
    if message.is_none() && attachments.is_empty() {
        return read();
    }
    let Attachments { files, lent, max_blob, most } = attachments;
    let file = |file| File { file: Some(Arc::new(file)), found: false, is_open: false };
    let source = Source {
        message: message.cloned(),
        files: files.into_iter().map(file).collect(),
        map,
        max_blob,
        most,
        oversize: None,
        lent: lent.into_iter().map(|lent| (lent, false)).collect(),
    };
    let _restore = RestoreThreadLocal(&SOURCE, SOURCE.replace(Some(source)));
    read()
}

fn with_source<T: Default>(look: impl FnOnce(&mut Source) -> T) -> T {
    SOURCE.with_borrow_mut(|source| source.as_mut().map(look).unwrap_or_default())
}

/// How long a blob in a file may be that came beside the message that is being read.
pub(crate) fn max_blob() -> usize {
    with_source(|source| source.max_blob)
}

/// A blob of that length came beside the message that is being read, which is over the limit.
pub(crate) fn record_oversize(length: usize) {
    with_source(|source| source.oversize = Some(length));
}

/// Whether the sender of the message that is being read has kept to the limit of blobs.
pub(crate) fn check_blob_limit() -> Result<(), WireError> {
    match with_source(|source| source.oversize.map(|length| (length, source.max_blob))) {
        Some((length, limit)) => Err(WireError::BlobTooLarge { length, limit }),
        None => Ok(()),
    }
}

/// Whether anything came beside the message that is being read.
pub(crate) fn is_any() -> bool {
    with_source(|source| !source.files.is_empty() || !source.lent.is_empty())
}

/// What came beside the message that is being read, by what stands for it there. It is found once.
pub(crate) fn take(kind: i8, index: &[u8]) -> Result<Attachment, &'static str> {
    let index =
        index.try_into().map(u32::from_be_bytes).map_err(|_| "a file's index is 4 bytes")?;
    let found = with_source(|source| {
        let index = usize::try_from(index).ok()?;
        if kind == LENT {
            let (lent, found) = source.lent.get_mut(index)?;
            return (!std::mem::replace(found, true)).then(|| Attachment::Shared(lent.clone()));
        }
        let file = source.files.get_mut(index)?;
        let found = file.file.clone().filter(|_| !file.found)?;
        (file.found, file.is_open) = (true, kind == OPEN_FILE);
        Some(if file.is_open { Attachment::OpenFile(found) } else { Attachment::Memfd(found) })
    });
    match kind {
        BLOB_FILE | OPEN_FILE | LENT => found.ok_or("a file that did not come with its message"),
        _ => Err("an extension type that is not known"),
    }
}

/// Decodes values of the message that is being read. A blob that came beside it, and which is wanted as bytes
/// of another kind, is put into its place first, if the message does not become too long for that.
pub(crate) fn decode<T, E: From<String>>(
    values: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
) -> Result<T, E> {
    if !is_any() {
        return decode(values);
    }
    let once = |values: &[u8]| {
        with_source(|source| {
            source.files.iter_mut().for_each(|file| file.found = false);
            source.lent.iter_mut().for_each(|(_, found)| *found = false);
        });
        decode(values)
    };
    let mut decoded = once(values);
    let all_found = with_source(|source| {
        source.files.iter().all(|file| file.found) && source.lent.iter().all(|(_, found)| *found)
    });
    if !(decoded.is_ok() && all_found)
        && let Some(whole) = whole(values).transpose()
    {
        decoded = once(&whole?);
    }
    if decoded.is_ok() {
        // Whoever has an open file is the only one to have it.
        with_source(|source| {
            let open = source.files.iter_mut().filter(|file| file.found && file.is_open);
            open.for_each(|file| file.file = None);
        });
    }
    decoded
}

/// The same values with the bytes of all blobs in their places; nothing if they are there already. An error if they
/// cannot be, or would be too many.
fn whole(values: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let (mut out, mut changed) = (Vec::with_capacity(values.len()), false);
    let (most, max_blob) = with_source(|source| (source.most, source.max_blob));
    let missing = || "a file that did not come with its message".to_owned();
    let mut values = Reader::new(values);
    while let Some(piece) = values.piece().map_err(|error| error.to_string())? {
        let bytes = match reference(piece) {
            Some((LENT, index)) => {
                with_source(|source| source.lent.get(index).map(|(lent, _)| lent.bytes.clone()))
                    .ok_or_else(missing)?
            }
            Some((BLOB_FILE, index)) => {
                let found = with_source(|source| {
                    Some((source.map, source.files.get(index)?.file.clone()?))
                });
                let (map, file) = found.ok_or_else(missing)?;
                map(&file, max_blob)?
            }
            _ => {
                out.extend_from_slice(piece);
                continue;
            }
        };
        let length = out.len().saturating_add(bytes.len());
        let header = u32::try_from(bytes.len()).ok().filter(|_| length <= most);
        put_bin_header(&mut out, header.ok_or_else(|| {
            format!(
                "with the bytes of blobs in their places the message has {length} bytes or more, and the limit is \
                 {most}; only a `Blob` may be longer"
            )
        })?);
        out.extend_from_slice(&bytes);
        changed = true;
    }
    Ok(changed.then_some(out))
}

/// What a piece of a message stands for, if it is a reference.
fn reference(piece: &[u8]) -> Option<(i8, usize)> {
    let (&[marker, kind], index) = piece.split_first_chunk()?;
    let index = u32::from_be_bytes(index.try_into().ok()?);
    (Marker::from_u8(marker) == Marker::FixExt4)
        .then_some((kind.cast_signed(), usize::try_from(index).ok()?))
}

/// Appends values of the message that is being read to one that is written. Files that came with it
/// go on with that: `share` writes what stands for one that is the bytes of a blob.
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
    while let Some(piece) = values.piece().map_err(|error| error.to_string())? {
        let Some((kind @ (BLOB_FILE | OPEN_FILE), _)) = reference(piece) else {
            out.extend_from_slice(piece);
            continue;
        };
        match take(kind, &piece[2..])? {
            Attachment::Memfd(file) => share(file, out)?,
            Attachment::OpenFile(file) => {
                if let Some((_, index)) = attach_file(file) {
                    out.extend_from_slice(&piece[..2]);
                    out.extend(index);
                }
            }
            Attachment::Shared(_) => {}
        }
    }
    Ok(())
}

/// Bytes that were found in a message: as a part of it, if they are long.
pub(crate) fn slice_or_copy(found: &[u8]) -> Bytes {
    let part = with_source(|source| {
        let message = source.message.as_ref().filter(|_| found.len() >= MIN_SEGMENT)?;
        message.as_ptr_range().contains(&found.as_ptr()).then(|| message.slice_ref(found))
    });
    part.unwrap_or_else(|| Bytes::copy_from_slice(found))
}

#[cfg(test)]
mod tests {
    use super::super::gather_frame::collect_segments;
    use super::*;

    #[test]
    fn a_few_bytes_cannot_become_any_number() {
        let lent = || SharedBytes {
            bytes: Bytes::from(vec![7; 100_000]),
            origin: super::super::shm::Origin { pool: 1, id: 1, is_local: false },
        };
        // The same one, three times.
        let values = b"\x93\xd6\x03\0\0\0\0\xd6\x03\0\0\0\0\xd6\x03\0\0\0\0";
        let length = |most| {
            let attachments = Attachments { lent: vec![lent()], most, ..Attachments::default() };
            let read = || decode(values, |values| Ok::<_, String>(values.len()));
            decode_with(None, attachments, |_, _| Err(String::new()), read)
        };
        let error = length(299_999).unwrap_err();
        assert!(error.contains("the limit is 299999; only a `Blob`"), "{error}");
        assert!(length(301_000).is_ok_and(|length| length > 300_000));
    }

    #[test]
    fn what_stands_for_files_is_written_anew() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let attachments = |count| Attachments {
            files: std::iter::repeat_with(open).take(count).collect(),
            ..Attachments::default()
        };
        // A list of a text, a file of bytes and an open file; then what only looks like one.
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
        // One file cannot be two.
        let twice = b"\xd6\x01\0\0\0\0\xd6\x01\0\0\0\0";
        let again = decode_with(
            None,
            attachments(1),
            |_, _| Err(String::new()),
            || forward(twice, &mut Vec::new(), share),
        );
        assert_eq!(again, Err("a file that did not come with its message".to_owned()));
        // Nothing has come.
        let mut same = Vec::new();
        forward(values, &mut same, share).unwrap();
        assert_eq!(same, values);
    }
}
