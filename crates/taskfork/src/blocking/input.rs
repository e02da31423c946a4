//! Calls with an input, for threads that may block.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::runtime::block_on;
use super::{Checkout, Client, StreamCall};
use crate::client::{Input, InputItem, Items};
use crate::error::Error;
use crate::wire::arguments::IntoArguments;

/// What the caller of a method with a parameter `&mut Receiver<T>` can pass for it: anything that can be iterated, with
/// items of the type `T`, or `Result`s with them and errors that [`BoxError`](crate::BoxError) can hold. Its iterator
/// must be `Send + 'static`.
///
/// ```no_run
/// use taskfork::{BoxError, Receiver};
///
/// #[taskfork::interface]
/// trait Orders {
///     fn import(&mut self, rows: &mut Receiver<String>) -> Result<u64, BoxError>;
/// }
///
/// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
/// let count = client.import(["one", "two"].map(String::from))?;
/// # let _ = count;
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no iterator of `{T}`",
    label = "the input of the method",
    note = "pass an iterator that is `Send` and `'static`, with items of this type or `Result`s of them"
)]
pub trait IntoInput<T> {
    /// The input. Mocks read it by [`Input::ready_items`].
    fn into_input(self) -> Input;
}

impl<I, T> IntoInput<T> for I
where
    I: IntoIterator,
    I::IntoIter: Send + 'static,
    I::Item: InputItem<T>,
    T: Serialize + 'static,
{
    fn into_input(self) -> Input {
        Input::of::<_, T>(Items::new(self))
    }
}

impl Client {
    /// Calls a method that takes an input, in a checkout of its own, and waits for its result. See
    /// [`crate::Client::call_with_input`].
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let sum: u64 = client.call_with_input("sum", (), Input::iter(1..=1000_u64))?;
    /// # let _ = sum;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call_with_input`].
    #[track_caller]
    pub fn call_with_input<T: DeserializeOwned>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error> {
        block_on(self.inner.call_with_input(method, args, input))
    }

    /// Calls a method that takes an input and streams items of the type `I`, in a checkout of its own. See
    /// [`crate::Client::stream_with_input`].
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let input = Input::iter(1..=1000_u64);
    /// for square in client.stream_with_input::<u64, ()>("squares", (), input) {
    ///     println!("{}", square?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream_with_input<I, T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T> {
        StreamCall::new(self.inner.stream_with_input(method, args, input), self.thread.clone())
    }
}

impl Checkout {
    /// Calls a method that takes an input, and waits for its result. See [`crate::Checkout::call_with_input`].
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let sum: u64 = checkout.call_with_input("sum", (), Input::iter(1..=1000_u64))?;
    /// # let _ = sum;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`crate::Checkout::call_with_input`].
    #[track_caller]
    pub fn call_with_input<T: DeserializeOwned>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error> {
        block_on(self.inner.call_with_input(method, args, input))
    }

    /// Calls a method that takes an input and streams items of the type `I`. See
    /// [`crate::Checkout::stream_with_input`].
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # fn example(client: taskfork::blocking::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let input = Input::iter(1..=1000_u64);
    /// for square in checkout.stream_with_input::<u64, ()>("squares", (), input) {
    ///     println!("{}", square?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[track_caller]
    pub fn stream_with_input<I, T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T> {
        StreamCall::new(self.inner.stream_with_input(method, args, input), self.thread.clone())
    }
}
