//! What a method uses to stream items to its caller.

use std::fmt;
use std::rc::Rc;

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
/// let (sender, squares) = std::sync::mpsc::channel();
/// let mut out = Emitter::new(move |square: &u64| sender.send(*square).unwrap());
/// assert_eq!(State.squares(3, &mut out).unwrap(), 3);
/// assert_eq!(squares.try_iter().collect::<Vec<_>>(), [1, 4, 9]);
/// ```
pub struct Emitter<T> {
    sink: Sink<T>,
}

enum Sink<T> {
    Caller(Rc<dyn Port>),
    Function(Box<dyn FnMut(&T)>),
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

/// How a worker sends items. After the call nothing is sent, whoever has kept the emitter.
pub(crate) trait Port: fmt::Debug {
    /// Sends the item that `encode` appends.
    fn send(
        &self,
        encode: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), EncodeError>,
    ) -> Result<(), EmitError>;
}

impl<T> Emitter<T> {
    /// An emitter that passes each item to a function. It is for tests of methods.
    ///
    /// ```
    /// use taskfork::Emitter;
    ///
    /// let (sender, items) = std::sync::mpsc::channel();
    /// Emitter::new(move |item: &i32| sender.send(*item).unwrap()).send(&7)?;
    /// assert_eq!(items.recv(), Ok(7));
    /// # Ok::<(), taskfork::worker::EmitError>(())
    /// ```
    pub fn new(function: impl FnMut(&T) + 'static) -> Self {
        Self { sink: Sink::Function(Box::new(function)) }
    }

    /// An emitter of a call whose caller reads the items.
    pub(crate) fn to_caller(port: Rc<dyn Port>) -> Self {
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

impl<T> fmt::Debug for Emitter<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Emitter")
    }
}
