//! Tests of sessions and connections without I/O: each gives them bytes and times, and looks at what they decide.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use proptest::prelude::*;

use super::calls::{Operation, Outcome, Seq};
use super::{Event, Return, Session, SessionOptions, Step};
use crate::client::now::Now;
use crate::client::pool::Loss;
use crate::client::proto::connection::{Connection, ConnectionConfig};
use crate::client::proto::handshake::{PeerLimits, PendingHandshake};
use crate::client::proto::io_types::{End, Need};
use crate::client::proto::ring::without_memory;
use crate::error::{FatalError, Stage};
use crate::time_limit::TimeLimit;
use crate::wire::Protocol;
use crate::wire::error_body::{ErrorBody, kind};
use crate::wire::frame::{self, PREAMBLE};
use crate::wire::gather_frame::GatherFrame;
use crate::wire::hello::WorkerHello;
use crate::wire::native::{self, CallMeta, FromClient};
use crate::wire::shm::ShmMessage;
use crate::wire::values::ValueFormat;

const TIMEOUT: Duration = Duration::from_secs(10);
const GRACE: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const LIMITS: PeerLimits =
    PeerLimits { max_send: 1 << 20, max_blob: 0, pipeline_window: 1 << 16, files: 0 };

/// A session and what it has reported.
struct Checkout {
    session: Session,
    events: Vec<Event>,
    start: Instant,
}

impl Checkout {
    fn new() -> Self {
        let session = Session::new(SessionOptions {
            reuse_after_error: true,
            timeout: TimeLimit::new(TIMEOUT),
            grace: TimeLimit::new(GRACE),
            connect_timeout: TimeLimit::new(CONNECT_TIMEOUT),
            is_native: true,
        });
        Self { session, events: Vec::new(), start: Instant::now() }
    }

    fn assigned() -> Self {
        let mut checkout = Self::new();
        checkout.session.assign(connection());
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
    }
}

fn connection() -> Box<Connection> {
    Box::new(Connection::new(config()))
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

proptest! {
    /// Where writes and reads end changes nothing, for calls in the outbox and for long ones beside it.
    #[test]
    fn pieces_of_any_length_make_no_difference(
        lengths in proptest::collection::vec(prop_oneof![0usize..40, 4000usize..9000], 1..8),
        sent in 1usize..5000,
        received in 1usize..40,
    ) {
        let mut checkout = Checkout::assigned();
        let calls: Vec<_> = lengths.iter().map(|&length| checkout.call(length)).collect();
        let bytes = checkout.send(sent, usize::MAX);
        prop_assert_eq!(calls_in(&bytes), calls.len());
        let answers: Vec<u8> = (1..=calls.len() as u64).flat_map(answer).collect();
        for piece in answers.chunks(received) {
            checkout.receive(piece);
            prop_assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
        }
        for (call, number) in calls.into_iter().zip(1..) {
            prop_assert!(is_result_of(checkout.outcome(call).as_ref(), number));
        }
    }

    /// What has been sent behind a failed call is skipped, also if a part of a call has been sent.
    #[test]
    fn calls_behind_a_failed_one_are_dropped_and_their_answers_skipped(
        lengths in proptest::collection::vec(prop_oneof![0usize..40, 4000usize..9000], 0..6),
        limit in 0usize..20_000,
    ) {
        let mut checkout = Checkout::assigned();
        let first = checkout.call(1);
        let mut bytes = checkout.send_all();
        let behind: Vec<_> = lengths.iter().map(|&length| checkout.call(length)).collect();
        bytes.extend(checkout.send(usize::MAX, limit));
        checkout.receive(&failure(1));
        checkout.process(Duration::ZERO);
        let is_error = matches!(checkout.outcome(first), Some(Outcome::Error(_)));
        prop_assert!(is_error);
        for call in behind {
            let is_dropped = matches!(checkout.outcome(call), Some(Outcome::Dropped { .. }));
            prop_assert!(is_dropped);
        }
        let next = checkout.call(3);
        bytes.extend(checkout.send_all());
        let last = calls_in(&bytes) as u64;
        for number in 2..last {
            checkout.receive(&framed(|out| native::put_skipped(out, Some(number))));
        }
        checkout.receive(&answer(last));
        checkout.process(Duration::ZERO);
        prop_assert!(is_result_of(checkout.outcome(next).as_ref(), last));
    }

    /// Unread bytes mean that the first call has not begun only if they can be those of no other call.
    #[test]
    fn a_call_is_not_made_again_if_the_unread_bytes_may_be_those_of_another(
        behind in proptest::option::of(0usize..9000), limit in 1usize..9000,
    ) {
        let mut checkout = Checkout::assigned();
        let call = checkout.call(1);
        checkout.send_all();
        behind.map(|length| checkout.call(length));
        let sent_behind = checkout.send(usize::MAX, limit).len();
        checkout.connection().handle_end(End::Failed(std::io::ErrorKind::ConnectionReset.into()));
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(call);
        prop_assert_eq!(may_have_run(outcome.as_ref()), (sent_behind > 0).then_some(true));
        prop_assert_eq!(checkout.returned().1, sent_behind == 0);
    }
}

#[test]
fn answers_of_skipped_calls_are_read_while_a_long_call_is_sent() {
    let mut checkout = Checkout::assigned();
    let (first, behind) = (checkout.call(1), checkout.call(2));
    checkout.send_all();
    checkout.receive(&failure(1));
    checkout.process(Duration::ZERO);
    assert!(matches!(checkout.outcome(first), Some(Outcome::Error(_))));
    assert!(matches!(checkout.outcome(behind), Some(Outcome::Dropped { .. })));
    let long = checkout.call(9000);
    checkout.send(usize::MAX, 100);
    // The socket has no room until the worker has written its answer.
    assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
    checkout.receive(&framed(|out| native::put_skipped(out, Some(2))));
    assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
    checkout.send_all();
    checkout.receive(&answer(3));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(long).as_ref(), 3));
}

