//! The next bytes of a stream as a message, gathered from where they are.

use std::io::IoSlice;

use bytes::{BufMut, Bytes, BytesMut};

use super::HEADER;

/// A piece as bytes, with one copy of the data.
pub(crate) fn encode_piece(number: u64, data: &[u8]) -> Bytes {
    gather_piece(number, &mut Gather::new(&[IoSlice::new(data)]), data.len())
}

/// A piece of the next `length` bytes.
pub(crate) fn gather_piece(number: u64, data: &mut Gather<'_>, length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_u8(1);
    bytes.put_u64_le(number);
    data.take(length, &mut bytes);
    bytes.freeze()
}

/// What is left of several slices that are sent as one.
#[derive(Debug)]
pub(crate) struct Gather<'a> {
    slices: &'a [IoSlice<'a>],
    /// How much of the first slice is gone.
    taken: usize,
    left: usize,
}

impl<'a> Gather<'a> {
    pub(crate) fn new(slices: &'a [IoSlice<'a>]) -> Self {
        Self { slices, taken: 0, left: slices.iter().map(|slice| slice.len()).sum() }
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Moves the next bytes to `out`; at most those that are left.
    fn take(&mut self, mut length: usize, out: &mut BytesMut) {
        while length > 0
            && let Some((first, others)) = self.slices.split_first()
        {
            let rest = &first[self.taken..];
            let part = &rest[..rest.len().min(length)];
            out.put_slice(part);
            length -= part.len();
            self.left -= part.len();
            if part.len() == rest.len() {
                (self.slices, self.taken) = (others, 0);
            } else {
                self.taken += part.len();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_of_several_slices_are_those_of_one(
            slices in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..5),
            length in 1usize..20,
        ) {
            let joined = slices.concat();
            let slices: Vec<_> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let mut gather = Gather::new(&slices);
            for piece in joined.chunks(length) {
                prop_assert_eq!(&gather_piece(7, &mut gather, piece.len())[HEADER..], piece);
            }
            prop_assert_eq!(gather.left(), 0);
        }
    }
}
