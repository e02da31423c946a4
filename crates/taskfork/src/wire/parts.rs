//! Long byte strings of a message that stay where they are: on their way out they are sent from
//! there, on their way in they are parts of what was received. Nothing of them is copied.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use rmp::Marker;

use super::enclosed;
use super::frame::HEADER;
use super::lending::{Home, Lending, MOST_USES, Placed};
use super::native::put_files;
use super::pack::put_bin_header;

/// Shorter ones are copied.
pub(crate) const LEAST: usize = 16 << 10;

/// Messages that are longer than this are sent through a larger buffer of the kernel: of this size, or as large
/// as the system lets it be. Fewer changes between the two sides are needed then.
const LONG: usize = 256 << 10;
pub(crate) const BUFFER_FOR_LONG: usize = 1 << 20;

/// Bytes that stand in a message behind the first `at` of the others.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) at: usize,
    pub(crate) bytes: Bytes,
    pub(crate) elsewhere: Elsewhere<usize>,
}

/// Where the bytes of a blob are as well, in a way that others can get at them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Elsewhere<F> {
    #[default]
    Nowhere,
    /// In a file of memory that has these bytes and no others; of a part, which of its message's.
    File(F),
    /// On the connection of that name.
    Lent(Home),
}

impl Part {
    pub(super) fn is_in_file(&self) -> bool {
        matches!(self.elsewhere, Elsewhere::File(_))
    }
}

/// A file that goes with a message.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    file: Arc<OwnedFd>,
    /// There is nothing that could be sent in its place.
    needed: bool,
}

impl Attached {
    /// One that nothing could be sent in the place of.
    pub(crate) fn new(file: Arc<OwnedFd>) -> Self {
        Self { file, needed: true }
    }
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
    /// What it refers to that is lent.
    pub(crate) placed: Vec<Placed>,
}

/// What the receiver of a message takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Takes {
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
pub(crate) const SLICES: usize = 16;

impl Parted {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + total(&self.parts)
    }

    pub(crate) fn is_long(&self) -> bool {
        self.len() > LONG
    }

    /// Forgets all but its bytes.
    pub(crate) fn let_go(&mut self) {
        self.parts.clear();
        self.files.clear();
        self.placed.clear();
    }

    /// Whether it can only be sent with its files.
    pub(crate) fn needs_files(&self) -> bool {
        self.files.iter().any(|attached| attached.needed)
    }

    /// Makes it what a peer takes, if it can be sent to it. The bytes of a part are put in place of its file where the
    /// peer takes no file, or none so long; they count against the limit of a frame then.
    pub(crate) fn fit(&mut self, peer: Takes) -> Result<(), String> {
        self.fit_placing(peer, |_, _, _| None)
    }

    /// The same, with parts placed where they need not be sent: `place` gets one, where it is already, and
    /// whether a file may go with the message. A message that is over the limit without that stays so.
    pub(crate) fn fit_placing(
        &mut self,
        peer: Takes,
        mut place: impl FnMut(&Bytes, Option<Home>, bool) -> Option<Placed>,
    ) -> Result<(), String> {
        if self.parts.is_empty() && self.files.is_empty() {
            return Ok(());
        }
        let Takes { max_frame, max_blob, files } = peer;
        let is_too_long = |part: &Part| part.is_in_file() && part.bytes.len() > max_blob;
        let longest =
            self.parts.iter().filter(|part| is_too_long(part)).map(|part| part.bytes.len());
        let longest = longest.max();
        if longest.is_some() {
            self.put_in_place(is_too_long);
        }
        let count = self.files.len();
        let has_too_many = count > files;
        if has_too_many {
            if self.needs_files() {
                return Err(match files {
                    0 => "open files can be sent through unix sockets only".to_owned(),
                    _ => format!("they have {count} files, and {files} can be sent"),
                });
            }
            self.put_in_place(Part::is_in_file);
        }
        let sent = self.parts.iter().filter(|part| !part.is_in_file());
        let length = self.bytes.len() + sent.map(|part| part.bytes.len()).sum::<usize>();
        let body = length.saturating_sub(HEADER);
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
        for part in &self.parts {
            let home = match part.elsewhere {
                Elsewhere::File(index) => {
                    references.push(Some((BLOB_FILE, index)));
                    continue;
                }
                Elsewhere::Lent(home) => Some(home),
                Elsewhere::Nowhere => None,
            };
            let may_add = self.files.len() + new.len() < files;
            let may_place = may_place && self.placed.len() < MOST_USES;
            let placed = may_place.then(|| place(&part.bytes, home, may_add)).flatten();
            references.push(placed.map(|mut placed| {
                // The other side is told once of what is new, though it stand here twice.
                let is_same =
                    |before: &Placed| before.new.is_some() && before.place.id == placed.place.id;
                placed.new = placed.new.take().filter(|_| !self.placed.iter().any(is_same));
                new.extend(placed.new.clone());
                self.placed.push(placed);
                (LENT, self.placed.len() - 1)
            }));
        }
        if !self.files.is_empty() || !self.placed.is_empty() {
            self.refer(&references, new);
        }
        Ok(())
    }

    /// Has the bytes of these parts sent, and not the files in which they are.
    fn put_in_place(&mut self, which: impl Fn(&Part) -> bool) {
        let mut kept = vec![true; self.files.len()];
        for part in self.parts.iter_mut().filter(|part| which(part)) {
            if let Elsewhere::File(index) = std::mem::take(&mut part.elsewhere) {
                kept[index] = false;
            }
        }
        // Where a file is among those that stay.
        let places: Vec<usize> = kept
            .iter()
            .scan(0, |next, &kept| Some(std::mem::replace(next, *next + usize::from(kept))))
            .collect();
        for part in &mut self.parts {
            if let Elsewhere::File(index) = &mut part.elsewhere {
                *index = places[*index];
            }
        }
        let mut kept = kept.into_iter();
        self.files.retain(|_| kept.next().unwrap_or(true));
    }

    /// The same frame with references in the places of parts that need not be sent, and in front of it what
    /// announces these.
    fn refer(&mut self, references: &[Option<(i8, usize)>], new: Vec<Arc<OwnedFd>>) {
        let (mut bytes, mut parts) = (Vec::with_capacity(self.bytes.len() + 128), Vec::new());
        if !self.placed.is_empty() {
            Lending::of(&self.placed).put(&mut bytes);
        }
        if !self.files.is_empty() {
            put_files(&mut bytes, self.files.len());
        }
        self.files.splice(..0, new.into_iter().map(Attached::new));
        let (frame, mut from) = (bytes.len(), 0);
        for (part, reference) in self.parts.drain(..).zip(references) {
            let Some((kind, index)) = *reference else {
                bytes.extend_from_slice(&self.bytes[from..part.at]);
                from = part.at;
                parts.push(Part { at: bytes.len(), ..part });
                continue;
            };
            bytes.extend_from_slice(&self.bytes[from..part.at - bin_header(&part)]);
            put_index(&mut bytes, kind, index);
            from = part.at;
        }
        bytes.extend_from_slice(&self.bytes[from..]);
        let length = bytes.len() - frame - HEADER + total(&parts);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        bytes[frame..frame + HEADER].copy_from_slice(&length.to_le_bytes());
        (self.bytes, self.parts) = (bytes, parts);
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
    /// What is about to be written, if it may stay where it is, and where else it is.
    offered: Option<(Bytes, Elsewhere<Arc<OwnedFd>>)>,
    parts: Vec<Part>,
    files: Vec<Attached>,
}

