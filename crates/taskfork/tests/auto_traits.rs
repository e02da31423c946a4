//! Which public types are `Send`, `Sync`, `Unpin`, `UnwindSafe` and `RefUnwindSafe`. A private field can
//! change that unnoticed.

use std::panic::{RefUnwindSafe, UnwindSafe};

use taskfork::blob::{BlobMut, OpenFile};
use taskfork::client::{
    Address, AddressError, BusyPoll, ClientBuilder, ConfigError, Input, Overload, ProgressUpdates,
    Protocol, Stats, StreamCall, TypedCheckout, TypedHandle,
};
use taskfork::error::{
    Activity, CallError, CallSite, ConnectionError, Death, End, Failure, FatalError, Hung,
    Location, Panic, Report, Stage,
};
use taskfork::server::{
    Entry, Limit, LogWriter, ServerHandle, ServerStatus, Spawn, Stderr, WorkerStatus,
};
use taskfork::trace_context::TraceContext;
use taskfork::worker::{
    ArgumentsError, Context, EmitError, Executable, Function, Peer, ReceiveError,
};
use taskfork::{Blob, Call, Checkout, Client, Error, Progress, ServerError, blocking};

fn send_sync_unpin<T: Send + Sync + Unpin>() {}
fn unwind_safe<T: UnwindSafe + RefUnwindSafe>() {}

macro_rules! assert_all {
    ($($type:ty),+ $(,)?) => {$(
        send_sync_unpin::<$type>();
        unwind_safe::<$type>();
    )+};
}

macro_rules! assert_send_sync_unpin {
    ($($type:ty),+ $(,)?) => {$( send_sync_unpin::<$type>(); )+};
}

#[test]
fn values_and_errors_cross_threads_and_unwinding() {
    assert_all!(
        Activity,
        Address,
        AddressError,
        ArgumentsError,
        EmitError,
        ReceiveError,
        Progress,
        BusyPoll,
        CallError,
        CallSite,
        ClientBuilder,
        ConfigError,
        ConnectionError,
        Death,
        End,
        Entry,
        Error,
        Failure,
        FatalError,
        Function<fn()>,
        Hung,
        Limit,
        Location,
        Overload,
        Panic,
        Peer,
        Protocol,
        Report<'_, Failure>,
        ServerStatus,
        Stage,
        Stats,
        Stderr,
        TraceContext,
        WorkerStatus,
    );
}

#[test]
fn handles_cross_threads_and_unwinding() {
    assert_all!(
        Blob,
        Call<i64>,
        Call<std::rc::Rc<i64>>,
        StreamCall<i64, i64>,
        Input,
        StreamCall<std::rc::Rc<i64>, std::rc::Rc<i64>>,
        blocking::StreamCall<i64, i64>,
        blocking::StreamCall<std::rc::Rc<i64>, std::rc::Rc<i64>>,
        TypedHandle<std::rc::Rc<i64>>,
        TypedCheckout,
        blocking::TypedHandle<std::rc::Rc<i64>>,
        blocking::TypedCheckout,
        ProgressUpdates,
        Checkout,
        Client,
        Context,
        Executable,
        LogWriter,
        OpenFile,
        ServerHandle,
        Spawn,
        blocking::Call<i64>,
        blocking::Checkout,
        blocking::Client,
        BlobMut,
    );
}

/// They contain an error of the system, which has neither `UnwindSafe` nor `RefUnwindSafe`.
#[test]
fn errors_with_a_cause_cross_threads() {
    assert_send_sync_unpin!(ServerError, blocking::BuildError);
}
