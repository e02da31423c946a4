//! The items and the result of a call that streams.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::call::{decode_value, result_with_input};
use super::input::Input;
use super::progress::ProgressUpdates;
use crate::client::io::shared_session::{Polled, SharedSession};
use crate::client::session::calls::{MethodName, Outcome, Seq};
use crate::client::session::items::Item;
use crate::error::{CallError, Error, Failure};
use crate::report::CallSite;
use crate::wire::call_error::InterfaceError;
use crate::wire::values::ValueFormat;

/// A call that streams items of the type `I` while it runs, and has a result of the type `T` at its end.
///
/// [`next`](Self::next) returns one item after the other, and [`finish`](Self::finish) the result. It is also a
/// [`Stream`] of the items.
///
/// The worker is at most 256 KiB and one item ahead of its reader, and then waits. The time limit of the call includes that
/// wait. If the call fails in the middle, the items that have come are returned first, and then the error. If an item is
/// of another type, that is the error, and the call runs on as if it had been dropped.
///
/// If the method takes an [input](crate::client::IntoInput) as well, that is sent while the call is asked for items.
///
/// Calls that are made on the same checkout behind it are sent once it has ended. So await the end of a stream, or drop
/// it, before you await the next call: otherwise a call waits for a worker that waits for its reader.
///
/// # Cancellation
/// Dropping it stops the call: the worker's next [`Emitter::send`](crate::Emitter::send) fails, and the result is
/// discarded. If its checkout is dropped as well, or the call was made on a client, the worker is killed and replaced.
/// Dropping the future of `next` loses no item.
///
/// ```no_run
/// use taskfork::{BoxError, Emitter};
///
/// #[taskfork::interface]
/// trait Reports {
///     fn render(&mut self, pages: u32, out: &mut Emitter<String>) -> Result<u32, BoxError>;
/// }
///
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let mut pages = client.render(12);
/// while let Some(page) = pages.next().await? {
///     println!("{page}");
/// }
/// println!("{} pages", pages.finish().await?);
/// # Ok(())
/// # }
/// ```
#[must_use = "a call that is dropped at once is taken back"]
pub struct StreamCall<I, T, E = Failure> {
    session: Arc<SharedSession>,
    seq: Seq,
    made_at: &'static Location<'static>,
    state: State,
    /// What the call streams to its method, until the end of the call.
    input: Option<Box<Input>>,
    /// Why the input has failed.
    failure: Option<Failure>,
    types: PhantomData<Types<I, T, E>>,
}

/// A function, so that a stream can be sent to other threads whatever its types are.
type Types<I, T, E> = fn() -> (I, T, E);

/// How far the reader has got.
enum State {
    Running,
    /// All items have been returned, and the result waits to be decoded.
    Finished(MethodName, Outcome),
    /// The error has been returned, or the result.
    Over,
}

impl<I, T, E> StreamCall<I, T, E> {
    #[track_caller]
    pub(crate) fn new(session: Arc<SharedSession>, seq: Seq) -> Self {
        let made_at = Location::caller();
        Self {
            session,
            seq,
            made_at,
            state: State::Running,
            input: None,
            failure: None,
            types: PhantomData,
        }
    }

    /// A call that streams this to its method as well.
    #[track_caller]
    pub(crate) fn with_input(session: Arc<SharedSession>, seq: Seq, input: Input) -> Self {
        let mut call = Self::new(session, seq);
        call.input = Some(Box::new(input));
        call
    }

    /// The reports of how far the call has got. See [`Call::progress`](crate::Call::progress).
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// let checkout = client.checkout();
    /// let pages = checkout.stream::<String, u32>("render", (12,));
    /// let progress = pages.progress();
    /// # let _ = progress.latest();
    /// # }
    /// ```
    pub fn progress(&self) -> ProgressUpdates {
        let cell = self.session.progress_cell(self.seq);
        cell.map_or_else(ProgressUpdates::none, |cell| {
            ProgressUpdates::new(self.session.clone(), cell)
        })
    }
}

