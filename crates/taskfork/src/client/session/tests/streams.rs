//! Calls that stream: what may follow them, their credit, and what happens in their middle.

use std::collections::VecDeque;

use super::*;
use crate::client::session::items::Item;
use crate::wire::credit::{WINDOW, item_cost};

impl Checkout {
    /// Makes a call that streams, with this number as its argument.
    fn stream(&mut self, items: u64) -> Seq {
        self.stream_with(&[&rmp_serde::to_vec(&items).unwrap()])
    }

    /// The same with encoded arguments.
    fn stream_with(&mut self, arguments: &[&[u8]]) -> Seq {
        let mut frame = GatherFrame::default();
        frame::put(&mut frame.bytes, |out| {
            let meta = CallMeta { timeout: Some(0), items: Some(WINDOW), ..CallMeta::default() };
            native::put_call(out, None, meta);
            native::put_argument_count(out, arguments.len());
            arguments.iter().for_each(|argument| out.extend_from_slice(argument));
        });
        let now = self.after(Duration::ZERO);
        let seq = self.session.submit(None, Operation::Call(frame, None), None, &now);
        self.session.read_items(seq);
        seq
    }

    fn item(&mut self, seq: Seq) -> Option<u64> {
        let Item { value, .. } = self.session.take_item(seq)?;
        Some(rmp_serde::from_slice::<(u64, serde_bytes::ByteBuf)>(&value).unwrap().0)
    }
}

/// An item with this number, and how much credit it takes.
fn item(call: u64, number: u64, length: usize) -> (Vec<u8>, u64) {
    let mut frame = framed(|out| {
        native::put_item(out);
        let value = (number, serde_bytes::ByteBuf::from(vec![0; length]));
        out.extend(rmp_serde::to_vec(&value).unwrap());
    });
    let cost = item_cost(frame.len() - frame::HEADER_LEN, 0);
    native::set_item_call(&mut frame[frame::HEADER_LEN..], call);
    native::set_item_cost(&mut frame[frame::HEADER_LEN..], cost);
    (frame, cost)
}

fn messages_in(sent: &[u8]) -> Vec<String> {
    let mut bytes = BytesMut::from(sent);
    let mut messages = Vec::new();
    while let Some(body) = frame::take(&mut bytes, 1 << 20).unwrap() {
        messages.push(match FromClient::decode(&body).unwrap() {
            FromClient::Call { mode, .. } => format!("{mode:?}"),
            FromClient::Credit { call, credit } => format!("{credit} for {call}"),
            FromClient::Cancel(call) => format!("cancel {call}"),
            other => format!("{other:?}"),
        });
    }
    messages
}

#[test]
fn nothing_but_credit_follows_a_call_that_streams() {
    let mut checkout = Checkout::assigned();
    let stream = checkout.stream(3);
    let behind = checkout.call(10);
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
    let (mut used, length) = (0, 100_000);
    for number in 0..2 {
        let (message, cost) = item(1, number, length);
        used += cost;
        checkout.receive(&message);
    }
    checkout.process(Duration::ZERO);
    assert_eq!(checkout.item(stream), Some(0));
    assert!(checkout.send_all().is_empty(), "credit was given for less than half of the window");
    assert_eq!(checkout.item(stream), Some(1));
    let credit = used + WINDOW;
    assert_eq!(messages_in(&checkout.send_all()), [format!("{credit} for 1")]);
    assert_eq!(checkout.item(stream), None);
    checkout.receive(&answer(1));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(stream).as_ref(), 1));
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
    checkout.receive(&answer(2));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(behind).as_ref(), 2));
}

#[test]
fn a_stream_behind_a_call_is_pipelined_and_the_last_that_is_sent() {
    let mut checkout = Checkout::assigned();
    checkout.call(10);
    checkout.stream(3);
    checkout.call(10);
    checkout.stream(3);
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential", "Pipelined"]);
}

#[test]
fn an_item_that_breaks_the_protocol_ends_the_connection() {
    let (mut without_cost, _) = item(1, 0, 10);
    native::set_item_cost(&mut without_cost[frame::HEADER_LEN..], 30);
    let large = [item(1, 0, 300_000).0, item(1, 1, 1).0].concat();
    let cases = [
        (item(2, 0, 1).0, "an item of another call"),
        (without_cost, "at the cost of 30"),
        (large, "an item without credit"),
        ([announcement(1), item(1, 0, 1).0].concat(), "files"),
    ];
    for (bytes, expected) in cases {
        let mut checkout = Checkout::assigned();
        let stream = checkout.stream(3);
        checkout.send_all();
        checkout.receive(&bytes);
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(stream);
        let text = match &outcome {
            Some(Outcome::Fatal { cause, may_have_run: true }) => cause.to_string(),
            outcome => panic!("{expected}: {outcome:?}"),
        };
        assert!(text.contains(expected), "{expected}: {text}");
    }
    // A call that does not stream.
    let mut checkout = Checkout::assigned();
    let call = checkout.call(10);
    checkout.send_all();
    checkout.receive(&item(1, 0, 1).0);
    checkout.process(Duration::ZERO);
    let detail = violation(checkout.outcome(call), true);
    assert!(detail.contains("no call asked for"), "{detail}");
}

