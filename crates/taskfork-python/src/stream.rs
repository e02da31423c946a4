//! Calls that stream, and reports of progress: what an iterator in Python is told from.
//!
//! What has arrived is kept until it is taken, so that a wait that is cancelled loses nothing. While it is polled, the source
//! is not behind its lock: whoever decodes needs the interpreter, which another thread may hold while it waits for the lock.

use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream as _;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use taskfork::StreamCall;
use taskfork::client::ProgressUpdates;
use taskfork::error::Error;

use crate::client::{Outcome, Pending};
use crate::decode::Object;
use crate::error::{Failed, OwnError, exception};
use crate::event_loop::{EventLoop, Waiting};
use crate::input::Feed;
use crate::interruption;
use crate::log::CheckoutLog;
use crate::pickles::{self, Terms};
use crate::process::OfProcess;
use crate::waiting;

type Items = StreamCall<Object, Object, OwnError>;

/// What comes one after the other.
pub(crate) trait Source: Send + 'static {
    /// What has arrived.
    type Found: Send + 'static;

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Self::Found>;
}

/// A source, and what it had last.
pub(crate) struct Slot<S: Source> {
    source: Place<S>,
    found: Option<S::Found>,
}

enum Place<S> {
    Here(Box<OfProcess<S>>),
    /// A thread polls it.
    Away,
    Closed,
}

/// A slot that an event loop may wait for.
pub(crate) type Shared<S> = Arc<Mutex<Slot<S>>>;

fn lock<S: Source>(slot: &Mutex<Slot<S>>) -> MutexGuard<'_, Slot<S>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls until something is in the slot. It is ready as well if there is nothing to wait for.
pub(crate) fn poll<S: Source>(slot: &Mutex<Slot<S>>, context: &mut Context<'_>) -> Poll<()> {
    let mut state = lock(slot);
    if state.found.is_some() {
        return Poll::Ready(());
    }
    let mut source = match mem::replace(&mut state.source, Place::Away) {
        Place::Here(source) => source,
        Place::Away => return Poll::Pending,
        Place::Closed => {
            state.source = Place::Closed;
            return Poll::Ready(());
        }
    };
    drop(state);
    // In a forked child nothing can be received.
    let polled = source.get_mut().map_or(Poll::Pending, |source| source.poll(context));
    let mut state = lock(slot);
    let is_closed = matches!(state.source, Place::Closed);
    if !is_closed {
        state.source = Place::Here(source);
    }
    let is_ready = match polled {
        Poll::Ready(found) if !is_closed => {
            state.found = Some(found);
            true
        }
        Poll::Ready(_) | Poll::Pending => is_closed,
    };
    if is_ready { Poll::Ready(()) } else { Poll::Pending }
}

/// Ends a source. What it holds is dropped without the lock.
fn close<S: Source>(slot: &Mutex<Slot<S>>) {
    let mut state = lock(slot);
    let source = mem::replace(&mut state.source, Place::Closed);
    let found = state.found.take();
    drop(state);
    drop((source, found));
}

fn new<S: Source>(source: S) -> Shared<S> {
    let source = Place::Here(Box::new(OfProcess::new(source)));
    Arc::new(Mutex::new(Slot { source, found: None }))
}

/// Takes what has arrived; `None` if nothing has. `is_awaited` says that an event loop polls the source.
fn take<S: Source>(slot: &Shared<S>, is_awaited: bool) -> PyResult<Option<S::Found>> {
    if !is_awaited {
        // A process that was forked since must not wait for ever.
        if let Place::Here(source) = &lock(slot).source {
            source.get()?;
        }
        let _ = poll(slot, &mut Context::from_waker(Waker::noop()));
        interruption::check()?;
    }
    Ok(lock(slot).found.take())
}

/// Waits in this thread until something has arrived, and takes it; `None` if the source is closed.
fn wait<S: Source>(
    py: Python<'_>,
    slot: &Shared<S>,
    pending: impl FnOnce(Shared<S>) -> Pending,
) -> PyResult<Option<S::Found>> {
    match &lock(slot).source {
        Place::Here(source) => drop(source.get()?),
        Place::Away => {
            return Err(busy());
        }
        Place::Closed => {}
    }
    let _ = waiting::wait(py, &mut OfProcess::new(pending(slot.clone())))?;
    Ok(lock(slot).found.take())
}

