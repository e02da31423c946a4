//! The calls that one event loop of asyncio waits for.
//!
//! A call that can go on is noted by whichever thread finds that, and the first note since the last turn wakes the loop by an
//! eventfd, which the loop watches. The loop's thread then polls all noted calls, which reads their answers from the
//! sockets, and completes their futures. So one wake-up serves any number of answers.
//!
//! While answers follow each other quickly, the loop looks for them itself in each of its turns, and the eventfd stays readable.
//! So no thread is woken for them, and nothing of the loop can be lost by which the next turn would come.
//!
//! Code of the user runs while a call is polled, completed or dropped, and may make calls and cancel others. So no call is known
//! by a number that another one has had.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use log_defer::Message;
use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use taskfork::__private::binding::{AnswerWatch, Answers, Awaited, ProgressSource};

use crate::client::{Outcome, Pending};
use crate::error::{aborted, exception};
use crate::interruption;
use crate::log::{CheckoutLog, hand_over};
use crate::process::OfProcess;
use crate::stream::Reports;
use crate::waiting::{self, Moments, Waiter};

/// For how long calls are completed at once, without a turn of the event loop between. Other tasks wait meanwhile.
const LONGEST_WITHOUT_TURN: Duration = Duration::from_millis(1);

/// For how long one turn completes calls, while others wait for the workers that answer.
const LONGEST_TURN: Duration = Duration::from_micros(250);

/// For how long one turn looks for answers without any. Then other tasks have their turns before it looks again.
const LONGEST_LOOK: Duration = Duration::from_micros(20);

/// The native part of an event loop.
#[pyclass(frozen, weakref, module = "taskfork._native")]
pub(crate) struct EventLoop {
    notes: Arc<Notes>,
    calls: Mutex<Calls>,
    /// The answers of all clients of this loop.
    watch: OfProcess<Mutex<AnswerWatch>>,
}

/// What other threads tell the event loop.
pub(crate) struct Notes {
    noted: Mutex<Noted>,
    event: OwnedFd,
}

#[derive(Default)]
struct Noted {
    /// The calls that can go on.
    ready: Vec<u64>,
    /// What checkouts have logged after their last calls.
    logs: Vec<(u64, Message)>,
    /// The eventfd is readable, so that the loop has a turn for these calls.
    is_signalled: bool,
}

struct Calls {
    entries: BTreeMap<u64, Entry>,
    /// The functions for the logs of released checkouts whose last calls may still run.
    logs: BTreeMap<u64, Py<PyAny>>,
    /// The next number of a call or a log. None is used again.
    next: u64,
    /// Calls that have not been polled, so that nothing wakes the loop for them yet.
    fresh: Vec<u64>,
    last_turn: Instant,
    /// How many calls have ended since the last turn began.
    completed: usize,
}

