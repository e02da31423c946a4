//! Calls that run for longer than the threshold, seen by looking once a second.

use std::collections::{BTreeMap, VecDeque};

use taskfork::server::WorkerStatus;

use crate::model::{SlowCall, Worker};

/// How many slow calls are shown of those that run, and of those that have ended.
const MAX_CALLS: usize = 50;

/// How often a worker is asked for the stack of one call: it is sent one signal, and resolving its stack may take too long.
/// Programs in other languages show none.
const MAX_SAMPLES: u32 = 6;

/// A worker is asked for its stack if its call runs for so many times as long as a slow one: the signal interrupts system
/// calls, so it is for calls that hang.
const SAMPLED_AFTER: f64 = 5.0;

#[derive(Debug, Default)]
pub(crate) struct SlowCalls {
    /// By the numbers of workers.
    running: BTreeMap<u64, Running>,
    ended: VecDeque<Running>,
    has_changed: bool,
}

#[derive(Debug)]
struct Running {
    call: SlowCall,
    /// How often the worker was asked for its stack.
    samples: u32,
    /// It runs for so long that the worker may be asked.
    is_sampled: bool,
    /// The server has not answered meanwhile, or not told of this worker. It may tell that the call still runs.
    may_return: bool,
}

impl SlowCalls {
    /// Takes what the workers do at this time. Both lists have the same workers in the same order.
    pub(crate) fn update<'a>(
        &mut self,
        workers: impl Iterator<Item = (&'a WorkerStatus, &'a Worker)>,
        slow_seconds: f64,
        now: f64,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for (status, worker) in workers {
            if status.state != "busy" || status.seconds < slow_seconds {
                continue;
            }
            let known = match before.remove(&status.number) {
                Some(known) if known.is_of(status) => Some(known),
                other => {
                    self.end(other, now);
                    self.has_changed = true;
                    self.take_back(status)
                }
            };
            let mut running = known.unwrap_or_else(|| Running {
                call: slow_call(status, worker),
                samples: 0,
                is_sampled: false,
                may_return: true,
            });
            running.is_sampled = status.seconds >= slow_seconds * SAMPLED_AFTER;
            if status.stack.is_some() && running.call.stack != status.stack {
                running.call.stack.clone_from(&status.stack);
                self.has_changed = true;
            }
            self.running.insert(status.number, running);
        }
        before.into_values().for_each(|call| self.end(Some(call), now));
    }

    /// The server does not answer. Its calls may still run.
    pub(crate) fn lose_all(&mut self, now: f64) {
        for (_, call) in std::mem::take(&mut self.running) {
            self.end(Some(call), now);
        }
    }

    /// All workers have ended, and numbers begin anew.
    pub(crate) fn end_all(&mut self, now: f64) {
        self.lose_all(now);
        self.ended.iter_mut().for_each(|ended| ended.may_return = false);
    }

    fn end(&mut self, running: Option<Running>, now: f64) {
        let Some(mut running) = running else { return };
        running.call.ended = Some(now);
        if self.ended.len() == MAX_CALLS {
            self.ended.pop_front();
        }
        self.ended.push_back(running);
        self.has_changed = true;
    }

    /// The call that this worker runs, if it was taken for one that has ended.
    fn take_back(&mut self, status: &WorkerStatus) -> Option<Running> {
        let found = self.ended.iter().position(|it| it.may_return && it.is_of(status))?;
        let mut running = self.ended.remove(found)?;
        running.call.ended = None;
        Some(running)
    }

    /// The worker whose stack is wanted next: the one that was asked least often, of those the one whose call runs longest.
    pub(crate) fn next_sample(&mut self) -> Option<u64> {
        let wanted = self
            .running
            .iter_mut()
            .filter(|(_, it)| it.is_sampled && it.call.stack.is_none() && it.samples < MAX_SAMPLES);
        let order = |one: &Running, other: &Running| {
            one.samples.cmp(&other.samples).then(one.call.began.total_cmp(&other.call.began))
        };
        // A worker shows its stack from the second time on that it is asked, so it is asked twice in a row.
        let (&worker, running) = wanted.min_by(|one, other| {
            let halves = (one.1.samples % 2 == 0).cmp(&(other.1.samples % 2 == 0));
            halves.then(order(one.1, other.1))
        })?;
        running.samples += 1;
        Some(worker)
    }

    /// The stack of a call: the number of its worker, its process id, and the number of the call. Returns whether that is a slow
    /// call that runs.
    #[cfg(feature = "nats")]
    pub(crate) fn add_stack(&mut self, (worker, pid, call): (u64, u32, u64), stack: &str) -> bool {
        let running = self.running.get_mut(&worker);
        let running = running.filter(|it| (it.call.pid, it.call.call) == (pid, call));
        let Some(running) = running else { return false };
        running.call.stack = Some(stack.to_owned());
        self.has_changed = true;
        true
    }

    /// How many run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// When the one that runs longest began.
    pub(crate) fn first_beginning(&self) -> Option<f64> {
        self.running.values().map(|it| it.call.began).min_by(f64::total_cmp)
    }

    /// Those that run, longest first, and then those that have ended, the last one first.
    pub(crate) fn all(&self) -> Vec<SlowCall> {
        let mut running: Vec<_> = self.running.values().map(|running| &running.call).collect();
        running.sort_by(|one, other| one.began.total_cmp(&other.began));
        let running = running.into_iter().take(MAX_CALLS);
        running.chain(self.ended.iter().rev().map(|it| &it.call)).cloned().collect()
    }

    /// All, if something has changed since the last time that this was called.
    pub(crate) fn take_changed(&mut self) -> Option<Vec<SlowCall>> {
        std::mem::take(&mut self.has_changed).then(|| self.all())
    }
}

