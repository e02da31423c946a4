//! Remote clients for servers of [taskfork](https://docs.rs/taskfork).
//!
//! A server listens at a unix socket. A [`Gateway`] accepts clients by TLS and relays their
//! connections to that socket. It runs beside the server, in a process of its own or in a task of
//! a program. A client connects with the address `tls:HOST:PORT`. With the feature `nats`, a gateway can
//! be a node of a service at NATS, beside TLS or instead of it. Then a client connects with the address
//! `nats://HOST:PORT/SERVICE`, and gets a worker of any node that has room.
//!
//! With the feature `dashboard`, it can serve a page, health checks and metrics about its server:
//! `GatewayBuilder::dashboard`.
//!
//! - The gateway tells the server who each client is: the names of its certificate and its address.
//! - It passes on all that the worker and the server send, also the notice of a worker's death. If a
//!   worker ends without one, the gateway says whether the worker has read all that the client has
//!   sent. So a client learns whether its call may have run, as it does at a unix socket.
//! - When a client's connection ends, the gateway closes the one to the server at once, and the
//!   server kills the worker if it runs a call.
//! - If the gateway ends, its clients' calls fail, and their workers end. Nobody else is concerned.
//!
//! Open files and shared memory do not pass. The gateway relays the native protocol only.
//!
//! ```no_run
//! use taskfork_gateway::Gateway;
//!
//! # async fn serve() -> Result<(), taskfork_gateway::GatewayError> {
//! let gateway = Gateway::builder()
//!     .server("unix:/run/adder.sock")
//!     .tls("0.0.0.0:7000", "/etc/adder/cert.pem", "/etc/adder/key.pem")
//!     .client_ca("/etc/adder/clients.pem")
//!     .bind()
//!     .await?;
//! gateway.run(std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

mod builder;
mod clients;
mod connection;
mod error;
mod gateway;
mod handshake;
mod log;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "dashboard")]
mod page;
mod pipe;
mod relay;
mod server;
mod slots;

pub use builder::GatewayBuilder;
pub use error::GatewayError;
pub use gateway::{Gateway, Reloader};
#[cfg(feature = "nats")]
pub use nats::NatsOptions;
pub use taskfork_certificates::FileError;
/// The page, for its options.
#[cfg(feature = "dashboard")]
pub use taskfork_dashboard;
/// Sessions over NATS, for labels and the options of connections.
#[cfg(feature = "nats")]
pub use taskfork_nats;