#[test]
fn the_end_of_a_worker_is_noticed_while_a_long_call_is_sent() {
    for is_used in [false, true] {
        let mut checkout = Checkout::assigned();
        if is_used {
            checkout.call(1);
            checkout.send_all();
            checkout.receive(&answer(1));
            checkout.process(Duration::ZERO);
        }
        let long = checkout.call(9000);
        checkout.send(usize::MAX, 100);
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
        checkout.connection().handle_end(End::Closed { has_unread: false });
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(long);
        assert_eq!(may_have_run(outcome.as_ref()), is_used.then_some(false));
        assert_eq!(checkout.returned().1, !is_used);
    }
}

#[test]
fn an_answer_to_a_call_that_the_worker_does_not_have_ends_the_connection() {
    let telemetry = framed(|out| {
        native::put_log(out, &log_defer::Message::default()).unwrap();
    });
    for (message, what) in [
        (answer(1), "answered call 1 before it had all of it"),
        (failure(1), "answered call 1 before it had all of it"),
        (telemetry, "sent telemetry though no call runs"),
    ] {
        for length in [9000, 1] {
            let mut checkout = Checkout::assigned();
            let call = checkout.call(length);
            checkout.send(usize::MAX, 10);
            checkout.receive(&message);
            checkout.process(Duration::ZERO);
            let error = violation(checkout.outcome(call), false);
            assert!(error.contains(what), "{error}");
        }
    }
}

