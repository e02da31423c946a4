//! Long byte strings of a message that stay where they are: on their way out they are sent from
//! there, on their way in they are parts of what was received. Nothing of them is copied.

use std::cell::RefCell;
use std::io::{self, IoSlice, Write};

use bytes::Bytes;

/// Shorter ones are copied.
pub(crate) const LEAST: usize = 16 << 10;

/// Bytes that stand in a message behind the first `at` of the others.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) at: usize,
    pub(crate) bytes: Bytes,
}

/// A frame, or several: its bytes, but for its parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parted {
    pub(crate) bytes: Vec<u8>,
    /// In order.
    pub(crate) parts: Vec<Part>,
}

/// So many pieces are sent at a time.
pub(crate) const SLICES: usize = 16;

impl Parted {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + total(&self.parts)
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

/// How many bytes they have together.
pub(crate) fn total(parts: &[Part]) -> usize {
    parts.iter().map(|part| part.bytes.len()).sum()
}

#[derive(Default)]
struct Collector {
    /// What is about to be written, if it may stay where it is.
    offered: Option<Bytes>,
    parts: Vec<Part>,
}

thread_local! {
    /// Where parts go while a message is written.
    static COLLECTOR: RefCell<Option<Collector>> = const { RefCell::new(None) };
    /// The message that is being read.
    static SOURCE: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Puts back what was in a thread's variable, also after a panic.
struct Restore<T: 'static>(&'static std::thread::LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}

/// Gives the parts of what `write` writes to a [`Gather`].
pub(crate) fn collect<T>(write: impl FnOnce() -> T) -> (T, Vec<Part>) {
    let _restore = Restore(&COLLECTOR, COLLECTOR.replace(Some(Collector::default())));
    let written = write();
    let collected = COLLECTOR.take().map(|collector| collector.parts);
    (written, collected.unwrap_or_default())
}

/// Lets `bytes`, which `write` writes, stay where they are if they can.
pub(crate) fn offer<T>(bytes: &Bytes, write: impl FnOnce() -> T) -> T {
    let change = |offered: Option<Bytes>| {
        COLLECTOR.with_borrow_mut(|collector| {
            if let Some(collector) = collector {
                collector.offered = offered;
            }
        });
    };
    if bytes.len() < LEAST {
        return write();
    }
    change(Some(bytes.clone()));
    let written = write();
    change(None);
    written
}

/// Has [`taken`] find its bytes in `message` while `read` runs.
pub(crate) fn within<T>(message: Option<&Bytes>, read: impl FnOnce() -> T) -> T {
    if message.is_none() {
        return read();
    }
    let _restore = Restore(&SOURCE, SOURCE.replace(message.cloned()));
    read()
}

/// Bytes that were found in a message: as a part of it, if they are long.
pub(crate) fn taken(found: &[u8]) -> Bytes {
    let source = SOURCE.with_borrow(|source| {
        let message = source.as_ref().filter(|_| found.len() >= LEAST)?;
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
                let is_offered = |offered: &mut Bytes| std::ptr::eq(&raw const **offered, bytes);
                let Some(offered) = collector.offered.take_if(is_offered) else { return false };
                collector.parts.push(Part { at: self.0.len(), bytes: offered });
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
                parted.parts.push(Part { at: parted.bytes.len(), bytes });
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
    fn a_message_within_another_keeps_its_own_parts() {
        let long = Bytes::from(vec![1; LEAST]);
        let (mut outer, mut inner) = (Vec::new(), Vec::new());
        let put = |out: &mut Vec<u8>| offer(&long, || Gather(out).write_all(&long)).unwrap();
        let ((), parts) = collect(|| {
            let ((), parts) = collect(|| put(&mut inner));
            assert_eq!((parts.len(), inner.len()), (1, 0));
            put(&mut outer);
        });
        assert_eq!((parts.len(), outer.len()), (1, 0));
        put(&mut outer);
        assert_eq!(outer.len(), LEAST);
    }
}
