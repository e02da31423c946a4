//! Tests of sessions and connections without I/O: each gives them bytes and times, and looks at what they decide.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;

use super::calls::{Operation, Outcome, Seq};
use super::{Event, Return, Session, SessionOptions, Step, TimeKeeper};
use crate::client::now::Now;
use crate::client::pool::Loss;
use crate::client::proto::connection::{Connection, ConnectionConfig};
use crate::client::proto::handshake::{PeerLimits, PendingHandshake};
use crate::client::proto::io_types::{End, Need};
use crate::client::proto::ring::without_memory;
use crate::error::{Activity, FatalError, Stage, TimeoutOption};
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::death_notice::DeathNotice;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, CallMode, FromClient};
use crate::wire::relay;
use crate::wire::shm::ShmMessage;
use crate::wire::values::ValueFormat;

mod calls;
mod gateway;
mod handshake;
mod inputs;
mod retries;
mod run_timeout;
mod setup;
mod streams;
mod violations;

const TIMEOUT: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const LIMITS: PeerLimits = PeerLimits {
    max_send: 1 << 20,
    max_blob: 0,
    pipeline_window: 1 << 16,
    files: 0,
    accepts_single_calls: false,
    sends_items: true,
    takes_input: true,
};

/// A session and what it has reported.
struct Checkout {
    session: Session,
    events: Vec<Event>,
    start: Instant,
}

impl Checkout {
    fn new() -> Self {
        Self::with(false)
    }

    /// `is_single` says that it makes one call only.
    fn with(is_single: bool) -> Self {
        Self::with_reuse(is_single, true)
    }

    /// Replaces a worker if an error says so.
    fn replacing() -> Self {
        Self::with_reuse(false, false)
    }

    fn with_reuse(is_single: bool, reuse_after_error: bool) -> Self {
        let session = Session::new(
            SessionOptions {
                reuse_after_error,
                timeout: TimeLimit::new(TIMEOUT),
                run_timeout: TimeLimit::NEVER,
                grace: TimeLimit::new(GRACE),
                connect_timeout: TimeLimit::new(CONNECT_TIMEOUT),
                time_keeper: TimeKeeper::Server,
            },
            is_single,
        );
        Self { session, events: Vec::new(), start: Instant::now() }
    }

    fn assigned() -> Self {
        let mut checkout = Self::new();
        checkout.session.assign(connection());
        checkout
    }

    /// With a connection through a gateway.
    fn assigned_remotely() -> Self {
        let mut checkout = Self::new();
        let config = ConnectionConfig { can_lose_answers: true, ..config() };
        checkout.session.assign(Box::new(Connection::new(config)));
        checkout
    }

    /// With a connection whose worker runs `setup`.
    fn assigned_in_setup(can_lose_answers: bool) -> Self {
        let mut checkout = Self::new();
        let config = ConnectionConfig { can_lose_answers, announces_setup: true, ..config() };
        checkout.session.assign(Box::new(Connection::new(config)));
        checkout
    }

    /// With a connection whose hello is due.
    fn assigned_early() -> Self {
        let mut checkout = Self::new();
        let (config, hello) = (config(), PREAMBLE.to_vec());
        let due = Some(checkout.start + CONNECT_TIMEOUT);
        let handshake = PendingHandshake::new(checkout.start, due, 1 << 20, 0);
        let connection = Connection::before_handshake(config, hello, handshake);
        checkout.session.assign(Box::new(connection));
        checkout
    }

    fn after(&self, time: Duration) -> Now {
        Now::from(self.start + time)
    }

    fn connection(&mut self) -> &mut Connection {
        self.session.connection_mut().unwrap()
    }

    fn call(&mut self, length: usize) -> Seq {
        let mut frame = GatherFrame::default();
        frame::put(&mut frame.bytes, |out| {
            native::put_call(out, None, CallMeta { timeout: Some(0), ..CallMeta::default() });
            native::put_argument_count(out, 1);
            out.extend(rmp_serde::to_vec(&"x".repeat(length)).unwrap());
        });
        let now = self.after(Duration::ZERO);
        self.session.submit(None, Operation::Call(frame, None), None, &now)
    }

    /// Sends what there is, at most `piece` bytes at a time and `limit` bytes in all.
    fn send(&mut self, piece: usize, limit: usize) -> Vec<u8> {
        let (mut sent, now) = (Vec::new(), self.after(Duration::ZERO));
        while let Some(transmit) = self.session.poll_transmit(&now) {
            let most = piece.min(limit - sent.len());
            let bytes = transmit.with_slices(|slices, _| {
                let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
                all[..all.len().min(most)].to_vec()
            });
            if bytes.is_empty() {
                break;
            }
            self.session.handle_sent(bytes.len());
            sent.extend(bytes);
        }
        sent
    }

