//! Frames that are sent from several places: long byte strings stay where they are, and files accompany the frame.
//!
//! A [`GatherFrame`] is written in two steps. [`GatherFrame::write`] serializes the message; a `Blob` in it offers its
//! bytes, and [`GatherWriter`] records a [`Segment`] instead of copying them. [`GatherFrame::fit_with`] then adapts the
//! frame to its receiver: a segment is sent inline, or a reference replaces it and a descriptor or a shared-memory
//! buffer carries the bytes.

use std::cell::Cell;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;

use super::WireError;
use super::frame::{self, HEADER_LEN};
use super::msgpack::put_bin_header;
use super::native::put_files;
use super::reference::{self, BLOB_FILE, OPEN_FILE, SHARED};
use super::scoped_local;
use super::shm::{MAX_BUFFER_REFS, Origin, PlacedBytes, ShmMessage};

/// Shorter byte strings are copied into the frame.
pub(crate) const MIN_SEGMENT: usize = 16 << 10;

/// Messages longer than this are sent through a larger socket buffer, so that the two sides alternate less often.
const LARGE_MESSAGE: usize = 256 << 10;

/// The requested size of that buffer, in bytes. The system may limit it.
pub(crate) const LARGE_BUFFER: usize = 1 << 20;

/// The most slices of one vectored write.
pub(crate) const MAX_SLICES: usize = 16;

/// A byte string that is sent between the first `offset` bytes of its frame and the others.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) offset: usize,
    pub(crate) bytes: Bytes,
    /// `Memfd` contains the index of the file in the frame.
    pub(crate) backing: Backing<usize>,
}

/// The kind of memory that contains the bytes of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Backing<F> {
    /// Memory of this process only.
    #[default]
    Private,
    /// The same, which may change once the call has been made. See [`GatherFrame::own_borrowed`].
    Borrowed,
    /// A memfd that contains these bytes and no others.
    Memfd(F),
    /// A shared-memory buffer of a connection.
    Shared(Origin),
}

impl Segment {
    fn is_in_file(&self) -> bool {
        matches!(self.backing, Backing::Memfd(_))
    }
}

/// A file that accompanies a frame.
#[derive(Debug, Clone)]
pub(crate) struct OutgoingFile {
    file: Arc<OwnedFd>,
    /// The frame cannot be sent without it: no bytes can replace it.
    is_required: bool,
}

impl OutgoingFile {
    /// A file that no bytes can replace.
    pub(crate) fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, is_required: true }
    }
}

impl AsFd for OutgoingFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// One or more frames: their bytes without those of the segments.
#[derive(Debug, Clone, Default)]
pub(crate) struct GatherFrame {
    pub(crate) bytes: Vec<u8>,
    /// In the order of their offsets.
    pub(crate) segments: Vec<Segment>,
    pub(crate) files: Vec<OutgoingFile>,
    /// The buffers that it refers to.
    pub(crate) references: Vec<PlacedBytes>,
}

