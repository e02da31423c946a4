//! The messages of the native protocol, version 1. Each is an array of its kind, a map of metadata, and what the
//! kind adds. Unknown keys of the map are ignored.

mod client;
pub(in crate::wire) mod kind;
#[cfg(test)]
mod later_versions;
mod stream;
mod transport;
mod worker;

pub(crate) use client::{
    CallMeta, CallMode, DEFAULT_GRACE, FromClient, NO_LIMIT, call_mode, cancelled_call,
    put_argument_count, put_call, put_cancel, put_done, put_queue_length, set_call_mode,
    set_timeout,
};
pub(crate) use stream::{InputEnd, Item, put_credit, put_item, set_item_call, set_item_cost};
pub(in crate::wire) use transport::put_files;
pub(crate) use transport::{is_transport_message, put_rings};
#[cfg(feature = "spans")]
pub(crate) use worker::put_trace_header;
pub(crate) use worker::{
    FromWorker, StreamEnd, Telemetry, is_of_begun_call, put_error, put_log, put_ok, put_progress,
    put_queued, put_set_up, put_skipped, skipped_call,
};
pub(in crate::wire) use worker::{put_end, put_log_with};

pub(crate) use super::hello::VERSIONS;