    fn send_all(&mut self) -> Vec<u8> {
        self.send(usize::MAX, usize::MAX)
    }

    fn receive(&mut self, bytes: &[u8]) {
        let connection = self.connection();
        connection.buffer().0.extend_from_slice(bytes);
        connection.handle_input(bytes.len());
    }

    /// Processes what has been received. Returns what the connection needs then.
    fn process(&mut self, time: Duration) -> Option<Need> {
        let now = self.after(time);
        loop {
            self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
            match self.session.process(&now) {
                Step::Changed => {}
                Step::Answer(outcome) => self.session.handle_answer(outcome),
                Step::Wait => return None,
                Step::Input => return self.session.connection().map(Connection::need),
            }
        }
    }

    fn outcome(&mut self, seq: Seq) -> Option<Outcome> {
        self.session.take(seq).map(|(_, outcome)| outcome)
    }

    /// How the connection was returned, and whether another worker is to take its place.
    fn returned(&mut self) -> (Option<Return>, bool) {
        let (mut returned, mut is_replaced) = (None, false);
        for event in self.events.drain(..) {
            match event {
                Event::Returned(_, how) => returned = Some(how),
                Event::NeedsWorker => is_replaced = true,
                _ => {}
            }
        }
        (returned, is_replaced)
    }
}

fn config() -> ConnectionConfig {
    ConnectionConfig {
        protocol: Protocol::Native,
        inbox: BytesMut::new(),
        pid: 1,
        limits: LIMITS,
        max_receive: 1 << 20,
        max_blob: 0,
        max_files: 2,
        max_shared: 1 << 20,
        copy_shared_memory: false,
        can_lose_answers: false,
        announces_setup: false,
    }
}

fn connection() -> Box<Connection> {
    Box::new(Connection::new(config()))
}

fn connection_to(limits: PeerLimits) -> Box<Connection> {
    Box::new(Connection::new(ConnectionConfig { limits, ..config() }))
}

fn framed(body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, body);
    out
}

fn answer(call: u64) -> Vec<u8> {
    framed(|out| {
        native::put_ok(out, Some(call), ValueFormat::MessagePack);
        out.extend(rmp_serde::to_vec(&call).unwrap());
    })
}

/// A message that announces this number of files.
fn announcement(files: usize) -> Vec<u8> {
    framed(|out| out.extend(rmp_serde::to_vec(&(6, BTreeMap::<(), ()>::new(), files)).unwrap()))
}

fn failure(call: u64) -> Vec<u8> {
    let error = ErrorBody { kind: kind::INTERFACE, message: "no", ..Default::default() };
    framed(|out| native::put_error(out, Some(call), &error))
}

fn hello_message() -> WorkerHello {
    WorkerHello { version: 1, pid: 7, ..WorkerHello::default() }
}

fn hello() -> Vec<u8> {
    [PREAMBLE.to_vec(), framed(|out| hello_message().put(out))].concat()
}

fn is_result_of(outcome: Option<&Outcome>, call: u64) -> bool {
    let expected = rmp_serde::to_vec(&call).unwrap();
    matches!(outcome, Some(Outcome::Result { value, .. }) if *value == expected)
}

/// The message that `setup` has succeeded.
fn set_up() -> Vec<u8> {
    framed(native::put_set_up)
}

/// The server's notice that the worker has died during `setup`, after this number of calls had begun.
fn death_in_setup(calls: u64) -> Vec<u8> {
    let during = Some(Activity::Setup);
    framed(|out| DeathNotice { pid: 7, calls, during, ..DeathNotice::default() }.put(out))
}

/// Whether the call ended with a fatal error, and what that says.
fn may_have_run(outcome: Option<&Outcome>) -> Option<bool> {
    match outcome {
        Some(Outcome::Fatal { may_have_run, .. }) => Some(*may_have_run),
        _ => None,
    }
}

/// How the peer of a call has broken the protocol.
fn violation(outcome: Option<Outcome>, may_have_run: bool) -> String {
    match outcome {
        Some(Outcome::Fatal { cause: FatalError::Protocol { detail }, may_have_run: may })
            if may == may_have_run =>
        {
            detail.to_string()
        }
        outcome => panic!("{outcome:?}"),
    }
}

fn calls_in(sent: &[u8]) -> usize {
    let (mut bytes, mut calls) = (BytesMut::from(sent), 0);
    while let Some(body) = frame::take(&mut bytes, 1 << 20).unwrap() {
        calls += usize::from(matches!(FromClient::decode(&body), Ok(FromClient::Call { .. })));
    }
    assert!(bytes.is_empty());
    calls
}
