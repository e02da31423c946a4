//! The items of one call that streams: those that wait for their reader, with the credit of its worker, and those of
//! its input. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::client::proto::AnswerAttachments;
use crate::wire::credit::{Allowance, Window};

/// An item that its reader has not decoded yet.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) value: Bytes,
    pub(crate) attachments: AnswerAttachments,
    pub(crate) cost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct ItemQueue {
    items: VecDeque<Item>,
    window: Window,
}

impl ItemQueue {
    /// Appends an item whose message has `length` bytes.
    ///
    /// # Errors
    /// How the worker has broken the protocol.
    pub(crate) fn receive(&mut self, item: Item, length: usize) -> Result<(), String> {
        let files = item.attachments.as_ref().map_or(0, |attachments| attachments.files.len());
        let received = self.window.receive(item.cost, length, files);
        received.map_err(|what| format!("the worker sent {what}"))?;
        self.items.push_back(item);
        Ok(())
    }

    /// Takes the next item. Returns with it how much credit the worker is to have in all, if it is to have more.
    pub(crate) fn take(&mut self) -> Option<(Item, Option<u64>)> {
        let item = self.items.pop_front()?;
        let more = self.window.take(item.cost);
        Some((item, more))
    }

    /// Whether an item has come, so that the call has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.window.has_begun()
    }

    /// Drops the items, because nobody reads them.
    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }
}

/// The input that the caller of a call streams to its worker.
#[derive(Debug, Default)]
pub(crate) struct CallInput {
    allowance: Allowance,
    /// The last item has been sent.
    is_over: bool,
}

impl CallInput {
    /// Whether the worker takes an item now, or the end.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.is_over && self.allowance.allows()
    }

    /// Whether the worker has asked for items, so that the call has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.allowance.has_begun()
    }

    pub(crate) fn spend(&mut self, cost: u64) {
        self.allowance.spend(cost);
    }

    pub(crate) fn end(&mut self) {
        self.is_over = true;
    }

    /// The worker gives credit.
    ///
    /// # Errors
    /// How it has broken the protocol.
    pub(crate) fn grant(&mut self, credit: u64) -> Result<(), String> {
        self.allowance.grant(credit).map_err(|what| format!("the worker {what}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::credit::{ITEM_OVERHEAD, WINDOW};

    fn item(length: usize, extra: u64) -> (Item, usize) {
        let cost = length as u64 + ITEM_OVERHEAD + extra;
        (Item { value: Bytes::new(), attachments: None, cost }, length)
    }

    #[test]
    fn an_item_must_have_credit_and_an_honest_cost() {
        let mut queue = ItemQueue::default();
        let (cheap, length) = item(1000, 0);
        let cheap = Item { cost: cheap.cost - 1, ..cheap };
        assert!(queue.receive(cheap, length).unwrap_err().contains("at the cost of 1255"));
        let (large, length) = item(10 << 20, 0);
        queue.receive(large, length).unwrap();
        let (next, length) = item(1, 0);
        assert!(queue.receive(next, length).unwrap_err().contains("without credit"));
        let (huge, length) = (Item { value: Bytes::new(), attachments: None, cost: u64::MAX }, 1);
        let mut queue = ItemQueue::default();
        queue.receive(huge, length).unwrap();
        assert_eq!(queue.take().unwrap().1, Some(u64::MAX));
    }

    proptest! {
        /// A worker that sends whenever it has credit, and waits otherwise, never stops for good while its reader reads,
        /// and is never further ahead than the window and one item.
        #[test]
        fn a_worker_and_its_reader_never_wait_for_each_other(
            lengths in prop::collection::vec((0..600_000usize, 0..600_000u64), 1..60),
            reads in prop::collection::vec(any::<bool>(), 0..200),
        ) {
            let mut queue = ItemQueue::default();
            let (mut credit, mut sent, mut unread, mut largest) = (WINDOW, 0, 0, 0);
            let (mut waiting, mut received) = (lengths.iter(), 0);
            let mut reads = reads.into_iter().chain(std::iter::repeat(true));
            let mut next = waiting.next();
            while received < lengths.len() {
                let can_send = next.is_some() && sent < credit;
                let reads = reads.next().unwrap_or(true);
                if can_send && !(reads && received < 3) {
                    let &(length, extra) = next.unwrap();
                    let (item, length) = item(length, extra);
                    sent += item.cost;
                    unread += item.cost;
                    largest = largest.max(item.cost);
                    queue.receive(item, length).unwrap();
                    next = waiting.next();
                    prop_assert!(unread <= WINDOW + largest);
                } else if let Some((item, more)) = queue.take() {
                    received += 1;
                    unread -= item.cost;
                    if let Some(more) = more {
                        prop_assert!(more > credit);
                        credit = more;
                    }
                } else {
                    prop_assert!(next.is_none() || sent < credit, "both wait");
                    // The reader came before the first item.
                    if can_send {
                        let &(length, extra) = next.unwrap();
                        let (item, length) = item(length, extra);
                        sent += item.cost;
                        unread += item.cost;
                        largest = largest.max(item.cost);
                        queue.receive(item, length).unwrap();
                        next = waiting.next();
                    }
                }
            }
            prop_assert_eq!(unread, 0);
        }
    }
}
