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

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use rustix::event::{EventfdFlags, eventfd};

use crate::client::Client;
use crate::event_loop::EventLoop;
use crate::future::{
    Begun, begin, begin_by_library, complete, has_raised, is_plain, wait_for_others,
};
use crate::stream::Reports;
use crate::waiting::is_main_thread;

/// What an answer begins with that has a result: `RESULT` of the worker's module.
const RESULT: &[u8] = &[0];

/// For how long a thread that could not read a result waits for another one that tries.
const LONGEST_READ: Duration = Duration::from_secs(1);

/// The calls of an executor.
#[pyclass(frozen, weakref, module = "taskfork._native")]
pub(crate) struct Tasks {
    max_workers: usize,
    /// Completes a future in the executor's thread. Its arguments are the future, and an answer or an exception.
    finish: Py<PyAny>,
    /// Futures have the attributes that native code uses. Otherwise the executor's thread changes them alone, by their methods.
    are_known: bool,
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
    /// The executor's thread is told when no call is left, and there are no new ones.
    is_closing: bool,
    /// The executor's thread cancels the calls that wait.
    is_cancelling: bool,
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
        if state.is_cancelling || state.busy + state.starting >= self.max_workers {
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
            let begun = match this.are_known {
                true => begin(future, may_wait),
                false => begin_by_library(future, may_wait),
            };
            match begun {
                Ok(Begun::Yes) => {}
                Ok(Begun::Busy) => {
                    let mut state = this.lock();
                    state.starting -= 1;
                    state.waiting.push_front(waiting);
                    drop(state);
                    return this.signal();
                }
                Ok(Begun::No { is_told }) => {
                    this.lock().starting -= 1;
                    if !is_told {
                        this.tell(waiting.future, None);
                    }
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
            slf.get().lock().answered(place, key);
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
        // Its worker gets the next call before the result is read, which runs code of the user's classes.
        slf.get().lock().answered(place(future), key);
        Self::start(slf, false);
        let read = match is_plain(future) {
            Ok(true) => read_result(answer.bind(slf.py())),
            Ok(false) => Ok(None),
            Err(error) => Err(error),
        };
        let completed = match &read {
            Ok(Some(outcome)) => complete(future, outcome),
            Ok(None) | Err(_) => Ok(false),
        };
        if matches!(completed, Ok(true)) {
            event_loop.remove(key);
            Self::ended(slf, future, false);
            return completed;
        }
        event_loop.give_back(key, Ok(answer));
        if let Err(error) = read {
            Self::read_again(future, error, end)?;
        }
        completed
    }

    /// The executor's thread reads a result again that this thread could not read: it may be a handler of a signal that has raised
    /// the error, which is raised then.
    fn read_again(future: &Bound<'_, PyAny>, error: PyErr, end: Option<Instant>) -> PyResult<()> {
        let py = future.py();
        if !error.is_instance_of::<PyKeyboardInterrupt>(py) {
            let last = Instant::now() + LONGEST_READ;
            wait_for_others(future, Some(end.map_or(last, |end| end.min(last))))?;
            if has_raised(future, &error.get_type(py))? {
                return Ok(());
            }
        }
        Err(error)
    }

    /// Replaces the arguments of a call, if it still waits for a worker.
    fn own(&self, future: &Bound<'_, PyAny>, args: Py<PyTuple>) {
        let mut state = self.lock();
        let found = state.waiting.iter_mut().rev().find(|waiting| waiting.future.is(future));
        let before = found.map(|waiting| std::mem::replace(&mut waiting.args, args));
        drop(state);
        drop(before);
    }

    /// Removes a call, if it still waits for a worker.
    fn forget(&self, future: &Bound<'_, PyAny>) {
        let mut state = self.lock();
        let found = state.waiting.iter().rposition(|waiting| waiting.future.is(future));
        let forgotten = found.and_then(|index| state.waiting.remove(index));
        drop(state);
        drop(forgotten);
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
    /// A call has an answer: its worker is free.
    fn answered(&mut self, place: usize, key: u64) {
        if let Some(running) = self.running.get_mut(&place)
            && running.key == key
            && !running.is_answered
        {
            running.is_answered = true;
            self.busy -= 1;
        }
    }

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

/// Arguments that do not change.
fn copies(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyTuple>> {
    let bytes = args.py().get_type::<PyBytes>();
    let copies = args.iter().map(|each| match each.is_exact_instance(&bytes) {
        true => Ok(each),
        false => bytes.call1((each,)),
    });
    Ok(PyTuple::new(args.py(), copies.collect::<PyResult<Vec<_>>>()?)?.unbind())
}

/// Whether somebody has asked for the progress of a call.
fn is_watched(future: &Bound<'_, PyAny>) -> bool {
    let watched = future.getattr(intern!(future.py(), "_is_watched"));
    watched.and_then(|watched| watched.is_truthy()).unwrap_or(true)
}

/// What the result in an answer is, or what reading it has raised. `None` if there is an exception instead. An error may be that
/// of a handler of a signal: only those of the main thread may.
fn read_result<'py>(
    answer: &Bound<'py, PyAny>,
) -> PyResult<Option<Result<Bound<'py, PyAny>, Bound<'py, PyAny>>>> {
    let py = answer.py();
    match result(answer) {
        Ok(result) => Ok(result.map(Ok)),
        Err(error) if is_main_thread(py)? => Err(error),
        Err(error) => Ok(Some(Err(error.into_value(py).into_bound(py).into_any()))),
    }
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
    fn new(max_workers: usize, finish: Py<PyAny>, are_known: bool) -> PyResult<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(std::io::Error::from)?;
        Ok(Self { max_workers, finish, are_known, event, state: Mutex::default() })
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

    /// Adds a call behind the others. Its arguments are `bytes` and memory, which may change later. Returns false if no calls are
    /// accepted any more.
    fn add(
        slf: &Bound<'_, Self>,
        future: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        log: Option<Py<PyAny>>,
    ) -> PyResult<bool> {
        let this = slf.get();
        let mut state = this.lock();
        if state.is_closing {
            return Ok(false);
        }
        let (own, args_of_call) = (future.clone().unbind(), args.clone().unbind());
        state.waiting.push_back(Waiting { future: own, args: args_of_call, timeout, log });
        drop(state);
        Self::start(slf, false);
        if this.is_waiting(future) {
            // As long as this thread has the interpreter, the executor's cannot do that.
            Self::look(slf);
        }
        if args.len() > 1 && this.is_waiting(future) {
            match copies(args) {
                Ok(args) => this.own(future, args),
                Err(error) => {
                    this.forget(future);
                    return Err(error);
                }
            }
        }
        Ok(true)
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

    /// Accepts no calls any more, and has the executor's thread told when none is left. `cancels` leaves those to it that wait.
    fn close(slf: &Bound<'_, Self>, cancels: bool) {
        let mut state = slf.get().lock();
        state.is_closing = true;
        state.is_cancelling |= cancels;
        drop(state);
        slf.get().signal();
        Self::start(slf, false);
    }

    /// Whether no call is left.
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Takes the futures whose calls wait, and are to be cancelled.
    fn take_cancelled(&self) -> Vec<Py<PyAny>> {
        if self.lock().is_cancelling { self.take_waiting() } else { Vec::new() }
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
