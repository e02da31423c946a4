//! What a method uses to take the input that its caller streams.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use serde::de::DeserializeOwned;

use crate::display::debug_as_text;
use crate::wire::values::{self, ValueFormat};

/// Takes items of the type `T` from the caller while a call runs.
///
/// A method of a typed interface takes an input if it has a parameter `&mut Receiver<T>`. Its caller passes a stream of
/// the items, or an iterator if it is a [`blocking`](crate::blocking) one: see
/// [`IntoInput`](crate::client::IntoInput). A receiver is also an iterator of `Result`s.
///
/// ```
/// use taskfork::{BoxError, Receiver};
///
/// #[taskfork::interface]
/// trait Numbers {
///     fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError>;
/// }
///
/// struct State;
///
/// impl Numbers for State {
///     fn sum(&mut self, from: u64, input: &mut Receiver<u64>) -> Result<u64, BoxError> {
///         let mut sum = from;
///         while let Some(number) = input.next()? {
///             sum += number;
///         }
///         Ok(sum)
///     }
/// }
///
/// // A test of the method needs no worker.
/// assert_eq!(State.sum(40, &mut Receiver::new([1, 1])).unwrap(), 42);
/// ```
pub struct Receiver<T> {
    source: Source<T>,
}

enum Source<T> {
    Caller(Rc<dyn InputPort>),
    Iterator(Box<dyn Iterator<Item = T>>),
    /// All items, or the error behind them, have been returned.
    Over,
}

/// Why an input gave no item.
///
/// ```
/// fn reason(error: taskfork::worker::ReceiveError) -> String {
///     match error {
///         taskfork::worker::ReceiveError::Closed => "nobody wants the result".to_owned(),
///         error => error.to_string(),
///     }
/// }
/// # let _ = reason;
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The caller has dropped the call or is gone. Nothing that the call does from here on reaches anybody.
    #[error("the caller no longer waits for the call")]
    Closed,
    /// The caller's stream has failed, with this text. There are no more items.
    #[error("the input of the call has failed: {0}")]
    Failed(String),
    /// The next item is not of the type that the method takes. Others can follow.
    #[error("an item of the input is not of the type that the method takes: {0}")]
    Item(String),
}

debug_as_text!(ReceiveError);

/// How a worker takes items. After the call nothing is taken, whoever has kept the receiver.
pub(crate) trait InputPort: fmt::Debug {
    /// Asks the caller for the first items.
    fn open(&self);

    /// Waits for the next item and passes it to `decode`. Returns false behind the last one.
    fn next(
        &self,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<bool, ReceiveError>;

    /// As [`next`](Self::next), but returns `None` once `other` can be read or the time has come. It may also wait for an
    /// item all the same, in a worker on a thread of its client's process.
    fn next_or(
        &self,
        other: Option<BorrowedFd<'_>>,
        until: Option<Instant>,
        decode: &mut dyn FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<Option<bool>, ReceiveError>;

    /// Prepares for a wait outside of this port. Returns the descriptor that can be read once the caller has sent something, and
    /// `None` if something is there already, or the worker is on a thread of its client's process.
    fn prepare_wait(&self) -> Option<BorrowedFd<'static>>;
}

impl<T> Receiver<T> {
    /// A receiver of these items. It is for tests of methods.
    ///
    /// ```
    /// let mut input = taskfork::Receiver::new(1..=2);
    /// assert_eq!((input.next()?, input.next()?, input.next()?), (Some(1), Some(2), None));
    /// # Ok::<(), taskfork::worker::ReceiveError>(())
    /// ```
    pub fn new<I>(items: I) -> Self
    where
        I: IntoIterator<Item = T>,
        I::IntoIter: 'static,
    {
        Self { source: Source::Iterator(Box::new(items.into_iter())) }
    }

    pub(crate) fn from_caller(port: Rc<dyn InputPort>) -> Self {
        port.open();
        Self { source: Source::Caller(port) }
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Waits for the next item. Returns `None` behind the last one, and after `Closed` and `Failed`.
    ///
    /// The caller is at most 256 KiB and one item ahead of it. The time limit of the call goes on meanwhile, and so does
    /// the server's `hung_worker_timeout`.
    ///
    /// # Errors
    /// [`ReceiveError::Closed`] if nobody waits for the call any more: return then. [`ReceiveError::Failed`] if the
    /// caller's stream has failed: the call then fails with that error at the caller, whatever the method returns.
    /// [`ReceiveError::Item`] if this item is of another type.
    ///
    /// ```
    /// use taskfork::{BoxError, Receiver};
    ///
    /// fn longest(lines: &mut Receiver<String>) -> Result<usize, BoxError> {
    ///     let mut longest = 0;
    ///     while let Some(line) = lines.next()? {
    ///         longest = longest.max(line.len());
    ///     }
    ///     Ok(longest)
    /// }
    /// # let _ = longest;
    /// ```
    #[expect(clippy::should_implement_trait, reason = "the iterator has the same, transposed")]
    pub fn next(&mut self) -> Result<Option<T>, ReceiveError> {
        let port = match &mut self.source {
            Source::Caller(port) => port,
            Source::Iterator(items) => return Ok(items.next()),
            Source::Over => return Ok(None),
        };
        let mut item = None;
        let taken = port.next(&mut |value| {
            item = Some(values::decode(value, ValueFormat::MessagePack)?);
            Ok(())
        });
        if !matches!(taken, Ok(true) | Err(ReceiveError::Item(_))) {
            self.source = Source::Over;
        }
        taken.map(|_| item)
    }
}

impl<T: DeserializeOwned> Iterator for Receiver<T> {
    type Item = Result<T, ReceiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        Receiver::next(self).transpose()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Receiver")
    }
}
