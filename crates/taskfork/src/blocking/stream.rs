//! A call that streams, for threads that may block.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::runtime::{RuntimeThread, block_on};
use crate::client::{self, ProgressUpdates};
use crate::error::{Error, Failure};
use crate::wire::arguments::IntoArguments;
use crate::wire::call_error::InterfaceError;

/// A call that streams items of the type `I`, and has a result of the type `T` at its end. It is an iterator of the items.
///
/// An error is the last item. See [`crate::StreamCall`].
///
/// ```no_run
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
/// let checkout = client.checkout();
/// let mut lines = checkout.stream::<String, u64>("lines", ("words.txt",));
/// for line in &mut lines {
///     println!("{}", line?);
/// }
/// println!("{} lines", lines.finish()?);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "a call that is dropped at once is taken back"]
pub struct StreamCall<I, T, E = Failure> {
    inner: client::StreamCall<I, T, E>,
    /// Dropped behind the call, which needs it. `None` for [`ready`](Self::ready).
    _thread: Option<Arc<RuntimeThread>>,
}

impl super::Client {
    /// Calls a method that streams items of the type `I`, and returns a result of the type `T` at the end. See
    /// [`crate::Client::stream`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// for line in client.stream::<String, u64>("lines", ("words.txt",)) {
    ///     println!("{}", line?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream<I, T>(&self, method: &str, args: impl IntoArguments) -> StreamCall<I, T> {
        StreamCall::new(self.inner.stream(method, args), self.thread.clone())
    }
}

impl<I, T, E> StreamCall<I, T, E> {
    pub(super) fn new(inner: client::StreamCall<I, T, E>, thread: Arc<RuntimeThread>) -> Self {
        Self { inner, _thread: Some(thread) }
    }

    /// A call that has these items and this result, without a worker, for tests of code that calls workers. See
    /// [`crate::StreamCall::ready`].
    ///
    /// ```
    /// use taskfork::blocking::StreamCall;
    ///
    /// let mut squares: StreamCall<u64, u32> = StreamCall::ready([1, 4, 9], Ok(3));
    /// assert!(squares.by_ref().map(Result::unwrap).eq([1, 4, 9]));
    /// assert_eq!(squares.finish().unwrap(), 3);
    /// ```
    #[track_caller]
    pub fn ready<Items>(items: Items, result: Result<T, E>) -> Self
    where
        Items: IntoIterator<Item = I>,
        Items::IntoIter: Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        Self { inner: client::StreamCall::ready(items, result), _thread: None }
    }

    /// The reports of how far the call has got; [`latest`](ProgressUpdates::latest) returns the last one that has come.
    /// See [`crate::Call::progress`].
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let pages = client.stream::<String, u32>("render", (12,));
    /// let progress = pages.progress();
    /// for page in pages {
    ///     println!("{} ({:?})", page?, progress.latest());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn progress(&self) -> ProgressUpdates {
        self.inner.progress()
    }
}

impl<I, T, E> StreamCall<I, T, E>
where
    I: DeserializeOwned,
    T: DeserializeOwned,
    E: InterfaceError,
{
    /// Waits for the end of the call and returns its result. Items that have not been returned are discarded.
    ///
    /// # Errors
    /// The error of the call.
    ///
    /// # Panics
    /// If the iterator has returned the error of the call already.
    ///
    /// ```no_run
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let count = checkout.stream::<String, u64>("lines", ("words.txt",)).finish()?;
    /// # let _ = count;
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish(self) -> Result<T, Error<E>> {
        block_on(self.inner.finish())
    }
}

impl<I, T, E> Iterator for StreamCall<I, T, E>
where
    I: DeserializeOwned,
    T: DeserializeOwned,
    E: InterfaceError,
{
    type Item = Result<I, Error<E>>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.inner.next()).transpose()
    }
}
