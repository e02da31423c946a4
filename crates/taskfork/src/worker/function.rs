//! An untyped interface: one function.

use std::fmt;

use serde::Serialize;

use super::interface::{Interface, Reply, Request};
use crate::error::BoxError;
use crate::wire::arguments::Arguments;

/// An untyped interface: one function for all calls. It gets the worker's state, the method's name if
/// the call has one, and the arguments.
///
/// An error reaches the caller as from [`Methods`](crate::Methods). A panic fails the call, and the
/// worker continues.
///
/// ```
/// use taskfork::worker::{Arguments, Function};
///
/// let echo = Function::new(|_: &mut (), _method: Option<&str>, args: Arguments<'_>| {
///     Ok(args.parse::<Vec<taskfork::client::Value>>()?)
/// });
/// # let _ = echo;
/// ```
///
/// In the JSON protocol a method's name is the first argument. So calls of such clients have no method
/// here, and the name is among the arguments.
pub struct Function<F> {
    function: F,
}

impl<F> Function<F> {
    /// An interface that runs `function` for every call.
    ///
    /// ```
    /// use taskfork::worker::{Arguments, Function};
    ///
    /// let dispatch = |count: &mut u64, method: Option<&str>, args: Arguments<'_>| match method {
    ///     Some("count") => {
    ///         *count += args.parse::<(u64,)>()?.0;
    ///         Ok(*count)
    ///     }
    ///     other => Err(format!("there is no method {other:?}").into()),
    /// };
    /// let interface = Function::new(dispatch);
    /// # let _ = interface;
    /// ```
    pub fn new<S, T>(function: F) -> Self
    where
        F: Fn(&mut S, Option<&str>, Arguments<'_>) -> Result<T, BoxError> + 'static,
        T: Serialize,
    {
        Self { function }
    }
}

impl<F, S, T> Interface<S> for Function<F>
where
    F: Fn(&mut S, Option<&str>, Arguments<'_>) -> Result<T, BoxError> + 'static,
    T: Serialize,
{
    fn call(&self, state: &mut S, request: Request<'_>) -> Reply {
        let result = (self.function)(state, request.method(), request.args());
        request.untyped(result)
    }

    fn is_method_name(&self, _first: &str) -> bool {
        false
    }
}

impl<F> fmt::Debug for Function<F> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Function")
    }
}
