//! The future of a call's result, and the decoding of the answer.

use std::fmt;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::input::Input;
use super::progress::ProgressUpdates;
use crate::blob;
use crate::client::io::shared_session::SharedSession;
use crate::client::io::spin::SpinGuard;
use crate::client::proto::AnswerAttachments;
use crate::client::session::calls::{MethodName, Outcome, Seq};
use crate::error::{CallError, Error, Failure, FatalError, Needs};
use crate::report::CallSite;
use crate::wire::attachments;
use crate::wire::bounds;
use crate::wire::call_error::InterfaceError;
use crate::wire::values::{self, ValueFormat};

/// The future of a call's result. Awaiting it returns the result.
///
/// A call with an [input](crate::client::IntoInput) takes and sends that while it is awaited. Otherwise a call runs in its turn
/// whether it is awaited or not. Its answer is kept until it is awaited. The
/// task that awaits it also decodes the answer, which takes long for a very large one: see
/// [`max_frame`](crate::client::ClientBuilder::max_frame).
///
/// # Cancellation
/// Dropping a call before its turn takes it back. If it follows a call of less than 50
/// microseconds, it may be in the worker already, and then it runs.
///
/// Dropping a call that runs lets it run on while its checkout exists. If the checkout is dropped
/// as well, the worker is killed and replaced.
///
/// # Panics
/// If it is polled again after it has returned its result.
///
/// ```no_run
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let checkout = client.checkout();
/// let first = checkout.call::<i64>("add", (1, 1));
/// let second = checkout.call::<i64>("add", (2, 2));
/// assert_eq!((first.await?, second.await?), (2, 4));
/// # Ok(())
/// # }
/// ```
#[must_use = "a call that is dropped at once is taken back"]
pub struct Call<T, E = Failure> {
    source: Source<T, E>,
    /// The source line of the caller.
    made_at: &'static Location<'static>,
    done: bool,
}

/// Where the result of a call comes from.
enum Source<T, E> {
    Session {
        session: Arc<SharedSession>,
        seq: Seq,
        spin_guard: Option<SpinGuard>,
        /// What the call streams to its method.
        input: Option<Box<Input>>,
    },
    Ready(Mutex<Option<ReadyResult<T, E>>>),
}

/// Returns the result. It is a function so that a call can be sent to other threads whatever its types are:
/// [`Call::ready`] takes only values that can.
type ReadyResult<T, E> = Box<dyn FnOnce() -> Result<T, E> + Send>;

impl<T, E> Call<T, E> {
    #[track_caller]
    pub(crate) fn new(session: Arc<SharedSession>, seq: Seq) -> Self {
        Self::from(Source::Session { session, seq, spin_guard: None, input: None })
    }

    /// A call that streams this to its method.
    #[track_caller]
    pub(crate) fn with_input(session: Arc<SharedSession>, seq: Seq, input: Input) -> Self {
        let input = Some(Box::new(input));
        Self::from(Source::Session { session, seq, spin_guard: None, input })
    }

    /// See [`binding::own_arguments`](super::binding::own_arguments).
    pub(super) fn own_arguments(&self, copy: &mut dyn FnMut(&[u8]) -> Bytes) {
        if let Source::Session { session, seq, .. } = &self.source {
            session.own_arguments(*seq, copy);
        }
    }

