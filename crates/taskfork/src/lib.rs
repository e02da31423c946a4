//! Runs blocking, crashing, leaking or thread-unsafe code in forked worker processes.
//!
//! C libraries, database drivers, image and PDF code and password hashing can block a thread, crash
//! a process, leak memory or hang. With taskfork, such code runs in a worker process, and an async
//! program calls it as if it were local. Results, errors, panics and crashes arrive where the call is
//! awaited.
//!
//! ```sh
//! cargo add taskfork
//! cargo add tokio --features full
//! ```
//!
//! ```no_run
//! use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};
//!
//! fn adder(server: ServerBuilder) -> Result<(), ServerError> {
//!     server.interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b))).run()
//! }
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     taskfork::init(&[("adder", adder)]);
//!     tokio::runtime::Runtime::new()?.block_on(async {
//!         let server = Server::spawn("adder")?;
//!         let client = Client::builder().address(server.address()).build()?;
//!         let sum: i64 = client.call("add", (2, 3)).await?;
//!         println!("2 + 3 = {sum}");
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # Model
//!
//! ```text
//!  client's program                       server process            worker processes
//!  ┌───────────────────────────┐          ┌───────────┐   fork     ┌──────────────────┐
//!  │ Client: pool ─ Checkout ──┼── unix ──┤ Server    ├───────────►│ setup, state     │
//!  │                 └─ Call   │  or tcp  │ (1 thread)│            │ one call at once │
//!  └───────────────────────────┘          └───────────┘            └──────────────────┘
//! ```
//!
//! - A [`Server`] has one thread. It forks a worker process for each connection that it accepts, and
//!   watches the workers. [`Server::spawn`] starts one from any program that calls [`init`];
//!   [`Server::run`] serves in the current process.
//! - A worker runs `setup` once, keeps the state that it returns, and answers calls one at a time. A
//!   trait with the attribute [`macro@interface`] defines typed calls; [`Methods`] and
//!   [`worker::Function`] define untyped ones.
//! - A [`Client`] keeps a pool of connections, each to one worker. A [`Checkout`] holds one worker
//!   exclusively, so that a transaction and any other state lasts for the whole checkout. Dropping the
//!   checkout returns the worker.
//! - A [`Call`] is a future of one result. Each call has a deadline of 30 seconds unless
//!   [`timeout`](client::ClientBuilder::timeout) sets another; the server kills a worker that misses it.
//! - An [`Error`] says whether the checkout is still usable, whether the call may have run, and, if the
//!   worker died, how.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`client`] | the client's options, addresses, statistics, arguments of calls |
//! | [`blocking`] | the client for programs without async |
//! | [`server`] | the server's options, handles, status and log |
//! | [`worker`] | interfaces, and what code in a worker can ask: context, logger, peer |
//! | [`error`] | all errors of calls |
//! | [`sandbox`] | what the code of workers may do: levels, and what each of them forbids |
//! | [`blob`] | long byte strings that are not copied, and open files |
//! | [`trace_context`] | W3C Trace Context of calls |
//!
//! The [guide](https://github.com/taskfork/taskfork/tree/main/docs/guide) explains each subject at length;
//! the [design notes](https://github.com/taskfork/taskfork/tree/main/docs/design) explain how it works.
//!
//! # Crate features
//!
//! All features but `server` are off by default. None of them changes what the rest of the crate does.
//!
//! | feature | effect |
//! |---|---|
//! | `server` (on by default) | Servers and workers. A program that only calls servers builds faster without it: `cargo add taskfork --no-default-features` |
//! | `macros` (part of `server`) | The attribute [`macro@interface`]. A program that only makes typed calls needs it without `server`: `cargo add taskfork --no-default-features --features macros` |
//! | `tls` | Clients connect to gateways by TLS: addresses `tls:HOST:PORT` |
//! | `nats` | Clients get workers of the nodes of a service at NATS: addresses `nats://HOST:PORT/SERVICE` |
//! | `spans` | Spans and events that workers record with `tracing` reach the caller's subscriber, and error reports list the spans around a call. Adds [`worker::tracing_layer`] |
//! | `metrics` | Clients and servers publish their statistics through the recorder of the crate `metrics` |
//! | `opentelemetry` | A call carries the trace of the caller's OpenTelemetry span. Adds conversions of [`trace_context::TraceContext`] |
//!
//! # Platforms
//!
//! Linux only, on any architecture with 64-bit atomics: the crate needs `epoll`, sealed `memfd`s, process groups
//! and parent-death signals. Where a kernel lacks a newer system call, the crate uses an older one. Clients
//! in other languages and on other systems can connect to a server through TCP.

