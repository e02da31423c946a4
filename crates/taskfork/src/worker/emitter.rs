//! What a method uses to stream items to its caller.

use std::fmt;

use serde::Serialize;

use crate::display::debug_as_text;
use crate::wire::values::{EncodeError, encode};

/// Sends items of the type `T` to the caller while a call runs.
///
/// A method of a typed interface streams if it has a parameter `&mut Emitter<T>`. Its caller gets a
/// [`StreamCall`](crate::StreamCall), whose items are what the method has sent, and whose result is what the method returns.
///
/// ```
/// use taskfork::{BoxError, Emitter};
///
/// #[taskfork::interface]
/// trait Numbers {
///     fn squares(&mut self, up_to: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError>;
/// }
///
/// struct State;
///
/// impl Numbers for State {
///     fn squares(&mut self, up_to: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError> {
///         for number in 1..=up_to {
///             out.send(&(number * number))?;
///         }
///         Ok(up_to)
///     }
/// }
///
/// // A test of the method needs no worker.
/// let mut squares = Vec::new();
/// let count = State.squares(3, &mut Emitter::new(|square: &u64| squares.push(*square))).unwrap();
/// assert_eq!((squares, count), (vec![1, 4, 9], 3));
/// ```
pub struct Emitter<'a, T> {
    sink: Sink<'a, T>,
}

enum Sink<'a, T> {
    Caller(&'a dyn Port),
    Function(Box<dyn FnMut(&T) + 'a>),
}

/// Why an item was not sent.
///
/// ```
/// fn reason(error: taskfork::worker::EmitError) -> String {
///     match error {
///         taskfork::worker::EmitError::Closed => "nobody reads on".to_owned(),
///         error => error.to_string(),
///     }
/// }
/// # let _ = reason;
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The caller has dropped the stream or is gone. Nothing that the call does from here on reaches anybody.
    #[error("the caller no longer reads the stream")]
    Closed,
    /// The item cannot be sent, because it cannot be encoded or is too long. Others can follow.
    #[error("an item of the stream cannot be sent: {0}")]
    Item(String),
}

debug_as_text!(EmitError);

/// How a worker sends items.
pub(crate) trait Port: fmt::Debug {
    /// Sends the item that `encode` appends.
    fn send(
        &self,
        encode: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(), EmitError>;
}

impl<'a, T> Emitter<'a, T> {
    /// An emitter that passes each item to a function. It is for tests of methods.
    ///
    /// ```
    /// use taskfork::Emitter;
    ///
    /// let mut items = Vec::new();
    /// Emitter::new(|item: &i32| items.push(*item)).send(&7)?;
    /// assert_eq!(items, [7]);
    /// # Ok::<(), taskfork::worker::EmitError>(())
    /// ```
    pub fn new(function: impl FnMut(&T) + 'a) -> Self {
        Self { sink: Sink::Function(Box::new(function)) }
    }

    pub(super) fn to_caller(port: &'a dyn Port) -> Self {
        Self { sink: Sink::Caller(port) }
    }

    /// Sends an item. Waits while the caller is more than 256 KiB behind. The time limit of the call goes on
    /// meanwhile, and so does the server's `hung_worker_timeout`.
    ///
    /// # Errors
    /// [`EmitError::Closed`] if nobody reads the items any more: return then. The worker may notice that some items late.
    /// [`EmitError::Item`] if this item cannot be sent.
    ///
    /// ```
    /// use taskfork::{BoxError, Emitter};
    ///
    /// fn lines(text: &str, out: &mut Emitter<String>) -> Result<(), BoxError> {
    ///     for line in text.lines() {
    ///         out.send(&line.to_owned())?;
    ///     }
    ///     Ok(())
    /// }
    /// # let _ = lines;
    /// ```
    pub fn send(&mut self, item: &T) -> Result<(), EmitError>
    where
        T: Serialize,
    {
        match &mut self.sink {
            Sink::Caller(port) => port.send(&mut |out| encode(item, out)),
            Sink::Function(function) => {
                function(item);
                Ok(())
            }
        }
    }
}

impl<T> fmt::Debug for Emitter<'_, T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Emitter")
    }
}
