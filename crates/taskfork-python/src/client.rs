//! Clients and checkouts. What the package's Python files make of them is for asyncio or for threads.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use taskfork::__private::binding::{self, ProgressSource};
use taskfork::Call;
use taskfork::client::ProgressUpdates;

use crate::copies::{self, Borrowed, Target};
use crate::decode::Object;
use crate::encode;
use crate::error::{Failed, OwnError};
use crate::event_loop::{EventLoop, Waiting};
use crate::input::{Feed, input};
use crate::interruption;
use crate::log::CheckoutLog;
use crate::options::{Options, limit};
use crate::pickles::{self, Terms};
use crate::process::OfProcess;
use crate::remote::Remote;
use crate::stream::{self, ItemsSource, Reports, Shared, Stream};
use crate::waiting::{self, Queued};

/// The result of a call.
pub(crate) type Outcome = Result<Py<PyAny>, Failed>;

/// Something that is waited for.
pub(crate) enum Pending {
    Call(Call<Object, OwnError>, Feed, Terms),
    /// A worker for a checkout.
    Worker(Call<(), OwnError>),
    /// Something of a call that streams.
    Items(Shared<ItemsSource>),
    /// A report of progress.
    Reports(Shared<ProgressUpdates>),
    /// The end of a client's last connection.
    Close(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// What a thread has waited for.
    Ended(Option<Outcome>),
}

impl Pending {
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, may_spin: bool) -> Poll<Outcome> {
        match self {
            Self::Call(call, feed, terms) => {
                let polled = pickles::within(*terms, || match may_spin {
                    true => Pin::new(call).poll(context),
                    false => binding::poll_without_spin(call, context),
                });
                if let Some(error) = pickles::take_interruption() {
                    interruption::keep(error);
                }
                polled.map_ok(|Object(value)| value).map_err(|error| Failed::new(error, feed))
            }
            Self::Worker(call) => {
                let polled = Pin::new(call).poll(context).map_ok(|()| none());
                polled.map_err(|error| Failed::new(error, &Feed::default()))
            }
            Self::Items(slot) => stream::changed(stream::poll(slot, context)),
            Self::Reports(slot) => stream::changed(stream::poll(slot, context)),
            Self::Close(future) => future.as_mut().poll(context).map(|()| Ok(none())),
            Self::Ended(outcome) => outcome.take().map_or(Poll::Pending, Poll::Ready),
        }
    }

    /// Has a task woken once a poll returns the outcome, without a poll. Returns false if it must be polled before that.
    pub(crate) fn set_waker(&self, waker: &Waker) -> bool {
        match self {
            Self::Call(call, ..) => binding::set_waker(call, waker),
            _ => false,
        }
    }

    /// Where the reports of a call's progress come from.
    pub(crate) fn progress_source(&self) -> ProgressSource {
        match self {
            Self::Call(call, ..) => ProgressSource::of(call),
            _ => ProgressSource::default(),
        }
    }

    /// The reports of a call's progress.
    pub(crate) fn progress(&self) -> Reports {
        Reports::new(match self {
            Self::Call(call, ..) => Some(call.progress()),
            _ => None,
        })
    }

    /// What has interrupted the iterable of its input, as Ctrl-C does.
    pub(crate) fn take_interruption(&self, py: Python<'_>) -> Option<PyErr> {
        match self {
            Self::Call(_, feed, _) => feed.take_interruption(py),
            Self::Items(slot) => stream::take_interruption(slot, py),
            Self::Worker(_) | Self::Reports(_) | Self::Close(_) | Self::Ended(_) => None,
        }
    }
}

impl Pending {
    /// Shows the collector what it keeps. A stream shows its own.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Call(_, feed, _) => feed.traverse(visit),
            Self::Ended(Some(Ok(value))) => visit.call(value),
            Self::Worker(_)
            | Self::Items(_)
            | Self::Reports(_)
            | Self::Close(_)
            | Self::Ended(_) => Ok(()),
        }
    }
}

/// Makes a call on the terms of its client. The call is dropped if something like Ctrl-C interrupts the
/// encoding of its arguments.
fn made<T>(terms: Terms, make: impl FnOnce() -> T) -> PyResult<T> {
    let made = pickles::within(terms, make);
    interruption::check()?;
    Ok(made)
}

