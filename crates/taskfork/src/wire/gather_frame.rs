//! Long byte strings of a message that stay where they are: on their way out they are sent from
//! there, on their way in they are parts of what was received. Nothing of them is copied.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rmp::Marker;

use super::attachments;
use super::frame::HEADER_LEN;
use super::msgpack::put_bin_header;
use super::native::put_files;
use super::shm::{MAX_BUFFER_REFS, Origin, PlacedBytes, ShmMessage};

/// Shorter ones are copied.
pub(crate) const MIN_SEGMENT: usize = 16 << 10;

/// Messages that are longer than this are sent through a larger buffer of the kernel: of this size, or as large
/// as the system lets it be. Fewer changes between the two sides are needed then.
const LARGE_MESSAGE: usize = 256 << 10;
pub(crate) const LARGE_BUFFER: usize = 1 << 20;

/// Bytes that stand in a message behind the first `at` of the others.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) offset: usize,
    pub(crate) bytes: Bytes,
    pub(crate) backing: Backing<usize>,
}

/// Where the bytes of a blob are as well, in a way that others can get at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Backing<F> {
    #[default]
    Private,
    /// In a file of memory that has these bytes and no others; of a part, which of its message's.
    Memfd(F),
    /// On the connection of that name.
    Shared(Origin),
}

impl Segment {
    pub(super) fn is_in_file(&self) -> bool {
        matches!(self.backing, Backing::Memfd(_))
    }
}

/// A file that goes with a message.
#[derive(Debug, Clone)]
pub(crate) struct OutgoingFile {
    file: Arc<OwnedFd>,
    /// There is nothing that could be sent in its place.
    needed: bool,
}

impl OutgoingFile {
    /// One that nothing could be sent in the place of.
    pub(crate) fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, needed: true }
    }
}

impl AsFd for OutgoingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A frame, or several: its bytes, but for its parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatherFrame {
    pub(crate) bytes: Vec<u8>,
    /// In order.
    pub(crate) segments: Vec<Segment>,
    pub(crate) files: Vec<OutgoingFile>,
    /// What it refers to that is lent.
    pub(crate) references: Vec<PlacedBytes>,
}

/// What the receiver of a message takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiverLimits {
    /// The longest body of a frame.
    pub(crate) max_frame: usize,
    /// The most bytes of one part in a file.
    pub(crate) max_blob: usize,
    /// The most files with one message.
    pub(crate) files: usize,
}

/// How a part that has a file is written in its place, as an extension type of MessagePack with the
/// file's index.
pub(super) const BLOB_FILE: i8 = 1;
/// And a file that is none of these.
pub(super) const OPEN_FILE: i8 = 2;
/// And a part that has been placed, with the index of that.
pub(super) const LENT: i8 = 3;

/// So many pieces are sent at a time.
pub(crate) const MAX_SLICES: usize = 16;

