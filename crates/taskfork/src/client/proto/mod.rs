//! The protocol on one connection, as a state machine: [`Connection`].
//!
//! It does no I/O, reads no clock, takes no lock and knows no runtime. So a test can give it any bytes at any time.
//! `io` carries out what it asks for. Memory that is shared with the worker is its own business: it makes and maps that
//! itself, and goes on without if the system refuses.
//!
//! A connection has four kinds of methods:
//!
//! | kind | methods |
//! |---|---|
//! | what has happened | `handle_input`, `handle_no_input`, `handle_end`, `handle_input_stopped`, `handle_sent`, `handle_blocked`, `handle_write_error`, `handle_timeout` |
//! | what to do | `poll_transmit`, `need`, `poll_timeout` |
//! | what the peer did | `poll_event` |
//! | what this side wants | `put_call`, `put_item`, `put_input_end`, `put_done`, `put_queue_length`, `cancel_call`, `abort_handshake` |
//!
//! After any of the others, call them in this order:
//!
//! 1. `poll_transmit` until it returns `None`. Write what it returns, and report the result with `handle_sent`,
//!    `handle_blocked` or `handle_write_error`.
//! 2. `poll_event` until it returns `None`.
//! 3. What `need` says: read into `buffer` and report the result. While it says [`Need::Input`], wait for bytes, or
//!    until the time of `poll_timeout`. Then call `handle_input` or `handle_timeout`.
//!
//! [`Connection`]: connection::Connection
//! [`Need::Input`]: io_types::Need::Input

mod attachments;
mod call_numbers;
pub(crate) mod connection;
pub(crate) mod disconnect;
pub(crate) mod handshake;
mod in_setup;
mod input;
mod input_items;
pub(crate) mod io_types;
mod optimistic;
mod outbox;
mod outgoing;
mod perl;
mod read_budget;
pub(crate) mod ring;
mod ring_offer;
mod setup;
mod unsent_item;

use crate::wire::attachments::Attachments;

/// What accompanied an answer.
pub(crate) type AnswerAttachments = Option<Box<Attachments>>;
