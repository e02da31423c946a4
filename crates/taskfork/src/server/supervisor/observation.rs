//! What the loop has read in a worker's slot.

use std::time::Duration;

use crate::server::numbered::Numbered;
use crate::worker::scoreboard::{Corruption, SlotView};

/// The content of a slot. The worker can write any value there at any time, so nothing of it is true for
/// longer than the reading took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The last valid view.
    pub(crate) view: SlotView,
    /// What in the slot cannot be, if that is why `view` is an older one.
    pub(crate) corruption: Option<Corruption>,
    /// When the timeout of the current or last call is over. This and the values below were read after
    /// `view`.
    pub(crate) deadline: Option<Duration>,
    /// When the current or last call is killed.
    pub(crate) hard_deadline: Option<Duration>,
    /// The worker has reported its stack.
    pub(crate) has_stack: bool,
    /// How many checkouts have ended.
    pub(crate) checkouts: u64,
    /// The client speaks the protocol of AnyEvent::Task.
    pub(crate) is_json: bool,
}

/// The workers whose slots were observed, with what was there. `slots` is in the order of the workers'
/// numbers.
pub(super) fn observed<W>(
    workers: &mut Numbered<W>,
    slots: impl IntoIterator<Item = (u64, Observation)>,
) -> impl Iterator<Item = (u64, &mut W, Observation)> {
    let mut workers = workers.iter_mut().peekable();
    slots.into_iter().filter_map(move |(number, observed)| {
        while workers.next_if(|(known, _)| *known < number).is_some() {}
        let (_, worker) = workers.next_if(|(known, _)| *known == number)?;
        Some((number, worker, observed))
    })
}
