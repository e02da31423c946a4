//! The future of a call's result, and the decoding of the answer.

use std::fmt;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::blob;
use crate::client::io::shared_session::SharedSession;
use crate::client::io::spin::SpinGuard;
use crate::client::proto::AnswerAttachments;
use crate::client::session::calls::{Outcome, Seq};
use crate::error::{CallError, Error, Failure, FatalError};
use crate::report::CallSite;
use crate::wire::attachments;
use crate::wire::bounds;
use crate::wire::call_error::InterfaceError;
use crate::wire::values::{self, ValueFormat};

/// The future of a call's result. Awaiting it returns the result.
///
/// A call runs in its turn whether it is awaited or not. Its answer is kept until it is awaited. The
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
    session: Arc<SharedSession>,
    seq: Seq,
    /// The source line of the caller.
    made_at: &'static Location<'static>,
    done: bool,
    spin_guard: Option<SpinGuard>,
    result: PhantomData<fn() -> (T, E)>,
}

impl<T, E> Call<T, E> {
    #[track_caller]
    pub(crate) fn new(session: Arc<SharedSession>, seq: Seq) -> Self {
        let (made_at, result) = (Location::caller(), PhantomData);
        Self { session, seq, made_at, done: false, spin_guard: None, result }
    }
}

impl<T: DeserializeOwned, E: InterfaceError> Future for Call<T, E> {
    type Output = Result<T, Error<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.done, "a call was polled after its result was taken");
        let this = &mut *self;
        let polled = this.session.poll(this.seq, context, &mut this.spin_guard);
        let (method, outcome) = ready!(polled);
        this.done = true;
        let site = || CallSite::new(self.session.client_name(), method.as_deref(), self.made_at);
        Poll::Ready(result(outcome, self.session.max_frame(), site))
    }
}

impl<T, E> Drop for Call<T, E> {
    fn drop(&mut self) {
        if !self.done {
            self.session.abandon(self.seq);
        }
    }
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Call")
            .field("client", &self.session.client_name())
            .field("number", &self.seq)
            .field("state", &self.session.call_state(self.seq))
            .field("made_at", &format_args!("{}", self.made_at))
            .finish()
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
        Outcome::Error(error) => match error.value().map(|value| bounds::check(value, max_frame)) {
            None | Some(Ok(())) => return Err(error.into_error(site())),
            Some(Err(message)) => Err(Failed::Call(CallError::Decode { message })),
        },
        Outcome::Ready => {
            decode(&Bytes::from_static(NIL), ValueFormat::MessagePack, None, max_frame)
        }
        Outcome::Unsendable(message) => Err(Failed::Call(CallError::Arguments { message })),
        Outcome::Dropped { behind } => Err(Failed::Call(CallError::Dropped { behind })),
        Outcome::Fatal { cause, may_have_run } => Err(Failed::Fatal(cause, may_have_run)),
    };
    decoded.map_err(|failed| match failed {
        Failed::Call(error) => Error::Call { error, site: site() },
        Failed::Fatal(cause, may_have_run) => Error::Fatal { cause, may_have_run, site: site() },
    })
}

fn decode<T: DeserializeOwned, E>(
    value: &Bytes,
    format: ValueFormat,
    attachments: AnswerAttachments,
    max_frame: usize,
) -> Result<T, Failed<E>> {
    let checked = bounds::check(value, max_frame);
    let decoded = checked.and_then(|()| {
        let attachments = attachments.map(|attachments| *attachments).unwrap_or_default();
        let decode = || attachments::decode(value, |value| values::decode(value, format));
        blob::within(Some(value), attachments, decode)
    });
    decoded.map_err(|message| Failed::Call(CallError::Decode { message }))
}

/// An error whose call site has not been added yet.
enum Failed<E> {
    Call(CallError<E>),
    Fatal(FatalError, bool),
}
