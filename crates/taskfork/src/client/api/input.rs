//! What a call streams to its method, and how it is sent while the call is polled.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::items::Items;
use crate::client::io::session_input::PutInput;
use crate::client::io::shared_session::SharedSession;
use crate::client::session::calls::Seq;
use crate::error::{BoxError, Failure};
use crate::wire::frame::HEADER_LEN;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, FromClient};
use crate::wire::values::{self, EncodeError, ValueFormat, encode};

/// So many items are sent before other tasks run.
const ITEMS_OF_A_POLL: usize = 512;

/// What a call by its name streams to its method. See [`Checkout::call_with_input`](crate::Checkout::call_with_input).
///
/// Its items are taken and sent while the call is polled, as fast as the worker takes them. A stream must be `Send`,
/// as the future of a call is.
///
/// ```no_run
/// use taskfork::client::Input;
///
/// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
/// let checkout = client.checkout();
/// let lines = ["one", "two"].map(String::from);
/// let count: u64 = checkout.call_with_input("import", ("words",), Input::iter(lines)).await?;
/// # let _ = count;
/// # Ok(())
/// # }
/// ```
// A lock that is never taken: so a call can be shared between threads whatever its stream is.
pub struct Input(Mutex<Sending>);

struct Sending {
    /// `None` once it has ended, or has failed.
    source: Option<Box<dyn Source>>,
    /// What was taken from the source when the worker did not want it any more.
    waiting: Option<Taken>,
    /// The end has been sent.
    is_over: bool,
    /// The number of items that were taken.
    count: u64,
    failure: Option<Failure>,
}

/// What was taken from a source.
enum Taken {
    Item(GatherFrame),
    End,
}

/// A stream of items of any type.
trait Source: Send {
    /// Polls the next item and encodes it.
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        max_frame: usize,
    ) -> Poll<Option<Result<GatherFrame, SourceError>>>;
}

/// Why an item cannot be sent.
enum SourceError {
    /// The stream itself has failed.
    Own(Failure),
    Encode(EncodeError),
}

impl SourceError {
    fn into_failure(self) -> Failure {
        match self {
            Self::Own(failure) => failure,
            Self::Encode(EncodeError(reason)) => Failure::new(reason),
        }
    }
}

/// Decodes the item in a message for a worker.
fn decode<T: DeserializeOwned>(mut message: GatherFrame) -> Result<T, Failure> {
    let everything = ReceiverLimits { max_frame: usize::MAX, max_blob: 0, max_files: 0 };
    message.fit(everything).map_err(Failure::new)?;
    let message = message.copy_from(0);
    match FromClient::decode(&message[HEADER_LEN..]) {
        Ok(FromClient::Item(item)) => {
            values::decode(item.value, ValueFormat::MessagePack).map_err(Failure::new)
        }
        other => Err(Failure::new(format!("it is no item: {other:?}"))),
    }
}

/// A stream whose method wants items of the type `T`.
struct Typed<S, T>(Pin<Box<S>>, PhantomData<fn() -> T>);

impl<S, T> Source for Typed<S, T>
where
    S: Stream + Send,
    S::Item: InputItem<T>,
    T: Serialize,
{
    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        max_frame: usize,
    ) -> Poll<Option<Result<GatherFrame, SourceError>>> {
        self.0.as_mut().poll_next(context).map(|item| {
            Some(item?.into_item().map_err(SourceError::Own).and_then(|item| {
                let mut frame = GatherFrame::default();
                let written = frame.write(max_frame, |out| {
                    native::put_item(out);
                    encode(&item, out)
                });
                written.map(|()| frame).map_err(SourceError::Encode)
            }))
        })
    }
}