fn busy() -> PyErr {
    PyRuntimeError::new_err("another thread waits for this object")
}

/// A call that streams.
pub(crate) struct ItemsSource {
    state: ItemsState,
    feed: Feed,
    terms: Terms,
}

/// What is wanted of a call that streams. Once its result is asked for, its items are discarded.
enum ItemsState {
    Items(Items),
    Result(Pin<Box<dyn Future<Output = Result<Object, Error<OwnError>>> + Send>>),
    /// It has returned its error or its result.
    Over,
}

/// What a call that streams has had.
pub(crate) enum Found {
    Item(Py<PyAny>),
    /// There are no more items, and the result is there.
    End,
    Error(Failed),
    Result(Py<PyAny>),
}

impl Source for ItemsSource {
    type Found = Found;

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Found> {
        pickles::within(self.terms, || self.poll_call(context))
    }
}

impl ItemsSource {
    fn poll_call(&mut self, context: &mut Context<'_>) -> Poll<Found> {
        let found = match &mut self.state {
            ItemsState::Items(items) => match Pin::new(items).poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(Object(item)))) => return Poll::Ready(Found::Item(item)),
                Poll::Ready(None) => return Poll::Ready(Found::End),
                Poll::Ready(Some(Err(error))) => Found::Error(Failed::new(error, &self.feed)),
            },
            ItemsState::Result(result) => match result.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Object(result))) => Found::Result(result),
                Poll::Ready(Err(error)) => Found::Error(Failed::new(error, &self.feed)),
            },
            ItemsState::Over => return Poll::Pending,
        };
        self.state = ItemsState::Over;
        Poll::Ready(found)
    }
}

/// What has interrupted the iterable of the call's input.
pub(crate) fn take_interruption(slot: &Shared<ItemsSource>, py: Python<'_>) -> Option<PyErr> {
    match &lock(slot).source {
        Place::Here(source) => source.get().ok()?.feed.take_interruption(py),
        Place::Away | Place::Closed => None,
    }
}

/// A call that streams, for an iterator. What it has is a tuple: `item` and a value, `end`, `error` and an exception, or
/// `result` and a value.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Stream {
    slot: Shared<ItemsSource>,
    log: Mutex<Option<CheckoutLog>>,
}

impl Stream {
    pub(crate) fn new(items: Items, feed: Feed, log: Option<CheckoutLog>, terms: Terms) -> Self {
        let source = ItemsSource { state: ItemsState::Items(items), feed, terms };
        Self { slot: new(source), log: Mutex::new(log) }
    }

    fn told<'py>(&self, py: Python<'py>, found: Found) -> PyResult<Bound<'py, PyAny>> {
        if !matches!(found, Found::Item(_))
            && let Err(interruption) = self.hand_log_over(py)
        {
            // Whoever goes on must not wait for what has arrived.
            let unwanted = lock(&self.slot).found.replace(found);
            drop(unwanted);
            return Err(interruption);
        }
        let told = match found {
            Found::Item(item) => ("item", item),
            Found::End => return Ok(("end", py.None()).into_pyobject(py)?.into_any()),
            Found::Error(error) => ("error", exception(py, error)?.unbind()),
            Found::Result(result) => ("result", result),
        };
        Ok(told.into_pyobject(py)?.into_any())
    }

    fn hand_log_over(&self, py: Python<'_>) -> PyResult<()> {
        let kept = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let log = kept.as_ref().map(|log| log.clone_ref(py));
        // The function may use this object.
        drop(kept);
        log.map_or(Ok(()), |log| log.hand_over(py))
    }
}

