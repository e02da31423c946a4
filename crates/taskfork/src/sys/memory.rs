//! How much memory a process has, and in which pages.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::fs::{Stat, fstat, major, minor};

use super::kernel_file::KernelFile;

/// How long the amount of swapped memory is believed. The kernel takes some 7 µs more for it than for the
/// resident memory.
const SWAPPED_AGE: Duration = Duration::from_millis(10);

/// The memory that this process occupies. The files stay open, because a sandbox may forbid to open them
/// later.
#[derive(Debug)]
pub(crate) struct OccupiedMemory {
    sizes: KernelFile,
    status: KernelFile,
    /// How many bytes were swapped, and when that was read.
    swapped: u64,
    swapped_at: Option<Instant>,
}

impl OccupiedMemory {
    /// Opens the memory of the process that calls this.
    pub(crate) fn open() -> Self {
        Self {
            sizes: KernelFile::open("/proc/self/statm"),
            status: KernelFile::open("/proc/self/status"),
            swapped: 0,
            swapped_at: None,
        }
    }

    /// The files of a process, which [`descriptors`](Self::descriptors) has returned. They stay those of the process when it
    /// executes a program.
    pub(crate) fn of([sizes, status]: [OwnedFd; 2]) -> Self {
        let (sizes, status) = (KernelFile::of(sizes), KernelFile::of(status));
        Self { sizes, status, swapped: 0, swapped_at: None }
    }

    /// Its open files. `None` if the system does not say how much memory a process has.
    pub(crate) fn descriptors(&self) -> Option<[RawFd; 2]> {
        let [sizes, status] = [&self.sizes, &self.status].map(KernelFile::as_fd);
        Some([sizes?.as_raw_fd(), status?.as_raw_fd()])
    }

    /// The resident and the swapped memory of this process and of the child that it mirrors, in bytes, including
    /// shared pages. The swapped memory may be 10 ms old. 0 if the system does not say.
    pub(crate) fn bytes(&mut self) -> u64 {
        let child = super::mirrored_child();
        if self.swapped_at.is_none_or(|at| at.elapsed() >= SWAPPED_AGE) {
            let of_child =
                child.map(|child| std::fs::read_to_string(format!("/proc/{child}/status")));
            let of_child = of_child.map(|status| parse_swapped(&status.unwrap_or_default()));
            self.swapped = parse_swapped(&self.status.read()) + of_child.unwrap_or(0);
            self.swapped_at = Some(Instant::now());
        }
        let [own, _] = parse_sizes(&self.sizes.read());
        let child = child.map(|child| {
            let [resident, _] = sizes_of(&child.to_string());
            resident
        });
        own + child.unwrap_or(0) + self.swapped
    }
}

/// Returns how much memory is swapped according to the text of `/proc/PID/status`, in bytes.
fn parse_swapped(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// Returns the resident memory of a process, and how much of it is shared or belongs to files, in bytes.
fn sizes_of(process: &str) -> [u64; 2] {
    let sizes = std::fs::read_to_string(format!("/proc/{process}/statm"));
    parse_sizes(&sizes.unwrap_or_default())
}

fn parse_sizes(sizes: &str) -> [u64; 2] {
    let pages = |at| sizes.split_whitespace().nth(at).and_then(|pages| pages.parse::<u64>().ok());
    [1, 2].map(|at| pages(at).unwrap_or(0) * rustix::param::page_size() as u64)
}

/// The device and the inode of a mapped file, as the kernel lists them. Each memory file has an inode of its
/// own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MappedFile(String, String);

impl MappedFile {
    /// Returns this file.
    pub(super) fn of(file: &OwnedFd) -> io::Result<Self> {
        let Stat { st_dev: device, st_ino: inode, .. } = fstat(file)?;
        Ok(Self(format!("{:02x}:{:02x}", major(device), minor(device)), inode.to_string()))
    }

    /// Returns the file of the mapping that begins at this address in this process, as the kernel lists it.
    #[cfg(test)]
    pub(crate) fn at(address: usize) -> Option<Self> {
        let list = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = list.lines().find(|line| line.starts_with(&format!("{address:x}-")))?;
        let (device, inode) = Self::fields(line)?;
        Some(Self(device.to_owned(), inode.to_owned()))
    }

    /// Whether a process has mapped the file, by its list of mappings. The name is not compared, as a process
    /// can choose it.
    pub(crate) fn is_in(&self, list: &str) -> bool {
        list.lines().filter_map(Self::fields).any(|fields| fields == (&*self.0, &*self.1))
    }

    fn fields(line: &str) -> Option<(&str, &str)> {
        let mut fields = line.split_whitespace().skip(3);
        Some((fields.next()?, fields.next()?))
    }
}

impl std::fmt::Display for MappedFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}-{}", self.0, self.1)
    }
}