impl GatherFrame {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + total(&self.segments)
    }

    pub(crate) fn is_large(&self) -> bool {
        self.len() > LARGE_MESSAGE
    }

    /// Forgets all but its bytes.
    pub(crate) fn clear_attachments(&mut self) {
        self.segments.clear();
        self.files.clear();
        self.references.clear();
    }

    /// Whether it can only be sent with its files.
    pub(crate) fn requires_files(&self) -> bool {
        self.files.iter().any(|attached| attached.needed)
    }

    /// Makes it what a peer takes, if it can be sent to it. The bytes of a part are put in place of its file where the
    /// peer takes no file, or none so long; they count against the limit of a frame then.
    pub(crate) fn fit(&mut self, peer: ReceiverLimits) -> Result<(), String> {
        self.fit_with(peer, |_, _, _| None)
    }

    /// The same, with parts placed where they need not be sent: `place` gets one, where it is already, and
    /// whether a file may go with the message. A message that is over the limit without that stays so.
    pub(crate) fn fit_with(
        &mut self,
        peer: ReceiverLimits,
        mut place: impl FnMut(&Bytes, Option<Origin>, bool) -> Option<PlacedBytes>,
    ) -> Result<(), String> {
        if self.segments.is_empty() && self.files.is_empty() {
            return Ok(());
        }
        let ReceiverLimits { max_frame, max_blob, files } = peer;
        let is_too_long = |part: &Segment| part.is_in_file() && part.bytes.len() > max_blob;
        let longest =
            self.segments.iter().filter(|part| is_too_long(part)).map(|part| part.bytes.len());
        let longest = longest.max();
        if longest.is_some() {
            self.inline_segments(is_too_long);
        }
        let count = self.files.len();
        let has_too_many = count > files;
        if has_too_many {
            if self.requires_files() {
                return Err(match files {
                    0 => "open files can be sent through unix sockets only".to_owned(),
                    _ => format!("they have {count} files, and {files} can be sent"),
                });
            }
            self.inline_segments(Segment::is_in_file);
        }
        let sent = self.segments.iter().filter(|part| !part.is_in_file());
        let length = self.bytes.len() + sent.map(|part| part.bytes.len()).sum::<usize>();
        let body = length.saturating_sub(HEADER_LEN);
        let may_place = body <= max_frame;
        match longest {
            Some(longest) if !may_place => {
                return Err(format!(
                    "a blob has {longest} bytes, and the other side takes {max_blob} of one as memory (max_blob) and \
                     {max_frame} in a message"
                ));
            }
            None if has_too_many && !may_place => {
                return Err(format!(
                    "with the bytes of all blobs in their places it has {body} bytes, and the limit of a message is \
                     {max_frame}"
                ));
            }
            _ => {}
        }
        let (mut references, mut new) = (Vec::new(), Vec::new());
        for part in &self.segments {
            let origin = match part.backing {
                Backing::Memfd(index) => {
                    references.push(Some((BLOB_FILE, index)));
                    continue;
                }
                Backing::Shared(origin) => Some(origin),
                Backing::Private => None,
            };
            let may_add = self.files.len() + new.len() < files;
            let may_place = may_place && self.references.len() < MAX_BUFFER_REFS;
            let placed = may_place.then(|| place(&part.bytes, origin, may_add)).flatten();
            references.push(placed.map(|mut placed| {
                // The other side is told once of what is new, though it stand here twice.
                let is_same = |before: &PlacedBytes| {
                    before.new.is_some() && before.place.id == placed.place.id
                };
                placed.new = placed.new.take().filter(|_| !self.references.iter().any(is_same));
                new.extend(placed.new.clone());
                self.references.push(placed);
                (LENT, self.references.len() - 1)
            }));
        }
        if !self.files.is_empty() || !self.references.is_empty() {
            self.insert_references(&references, new);
        }
        Ok(())
    }

    /// Has the bytes of these parts sent, and not the files in which they are.
    fn inline_segments(&mut self, which: impl Fn(&Segment) -> bool) {
        let mut kept = vec![true; self.files.len()];
        for part in self.segments.iter_mut().filter(|part| which(part)) {
            if let Backing::Memfd(index) = std::mem::take(&mut part.backing) {
                kept[index] = false;
            }
        }
        // Where a file is among those that stay.
        let places: Vec<usize> = kept
            .iter()
            .scan(0, |next, &kept| Some(std::mem::replace(next, *next + usize::from(kept))))
            .collect();
        for part in &mut self.segments {
            if let Backing::Memfd(index) = &mut part.backing {
                *index = places[*index];
            }
        }
        let mut kept = kept.into_iter();
        self.files.retain(|_| kept.next().unwrap_or(true));
    }

    /// The same frame with references in the places of parts that need not be sent, and in front of it what
    /// announces these.
    fn insert_references(&mut self, references: &[Option<(i8, usize)>], new: Vec<Arc<OwnedFd>>) {
        let (mut bytes, mut segments) = (Vec::with_capacity(self.bytes.len() + 128), Vec::new());
        if !self.references.is_empty() {
            ShmMessage::of(&self.references).put(&mut bytes);
        }
        if !self.files.is_empty() {
            put_files(&mut bytes, self.files.len());
        }
        self.files.splice(..0, new.into_iter().map(OutgoingFile::new));
        let (frame, mut from) = (bytes.len(), 0);
        for (part, reference) in self.segments.drain(..).zip(references) {
            let Some((kind, index)) = *reference else {
                bytes.extend_from_slice(&self.bytes[from..part.offset]);
                from = part.offset;
                segments.push(Segment { offset: bytes.len(), ..part });
                continue;
            };
            bytes.extend_from_slice(&self.bytes[from..part.offset - bin_header(&part)]);
            put_index(&mut bytes, kind, index);
            from = part.offset;
        }
        bytes.extend_from_slice(&self.bytes[from..]);
        let length = bytes.len() - frame - HEADER_LEN + total(&segments);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        bytes[frame..frame + HEADER_LEN].copy_from_slice(&length.to_le_bytes());
        (self.bytes, self.segments) = (bytes, segments);
    }

    /// What comes behind the first `skip` bytes, or the beginning of it if it has many pieces.
    pub(crate) fn slices(&self, skip: usize) -> ([IoSlice<'_>; MAX_SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut count, mut skip) = (0, skip);
        for piece in self.pieces() {
            let left = piece.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(piece.len());
            if !left.is_empty() && count < MAX_SLICES {
                slices[count] = IoSlice::new(left);
                count += 1;
            }
        }
        (slices, count)
    }

    /// What comes behind the first `skip` bytes.
    pub(crate) fn copy_from(&self, skip: usize) -> Vec<u8> {
        let mut skip = skip;
        let mut rest = Vec::with_capacity(self.len().saturating_sub(skip));
        for piece in self.pieces() {
            rest.extend_from_slice(piece.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(piece.len());
        }
        rest
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let ends = self.segments.iter().map(|part| part.offset).chain([self.bytes.len()]);
        let starts = [0].into_iter().chain(self.segments.iter().map(|part| part.offset));
        let own = starts.zip(ends).map(|(start, end)| &self.bytes[start..end]);
        let segments = self.segments.iter().map(|part| &part.bytes[..]).chain([&[][..]]);
        own.zip(segments).flat_map(|(own, part)| [own, part])
    }
}

/// How many bytes MessagePack puts before these.
fn bin_header(part: &Segment) -> usize {
    if part.bytes.len() <= usize::from(u16::MAX) { 3 } else { 5 }
}

fn put_index(out: &mut Vec<u8>, kind: i8, index: usize) {
    out.push(Marker::FixExt4.to_u8());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(index as u32).to_be_bytes());
}