thread_local! {
    /// Where parts go while a message is written.
    static COLLECTOR: RefCell<Option<Collector>> = const { RefCell::new(None) };
}

/// Puts back what was in a thread's variable, also after a panic.
pub(super) struct Restore<T: 'static>(
    pub(super) &'static std::thread::LocalKey<RefCell<Option<T>>>,
    pub(super) Option<T>,
);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}

/// Has the loader look up what a thread's first message needs.
pub(crate) fn prepare() {
    COLLECTOR.set(None);
    enclosed::prepare();
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
        files.push(Attached::new(file));
        Some((OPEN_FILE, (files.len() as u32 - 1).to_be_bytes()))
    })
}

/// Lets `bytes`, which `write` writes, stay where they are if they can.
pub(crate) fn offer<T>(
    bytes: &Bytes,
    elsewhere: &Elsewhere<Arc<OwnedFd>>,
    write: impl FnOnce() -> T,
) -> T {
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
    change(Some((bytes.clone(), elsewhere.clone())));
    let written = write();
    change(None);
    written
}

/// Appends bytes as a value, and lets them stay in their file if they can.
pub(crate) fn put(bytes: &Bytes, file: Arc<OwnedFd>, out: &mut Vec<u8>) -> io::Result<()> {
    put_bin_header(out, u32::try_from(bytes.len()).map_err(io::Error::other)?);
    offer(bytes, &Elsewhere::File(file), || Gather(out).write_all(bytes))
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
                let Some((bytes, elsewhere)) = collector
                    .offered
                    .take_if(|(offered, _)| std::ptr::eq(&raw const **offered, bytes))
                else {
                    return false;
                };
                let elsewhere = match elsewhere {
                    Elsewhere::File(file) => {
                        collector.files.push(Attached { file, needed: false });
                        Elsewhere::File(collector.files.len() - 1)
                    }
                    Elsewhere::Lent(home) => Elsewhere::Lent(home),
                    Elsewhere::Nowhere => Elsewhere::Nowhere,
                };
                collector.parts.push(Part { at: self.0.len(), bytes, elsewhere });
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
                let at = parted.bytes.len();
                parted.parts.push(Part { at, bytes, elsewhere: Elsewhere::Nowhere });
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

    proptest! {
        /// Those that are too long are sent; the others keep their files.
        #[test]
        fn files_stay_with_their_parts(longs in proptest::collection::vec(any::<bool>(), 1..10)) {
            let mut parted = Parted::default();
            for (index, &long) in longs.iter().enumerate() {
                let bytes = Bytes::from(vec![index as u8; if long { 20 } else { 10 }]);
                let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
                parted.files.push(Attached { file, needed: false });
                parted.parts.push(Part { at: 0, bytes, elsewhere: Elsewhere::File(index) });
            }
            let files: Vec<_> = parted.files.iter().map(|attached| attached.file.clone()).collect();
            parted.put_in_place(|part| part.bytes.len() > 10);
            for (part, &long) in parted.parts.iter().zip(&longs) {
                prop_assert_eq!(part.is_in_file(), !long);
                if let Elsewhere::File(index) = part.elsewhere {
                    let file = &files[usize::from(part.bytes[0])];
                    prop_assert!(Arc::ptr_eq(&parted.files[index].file, file));
                }
            }
            prop_assert_eq!(parted.files.len(), longs.iter().filter(|long| !**long).count());
        }
    }

    #[test]
    fn a_message_within_another_keeps_its_own_parts() {
        let long = Bytes::from(vec![1; LEAST]);
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let put = |out: &mut Vec<u8>| {
            offer(&long, &Elsewhere::Nowhere, || Gather(out).write_all(&long)).unwrap()
        };
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