impl Calls {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

struct Entry {
    /// `None` while it is polled.
    pending: Option<OfProcess<Pending>>,
    /// It can go on, which was noted while it was polled.
    is_noted: bool,
    progress: OfProcess<ProgressSource>,
    future: Py<PyAny>,
    waker: Waker,
    log: Option<CheckoutLog>,
    /// The client that made the call in a checkout of its own.
    client: Option<u64>,
    /// The thread that has taken the call from the loop, to wait for it.
    waiter: Option<Arc<Waiter>>,
}

impl Entry {
    /// Nobody wants the call any more.
    fn discard(&self) {
        if let Some(waiter) = &self.waiter {
            waiter.end();
        }
    }
}

/// Notes that a call can go on.
struct CallWaker {
    notes: Arc<Notes>,
    key: u64,
}

impl Wake for CallWaker {
    fn wake(self: Arc<Self>) {
        self.notes.add(|noted| noted.ready.push(self.key));
    }
}

impl Notes {
    fn add(&self, note: impl FnOnce(&mut Noted)) {
        let mut noted = lock(&self.noted);
        note(&mut noted);
        if !noted.is_signalled {
            noted.is_signalled = true;
            // It cannot fail: the counter is far from its maximum.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Hands a log over in the loop's thread, to the function that [`EventLoop::keep_log`] has kept.
    pub(crate) fn add_log(&self, number: u64, message: Message) {
        self.add(|noted| noted.logs.push((number, message)));
    }

    /// Lets the loop have a turn.
    fn signal(&self) {
        self.add(|_| {});
    }

    /// Takes what is noted. The loop has a turn after this one, unless [`sleep`](Self::sleep) follows.
    fn take(&self) -> (Vec<u64>, Vec<(u64, Message)>) {
        let mut noted = lock(&self.noted);
        (std::mem::take(&mut noted.ready), std::mem::take(&mut noted.logs))
    }

    fn has_any(&self) -> bool {
        let noted = lock(&self.noted);
        !noted.ready.is_empty() || !noted.logs.is_empty()
    }

    /// Lets the loop sleep until something is noted, if nothing is.
    fn sleep(&self) {
        let mut noted = lock(&self.noted);
        if noted.is_signalled && noted.ready.is_empty() && noted.logs.is_empty() {
            noted.is_signalled = false;
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }
}

/// How a call is waited for.
pub(crate) struct Waiting {
    pub(crate) future: Py<PyAny>,
    pub(crate) log: Option<CheckoutLog>,
    pub(crate) client: Option<u64>,
}

/// What comes after a turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Another turn.
    Turn,
    /// A sleep. Calls run meanwhile, or not.
    Sleep { is_waiting: bool },
}

impl EventLoop {
    pub(crate) fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// A number for the log of a checkout.
    pub(crate) fn number_of_log(&self) -> u64 {
        lock(&self.calls).number()
    }

    /// Keeps the function for a log until [`Notes::add_log`] has its last message.
    pub(crate) fn keep_log(&self, number: u64, callback: Py<PyAny>) {
        lock(&self.calls).logs.insert(number, callback);
    }

    /// Adds a call, and returns its key. The loop has a turn for it, and completes it when it is noted, or when it is awaited before.
    pub(crate) fn add(&self, pending: OfProcess<Pending>, waiting: Waiting) -> u64 {
        let (key, is_alone) = self.insert(pending, waiting);
        self.notes.signal();
        if !is_alone {
            // Workers that have answered get their next calls before the turn of the loop.
            self.look();
        }
        key
    }

    /// Adds a call from any thread. The loop has no turn for it: the call has been sent, and is completed when it is noted. Returns
    /// the key, and whether there is no other call.
    pub(crate) fn insert(&self, pending: OfProcess<Pending>, waiting: Waiting) -> (u64, bool) {
        let Waiting { future, log, client } = waiting;
        let mut calls = lock(&self.calls);
        let key = calls.number();
        let waker = Waker::from(Arc::new(CallWaker { notes: self.notes.clone(), key }));
        let is_fresh = pending.peek().is_none_or(|pending| !pending.set_waker(&waker));
        let progress = pending.peek().map(Pending::progress_source).unwrap_or_default();
        let entry = Entry {
            pending: Some(pending),
            is_noted: false,
            progress: OfProcess::new(progress),
            future,
            waker,
            log,
            client,
            waiter: None,
        };
        calls.entries.insert(key, entry);
        if is_fresh {
            calls.fresh.push(key);
        }
        (key, calls.entries.len() == 1)
    }

    /// Takes a call from the loop, and waits for its outcome in this thread, at most until `end`. `None` if the time is over, if
    /// nobody wants the call any more, or if another thread has taken it: the loop completes it then, as it does if a handler of a
    /// signal raises an exception, which is returned. The loop has the call also while a handler runs, which may wait for it. Whoever
    /// gets the outcome calls [`give_back`](Self::give_back) or [`remove`](Self::remove).
    pub(crate) fn wait_for(
        &self,
        py: Python<'_>,
        key: u64,
        end: Option<Instant>,
    ) -> PyResult<Option<Outcome>> {
        let waiter = Waiter::of_this_thread();
        let mut moments = Moments::until(end);
        loop {
            let mut calls = lock(&self.calls);
            let Some(entry) = calls.entries.get_mut(&key) else { return Ok(None) };
            let Some(mut pending) = entry.pending.take() else { return Ok(None) };
            entry.waiter = Some(waiter.clone());
            drop(calls);
            let waited = waiting::wait_until(py, &mut pending, &waiter, moments.next_end());
            let has_outcome = matches!(waited, Ok(Some(_)));
            let mut calls = lock(&self.calls);
            if let Some(entry) = calls.entries.get_mut(&key) {
                entry.waiter = None;
                // What woke this thread may be the answer, which it has not read.
                entry.is_noted = true;
                if !has_outcome && let Some(pending) = pending.peek() {
                    pending.set_waker(&entry.waker);
                }
            }
            drop(calls);
            if has_outcome {
                return waited;
            }
            self.put_back(key, pending);
            waited?;
            if moments.are_over() || waiter.is_over() {
                return Ok(None);
            }
            moments.handle_signals(py)?;
        }
    }

    /// Looks for answers in a thread that may be another one. Returns whether some may have come, also through a socket. The loop has
    /// a turn then, which looks on.
    pub(crate) fn look_from_any_thread(&self) -> bool {
        self.notes.signal();
        self.look() == Awaited::Arrived || self.notes.has_any()
    }

    /// Reads the result of a call, if it has come. The loop completes the call in a later turn. An error is left to the loop.
    pub(crate) fn take_result(&self, key: u64) -> bool {
        let mut calls = lock(&self.calls);
        let Some(entry) = calls.entries.get_mut(&key) else { return false };
        let Some(mut pending) = entry.pending.take() else { return false };
        let waker = entry.waker.clone();
        drop(calls);
        let context = &mut Context::from_waker(&waker);
        let polled =
            pending.get_mut().map_or(Poll::Pending, |pending| pending.poll(context, false));
        let Poll::Ready(outcome) = polled else {
            self.put_back(key, pending);
            return false;
        };
        let is_result = outcome.is_ok();
        self.give_back(key, outcome);
        is_result
    }

    /// Has the loop complete a call, whose outcome is this.
    pub(crate) fn give_back(&self, key: u64, outcome: Outcome) {
        if let Some(entry) = lock(&self.calls).entries.get_mut(&key) {
            entry.is_noted = true;
        }
        self.put_back(key, OfProcess::new(Pending::Ended(Some(outcome))));
    }

    /// Removes a call that is over.
    pub(crate) fn remove(&self, key: u64) {
        let entry = lock(&self.calls).entries.remove(&key);
        drop(entry);
    }

    /// Looks for the answers of a client in the turns of this loop.
    pub(crate) fn watch(&self, client: &taskfork::Client) {
        if let Some(mut watch) = self.watch_now()
            && !watch.has(client)
        {
            watch.add(Answers::of(client));
        }
    }

    /// What the loop looks at. `None` in a forked child, and within a look, which may drop the arguments of calls and so run code
    /// of the user.
    fn watch_now(&self) -> Option<MutexGuard<'_, AnswerWatch>> {
        self.watch.get().ok()?.try_lock().ok()
    }

    /// Sleeps until something is noted.
    fn sleep(&self, is_waiting: bool) {
        match self.watch.get().map(Mutex::try_lock) {
            Ok(Ok(mut watch)) => watch.sleep(is_waiting),
            // Another thread looks, and may leave connections whose workers wake nobody.
            Ok(Err(TryLockError::WouldBlock)) => return self.notes.signal(),
            Ok(Err(TryLockError::Poisoned(_))) | Err(_) => {}
        }
        self.notes.sleep();
    }

    /// Handles answers that have come. Their calls are noted.
    fn look(&self) -> Awaited {
        self.watch_now().map_or(Awaited::Nothing, |mut watch| watch.look())
    }

    /// Completes calls as long as their answers follow each other quickly, and the loop needs no turn for other tasks.
    fn complete(&self, py: Python<'_>, begun: Instant) -> (Next, PyResult<()>) {
        loop {
            let awaited = self.look();
            if awaited == Awaited::Arrived || self.notes.has_any() {
                if let Some(mut watch) = self.watch_now() {
                    watch.record_found();
                }
                let done = self.poll_noted(py);
                if done.is_err() {
                    return (Next::Turn, done);
                }
            } else if awaited == Awaited::Nothing {
                return (Next::Sleep { is_waiting: false }, Ok(()));
            } else {
                let Some(mut watch) = self.watch_now() else { break };
                let has_completed = lock(&self.calls).completed > 0;
                if has_completed && watch.queued() == 0 {
                    // Nobody waits for the next answers but those who are told of these.
                    return (Next::Turn, Ok(()));
                }
                if !watch.pause() {
                    break;
                }
                if !has_completed && begun.elapsed() > LONGEST_LOOK {
                    return (Next::Turn, Ok(()));
                }
            }
            if begun.elapsed() > LONGEST_TURN {
                return (Next::Turn, Ok(()));
            }
        }
        (Next::Sleep { is_waiting: true }, Ok(()))
    }

    /// Polls a call, and completes its future if it is over. The error is one that nobody else gets.
    fn poll(&self, py: Python<'_>, key: u64, may_spin: bool) -> PyResult<()> {
        let mut calls = lock(&self.calls);
        let Some(entry) = calls.entries.get_mut(&key) else { return Ok(()) };
        let Some(mut pending) = entry.pending.take() else {
            entry.is_noted = true;
            return Ok(());
        };
        let waker = entry.waker.clone();
        drop(calls);
        let polled = match pending.get_mut() {
            Ok(pending) => pending.poll(&mut Context::from_waker(&waker), may_spin),
            // In a forked child nothing can be received.
            Err(_) => Poll::Pending,
        };
        let interrupted = interruption::check();
        match polled {
            Poll::Ready(outcome) => first(py, interrupted, self.end(py, key, outcome)),
            Poll::Pending => {
                self.put_back(key, pending);
                interrupted
            }
        }
    }

    /// Completes the future of a call.
    fn end(&self, py: Python<'_>, key: u64, outcome: Outcome) -> PyResult<()> {
        let mut calls = lock(&self.calls);
        let entry = calls.entries.remove(&key);
        calls.completed += 1;
        drop(calls);
        entry.map_or(Ok(()), |entry| entry.complete(py, outcome))
    }

    /// Keeps a call that has been polled, unless nobody wants it any more.
    fn put_back(&self, key: u64, pending: OfProcess<Pending>) {
        let mut calls = lock(&self.calls);
        let unwanted = match calls.entries.get_mut(&key) {
            Some(entry) => {
                if std::mem::take(&mut entry.is_noted) {
                    entry.waker.wake_by_ref();
                }
                entry.pending.replace(pending)
            }
            None => Some(pending),
        };
        // Dropping a call may run code of the user, so not under the lock.
        drop(calls);
        drop(unwanted);
    }
}

impl Entry {
    fn complete(self, py: Python<'_>, outcome: Outcome) -> PyResult<()> {
        let future = self.future.bind(py);
        let completed = match outcome {
            Ok(value) => match future.call_method1(intern!(py, "set_result"), (value,)) {
                Ok(_) => Ok(()),
                // It has been completed otherwise.
                Err(error) if is_wrong_state(py, &error) && !is_waiting(future)? => Ok(()),
                Err(error) => Err(error),
            },
            Err(error) => exception(py, error).and_then(|error| fail(future, &error)),
        };
        let completed = completed.or_else(|error| tell(py, future, error));
        // The function may cancel the call, so not before its end.
        let logged = self.log.as_ref().map_or(Ok(()), |log| log.hand_over(py));
        first(py, completed, logged)
    }
}

/// The first of two errors. The other one is printed.
fn first(py: Python<'_>, one: PyResult<()>, other: PyResult<()>) -> PyResult<()> {
    match (one, other) {
        (Err(one), Err(other)) => {
            other.write_unraisable(py, None);
            Err(one)
        }
        (one, other) => one.and(other),
    }
}

/// Whether asyncio says that a future is complete already.
fn is_wrong_state(py: Python<'_>, error: &PyErr) -> bool {
    let class = py.import("asyncio").and_then(|it| it.getattr("InvalidStateError"));
    class.is_ok_and(|class| error.matches(py, class).unwrap_or(false))
}

fn is_waiting(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!future.call_method0(intern!(future.py(), "done"))?.is_truthy()?)
}

/// Fails a future. asyncio would log the exception if nobody awaits the call, as if it were a mistake.
fn fail(future: &Bound<'_, PyAny>, error: &Bound<'_, PyAny>) -> PyResult<()> {
    if is_waiting(future)? {
        future.call_method1("set_exception", (error,))?;
        future.call_method0("exception")?;
    }
    Ok(())
}

/// Tells a future what was raised instead of completing it. The error is returned if the future is complete, and if it is no
/// `Exception`, as that of Ctrl-C: asyncio does the same for tasks.
fn tell(py: Python<'_>, future: &Bound<'_, PyAny>, error: PyErr) -> PyResult<()> {
    let is_told = is_waiting(future)?;
    fail(future, error.value(py))?;
    match is_told && error.is_instance_of::<PyException>(py) {
        true => Ok(()),
        false => Err(error),
    }
}

#[pymethods]
impl EventLoop {
    #[new]
    fn new() -> PyResult<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        let calls = Calls {
            entries: BTreeMap::new(),
            logs: BTreeMap::new(),
            next: 0,
            fresh: Vec::new(),
            last_turn: Instant::now(),
            completed: 0,
        };
        let notes = Arc::new(Notes { noted: Mutex::default(), event });
        Ok(Self { notes, calls: Mutex::new(calls), watch: OfProcess::new(Mutex::default()) })
    }

