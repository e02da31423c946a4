//! An untyped interface: a map from names to functions.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::interface::{Interface, Reply, Request};
use crate::error::BoxError;
use crate::wire::arguments::Arguments;

type Entry<S> = Box<dyn Fn(&mut S, Request<'_>) -> Reply>;

/// An untyped interface: functions by name, with ordinary parameters.
///
/// Parameters and results are values that serde can deserialize and serialize. Each function returns a
/// `Result` whose error is a [`BoxError`]. The caller gets its message and those of its causes as
/// [`CallError::Interface`](crate::error::CallError::Interface).
///
/// A call of an unknown method, or with arguments of other types, fails before any function runs. A panic
/// fails the call, and the worker continues. For errors that keep their type, use
/// [`interface`](macro@crate::interface).
///
/// `S` is the worker's state, which `setup` returns. It is `()` without `setup`.
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
    /// An interface without methods: every call fails.
    ///
    /// ```
    /// let interface = taskfork::Methods::<()>::new();
    /// # let _ = interface;
    /// ```
    pub fn new() -> Self {
        Self { entries: BTreeMap::new(), unnamed: None }
    }

    /// Adds a function of the worker's state and up to eight parameters. It replaces an earlier function
    /// with this name.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::new().method("append", |log: &mut Vec<String>, line: String| {
    ///     log.push(line);
    ///     Ok(log.len())
    /// });
    /// # let _ = interface;
    /// ```
    pub fn method<A: 'static>(self, name: impl Into<String>, method: impl Method<S, A>) -> Self {
        self.entry(name.into(), Box::new(move |state, request| method.run(state, request)))
    }

    /// Adds a function of up to eight parameters that does not use the worker's state. It replaces an
    /// earlier function with this name.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().function("parse", |text: String| Ok(text.parse::<f64>()?));
    /// # let _ = interface;
    /// ```
    pub fn function<A: 'static>(
        self,
        name: impl Into<String>,
        function: impl Stateless<A>,
    ) -> Self {
        self.entry(name.into(), Box::new(move |_, request| function.run(request)))
    }

    /// Adds a function that gets its arguments undecoded, of any number and types. It replaces an earlier
    /// function with this name.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().variadic("sum", |_, args| {
    ///     Ok(args.parse::<Vec<i64>>()?.into_iter().sum::<i64>())
    /// });
    /// # let _ = interface;
    /// ```
    pub fn variadic<T: Serialize>(
        self,
        name: impl Into<String>,
        function: impl Fn(&mut S, Arguments<'_>) -> Result<T, BoxError> + 'static,
    ) -> Self {
        self.entry(name.into(), variadic(function))
    }

    /// Sets the function for calls that name no method. By default such a call fails.
    ///
    /// In the JSON protocol a method's name is the first argument. With this function set, a call
    /// whose first argument is another value names no method.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().without_method(|_, args| Ok(args.len()));
    /// # let _ = interface;
    /// ```
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

#[taskfork_macros::startup_code]
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

    fn method_names(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
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

/// A function that [`Methods::method`] accepts. `A` represents its parameters.
///
/// Every `Fn(&mut S, …) -> Result<T, BoxError>` with up to eight parameters implements it.
///
/// ```
/// use taskfork::Methods;
/// use taskfork::worker::Method;
///
/// fn with_add<A: 'static>(add: impl Method<i64, A>) -> Methods<i64> {
///     Methods::new().method("add", add)
/// }
///
/// let interface = with_add(|sum: &mut i64, number: i64| {
///     *sum += number;
///     Ok(*sum)
/// });
/// # let _ = interface;
/// ```
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

/// A function that [`Methods::function`] accepts. `A` represents its parameters.
///
/// Every `Fn(…) -> Result<T, BoxError>` with up to eight parameters implements it.
///
/// ```
/// use taskfork::Methods;
/// use taskfork::worker::Stateless;
///
/// fn with_parse<A: 'static>(parse: impl Stateless<A>) -> Methods<()> {
///     Methods::new().function("parse", parse)
/// }
///
/// let interface = with_parse(|text: String| Ok(text.parse::<u16>()?));
/// # let _ = interface;
/// ```
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
