//! The handle of a checkout.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use log_defer::Log;

use super::call::Call;
use super::call_options::CallOptions;
use super::input::Input;
use super::stream::StreamCall;
use crate::blob::BlobMut;
use crate::client::config::CheckoutOptions;
use crate::client::io::core::Core;
use crate::client::io::effects::Waiter;
use crate::client::io::shared_session::{SharedSession, Streams};
use crate::client::session::calls::{MethodName, Operation, Seq};
use crate::error::FatalError;
use crate::time_limit::TimeLimit;
use crate::trace_context::TraceContext;
use crate::wire::arguments::IntoArguments;

/// Holds one worker exclusively, or a place in the queue for one.
///
/// Calls run on the same worker, one after the other, in the order in which they are made. It does
/// not matter in which order or in which task they are awaited. So a transaction, or any other
/// state of the worker, lasts for the whole checkout. Methods take `&self`: share a checkout
/// between tasks by reference or in an `Arc`.
///
/// When a call fails, the calls queued behind it are dropped unrun. So are calls that are made
/// before the failure has been returned. After that the checkout is usable again. A fatal error
/// ends the checkout: every later call returns that error.
///
/// Dropping a checkout releases its worker once the calls that are still awaited are answered. A
/// checkout without a worker leaves the queue. If the future of the running call was dropped, the
/// worker is killed and replaced.
///
/// ```no_run
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let checkout = client.checkout();
/// let begin = checkout.call::<()>("begin", ());
/// let insert = checkout.call::<u64>("insert", ("a row",));
/// begin.await?;
/// println!("row {}", insert.await?);
/// checkout.call::<()>("commit", ()).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a checkout is released when it is dropped"]
pub struct Checkout {
    session: Arc<SharedSession>,
    options: CallOptions,
}

impl Checkout {
    pub(crate) fn new(core: &Arc<Core>, options: CheckoutOptions) -> Self {
        Self::of(core, options, SharedSession::new(core.clone(), options))
    }

    pub(crate) fn try_new(core: &Arc<Core>, options: CheckoutOptions) -> Option<Self> {
        Some(Self::of(core, options, SharedSession::try_new(core.clone(), options)?))
    }

    fn of(core: &Core, options: CheckoutOptions, session: Arc<SharedSession>) -> Self {
        Self { session, options: CallOptions::of(core, options) }
    }

