//! What a package for another language needs of the client, behind `taskfork::__private`: calls and streams with an error
//! type of its own, interfaces that are known by name, and polls by an event loop that must not be kept waiting.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;

pub use super::answers::{AnswerWatch, Answers, Awaited};
use super::builder::ClientBuilder;
use super::call::Call;
use super::checkout::Checkout;
use super::handle::Client;
use super::input::Input;
use super::progress::ProgressUpdates;
use super::single_call::{call_once, stream_once, submit_once};
use super::stream::StreamCall;
use crate::client::IntoArguments;
use crate::client::config::CheckoutOptions;
use crate::client::io::shared_session::{CallKind, SharedSession, Streams};
use crate::client::session::calls::{MethodName, Seq};
use crate::error::{Error, InterfaceError};
use crate::time_limit::TimeLimit;

/// The time limit of one call: `None` for that of its client or checkout, and `Some(None)` for no limit.
pub type OwnTimeout = Option<Option<Duration>>;

/// Makes a call in a checkout of its own. `None` names no method, or streams no input to it.
#[track_caller]
pub fn call_alone<T, E>(
    client: &Client,
    method: Option<&str>,
    args: impl IntoArguments,
    timeout: OwnTimeout,
    input: Option<Input>,
) -> Call<T, E> {
    let (method, options) = (name(method), options(client, timeout));
    let Some(input) = input else {
        return call_once(client.core(), options, method, None, args, 0);
    };
    let kind = CallKind { retries: 0, streams: Streams { items: false, input: true } };
    let (session, seq) = submit_once(client.core(), options, method, None, args, kind);
    Call::with_input(session, seq, input)
}

/// Makes a call on a checkout. `None` names no method, or streams no input to it.
#[track_caller]
pub fn call<T, E>(
    checkout: &Checkout,
    method: Option<&str>,
    args: impl IntoArguments,
    timeout: OwnTimeout,
    input: Option<Input>,
) -> Call<T, E> {
    let (method, timeout) = (name(method), timeout.map(TimeLimit::from));
    match input {
        None => checkout.make_within(timeout, method, args),
        Some(input) => checkout.make_with_input_within(timeout, method, args, input),
    }
}

/// Calls a method that streams, in a checkout of its own.
#[track_caller]
pub fn stream_alone<I, T, E>(
    client: &Client,
    method: &str,
    args: impl IntoArguments,
    timeout: OwnTimeout,
    input: Option<Input>,
) -> StreamCall<I, T, E> {
    let (method, options) = (name(Some(method)), options(client, timeout));
    let Some(input) = input else {
        return stream_once(client.core(), options, method, None, args);
    };
    let kind = CallKind { retries: 0, streams: Streams { items: true, input: true } };
    let (session, seq) = submit_once(client.core(), options, method, None, args, kind);
    StreamCall::with_input(session, seq, input)
}

/// Calls a method that streams, on a checkout.
#[track_caller]
pub fn stream<I, T, E>(
    checkout: &Checkout,
    method: &str,
    args: impl IntoArguments,
    timeout: OwnTimeout,
    input: Option<Input>,
) -> StreamCall<I, T, E> {
    let (method, timeout) = (name(Some(method)), timeout.map(TimeLimit::from));
    match input {
        None => checkout.make_stream_within(timeout, method, args),
        Some(input) => checkout.make_stream_with_input_within(timeout, method, args, input),
    }
}

/// Replaces arguments of a call that are [`borrowed`](crate::__private::borrowed) by copies, unless the call has been sent and they
/// are in memory that is shared with its worker. `copy` must not wait for anything, because the call is locked.
pub fn own_arguments<T, E>(call: &Call<T, E>, copy: &mut dyn FnMut(&[u8]) -> Bytes) {
    call.own_arguments(copy);
}

fn name(method: Option<&str>) -> MethodName {
    method.map(|method| Cow::Owned(method.to_owned()))
}

fn options(client: &Client, timeout: OwnTimeout) -> CheckoutOptions {
    let mut options = client.options();
    if let Some(timeout) = timeout {
        options.timeout = timeout.into();
    }
    options
}

/// Requires that the server serves interfaces of these names, whatever their methods are.
pub fn requiring(builder: ClientBuilder, names: Vec<String>) -> ClientBuilder {
    builder.requiring_names(names)
}

/// Polls a call as its future does, but never spins for the answer.
pub fn poll_without_spin<T: DeserializeOwned, E: InterfaceError>(
    call: &mut Call<T, E>,
    context: &mut Context<'_>,
) -> Poll<Result<T, Error<E>>> {
    call.poll_without_spin(context)
}

/// Waits for a worker of a checkout, as [`Checkout::ready`] does.
#[track_caller]
pub fn ready<E>(checkout: &Checkout) -> Call<(), E> {
    checkout.wait_for_worker()
}

/// Has a task woken once a poll of a call returns its result, without a poll. Returns false if the call must be polled before that,
/// as those with an input.
pub fn set_waker<T: DeserializeOwned, E: InterfaceError>(call: &Call<T, E>, waker: &Waker) -> bool {
    call.set_waker(waker)
}

/// Where the reports of a call's progress come from, for those who do not have the call itself.
#[derive(Debug, Default)]
pub struct ProgressSource(Option<(Arc<SharedSession>, Seq)>);

impl ProgressSource {
    /// That of a call.
    pub fn of<T, E>(call: &Call<T, E>) -> Self {
        Self(call.origin())
    }

    /// The reports. There are none once the call is over.
    pub fn updates(&self) -> ProgressUpdates {
        match &self.0 {
            Some((session, seq)) => ProgressUpdates::of(session.clone(), *seq),
            None => ProgressUpdates::none(),
        }
    }
}
