//! Sessions over NATS: byte streams between clients and the nodes of a service.
//!
//! A [`Node`] offers what listens on a unix socket, such as a server of taskfork, as a service of
//! [NATS](https://nats.io). A client of the [`Fleet`] asks for a [`Session`], and a node with room
//! gives it one. The session is a stream like a TCP connection: with flow control, so that NATS never
//! drops a message for a slow reader, and heartbeats, so that a lost node is noticed.
//!
//! ```no_run
//! use taskfork_nats::{Fleet, FleetOptions, Node};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::UnixStream;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // On each machine with a server.
//! let node = Node::builder("resize", "node-1", |_| UnixStream::connect("/run/resize.sock"))
//!     .start("nats://nats.example:4222")
//!     .await?;
//!
//! // Anywhere else.
//! let fleet = Fleet::connect("nats://nats.example:4222", "resize", FleetOptions::new()).await?;
//! let mut session = fleet.acquire(&[], None).await?;
//! session.write_all(b"ping").await?;
//! # Ok(())
//! # }
//! ```
//!
//! Nodes are micro services of NATS: `nats micro info resize` shows them. Other programs can
//! call them by `nats req resize.call.METHOD '[1, 2]'` if [`NodeBuilder::calls`] has a handler.

mod connect;
mod direct;
mod error;
mod fleet;
#[cfg(fuzzing)]
pub mod fuzz;
mod link;
mod names;
mod node;
mod session;
mod shown;
mod token;
mod wire;

/// The NATS client, for its [`ConnectOptions`](async_nats::ConnectOptions).
pub use async_nats;
pub use direct::{Admission, Direct, Token};
pub use error::{Error, SessionError};
pub use fleet::{Acquired, Fleet, FleetOptions, Grant, HeldSession, Holder, NodeInfo, NodeStatus};
pub use names::{Label, check_labels, check_service_name};
pub use node::{Accepted, CallError, Caller, Node, NodeBuilder, SessionUsage};
pub use session::{Reader, Session, Writer};
pub use shown::shown_addresses;
pub use wire::{Bounds, Recent, Route};
