//! What a call streams: the items of its input, which the user gives, and those of its worker, which the user takes.

use super::calls::Seq;
use super::items::{CallInput, Item};
use super::{Assignment, Session};
use crate::client::proto::connection::Connection;
use crate::wire::gather_frame::GatherFrame;

impl Session {
    /// The caller of a call that has just been submitted reads the items that it streams.
    pub(crate) fn read_items(&mut self, seq: Seq) {
        if let Some(entry) = self.calls.get_mut(seq) {
            entry.items = Some(Box::default());
        }
    }

    /// The caller of a call that has just been submitted streams an input to it.
    pub(crate) fn stream_input(&mut self, seq: Seq) {
        if let Some(entry) = self.calls.get_mut(seq) {
            entry.input = Some(Box::default());
        }
    }

    /// Whether the worker takes an item of the input of this call now, or its end.
    pub(crate) fn wants_input(&mut self, seq: Seq) -> bool {
        let Assignment::Worker(connection) = &self.assignment else { return false };
        connection.has_room_for_item()
            && self.calls.running_input(seq).is_some_and(|(_, input)| input.is_wanted())
    }

    /// Sends an item of the input of a call, which [`wants_input`](Self::wants_input). If it no longer does, the item
    /// comes back.
    ///
    /// # Errors
    /// If the worker cannot receive such an item.
    pub(crate) fn put_input(
        &mut self,
        seq: Seq,
        item: GatherFrame,
    ) -> Result<Option<GatherFrame>, String> {
        if !self.wants_input(seq) {
            return Ok(Some(item));
        }
        if let Some((connection, number, input)) = self.running_input(seq) {
            input.spend(connection.put_item(number, item)?);
            // Another worker could not get all of the input.
            self.mark_used();
        }
        Ok(None)
    }

    /// Sends the end of the input of a call, which [`wants_input`](Self::wants_input). Returns false if it no longer does.
    pub(crate) fn end_input(&mut self, seq: Seq, error: Option<&str>) -> bool {
        if !self.wants_input(seq) {
            return false;
        }
        if let Some((connection, number, input)) = self.running_input(seq) {
            input.end();
            // It is short, so it can always be encoded.
            let _ = connection.put_input_end(number, error);
            // As for an item: the stream is over.
            self.mark_used();
        }
        true
    }

    fn running_input(&mut self, seq: Seq) -> Option<(&mut Connection, u64, &mut CallInput)> {
        let Assignment::Worker(connection) = &mut self.assignment else { return None };
        let (number, input) = self.calls.running_input(seq)?;
        Some((connection, number, input))
    }

    /// Takes the next item of a call, if there is one. Its worker gets more credit.
    pub(crate) fn take_item(&mut self, seq: Seq) -> Option<Item> {
        let entry = self.calls.get_mut(seq)?;
        let (item, credit) = entry.items.as_mut()?.take()?;
        if let (Some(credit), Some(number)) = (credit, entry.number())
            && let Assignment::Worker(connection) = &mut self.assignment
        {
            connection.put_credit(number, credit);
        }
        Some(item)
    }
}
