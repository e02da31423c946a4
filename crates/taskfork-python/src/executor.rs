//! The calls of an executor: those that wait for a worker, and those that have one.
//!
//! Any thread gives a free worker the next call, and a thread that waits for a call in `Future.result` reads its answer and completes
//! its future. Handlers of signals may raise exceptions between any two steps of Python code in the main thread. So that none of them
//! loses a call, all of this is native: nothing between the changes that belong together runs Python code. What needs some, such as a
//! callback of a future, is left to the executor's thread, which no signal interrupts.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use rustix::event::{EventfdFlags, eventfd};

use crate::client::Client;
use crate::event_loop::EventLoop;
use crate::future::{Begun, begin, complete, is_plain, wait_for_others};
use crate::stream::Reports;

/// What an answer begins with that has a result: `RESULT` of the worker's module.
const RESULT: &[u8] = &[0];

/// The calls of an executor.
#[pyclass(frozen, weakref, module = "taskfork._native")]
pub(crate) struct Tasks {
    max_workers: usize,
    /// Completes a future in the executor's thread. Its arguments are the future, and an answer or an exception.
    finish: Py<PyAny>,
    /// It is readable when the executor's thread has something to do.
    event: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    waiting: VecDeque<Waiting>,
    /// The calls that have a worker, by the addresses of their futures.
    running: HashMap<usize, Running>,
    /// How many of them have no answer.
    busy: usize,
    /// How many calls get a worker now.
    starting: usize,
    /// What the executor's thread is told: futures, and why their calls could not be made.
    notes: Vec<(Py<PyAny>, Option<Py<PyAny>>)>,
    /// The executor's thread is told when no call is left.
    is_closing: bool,
}

/// Who makes the calls.
struct Link {
    client: Py<Client>,
    event_loop: Py<EventLoop>,
}

impl Link {
    fn clone_ref(&self, py: Python<'_>) -> Self {
        Self { client: self.client.clone_ref(py), event_loop: self.event_loop.clone_ref(py) }
    }
}

/// A call that waits for a worker.
struct Waiting {
    future: Py<PyAny>,
    args: Py<PyTuple>,
    timeout: Option<f64>,
    log: Option<Py<PyAny>>,
}

/// A call that has a worker.
struct Running {
    future: Py<PyAny>,
    /// Its number in the event loop.
    key: u64,
    has_log: bool,
    /// Its answer is there and only its future is not complete, so that its worker is free.
    is_answered: bool,
}