impl Input {
    /// The items of a stream.
    ///
    /// ```
    /// use futures_core::Stream;
    /// use taskfork::client::Input;
    ///
    /// fn input(rows: impl Stream<Item = String> + Send + 'static) -> Input {
    ///     Input::new(rows)
    /// }
    /// ```
    pub fn new<S>(items: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: Serialize + 'static,
    {
        Self::of::<S, S::Item>(items)
    }

    /// The items of a stream that can fail. The call fails then, with
    /// [`CallError::Input`](crate::error::CallError::Input).
    ///
    /// ```
    /// use futures_core::Stream;
    /// use taskfork::client::Input;
    ///
    /// fn input(lines: impl Stream<Item = std::io::Result<String>> + Send + 'static) -> Input {
    ///     Input::fallible(lines)
    /// }
    /// ```
    pub fn fallible<S, T, E>(items: S) -> Self
    where
        S: Stream<Item = Result<T, E>> + Send + 'static,
        T: Serialize + 'static,
        E: Into<BoxError>,
    {
        Self::of::<S, T>(items)
    }

    /// The items of an iterator. It is asked for them on the task that polls the call, so it must not block.
    ///
    /// ```
    /// let input = taskfork::client::Input::iter(1..=1000_u64);
    /// # let _ = input;
    /// ```
    pub fn iter<I>(items: I) -> Self
    where
        I: IntoIterator,
        I::IntoIter: Send + 'static,
        I::Item: Serialize + 'static,
    {
        Self::new(Items::new(items))
    }

    /// The items that the stream has without waiting, for mocks of methods that take an input. It ends with the stream, where
    /// that would have to wait, and behind an error. So a stream that is pending looks like its end: pass streams whose items
    /// are all there, such as those of [`iter`](Self::iter).
    ///
    /// ```
    /// use taskfork::blocking::IntoInput;
    /// use taskfork::{BoxError, Error, Receiver};
    ///
    /// #[taskfork::interface]
    /// trait Orders {
    ///     fn import(&mut self, rows: &mut Receiver<String>) -> Result<u64, BoxError>;
    /// }
    ///
    /// struct Mock;
    ///
    /// impl OrdersBlockingCalls for Mock {
    ///     fn import(&self, rows: impl IntoInput<String>) -> Result<u64, Error> {
    ///         let rows: Result<Vec<String>, _> = rows.into_input().ready_items().collect();
    ///         Ok(rows.unwrap().len() as u64)
    ///     }
    /// }
    ///
    /// assert_eq!(Mock.import(["one", "two"].map(String::from)).unwrap(), 2);
    /// ```
    ///
    /// # Errors
    /// An item is the error of the stream, or says that it is of another type, or that it is an open file, which only a
    /// worker gets.
    pub fn ready_items<T: DeserializeOwned>(mut self) -> impl Iterator<Item = Result<T, Failure>> {
        let mut source = self.sending().source.take();
        std::iter::from_fn(move || {
            let mut context = Context::from_waker(Waker::noop());
            let Poll::Ready(Some(item)) = source.as_mut()?.poll_next(&mut context, usize::MAX)
            else {
                source = None;
                return None;
            };
            let item = item.map_err(SourceError::into_failure).and_then(decode);
            if item.is_err() {
                source = None;
            }
            Some(item)
        })
    }

    pub(crate) fn of<S, T>(items: S) -> Self
    where
        S: Stream + Send + 'static,
        S::Item: InputItem<T>,
        T: Serialize + 'static,
    {
        Self(Mutex::new(Sending {
            source: Some(Box::new(Typed::<S, T>(Box::pin(items), PhantomData))),
            waiting: None,
            is_over: false,
            count: 0,
            failure: None,
        }))
    }

    fn sending(&mut self) -> &mut Sending {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its end has been sent.
    pub(super) fn is_over(&mut self) -> bool {
        self.sending().is_over
    }

    /// Why it has failed.
    pub(super) fn into_failure(self) -> Option<Failure> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).failure
    }

