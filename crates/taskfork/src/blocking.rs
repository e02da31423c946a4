//! The same pool for programs without async.
//!
//! A [`Client`] has a thread of its own that connects workers and enforces time limits. The calling
//! thread itself sends a call and receives its answer. Start servers with
//! [`Server::fork`](crate::Server::fork) before the first client is built, or with
//! [`Server::spawn`](crate::Server::spawn) at any time.
//!
//! ```no_run
//! use taskfork::blocking::Client;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().address("unix:/run/adder.sock").build_blocking()?;
//! let sum: i64 = client.call("add", (2, 3))?;
//!
//! let checkout = client.checkout();
//! let first = checkout.queue::<i64>("add", (1, 1));
//! let second = checkout.queue::<i64>("add", (2, 2));
//! assert_eq!((first.wait()?, second.wait()?), (2, 4));
//! # Ok(())
//! # }
//! ```

mod call;
mod caller;
mod checkout;
mod client;
mod handle_options;
mod input;
mod map;
#[cfg(feature = "nats")]
mod placement;
mod resize;
mod runtime;
mod stream;
mod typed;

pub use self::call::Call;
pub use self::caller::Caller;
pub use self::checkout::Checkout;
pub use self::client::{BuildError, Client};
pub use self::input::IntoInput;
pub use self::map::MapCalls;
pub use self::stream::StreamCall;
pub use self::typed::{TypedCheckout, TypedClient, TypedHandle};