impl<I, T, E> StreamCall<I, T, E>
where
    I: DeserializeOwned,
    T: DeserializeOwned,
    E: InterfaceError,
{
    /// Waits for the next item. `None` once all have been returned, and after an error.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let mut lines = client.stream::<String, u64>("lines", ("words.txt",));
    /// let first = lines.next().await?;
    /// # let _ = first;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of the call, once, behind the items that came before.
    ///
    /// # Cancellation
    /// Dropping the future loses no item.
    pub async fn next(&mut self) -> Result<Option<I>, Error<E>> {
        poll_fn(|context| self.poll_item(context)).await.transpose()
    }

    /// Waits for the end of the call and returns its result. Items that have not been returned are discarded.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let count = client.stream::<String, u64>("lines", ("words.txt",)).finish().await?;
    /// # let _ = count;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The error of the call.
    ///
    /// # Panics
    /// If the error of the call has been returned already, by [`next`](Self::next) or by the stream.
    ///
    /// # Cancellation
    /// As dropping the stream.
    pub async fn finish(mut self) -> Result<T, Error<E>> {
        while let Some(item) = poll_fn(|context| self.poll_raw(context)).await {
            // Not decoded: an item that nobody wants can be of any type.
            item?;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Finished(method, outcome) => self.result(method, outcome),
            State::Running | State::Over => {
                panic!("a stream was finished after its error was taken")
            }
        }
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<I, Error<E>>>> {
        let item = match ready!(self.poll_raw(context)) {
            Some(Ok(item)) => item,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        let Item { value, attachments, .. } = item;
        let format = ValueFormat::MessagePack;
        let decoded = decode_value(&value, format, attachments, self.session.max_frame());
        Poll::Ready(Some(decoded.map_err(|reason| {
            self.state = State::Over;
            self.session.abandon(self.seq);
            let message = format!("an item of the stream: {reason}");
            let site = CallSite::new(self.session.client_name(), None, self.made_at);
            Error::Call { error: CallError::Decode { message }, site }
        })))
    }

    /// Polls the next item without decoding it.
    fn poll_raw(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Item, Error<E>>>> {
        if !matches!(self.state, State::Running) {
            return Poll::Ready(None);
        }
        match ready!(self.poll_session(context)) {
            Polled::Item(item) => Poll::Ready(Some(Ok(item))),
            Polled::Outcome(method, outcome) => {
                if let Some(input) = self.input.take() {
                    self.failure = input.into_failure();
                }
                if let (Outcome::Result { .. }, None) = (&outcome, &self.failure) {
                    self.state = State::Finished(method, outcome);
                    return Poll::Ready(None);
                }
                self.state = State::Over;
                Poll::Ready(self.result(method, outcome).err().map(Err))
            }
        }
    }

    /// Polls the next item or the outcome, and sends the input.
    fn poll_session(&mut self, context: &mut Context<'_>) -> Poll<Polled> {
        loop {
            // Before the item that may be there, because a reader may take long for each.
            let goes_on = match &mut self.input {
                Some(input) => input.send(&self.session, self.seq, context),
                None => false,
            };
            let polled = self.session.poll_item(self.seq, context.waker());
            // Credit may have come since.
            if polled.is_ready() || !goes_on || !self.session.wants_input(self.seq) {
                return polled;
            }
        }
    }

    fn result(&mut self, method: MethodName, outcome: Outcome) -> Result<T, Error<E>> {
        let failure = self.failure.take();
        let (session, made_at) = (&self.session, self.made_at);
        let site = || CallSite::new(session.client_name(), method.as_deref(), made_at);
        result_with_input(outcome, failure, session.max_frame(), site)
    }
}

impl<I, T, E> Stream for StreamCall<I, T, E>
where
    I: DeserializeOwned,
    T: DeserializeOwned,
    E: InterfaceError,
{
    type Item = Result<I, Error<E>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(context)
    }
}

impl<I, T, E> Drop for StreamCall<I, T, E> {
    fn drop(&mut self) {
        if let State::Running = self.state {
            self.session.abandon(self.seq);
        }
    }
}

impl<I, T, E> fmt::Debug for StreamCall<I, T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("StreamCall")
            .field("client", &self.session.client_name())
            .field("number", &self.seq)
            .field("state", &self.session.call_state(self.seq))
            .field("made_at", &format_args!("{}", self.made_at))
            .finish()
    }
}
