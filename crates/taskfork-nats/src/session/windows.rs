//! How far the windows of the sessions of one connection may grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::link::Link;

/// Windows grow until those of all sessions of a connection have so many bytes together. What was sent for one session
/// waits in front of the heartbeats of the others, and a session without any for 4 seconds is lost; so all of it must come
/// sooner, also on a slow line.
const TOTAL: u64 = 16 << 20;

/// The window of a session, unless its user has set one.
const FIRST: u32 = 1 << 20;

/// The windows of all sessions of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    first: u32,
    may_grow: bool,
    total: Arc<AtomicU64>,
}

/// The window of one session. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Window {
    windows: Windows,
    bytes: u64,
}

impl Windows {
    /// Windows of this many bytes. Only those of the default length grow.
    pub(crate) fn new(bytes: Option<u32>) -> Self {
        Self { first: bytes.unwrap_or(FIRST), may_grow: bytes.is_none(), total: Arc::default() }
    }

    /// The window that a session begins with, in bytes.
    pub(crate) fn first(&self) -> u32 {
        self.first
    }

    /// Lets the window of a session grow, if it may. The session always has its first window, even beyond the total.
    pub(super) fn begin(&self, link: Link) -> (Link, Window) {
        let bytes = link.window();
        self.total.fetch_add(bytes, Ordering::Relaxed);
        let link = if self.may_grow { link.with_growth() } else { link };
        (link, Window { windows: self.clone(), bytes })
    }
}

impl Window {
    /// Takes so many bytes more. Returns whether all windows together allow it.
    pub(super) fn grow(&mut self, bytes: u64) -> bool {
        let grown = |total: u64| total.checked_add(bytes).filter(|total| *total <= TOTAL);
        let has_grown =
            self.windows.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).is_ok();
        if has_grown {
            self.bytes += bytes;
        }
        has_grown
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.windows.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::wire::Offer;

    fn begin(windows: &Windows) -> (Link, Window) {
        let offer = Offer::new(windows.first(), usize::MAX, Duration::from_secs(2));
        windows.begin(Link::new(offer, offer, Instant::now()))
    }

    #[test]
    fn windows_grow_until_all_together_have_the_total() {
        let windows = Windows::new(None);
        let (mut first, mut second) = (begin(&windows).1, begin(&windows).1);
        let left = TOTAL - 2 * u64::from(FIRST);
        assert!(!first.grow(left + 1));
        assert!(first.grow(left));
        assert!(!second.grow(1));
        drop(first);
        assert!(second.grow(left));
        // Another session is not refused, but does not grow.
        let mut others: Vec<_> = (0..2).map(|_| begin(&windows).1).collect();
        assert!(!others[1].grow(1));
        drop((second, others));
        assert_eq!(windows.total.load(Ordering::Relaxed), 0);
    }
}