#[test]
fn messages_that_no_worker_may_send_are_named() {
    let shm = |message: ShmMessage| {
        let mut out = Vec::new();
        message.put(&mut out);
        out
    };
    let agreed = shm(ShmMessage { agreed: Some(1000), ..ShmMessage::default() });
    let files = |count| announcement(count);
    let telemetry = framed(|out| {
        native::put_log(out, &log_defer::Message::default()).unwrap();
    });
    let skipped = framed(|out| native::put_skipped(out, Some(1)));
    let queued = framed(|out| native::put_queued(out, "all busy"));
    let unknown = [
        ShmMessage { free: vec![(7, 1)], ..ShmMessage::default() },
        ShmMessage { gone: vec![7], ..ShmMessage::default() },
        ShmMessage { unwanted: vec![7], ..ShmMessage::default() },
    ];
    let unknown = unknown.map(|message| ([agreed.clone(), shm(message)], "memory of the number 7"));
    let others = [
        ([framed(native::put_rings), vec![]], "accepted rings that were not offered"),
        ([agreed.clone(), framed(native::put_rings)], "accepted rings that were not offered"),
        ([framed(|out| hello_message().put(out)), vec![]], "a second hello"),
        ([queued, vec![]], "no worker is free, after one has greeted"),
        ([skipped.clone(), vec![]], "skipped a call that was not cancelled"),
        ([files(3), vec![]], "announced 3 files for a message, and the limit is 2"),
        ([files(1), files(1)], "announced files, but no answer followed"),
        ([files(1), agreed], "announced files, but no answer followed"),
        ([files(1), telemetry], "announced files, but no answer followed"),
        ([files(1), skipped], "announced files, but no answer followed"),
    ];
    for (messages, what) in unknown.into_iter().chain(others) {
        let mut checkout = Checkout::assigned();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.receive(&messages.concat());
        checkout.process(Duration::ZERO);
        let error = violation(checkout.outcome(call), true);
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_worker_agrees_to_share_memory_only_with_an_answer() {
    let mut checkout = Checkout::assigned();
    let mut agreed = Vec::new();
    ShmMessage { agreed: Some(1000), ..ShmMessage::default() }.put(&mut agreed);
    let call = checkout.call(9000);
    checkout.send(usize::MAX, 10);
    checkout.receive(&agreed);
    checkout.process(Duration::ZERO);
    let error = violation(checkout.outcome(call), false);
    assert!(error.contains("agreed to share memory though no call runs"), "{error}");
}

#[test]
fn the_answer_of_a_call_that_must_be_skipped_ends_the_connection() {
    let files = announcement(1);
    let skipped = |call| framed(|out| native::put_skipped(out, Some(call)));
    for (message, what) in [
        (answer(2), "answered a call that it had to skip"),
        (failure(2), "answered a call that it had to skip"),
        (skipped(3), "the answer to call 3 where that to call 2 was due"),
        ([files, skipped(2)].concat(), "announced files, but no answer followed"),
    ] {
        let mut checkout = Checkout::assigned();
        let first = checkout.call(1);
        checkout.call(2);
        checkout.send_all();
        checkout.receive(&failure(1));
        checkout.process(Duration::ZERO);
        assert!(matches!(checkout.outcome(first), Some(Outcome::Error(_))));
        let next = checkout.call(3);
        checkout.send_all();
        checkout.receive(&message);
        checkout.process(Duration::ZERO);
        let error = violation(checkout.outcome(next), true);
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_call_that_was_not_sent_does_not_count_among_those_whose_bytes_are_unread() {
    let mut checkout = Checkout::assigned();
    let first = checkout.call(1);
    checkout.send_all();
    let second = checkout.call(1);
    // The outbox has it, and the socket has no room.
    checkout.send(usize::MAX, 0);
    checkout.connection().handle_end(End::Closed { has_unread: true });
    checkout.process(Duration::ZERO);
    assert!(checkout.outcome(first).is_none() && checkout.outcome(second).is_none());
    assert!(checkout.returned().1);
}

#[test]
fn an_answer_to_another_call_ends_the_connection() {
    for wrong in [Some(0), Some(2), None] {
        let mut checkout = Checkout::assigned();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.receive(&framed(|out| {
            native::put_ok(out, wrong, ValueFormat::MessagePack);
            out.push(0xc0);
        }));
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(call);
        let is_violation = matches!(
            outcome,
            Some(Outcome::Fatal { cause: FatalError::Protocol { .. }, may_have_run: true })
        );
        assert!(is_violation, "{outcome:?}");
        assert!(matches!(checkout.returned(), (Some(Return::Lose(Loss::Used)), false)));
    }
}

#[test]
fn a_call_that_a_worker_has_ends_after_its_time_and_the_grace_period_and_the_wait_for_a_notice() {
    let mut checkout = Checkout::assigned();
    let call = checkout.call(1);
    checkout.send_all();
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + TIMEOUT));
    let last = TIMEOUT + GRACE + Duration::from_secs(2);
    for time in [TIMEOUT, last - Duration::from_nanos(1)] {
        checkout.session.handle_timeout(&checkout.after(time));
        assert!(checkout.outcome(call).is_none());
        assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + last));
    }
    checkout.session.handle_timeout(&checkout.after(last));
    let outcome = checkout.outcome(call);
    let is_timeout = matches!(
        outcome,
        Some(Outcome::Fatal {
            cause: FatalError::TimedOut { stage: Stage::Running, .. },
            may_have_run: true,
        })
    );
    assert!(is_timeout, "{outcome:?}");
}

