//! The items and the result of a call that streams.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::Location;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
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
/// Dropping it stops the call, and the result is discarded. If its checkout is dropped as well, or the call was made on a
/// client, the worker is killed and replaced. Otherwise the worker's [`Emitter::send`](crate::Emitter::send) fails once the
/// worker is ahead of its reader and would wait.
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
    source: Source<I, T, E>,
    made_at: &'static Location<'static>,
    state: State,
}

/// Where the items and the result come from.
enum Source<I, T, E> {
    Session(SessionSource<I, T, E>),
    Ready(Mutex<Ready<I, T, E>>),
}

/// A call of a session.
struct SessionSource<I, T, E> {
    session: Arc<SharedSession>,
    seq: Seq,
    /// What the call streams to its method, until the end of the call.
    input: Option<Box<Input>>,
    /// Why the input has failed.
    failure: Option<Failure>,
    types: PhantomData<Types<I, T, E>>,
}

/// A function, so that a stream can be sent to other threads whatever its types are.
type Types<I, T, E> = fn() -> (I, T, E);

/// The items and the result of [`StreamCall::ready`], which takes only values that can be sent to other threads.
struct Ready<I, T, E> {
    items: Box<dyn Iterator<Item = I> + Send>,
    /// `None` once it has been returned.
    result: Option<Result<Stored<T>, Stored<E>>>,
}

/// Returns the value. A function for the same reason as [`Types`].
type Stored<T> = Box<dyn FnOnce() -> T + Send>;

/// How far the reader has got.
enum State {
    Running,
    /// All items of a session's call have been returned, and the result waits to be decoded.
    Finished(MethodName, Outcome),
    /// The error has been returned, or the result. Of [`StreamCall::ready`], all items.
    Over,
}

/// An item that has not been decoded.
enum RawItem<I> {
    Encoded(Item),
    Ready(I),
}

impl<I, T, E> StreamCall<I, T, E> {
    #[track_caller]
    pub(crate) fn new(session: Arc<SharedSession>, seq: Seq) -> Self {
        Self::of_session(session, seq, None)
    }

    /// A call that streams this to its method as well.
    #[track_caller]
    pub(crate) fn with_input(session: Arc<SharedSession>, seq: Seq, input: Input) -> Self {
        Self::of_session(session, seq, Some(Box::new(input)))
    }

    #[track_caller]
    fn of_session(session: Arc<SharedSession>, seq: Seq, input: Option<Box<Input>>) -> Self {
        let types = PhantomData;
        Self::from(Source::Session(SessionSource { session, seq, input, failure: None, types }))
    }