    /// Tells the collector what is kept. A future keeps its loop, which keeps this object: a loop that has ended with calls
    /// in it is garbage.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // If it is locked, the collector finds too few references, and collects nothing.
        let Ok(calls) = self.calls.try_lock() else { return Ok(()) };
        for callback in calls.logs.values() {
            visit.call(callback)?;
        }
        for entry in calls.entries.values() {
            visit.call(&entry.future)?;
            if let Some(log) = &entry.log {
                log.traverse(&visit)?;
            }
            if let Some(pending) = entry.pending.as_ref().and_then(OfProcess::peek) {
                pending.traverse(&visit)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let mut calls = lock(&self.calls);
        let kept = (std::mem::take(&mut calls.entries), std::mem::take(&mut calls.logs));
        drop(calls);
        drop(kept);
    }

    /// The descriptor that is readable when `run` must be called.
    fn fileno(&self) -> i32 {
        self.notes.event.as_raw_fd()
    }

    /// One turn: completes the calls that can be completed.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        let begun = Instant::now();
        let fresh = {
            let mut calls = lock(&self.calls);
            (calls.last_turn, calls.completed) = (begun, 0);
            std::mem::take(&mut calls.fresh)
        };
        if let Some(mut watch) = self.watch_now() {
            watch.record_wake(self.notes.has_any());
        }
        let mut done = self.poll_noted(py);
        for key in fresh {
            done = first(py, done, self.poll(py, key, false));
        }
        done?;
        let (next, done) = self.complete(py, begun);
        match next {
            Next::Turn => self.notes.signal(),
            Next::Sleep { is_waiting } => self.sleep(is_waiting),
        }
        done
    }

