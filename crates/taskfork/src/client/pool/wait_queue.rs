//! A first-in, first-out queue from which any element can be removed in constant time.

use slab::Slab;

/// Identifies an element. It is never used for another one, even after its element is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    index: usize,
    generation: u64,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    nodes: Slab<Node<T>>,
    first: Option<usize>,
    last: Option<usize>,
    /// The last element that [`push_ahead`](Self::push_ahead) has added. The elements before it were added in the same way.
    last_ahead: Option<usize>,
    next_generation: u64,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    generation: u64,
    before: Option<usize>,
    after: Option<usize>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { nodes: Slab::new(), first: None, last: None, last_ahead: None, next_generation: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.first.map(|index| &self.nodes[index].value)
    }

    /// Whether the first element was added by [`push_ahead`](Self::push_ahead).
    pub(crate) fn has_ahead(&self) -> bool {
        self.last_ahead.is_some()
    }

    /// Whether any element was added by [`push_back`](Self::push_back).
    pub(crate) fn has_behind(&self) -> bool {
        self.last != self.last_ahead
    }

    pub(crate) fn push_back(&mut self, value: T) -> Ticket {
        let ticket = self.insert(value, self.last, None);
        match self.last.replace(ticket.index) {
            Some(last) => self.nodes[last].after = Some(ticket.index),
            None => self.first = Some(ticket.index),
        }
        ticket
    }

    /// Adds an element behind the earlier ones of this method, and before all others.
    pub(crate) fn push_ahead(&mut self, value: T) -> Ticket {
        let before = self.last_ahead;
        let after = before.map_or(self.first, |before| self.nodes[before].after);
        let ticket = self.insert(value, before, after);
        let index = Some(ticket.index);
        match before {
            Some(before) => self.nodes[before].after = index,
            None => self.first = index,
        }
        match after {
            Some(after) => self.nodes[after].before = index,
            None => self.last = index,
        }
        self.last_ahead = index;
        ticket
    }

    fn insert(&mut self, value: T, before: Option<usize>, after: Option<usize>) -> Ticket {
        self.next_generation += 1;
        let generation = self.next_generation;
        let index = self.nodes.insert(Node { value, generation, before, after });
        Ticket { index, generation }
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        self.first.map(|index| self.unlink(index))
    }

    /// Removes the first element that [`push_back`](Self::push_back) has added.
    pub(crate) fn pop_first_behind(&mut self) -> Option<T> {
        let first = self.last_ahead.map_or(self.first, |last| self.nodes[last].after)?;
        Some(self.unlink(first))
    }

    /// Removes an element from any position. Returns `None` if it is gone already.
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let there = self.nodes.get(ticket.index)?.generation == ticket.generation;
        there.then(|| self.unlink(ticket.index))
    }

    fn unlink(&mut self, index: usize) -> T {
        let node = self.nodes.remove(index);
        if self.last_ahead == Some(index) {
            self.last_ahead = node.before;
        }
        match node.before {
            Some(before) => self.nodes[before].after = node.after,
            None => self.first = node.after,
        }
        match node.after {
            Some(after) => self.nodes[after].before = node.before,
            None => self.last = node.before,
        }
        node.value
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_does_what_a_list_with_a_search_does(steps in proptest::collection::vec((0u8..5, any::<prop::sample::Index>()), 0..200)) {
            let mut queue = Queue::new();
            let mut model: VecDeque<(Ticket, usize)> = VecDeque::new();
            let (mut ahead, mut gone) = (0, Vec::new());
            for (number, (step, index)) in steps.into_iter().enumerate() {
                match step {
                    0 => model.push_back((queue.push_back(number), number)),
                    1 => {
                        model.insert(ahead, (queue.push_ahead(number), number));
                        ahead += 1;
                    }
                    2 => {
                        ahead = ahead.saturating_sub(1);
                        let expected = model.pop_front();
                        gone.extend(expected.map(|(ticket, _)| ticket));
                        prop_assert_eq!(queue.pop_front(), expected.map(|(_, number)| number));
                    }
                    3 => {
                        let expected = model.remove(ahead);
                        gone.extend(expected.map(|(ticket, _)| ticket));
                        prop_assert_eq!(queue.pop_first_behind(), expected.map(|(_, number)| number));
                    }
                    _ if !model.is_empty() => {
                        let place = index.index(model.len());
                        ahead -= usize::from(place < ahead);
                        let (ticket, number) = model.remove(place).unwrap();
                        gone.push(ticket);
                        prop_assert_eq!(queue.remove(ticket), Some(number));
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.is_empty(), model.is_empty());
                prop_assert_eq!(queue.has_behind(), model.len() > ahead);
                prop_assert_eq!(queue.front(), model.front().map(|(_, number)| number));
                prop_assert_eq!(queue.has_ahead(), ahead > 0);
                for ticket in &gone {
                    prop_assert_eq!(queue.remove(*ticket), None);
                }
            }
        }
    }
}
