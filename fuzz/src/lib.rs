//! The limits of memory and time that every target checks for every input.
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Counts allocated bytes.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: each method calls the system's allocator with its own arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for this function.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for this function.
        unsafe { System.realloc(place, layout, size) }
    }
}

/// The memory that any input may take, in bytes.
const MEMORY: usize = 8 << 20;

/// The processor time that any input may take, and that each of its bytes adds. The sanitizer makes code about ten times
/// slower.
const TIME: Duration = Duration::from_secs(2);
const TIME_OF_BYTE: Duration = Duration::from_micros(20);

/// Runs a target. Its input may take `factor` bytes of memory for each byte, and time in proportion to its length.
pub fn bounded(target: fn(&[u8]), factor: usize, data: &[u8]) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = processor_time();
    target(data);
    let took = processor_time() - start;
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    let (length, most) = (data.len(), MEMORY + factor * data.len());
    assert!(peak <= most, "{length} bytes took {peak} bytes of memory, more than {most}");
    let most = TIME + TIME_OF_BYTE * u32::try_from(length).unwrap_or(u32::MAX);
    assert!(took <= most, "{length} bytes took {took:?}, more than {most:?}");
}

fn processor_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