fn place(future: &Bound<'_, PyAny>) -> usize {
    future.as_ptr() as usize
}

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the executor's thread have a turn.
    fn signal(&self) {
        // It cannot fail: the counter is far from its maximum.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    fn tell(&self, future: Py<PyAny>, error: Option<Py<PyAny>>) {
        self.lock().notes.push((future, error));
        self.signal();
    }

    /// The next call for a free worker. Its place is taken.
    fn next(&self, py: Python<'_>) -> Option<(Waiting, Link)> {
        let mut state = self.lock();
        if state.busy + state.starting >= self.max_workers {
            return None;
        }
        let link = state.link.as_ref()?.clone_ref(py);
        let waiting = state.waiting.pop_front()?;
        state.starting += 1;
        Some((waiting, link))
    }

    /// Gives calls to free workers. `may_wait` says that this thread may wait for others that change a future.
    fn start(slf: &Bound<'_, Self>, may_wait: bool) {
        let (py, this) = (slf.py(), slf.get());
        while let Some((waiting, link)) = this.next(py) {
            let future = waiting.future.bind(py);
            match begin(future, may_wait) {
                Ok(Begun::Yes) => {}
                Ok(Begun::Busy) => {
                    let mut state = this.lock();
                    state.starting -= 1;
                    state.waiting.push_front(waiting);
                    drop(state);
                    return this.signal();
                }
                Ok(Begun::No) => {
                    this.lock().starting -= 1;
                    this.tell(waiting.future, None);
                    continue;
                }
                Err(error) => {
                    this.lock().starting -= 1;
                    this.tell(waiting.future, Some(error.into_value(py).into_any()));
                    continue;
                }
            }
            let has_log = waiting.log.is_some();
            let made = make(slf, &waiting, &link);
            let mut state = this.lock();
            state.starting -= 1;
            match made {
                Ok(key) => {
                    let running = waiting.future.clone_ref(py);
                    let running = Running { future: running, key, has_log, is_answered: false };
                    state.running.insert(place(future), running);
                    state.busy += 1;
                    drop(state);
                    if is_watched(future) {
                        this.tell(waiting.future, None);
                    }
                }
                Err(error) => {
                    drop(state);
                    this.tell(waiting.future, Some(error.into_value(py).into_any()));
                }
            }
        }
        let state = this.lock();
        if state.is_closing && state.is_empty() {
            this.signal();
        }
    }

    /// A call is over: its worker gets the next one.
    fn ended(slf: &Bound<'_, Self>, future: &Bound<'_, PyAny>, may_wait: bool) {
        let mut state = slf.get().lock();
        let running = state.running.remove(&place(future));
        state.busy -= usize::from(running.as_ref().is_some_and(|running| !running.is_answered));
        drop(state);
        drop(running);
        Self::start(slf, may_wait);
    }

    /// Looks for answers, and gives the next calls to the workers that have sent them. The futures are completed later: a result may run
    /// code of the user when it is read.
    fn look(slf: &Bound<'_, Self>) {
        let state = slf.get().lock();
        let Some(link) = &state.link else { return };
        let event_loop = link.event_loop.clone_ref(slf.py());
        drop(state);
        let event_loop = event_loop.get();
        if !event_loop.look_from_any_thread() {
            return;
        }
        let unanswered = |(&place, running): (&usize, &Running)| {
            (!running.is_answered).then_some((place, running.key))
        };
        let running: Vec<_> = slf.get().lock().running.iter().filter_map(unanswered).collect();
        for (place, key) in running {
            if !event_loop.take_result(key) {
                continue;
            }
            let mut state = slf.get().lock();
            let State { running, busy, .. } = &mut *state;
            if let Some(running) = running.get_mut(&place).filter(|running| running.key == key) {
                running.is_answered = true;
                *busy -= 1;
            }
        }
        Self::start(slf, false);
    }

    /// Waits for a call that runs, at most until `end`, and completes its future. Returns false if the executor's thread has to do
    /// that.
    fn read(
        slf: &Bound<'_, Self>,
        future: &Bound<'_, PyAny>,
        end: Option<Instant>,
    ) -> PyResult<bool> {
        let Some((event_loop, key)) = slf.get().running(future) else { return Ok(false) };
        if is_watched(future) || !is_plain(future)? {
            return Ok(false);
        }
        let event_loop = event_loop.get();
        let answer = match event_loop.wait_for(slf.py(), key, end)? {
            None => return Ok(false),
            Some(Ok(answer)) => answer,
            Some(failed) => {
                event_loop.give_back(key, failed);
                return Ok(false);
            }
        };
        // Reading the result may run code of the user's classes, and there a handler of a signal. So whatever that raises is raised here,
        // and the executor's thread reads the result again.
        let completed = match is_plain(future) {
            Ok(true) => match result(answer.bind(slf.py())) {
                Ok(Some(result)) => complete(future, &result),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            },
            other => other,
        };
        if matches!(completed, Ok(true)) {
            event_loop.remove(key);
            Self::ended(slf, future, false);
        } else {
            event_loop.give_back(key, Ok(answer));
        }
        completed
    }

    fn is_waiting(&self, future: &Bound<'_, PyAny>) -> bool {
        self.lock().waiting.iter().rev().any(|waiting| waiting.future.is(future))
    }

    /// Where a call runs that a thread may wait for itself.
    fn running(&self, future: &Bound<'_, PyAny>) -> Option<(Py<EventLoop>, u64)> {
        let state = self.lock();
        let running = state.running.get(&place(future))?;
        let event_loop = state.link.as_ref()?.event_loop.clone_ref(future.py());
        (!running.has_log).then_some((event_loop, running.key))
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.starting == 0
    }
}

