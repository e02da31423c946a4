//! Long byte strings of a message that stay where they are: on their way out they are sent from
//! there, on their way in they are parts of what was received. Nothing of them is copied.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rmp::Marker;

use super::frame::HEADER;
use super::native::put_files;
use super::pack::{Reader, put_bin_header};

/// Shorter ones are copied.
pub(crate) const LEAST: usize = 16 << 10;

/// Bytes that stand in a message behind the first `at` of the others.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) at: usize,
    pub(crate) bytes: Bytes,
    /// Which of the message's files has the same bytes, and nothing else.
    pub(crate) file: Option<usize>,
}

/// A file that goes with a message.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    file: Arc<OwnedFd>,
    /// There is nothing that could be sent in its place.
    needed: bool,
}

impl AsFd for Attached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A frame, or several: its bytes, but for its parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parted {
    pub(crate) bytes: Vec<u8>,
    /// In order.
    pub(crate) parts: Vec<Part>,
    pub(crate) files: Vec<Attached>,
}

/// How a part that has a file is written in its place, as an extension type of MessagePack with the
/// file's index.
const BLOB_FILE: i8 = 1;
/// And a file that is none of these.
const OPEN_FILE: i8 = 2;

/// So many pieces are sent at a time.
pub(crate) const SLICES: usize = 16;

impl Parted {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + total(&self.parts)
    }

    /// Whether it can only be sent with its files.
    fn needs_files(&self) -> bool {
        self.files.iter().any(|attached| attached.needed)
    }

    /// Makes it what a peer that takes so many files with a message takes, if it can be sent to it.
    pub(crate) fn fit(&mut self, start: usize, files: usize) -> Result<(), String> {
        let count = self.files.len();
        if count == 0 {
            return Ok(());
        }
        if count <= files {
            *self = self.with_files(start);
        } else if !self.needs_files() {
            self.files.clear();
        } else if files == 0 {
            return Err("open files can be sent through unix sockets only".to_owned());
        } else {
            return Err(format!("they have {count} files, and {files} can be sent"));
        }
        Ok(())
    }

    /// The same frame without the parts that are in its files, and in front of it the frame that
    /// announces these. What is before `start` is left as it is.
    fn with_files(&self, start: usize) -> Self {
        let (mut bytes, mut parts) = (self.bytes[..start].to_vec(), Vec::new());
        put_files(&mut bytes, self.files.len());
        let (frame, mut from) = (bytes.len(), start);
        for part in &self.parts {
            match part.file {
                Some(index) => {
                    bytes.extend_from_slice(&self.bytes[from..part.at - bin_header(part)]);
                    put_index(&mut bytes, BLOB_FILE, index);
                }
                None => {
                    bytes.extend_from_slice(&self.bytes[from..part.at]);
                    parts.push(Part { at: bytes.len(), ..part.clone() });
                }
            }
            from = part.at;
        }
        bytes.extend_from_slice(&self.bytes[from..]);
        let length = bytes.len() - frame - HEADER + total(&parts);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        bytes[frame..frame + HEADER].copy_from_slice(&length.to_le_bytes());
        Self { bytes, parts, files: self.files.clone() }
    }

    /// What comes behind the first `skip` bytes, or the beginning of it if it has many pieces.
    pub(crate) fn slices(&self, skip: usize) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let (mut count, mut skip) = (0, skip);
        for piece in self.pieces() {
            let left = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            if !left.is_empty() && count < SLICES {
                slices[count] = IoSlice::new(left);
                count += 1;
            }
        }
        (slices, count)
    }

    /// What comes behind the first `skip` bytes.
    pub(crate) fn rest(&self, skip: usize) -> Vec<u8> {
        let mut skip = skip;
        let mut rest = Vec::with_capacity(self.len().saturating_sub(skip));
        for piece in self.pieces() {
            rest.extend_from_slice(piece.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(piece.len());
        }
        rest
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.parts.iter().map(|part| part.at).chain([self.bytes.len()]);
        let starts = [0].into_iter().chain(self.parts.iter().map(|part| part.at));
        let own = starts.zip(ends).map(|(start, end)| &self.bytes[start..end]);
        let parts = self.parts.iter().map(|part| &part.bytes[..]).chain([&[][..]]);
        own.zip(parts).flat_map(|(own, part)| [own, part])
    }
}

/// How many bytes MessagePack puts before these.
fn bin_header(part: &Part) -> usize {
    if part.bytes.len() <= usize::from(u16::MAX) { 3 } else { 5 }
}

fn put_index(out: &mut Vec<u8>, kind: i8, index: usize) {
    out.push(Marker::FixExt4.to_u8());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(index as u32).to_be_bytes());
}

