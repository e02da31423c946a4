//! An interface that is one function.

use std::fmt;

use serde::Serialize;

use super::interface::{BoxError, Interface, Reply, Request};
use crate::wire::arguments::Arguments;

/// An untyped interface: one function that is given the worker's state, the method's name, if the
/// call has one, and the arguments.
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
/// Clients that are Perl programs do not tell a method's name from a first argument: from them, all is
/// arguments.
pub struct Function<F> {
    function: F,
}

impl<F> Function<F> {
    /// An interface that runs `function` for every call.
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
