//! Moving the memory that workers will share into huge pages, which makes forks of a large server
//! cheap.

use std::time::Instant;

use super::log;
use crate::display::seconds;
use crate::sys::{self, Collapsed};

/// Moves large mappings into huge pages and logs the result.
pub(super) fn use_huge_pages() {
    let start = Instant::now();
    let Collapsed { large, huge } = sys::collapse_huge_pages();
    if large > 0 {
        let (large, huge, time) = (large >> 20, huge >> 20, seconds(start.elapsed()));
        log::info!(
            "{huge} of {large} MiB of shared memory are in huge pages now, in {time}: a fork copies \
             one entry for each page"
        );
    }
}