    /// A call that has this result, without a worker: `Ok` of a value, or the interface's own error. It is
    /// for tests of code that calls workers: a type of the test can implement the trait `…Calls` of a typed interface.
    ///
    /// The call site of an error has the name `ready` as its client and no method.
    ///
    /// ```
    /// use taskfork::{Call, Error};
    ///
    /// #[taskfork::interface]
    /// trait Adder {
    ///     fn add(&mut self, a: i64, b: i64) -> i64;
    /// }
    ///
    /// /// The code under test.
    /// async fn double(adder: &impl AdderCalls, number: i64) -> Result<i64, Error> {
    ///     adder.add(number, number).await
    /// }
    ///
    /// struct Mock;
    ///
    /// impl AdderCalls for Mock {
    ///     fn add(&self, a: i64, b: i64) -> Call<i64> {
    ///         Call::ready(Ok(a + b))
    ///     }
    /// }
    ///
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// assert_eq!(double(&Mock, 21).await.unwrap(), 42);
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn ready(result: Result<T, E>) -> Self
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        Self::from(Source::Ready(Mutex::new(Some(Box::new(|| result)))))
    }

    /// The reports of how far the call has got, which the worker's code makes with
    /// [`Context::progress`](crate::worker::Context::progress). There are none once the call is over, from servers that
    /// speak the protocol of AnyEvent::Task, and for [`ready`](Self::ready).
    ///
    /// A call with an input sends it only while the call itself is polled. So do not wait for reports alone then: use
    /// `tokio::select!` with `&mut call`.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let call = client.call::<u64>("import", ("orders.csv",));
    /// let mut progress = call.progress();
    /// while let Some(progress) = progress.changed().await {
    ///     println!("{progress}");
    /// }
    /// println!("{} rows", call.await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(&self) -> ProgressUpdates {
        self.origin()
            .map_or_else(ProgressUpdates::none, |(session, seq)| ProgressUpdates::of(session, seq))
    }

    /// The session of a call that is not over, and its number there.
    pub(super) fn origin(&self) -> Option<(Arc<SharedSession>, Seq)> {
        match &self.source {
            Source::Session { session, seq, .. } if !self.done => Some((session.clone(), *seq)),
            Source::Session { .. } | Source::Ready(_) => None,
        }
    }

    #[track_caller]
    fn from(source: Source<T, E>) -> Self {
        Self { source, made_at: Location::caller(), done: false }
    }
}

impl<T: DeserializeOwned, E: InterfaceError> Future for Call<T, E> {
    type Output = Result<T, Error<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_with(context, |session, seq, spin_guard, context| {
            session.poll(seq, context, spin_guard)
        })
    }
}

impl<T: DeserializeOwned, E: InterfaceError> Call<T, E> {
    /// Polls the call, and never spins for its answer.
    pub(super) fn poll_without_spin(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<T, Error<E>>> {
        self.poll_with(context, |session, seq, _, context| session.poll_once(seq, context.waker()))
    }

    /// Has a task woken once a poll returns the result, without a poll. Returns false if the call must be polled before that.
    pub(super) fn set_waker(&self, waker: &Waker) -> bool {
        match &self.source {
            Source::Session { session, seq, input: None, .. } if !self.done => {
                session.set_waker(*seq, waker);
                true
            }
            Source::Session { .. } | Source::Ready(_) => false,
        }
    }

    fn poll_with(
        &mut self,
        context: &mut Context<'_>,
        poll: impl PollOutcome,
    ) -> Poll<Result<T, Error<E>>> {
        assert!(!self.done, "a call was polled after its result was taken");
        match &mut self.source {
            Source::Session { session, seq, spin_guard, input } => {
                let polled = match input {
                    Some(input) => poll_sending(session, *seq, context, spin_guard, input, poll),
                    None => poll(session, *seq, spin_guard, context),
                };
                let (method, outcome) = ready!(polled);
                self.done = true;
                let failure = input.take().and_then(|input| input.into_failure());
                let site = || CallSite::new(session.client_name(), method.as_deref(), self.made_at);
                Poll::Ready(result_with_input(outcome, failure, session.max_frame(), site))
            }
            Source::Ready(result) => {
                self.done = true;
                let result = result.get_mut().unwrap_or_else(PoisonError::into_inner).take();
                let Some(result) = result else { return Poll::Pending };
                let site = CallSite::new("ready", None, self.made_at);
                Poll::Ready(
                    result()
                        .map_err(|error| Error::Call { error: CallError::Interface(error), site }),
                )
            }
        }
    }
}

impl<T, E> Drop for Call<T, E> {
    fn drop(&mut self) {
        if let Source::Session { session, seq, .. } = &self.source
            && !self.done
        {
            session.abandon(*seq);
        }
    }
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = out.debug_struct("Call");
        if let Source::Session { session, seq, .. } = &self.source {
            fields
                .field("client", &session.client_name())
                .field("number", seq)
                .field("state", &session.call_state(*seq));
        }
        fields.field("made_at", &format_args!("{}", self.made_at)).finish()
    }
}

