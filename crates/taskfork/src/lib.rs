//! Exclusive checkouts of **forked worker processes** for async programs.
//!
//! Some code blocks, crashes, leaks, hangs or is not thread-safe: C libraries, database drivers,
//! image and PDF code, password hashing. A [`Server`] forks a worker process for each connection
//! and runs such code there; a [`Client`] keeps a pool of connections and hands out [`Checkout`]s.
//! Results, errors, panics and deaths arrive where the call is awaited, as if it had been local.
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
//! Where to look: [`macro@interface`] for typed interfaces, [`Methods`] and [`Function`] for untyped
//! ones, [`Server::spawn`] and [`Server::fork`] for a server of one's own program, [`Error`] for
//! what can go wrong, [`blocking`] for programs without async.

#[cfg(not(target_os = "linux"))]
compile_error!("taskfork forks, watches and ends processes by means that only Linux has");

mod address;
pub mod blob;
pub mod blocking;
mod busy_poll;
pub mod client;
mod context;
mod death;
#[cfg(test)]
mod debug_tests;
mod display;
pub mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzz;
mod log_output;
mod report;
mod ring;
pub mod server;
mod shm_pool;
mod sync;
mod sys;
mod time_limit;
pub mod trace_context;
mod wire;
pub mod worker;

#[doc(inline)]
pub use blob::Blob;
#[doc(inline)]
pub use client::{Call, Checkout, Client};
#[doc(inline)]
pub use error::Error;
pub use log_defer;
#[doc(inline)]
pub use server::{Server, ServerBuilder, ServerError, init};
#[doc(inline)]
pub use worker::{BoxError, Methods};

/// Makes a typed interface of a trait.
///
/// The trait's methods take `&mut self`, the state that each worker keeps between calls, and any
/// number up to twelve of parameters that serde can carry; they return a value, or a `Result` whose
/// error type arrives at the caller as that type.
///
/// For a trait `Passwords` the attribute makes, with the trait's visibility:
///
/// * `PasswordsInterface`, which is given to [`ServerBuilder::interface`] and serves whatever state
///   implements the trait;
/// * `PasswordsCalls`, which gives [`Checkout`] and [`Client`] the trait's methods, each returning
///   a [`Call`]; a `String` parameter takes any text;
/// * `PasswordsBlockingCalls`, the same for [`blocking`].
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use taskfork::{BoxError, Client, Error, Server};
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
/// async fn use_it(client: Client) -> Result<(), Error<NotANumber>> {
///     let checkout = client.checkout();
///     let (one, two) = (checkout.add("1"), checkout.add("2"));
///     assert_eq!((one.await?, two.await?), (1, 3));
///     Ok(())
/// }
/// # let _ = (describe, use_it);
/// ```
pub use taskfork_macros::interface;

/// What the code made by [`macro@interface`] needs.
#[doc(hidden)]
pub mod __private {
    pub use crate::wire::bench;
    pub use crate::worker::interface::{Reply, Request};

    pub use crate::server::{Hangup, ServiceManager};

    /// What SIGHUP means to this process. A server with `restart_on_hangup` set to `restart` takes it so.
    pub fn meaning_of_hangup(restart: Option<bool>) -> Hangup {
        crate::server::meaning_of_hangup(restart)
    }

    /// The service manager that has started this process, which is no server itself.
    pub fn service_manager() -> ServiceManager {
        crate::server::service_manager()
    }

    /// Has a server that `command` starts keep signals until it handles them.
    pub fn block_signals_until_served(
        command: &mut std::process::Command,
    ) -> &mut std::process::Command {
        crate::server::block_signals_until_served(command)
    }

    /// The file from which this program is started again, for the command.
    pub fn program_file() -> &'static std::path::Path {
        crate::server::program_file::path()
    }
}

/// The programs in README.md, compiled as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
pub struct ReadmeDoctests;

/// The programs in docs/COMING_FROM_PERL.md, likewise.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/COMING_FROM_PERL.md")]
pub struct ComingFromPerlDoctests;