#[test]
fn the_items_before_a_death_can_be_taken_and_the_call_goes_to_no_other_worker() {
    let mut checkout = Checkout::assigned();
    let stream = checkout.stream(3);
    checkout.send_all();
    checkout.receive(&item(1, 5, 1).0);
    checkout.process(Duration::ZERO);
    // Whatever a dead worker has said, a call that has sent an item has begun.
    checkout.connection().handle_end(End::Closed { has_unread: true });
    checkout.process(Duration::ZERO);
    assert!(!checkout.returned().1);
    assert_eq!(checkout.item(stream), Some(5));
    assert_eq!(checkout.item(stream), None);
    assert_eq!(may_have_run(checkout.outcome(stream).as_ref()), Some(true));
}

#[test]
fn a_stream_that_ends_without_a_notice_after_its_time_has_timed_out() {
    for (has_item, has_unread, time, expected) in [
        (true, false, TIMEOUT, true),
        (true, true, TIMEOUT, true),
        (false, false, TIMEOUT, true),
        (true, false, TIMEOUT - Duration::from_nanos(1), false),
    ] {
        let mut checkout = Checkout::assigned();
        let stream = checkout.stream(3);
        checkout.send_all();
        if has_item {
            checkout.receive(&item(1, 5, 1).0);
            checkout.process(Duration::ZERO);
        }
        checkout.connection().handle_end(End::Closed { has_unread });
        checkout.process(time);
        let outcome = checkout.outcome(stream);
        assert_eq!(may_have_run(outcome.as_ref()), Some(true));
        let timed_out = matches!(
            outcome,
            Some(Outcome::Fatal { cause: FatalError::TimedOut { after: TIMEOUT, .. }, .. })
        );
        assert_eq!(timed_out, expected);
    }
    // An answer that is no stream has its notice in front.
    let mut checkout = Checkout::assigned();
    let call = checkout.call(1);
    checkout.send_all();
    checkout.connection().handle_end(End::Closed { has_unread: false });
    checkout.process(TIMEOUT);
    let outcome = checkout.outcome(call);
    assert!(matches!(outcome, Some(Outcome::Fatal { cause: FatalError::WorkerDied(_), .. })));
}

#[test]
fn an_abandoned_stream_is_cancelled_and_its_items_are_dropped() {
    let mut checkout = Checkout::assigned();
    let stream = checkout.stream(3);
    let behind = checkout.call(10);
    checkout.send_all();
    checkout.receive(&item(1, 0, 1).0);
    checkout.process(Duration::ZERO);
    checkout.session.abandon(stream);
    assert_eq!(messages_in(&checkout.send_all()), ["cancel 1"]);
    checkout.receive(&[item(1, 1, 1).0, answer(1)].concat());
    checkout.process(Duration::ZERO);
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
    checkout.receive(&answer(2));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(behind).as_ref(), 2));
}

#[test]
fn an_abandoned_stream_without_a_checkout_gives_its_worker_up_at_once() {
    let mut checkout = Checkout::assigned();
    let stream = checkout.stream(3);
    checkout.session.close();
    checkout.send_all();
    checkout.receive(&item(1, 0, 1).0);
    checkout.process(Duration::ZERO);
    checkout.session.abandon(stream);
    // The worker has no chance to answer a cancellation, and to be used again.
    let mut events = std::iter::from_fn(|| checkout.session.poll_event());
    assert!(events.any(|event| matches!(event, Event::Returned(_, Return::Lose(_)))));
    assert!(checkout.send_all().is_empty());
}

#[test]
fn a_stream_that_is_abandoned_while_it_is_sent_is_cancelled_behind_it() {
    let mut checkout = Checkout::assigned();
    let long = rmp_serde::to_vec(&"x".repeat(500_000)).unwrap();
    let stream = checkout.stream_with(&[&long]);
    let behind = checkout.call(10);
    let first = checkout.send(1000, 1000);
    checkout.session.abandon(stream);
    let sent = [first, checkout.send_all()].concat();
    assert_eq!(messages_in(&sent), ["Sequential", "cancel 1"]);
    checkout.receive(&answer(1));
    checkout.process(Duration::ZERO);
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
    checkout.receive(&answer(2));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(behind).as_ref(), 2));
}

#[test]
fn a_worker_without_streams_gets_no_call_for_one() {
    let mut checkout = Checkout::new();
    checkout.session.assign(connection_to(PeerLimits { sends_items: false, ..LIMITS }));
    let stream = checkout.stream(3);
    assert!(checkout.send_all().is_empty());
    checkout.process(Duration::ZERO);
    let outcome = checkout.outcome(stream);
    assert!(
        matches!(&outcome, Some(Outcome::Unsendable(reason)) if reason.contains("without streams")),
        "{outcome:?}"
    );
}

