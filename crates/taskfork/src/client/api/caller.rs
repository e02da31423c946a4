//! Who makes typed calls.

use std::borrow::Cow;

use super::call::Call;
use super::checkout::Checkout;
use super::handle::Client;
use super::input::Input;
use super::single_call::{call_once, stream_once};
use super::stream::StreamCall;
use super::typed_method::TypedMethod;
use crate::wire::arguments::IntoArguments;

/// Makes typed calls: implemented by [`Checkout`], and by [`Client`](crate::Client), which makes a
/// checkout for each call.
///
/// ```
/// #[taskfork::interface]
/// trait Adder {
///     fn add(&mut self, a: i64, b: i64) -> i64;
/// }
///
/// // The interface adds its methods to whatever makes calls.
/// async fn sum<C: taskfork::client::Caller>(caller: &C) -> Result<i64, taskfork::Error> {
///     caller.add(2, 3).await
/// }
/// # let _ = sum::<taskfork::Client>;
/// ```
pub trait Caller {
    /// Calls a method of a typed interface.
    #[doc(hidden)]
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Call<T, E>;

    /// Calls a method of a typed interface that streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E>;

    /// Calls a method of a typed interface that takes an input.
    #[doc(hidden)]
    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T, E>;

    /// Calls a method of a typed interface that takes an input and streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E>;
}

impl Caller for Checkout {
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Call<T, E> {
        self.make(Some(Cow::Borrowed(method.name)), Some(method.interface), args)
    }

    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        self.make_stream(Some(Cow::Borrowed(method.name)), Some(method.interface), args)
    }

    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T, E> {
        let name = Some(Cow::Borrowed(method.name));
        self.make_with_input(name, Some(method.interface), args, input)
    }

    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let name = Some(Cow::Borrowed(method.name));
        self.make_stream_with_input(name, Some(method.interface), args, input)
    }
}

impl Client {
    /// How often a call of this method is made again.
    fn retries_of(&self, method: &TypedMethod) -> u32 {
        if method.is_idempotent { self.retries() } else { 0 }
    }
}

impl Caller for Client {
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Call<T, E> {
        let retries = self.retries_of(&method);
        let name = Some(Cow::Borrowed(method.name));
        call_once(self.core(), self.options(), name, Some(method.interface), args, retries)
    }

    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        let name = Some(Cow::Borrowed(method.name));
        stream_once(self.core(), self.options(), name, Some(method.interface), args)
    }

    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Call<T, E> {
        let retries = self.retries_of(&method);
        let name = Some(Cow::Borrowed(method.name));
        self.call_once_with_input(name, Some(method.interface), args, retries, input)
    }

    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let name = Some(Cow::Borrowed(method.name));
        self.stream_once_with_input(name, Some(method.interface), args, input)
    }
}