/// How many bytes they have together.
pub(crate) fn total(segments: &[Segment]) -> usize {
    segments.iter().map(|part| part.bytes.len()).sum()
}

#[derive(Default)]
struct Collector {
    /// What is about to be written, if it may stay where it is, and where else it is.
    offered: Option<(Bytes, Backing<Arc<OwnedFd>>)>,
    segments: Vec<Segment>,
    files: Vec<OutgoingFile>,
}

thread_local! {
    /// Where parts go while a message is written.
    static COLLECTOR: RefCell<Option<Collector>> = const { RefCell::new(None) };
}

/// Puts back what was in a thread's variable, also after a panic.
pub(super) struct RestoreThreadLocal<T: 'static>(
    pub(super) &'static std::thread::LocalKey<RefCell<Option<T>>>,
    pub(super) Option<T>,
);

impl<T> Drop for RestoreThreadLocal<T> {
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}

/// Has the loader look up what a thread's first message needs.
pub(crate) fn init_thread_locals() {
    COLLECTOR.set(None);
    attachments::init_thread_locals();
}

/// Gives the parts of what `write` writes to a [`Gather`].
pub(crate) fn collect_segments<T>(
    write: impl FnOnce() -> T,
) -> (T, Vec<Segment>, Vec<OutgoingFile>) {
    let _restore = RestoreThreadLocal(&COLLECTOR, COLLECTOR.replace(Some(Collector::default())));
    let written = write();
    let Collector { segments, files, .. } = COLLECTOR.take().unwrap_or_default();
    (written, segments, files)
}

/// Has a file sent with the message that is written; gives what stands for it there, or nothing if
/// none is written.
pub(crate) fn attach_file(file: Arc<OwnedFd>) -> Option<(i8, [u8; 4])> {
    COLLECTOR.with_borrow_mut(|collector| {
        let files = &mut collector.as_mut()?.files;
        files.push(OutgoingFile::new(file));
        Some((OPEN_FILE, (files.len() as u32 - 1).to_be_bytes()))
    })
}

/// Lets `bytes`, which `write` writes, stay where they are if they can.
pub(crate) fn offer_bytes<T>(
    bytes: &Bytes,
    backing: &Backing<Arc<OwnedFd>>,
    write: impl FnOnce() -> T,
) -> T {
    let change = |offered| {
        COLLECTOR.with_borrow_mut(|collector| {
            if let Some(collector) = collector {
                collector.offered = offered;
            }
        });
    };
    if bytes.len() < MIN_SEGMENT {
        return write();
    }
    change(Some((bytes.clone(), backing.clone())));
    let written = write();
    change(None);
    written
}