/// Makes a call in the same way, which owns its arguments then.
fn call_made<'py, T, E>(
    terms: Terms,
    args: &[Bound<'py, PyAny>],
    make: impl FnOnce(Vec<encode::Value<'_, 'py>>) -> Call<T, E>,
) -> PyResult<Call<T, E>> {
    let borrowed = Borrowed::default();
    let args = encode::arguments(args, Target::Borrowed(&borrowed));
    made(terms, || {
        let call = make(args);
        if !borrowed.is_empty() {
            binding::own_arguments(&call, &mut copies::copy_of);
        }
        call
    })
}

/// The time limit of one call in seconds; `None` is that of its client or checkout.
fn own_timeout(seconds: Option<f64>) -> PyResult<binding::OwnTimeout> {
    seconds.map(|seconds| limit("timeout", Some(seconds))).transpose()
}

fn none() -> Py<PyAny> {
    Python::attach(|py| py.None())
}

/// Numbers the clients of this process.
static CLIENTS: AtomicU64 = AtomicU64::new(0);

/// A pool of connections.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Client {
    inner: OfProcess<taskfork::Client>,
    number: u64,
    terms: Terms,
}

impl Client {
    /// Makes a call of an executor from any thread, in a checkout of its own, and returns its key in the event loop. No code of the user
    /// runs: the arguments are `bytes`.
    pub(crate) fn call_task(
        &self,
        event_loop: &Bound<'_, EventLoop>,
        future: Py<PyAny>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        log: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let (method, client) = (Some(Cow::Borrowed("call")), Some(self.number));
        let Some(log) = log else {
            let waiting = Waiting { future, log: None, client };
            let pending = self.pending(method, args, timeout, None)?;
            event_loop.get().watch(self.inner.get()?);
            return Ok(event_loop.get().insert(pending, waiting).0);
        };
        let checkout = self.checkout(false, None, Some(log), Some(event_loop))?;
        let pending = checkout.pending(method, args, timeout, None)?;
        let pending = pending.ok_or_else(|| PyRuntimeError::new_err("the checkout is released"))?;
        let waiting = Waiting { future, log: checkout.log(args.py()), client };
        let (key, _) = event_loop.get().insert(pending, waiting);
        // The call goes on.
        checkout.release(args.py())?;
        Ok(key)
    }

    fn pending(
        &self,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        source: Option<Py<PyAny>>,
    ) -> PyResult<OfProcess<Pending>> {
        let client = self.inner.get()?;
        let timeout = own_timeout(timeout)?;
        let args: Vec<_> = args.iter().collect();
        let (input, feed) = input(source)?;
        let call = call_made(self.terms, &args, |args| {
            binding::call_alone(client, method.as_deref(), args, timeout, input)
        })?;
        Ok(OfProcess::new(Pending::Call(call, feed, self.terms)))
    }
}

#[pymethods]
impl Client {
    #[new]
    fn new(address: Cow<'_, str>, options: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (options, remote): (Options, Remote) = (options.extract()?, options.extract()?);
        let terms = options.terms();
        let inner = OfProcess::new(options.build(&remote, &address)?);
        Ok(Self { inner, number: CLIENTS.fetch_add(1, Ordering::Relaxed), terms })
    }

    #[getter]
    fn number(&self) -> u64 {
        self.number
    }

    /// Makes a call in a checkout of its own. The event loop completes the future.
    fn call(
        &self,
        event_loop: &Bound<'_, EventLoop>,
        future: Py<PyAny>,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        input: Option<Py<PyAny>>,
    ) -> PyResult<u64> {
        let pending = self.pending(method, args, timeout, input)?;
        let waiting = Waiting { future, log: None, client: Some(self.number) };
        event_loop.get().watch(self.inner.get()?);
        Ok(event_loop.get().add(pending, waiting))
    }

    /// Makes a call in a checkout of its own, and waits for its result.
    fn wait(
        &self,
        py: Python<'_>,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        input: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let outcome = waiting::wait(py, &mut self.pending(method, args, timeout, input)?)?;
        waiting::finish(py, outcome)
    }