#[pymethods]
impl Stream {
    /// Takes what has arrived; `None` if nothing has.
    fn take<'py>(&self, py: Python<'py>, is_awaited: bool) -> PyResult<Option<Bound<'py, PyAny>>> {
        take(&self.slot, is_awaited)?.map(|found| self.told(py, found)).transpose()
    }

    /// Completes a future once `take` has something, or the stream is closed.
    fn changed(&self, event_loop: &Bound<'_, EventLoop>, future: Py<PyAny>) -> PyResult<u64> {
        let pending = OfProcess::new(Pending::Items(self.slot.clone()));
        Ok(event_loop.get().add(pending, Waiting { future, log: None, client: None }))
    }

    /// Waits for something, and takes it; `None` if the stream is closed.
    fn wait<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let found = wait(py, &self.slot, Pending::Items)?;
        found.map(|found| self.told(py, found)).transpose()
    }

    /// From here on items are discarded, and the result is what it has. `RuntimeError` while another thread waits for an item.
    fn finish(&self) -> PyResult<()> {
        let mut state = lock(&self.slot);
        let source = match &mut state.source {
            Place::Here(source) => source.get_mut()?,
            Place::Away => return Err(busy()),
            Place::Closed => return Ok(()),
        };
        if let ItemsState::Items(_) = source.state {
            let before = mem::replace(&mut source.state, ItemsState::Over);
            let ItemsState::Items(items) = before else { return Ok(()) };
            source.state = ItemsState::Result(Box::pin(items.finish()));
            let unwanted =
                state.found.take_if(|found| matches!(found, Found::Item(_) | Found::End));
            drop(state);
            drop(unwanted);
        }
        Ok(())
    }

    /// Stops the call, if it has not ended.
    fn close(&self) {
        close(&self.slot);
    }

    /// How far the call has got.
    fn progress(&self) -> PyResult<Reports> {
        match &lock(&self.slot).source {
            Place::Here(source) => match &source.get()?.state {
                ItemsState::Items(items) => Ok(Reports::new(Some(items.progress()))),
                ItemsState::Result(_) | ItemsState::Over => Ok(Reports::new(None)),
            },
            Place::Away | Place::Closed => Ok(Reports::new(None)),
        }
    }

    /// Tells the collector what is kept. An input and a function for logs may refer to this object.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(log) = self.log.try_lock()
            && let Some(log) = &*log
        {
            log.traverse(&visit)?;
        }
        if let Ok(state) = self.slot.try_lock()
            && let Place::Here(source) = &state.source
            && let Some(source) = source.peek()
        {
            source.feed.traverse(&visit)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        close(&self.slot);
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(log);
    }
}

/// A report: how much is done, the total, and what is counted.
type Report = (u64, Option<u64>, String);

impl Source for ProgressUpdates {
    /// `None` once there are no more.
    type Found = Option<Report>;

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Self::Found> {
        Pin::new(self).poll_next(context).map(|next| next.as_ref().map(report))
    }
}

fn report(progress: &taskfork::Progress) -> Report {
    (progress.done, progress.total, progress.what.to_string())
}

/// Reports of how far a call has got, for an iterator.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Reports {
    slot: Shared<ProgressUpdates>,
}

impl Reports {
    /// `None` for a call that is over.
    pub(crate) fn new(updates: Option<ProgressUpdates>) -> Self {
        let slot = updates
            .map_or_else(|| Arc::new(Mutex::new(Slot { source: Place::Closed, found: None })), new);
        Self { slot }
    }
}

#[pymethods]
impl Reports {
    /// The latest report that has arrived; `None` if there is none.
    fn latest(&self) -> PyResult<Option<Report>> {
        match &lock(&self.slot).source {
            Place::Here(source) => Ok(source.get()?.latest().as_ref().map(report)),
            Place::Away | Place::Closed => Ok(None),
        }
    }

    /// Takes a report, or `None` for the end, in a tuple; `None` if nothing has arrived.
    fn take(&self, is_awaited: bool) -> PyResult<Option<(Option<Report>,)>> {
        if matches!(lock(&self.slot).source, Place::Closed) {
            return Ok(Some((None,)));
        }
        Ok(take(&self.slot, is_awaited)?.map(|found| (found,)))
    }

    /// Completes a future once `take` has something.
    fn changed(&self, event_loop: &Bound<'_, EventLoop>, future: Py<PyAny>) -> PyResult<u64> {
        let pending = OfProcess::new(Pending::Reports(self.slot.clone()));
        Ok(event_loop.get().add(pending, Waiting { future, log: None, client: None }))
    }

    /// Waits for a report; `None` if there are no more.
    fn wait(&self, py: Python<'_>) -> PyResult<Option<Report>> {
        Ok(wait(py, &self.slot, Pending::Reports)?.flatten())
    }
}

/// A wait for a change has this outcome.
pub(crate) fn changed(polled: Poll<()>) -> Poll<Outcome> {
    polled.map(|()| Ok(Python::attach(|py| py.None())))
}