/// Appends bytes as a value, and lets them stay in their file if they can.
pub(crate) fn put_memfd(bytes: &Bytes, file: Arc<OwnedFd>, out: &mut Vec<u8>) -> io::Result<()> {
    put_bin_header(out, u32::try_from(bytes.len()).map_err(io::Error::other)?);
    offer_bytes(bytes, &Backing::Memfd(file), || Gather(out).write_all(bytes))
}

/// Writes into memory, but for what is offered.
pub(crate) struct Gather<'a>(pub(crate) &'a mut Vec<u8>);

impl Write for Gather<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stays = bytes.len() >= MIN_SEGMENT
            && COLLECTOR.with_borrow_mut(|collector| {
                let Some(collector) = collector else { return false };
                let Some((bytes, backing)) = collector
                    .offered
                    .take_if(|(offered, _)| std::ptr::eq(&raw const **offered, bytes))
                else {
                    return false;
                };
                let backing = match backing {
                    Backing::Memfd(file) => {
                        collector.files.push(OutgoingFile { file, needed: false });
                        Backing::Memfd(collector.files.len() - 1)
                    }
                    Backing::Shared(origin) => Backing::Shared(origin),
                    Backing::Private => Backing::Private,
                };
                collector.segments.push(Segment { offset: self.0.len(), bytes, backing });
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
            let (mut parted, mut whole) = (GatherFrame::default(), Vec::new());
            for (own, part) in pieces {
                parted.bytes.extend(vec![b'o'; own]);
                let bytes = Bytes::from(vec![b'p'; part]);
                whole.extend(vec![b'o'; own]);
                whole.extend(&bytes);
                let at = parted.bytes.len();
                parted.segments.push(Segment { offset: at, bytes, backing: Backing::Private });
            }
            parted.bytes.extend(vec![b'e'; end]);
            whole.extend(vec![b'e'; end]);
            prop_assert_eq!(parted.len(), whole.len());
            let expected = whole.get(skip..).unwrap_or_default();
            prop_assert_eq!(&parted.copy_from(skip)[..], expected);
            let (slices, count) = parted.slices(skip);
            let sent: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert!(expected.starts_with(&sent) && (sent == expected || count == MAX_SLICES));
        }
    }

    proptest! {
        /// Those that are too long are sent; the others keep their files.
        #[test]
        fn files_stay_with_their_parts(longs in proptest::collection::vec(any::<bool>(), 1..10)) {
            let mut parted = GatherFrame::default();
            for (index, &long) in longs.iter().enumerate() {
                let bytes = Bytes::from(vec![index as u8; if long { 20 } else { 10 }]);
                let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
                parted.files.push(OutgoingFile { file, needed: false });
                parted.segments.push(Segment { offset: 0, bytes, backing: Backing::Memfd(index) });
            }
            let files: Vec<_> = parted.files.iter().map(|attached| attached.file.clone()).collect();
            parted.inline_segments(|part| part.bytes.len() > 10);
            for (part, &long) in parted.segments.iter().zip(&longs) {
                prop_assert_eq!(part.is_in_file(), !long);
                if let Backing::Memfd(index) = part.backing {
                    let file = &files[usize::from(part.bytes[0])];
                    prop_assert!(Arc::ptr_eq(&parted.files[index].file, file));
                }
            }
            prop_assert_eq!(parted.files.len(), longs.iter().filter(|long| !**long).count());
        }
    }

    #[test]
    fn a_message_within_another_keeps_its_own_parts() {
        let long = Bytes::from(vec![1; MIN_SEGMENT]);
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let put = |out: &mut Vec<u8>| {
            offer_bytes(&long, &Backing::Private, || Gather(out).write_all(&long)).unwrap()
        };
        let ((), segments, _) = collect_segments(|| {
            let ((), segments, _) = collect_segments(|| put(&mut inner));
            assert_eq!((segments.len(), inner.len()), (1, 0));
            put(&mut outer);
        });
        assert_eq!((segments.len(), outer.len()), (1, 0));
        put(&mut outer);
        assert_eq!(outer.len(), MIN_SEGMENT);
    }
}
