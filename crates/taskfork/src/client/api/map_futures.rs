//! Futures that one task runs. Each has a waker of its own, so that an answer of one does not poll the others.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::lock;

pub(super) struct Futures<F> {
    slots: Vec<Slot<F>>,
    /// The slots that have no future.
    free: Vec<usize>,
    woken: Arc<Woken>,
}

struct Slot<F> {
    running: Option<(u64, Pin<Box<F>>)>,
    waker: Arc<SlotWaker>,
}

/// Which futures must be polled, and the task that polls them.
#[derive(Debug, Default)]
struct Woken(Mutex<(Vec<usize>, Option<Waker>)>);

struct SlotWaker {
    slot: usize,
    /// The slot is in the list of those that must be polled.
    is_listed: AtomicBool,
    woken: Arc<Woken>,
}

impl<F> Default for Futures<F> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), woken: Arc::default() }
    }
}

impl<F: Future> Futures<F> {
    /// Adds a future, which the next [`poll`](Self::poll) polls.
    pub(super) fn push(&mut self, number: u64, future: F) {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let woken = self.woken.clone();
            let waker = Arc::new(SlotWaker { slot, is_listed: AtomicBool::new(false), woken });
            self.slots.push(Slot { running: None, waker });
            slot
        });
        self.slots[slot].running = Some((number, Box::pin(future)));
        self.slots[slot].waker.list();
    }

    /// Polls each future once that was woken or is new. Calls `done` with the number and the output of each that ends.
    /// The task is woken when one must be polled again.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, mut done: impl FnMut(u64, F::Output)) {
        let slots = {
            let mut woken = lock(&self.woken.0);
            match &mut woken.1 {
                Some(task) => task.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            std::mem::take(&mut woken.0)
        };
        for slot in slots {
            let Slot { running, waker } = &mut self.slots[slot];
            // Before the poll: a wake during the poll must list it again.
            waker.is_listed.store(false, Ordering::SeqCst);
            let Some((number, future)) = running else { continue };
            let own = Waker::from(waker.clone());
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&own)) {
                done(*number, output);
                *running = None;
                self.free.push(slot);
            }
        }
    }
}

impl<F> Futures<F> {
    /// How many futures there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl SlotWaker {
    /// Lists the slot among those that must be polled. Returns the task to wake, unless it was listed before.
    fn list(&self) -> Option<Waker> {
        if self.is_listed.swap(true, Ordering::SeqCst) {
            return None;
        }
        let mut woken = lock(&self.woken.0);
        woken.0.push(self.slot);
        woken.1.clone()
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Woken while nothing is locked, because that may run any code.
        if let Some(task) = self.list() {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use super::*;

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_woken_futures_are_polled_and_each_wakes_the_task() {
        let polls = Rc::new(Cell::new([0; 3]));
        let wakers = Rc::new(Cell::new([const { None::<Waker> }; 3]));
        let is_done = Rc::new(Cell::new(false));
        let mut futures = Futures::default();
        for place in 0..3 {
            let (polls, wakers, is_done) = (polls.clone(), wakers.clone(), is_done.clone());
            let future = poll_fn(move |context| {
                let mut counts = polls.get();
                counts[place] += 1;
                polls.set(counts);
                let mut all = wakers.take();
                all[place] = Some(context.waker().clone());
                wakers.set(all);
                if is_done.get() { Poll::Ready(place) } else { Poll::Pending }
            });
            futures.push(place as u64, future);
        }
        let count = Arc::<Count>::default();
        let task = Waker::from(count.clone());
        let mut context = Context::from_waker(&task);
        let mut done = Vec::new();
        futures.poll(&mut context, |number, _| done.push(number));
        futures.poll(&mut context, |number, _| done.push(number));
        assert_eq!((polls.get(), futures.len()), ([1; 3], 3));

        is_done.set(true);
        let all = wakers.take();
        for _ in 0..2 {
            all[1].as_ref().unwrap().wake_by_ref();
        }
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        futures.poll(&mut context, |number, _| done.push(number));
        assert_eq!((polls.get(), futures.len(), &done[..]), ([1, 2, 1], 2, &[1][..]));

        // A late waker of a future that has ended does no harm, also if another has its slot.
        futures.poll(&mut context, |number, _| done.push(number));
        all[1].as_ref().unwrap().wake_by_ref();
        futures.poll(&mut context, |number, _| done.push(number));
        assert_eq!((polls.get(), futures.len()), ([1, 2, 1], 2));
    }

    #[test]
    fn a_future_that_wakes_itself_is_polled_once_at_a_time() {
        let polls = Rc::new(Cell::new(0));
        let mut futures = Futures::default();
        let counted = polls.clone();
        futures.push(
            0,
            poll_fn(move |context| {
                counted.set(counted.get() + 1);
                context.waker().wake_by_ref();
                Poll::<()>::Pending
            }),
        );
        let count = Arc::<Count>::default();
        let task = Waker::from(count.clone());
        for polled in 1..4 {
            futures.poll(&mut Context::from_waker(&task), |_, ()| ());
            assert_eq!((polls.get(), count.0.load(Ordering::SeqCst)), (polled, polled));
        }
    }
}