/// How many bytes they have together.
pub(crate) fn total(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes.len()).sum()
}

#[derive(Default)]
struct Collector {
    /// What is about to be written, if it may stay where it is, and its file.
    offered: Option<(Bytes, Option<Arc<OwnedFd>>)>,
    parts: Vec<Part>,
    files: Vec<Attached>,
}

/// The message that is being read.
struct Source {
    message: Option<Bytes>,
    files: Vec<Option<OwnedFd>>,
}

thread_local! {
    /// Where parts go while a message is written.
    static COLLECTOR: RefCell<Option<Collector>> = const { RefCell::new(None) };
    static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
}

/// Puts back what was in a thread's variable, also after a panic.
struct Restore<T: 'static>(&'static std::thread::LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}

/// Has the loader look up what a thread's first message needs.
pub(crate) fn prepare() {
    COLLECTOR.set(None);
    SOURCE.set(None);
}

/// Gives the parts of what `write` writes to a [`Gather`].
pub(crate) fn collect<T>(write: impl FnOnce() -> T) -> (T, Vec<Part>, Vec<Attached>) {
    let _restore = Restore(&COLLECTOR, COLLECTOR.replace(Some(Collector::default())));
    let written = write();
    let Collector { parts, files, .. } = COLLECTOR.take().unwrap_or_default();
    (written, parts, files)
}

/// Has a file sent with the message that is written; gives what stands for it there, or nothing if
/// none is written.
pub(crate) fn attach(file: Arc<OwnedFd>) -> Option<(i8, [u8; 4])> {
    COLLECTOR.with_borrow_mut(|collector| {
        let files = &mut collector.as_mut()?.files;
        files.push(Attached { file, needed: true });
        Some((OPEN_FILE, (files.len() as u32 - 1).to_be_bytes()))
    })
}

/// Lets `bytes`, which `write` writes, stay where they are if they can.
pub(crate) fn offer<T>(bytes: &Bytes, file: Option<&Arc<OwnedFd>>, write: impl FnOnce() -> T) -> T {
    let change = |offered| {
        COLLECTOR.with_borrow_mut(|collector| {
            if let Some(collector) = collector {
                collector.offered = offered;
            }
        });
    };
    if bytes.len() < LEAST {
        return write();
    }
    change(Some((bytes.clone(), file.cloned())));
    let written = write();
    change(None);
    written
}

/// Has [`taken`] find its bytes in `message` while `read` runs, and [`file`] what came with it.
pub(crate) fn within<T>(
    message: Option<&Bytes>,
    files: Vec<OwnedFd>,
    read: impl FnOnce() -> T,
) -> T {
    if message.is_none() && files.is_empty() {
        return read();
    }
    let files = files.into_iter().map(Some).collect();
    let source = Source { message: message.cloned(), files };
    let _restore = Restore(&SOURCE, SOURCE.replace(Some(source)));
    read()
}

/// A file that came with the message that is being read, by what stands for it there; whether it is
/// the bytes of a blob comes with it.
pub(crate) fn file(kind: i8, index: &[u8]) -> Result<(OwnedFd, bool), &'static str> {
    let is_blob = match kind {
        BLOB_FILE => true,
        OPEN_FILE => false,
        _ => return Err("an extension type that is not known"),
    };
    let index =
        index.try_into().map(u32::from_be_bytes).map_err(|_| "a file's index is 4 bytes")?;
    let file = SOURCE.with_borrow_mut(|source| {
        source.as_mut()?.files.get_mut(usize::try_from(index).ok()?)?.take()
    });
    file.map(|file| (file, is_blob)).ok_or("a file that did not come with its message")
}

/// Whether files came with the message that is being read.
pub(crate) fn has_files() -> bool {
    SOURCE.with_borrow(|source| source.as_ref().is_some_and(|source| !source.files.is_empty()))
}

