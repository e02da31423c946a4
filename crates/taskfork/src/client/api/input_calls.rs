//! Calls with an input, by the name of their method.

use std::borrow::Cow;

use super::call::Call;
use super::checkout::Checkout;
use super::handle::Client;
use super::input::Input;
use super::single_call::submit_once;
use super::stream::StreamCall;
use crate::client::io::shared_session::{CallKind, Streams};
use crate::client::session::calls::MethodName;
use crate::wire::arguments::IntoArguments;

impl Checkout {
    /// Calls a method that takes an input, which is streamed to it while the call is polled. See
    /// [`Receiver`](crate::Receiver).
    ///
    /// The call takes its turn now, and takes nothing from the input before it runs. Calls that are made behind it are
    /// sent once it has ended. So await it, or drop it, before you await the next call, or await both together.
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let sum: u64 = checkout.call_with_input("sum", (), Input::iter(1..=1000_u64)).await?;
    /// # let _ = sum;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`call`](Self::call), and [`CallError::Input`](crate::error::CallError::Input) if the input fails. A method
    /// that takes no input is [`CallError::Arguments`](crate::error::CallError), and so is a server that cannot take one.
    ///
    /// # Cancellation
    /// See [`Call`]. The method learns that the caller has gone behind the items that have come.
    #[track_caller]
    pub fn call_with_input<T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T> {
        self.make_with_input(Some(Cow::Owned(method.to_owned())), None, args, input)
    }

    /// Calls a method that takes an input and streams items of the type `I`. See
    /// [`call_with_input`](Self::call_with_input) and [`stream`](Self::stream).
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let checkout = client.checkout();
    /// let input = Input::iter(1..=1000_u64);
    /// let mut squares = checkout.stream_with_input::<u64, ()>("squares", (), input);
    /// while let Some(square) = squares.next().await? {
    ///     println!("{square}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`call_with_input`](Self::call_with_input).
    ///
    /// # Cancellation
    /// See [`StreamCall`].
    #[track_caller]
    pub fn stream_with_input<I, T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T> {
        self.make_stream_with_input(Some(Cow::Owned(method.to_owned())), None, args, input)
    }
}

impl Client {
    /// Calls a method that takes an input, in a checkout of its own. See
    /// [`Checkout::call_with_input`](crate::Checkout::call_with_input).
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let sum: u64 = client.call_with_input("sum", (), Input::iter(1..=1000_u64)).await?;
    /// # let _ = sum;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Checkout::call_with_input`](crate::Checkout::call_with_input).
    ///
    /// # Cancellation
    /// As for [`call`](Self::call).
    #[track_caller]
    pub fn call_with_input<T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T> {
        self.call_once_with_input(Some(Cow::Owned(method.to_owned())), None, args, 0, input)
    }

    /// Calls a method that takes an input and streams items of the type `I`, in a checkout of its own. See
    /// [`Checkout::stream_with_input`](crate::Checkout::stream_with_input).
    ///
    /// ```no_run
    /// use taskfork::client::Input;
    ///
    /// # async fn example(client: taskfork::Client) -> Result<(), taskfork::Error> {
    /// let input = Input::iter(1..=1000_u64);
    /// let mut squares = client.stream_with_input::<u64, ()>("squares", (), input);
    /// while let Some(square) = squares.next().await? {
    ///     println!("{square}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As for [`Checkout::call_with_input`](crate::Checkout::call_with_input).
    ///
    /// # Cancellation
    /// As for [`stream`](Self::stream).
    #[track_caller]
    pub fn stream_with_input<I, T>(
        &self,
        method: &str,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T> {
        self.stream_once_with_input(Some(Cow::Owned(method.to_owned())), None, args, input)
    }

    #[track_caller]
    pub(super) fn call_once_with_input<T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        retries: u32,
        input: Input,
    ) -> Call<T, E> {
        let kind = CallKind { retries, streams: Streams { items: false, input: true } };
        let (session, seq) =
            submit_once(self.core(), self.options(), method, interface, args, kind);
        Call::with_input(session, seq, input)
    }

    #[track_caller]
    pub(super) fn stream_once_with_input<I, T, E>(
        &self,
        method: MethodName,
        interface: Option<&'static str>,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let kind = CallKind { retries: 0, streams: Streams { items: true, input: true } };
        let (session, seq) =
            submit_once(self.core(), self.options(), method, interface, args, kind);
        StreamCall::with_input(session, seq, input)
    }
}
