//! Bytes ⇄ messages. Nothing here does I/O or reads a clock, so that property tests, recorded sessions and fuzz
//! targets can drive all of it. `docs/PROTOCOL.md` is the specification.
//!
//! - Streams: `frame` (where a message begins and ends), `first_message` (which protocol a client speaks).
//! - Messages of the native protocol: `native`, and the larger ones in files of their own: `hello`, `error_body`,
//!   `peer` (whose connection a gateway relays), `death_notice`, `shm`, `trace`. What a client requires of its server:
//!   `interface_description`, and `compatibility`, which compares it with what is served.
//! - A gateway's part in a stream: `relay`. The message to a client that gets no worker: `refusal`.
//! - Messages of the other protocol: `perl`, which translates to and from native ones.
//! - What the items of a stream cost: `credit`.
//! - Values of users: `arguments`, `values`, `call_error`, `log`; their limits: `bounds`, `depth`; texts of errors about
//!   their types: `mismatch`.
//! - Bytes that are not copied into a message: `gather_frame` (sending), `attachments` (receiving), `reference` (what
//!   represents them in the message).
//! - MessagePack itself: `msgpack` (single values), `fields` (maps and lists).

pub(crate) mod arguments;
pub(crate) mod attachments;
pub mod bench;
pub(crate) mod bounds;
pub(crate) mod byte_slice;
pub(crate) mod call_error;
pub(crate) mod compatibility;
pub(crate) mod credit;
pub(crate) mod death_notice;
mod depth;
pub(crate) mod error_body;
mod fields;
pub(crate) mod first_message;
pub(crate) mod frame;
pub(crate) mod gather_frame;
pub(crate) mod hello;
pub(crate) mod interface_description;
pub(crate) mod json_bytes;
pub(crate) mod log;
mod mismatch;
mod msgpack;
pub(crate) mod native;
pub(crate) mod nested_option;
mod peer;
pub(crate) mod perl;
mod protocol;
mod reference;
pub(crate) mod refusal;
pub mod relay;
mod scoped_local;
pub(crate) mod shm;
#[cfg(feature = "spans")]
pub(crate) mod trace;
pub(crate) mod values;
mod wire_error;

pub use protocol::Protocol;
pub(crate) use wire_error::WireError;