impl Running {
    fn is_of(&self, worker: &WorkerStatus) -> bool {
        let call = &self.call;
        (call.worker, call.pid, call.call) == (worker.number, worker.pid, worker.calls)
    }
}

fn slow_call(status: &WorkerStatus, worker: &Worker) -> SlowCall {
    SlowCall {
        worker: status.number,
        pid: status.pid,
        call: status.calls,
        method: worker.method.clone(),
        client: worker.client.clone(),
        began: worker.since,
        ended: None,
        stack: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(number: u64, calls: u64, seconds: f64, stack: Option<&str>) -> WorkerStatus {
        serde_json::from_value(serde_json::json!({
            "number": number, "pid": 1, "state": "busy", "seconds": seconds, "method": "m",
            "calls": calls, "checkouts": 0, "stack": stack,
        }))
        .unwrap()
    }

    fn update(slow: &mut SlowCalls, workers: &[WorkerStatus], now: f64) {
        let shown: Vec<_> = workers
            .iter()
            .map(|it| Worker { since: now - it.seconds * 1000.0, ..Worker::default() })
            .collect();
        slow.update(workers.iter().zip(&shown), 1.0, now);
    }

    #[test]
    fn a_slow_call_is_shown_until_others_have_taken_its_place() {
        let mut slow = SlowCalls::default();
        update(&mut slow, &[worker(1, 1, 0.9, None), worker(2, 1, 1.5, None)], 10_000.0);
        assert_eq!(slow.take_changed().unwrap().len(), 1);
        assert_eq!(slow.take_changed(), None);
        // The same worker runs the next call.
        update(&mut slow, &[worker(2, 2, 1.0, None)], 20_000.0);
        let all = slow.all();
        assert_eq!((all.len(), all[0].ended, all[1].ended), (2, None, Some(20_000.0)));
        assert_eq!((all[0].call, all[1].call), (2, 1));
        for call in 3..200 {
            update(&mut slow, &[worker(2, call, 1.0, None)], 30_000.0);
        }
        assert_eq!(slow.all().len(), 1 + MAX_CALLS);
        slow.end_all(40_000.0);
        assert_eq!(slow.all().len(), MAX_CALLS);
    }

    #[test]
    fn each_call_is_asked_for_its_stack_twice_in_a_row_and_not_for_ever() {
        let mut slow = SlowCalls::default();
        let workers = [worker(1, 1, 5.0, None), worker(2, 1, 9.0, None), worker(3, 1, 4.9, None)];
        update(&mut slow, &workers, 10_000.0);
        let asked: Vec<_> = std::iter::from_fn(|| slow.next_sample()).collect();
        assert_eq!(asked.len(), 2 * MAX_SAMPLES as usize);
        assert_eq!(asked[..4], [2, 2, 1, 1]);
        update(&mut slow, &[worker(1, 1, 6.0, Some("main")), worker(2, 1, 10.0, None)], 11_000.0);
        assert_eq!(slow.all()[1].stack.as_deref(), Some("main"));
        update(&mut slow, &workers, 12_000.0);
        assert_eq!(slow.all()[1].stack.as_deref(), Some("main"));
    }

    #[test]
    fn a_call_that_runs_on_after_a_gap_is_the_same_call() {
        let mut slow = SlowCalls::default();
        update(&mut slow, &[worker(1, 1, 5.0, None)], 10_000.0);
        let samples = |slow: &mut SlowCalls| std::iter::from_fn(|| slow.next_sample()).count();
        assert_eq!(samples(&mut slow), MAX_SAMPLES as usize);
        slow.lose_all(11_000.0);
        assert_eq!((slow.running(), slow.all()[0].ended), (0, Some(11_000.0)));
        update(&mut slow, &[worker(1, 1, 7.0, None)], 12_000.0);
        let all = slow.all();
        assert_eq!((all.len(), all[0].ended, all[0].began), (1, None, 5000.0));
        assert_eq!(samples(&mut slow), 0, "the worker is not asked anew");
        // Another process of the server has other calls with the same numbers.
        slow.end_all(13_000.0);
        update(&mut slow, &[worker(1, 1, 5.0, None)], 14_000.0);
        assert_eq!(slow.all().len(), 2);
        assert_eq!(slow.first_beginning(), Some(9000.0));
    }
}