    /// Completes the calls that can be completed, in a turn of another callback.
    fn poll_noted(&self, py: Python<'_>) -> PyResult<()> {
        let (ready, logs) = self.notes.take();
        let mut done = Ok(());
        for (number, message) in &logs {
            let callback = lock(&self.calls).logs.remove(number);
            if let Some(callback) = callback {
                done = first(py, done, hand_over(py, &callback, message));
            }
        }
        for key in ready {
            done = first(py, done, self.poll(py, key, false));
        }
        done
    }

    /// Tries to complete a call that is about to be awaited. It may spin for its answer for a moment.
    fn complete_now(&self, py: Python<'_>, key: u64) -> PyResult<()> {
        let mut calls = lock(&self.calls);
        let has_turned = calls.last_turn.elapsed() < LONGEST_WITHOUT_TURN;
        // Others must not wait for this one: the loop is told of each answer as it comes.
        let is_alone = calls.entries.len() == 1;
        if has_turned {
            drop(calls);
            return self.poll(py, key, is_alone);
        }
        calls.fresh.push(key);
        drop(calls);
        self.notes.signal();
        Ok(())
    }

    /// How far a call has got.
    pub(crate) fn progress(&self, key: u64) -> PyResult<Reports> {
        let calls = lock(&self.calls);
        match calls.entries.get(&key) {
            Some(entry) => Ok(Reports::new(Some(entry.progress.get()?.updates()))),
            None => Ok(Reports::new(None)),
        }
    }

    /// The caller does not want the call any more.
    pub(crate) fn cancel(&self, key: u64) {
        let entry = lock(&self.calls).entries.remove(&key);
        entry.iter().for_each(Entry::discard);
        drop(entry);
    }

    /// Fails all calls that a client has made in checkouts of their own, because it is closed.
    fn fail_calls_of(&self, py: Python<'_>, client: u64) -> PyResult<()> {
        let mut calls = lock(&self.calls);
        let of_client = calls.entries.iter().filter(|(_, entry)| entry.client == Some(client));
        let keys: Vec<u64> = of_client.map(|(&key, _)| key).collect();
        let entries: Vec<Entry> = keys.iter().filter_map(|key| calls.entries.remove(key)).collect();
        drop(calls);
        let mut done = Ok(());
        for entry in &entries {
            entry.discard();
            let error = aborted(py, "the client is closed", true);
            let told = error.and_then(|error| fail(entry.future.bind(py), &error));
            done = first(py, done, told);
        }
        // The end of an input runs code of the user: not while other futures of these are incomplete.
        drop(entries);
        done
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
