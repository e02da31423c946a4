//! The functions that [`Methods`](crate::Methods) accepts, by the number of their parameters.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::interface::{Reply, Request};
use crate::emitter::Emitter;
use crate::error::BoxError;
use crate::receiver::Receiver;

/// A function that [`Methods::method`](crate::Methods::method) accepts. `A` represents its parameters.
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

/// A function that [`Methods::function`](crate::Methods::function) accepts. `A` represents its parameters.
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

/// A function that [`Methods::stream_method`](crate::Methods::stream_method) accepts. `A` represents its parameters.
///
/// Every `Fn(&mut S, …, &mut Emitter<I>) -> Result<T, BoxError>` with up to eight parameters between the two implements it.
/// In the place of the emitter there may be a `&mut Receiver<R>`, or a receiver and an emitter.
///
/// ```
/// use taskfork::worker::StreamMethod;
/// use taskfork::{Emitter, Methods};
///
/// fn with_list<A: 'static>(list: impl StreamMethod<Vec<u8>, A>) -> Methods<Vec<u8>> {
///     Methods::new().stream_method("list", list)
/// }
///
/// let interface = with_list(|bytes: &mut Vec<u8>, from: usize, out: &mut Emitter<u8>| {
///     bytes.iter().skip(from).try_for_each(|byte| out.send(byte))?;
///     Ok(())
/// });
/// # let _ = interface;
/// ```
#[diagnostic::on_unimplemented(
    message = "this is no function of a worker's state that streams",
    note = "write `|state: &mut State, a: i64, out: &mut Emitter<Item>| Ok(…)`: the state first, then up to \
            eight deserializable parameters, then `&mut Receiver<Item>`, `&mut Emitter<Item>`, or both in this \
            order, the result a `Result` of a serializable value and `taskfork::BoxError`"
)]
pub trait StreamMethod<S, A>: 'static {
    /// What it streams.
    #[doc(hidden)]
    const STREAMS: Streams;

    /// Runs one request.
    #[doc(hidden)]
    fn run(&self, state: &mut S, request: Request<'_>) -> Reply;
}

/// A function that [`Methods::stream_function`](crate::Methods::stream_function) accepts. `A` represents its parameters.
///
/// Every `Fn(…, &mut Emitter<I>) -> Result<T, BoxError>` with up to eight parameters before the last implements it.
/// In the place of the emitter there may be a `&mut Receiver<R>`, or a receiver and an emitter.
///
/// ```
/// use taskfork::worker::StreamStateless;
/// use taskfork::{Emitter, Methods};
///
/// fn with_count<A: 'static>(count: impl StreamStateless<A>) -> Methods<()> {
///     Methods::new().stream_function("count", count)
/// }
///
/// let interface = with_count(|up_to: u64, out: &mut Emitter<u64>| {
///     (0..up_to).try_for_each(|number| out.send(&number))?;
///     Ok(())
/// });
/// # let _ = interface;
/// ```
#[diagnostic::on_unimplemented(
    message = "this is no function that a worker can run and that streams",
    note = "write `|a: i64, out: &mut Emitter<Item>| Ok(…)`: up to eight deserializable parameters, then \
            `&mut Receiver<Item>`, `&mut Emitter<Item>`, or both in this order, the result a `Result` of a \
            serializable value and `taskfork::BoxError`"
)]
pub trait StreamStateless<A>: 'static {
    /// What it streams.
    #[doc(hidden)]
    const STREAMS: Streams;

    /// Runs one request.
    #[doc(hidden)]
    fn run(&self, request: Request<'_>) -> Reply;
}

/// What a function streams.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Streams {
    /// It sends items.
    pub(super) items: bool,
    /// It takes an input.
    pub(super) input: bool,
}

/// The arguments are decoded first, and an input begins last: the caller of a method that does not run streams nothing.
fn either(reply: Result<Reply, Reply>) -> Reply {
    reply.unwrap_or_else(|refusal| refusal)
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

        impl<S, I, T, F, $($name),*> StreamMethod<S, fn($($name,)* I) -> T> for F
        where
            F: Fn(&mut S, $($name,)* &mut Emitter<I>) -> Result<T, BoxError> + 'static,
            T: Serialize,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: true, input: false };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, state: &mut S, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut out = request.emitter()?;
                    Ok(request.untyped(self(state, $($name,)* &mut out)))
                };
                either(run())
            }
        }

        impl<S, R, T, F, $($name),*> StreamMethod<S, (Receiver<R>, fn($($name,)*) -> T)> for F
        where
            F: Fn(&mut S, $($name,)* &mut Receiver<R>) -> Result<T, BoxError> + 'static,
            T: Serialize,
            R: DeserializeOwned,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: false, input: true };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, state: &mut S, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut input = request.receiver()?;
                    Ok(request.untyped(self(state, $($name,)* &mut input)))
                };
                either(run())
            }
        }

        impl<S, R, I, T, F, $($name),*>
            StreamMethod<S, (Receiver<R>, Emitter<I>, fn($($name,)*) -> T)> for F
        where
            F: Fn(&mut S, $($name,)* &mut Receiver<R>, &mut Emitter<I>) -> Result<T, BoxError>
                + 'static,
            T: Serialize,
            R: DeserializeOwned,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: true, input: true };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, state: &mut S, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut out = request.emitter()?;
                    let mut input = request.receiver()?;
                    Ok(request.untyped(self(state, $($name,)* &mut input, &mut out)))
                };
                either(run())
            }
        }

        impl<I, T, F, $($name),*> StreamStateless<fn($($name,)* I) -> T> for F
        where
            F: Fn($($name,)* &mut Emitter<I>) -> Result<T, BoxError> + 'static,
            T: Serialize,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: true, input: false };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut out = request.emitter()?;
                    Ok(request.untyped(self($($name,)* &mut out)))
                };
                either(run())
            }
        }

        impl<R, T, F, $($name),*> StreamStateless<(Receiver<R>, fn($($name,)*) -> T)> for F
        where
            F: Fn($($name,)* &mut Receiver<R>) -> Result<T, BoxError> + 'static,
            T: Serialize,
            R: DeserializeOwned,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: false, input: true };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut input = request.receiver()?;
                    Ok(request.untyped(self($($name,)* &mut input)))
                };
                either(run())
            }
        }

        impl<R, I, T, F, $($name),*>
            StreamStateless<(Receiver<R>, Emitter<I>, fn($($name,)*) -> T)> for F
        where
            F: Fn($($name,)* &mut Receiver<R>, &mut Emitter<I>) -> Result<T, BoxError> + 'static,
            T: Serialize,
            R: DeserializeOwned,
            $($name: DeserializeOwned,)*
        {
            const STREAMS: Streams = Streams { items: true, input: true };

            #[allow(non_snake_case, reason = "each type parameter names its value as well")]
            fn run(&self, request: Request<'_>) -> Reply {
                let run = || {
                    let ($($name,)*) = request.parse::<($($name,)*)>()?;
                    let mut out = request.emitter()?;
                    let mut input = request.receiver()?;
                    Ok(request.untyped(self($($name,)* &mut input, &mut out)))
                };
                either(run())
            }
        }
    )+};
}

functions! {
    ; A; A B; A B C; A B C D; A B C D E; A B C D E G; A B C D E G H; A B C D E G H J;
}