#[test]
fn a_call_without_a_worker_ends_at_its_time() {
    let mut checkout = Checkout::new();
    checkout.session.enter_queue();
    checkout.call(1);
    checkout.session.handle_timeout(&checkout.after(TIMEOUT - Duration::from_nanos(1)));
    assert!(checkout.session.poll_event().is_none());
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    let event = checkout.session.poll_event();
    assert!(matches!(event, Some(Event::WaitTimedOut { after: TIMEOUT })), "{event:?}");
}

#[test]
fn a_worker_whose_hello_is_late_is_replaced_and_the_call_moves() {
    let mut checkout = Checkout::assigned_early();
    let call = checkout.call(1);
    checkout.send_all();
    assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + CONNECT_TIMEOUT));
    checkout.session.handle_timeout(&checkout.after(CONNECT_TIMEOUT));
    assert_eq!(checkout.process(CONNECT_TIMEOUT), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    // The worker is kept from greeting, and what it has sent by then is read.
    assert_eq!(checkout.process(CONNECT_TIMEOUT), Some(Need::InputStop));
    checkout.connection().handle_input_stopped();
    assert_eq!(checkout.process(CONNECT_TIMEOUT), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    assert_eq!(checkout.process(CONNECT_TIMEOUT), None);
    assert!(matches!(checkout.returned(), (Some(Return::FailHandshake(_)), true)));
    checkout.session.assign(connection());
    assert_eq!(calls_in(&checkout.send_all()), 1);
    checkout.receive(&answer(1));
    checkout.process(CONNECT_TIMEOUT);
    assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
}

#[test]
fn a_hello_and_an_answer_that_arrived_in_time_count_though_both_are_read_late() {
    // The time of the call may be over too.
    for now in [CONNECT_TIMEOUT, TIMEOUT] {
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.session.handle_timeout(&checkout.after(now));
        assert_eq!(checkout.process(now), Some(Need::ArrivedInput));
        checkout.receive(&[hello(), answer(1)].concat());
        checkout.process(now);
        assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
    }
}

#[test]
fn the_time_of_a_call_ends_it_also_if_the_hello_is_late() {
    let mut checkout = Checkout::assigned_early();
    checkout.call(1);
    checkout.send_all();
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    assert_eq!(checkout.process(TIMEOUT), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    assert_eq!(checkout.process(TIMEOUT), Some(Need::InputStop));
    checkout.connection().handle_input_stopped();
    assert_eq!(checkout.process(TIMEOUT), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    checkout.process(TIMEOUT);
    checkout.session.enter_queue();
    assert!(checkout.session.poll_timeout().is_some_and(|at| at <= checkout.start + TIMEOUT));
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    let event = checkout.session.poll_event();
    assert!(matches!(event, Some(Event::WaitTimedOut { .. })), "{event:?}");
}

#[test]
fn a_worker_whose_hello_came_too_late_is_known_by_its_process_id() {
    let queued = [PREAMBLE.to_vec(), framed(|out| native::put_queued(out, "all busy"))].concat();
    for is_queued in [false, true] {
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        match is_queued {
            true => checkout.receive(&queued),
            false => checkout.session.handle_timeout(&checkout.after(CONNECT_TIMEOUT)),
        }
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
        checkout.connection().handle_no_input();
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::InputStop));
        checkout.connection().handle_input_stopped();
        checkout.receive(&hello()[if is_queued { PREAMBLE.len() } else { 0 }..]);
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(call);
        let Some(Outcome::Fatal { cause: FatalError::WorkerDied(death), .. }) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(death.pid, 7);
    }
}

#[test]
fn a_call_goes_at_once_if_rings_cannot_be_offered() {
    for has_memory in [true, false] {
        let mut agreed = Vec::new();
        ShmMessage { agreed: Some(1000), ..ShmMessage::default() }.put(&mut agreed);
        let mut checkout = Checkout::assigned();
        let mut call = |number| {
            let call = checkout.call(1);
            let sent = match has_memory {
                true => checkout.send_all(),
                false => without_memory::run(|| checkout.send_all()),
            };
            checkout.receive(&[std::mem::take(&mut agreed), answer(number)].concat());
            checkout.process(Duration::ZERO);
            assert!(is_result_of(checkout.outcome(call).as_ref(), number));
            assert_eq!(calls_in(&sent), 1);
            sent
        };
        let calls = (1..=40).map(|number| call(number).len());
        let (most, last) = calls.fold((0, 0), |(most, _), sent| (sent.max(most), sent));
        // An offer precedes one of the calls.
        assert_eq!(most > last, has_memory);
    }
}

#[test]
fn a_hello_that_came_before_the_end_means_that_the_call_may_have_run() {
    let queued = [PREAMBLE.to_vec(), framed(|out| native::put_queued(out, "all busy"))].concat();
    let after_queued = [queued, hello()[PREAMBLE.len()..].to_vec()].concat();
    for received in [Some(hello()), Some(after_queued), None] {
        let has_hello = received.is_some();
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        let cause = FatalError::Aborted { message: "stop".to_owned() };
        checkout.session.end(cause, Loss::Used);
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::InputStop));
        checkout.connection().handle_input_stopped();
        match &received {
            Some(bytes) => checkout.receive(bytes),
            None => checkout.connection().handle_no_input(),
        }
        assert_eq!(checkout.process(Duration::ZERO), None);
        let outcome = checkout.outcome(call);
        let is_abort =
            matches!(outcome, Some(Outcome::Fatal { cause: FatalError::Aborted { .. }, .. }));
        assert!(is_abort, "{outcome:?}");
        assert_eq!(may_have_run(outcome.as_ref()), Some(has_hello));
    }
}

