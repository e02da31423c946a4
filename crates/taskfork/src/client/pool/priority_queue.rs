//! The queue of checkouts: by priority, where waiting makes up for a lower one.
//!
//! A checkout is served as if it had begun to wait earlier, by a fixed time for each level of its priority. So it is
//! overtaken only by those that come within a bounded time behind it, and within one level nobody is overtaken. While
//! no other priority than 0 waits, this is a [`Queue`] and nothing else.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::wait_queue::{Queue, Ticket};

/// Identifies a place in the queue. It is never used for another one, even after its checkout has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueuePlace {
    priority: i8,
    ticket: Ticket,
}

#[derive(Debug)]
pub(crate) struct PriorityQueue<T> {
    /// What one level of priority is worth.
    aging: Duration,
    /// Those of priority 0, and those that come before all others.
    normal: Queue<Waiting<T>>,
    /// Those of other priorities. No queue in it is empty.
    others: BTreeMap<i8, Queue<Waiting<T>>>,
}

#[derive(Debug)]
struct Waiting<T> {
    value: T,
    since: Instant,
}

impl<T> PriorityQueue<T> {
    pub(crate) fn new(aging: Duration) -> Self {
        Self { aging, normal: Queue::new(), others: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        match self.others.is_empty() {
            true => self.normal.len(),
            false => self.normal.len() + self.others.values().map(Queue::len).sum::<usize>(),
        }
    }

    /// Adds an element that waits since this time, which is not before that of earlier elements.
    pub(crate) fn push(&mut self, priority: i8, since: Instant, value: T) -> QueuePlace {
        let waiting = Waiting { value, since };
        let ticket = match priority {
            0 => self.normal.push_back(waiting),
            _ => self.push_other(priority, waiting),
        };
        QueuePlace { priority, ticket }
    }

    /// Adds an element behind the earlier ones of this method, and before all others of any priority.
    pub(crate) fn push_ahead(&mut self, since: Instant, value: T) -> QueuePlace {
        QueuePlace { priority: 0, ticket: self.normal.push_ahead(Waiting { value, since }) }
    }

    /// Removes the element that is served next.
    pub(crate) fn pop(&mut self) -> Option<T> {
        match self.others.is_empty() {
            true => self.normal.pop_front().map(|waiting| waiting.value),
            false => self.pop_best(),
        }
    }

    /// Removes the oldest element of the lowest priority, unless that is higher than this one. Elements that were put
    /// before all others stay.
    pub(crate) fn pop_lowest(&mut self, most: i8) -> Option<T> {
        let normal = self.normal.has_behind().then_some(0);
        let other = self.others.keys().next().copied();
        let lowest = normal.into_iter().chain(other).min()?;
        if lowest > most { None } else { self.take(lowest, Queue::pop_first_behind) }
    }

    /// Removes an element. Returns `None` if it is gone already.
    pub(crate) fn remove(&mut self, place: QueuePlace) -> Option<T> {
        self.take(place.priority, |queue| queue.remove(place.ticket))
    }

    #[cold]
    fn push_other(&mut self, priority: i8, waiting: Waiting<T>) -> Ticket {
        self.others.entry(priority).or_insert_with(Queue::new).push_back(waiting)
    }

    /// Removes the element that is served next, if other priorities than 0 wait.
    #[cold]
    fn pop_best(&mut self) -> Option<T> {
        let priority = if self.normal.has_ahead() { 0 } else { self.next_priority()? };
        self.pop_of(priority)
    }

    fn pop_of(&mut self, priority: i8) -> Option<T> {
        self.take(priority, Queue::pop_front)
    }

    fn take(
        &mut self,
        priority: i8,
        take: impl FnOnce(&mut Queue<Waiting<T>>) -> Option<Waiting<T>>,
    ) -> Option<T> {
        if priority == 0 {
            return take(&mut self.normal).map(|waiting| waiting.value);
        }
        let queue = self.others.get_mut(&priority)?;
        let waiting = take(queue);
        if queue.is_empty() {
            self.others.remove(&priority);
        }
        waiting.map(|waiting| waiting.value)
    }

    /// The priority whose first element has waited longest, where each level counts as a time. If two have waited equally
    /// long, it is the higher one.
    fn next_priority(&self) -> Option<i8> {
        let normal = self.normal.front().map(|first| (0, first.since));
        let others =
            self.others.iter().filter_map(|(&level, queue)| Some((level, queue.front()?.since)));
        let mut fronts = normal.into_iter().chain(others);
        let mut best = fronts.next()?;
        for front in fronts {
            if self.is_before(front, best) {
                best = front;
            }
        }
        Some(best.0)
    }

    /// Whether the first of two elements is served before the second, which has another priority.
    fn is_before(&self, (one, since): (i8, Instant), (other, other_since): (i8, Instant)) -> bool {
        let lead =
            |higher: i8, lower: i8| self.aging.saturating_mul(u32::from(higher.abs_diff(lower)));
        match one > other {
            true => since.saturating_duration_since(other_since) <= lead(one, other),
            false => other_since.saturating_duration_since(since) > lead(other, one),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AGING: Duration = Duration::from_secs(1);

    /// An element of the model.
    #[derive(Debug, Clone, Copy)]
    struct Element {
        number: usize,
        place: QueuePlace,
        since: Instant,
        priority: i8,
    }

    impl Element {
        /// When it would have come with priority 0, in milliseconds behind `start`.
        fn rank(&self, start: Instant) -> (i128, i16) {
            let since = (self.since - start).as_millis() as i128;
            (
                since - i128::from(self.priority) * AGING.as_millis() as i128,
                -i16::from(self.priority),
            )
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(i8, u16),
        PushAhead,
        Pop,
        PopLowest(i8),
        Remove(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        let priority = || prop_oneof![3 => Just(0), 3 => -3i8..4, 1 => any::<i8>()];
        prop_oneof![
            5 => (priority(), 0u16..1500).prop_map(|(priority, later)| Step::Push(priority, later)),
            1 => Just(Step::PushAhead),
            3 => Just(Step::Pop),
            1 => priority().prop_map(Step::PopLowest),
            1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        ]
    }

    /// The elements in the order in which they must be served. The list itself is in the order in which they came.
    fn next(waiting: &[Element], start: Instant) -> Option<usize> {
        (0..waiting.len()).min_by_key(|&place| (waiting[place].rank(start), place))
    }

    proptest! {
        #[test]
        fn it_serves_as_a_sorted_list_does(steps in proptest::collection::vec(step(), 0..200)) {
            let start = Instant::now();
            let mut now = start;
            let mut queue = PriorityQueue::new(AGING);
            let (mut ahead, mut waiting) = (Vec::<Element>::new(), Vec::<Element>::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(priority, later) => {
                        now += Duration::from_millis(later.into());
                        let place = queue.push(priority, now, number);
                        waiting.push(Element { number, place, since: now, priority });
                    }
                    Step::PushAhead => {
                        let place = queue.push_ahead(now, number);
                        ahead.push(Element { number, place, since: now, priority: 0 });
                    }
                    Step::Pop if !ahead.is_empty() => {
                        prop_assert_eq!(queue.pop(), Some(ahead.remove(0).number));
                    }
                    Step::Pop => {
                        let expected = next(&waiting, start).map(|place| waiting.remove(place));
                        prop_assert_eq!(queue.pop(), expected.map(|element| element.number));
                        // So the wait is bounded: whoever overtakes came no later than the levels between are worth.
                        for other in expected.iter().flat_map(|served| waiting.iter().map(move |other| (served, other))) {
                            let (served, other) = other;
                            let levels = i64::from(served.priority) - i64::from(other.priority);
                            let later = served.since.saturating_duration_since(other.since);
                            prop_assert!(later <= AGING * u32::try_from(levels.max(0)).unwrap());
                        }
                    }
                    Step::PopLowest(most) => {
                        let lowest = waiting.iter().map(|element| element.priority).min();
                        let is_lowest = |element: &&Element| Some(element.priority) == lowest;
                        let expected = waiting.iter().find(is_lowest).filter(|element| element.priority <= most);
                        let expected = expected.map(|element| element.number);
                        prop_assert_eq!(queue.pop_lowest(most), expected);
                        waiting.retain(|element| Some(element.number) != expected);
                    }
                    Step::Remove(index) if !ahead.is_empty() || !waiting.is_empty() => {
                        let place = index.index(ahead.len() + waiting.len());
                        let element = match place.checked_sub(ahead.len()) {
                            None => ahead.remove(place),
                            Some(place) => waiting.remove(place),
                        };
                        prop_assert_eq!(queue.remove(element.place), Some(element.number));
                        prop_assert_eq!(queue.remove(element.place), None);
                    }
                    Step::Remove(_) => {}
                }
                prop_assert_eq!(queue.len(), ahead.len() + waiting.len());
            }
        }
    }
}