/// Polls the outcome of a call, and may spin for it.
trait PollOutcome:
    FnOnce(
    &Arc<SharedSession>,
    Seq,
    &mut Option<SpinGuard>,
    &mut Context<'_>,
) -> Poll<(MethodName, Outcome)>
{
}

impl<F> PollOutcome for F where
    F: FnOnce(
        &Arc<SharedSession>,
        Seq,
        &mut Option<SpinGuard>,
        &mut Context<'_>,
    ) -> Poll<(MethodName, Outcome)>
{
}

/// Polls the outcome of a call, and sends its input meanwhile.
fn poll_sending(
    session: &Arc<SharedSession>,
    seq: Seq,
    context: &mut Context<'_>,
    spin_guard: &mut Option<SpinGuard>,
    input: &mut Input,
    poll: impl PollOutcome,
) -> Poll<(MethodName, Outcome)> {
    while !input.is_over() {
        let goes_on = input.send(session, seq, context);
        let polled = session.poll_once(seq, context.waker());
        // Credit may have come since.
        if polled.is_ready() || !goes_on || !session.wants_input(seq) {
            return polled;
        }
    }
    poll(session, seq, spin_guard, context)
}

/// The result of a call whose input may have failed.
pub(super) fn result_with_input<T, E>(
    outcome: Outcome,
    failure: Option<Failure>,
    max_frame: usize,
    site: impl FnOnce() -> CallSite,
) -> Result<T, Error<E>>
where
    T: DeserializeOwned,
    E: InterfaceError,
{
    match (outcome, failure) {
        // Whatever the method has made of it.
        (Outcome::Result { .. } | Outcome::Error { .. }, Some(failure)) => {
            Err(Error::Call { error: CallError::Input(failure), site: site() })
        }
        (outcome, _) => result(outcome, max_frame, site),
    }
}

fn result<T, E>(
    outcome: Outcome,
    max_frame: usize,
    site: impl FnOnce() -> CallSite,
) -> Result<T, Error<E>>
where
    T: DeserializeOwned,
    E: InterfaceError,
{
    /// The result of a wait for a worker: an encoded nil.
    const NIL: &[u8] = &[0xc0];
    let decoded = match outcome {
        Outcome::Result { value, format, attachments } => {
            decode(&value, format, attachments, max_frame)
        }
        Outcome::Error { error, .. } => {
            match error.value().map(|value| bounds::check(value, max_frame)) {
                None | Some(Ok(())) => return Err(error.into_error(site())),
                Some(Err(message)) => Err(Failed::Call(CallError::Decode { message })),
            }
        }
        Outcome::Ready => {
            decode(&Bytes::from_static(NIL), ValueFormat::MessagePack, None, max_frame)
        }
        Outcome::Unsendable(message) => {
            let needs = Needs::default();
            Err(Failed::Call(CallError::Arguments { message, needs }))
        }
        Outcome::Dropped { behind } => Err(Failed::Call(CallError::Dropped { behind })),
        Outcome::Fatal { cause, may_have_run } => Err(Failed::Fatal(cause, may_have_run)),
    };
    decoded.map_err(|failed| match failed {
        Failed::Call(error) => Error::Call { error, site: site() },
        Failed::Fatal(cause, may_have_run) => Error::Fatal { cause, may_have_run, site: site() },
    })
}

/// Decodes a value of an answer, or the reason why that is not possible.
pub(super) fn decode_value<T: DeserializeOwned>(
    value: &Bytes,
    format: ValueFormat,
    attachments: AnswerAttachments,
    max_frame: usize,
) -> Result<T, String> {
    bounds::check(value, max_frame)?;
    let attachments = attachments.map(|attachments| *attachments).unwrap_or_default();
    let decode = || attachments::decode(value, |value| values::decode(value, format));
    blob::within(Some(value), attachments, decode)
}

fn decode<T: DeserializeOwned, E>(
    value: &Bytes,
    format: ValueFormat,
    attachments: AnswerAttachments,
    max_frame: usize,
) -> Result<T, Failed<E>> {
    let decoded = decode_value(value, format, attachments, max_frame);
    decoded.map_err(|message| Failed::Call(CallError::Decode { message }))
}

/// An error whose call site has not been added yet.
enum Failed<E> {
    Call(CallError<E>),
    Fatal(FatalError, bool),
}