/// What the receiver of a message accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiverLimits {
    /// The longest body of a frame, in bytes.
    pub(crate) max_frame: usize,
    /// The longest blob in a memfd, in bytes.
    pub(crate) max_blob: usize,
    /// The most files with one message.
    pub(crate) max_files: usize,
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl GatherFrame {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + total_len(&self.segments)
    }

    /// Whether it should be sent through a larger socket buffer.
    pub(crate) fn is_large(&self) -> bool {
        self.len() > LARGE_MESSAGE
    }

    /// Whether it can be sent only together with its files.
    pub(crate) fn requires_files(&self) -> bool {
        self.files.iter().any(|file| file.is_required)
    }

    /// Appends a frame whose body `body` writes; its segments and files replace those of `self`. Bytes in memfds do
    /// not count against `limit`. After an error the bytes are unchanged.
    ///
    /// # Errors
    /// The error of `body`, or [`WireError::TooLarge`] if the body has more than `limit` bytes.
    pub(crate) fn write<E: From<WireError>>(
        &mut self,
        limit: usize,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.bytes.len();
        let (written, segments, files) =
            collect_segments(|| frame::write(&mut self.bytes, limit, body));
        written?;
        let own = self.bytes.len() - start - HEADER_LEN;
        let inline = segments.iter().filter(|segment| !segment.is_in_file());
        let length = own + inline.map(|segment| segment.bytes.len()).sum::<usize>();
        if length > limit {
            self.bytes.truncate(start);
            return Err(E::from(WireError::TooLarge { length, limit }));
        }
        // A length that does not fit the header is over the limit of every receiver.
        let header = u32::try_from(own + total_len(&segments)).unwrap_or(u32::MAX);
        frame::set_length(&mut self.bytes, start, header);
        (self.segments, self.files) = (segments, files);
        Ok(())
    }

    /// Removes everything but its bytes.
    pub(crate) fn clear_attachments(&mut self) {
        self.segments.clear();
        self.files.clear();
        self.references.clear();
    }

    /// Adapts the frame to its receiver. Segments in memfds are sent inline if the receiver accepts no files, or no
    /// blobs of that length; then they count against `max_frame`.
    ///
    /// # Errors
    /// A text that says which limit is exceeded, if the receiver cannot get the frame in any form.
    pub(crate) fn fit(&mut self, receiver: ReceiverLimits) -> Result<(), String> {
        self.fit_with(receiver, |_, _, _| None).map(drop)
    }

    /// As [`fit`](Self::fit), and places segments in shared-memory buffers. `place` gets the bytes, their origin, and
    /// whether the message may have one more file; it returns `None` for bytes that are to be sent. A frame that
    /// exceeds the limit without that is left as it is. Returns the numbers of the segments that are in buffers, in the order of
    /// [`references`](Self::references).
    pub(crate) fn fit_with(
        &mut self,
        receiver: ReceiverLimits,
        mut place: impl FnMut(&Bytes, Option<Origin>, bool) -> Option<PlacedBytes>,
    ) -> Result<Vec<usize>, String> {
        let mut in_buffers = Vec::new();
        if self.segments.is_empty() && self.files.is_empty() {
            return Ok(in_buffers);
        }
        let ReceiverLimits { max_frame, max_blob, max_files } = receiver;
        let is_too_long =
            |segment: &Segment| segment.is_in_file() && segment.bytes.len() > max_blob;
        let too_long = self.segments.iter().filter(|segment| is_too_long(segment));
        let longest = too_long.map(|segment| segment.bytes.len()).max();
        if longest.is_some() {
            self.inline_segments(is_too_long);
        }
        let count = self.files.len();
        let has_too_many = count > max_files;
        if has_too_many {
            if self.requires_files() {
                return Err(match max_files {
                    0 => "open files can be sent through unix sockets only".to_owned(),
                    _ => format!("they have {count} files, and {max_files} can be sent"),
                });
            }
            self.inline_segments(Segment::is_in_file);
        }
        let inline = self.segments.iter().filter(|segment| !segment.is_in_file());
        let length = self.bytes.len() + inline.map(|segment| segment.bytes.len()).sum::<usize>();
        let body = length.saturating_sub(HEADER_LEN);
        let fits = body <= max_frame;
        match longest {
            Some(longest) if !fits => {
                return Err(format!(
                    "a blob has {longest} bytes, and the other side takes {max_blob} of one as memory (max_blob) and \
                     {max_frame} in a message"
                ));
            }
            None if has_too_many && !fits => {
                return Err(format!(
                    "with the bytes of all blobs in their places it has {body} bytes, and the limit of a message is \
                     {max_frame}"
                ));
            }
            _ => {}
        }
        let (mut references, mut new_files) = (Vec::new(), Vec::new());
        for (number, segment) in self.segments.iter().enumerate() {
            let origin = match segment.backing {
                Backing::Memfd(index) => {
                    references.push(Some((BLOB_FILE, index)));
                    continue;
                }
                Backing::Shared(origin) => Some(origin),
                Backing::Private | Backing::Borrowed => None,
            };
            let may_add = self.files.len() + new_files.len() < max_files;
            let may_place = fits && self.references.len() < MAX_BUFFER_REFS;
            let placed = may_place.then(|| place(&segment.bytes, origin, may_add)).flatten();
            references.push(placed.map(|mut placed| {
                // A new buffer is announced once, even if the message refers to it twice.
                let is_same = |before: &PlacedBytes| {
                    before.new_file.is_some() && before.buffer.id == placed.buffer.id
                };
                placed.new_file =
                    placed.new_file.take().filter(|_| !self.references.iter().any(is_same));
                new_files.extend(placed.new_file.clone());
                self.references.push(placed);
                in_buffers.push(number);
                (SHARED, self.references.len() - 1)
            }));
        }
        if !self.files.is_empty() || !self.references.is_empty() {
            self.insert_references(&references, new_files);
        }
        Ok(in_buffers)
    }

    /// Replaces borrowed bytes by those in the buffers to which `fitted` refers, which is the same frame for a receiver.
    /// `in_buffers` is what [`fit_with`](Self::fit_with) has returned.
    pub(crate) fn take_placed(&mut self, fitted: &Self, in_buffers: &[usize]) {
        for (&number, placed) in in_buffers.iter().zip(&fitted.references) {
            let segment = &mut self.segments[number];
            if segment.backing == Backing::Borrowed {
                (segment.bytes, segment.backing) = (placed.bytes.clone(), Backing::Private);
            }
        }
    }

    /// Replaces borrowed bytes by copies. `copies` has those that have been made, behind what they are copies of.
    pub(crate) fn own_borrowed(
        &mut self,
        copies: &mut Vec<(Bytes, Bytes)>,
        copy: &mut dyn FnMut(&[u8]) -> Bytes,
    ) {
        let borrowed = |segment: &&mut Segment| segment.backing == Backing::Borrowed;
        for segment in self.segments.iter_mut().filter(borrowed) {
            let before = std::mem::take(&mut segment.bytes);
            let is_same = |other: &Bytes| std::ptr::eq(&raw const **other, &raw const *before);
            segment.bytes = match copies.iter().find(|(other, _)| is_same(other)) {
                Some((_, copy)) => copy.clone(),
                None => copy(&before),
            };
            segment.backing = Backing::Private;
            copies.push((before, segment.bytes.clone()));
        }
    }

    /// Sends the bytes of these segments, and not their files.
    fn inline_segments(&mut self, is_selected: impl Fn(&Segment) -> bool) {
        let mut kept = vec![true; self.files.len()];
        for segment in self.segments.iter_mut().filter(|segment| is_selected(segment)) {
            if let Backing::Memfd(index) = std::mem::take(&mut segment.backing) {
                kept[index] = false;
            }
        }
        let new_indices: Vec<usize> = kept
            .iter()
            .scan(0, |next, &kept| Some(std::mem::replace(next, *next + usize::from(kept))))
            .collect();
        for segment in &mut self.segments {
            if let Backing::Memfd(index) = &mut segment.backing {
                *index = new_indices[*index];
            }
        }
        let mut kept = kept.into_iter();
        self.files.retain(|_| kept.next().unwrap_or(true));
    }

    /// Replaces segments by their references, and puts the messages that announce these in front of the frame.
    fn insert_references(
        &mut self,
        references: &[Option<(i8, usize)>],
        new_files: Vec<Arc<OwnedFd>>,
    ) {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 128);
        let mut segments = Vec::new();
        if !self.references.is_empty() {
            ShmMessage::of(&self.references).put(&mut bytes);
        }
        if !self.files.is_empty() {
            put_files(&mut bytes, self.files.len());
        }
        self.files.splice(..0, new_files.into_iter().map(OutgoingFile::new));
        let (start, mut copied) = (bytes.len(), 0);
        for (segment, reference) in self.segments.drain(..).zip(references) {
            let Some((kind, index)) = *reference else {
                bytes.extend_from_slice(&self.bytes[copied..segment.offset]);
                copied = segment.offset;
                segments.push(Segment { offset: bytes.len(), ..segment });
                continue;
            };
            bytes.extend_from_slice(&self.bytes[copied..segment.offset - bin_header_len(&segment)]);
            reference::put(&mut bytes, kind, index);
            copied = segment.offset;
        }
        bytes.extend_from_slice(&self.bytes[copied..]);
        let length = bytes.len() - start - HEADER_LEN + total_len(&segments);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        frame::set_length(&mut bytes, start, length);
        (self.bytes, self.segments) = (bytes, segments);
    }

    /// The bytes after the first `skip`, as slices for a vectored write, and the number of slices. They end before
    /// the last byte if there are more than [`MAX_SLICES`].
    pub(crate) fn slices(&self, skip: usize) -> ([IoSlice<'_>; MAX_SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut count, mut skip) = (0, skip);
        for chunk in self.chunks() {
            let left = chunk.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(chunk.len());
            if !left.is_empty() && count < MAX_SLICES {
                slices[count] = IoSlice::new(left);
                count += 1;
            }
        }
        (slices, count)
    }

    /// A copy of the bytes after the first `skip`.
    pub(crate) fn copy_from(&self, skip: usize) -> Vec<u8> {
        let mut skip = skip;
        let mut copy = Vec::with_capacity(self.len().saturating_sub(skip));
        for chunk in self.chunks() {
            copy.extend_from_slice(chunk.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(chunk.len());
        }
        copy
    }

    /// The bytes of the frame and of its segments, in the order in which they are sent.
    fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let offsets = self.segments.iter().map(|segment| segment.offset);
        let ends = offsets.clone().chain([self.bytes.len()]);
        let starts = [0].into_iter().chain(offsets);
        let own = starts.zip(ends).map(|(start, end)| &self.bytes[start..end]);
        let segments = self.segments.iter().map(|segment| &segment.bytes[..]).chain([&[][..]]);
        own.zip(segments).flat_map(|(own, segment)| [own, segment])
    }
}