/// Appends values of the message that is being read to one that is written. Files that came with it
/// go on with that: `share` writes what stands for one that is the bytes of a blob.
pub(crate) fn pass_on(
    values: &[u8],
    out: &mut Vec<u8>,
    share: impl Fn(OwnedFd, &mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    if !has_files() {
        out.extend_from_slice(values);
        return Ok(());
    }
    let mut values = Reader::new(values);
    while let Some(piece) = values.piece().map_err(|error| error.to_string())? {
        let known = [BLOB_FILE, OPEN_FILE].map(i8::cast_unsigned);
        match piece {
            [marker, kind, index @ ..]
                if Marker::from_u8(*marker) == Marker::FixExt4 && known.contains(kind) =>
            {
                let (file, is_blob) = file(kind.cast_signed(), index)?;
                if is_blob {
                    share(file, out)?;
                } else if let Some((_, index)) = attach(Arc::new(file)) {
                    out.extend([*marker, *kind]);
                    out.extend(index);
                }
            }
            _ => out.extend(piece),
        }
    }
    Ok(())
}

/// Appends bytes as a value, and lets them stay where they are if they can.
pub(crate) fn put(bytes: &Bytes, file: &Arc<OwnedFd>, out: &mut Vec<u8>) -> io::Result<()> {
    put_bin_header(out, u32::try_from(bytes.len()).map_err(io::Error::other)?);
    offer(bytes, Some(file), || Gather(out).write_all(bytes))
}

/// Bytes that were found in a message: as a part of it, if they are long.
pub(crate) fn taken(found: &[u8]) -> Bytes {
    let source = SOURCE.with_borrow(|source| {
        let message = source.as_ref().filter(|_| found.len() >= LEAST)?.message.as_ref()?;
        message.as_ptr_range().contains(&found.as_ptr()).then(|| message.slice_ref(found))
    });
    source.unwrap_or_else(|| Bytes::copy_from_slice(found))
}

/// Writes into memory, but for what is offered.
pub(crate) struct Gather<'a>(pub(crate) &'a mut Vec<u8>);

impl Write for Gather<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stays = bytes.len() >= LEAST
            && COLLECTOR.with_borrow_mut(|collector| {
                let Some(collector) = collector else { return false };
                let Some((bytes, file)) = collector
                    .offered
                    .take_if(|(offered, _)| std::ptr::eq(&raw const **offered, bytes))
                else {
                    return false;
                };
                let file = file.map(|file| {
                    collector.files.push(Attached { file, needed: false });
                    collector.files.len() - 1
                });
                collector.parts.push(Part { at: self.0.len(), bytes, file });
                true
            });
        if !stays {
            self.0.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_come_in_order_wherever_they_are_cut(
            pieces in proptest::collection::vec((0usize..5, 1usize..9), 0..12),
            end in 0usize..5,
            skip in 0usize..80,
        ) {
            let (mut parted, mut whole) = (Parted::default(), Vec::new());
            for (own, part) in pieces {
                parted.bytes.extend(vec![b'o'; own]);
                let bytes = Bytes::from(vec![b'p'; part]);
                whole.extend(vec![b'o'; own]);
                whole.extend(&bytes);
                parted.parts.push(Part { at: parted.bytes.len(), bytes, file: None });
            }
            parted.bytes.extend(vec![b'e'; end]);
            whole.extend(vec![b'e'; end]);
            prop_assert_eq!(parted.len(), whole.len());
            let expected = whole.get(skip..).unwrap_or_default();
            prop_assert_eq!(&parted.rest(skip)[..], expected);
            let (slices, count) = parted.slices(skip);
            let sent: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert!(expected.starts_with(&sent) && (sent == expected || count == SLICES));
        }
    }

    #[test]
    fn what_stands_for_files_is_written_anew() {
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        // A list of a text, a file of bytes and an open file; then what only looks like one.
        let values = b"\x93\xa1a\xd6\x01\0\0\0\x01\xd6\x02\0\0\0\0\xd6\x05\0\0\0\0";
        let mut out = b"before".to_vec();
        let share = |_, out: &mut Vec<u8>| {
            out.extend(b"\xc4\x01b");
            Ok(())
        };
        let (passed, _, files) =
            collect(|| within(None, vec![open(), open()], || pass_on(values, &mut out, share)));
        passed.unwrap();
        assert_eq!(out, b"before\x93\xa1a\xc4\x01b\xd6\x02\0\0\0\0\xd6\x05\0\0\0\0");
        assert_eq!(files.len(), 1);
        // One file cannot be two.
        let twice = b"\xd6\x01\0\0\0\0\xd6\x01\0\0\0\0";
        let again = within(None, vec![open()], || pass_on(twice, &mut Vec::new(), share));
        assert_eq!(again, Err("a file that did not come with its message".to_owned()));
        // Nothing has come.
        let mut same = Vec::new();
        pass_on(values, &mut same, share).unwrap();
        assert_eq!(same, values);
    }

    #[test]
    fn a_message_within_another_keeps_its_own_parts() {
        let long = Bytes::from(vec![1; LEAST]);
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let put = |out: &mut Vec<u8>| offer(&long, None, || Gather(out).write_all(&long)).unwrap();
        let ((), parts, _) = collect(|| {
            let ((), parts, _) = collect(|| put(&mut inner));
            assert_eq!((parts.len(), inner.len()), (1, 0));
            put(&mut outer);
        });
        assert_eq!((parts.len(), outer.len()), (1, 0));
        put(&mut outer);
        assert_eq!(outer.len(), LEAST);
    }
}
