//! Who makes typed calls.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::runtime::{RuntimeThread, block_on};
use super::{Checkout, Client, StreamCall};
use crate::client::typed_method::TypedMethod;
use crate::client::{Caller as AsyncCaller, Input};
use crate::error::Error;
use crate::wire::arguments::IntoArguments;
use crate::wire::call_error::InterfaceError;

/// Makes typed calls: implemented by [`Checkout`] and [`Client`].
///
/// ```
/// #[taskfork::interface]
/// trait Adder {
///     fn add(&mut self, a: i64, b: i64) -> i64;
/// }
///
/// // The interface adds its methods to whatever makes calls.
/// fn sum<C: taskfork::blocking::Caller>(caller: &C) -> Result<i64, taskfork::Error> {
///     caller.add(2, 3)
/// }
/// # let _ = sum::<taskfork::blocking::Client>;
/// ```
pub trait Caller {
    #[doc(hidden)]
    type Async: AsyncCaller;

    /// What makes the calls, and the thread that it needs.
    #[doc(hidden)]
    fn parts(&self) -> (&Self::Async, &Arc<RuntimeThread>);

    /// Calls a method of a typed interface and waits for its result.
    #[doc(hidden)]
    #[track_caller]
    fn typed<T, E>(&self, method: TypedMethod, args: impl IntoArguments) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.parts().0.typed(method, args))
    }

    /// Calls a method of a typed interface that streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
    ) -> StreamCall<I, T, E> {
        let (caller, thread) = self.parts();
        StreamCall::new(caller.streamed(method, args), thread.clone())
    }

    /// Calls a method of a typed interface that takes an input, and waits for its result.
    #[doc(hidden)]
    #[track_caller]
    fn typed_with_input<T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> Result<T, Error<E>>
    where
        T: DeserializeOwned,
        E: InterfaceError,
    {
        block_on(self.parts().0.typed_with_input(method, args, input))
    }

    /// Calls a method of a typed interface that takes an input and streams.
    #[doc(hidden)]
    #[track_caller]
    fn streamed_with_input<I, T, E>(
        &self,
        method: TypedMethod,
        args: impl IntoArguments,
        input: Input,
    ) -> StreamCall<I, T, E> {
        let (caller, thread) = self.parts();
        StreamCall::new(caller.streamed_with_input(method, args, input), thread.clone())
    }
}

impl Caller for Checkout {
    type Async = crate::Checkout;

    fn parts(&self) -> (&Self::Async, &Arc<RuntimeThread>) {
        (&self.inner, &self.thread)
    }
}

impl Caller for Client {
    type Async = crate::Client;

    fn parts(&self) -> (&Self::Async, &Arc<RuntimeThread>) {
        (&self.inner, &self.thread)
    }
}