    /// A call that has these items and this result, without a worker. It is for tests of code that calls workers, as
    /// [`Call::ready`](crate::Call::ready) is. An error comes behind the items.
    ///
    /// The items may come from any iterator, also an endless one: it is asked for an item when the reader is.
    ///
    /// ```
    /// use taskfork::{BoxError, Emitter, Error, StreamCall};
    ///
    /// #[taskfork::interface]
    /// trait Reports {
    ///     fn render(&mut self, title: &str, out: &mut Emitter<String>) -> Result<u32, BoxError>;
    /// }
    ///
    /// /// The code under test.
    /// async fn print(reports: &impl ReportsCalls) -> Result<u32, Error> {
    ///     let mut pages = reports.render("Budget");
    ///     while let Some(page) = pages.next().await? {
    ///         println!("{page}");
    ///     }
    ///     pages.finish().await
    /// }
    ///
    /// struct Mock;
    ///
    /// impl ReportsCalls for Mock {
    ///     fn render(&self, title: &str) -> StreamCall<String, u32> {
    ///         StreamCall::ready([format!("{title}, page 1"), "the end".to_owned()], Ok(2))
    ///     }
    /// }
    ///
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// assert_eq!(print(&Mock).await.unwrap(), 2);
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[track_caller]
    pub fn ready<Items>(items: Items, result: Result<T, E>) -> Self
    where
        Items: IntoIterator<Item = I>,
        Items::IntoIter: Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let result: Result<Stored<T>, Stored<E>> = match result {
            Ok(value) => Ok(Box::new(|| value)),
            Err(error) => Err(Box::new(|| error)),
        };
        let ready = Ready { items: Box::new(items.into_iter()), result: Some(result) };
        Self::from(Source::Ready(Mutex::new(ready)))
    }

    #[track_caller]
    fn from(source: Source<I, T, E>) -> Self {
        Self { source, made_at: Location::caller(), state: State::Running }
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
        let Source::Session(source) = &self.source else { return ProgressUpdates::none() };
        let cell = source.session.progress_cell(source.seq);
        cell.map_or_else(ProgressUpdates::none, |cell| {
            ProgressUpdates::new(source.session.clone(), cell)
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
        let state = std::mem::replace(&mut self.state, State::Over);
        match (&mut self.source, state) {
            (Source::Session(source), State::Finished(method, outcome)) => {
                source.result(self.made_at, method, outcome)
            }
            (Source::Ready(ready), _) => match of_ready(ready).result.take() {
                Some(Ok(value)) => Ok(value()),
                Some(Err(error)) => Err(ready_error(error(), self.made_at)),
                None => panic!("{FINISHED_TWICE}"),
            },
            (Source::Session(_), State::Running | State::Over) => panic!("{FINISHED_TWICE}"),
        }
    }

    fn poll_item(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<I, Error<E>>>> {
        let item = match ready!(self.poll_raw(context)) {
            Some(Ok(RawItem::Encoded(item))) => item,
            Some(Ok(RawItem::Ready(item))) => return Poll::Ready(Some(Ok(item))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        let Source::Session(source) = &self.source else { return Poll::Ready(None) };
        let (session, seq) = (&source.session, source.seq);
        let Item { value, attachments, .. } = item;
        let decoded =
            decode_value(&value, ValueFormat::MessagePack, attachments, session.max_frame());
        Poll::Ready(Some(decoded.map_err(|reason| {
            self.state = State::Over;
            session.abandon(seq);
            let message = format!("an item of the stream: {reason}");
            let site = CallSite::new(session.client_name(), None, self.made_at);
            Error::Call { error: CallError::Decode { message }, site }
        })))
    }

    /// Polls the next item without decoding it.
    fn poll_raw(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<RawItem<I>, Error<E>>>> {
        if !matches!(self.state, State::Running) {
            return Poll::Ready(None);
        }
        let source = match &mut self.source {
            Source::Session(source) => source,
            Source::Ready(ready) => {
                let ready = of_ready(ready);
                if let Some(item) = ready.items.next() {
                    return Poll::Ready(Some(Ok(RawItem::Ready(item))));
                }
                self.state = State::Over;
                let error = ready.result.take_if(|result| result.is_err());
                let error = error.and_then(Result::err);
                return Poll::Ready(error.map(|error| Err(ready_error(error(), self.made_at))));
            }
        };
        match ready!(source.poll(context)) {
            Polled::Item(item) => Poll::Ready(Some(Ok(RawItem::Encoded(item)))),
            Polled::Outcome(method, outcome) => {
                if let Some(input) = source.input.take() {
                    source.failure = input.into_failure();
                }
                if let (Outcome::Result { .. }, None) = (&outcome, &source.failure) {
                    self.state = State::Finished(method, outcome);
                    return Poll::Ready(None);
                }
                self.state = State::Over;
                let result = source.result(self.made_at, method, outcome);
                Poll::Ready(result.err().map(Err))
            }
        }
    }
}

const FINISHED_TWICE: &str = "a stream was finished after its error was taken";

fn of_ready<I, T, E>(ready: &mut Mutex<Ready<I, T, E>>) -> &mut Ready<I, T, E> {
    ready.get_mut().unwrap_or_else(PoisonError::into_inner)
}

/// The error of a call without a worker.
fn ready_error<E>(error: E, made_at: &'static Location<'static>) -> Error<E> {
    let site = CallSite::new("ready", None, made_at);
    Error::Call { error: CallError::Interface(error), site }
}

impl<I, T, E> SessionSource<I, T, E> {
    /// Polls the next item or the outcome, and sends the input.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Polled> {
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
}

impl<I, T: DeserializeOwned, E: InterfaceError> SessionSource<I, T, E> {
    fn result(
        &mut self,
        made_at: &'static Location<'static>,
        method: MethodName,
        outcome: Outcome,
    ) -> Result<T, Error<E>> {
        let (session, failure) = (&self.session, self.failure.take());
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
        if let (Source::Session(source), State::Running) = (&self.source, &self.state) {
            source.session.abandon(source.seq);
        }
    }
}

impl<I, T, E> fmt::Debug for StreamCall<I, T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = out.debug_struct("StreamCall");
        if let Source::Session(source) = &self.source {
            fields
                .field("client", &source.session.client_name())
                .field("number", &source.seq)
                .field("state", &source.session.call_state(source.seq));
        }
        fields.field("made_at", &format_args!("{}", self.made_at)).finish()
    }
}
