//! Memory that a server and the workers forked from it share.

use std::io;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// `count` zeroed words that stay shared through every later fork. They are never unmapped: a
/// worker may write its words for as long as it lives.
pub(crate) fn shared_words(count: usize) -> io::Result<&'static [AtomicU64]> {
    let bytes = count * size_of::<AtomicU64>();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an address of the kernel's choice cannot overlap any other mapping.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, access, MapFlags::SHARED) }?;
    // SAFETY: the mapping is page-aligned, `bytes` long, zeroed (a valid value of an atomic word),
    // lives as long as the process, and is only ever reached through atomics.
    Ok(unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) })
}

/// How much memory this process occupies, what it shares with others included; 0 if that cannot be
/// known.
pub(crate) fn resident_bytes() -> u64 {
    let sizes = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = sizes.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The device and inode, between blanks, of the mapping at this address, as the kernel lists them; of
/// shared memory no two are the same.
pub(crate) fn name_of_mapping(address: usize) -> Option<String> {
    let list = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = list.lines().find(|line| line.starts_with(&format!("{address:x}-")))?;
    let mut fields = line.split_whitespace().skip(3);
    Some(format!(" {} {} ", fields.next()?, fields.next()?))
}