#[test]
fn a_connection_leaves_the_servers_queue_unless_the_hello_has_come() {
    let queued = [PREAMBLE.to_vec(), framed(|out| native::put_queued(out, "all busy"))].concat();
    let hello = &hello()[PREAMBLE.len()..];
    for (arrives_before, arrives_after) in
        [(true, 0), (false, hello.len()), (false, hello.len() - 1), (false, 0)]
    {
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.receive(&queued);
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
        if arrives_before {
            checkout.receive(hello);
            assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
            assert!(checkout.connection().is_established());
            continue;
        }
        checkout.connection().handle_no_input();
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::InputStop));
        checkout.connection().handle_input_stopped();
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
        checkout.receive(&hello[..arrives_after]);
        checkout.process(Duration::ZERO);
        // A hello is too late for this connection, and the worker may have begun the call.
        let is_whole = arrives_after == hello.len();
        if !is_whole {
            checkout.connection().handle_no_input();
            checkout.process(Duration::ZERO);
            assert!(matches!(checkout.returned(), (Some(Return::FailHandshake(_)), true)));
        }
        let outcome = checkout.outcome(call);
        assert_eq!(may_have_run(outcome.as_ref()), is_whole.then_some(true));
    }
}

#[test]
fn a_worker_that_ends_within_its_hello_has_begun_no_call() {
    let queued = [PREAMBLE.to_vec(), framed(|out| native::put_queued(out, "all busy"))].concat();
    let hello = &hello()[PREAMBLE.len()..];
    for length in [0, 3, hello.len() - 1] {
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.receive(&[&queued, &hello[..length]].concat());
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
        // The connection has ended.
        checkout.connection().handle_no_input();
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::InputStop));
        checkout.connection().handle_input_stopped();
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
        checkout.connection().handle_no_input();
        checkout.process(Duration::ZERO);
        assert!(matches!(checkout.returned(), (Some(Return::FailHandshake(_)), true)));
        assert!(checkout.outcome(call).is_none());
    }
}