    /// Sets the time limit of each call that is made from now on. It counts from when the call is
    /// made. `None` means no limit, and so do 100 years or more.
    ///
    /// Defaults to the client's [`timeout`](crate::client::ClientBuilder::timeout). With 0, a call
    /// succeeds only if its answer is there at once.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout().timeout(Duration::from_millis(200));
    /// let page: String = checkout.call("render", ("page",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = TimeLimit::from(timeout.into());
        self.options.has_timeout = timeout != TimeLimit::NEVER;
        self.session.set_timeout(timeout);
        self
    }

    /// Sets the time limit of each call that is made from now on, counted from when the call begins to run. `None`
    /// means no limit.
    ///
    /// Defaults to the client's [`run_timeout`](crate::client::ClientBuilder::run_timeout), which says what it
    /// means to run. The [`timeout`](Self::timeout) holds as well.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout().timeout(None).run_timeout(Duration::from_millis(200));
    /// let page: String = checkout.call("render", ("page",)).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn run_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = TimeLimit::from(timeout.into());
        self.options.run_timeout = timeout;
        self.session.set_run_timeout(timeout);
        self
    }

    /// Records each call that is made from now on in `log`: a timer with the method's name, however
    /// the call ends, and what the worker logs through [`logger`](crate::worker::logger). Workers
    /// leave out lines that the log's verbosity excludes.
    ///
    /// Defaults to no log. The checkout holds a handle of the log until it is dropped and its calls
    /// are over.
    ///
    /// ```no_run
    /// use taskfork::log_defer::{JsonLines, Log};
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let log = Log::new(JsonLines::new(std::io::stderr()).callback());
    /// log.info("request received");
    /// let checkout = client.checkout().log(&log);
    /// checkout.call::<()>("work", ()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn log(mut self, log: &Log) -> Self {
        self.options.log = Some(log.verbosity());
        self.session.set_log(log.clone());
        self
    }

    /// Sets the trace that each call made from now on belongs to.
    ///
    /// Defaults to the trace of the span in which a call is made, if the feature `opentelemetry` is
    /// on and the program has a layer of `tracing-opentelemetry`. Otherwise there is none.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::Client, header: &str) {
    /// let mut checkout = client.checkout();
    /// if let Some(context) = taskfork::trace_context::TraceContext::new(header) {
    ///     checkout = checkout.trace_context(context);
    /// }
    /// # }
    /// ```
    #[must_use = "it returns the checkout, which is released when it is dropped"]
    pub fn trace_context(mut self, context: TraceContext) -> Self {
        self.options.trace = Some(context);
        self
    }

    /// Calls a method of an untyped interface. `args` is a tuple of the arguments.
    ///
    /// The call takes its turn now, also if it is awaited later or never.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.checkout().call("add", (2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Awaiting the call returns an [`Error`](crate::Error). [`Error::Call`](crate::Error::Call)
    /// means that the call failed and the checkout is usable. [`Error::Fatal`](crate::Error::Fatal)
    /// ends the checkout, for example because the time ran out or the worker died.
    ///
    /// # Cancellation
    /// See [`Call`].
    #[track_caller]
    pub fn call<T>(&self, method: &str, args: impl IntoArguments) -> Call<T> {
        self.make(Some(Cow::Owned(method.to_owned())), None, args)
    }

    /// Calls an interface that is one function. The call names no method.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let sum: i64 = client.checkout().invoke((2, 3)).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`call`](Self::call).
    ///
    /// # Cancellation
    /// See [`Call`].
    #[track_caller]
    pub fn invoke<T>(&self, args: impl IntoArguments) -> Call<T> {
        self.make(None, None, args)
    }

    /// Calls a method that streams items of the type `I`, and returns a result of the type `T` at the end.
    ///
    /// The call takes its turn now. Calls that are made behind it are sent once it has ended.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let mut lines = checkout.stream::<String, u64>("lines", ("words.txt",));
    /// while let Some(line) = lines.next().await? {
    ///     println!("{line}");
    /// }
    /// println!("{} lines", lines.finish().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`call`](Self::call). A method that streams nothing is [`CallError::Arguments`](crate::error::CallError), and
    /// so is a server that cannot stream.
    ///
    /// # Cancellation
    /// See [`StreamCall`].
    #[track_caller]
    pub fn stream<I, T>(&self, method: &str, args: impl IntoArguments) -> StreamCall<I, T> {
        self.make_stream(Some(Cow::Owned(method.to_owned())), None, args)
    }

    /// Waits until the checkout has a worker and the calls made before are over. It runs nothing in
    /// the worker.
    ///
    /// # Errors
    /// A fatal error if the time runs out first, or if the checkout is over already.
    ///
    /// # Cancellation
    /// Dropping it has no effect on the checkout.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// checkout.ready().await?;
    /// println!("a worker is assigned");
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn ready(&self) -> Call<()> {
        self.wait_for_worker()
    }

    #[track_caller]
    pub(super) fn wait_for_worker<E>(&self) -> Call<(), E> {
        let seq =
            self.session.submit(None, Operation::WaitForWorker, None, Streams::default(), None);
        Call::new(self.session.clone(), seq)
    }

    /// Allocates memory of `length` bytes for an argument, to be filled in place. Its content is
    /// unspecified.
    ///
    /// Once the checkout's worker has answered a call of any checkout, the memory is shared with
    /// it, if the connection shares memory (see
    /// [`ClientBuilder::shared_memory`](crate::client::ClientBuilder::shared_memory)). A
    /// [`Blob`](crate::Blob) made of it reaches this worker without being copied or sent. For
    /// another worker it is copied. Memory that was used before has its pages already. Without
    /// shared memory this is [`BlobMut::new`].
    ///
    /// # Errors
    /// If the system has no memory or descriptor left.
    ///
    /// ```
    /// # async fn example(client: taskfork::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let checkout = client.checkout();
    /// for frame in 0..100 {
    ///     let mut image = checkout.alloc_blob(8 << 20)?;
    ///     image.fill(frame);
    ///     let sum: u64 = checkout.call("sum", (image.freeze()?,)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn alloc_blob(&self, length: usize) -> io::Result<BlobMut> {
        match self.session.alloc_shared(length) {
            Some(memory) => Ok(memory.into()),
            None => BlobMut::new(length),
        }
    }

    /// Ends the checkout: all its calls fail with `message`, those made later included. The pool
    /// replaces the worker, which is killed if it runs a call.
    ///
    /// It has no effect on a checkout that is over already.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let checkout = client.checkout();
    /// let call = checkout.call::<()>("hang", ());
    /// checkout.abort("the user pressed stop");
    /// assert_eq!(call.await.unwrap_err().to_string(), "the user pressed stop");
    /// # }
    /// ```
    pub fn abort(&self, message: impl Into<String>) {
        self.session.clone().fail(FatalError::Aborted { message: message.into() });
    }

    /// The same as [`abort`](Self::abort), under the name that AnyEvent::Task gives it.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// client.checkout().throw_fatal_error("the user pressed stop");
    /// # }
    /// ```
    pub fn throw_fatal_error(&self, message: impl Into<String>) {
        self.abort(message);
    }

    #[track_caller]
    pub(super) fn make<T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
    ) -> Call<T, E> {
        let seq = self.submit(method, interface, args, Streams::default(), None);
        Call::new(self.session.clone(), seq)
    }

    /// Makes a call with a time limit of its own, unless that is `None`.
    #[track_caller]
    pub(super) fn make_within<T, E>(
        &self,
        timeout: Option<TimeLimit>,
        method: MethodName,
        args: impl IntoArguments,
    ) -> Call<T, E> {
        let seq = self.submit(method, None, args, Streams::default(), timeout);
        Call::new(self.session.clone(), seq)
    }

    /// Calls a method that streams in the same way.
    #[track_caller]
    pub(super) fn make_stream_within<I, T, E>(
        &self,
        timeout: Option<TimeLimit>,
        method: MethodName,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        let streams = Streams { items: true, input: false };
        let seq = self.submit(method, None, args, streams, timeout);
        StreamCall::new(self.session.clone(), seq)
    }

    #[track_caller]
    pub(super) fn make_stream<I, T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        let seq = self.submit(method, interface, args, Streams { items: true, input: false }, None);
        StreamCall::new(self.session.clone(), seq)
    }

    /// Makes a call with an input.
    #[track_caller]
    pub(super) fn make_with_input<T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T, E> {
        let seq = self.submit(method, interface, args, Streams { items: false, input: true }, None);
        Call::with_input(self.session.clone(), seq, input)
    }

    /// Makes a call with an input, with a time limit of its own.
    #[track_caller]
    pub(super) fn make_with_input_within<T, E>(
        &self,
        timeout: Option<TimeLimit>,
        method: MethodName,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T, E> {
        let streams = Streams { items: false, input: true };
        let seq = self.submit(method, None, args, streams, timeout);
        Call::with_input(self.session.clone(), seq, input)
    }

    /// Calls a method that streams in the same way.
    #[track_caller]
    pub(super) fn make_stream_with_input_within<I, T, E>(
        &self,
        timeout: Option<TimeLimit>,
        method: MethodName,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let streams = Streams { items: true, input: true };
        let seq = self.submit(method, None, args, streams, timeout);
        StreamCall::with_input(self.session.clone(), seq, input)
    }

    /// Makes a call with an input whose method streams too.
    #[track_caller]
    pub(super) fn make_stream_with_input<I, T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let seq = self.submit(method, interface, args, Streams { items: true, input: true }, None);
        StreamCall::with_input(self.session.clone(), seq, input)
    }

    #[track_caller]
    fn submit(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        streams: Streams,
        timeout: Option<TimeLimit>,
    ) -> Seq {
        let has_timeout = timeout.map_or(self.options.has_timeout, |it| it != TimeLimit::NEVER);
        let (operation, replay) =
            self.options.encode(method.as_deref(), interface, args, streams, has_timeout);
        self.session.submit(method, operation, replay, streams, timeout)
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl fmt::Debug for Checkout {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, unfinished) = self.session.summary();
        out.debug_struct("Checkout")
            .field("client", &self.session.client_name())
            .field("state", &state)
            .field("calls", &unfinished)
            .finish_non_exhaustive()
    }
}
