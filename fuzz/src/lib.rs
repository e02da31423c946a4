//! What all targets share: the bounds on memory and time that hold for any input.
#![allow(clippy::unwrap_used, reason = "a target fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Counts what is allocated.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn add(bytes: usize) {
    let held = HELD.fetch_add(bytes, Relaxed) + bytes;
    PEAK.fetch_max(held, Relaxed);
}

// SAFETY: all is done by the system's allocator, with the arguments that came.
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

/// Bytes that any input may take, and bytes for each of its own.
const MEMORY: usize = 8 << 20;

/// Processor time that any input may take, and for each of its bytes: sanitizers make all of it about ten
/// times as slow as in use.
const TIME: Duration = Duration::from_secs(2);
const TIME_OF_BYTE: Duration = Duration::from_micros(20);

/// Runs a target, whose input may take `factor` times its length of memory, and time in proportion to it.
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