    /// Calls a method that streams, in a checkout of its own.
    fn stream(
        &self,
        method: Cow<'_, str>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        source: Option<Py<PyAny>>,
    ) -> PyResult<Stream> {
        let (client, timeout) = (self.inner.get()?, own_timeout(timeout)?);
        let args: Vec<_> = args.iter().collect();
        let args = encode::arguments(&args, Target::Copy);
        let (input, feed) = input(source)?;
        let items =
            made(self.terms, || binding::stream_alone(client, &method, args, timeout, input))?;
        Ok(Stream::new(items, feed, None, self.terms))
    }

    /// Begins a checkout. Without a `timeout` of its own it has that of the client.
    #[pyo3(signature = (*, own_timeout, timeout, log, event_loop=None))]
    fn checkout(
        &self,
        own_timeout: bool,
        timeout: Option<f64>,
        log: Option<Py<PyAny>>,
        event_loop: Option<&Bound<'_, EventLoop>>,
    ) -> PyResult<Checkout> {
        let client = self.inner.get()?;
        if let Some(event_loop) = event_loop {
            event_loop.get().watch(client);
        }
        let timeout = limit("timeout", timeout)?;
        let mut checkout = client.checkout();
        if own_timeout {
            checkout = checkout.timeout(timeout);
        }
        let log = log.map(|callback| OwnLog::new(callback, event_loop));
        if let Some(own) = &log {
            checkout = checkout.log(own.log.log());
        }
        let open = Open { checkout: Arc::new(OfProcess::new(checkout)), log };
        Ok(Checkout { open: Mutex::new(Some(open)), terms: self.terms })
    }

    /// The numbers of idle, busy and connecting workers, and of waiting checkouts.
    fn stats(&self) -> PyResult<(usize, usize, usize, usize)> {
        let stats = self.inner.get()?.stats();
        Ok((stats.idle, stats.busy, stats.connecting, stats.queued))
    }

    /// Closes the client. The future gets its result when the last connection is closed.
    fn close(&self, event_loop: &Bound<'_, EventLoop>, future: Py<PyAny>) -> PyResult<u64> {
        let close = OfProcess::new(Pending::Close(Box::pin(self.inner.get()?.close())));
        Ok(event_loop.get().add(close, Waiting { future, log: None, client: None }))
    }

    /// Closes the client, and waits until its last connection is closed.
    fn close_and_wait(&self, py: Python<'_>) -> PyResult<()> {
        let close = Pending::Close(Box::pin(self.inner.get()?.close()));
        waiting::wait(py, &mut OfProcess::new(close)).map(drop)
    }
}

/// Exclusive use of one worker, or a place in the queue for one.
#[pyclass(frozen, module = "taskfork._native")]
pub(crate) struct Checkout {
    /// `None` once it is released.
    open: Mutex<Option<Open>>,
    terms: Terms,
}

/// What a checkout has until it is released.
struct Open {
    checkout: Arc<OfProcess<taskfork::Checkout>>,
    log: Option<OwnLog>,
}

/// The log of a checkout, and for asyncio the event loop that hands over what comes after its last call, with the log's number
/// there.
struct OwnLog {
    log: CheckoutLog,
    event_loop: Option<(Py<EventLoop>, u64)>,
}

impl OwnLog {
    fn new(callback: Py<PyAny>, event_loop: Option<&Bound<'_, EventLoop>>) -> Self {
        let event_loop = event_loop.map(|it| (it.clone().unbind(), it.get().number_of_log()));
        let notes = event_loop.as_ref().map(|(it, number)| (it.get().notes().clone(), *number));
        // It has no reference to the function: the collector could not see it.
        let log = CheckoutLog::new(callback, move |message| {
            if let Some((notes, number)) = notes {
                notes.add_log(number, message);
            }
        });
        Self { log, event_loop }
    }
}

impl Checkout {
    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> Option<Arc<OfProcess<taskfork::Checkout>>> {
        self.lock().as_ref().map(|open| open.checkout.clone())
    }

    fn log(&self, py: Python<'_>) -> Option<CheckoutLog> {
        let open = self.lock();
        open.as_ref()?.log.as_ref().map(|own| own.log.clone_ref(py))
    }

