//! Leaving the memory of a vector out of forked processes.

use std::ffi::c_void;
use std::marker::PhantomData;

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;

/// Shorter memory is not left out: a fork copies its pages about as fast as the kernel takes the advice.
const LEAST_PAGES: usize = 16;

/// The pages that belong to a vector as a whole. Others may be in the first and in the last page of its memory.
#[derive(Debug)]
pub(crate) struct VecPages<'a> {
    start: *mut c_void,
    length: usize,
    _vec: PhantomData<&'a ()>,
}

/// While this exists, forked processes do not get these pages. They do again when it is dropped.
#[derive(Debug)]
#[must_use = "the pages are in forked processes again when it is dropped"]
pub(crate) struct LeftOut<'a>(Option<VecPages<'a>>);

impl<'a> VecPages<'a> {
    pub(crate) fn of<T>(vec: &'a Vec<T>) -> Self {
        let page = page_size();
        let bytes = vec.as_ptr_range().start.cast::<c_void>().cast_mut();
        let before = bytes.align_offset(page);
        let length = (vec.capacity() * size_of::<T>()).saturating_sub(before) / page * page;
        Self { start: bytes.wrapping_byte_add(before), length, _vec: PhantomData }
    }

    /// Leaves these pages out of processes that are forked while the result exists, if they are many. If the kernel
    /// refuses, forked processes get them.
    ///
    /// # Safety
    /// A process that is forked meanwhile must neither read, write nor drop the vector or one of its values.
    pub(crate) unsafe fn leave_out_of_forks(self) -> LeftOut<'a> {
        let is_long = self.length >= LEAST_PAGES * page_size();
        if is_long {
            // It may have succeeded for a part of the pages, so it is undone also after an error.
            // SAFETY: the advice changes nothing in this process, and the caller speaks for forked ones.
            let _ = unsafe { madvise(self.start, self.length, Advice::LinuxDontFork) };
        }
        LeftOut(is_long.then_some(self))
    }
}

impl Drop for LeftOut<'_> {
    fn drop(&mut self) {
        if let Some(VecPages { start, length, .. }) = self.0 {
            // In a forked process there is no memory at these addresses. The kernel says so, and nothing changes.
            // SAFETY: the advice changes no memory. The vector has kept its memory, because it was borrowed.
            let _ = unsafe { madvise(start, length, Advice::LinuxDoFork) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::test_support::in_child;

    /// Whether there is memory at this address.
    fn is_mapped(pages: &VecPages<'_>) -> bool {
        let mut resident = [0_u8; 1];
        // SAFETY: it writes one byte for the one page that it is asked about.
        unsafe { libc::mincore(pages.start, 1, resident.as_mut_ptr()) == 0 }
    }

    #[test]
    fn a_forked_process_has_no_pages_that_are_left_out_and_has_them_later() {
        let vec = vec![1_u8; (LEAST_PAGES + 2) * page_size()];
        let mapped = || in_child(|| i32::from(is_mapped(&VecPages::of(&vec))));
        // SAFETY: the process that is forked meanwhile does not use the vector.
        let left_out = unsafe { VecPages::of(&vec).leave_out_of_forks() };
        assert_eq!(mapped(), 0);
        drop(left_out);
        assert_eq!(mapped(), 1);
    }

    #[test]
    fn only_whole_pages_of_the_vector_are_left_out() {
        for bytes in [0, 1, page_size(), 3 * page_size() + 5] {
            let vec = Vec::<u8>::with_capacity(bytes);
            let pages = VecPages::of(&vec);
            let (start, end) = (pages.start.addr(), pages.start.addr() + pages.length);
            assert!(pages.length == 0 || start >= vec.as_ptr().addr());
            assert!(pages.length == 0 || end <= vec.as_ptr().addr() + vec.capacity());
            assert_eq!((start % page_size(), pages.length % page_size()), (0, 0));
        }
    }
}