#![cfg_attr(docsrs, feature(doc_cfg))]
// Both sides share modules. What only a server uses of them is compiled without the feature too.
#![cfg_attr(not(feature = "server"), allow(dead_code, unreachable_pub, unused_imports))]

#[cfg(not(target_os = "linux"))]
compile_error!("taskfork needs Linux: it uses epoll, memfd and parent-death signals");

#[cfg(all(test, feature = "server"))]
extern crate self as taskfork;

mod address;
pub mod blob;
pub mod blocking;
mod busy_poll;
pub mod client;
mod clock;
mod connection_error;
#[cfg(feature = "server")]
mod context;
mod death;
#[cfg(feature = "server")]
#[cfg(test)]
mod debug_tests;
mod display;
mod emitter;
pub mod error;
#[cfg(all(fuzzing, feature = "server"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "server")]
mod histogram;
#[cfg(feature = "server")]
mod in_process;
#[cfg(feature = "server")]
mod log_output;
mod peer;
mod progress;
mod receiver;
mod report;
mod ring;
#[cfg(feature = "server")]
pub mod sandbox;
#[cfg(feature = "server")]
pub mod server;
mod shm_pool;
#[cfg(feature = "server")]
#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;
mod sync;
mod sys;
#[cfg(feature = "server")]
mod test_support;
mod time_limit;
pub mod trace_context;
mod wire;
#[cfg(feature = "server")]
pub mod worker;

#[doc(inline)]
pub use blob::Blob;
#[doc(inline)]
pub use client::{Call, Checkout, Client, StreamCall};
#[doc(inline)]
pub use emitter::Emitter;
#[doc(inline)]
pub use error::{BoxError, Error};
pub use log_defer;
pub use progress::Progress;
#[doc(inline)]
pub use receiver::Receiver;
#[cfg(feature = "server")]
#[doc(inline)]
pub use server::{Server, ServerBuilder, ServerError, init};
#[cfg(feature = "server")]
#[doc(inline)]
pub use worker::Methods;

