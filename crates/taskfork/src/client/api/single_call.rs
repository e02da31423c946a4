//! Calls that have a checkout of their own.

use std::sync::Arc;

use super::call::Call;
use super::call_options::CallOptions;
use super::stream::StreamCall;
use crate::client::config::CheckoutOptions;
use crate::client::io::core::Core;
use crate::client::io::shared_session::{CallKind, SharedSession, Streams};
use crate::client::session::calls::{MethodName, Seq};
use crate::wire::arguments::IntoArguments;

/// Makes a call in a checkout of its own. The checkout begins once the arguments are encoded.
#[track_caller]
pub(super) fn call_once<T, E>(
    core: &Arc<Core>,
    options: CheckoutOptions,
    method: MethodName,
    interface: Option<&'static str>,
    args: impl IntoArguments,
    retries: u32,
) -> Call<T, E> {
    let kind = CallKind { retries, streams: Streams::default() };
    let (session, seq) = submit_once(core, options, method, interface, args, kind);
    Call::new(session, seq)
}

/// As [`call_once`], for a call whose method streams.
#[track_caller]
pub(super) fn stream_once<I, T, E>(
    core: &Arc<Core>,
    options: CheckoutOptions,
    method: MethodName,
    interface: Option<&'static str>,
    args: impl IntoArguments,
) -> StreamCall<I, T, E> {
    let kind = CallKind { retries: 0, streams: Streams { items: true, input: false } };
    let (session, seq) = submit_once(core, options, method, interface, args, kind);
    StreamCall::new(session, seq)
}

/// Makes a call of any kind in a checkout of its own.
#[track_caller]
pub(super) fn submit_once(
    core: &Arc<Core>,
    options: CheckoutOptions,
    method: MethodName,
    interface: Option<&'static str>,
    args: impl IntoArguments,
    kind: CallKind,
) -> (Arc<SharedSession>, Seq) {
    let options_of_call = CallOptions::of(core, options);
    let has_timeout = options_of_call.has_timeout;
    let (operation, replay) =
        options_of_call.encode(method.as_deref(), interface, args, kind.streams, has_timeout);
    SharedSession::call_once(core.clone(), options, method, operation, replay, kind)
}