    /// Sends what the worker wants and the source has. Returns false if that is no more before the task is woken.
    pub(super) fn send(
        &mut self,
        session: &Arc<SharedSession>,
        seq: Seq,
        context: &mut Context<'_>,
    ) -> bool {
        let sending = self.sending();
        let mut has_put = false;
        let mut goes_on = true;
        let mut left = ITEMS_OF_A_POLL;
        while !sending.is_over && session.wants_input(seq) {
            if left == 0 {
                context.waker().wake_by_ref();
                goes_on = false;
                break;
            }
            left -= 1;
            let Poll::Ready(taken) = sending.take(context, session.max_frame()) else {
                goes_on = false;
                break;
            };
            match taken {
                Taken::End => sending.end(session, seq),
                Taken::Item(item) => match session.put_input(seq, item) {
                    PutInput::Continue => has_put = true,
                    PutInput::Enough => {
                        session.send_input();
                        has_put = false;
                    }
                    PutInput::Wait(item) => sending.waiting = Some(Taken::Item(item)),
                    PutInput::Unsendable(reason) => {
                        sending.fail(SourceError::Encode(EncodeError(reason)));
                        sending.end(session, seq);
                    }
                },
            }
        }
        if has_put {
            session.send_input();
        }
        goes_on
    }
}

impl Sending {
    fn take(&mut self, context: &mut Context<'_>, max_frame: usize) -> Poll<Taken> {
        if let Some(taken) = self.waiting.take() {
            return Poll::Ready(taken);
        }
        let Some(source) = &mut self.source else { return Poll::Ready(Taken::End) };
        source.poll_next(context, max_frame).map(|item| {
            self.count += 1;
            match item {
                Some(Ok(item)) => return Taken::Item(item),
                Some(Err(error)) => self.fail(error),
                None => self.source = None,
            }
            Taken::End
        })
    }

    fn fail(&mut self, error: SourceError) {
        self.source = None;
        self.failure = Some(match error {
            SourceError::Own(failure) => failure,
            SourceError::Encode(EncodeError(reason)) => {
                Failure::new(format!("item {} cannot be sent: {reason}", self.count))
            }
        });
    }

    fn end(&mut self, session: &Arc<SharedSession>, seq: Seq) {
        let error = self.failure.as_ref().map(Failure::message);
        match session.end_input(seq, error) {
            true => self.is_over = true,
            false => self.waiting = Some(Taken::End),
        }
    }
}

impl fmt::Debug for Input {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Input")
    }
}

/// What a stream yields as an item of the type `T`: the item, or a `Result` with it.
#[doc(hidden)]
pub trait InputItem<T> {
    fn into_item(self) -> Result<T, Failure>;
}

impl<T> InputItem<T> for T {
    fn into_item(self) -> Result<T, Failure> {
        Ok(self)
    }
}

impl<T, E: Into<BoxError>> InputItem<T> for Result<T, E> {
    fn into_item(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(&*error.into()))
    }
}

/// What the caller of a method with a parameter `&mut Receiver<T>` can pass for it: a stream of the items, or of `Result`s
/// with them and errors that [`BoxError`] can hold. It must be `Send + 'static`, as the future of the call is.
///
/// ```no_run
/// use taskfork::{BoxError, Receiver};
///
/// #[taskfork::interface]
/// trait Orders {
///     fn import(&mut self, rows: &mut Receiver<String>) -> Result<u64, BoxError>;
/// }
///
/// async fn import(
///     client: &taskfork::Client,
///     rows: impl taskfork::client::IntoInput<String>,
/// ) -> Result<u64, taskfork::Error> {
///     client.import(rows).await
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no stream of `{T}`",
    label = "the input of the method",
    note = "pass a `Stream` that is `Send` and `'static`, with items of this type or `Result`s of them; \
            `futures::stream::iter` makes one of an iterator"
)]
pub trait IntoInput<T> {
    /// The input. Mocks read it by [`Input::ready_items`].
    fn into_input(self) -> Input;
}

impl<S, T> IntoInput<T> for S
where
    S: Stream + Send + 'static,
    S::Item: InputItem<T>,
    T: Serialize + 'static,
{
    fn into_input(self) -> Input {
        Input::of::<S, T>(self)
    }
}
