//! The calls that one event loop of asyncio waits for.
//!
//! A call that can go on is noted by whichever thread finds that, and the first note since the last turn wakes the loop by an
//! eventfd, which the loop watches. The loop's thread then polls all noted calls, which reads their answers from the
//! sockets, and completes their futures. So one wake-up serves any number of answers.
//!
//! Code of the user runs while a call is polled, completed or dropped, and may make calls and cancel others. So no call is known
//! by a number that another one has had.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use log_defer::Message;
use pyo3::exceptions::PyException;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use crate::client::{Outcome, Pending};
use crate::error::{aborted, exception};
use crate::interruption;
use crate::log::{CheckoutLog, hand_over};
use crate::process::OfProcess;
use crate::stream::Reports;

/// For how long calls are completed at once, without a turn of the event loop between. Other tasks wait meanwhile.
const LONGEST_WITHOUT_TURN: Duration = Duration::from_millis(1);

/// The native part of an event loop.
#[pyclass(frozen, weakref, module = "taskfork._native")]
pub(crate) struct EventLoop {
    notes: Arc<Notes>,
    calls: Mutex<Calls>,
    /// Lets the loop call a function in its next turn.
    call_soon: Py<PyAny>,
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
    /// The event loop is being woken.
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
    /// The loop will run [`EventLoop::run`] in its next turn.
    is_scheduled: bool,
    last_turn: Instant,
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
    future: Py<PyAny>,
    waker: Waker,
    log: Option<CheckoutLog>,
    /// The client that made the call in a checkout of its own.
    client: Option<u64>,
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

    fn take(&self) -> Noted {
        let mut noted = lock(&self.noted);
        if noted.is_signalled {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
        std::mem::take(&mut *noted)
    }
}

/// How a call is waited for.
pub(crate) struct Waiting {
    pub(crate) future: Py<PyAny>,
    pub(crate) log: Option<CheckoutLog>,
    pub(crate) client: Option<u64>,
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

    /// Adds a call, and returns its key. It is polled in the next turn of the loop, or when it is awaited before.
    pub(crate) fn add(
        slf: &Bound<'_, Self>,
        pending: OfProcess<Pending>,
        waiting: Waiting,
    ) -> PyResult<u64> {
        let this = slf.get();
        let Waiting { future, log, client } = waiting;
        let mut calls = lock(&this.calls);
        let key = calls.number();
        let waker = Waker::from(Arc::new(CallWaker { notes: this.notes.clone(), key }));
        let pending = Some(pending);
        calls.entries.insert(key, Entry { pending, is_noted: false, future, waker, log, client });
        calls.fresh.push(key);
        drop(calls);
        if let Err(error) = this.schedule(slf) {
            // Nobody gets the call.
            this.cancel(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Lets the loop call `run` in its next turn.
    fn schedule(&self, slf: &Bound<'_, Self>) -> PyResult<()> {
        if std::mem::replace(&mut lock(&self.calls).is_scheduled, true) {
            return Ok(());
        }
        let scheduled =
            slf.getattr("run").and_then(|run| self.call_soon.call1(slf.py(), (run,)).map(drop));
        if scheduled.is_err() {
            // Other calls may rely on that turn.
            lock(&self.calls).is_scheduled = false;
            self.notes.add(|_| {});
        }
        scheduled
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
        let mut calls = lock(&self.calls);
        let Poll::Ready(outcome) = polled else {
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
            return interrupted;
        };
        let entry = calls.entries.remove(&key);
        drop(calls);
        let completed = entry.map_or(Ok(()), |entry| entry.complete(py, outcome));
        first(py, interrupted, completed)
    }
}

impl Entry {
    fn complete(self, py: Python<'_>, outcome: Outcome) -> PyResult<()> {
        let future = self.future.bind(py);
        let completed = match outcome {
            Ok(value) => is_waiting(future).and_then(|is_waiting| match is_waiting {
                true => future.call_method1("set_result", (value,)).map(drop),
                false => Ok(()),
            }),
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

fn is_waiting(future: &Bound<'_, PyAny>) -> PyResult<bool> {
    Ok(!future.call_method0("done")?.is_truthy()?)
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
    fn new(call_soon: Py<PyAny>) -> PyResult<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        let calls = Calls {
            entries: BTreeMap::new(),
            logs: BTreeMap::new(),
            next: 0,
            fresh: Vec::new(),
            is_scheduled: false,
            last_turn: Instant::now(),
        };
        let notes = Arc::new(Notes { noted: Mutex::default(), event });
        Ok(Self { notes, calls: Mutex::new(calls), call_soon })
    }

    /// Tells the collector what is kept. A future keeps its loop, which keeps this object: a loop that has ended with calls
    /// in it is garbage.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.call_soon)?;
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
        let fresh = {
            let mut calls = lock(&self.calls);
            calls.is_scheduled = false;
            calls.last_turn = Instant::now();
            std::mem::take(&mut calls.fresh)
        };
        let mut done = self.poll_noted(py);
        for key in fresh {
            done = first(py, done, self.poll(py, key, false));
        }
        done
    }

    /// Completes the calls that can be completed, in a turn of another callback.
    fn poll_noted(&self, py: Python<'_>) -> PyResult<()> {
        let noted = self.notes.take();
        let mut done = Ok(());
        for (number, message) in &noted.logs {
            let callback = lock(&self.calls).logs.remove(number);
            if let Some(callback) = callback {
                done = first(py, done, hand_over(py, &callback, message));
            }
        }
        for key in noted.ready {
            done = first(py, done, self.poll(py, key, false));
        }
        done
    }

    /// Tries to complete a call that is about to be awaited. It may spin for its answer for a moment.
    fn complete_now(slf: &Bound<'_, Self>, key: u64) -> PyResult<()> {
        let this = slf.get();
        let mut calls = lock(&this.calls);
        let has_turned = calls.last_turn.elapsed() < LONGEST_WITHOUT_TURN;
        // Others must not wait for this one: the loop is told of each answer as it comes.
        let is_alone = calls.entries.len() == 1;
        if has_turned {
            drop(calls);
            return this.poll(slf.py(), key, is_alone);
        }
        if !calls.is_scheduled {
            calls.fresh.push(key);
        }
        drop(calls);
        this.schedule(slf)
    }

    /// How far a call has got.
    fn progress(&self, key: u64) -> PyResult<Reports> {
        let calls = lock(&self.calls);
        let pending = calls.entries.get(&key).and_then(|entry| entry.pending.as_ref());
        pending.map_or_else(|| Ok(Reports::new(None)), |pending| Ok(pending.get()?.progress()))
    }

    /// The caller does not want the call any more.
    fn cancel(&self, key: u64) {
        let entry = lock(&self.calls).entries.remove(&key);
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