    /// Makes a call. `None` if the checkout is released.
    fn pending(
        &self,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        source: Option<Py<PyAny>>,
    ) -> PyResult<Option<OfProcess<Pending>>> {
        let Some(checkout) = self.inner() else { return Ok(None) };
        let timeout = own_timeout(timeout)?;
        let args: Vec<_> = args.iter().collect();
        let (input, feed) = input(source)?;
        let checkout = checkout.get()?;
        let call = call_made(self.terms, &args, |args| {
            binding::call(checkout, method.as_deref(), args, timeout, input)
        })?;
        Ok(Some(OfProcess::new(Pending::Call(call, feed, self.terms))))
    }

    fn worker(&self) -> PyResult<Option<OfProcess<Pending>>> {
        let Some(checkout) = self.inner() else { return Ok(None) };
        Ok(Some(OfProcess::new(Pending::Worker(binding::ready(checkout.get()?)))))
    }

    fn add(
        &self,
        event_loop: &Bound<'_, EventLoop>,
        future: Py<PyAny>,
        pending: Option<OfProcess<Pending>>,
    ) -> PyResult<Option<u64>> {
        let Some(pending) = pending else { return Ok(None) };
        let waiting = Waiting { future, log: self.log(event_loop.py()), client: None };
        Ok(Some(event_loop.get().add(pending, waiting)))
    }
}

#[pymethods]
impl Checkout {
    /// Makes a call, of which the event loop completes the future. `None` if the checkout is released.
    fn call(
        &self,
        event_loop: &Bound<'_, EventLoop>,
        future: Py<PyAny>,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        input: Option<Py<PyAny>>,
    ) -> PyResult<Option<u64>> {
        self.add(event_loop, future, self.pending(method, args, timeout, input)?)
    }

    /// Waits for a worker in the same way.
    fn ready(&self, event_loop: &Bound<'_, EventLoop>, future: Py<PyAny>) -> PyResult<Option<u64>> {
        self.add(event_loop, future, self.worker()?)
    }

    /// Makes a call without waiting for it. `None` if the checkout is released.
    fn queue(
        &self,
        py: Python<'_>,
        method: Option<Cow<'_, str>>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        input: Option<Py<PyAny>>,
    ) -> PyResult<Option<Queued>> {
        let pending = self.pending(method, args, timeout, input)?;
        Ok(pending.map(|pending| Queued::new(pending, self.log(py))))
    }

    /// Calls a method that streams. `None` if the checkout is released.
    fn stream(
        &self,
        py: Python<'_>,
        method: Cow<'_, str>,
        args: &Bound<'_, PyTuple>,
        timeout: Option<f64>,
        source: Option<Py<PyAny>>,
    ) -> PyResult<Option<Stream>> {
        let Some(checkout) = self.inner() else { return Ok(None) };
        let timeout = own_timeout(timeout)?;
        let args: Vec<_> = args.iter().collect();
        let args = encode::arguments(&args, Target::Copy);
        let (input, feed) = input(source)?;
        let checkout = checkout.get()?;
        let items = made(self.terms, || binding::stream(checkout, &method, args, timeout, input))?;
        Ok(Some(Stream::new(items, feed, self.log(py), self.terms)))
    }

    /// Waits for a worker in the same way.
    fn queue_ready(&self) -> PyResult<Option<Queued>> {
        Ok(self.worker()?.map(|pending| Queued::new(pending, None)))
    }

    /// Ends the checkout: all its calls fail with the message.
    fn abort(&self, message: Cow<'_, str>) -> PyResult<()> {
        if let Some(checkout) = self.inner() {
            checkout.get()?.abort(message);
        }
        Ok(())
    }

    /// Returns the worker to the pool when its calls have ended.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let Some(Open { checkout, log }) = self.lock().take() else { return Ok(()) };
        let Some(OwnLog { log, event_loop }) = log else { return Ok(()) };
        if let Some((event_loop, number)) = event_loop {
            event_loop.get().keep_log(number, log.callback().clone_ref(py));
        }
        drop(checkout);
        log.hand_over(py)
    }

    /// Tells the collector what is kept: the function for logs may refer to this object.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Ok(open) = self.open.try_lock()
            && let Some(Open { log: Some(own), .. }) = &*open
        {
            own.log.traverse(&visit)?;
            if let Some((event_loop, _)) = &own.event_loop {
                visit.call(event_loop)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let open = self.lock().take();
        drop(open);
    }
}