/// Makes a call.
fn make(tasks: &Bound<'_, Tasks>, waiting: &Waiting, link: &Link) -> PyResult<u64> {
    let py = tasks.py();
    let task = Task { tasks: tasks.clone().unbind(), future: waiting.future.clone_ref(py) };
    let task = Bound::new(py, task)?.into_any().unbind();
    let log = waiting.log.as_ref().map(|log| log.clone_ref(py));
    let (client, event_loop) = (link.client.get(), link.event_loop.bind(py));
    client.call_task(event_loop, task, waiting.args.bind(py), waiting.timeout, log)
}

/// Whether somebody has asked for the progress of a call.
fn is_watched(future: &Bound<'_, PyAny>) -> bool {
    let watched = future.getattr(intern!(future.py(), "_is_watched"));
    watched.and_then(|watched| watched.is_truthy()).unwrap_or(true)
}

/// The result in an answer. `None` if there is an exception instead.
fn result<'py>(answer: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
    let py = answer.py();
    let Ok(answer) = answer.cast::<PyList>() else { return Ok(None) };
    let (Ok(kind), Ok(pickled)) = (answer.get_item(0), answer.get_item(1)) else { return Ok(None) };
    if !kind.cast::<PyBytes>().is_ok_and(|kind| kind.as_bytes() == RESULT) {
        return Ok(None);
    }
    let loads = py.import(intern!(py, "pickle"))?.getattr(intern!(py, "loads"))?;
    if answer.len() == 2 {
        return loads.call1((pickled,)).map(Some);
    }
    let buffers = PyDict::new(py);
    buffers.set_item(intern!(py, "buffers"), answer.get_slice(2, answer.len()))?;
    loads.call((pickled,), Some(&buffers)).map(Some)
}