/// The length of the MessagePack header in front of a segment.
fn bin_header_len(segment: &Segment) -> usize {
    if segment.bytes.len() <= usize::from(u16::MAX) { 3 } else { 5 }
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
fn total_len(segments: &[Segment]) -> usize {
    segments.iter().map(|segment| segment.bytes.len()).sum()
}

/// Collects the segments and files of the message that is being written.
#[derive(Default)]
struct Collector {
    /// The bytes that are about to be written, if they may become a segment.
    offered: Option<(Bytes, Backing<Arc<OwnedFd>>)>,
    segments: Vec<Segment>,
    files: Vec<OutgoingFile>,
}

thread_local! {
    /// `None` outside a message. The collector exists once the message has a segment or a file.
    static COLLECTOR: Cell<Option<Option<Box<Collector>>>> = const { Cell::new(None) };
}

/// Accesses the thread-local variable, so that the first message does not wait for the dynamic loader.
pub(crate) fn init_thread_locals() {
    COLLECTOR.set(None);
}

/// Runs `write`, and returns the segments and files of what it wrote to a [`GatherWriter`].
pub(crate) fn collect_segments<T>(
    write: impl FnOnce() -> T,
) -> (T, Vec<Segment>, Vec<OutgoingFile>) {
    let (written, collector) = scoped_local::with(&COLLECTOR, None, write);
    match collector.flatten() {
        None => (written, Vec::new(), Vec::new()),
        Some(collector) => (written, collector.segments, collector.files),
    }
}

/// Accesses the collector of the message that is being written. Returns `None` outside a message.
fn with_collector<T>(access: impl FnOnce(&mut Collector) -> T) -> Option<T> {
    COLLECTOR.with(|variable| {
        let mut collector = variable.take()?;
        let returned = access(collector.get_or_insert_default());
        variable.set(Some(collector));
        Some(returned)
    })
}

/// Adds a file to the message that is being written. Returns the kind and the data of the reference to it, or `None`
/// outside a message.
pub(crate) fn attach_file(file: Arc<OwnedFd>) -> Option<(i8, [u8; 4])> {
    with_collector(|collector| {
        collector.files.push(OutgoingFile::new(file));
        (OPEN_FILE, (collector.files.len() as u32 - 1).to_be_bytes())
    })
}

/// Runs `write`, which writes `bytes`; they become a segment if they are long enough.
pub(crate) fn offer_bytes<T>(
    bytes: &Bytes,
    backing: &Backing<Arc<OwnedFd>>,
    write: impl FnOnce() -> T,
) -> T {
    let set_offered = |offered| with_collector(|collector| collector.offered = offered);
    if bytes.len() < MIN_SEGMENT {
        return write();
    }
    set_offered(Some((bytes.clone(), backing.clone())));
    let written = write();
    set_offered(None);
    written
}

/// Appends bytes as a value; they become a segment in `file` if they are long enough.
pub(crate) fn put_memfd(bytes: &Bytes, file: Arc<OwnedFd>, out: &mut Vec<u8>) -> io::Result<()> {
    put_bin_header(out, u32::try_from(bytes.len()).map_err(io::Error::other)?);
    offer_bytes(bytes, &Backing::Memfd(file), || GatherWriter(out).write_all(bytes))
}

/// Copies everything that is written into a buffer, except offered bytes, which become segments.
pub(crate) struct GatherWriter<'a>(pub(crate) &'a mut Vec<u8>);

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl Write for GatherWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < MIN_SEGMENT || !add_segment(self.0.len(), bytes) {
            self.0.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Adds a segment if `bytes` are the very bytes that were offered; returns whether it did.
fn add_segment(offset: usize, bytes: &[u8]) -> bool {
    let added = with_collector(|collector| {
        let is_same = |(offered, _): &mut (Bytes, _)| std::ptr::eq(&raw const **offered, bytes);
        let Some((bytes, backing)) = collector.offered.take_if(is_same) else { return false };
        let backing = match backing {
            Backing::Memfd(file) => {
                collector.files.push(OutgoingFile { file, is_required: false });
                Backing::Memfd(collector.files.len() - 1)
            }
            Backing::Shared(origin) => Backing::Shared(origin),
            Backing::Private => Backing::Private,
            Backing::Borrowed => Backing::Borrowed,
        };
        collector.segments.push(Segment { offset, bytes, backing });
        true
    });
    added.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::shm::{BufferOwner, BufferRef};
    use super::*;

    proptest! {
        #[test]
        fn chunks_are_in_order_wherever_a_write_ends(
            pieces in proptest::collection::vec((0usize..5, 1usize..9), 0..12),
            end in 0usize..5,
            skip in 0usize..80,
        ) {
            let (mut frame, mut whole) = (GatherFrame::default(), Vec::new());
            for (own, segment) in pieces {
                frame.bytes.extend(vec![b'o'; own]);
                let bytes = Bytes::from(vec![b'p'; segment]);
                whole.extend(vec![b'o'; own]);
                whole.extend(&bytes);
                let offset = frame.bytes.len();
                frame.segments.push(Segment { offset, bytes, backing: Backing::Private });
            }
            frame.bytes.extend(vec![b'e'; end]);
            whole.extend(vec![b'e'; end]);
            prop_assert_eq!(frame.len(), whole.len());
            let expected = whole.get(skip..).unwrap_or_default();
            prop_assert_eq!(&frame.copy_from(skip)[..], expected);
            let (slices, count) = frame.slices(skip);
            let sent: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert!(expected.starts_with(&sent) && (sent == expected || count == MAX_SLICES));
        }
    }

    proptest! {
        #[test]
        fn inlined_segments_lose_their_files_and_others_keep_theirs(longs in proptest::collection::vec(any::<bool>(), 1..10)) {
            let mut frame = GatherFrame::default();
            for (index, &long) in longs.iter().enumerate() {
                let bytes = Bytes::from(vec![index as u8; if long { 20 } else { 10 }]);
                let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
                frame.files.push(OutgoingFile { file, is_required: false });
                frame.segments.push(Segment { offset: 0, bytes, backing: Backing::Memfd(index) });
            }
            let files: Vec<_> = frame.files.iter().map(|attached| attached.file.clone()).collect();
            frame.inline_segments(|segment| segment.bytes.len() > 10);
            for (segment, &long) in frame.segments.iter().zip(&longs) {
                prop_assert_eq!(segment.is_in_file(), !long);
                if let Backing::Memfd(index) = segment.backing {
                    let file = &files[usize::from(segment.bytes[0])];
                    prop_assert!(Arc::ptr_eq(&frame.files[index].file, file));
                }
            }
            prop_assert_eq!(frame.files.len(), longs.iter().filter(|long| !**long).count());
        }

        #[test]
        fn bytes_keep_their_places_whichever_are_in_buffers(
            // Few different ones, so that the same bytes occur more than once.
            pieces in proptest::collection::vec((0usize..3, 0usize..3, any::<bool>()), 1..24),
            max_files in 0usize..4,
        ) {
            let all: Vec<Bytes> = (1..=3).map(|fill| vec![fill; MIN_SEGMENT].into()).collect();
            let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
            let mut frame = GatherFrame { bytes: vec![0; HEADER_LEN], ..GatherFrame::default() };
            for &(piece, kind, _) in &pieces {
                let bytes = all[piece].clone();
                put_bin_header(&mut frame.bytes, bytes.len() as u32);
                let backing = match kind {
                    0 => Backing::Private,
                    1 => Backing::Borrowed,
                    _ => {
                        frame.files.push(OutgoingFile { file: file.clone(), is_required: false });
                        Backing::Memfd(frame.files.len() - 1)
                    }
                };
                frame.segments.push(Segment { offset: frame.bytes.len(), bytes, backing });
            }
            let mut fitted = frame.clone();
            let takes = ReceiverLimits { max_frame: usize::MAX, max_blob: usize::MAX, max_files };
            let mut places = pieces.iter().map(|(_, _, is_placed)| *is_placed);
            let in_buffers = fitted
                .fit_with(takes, |bytes, _, _| {
                    let buffer =
                        BufferRef { owner: BufferOwner::Sender, id: 1, length: bytes.len() };
                    let bytes = Bytes::copy_from_slice(bytes);
                    let placed = PlacedBytes { buffer, bytes, new_file: None, guard: None };
                    places.next().unwrap_or_default().then_some(placed)
                })
                .unwrap();
            frame.take_placed(&fitted, &in_buffers);
            frame.own_borrowed(&mut Vec::new(), &mut Bytes::copy_from_slice);
            for (&(piece, kind, _), segment) in pieces.iter().zip(&frame.segments) {
                prop_assert_eq!(&segment.bytes, &all[piece]);
                prop_assert_eq!(segment.bytes.as_ptr() == all[piece].as_ptr(), kind != 1);
            }
        }
    }

    #[test]
    fn borrowed_bytes_are_read_where_they_have_been_placed_and_else_copied() {
        let bytes = |fill: u8| Bytes::from(vec![fill; MIN_SEGMENT]);
        let (first, owned, second) = (bytes(1), bytes(2), bytes(3));
        let mut frame = GatherFrame::default();
        let segments = [
            (&first, Backing::Borrowed),
            (&owned, Backing::Private),
            (&second, Backing::Borrowed),
            (&second, Backing::Borrowed),
        ];
        frame.bytes = vec![0; HEADER_LEN];
        for (bytes, backing) in segments {
            put_bin_header(&mut frame.bytes, bytes.len() as u32);
            let offset = frame.bytes.len();
            frame.segments.push(Segment { offset, bytes: bytes.clone(), backing });
        }
        let mut fitted = frame.clone();
        let takes = ReceiverLimits { max_frame: usize::MAX, max_blob: 0, max_files: 0 };
        // The first and the second one are placed.
        let mut places = [bytes(1), bytes(2)].into_iter();
        let placed = |bytes: Bytes| PlacedBytes {
            buffer: BufferRef { owner: BufferOwner::Sender, id: 1, length: bytes.len() },
            bytes,
            new_file: None,
            guard: None,
        };
        let in_buffers = fitted.fit_with(takes, |_, _, _| places.next().map(placed)).unwrap();
        frame.take_placed(&fitted, &in_buffers);
        let place = &fitted.references[0].bytes;
        assert_eq!(frame.segments[0].bytes.as_ptr(), place.as_ptr());
        assert_eq!(frame.segments[1].bytes.as_ptr(), owned.as_ptr());
        let (mut copies, mut copied) = (Vec::new(), 0);
        let mut copy = |bytes: &[u8]| {
            copied += 1;
            Bytes::copy_from_slice(bytes)
        };
        for frame in [&mut frame, &mut fitted] {
            frame.own_borrowed(&mut copies, &mut copy);
            for segment in &frame.segments {
                assert_ne!(segment.backing, Backing::Borrowed);
                assert_ne!(segment.bytes.as_ptr(), second.as_ptr());
            }
        }
        // One copy serves all that refer to the same bytes.
        assert_eq!(copied, 1);
        assert!(frame.segments[2].bytes == second && frame.segments[3].bytes == second);
    }

    #[test]
    fn a_message_within_another_collects_its_own_segments() {
        let long = Bytes::from(vec![1; MIN_SEGMENT]);
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let put = |out: &mut Vec<u8>| {
            offer_bytes(&long, &Backing::Private, || GatherWriter(out).write_all(&long)).unwrap()
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
