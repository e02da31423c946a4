//! An untyped interface: a map from names to functions.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::functions::{Method, Stateless, StreamMethod, StreamStateless, Streams};
use super::interface::{Interface, Reply, Request};
use crate::error::BoxError;
use crate::wire::arguments::Arguments;

/// Runs one request.
type Run<S> = Box<dyn Fn(&mut S, Request<'_>) -> Reply>;

struct Entry<S> {
    run: Run<S>,
    /// What its callers must stream or read.
    streams: Streams,
}

impl<S> Entry<S> {
    fn new(run: impl Fn(&mut S, Request<'_>) -> Reply + 'static) -> Self {
        Self::streaming(Streams::default(), run)
    }

    fn streaming(streams: Streams, run: impl Fn(&mut S, Request<'_>) -> Reply + 'static) -> Self {
        Self { run: Box::new(run), streams }
    }
}

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
        self.entry(name.into(), Entry::new(move |state, request| method.run(state, request)))
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
        self.entry(name.into(), Entry::new(move |_, request| function.run(request)))
    }

    /// Adds a function of the worker's state that streams. It replaces an earlier function with this name.
    ///
    /// Its last parameter says what it streams:
    ///
    /// - an [`Emitter`](crate::Emitter), by which it sends items while it runs. Callers use
    ///   [`Checkout::stream`](crate::Checkout::stream).
    /// - a [`Receiver`](crate::Receiver), by which it takes the items that its caller streams to it. Callers use
    ///   [`Checkout::call_with_input`](crate::Checkout::call_with_input).
    /// - a receiver and then an emitter. Callers use
    ///   [`Checkout::stream_with_input`](crate::Checkout::stream_with_input).
    ///
    /// ```
    /// use taskfork::{Emitter, Methods, Receiver};
    ///
    /// let interface = Methods::new().stream_method("lines", |lines: &mut Vec<String>, out: &mut Emitter<String>| {
    ///     for line in lines.iter() {
    ///         out.send(line)?;
    ///     }
    ///     Ok(lines.len())
    /// });
    /// let interface = interface.stream_method("add", |lines: &mut Vec<String>, input: &mut Receiver<String>| {
    ///     while let Some(line) = input.next()? {
    ///         lines.push(line);
    ///     }
    ///     Ok(lines.len())
    /// });
    /// # let _ = interface;
    /// ```
    pub fn stream_method<A: 'static, M: StreamMethod<S, A>>(
        self,
        name: impl Into<String>,
        method: M,
    ) -> Self {
        let run = move |state: &mut S, request: Request<'_>| method.run(state, request);
        self.entry(name.into(), Entry::streaming(M::STREAMS, run))
    }

    /// Adds a function that streams and does not use the worker's state. See [`stream_method`](Self::stream_method).
    ///
    /// ```
    /// use taskfork::{Emitter, Methods};
    ///
    /// let squares = |up_to: u64, out: &mut Emitter<u64>| {
    ///     for number in 1..=up_to {
    ///         out.send(&(number * number))?;
    ///     }
    ///     Ok(up_to)
    /// };
    /// # tokio::runtime::Runtime::new()?.block_on(async {
    /// let make = move || (Methods::new().stream_function("squares", squares), ());
    /// let client = taskfork::Client::in_process(make)?;
    /// let mut items = client.stream::<u64, u64>("squares", (3,));
    /// assert_eq!((items.next().await?, items.next().await?), (Some(1), Some(4)));
    /// assert_eq!(items.finish().await?, 3);
    /// # Ok::<(), taskfork::BoxError>(())
    /// # })?;
    /// # Ok::<(), taskfork::BoxError>(())
    /// ```
    pub fn stream_function<A: 'static, F: StreamStateless<A>>(
        self,
        name: impl Into<String>,
        function: F,
    ) -> Self {
        let run = move |_: &mut S, request: Request<'_>| function.run(request);
        self.entry(name.into(), Entry::streaming(F::STREAMS, run))
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

    fn streams_of(&self, method: Option<&str>) -> Streams {
        let entry = method.and_then(|name| self.entries.get(name));
        entry.map(|entry| entry.streams).unwrap_or_default()
    }

    fn entry(mut self, name: String, entry: Entry<S>) -> Self {
        self.entries.insert(name, entry);
        self
    }
}

fn variadic<S, T: Serialize>(
    function: impl Fn(&mut S, Arguments<'_>) -> Result<T, BoxError> + 'static,
) -> Entry<S> {
    Entry::new(move |state, request| {
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
            Some(entry) => (entry.run)(state, request),
            None => request.unknown_method(self.entries.keys().map(String::as_str)),
        }
    }

    fn streams(&self, method: Option<&str>, _interface: Option<&str>) -> bool {
        self.streams_of(method).items
    }

    fn takes_input(&self, method: Option<&str>, _interface: Option<&str>) -> bool {
        self.streams_of(method).input
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
