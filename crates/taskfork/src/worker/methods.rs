//! An interface that is a map from names to functions.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::interface::{BoxError, Interface, Reply, Request};
use crate::wire::arguments::Arguments;

type Entry<S> = Box<dyn Fn(&mut S, Request<'_>) -> Reply>;

/// An untyped interface: named functions with ordinary parameters.
///
/// ```
/// use taskfork::Methods;
///
/// struct Counter(i64);
///
/// let interface = Methods::new()
///     .function("add", |a: i64, b: i64| Ok(a + b))
///     .method("next", |counter: &mut Counter| {
///         counter.0 += 1;
///         Ok(counter.0)
///     })
///     .method("skip", |counter: &mut Counter, count: u8| {
///         counter.0 += i64::from(count);
///         if counter.0 > 100 { Err("too far".into()) } else { Ok(()) }
///     });
/// # let _ = interface;
/// ```
#[must_use = "methods are served when they are passed to `ServerBuilder::interface`"]
pub struct Methods<S> {
    entries: BTreeMap<String, Entry<S>>,
    unnamed: Option<Entry<S>>,
}

impl<S: 'static> Methods<S> {
    /// An interface without any method.
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), unnamed: None }
    }

    /// Adds a function of the worker's state and up to eight deserializable parameters, which
    /// returns a serializable value or any error. A name given twice means the later function.
    pub fn method<A: 'static>(self, name: impl Into<String>, method: impl Method<S, A>) -> Self {
        self.entry(name.into(), Box::new(move |state, request| method.run(state, request)))
    }

    /// Adds a function of up to eight deserializable parameters that needs no state.
    pub fn function<A: 'static>(
        self,
        name: impl Into<String>,
        function: impl Stateless<A>,
    ) -> Self {
        self.entry(name.into(), Box::new(move |_, request| function.run(request)))
    }

    /// Adds a function that takes its arguments as they came, whatever their number and types.
    pub fn variadic<T: Serialize>(
        self,
        name: impl Into<String>,
        function: impl Fn(&mut S, Arguments<'_>) -> Result<T, BoxError> + 'static,
    ) -> Self {
        self.entry(name.into(), variadic(function))
    }

    /// Sets what runs for a call that names no method; without it such a call is an error.
    pub fn without_method<T: Serialize>(
        mut self,
        function: impl Fn(&mut S, Arguments<'_>) -> Result<T, BoxError> + 'static,
    ) -> Self {
        self.unnamed = Some(variadic(function));
        self
    }

    fn entry(mut self, name: String, entry: Entry<S>) -> Self {
        self.entries.insert(name, entry);
        self
    }
}

fn variadic<S, T: Serialize>(
    function: impl Fn(&mut S, Arguments<'_>) -> Result<T, BoxError> + 'static,
) -> Entry<S> {
    Box::new(move |state, request| {
        let result = function(state, request.args());
        request.untyped(result)
    })
}

impl<S: 'static> Interface<S> for Methods<S> {
    fn call(&self, state: &mut S, request: Request<'_>) -> Reply {
        let entry = match request.method() {
            Some(name) => self.entries.get(name),
            None => self.unnamed.as_ref(),
        };
        match entry {
            Some(entry) => entry(state, request),
            None => request.unknown_method(self.entries.keys().map(String::as_str)),
        }
    }

    fn is_method_name(&self, first: &str) -> bool {
        self.unnamed.is_none() || self.entries.contains_key(first)
    }
}

impl<S: 'static> Default for Methods<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> fmt::Debug for Methods<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.entries.keys()).finish()
    }
}

/// A function of a worker's state that [`Methods::method`] takes. `A` stands for its parameters.
#[diagnostic::on_unimplemented(
    message = "this is no function of a worker's state",
    note = "write `|state: &mut State, a: i64, b: String| Ok(…)`: the state first, then up to \
            eight deserializable parameters, the result a `Result` of a serializable value and \
            `taskfork::BoxError`"
)]
pub trait Method<S, A>: 'static {
    /// Runs one request.
    #[doc(hidden)]
    fn run(&self, state: &mut S, request: Request<'_>) -> Reply;
}

/// A function without state that [`Methods::function`] takes. `A` stands for its parameters.
#[diagnostic::on_unimplemented(
    message = "this is no function that a worker can run",
    note = "write `|a: i64, b: String| Ok(…)`: up to eight deserializable parameters, the result a \
            `Result` of a serializable value and `taskfork::BoxError`"
)]
pub trait Stateless<A>: 'static {
    /// Runs one request.
    #[doc(hidden)]
    fn run(&self, request: Request<'_>) -> Reply;
}

macro_rules! functions {
    ($($($name:ident)*;)+) => {$(
        impl<S, T, F, $($name),*> Method<S, fn($($name),*) -> T> for F
        where
            F: Fn(&mut S, $($name),*) -> Result<T, BoxError> + 'static,
            T: Serialize,
            $($name: DeserializeOwned,)*
        {
            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, state: &mut S, request: Request<'_>) -> Reply {
                match request.parse::<($($name,)*)>() {
                    Ok(($($name,)*)) => request.untyped(self(state, $($name),*)),
                    Err(reply) => reply,
                }
            }
        }

        impl<T, F, $($name),*> Stateless<fn($($name),*) -> T> for F
        where
            F: Fn($($name),*) -> Result<T, BoxError> + 'static,
            T: Serialize,
            $($name: DeserializeOwned,)*
        {
            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, request: Request<'_>) -> Reply {
                match request.parse::<($($name,)*)>() {
                    Ok(($($name,)*)) => request.untyped(self($($name),*)),
                    Err(reply) => reply,
                }
            }
        }
    )+};
}

functions! {
    ; A; A B; A B C; A B C D; A B C D E; A B C D E G; A B C D E G H; A B C D E G H I;
}