#[test]
fn a_server_says_only_once_that_no_worker_is_free() {
    let queued = framed(|out| native::put_queued(out, "all busy"));
    let mut checkout = Checkout::assigned_early();
    checkout.call(1);
    checkout.send_all();
    checkout.receive(&[PREAMBLE, &queued[..], &queued].concat());
    assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    checkout.process(Duration::ZERO);
    let (returned, is_replaced) = checkout.returned();
    let Some(Return::FailHandshake(reason)) = returned else { panic!("{returned:?}") };
    assert!(reason.to_string().contains("said twice that no worker is free"), "{reason}");
    assert!(is_replaced);
}

#[test]
fn sent_calls_may_be_answered_after_a_later_write_has_failed() {
    for first_is_sent in [true, false] {
        let mut checkout = Checkout::assigned();
        let first = checkout.call(1);
        if first_is_sent {
            checkout.send_all();
            // It is too long for the outbox.
            checkout.call(6000);
        }
        let now = checkout.after(Duration::ZERO);
        assert!(checkout.session.poll_transmit(&now).is_some());
        checkout.session.handle_write_error(std::io::ErrorKind::BrokenPipe.into());
        assert!(checkout.session.poll_transmit(&now).is_none());
        let need = if first_is_sent { Need::Input } else { Need::ArrivedInput };
        assert_eq!(checkout.process(Duration::ZERO), Some(need));
        if first_is_sent {
            checkout.receive(&answer(1));
            // The second call cannot be sent, so the end of the connection is searched for.
            assert_eq!(checkout.process(Duration::ZERO), Some(Need::ArrivedInput));
            assert!(is_result_of(checkout.outcome(first).as_ref(), 1));
        }
        checkout.connection().handle_no_input();
        checkout.process(Duration::ZERO);
        assert_eq!(checkout.returned().1, !first_is_sent);
    }
}

#[test]
fn the_search_for_the_last_message_ends() {
    let mut checkout = Checkout::assigned();
    let call = checkout.call(1);
    let now = checkout.after(Duration::ZERO);
    assert!(checkout.session.poll_transmit(&now).is_some());
    checkout.session.handle_write_error(std::io::ErrorKind::BrokenPipe.into());
    // Messages that concern only the connection, without end.
    let message = announcement(0);
    let mut messages = 0;
    while checkout.process(Duration::ZERO) == Some(Need::ArrivedInput) {
        checkout.receive(&message.repeat(100));
        messages += 100;
        assert!(messages < 100_000);
    }
    assert!(messages > 1000 && checkout.returned().1);
    assert!(checkout.outcome(call).is_none());
}

#[test]
fn a_shorter_time_limit_of_a_later_call_is_kept() {
    for waits in [true, false] {
        let mut checkout = Checkout::assigned();
        let first = checkout.call(1);
        let short = Duration::from_secs(1);
        checkout.session.set_timeout(TimeLimit::new(short));
        let second = if waits { Some(checkout.call(2)) } else { None };
        checkout.send_all();
        checkout.receive(&answer(1));
        checkout.process(Duration::ZERO);
        assert!(is_result_of(checkout.outcome(first).as_ref(), 1));
        second.unwrap_or_else(|| checkout.call(2));
        assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + short));
    }
}

#[test]
fn what_is_received_before_the_end_counts() {
    let mut checkout = Checkout::assigned();
    let (first, second) = (checkout.call(1), checkout.call(2));
    checkout.send_all();
    checkout.receive(&answer(1));
    checkout.connection().handle_end(End::Closed { has_unread: false });
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(first).as_ref(), 1));
    let outcome = checkout.outcome(second);
    let is_death = matches!(
        outcome,
        Some(Outcome::Fatal { cause: FatalError::WorkerDied(_), may_have_run: true })
    );
    assert!(is_death, "{outcome:?}");
}
