//! The sandbox of workers: what their code may do, enforced by the kernel.
//!
//! Code that reads hostile input, such as pictures, documents and archives, can be taken over by that
//! input. A sandbox takes away what such code does not need: files, the network, other programs and
//! other processes. [`ServerBuilder::sandbox`](crate::ServerBuilder::sandbox) sets it.
//!
//! ```
//! use taskfork::sandbox::Sandbox;
//! use taskfork::{BoxError, Methods, Server};
//!
//! let server = Server::builder()
//!     .user("www-data")
//!     .sandbox(Sandbox::compute().read("/usr/share/fonts"))
//!     .setup(|| Ok::<_, BoxError>(()))
//!     .interface(Methods::new().function("width", |text: String| Ok(text.len())));
//! # let _ = server;
//! ```
//!
//! # What a worker still has
//!
//! **A forked worker is a copy of its server, and can read what the server had in its memory when it
//! forked.** Load no keys, passwords or other users' data into such a server.
//! [`Server::spawn`](crate::Server::spawn) starts a server in a fresh process, which has nothing of the
//! program's memory. [`Secret`] is memory that forked processes do not get.
//!
//! What is open when the sandbox applies stays open: standard output, the files that `preload` and
//! `setup` have opened, and the connection to the client. A worker can use all of its memory and its
//! share of the processor, within its [limits](crate::ServerBuilder::limit).
//!
//! What a worker sends back is hostile. A client checks every message and uses bounded memory for it;
//! the size of a result is bounded by the client's own
//! [`max_frame`](crate::client::ClientBuilder::max_frame) and
//! [`max_blob`](crate::client::ClientBuilder::max_blob). A worker itself checks
//! [`max_result`](Sandbox::max_result), which holds for code that is broken, but not for code that is
//! taken over. A client should also set
//! [`copy_shared_memory`](crate::client::ClientBuilder::copy_shared_memory).
//!
//! A sandbox does not protect from faults of the kernel, nor from side channels such as caches and
//! timing. A virtual machine does more.

#[doc(inline)]
pub use taskfork_sandbox::{
    Feature, KernelSupport, Level, PrepareError, Sandbox, Secret, UnknownLevel,
};