/// Defines a typed interface for the methods of a trait.
///
/// Each method takes `&mut self`, the state that a worker keeps between calls, and at most twelve
/// parameters of types that serde can serialize and deserialize, or references to them. It returns a value, or a
/// `Result`. An error type that serde can serialize reaches the caller unchanged. [`BoxError`], `String`,
/// [`std::io::Error`], `anyhow::Error`, and the error of an alias such as `std::io::Result<T>` arrive as a
/// [`Failure`](crate::error::Failure) with text and causes.
///
/// For a trait `Passwords`, the attribute defines these items with the trait's visibility:
///
/// * `PasswordsInterface`: the interface, for [`ServerBuilder::interface`]. Its workers' state may be any type
///   that implements the trait.
/// * `PasswordsClient`: a client with these methods and no others, for [`build_as`](client::ClientBuilder::build_as).
///   `PasswordsCheckout` is what its `checkout` returns. Each method returns a [`Call`]. A `String` parameter accepts
///   any text, and a reference is passed as one: nothing is cloned. Documentation of the trait's methods is copied. The
///   server compares the client's methods with its own; see [`TypedClient`](client::TypedClient).
///   What else they can do is in [`TypedHandle`](client::TypedHandle) and [`TypedCheckout`](client::TypedCheckout).
/// * `PasswordsBlockingClient` and `PasswordsBlockingCheckout`: the same for [`blocking`].
/// * `PasswordsCalls`: a trait with these methods for typed and untyped clients and checkouts. Types of tests can
///   implement it with [`Call::ready`].
/// * `PasswordsBlockingCalls`: the same for [`blocking`].
///
/// A method with a parameter `&mut Emitter<T>` sends items while it runs, and its caller gets a [`StreamCall`] instead
/// of a [`Call`]. See [`Emitter`]. A method with a parameter `&mut Receiver<T>` takes items while it runs, and its caller
/// passes a stream of them, or an iterator. See [`Receiver`].
///
/// A method that does not return a `Result` returns no error of its own. Its call can still fail, for
/// example by a panic. [`Error`] describes all errors of a call, and [`Call`] what cancellation does.
///
/// The attribute takes no arguments. `#[taskfork(name = "…")]` on a method sets the name that calls use, of 1 to 200
/// bytes; it defaults to the method's own. `#[taskfork(idempotent)]` allows [`Client::retry`] to run it twice. It is
/// an error on a method with an emitter, and one with a receiver runs again only if it had got no item.
/// `#[cfg(…)]` on a method holds for everything that is made of it.
///
/// A trait that cannot be an interface is a compile error, which says what to write instead: a generic or
/// unsafe trait, a generic method, a parameter that is `&mut` and neither an emitter nor a receiver of items, another `self`
/// than `&mut self`, and a method with the name of a method of [`Checkout`] or [`Client`].
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use taskfork::{BoxError, Error, Server};
///
/// #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
/// #[error("{0} is not a number")]
/// struct NotANumber(String);
///
/// #[taskfork::interface]
/// trait Adder {
///     /// Adds a number given as text.
///     fn add(&mut self, number: String) -> Result<i64, NotANumber>;
///     fn reset(&mut self);
/// }
///
/// struct Sum(i64);
///
/// impl Adder for Sum {
///     fn add(&mut self, number: String) -> Result<i64, NotANumber> {
///         self.0 += number.parse::<i64>().map_err(|_| NotANumber(number))?;
///         Ok(self.0)
///     }
///
///     fn reset(&mut self) {
///         self.0 = 0;
///     }
/// }
///
/// fn describe() -> Server {
///     Server::builder().setup(|| Ok::<_, BoxError>(Sum(0))).interface(AdderInterface)
/// }
///
/// async fn use_it(adder: AdderClient) -> Result<(), Error<NotANumber>> {
///     let checkout = adder.checkout();
///     let (one, two) = (checkout.add("1"), checkout.add("2"));
///     assert_eq!((one.await?, two.await?), (1, 3));
///     Ok(())
/// }
/// # let _ = (describe, use_it);
/// ```
#[cfg(feature = "macros")]
pub use taskfork_macros::interface;

/// For the code that [`macro@interface`] generates, for the command, for the gateway, for the package for Python and for
/// benchmarks.
#[doc(hidden)]
pub mod __private {
    pub use crate::blob::{
        Keywords, Pickled, Received, Shared, borrowed, first_bytes, received, sealed_memory,
    };
    pub use crate::client::binding;
    pub use crate::client::typed_method::TypedMethod;
    #[cfg(feature = "server")]
    pub use crate::server::private::*;
    pub use crate::wire::byte_slice::ByteSlice;
    pub use crate::wire::interface_description::{
        Described, InterfaceDescription, MethodDescription, UNTYPED_ERROR,
    };
    pub use crate::wire::{bench, relay};
    #[cfg(feature = "server")]
    pub use crate::worker::binding::{InputItems, ResultMemory, Taken};
    #[cfg(feature = "server")]
    pub use crate::worker::error_reply::Raised;
    #[cfg(feature = "server")]
    pub use crate::worker::interface::{Reply, Request};
    #[cfg(feature = "server")]
    pub use crate::worker::takeover::{Inherited, offer};

    /// A value as MessagePack, within the depth of values of calls.
    ///
    /// # Errors
    /// A text, if the value cannot be encoded or nests too deeply.
    pub fn encoded(value: &impl serde::Serialize) -> Result<Vec<u8>, String> {
        crate::wire::values::encode_to_vec(value).map_err(|error| error.to_string())
    }

    /// Whether the other end of a unix socket has ended, or is shut down, and has left bytes unread.
    pub fn has_unread(socket: &impl std::os::fd::AsFd) -> bool {
        crate::sys::has_unread(socket)
    }
}

/// Code that needs the feature `server`.
#[cfg(feature = "server")]
#[doc(hidden)]
#[macro_export]
macro_rules! __with_server {
    ($($code:tt)*) => { $($code)* };
}

/// Code that needs the feature `server`.
#[cfg(not(feature = "server"))]
#[doc(hidden)]
#[macro_export]
macro_rules! __with_server {
    ($($code:tt)*) => {};
}