/// A worker that follows the rules, and reads nothing but credit while it streams.
#[derive(Default)]
struct ModelWorker {
    inbox: BytesMut,
    calls: u64,
    waiting: VecDeque<(u64, Option<u64>)>,
    /// The running stream: its call, how many items it has to send, its credit, and what it has used of that.
    stream: Option<(u64, u64, u64, u64)>,
    sent: u64,
}

impl ModelWorker {
    fn read(&mut self, bytes: &[u8]) {
        self.inbox.extend_from_slice(bytes);
        while let Some(body) = frame::take(&mut self.inbox, 1 << 20).unwrap() {
            match FromClient::decode(&body).unwrap() {
                FromClient::Call { args, meta, .. } => {
                    let streams = |(_, items): &(u64, Option<u64>)| items.is_some();
                    assert!(self.stream.is_none() && !self.waiting.iter().any(streams));
                    self.calls += 1;
                    let items = meta.items.map(|_| args.parse::<(u64,)>().unwrap().0);
                    self.waiting.push_back((self.calls, items));
                }
                FromClient::Credit { call, credit } => {
                    if let Some((running, _, granted, _)) = &mut self.stream
                        && *running == call
                    {
                        assert!(credit > *granted);
                        *granted = credit;
                    }
                }
                FromClient::Cancel(call) => {
                    if let Some((running, left, ..)) = &mut self.stream
                        && *running == call
                    {
                        *left = 0;
                    }
                    // A worker finds it behind the call that it begins.
                    for (waiting, items) in &mut self.waiting {
                        if *waiting == call && items.is_some() {
                            *items = Some(0);
                        }
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Does the next step, if it does not wait.
    fn step(&mut self, length: usize) -> Option<Vec<u8>> {
        if let Some((call, left, credit, used)) = &mut self.stream {
            if *left == 0 {
                let answer = answer(*call);
                self.stream = None;
                return Some(answer);
            }
            let (message, cost) = item(*call, self.sent, length);
            return (*used < *credit).then(|| {
                *left -= 1;
                *used += cost;
                self.sent += 1;
                message
            });
        }
        match self.waiting.pop_front()? {
            (call, Some(items)) => {
                (self.stream, self.sent) = (Some((call, items, WINDOW, 0)), 0);
                self.step(length)
            }
            (call, None) => Some(answer(call)),
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Call,
    Stream(u64),
    /// The reader of one of the streams takes an item.
    Take(usize),
    Drop(usize),
    /// The worker takes a step, with items of this length.
    Step(usize),
}

proptest! {
    /// Whatever users make, read and drop, and however long items are: all calls end, and each stream that was not dropped
    /// has all its items in order.
    #[test]
    fn streams_and_pipelined_calls_never_wait_for_each_other(
        actions in prop::collection::vec(prop_oneof![
            1 => Just(Action::Call),
            1 => (0..40u64).prop_map(Action::Stream),
            4 => (0..8usize).prop_map(Action::Take),
            1 => (0..8usize).prop_map(Action::Drop),
            6 => prop_oneof![0..100usize, 0..400_000usize].prop_map(Action::Step),
        ], 0..80),
    ) {
        let (mut checkout, mut worker) = (Checkout::assigned(), ModelWorker::default());
        let mut calls = Vec::new();
        // Each with how many items it has, and how many were taken.
        let mut streams: Vec<(Seq, u64, u64)> = Vec::new();
        let settle = (0..).map(|step| match step % 3 {
            0 => Action::Step(100_000),
            _ => Action::Take(step / 3),
        });
        for (number, action) in actions.into_iter().chain(settle).enumerate() {
            match action {
                Action::Call => calls.push(checkout.call(10)),
                Action::Stream(items) => streams.push((checkout.stream(items), items, 0)),
                Action::Drop(which) if which < streams.len() => {
                    let (seq, ..) = streams.swap_remove(which);
                    checkout.session.abandon(seq);
                }
                Action::Drop(_) => {}
                Action::Step(length) => {
                    if let Some(message) = worker.step(length) {
                        checkout.receive(&message);
                    }
                }
                Action::Take(which) if !streams.is_empty() => {
                    let which = which % streams.len();
                    let (seq, items, taken) = streams[which];
                    if let Some(item) = checkout.item(seq) {
                        prop_assert_eq!(item, taken);
                        streams[which].2 += 1;
                    } else if let Some(outcome) = checkout.outcome(seq) {
                        prop_assert!(matches!(outcome, Outcome::Result { .. }), "{:?}", outcome);
                        prop_assert_eq!(taken, items);
                        streams.swap_remove(which);
                    }
                }
                Action::Take(_) => {}
            }
            checkout.process(Duration::ZERO);
            worker.read(&checkout.send_all());
            calls.retain(|&call| checkout.outcome(call).is_none());
            if streams.is_empty() && calls.is_empty() && number > 80 {
                break;
            }
            prop_assert!(number < 20_000, "{} streams and {} calls wait", streams.len(), calls.len());
        }
    }
}