/// The size of a huge page on x86-64 and on most aarch64 machines.
const HUGE: usize = 2 << 20;

/// The least share of a region that must be in use, for a region of two huge pages.
const LEAST_USED: usize = used_of(2 * HUGE);

const fn used_of(length: usize) -> usize {
    length / 4 * 3
}

/// The result of [`collapse_huge_pages`], in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Collapsed {
    /// Private memory in regions that are large and mostly in use.
    pub(crate) large: usize,
    /// How much of it is in huge pages now.
    pub(crate) huge: usize,
}

/// Moves this process's large private regions into huge pages, as far as the kernel supports that. A fork
/// copies one page-table entry for each page: with huge pages, a five-hundredth of them.
pub(crate) fn collapse_huge_pages() -> Collapsed {
    let [resident, not_private] = sizes_of("self");
    // To read the list of regions takes much longer than this check.
    if resident.saturating_sub(not_private) < LEAST_USED as u64 {
        return Collapsed::default();
    }
    let large: Vec<Region> = large_regions().collect();
    for Region { range, .. } in &large {
        let (start, end) = (range.start.next_multiple_of(HUGE), range.end / HUGE * HUGE);
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_COLLAPSE] {
            // SAFETY: neither advice changes the contents of memory. If the range has been unmapped since it
            // was listed, or the kernel does not know the advice, the call only returns an error.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        }
    }
    let sum = |of: fn(&Region) -> usize, regions: &[Region]| regions.iter().map(of).sum();
    let now: Vec<Region> = large_regions().collect();
    Collapsed {
        large: sum(|region| region.resident, &large),
        huge: sum(|region| region.huge, &now),
    }
}

/// A private mapping.
struct Region {
    range: Range<usize>,
    resident: usize,
    huge: usize,
}

/// Returns the mappings of at least two huge pages that are mostly in use. In the others, huge pages would
/// occupy much more memory.
fn large_regions() -> impl Iterator<Item = Region> {
    let list = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut regions: Vec<Region> = Vec::new();
    let mut is_own = false;
    for line in list.lines() {
        let mut fields = line.split_whitespace();
        let first = fields.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let hexadecimal = |number| usize::from_str_radix(number, 16).unwrap_or(0);
            let range = hexadecimal(start)..hexadecimal(end);
            // Its permissions, its offset, its device, its file.
            is_own = fields.next() == Some("rw-p") && fields.nth(2) == Some("0");
            if is_own {
                regions.push(Region { range, resident: 0, huge: 0 });
            }
        } else if let Some(region) = regions.last_mut().filter(|_| is_own) {
            let mut bytes =
                || fields.next().and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10;
            match first {
                "Rss:" => region.resident = bytes(),
                "AnonHugePages:" => region.huge = bytes(),
                _ => {}
            }
        }
    }
    regions.into_iter().filter(|Region { range, resident, .. }| {
        range.len() >= 2 * HUGE && *resident >= used_of(range.len())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_memory_is_part_of_what_a_process_occupies() {
        let status = "VmRSS:\t    2048 kB\nVmSwap:\t     300 kB\nThreads:\t1\n";
        assert_eq!(parse_swapped(status), 300 << 10);
        assert_eq!(parse_swapped("Name:\tkthreadd\n"), 0);
        let own = parse_swapped(&KernelFile::open("/proc/self/status").read());
        assert!(OccupiedMemory::open().bytes() > own);
    }

    #[test]
    fn a_mapping_is_known_by_its_file_and_not_by_a_name() {
        let published = crate::sys::PublishedPage::new(false).unwrap();
        let page = published.readable();
        let mapped = MappedFile::at(page.as_ptr().addr()).unwrap();
        assert_eq!(published.file(), &mapped);
        let list = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(mapped.is_in(&list));
        let MappedFile(device, inode) = &mapped;
        assert!(!mapped.is_in(&format!("10-20 rw-s 0 08:01 7 /tmp/a {device} {inode} b\n")));
    }

    #[test]
    fn large_memory_that_is_used_is_found_and_keeps_what_is_in_it() {
        let holds = |region: &Region, of: &Vec<u8>| region.range.contains(&(of.as_ptr().addr()));
        // So much that it is most of a region also where the kernel makes one of it and of what other
        // threads have beside it.
        let (full, block) = (vec![7_u8; 256 << 20], vec![7_u8; 1 << 20]);
        assert!(large_regions().any(|region| holds(&region, &full)));
        let collapsed = collapse_huge_pages();
        assert!(collapsed.large >= 256 << 20, "{collapsed:?}");
        assert!(full.chunks_exact(block.len()).all(|found| found == block));
        drop(full);
        let mut sparse = Vec::<u8>::with_capacity(32 << 20);
        sparse.push(1);
        assert!(!large_regions().any(|region| holds(&region, &sparse)));
    }
}