#[pymethods]
impl Tasks {
    #[new]
    fn new(max_workers: usize, finish: Py<PyAny>) -> PyResult<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        Ok(Self { max_workers, finish, event, state: Mutex::default() })
    }

    /// The descriptor that is readable when `take` must be called.
    fn fileno(&self) -> i32 {
        self.event.as_raw_fd()
    }

    /// From here on calls can be made.
    fn attach(slf: &Bound<'_, Self>, client: Py<Client>, event_loop: Py<EventLoop>) {
        slf.get().lock().link = Some(Link { client, event_loop });
        Self::start(slf, true);
    }

    /// No calls are made any more.
    fn detach(&self) {
        let link = self.lock().link.take();
        drop(link);
    }

    /// Adds a call behind the others. Its arguments are `bytes` and memory. Returns false if it waits for a worker: memory that may change
    /// must be replaced by [`own`](Self::own) then.
    fn add(
        slf: &Bound<'_, Self>,
        future: &Bound<'_, PyAny>,
        args: Py<PyTuple>,
        timeout: Option<f64>,
        log: Option<Py<PyAny>>,
    ) -> bool {
        let waiting = Waiting { future: future.clone().unbind(), args, timeout, log };
        slf.get().lock().waiting.push_back(waiting);
        Self::start(slf, false);
        if slf.get().is_waiting(future) {
            // As long as this thread has the interpreter, the executor's cannot do that.
            Self::look(slf);
        }
        !slf.get().is_waiting(future)
    }

    /// Replaces the arguments of a call, if it still waits for a worker.
    fn own(&self, future: &Bound<'_, PyAny>, args: Py<PyTuple>) {
        let mut state = self.lock();
        let found = state.waiting.iter_mut().rev().find(|waiting| waiting.future.is(future));
        let before = found.map(|waiting| std::mem::replace(&mut waiting.args, args));
        drop(state);
        drop(before);
    }

    /// Waits until a future is complete, or for so many seconds. With `reads` it reads the answer itself, if it can.
    fn wait(
        slf: &Bound<'_, Self>,
        future: &Bound<'_, PyAny>,
        timeout: Option<f64>,
        reads: bool,
    ) -> PyResult<()> {
        let end = timeout.and_then(|seconds| {
            Instant::now().checked_add(Duration::try_from_secs_f64(seconds.max(0.0)).ok()?)
        });
        if reads && Self::read(slf, future, end)? {
            return Ok(());
        }
        wait_for_others(future, end)
    }

    /// What the executor's thread has to do: futures whose calls could not be made, with the exceptions; that are cancelled; or whose
    /// progress somebody has asked for.
    fn take(slf: &Bound<'_, Self>) -> Vec<(Py<PyAny>, Option<Py<PyAny>>)> {
        let _ = rustix::io::read(&slf.get().event, &mut [0; 8]);
        Self::start(slf, true);
        std::mem::take(&mut slf.get().lock().notes)
    }

    /// Has the executor's thread told when no call is left.
    fn close(slf: &Bound<'_, Self>) {
        slf.get().lock().is_closing = true;
        Self::start(slf, false);
    }

    /// Whether no call is left.
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes the futures whose calls wait for a worker.
    fn take_waiting(&self) -> Vec<Py<PyAny>> {
        let waiting = std::mem::take(&mut self.lock().waiting);
        waiting.into_iter().map(|waiting| waiting.future).collect()
    }

    /// The futures whose calls have a worker.
    #[getter(running)]
    fn all_running(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        self.lock().running.values().map(|running| running.future.clone_ref(py)).collect()
    }

    /// Ends a call that runs. Returns whether there was one.
    fn cancel(slf: &Bound<'_, Self>, future: &Bound<'_, PyAny>) -> bool {
        let state = slf.get().lock();
        let key = state.running.get(&place(future)).map(|running| running.key);
        let event_loop = state.link.as_ref().map(|link| link.event_loop.clone_ref(slf.py()));
        drop(state);
        let (Some(key), Some(event_loop)) = (key, event_loop) else { return false };
        event_loop.get().cancel(key);
        Self::ended(slf, future, true);
        true
    }

    /// How far a call has got. `None` if it does not run.
    fn progress(&self, future: &Bound<'_, PyAny>) -> PyResult<Option<Reports>> {
        let state = self.lock();
        let Some(running) = state.running.get(&place(future)) else { return Ok(None) };
        let Some(link) = &state.link else { return Ok(None) };
        link.event_loop.get().progress(running.key).map(Some)
    }

    /// Tells the collector what is kept.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.finish)?;
        let Ok(state) = self.state.try_lock() else { return Ok(()) };
        if let Some(link) = &state.link {
            visit.call(&link.client)?;
            visit.call(&link.event_loop)?;
        }
        for waiting in &state.waiting {
            visit.call(&waiting.future)?;
            visit.call(&waiting.args)?;
            visit.call(&waiting.log)?;
        }
        for running in state.running.values() {
            visit.call(&running.future)?;
        }
        for (future, error) in &state.notes {
            visit.call(future)?;
            visit.call(error)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let state = std::mem::take(&mut *self.lock());
        drop(state);
    }
}

/// A call of an executor, which the event loop completes in the executor's thread as it does futures.
#[pyclass(frozen, module = "taskfork._native")]
struct Task {
    tasks: Py<Tasks>,
    future: Py<PyAny>,
}

impl Task {
    fn finish(
        &self,
        py: Python<'_>,
        answer: Option<Py<PyAny>>,
        error: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        self.tasks.get().finish.call1(py, (&self.future, answer, error)).map(drop)
    }
}

#[pymethods]
impl Task {
    fn set_result(&self, py: Python<'_>, answer: Py<PyAny>) -> PyResult<()> {
        Tasks::ended(self.tasks.bind(py), self.future.bind(py), true);
        self.finish(py, Some(answer), None)
    }

    fn set_exception(&self, py: Python<'_>, error: Py<PyAny>) -> PyResult<()> {
        self.finish(py, None, Some(error))?;
        // An error may break the executor, which makes no other calls then.
        Tasks::ended(self.tasks.bind(py), self.future.bind(py), true);
        Ok(())
    }

    /// Nobody asks: it is completed once.
    fn done(&self) -> bool {
        false
    }

    fn exception(&self) {}

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.tasks)?;
        visit.call(&self.future)
    }
}
