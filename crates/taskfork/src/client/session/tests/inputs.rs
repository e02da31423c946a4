//! Calls with an input: when it may be sent, what ends it, and that neither side waits for the other for ever.

use std::collections::VecDeque;

use super::*;
use crate::blob::Blob;
use crate::wire::WireError;
use crate::wire::credit::{Allowance, WINDOW, Window, item_cost};
use crate::wire::native::InputEnd;
use crate::wire::values;

/// What a call with these arguments wants of the model of a worker.
type Args = (u64, u64, u64);

impl Checkout {
    /// Makes a call with an input, whose method sends so many items and takes at most so many.
    fn input_call(&mut self, args: Args) -> Seq {
        let mut frame = GatherFrame::default();
        frame::put(&mut frame.bytes, |out| {
            let items = (args.0 > 0).then_some(WINDOW);
            let meta = CallMeta { timeout: Some(0), items, input: true, ..CallMeta::default() };
            native::put_call(out, None, meta);
            native::put_argument_count(out, 3);
            for argument in [args.0, args.1, args.2] {
                out.extend(rmp_serde::to_vec(&argument).unwrap());
            }
        });
        let now = self.after(Duration::ZERO);
        let seq = self.session.submit(None, Operation::Call(frame, None), None, &now);
        if args.0 > 0 {
            self.session.read_items(seq);
        }
        self.session.stream_input(seq);
        seq
    }

    /// Sends an item of the input with this number. Panics if the worker does not want it.
    fn feed(&mut self, seq: Seq, number: u64, length: usize) {
        let put = self.session.put_input(seq, input_item(number, length));
        assert!(matches!(put, Ok(None)), "{put:?}");
    }
}

fn input_item(number: u64, length: usize) -> GatherFrame {
    let mut item = GatherFrame::default();
    item.write::<WireError>(1 << 20, |out| {
        native::put_item(out);
        values::encode(&(number, Blob::from(vec![0; length])), out).unwrap();
        Ok(())
    })
    .unwrap();
    item
}

fn credit(call: u64, credit: u64) -> Vec<u8> {
    framed(|out| native::put_credit(out, call, credit))
}

fn output(call: u64, number: u64, length: usize) -> (Vec<u8>, u64) {
    let mut message = framed(|out| {
        native::put_item(out);
        let value = (number, serde_bytes::ByteBuf::from(vec![0; length]));
        out.extend(rmp_serde::to_vec(&value).unwrap());
    });
    let body = message.len() - frame::HEADER_LEN;
    let cost = item_cost(body, 0);
    native::set_item_call(&mut message[frame::HEADER_LEN..], call);
    native::set_item_cost(&mut message[frame::HEADER_LEN..], cost);
    (message, cost)
}

fn messages_in(sent: &[u8]) -> Vec<String> {
    let mut bytes = BytesMut::from(sent);
    let mut messages = Vec::new();
    while let Some(body) = frame::take(&mut bytes, 1 << 20).unwrap() {
        messages.push(match FromClient::decode(&body).unwrap() {
            FromClient::Call { mode, .. } => format!("{mode:?}"),
            FromClient::Item(item) => format!("item of {}", item.call.unwrap()),
            FromClient::InputEnd(InputEnd { call, error: None }) => format!("end of {call}"),
            FromClient::InputEnd(end) => format!("{} in {}", end.error.unwrap(), end.call),
            FromClient::Cancel(call) => format!("cancel {call}"),
            other => format!("{other:?}"),
        });
    }
    assert!(bytes.is_empty());
    messages
}

#[test]
fn items_are_sent_when_the_worker_wants_them_and_nothing_else_follows() {
    let mut checkout = Checkout::assigned();
    let call = checkout.input_call((0, 9, 0));
    let behind = checkout.call(10);
    assert!(!checkout.session.wants_input(call));
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
    assert!(!checkout.session.wants_input(call), "without credit");
    checkout.receive(&credit(1, 1000));
    checkout.process(Duration::ZERO);
    assert!(checkout.session.wants_input(call) && !checkout.session.wants_input(behind));
    checkout.feed(call, 0, 2000);
    assert!(!checkout.session.wants_input(call), "with more than the credit");
    let unwanted = checkout.session.put_input(call, input_item(1, 1));
    assert!(matches!(unwanted, Ok(Some(_))), "{unwanted:?}");
    assert!(!checkout.session.end_input(call, None));
    checkout.receive(&credit(1, 100_000));
    checkout.process(Duration::ZERO);
    checkout.feed(call, 1, 1);
    checkout.feed(call, 2, 20_000);
    assert!(!checkout.session.wants_input(call), "behind a long item that is not sent");
    assert_eq!(messages_in(&checkout.send_all()), ["item of 1"; 3]);
    assert!(checkout.session.end_input(call, Some("no more")));
    assert!(!checkout.session.wants_input(call), "behind the end");
    assert_eq!(messages_in(&checkout.send_all()), ["no more in 1"]);
    checkout.receive(&answer(1));
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
    assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
}

#[test]
fn an_item_that_the_worker_cannot_receive_changes_nothing() {
    let mut checkout = Checkout::new();
    checkout.session.assign(connection_to(PeerLimits { max_send: 1000, ..LIMITS }));
    let call = checkout.input_call((0, 9, 0));
    checkout.send_all();
    checkout.receive(&credit(1, 1000));
    checkout.process(Duration::ZERO);
    let error = checkout.session.put_input(call, input_item(0, 2000)).unwrap_err();
    assert!(error.contains("the limit of a message is 1000"), "{error}");
    assert!(checkout.session.wants_input(call));
    assert!(checkout.session.end_input(call, None));
    assert_eq!(messages_in(&checkout.send_all()), ["end of 1"]);
}

#[test]
fn an_answer_ends_the_input_also_in_the_middle_of_an_item() {
    for sent in [0, 1, 10_000] {
        let mut checkout = Checkout::assigned();
        let call = checkout.input_call((0, 9, 0));
        let behind = checkout.call(10);
        checkout.send_all();
        checkout.receive(&credit(1, WINDOW));
        checkout.process(Duration::ZERO);
        checkout.feed(call, 0, 500_000);
        let mut bytes = checkout.send(1000, sent);
        checkout.receive(&answer(1));
        checkout.process(Duration::ZERO);
        assert!(!checkout.session.wants_input(call));
        assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
        bytes.extend(checkout.send(1000, usize::MAX));
        let expected: &[&str] =
            if sent == 0 { &["Sequential"] } else { &["item of 1", "Sequential"] };
        assert_eq!(messages_in(&bytes), expected);
        checkout.receive(&answer(2));
        checkout.process(Duration::ZERO);
        assert!(is_result_of(checkout.outcome(behind).as_ref(), 2));
    }
}

#[test]
fn a_dropped_call_is_cancelled_also_in_the_middle_of_an_item() {
    for sent in [0, 1, 10_000] {
        let mut checkout = Checkout::assigned();
        let call = checkout.input_call((0, 9, 0));
        checkout.send_all();
        checkout.receive(&credit(1, WINDOW));
        checkout.process(Duration::ZERO);
        checkout.feed(call, 0, 500_000);
        let mut bytes = checkout.send(1000, sent);
        checkout.session.abandon(call);
        assert!(!checkout.session.wants_input(call));
        bytes.extend(checkout.send_all());
        let expected: &[&str] = if sent == 0 { &["cancel 1"] } else { &["item of 1", "cancel 1"] };
        assert_eq!(messages_in(&bytes), expected);
    }
}

#[test]
fn credit_that_breaks_the_protocol_ends_the_connection() {
    let first = || credit(1, 1000);
    let cases = [
        (credit(2, 1000), "credit for an input that no call has"),
        ([first(), credit(1, 999)].concat(), "the worker took credit back"),
        ([announcement(1), first()].concat(), "files"),
    ];
    for (bytes, expected) in cases {
        let mut checkout = Checkout::assigned();
        let call = checkout.input_call((0, 9, 0));
        checkout.send_all();
        checkout.receive(&bytes);
        checkout.process(Duration::ZERO);
        match checkout.outcome(call) {
            Some(Outcome::Fatal { cause, .. }) => {
                assert!(cause.to_string().contains(expected), "{expected}: {cause}");
            }
            outcome => panic!("{expected}: {outcome:?}"),
        }
    }
    let mut checkout = Checkout::assigned();
    let call = checkout.call(10);
    checkout.send_all();
    checkout.receive(&first());
    checkout.process(Duration::ZERO);
    let detail = violation(checkout.outcome(call), true);
    assert!(detail.contains("an input that no call has"), "{detail}");
}

#[test]
fn a_call_moves_to_another_worker_only_before_anything_was_taken() {
    for (retries, has_credit, is_taken, expected) in [
        (0, false, false, true),
        (0, true, false, false),
        (1, true, false, true),
        (1, true, true, false),
    ] {
        let mut checkout = Checkout::assigned();
        checkout.session.set_retries(retries);
        let call = checkout.input_call((0, 9, 0));
        checkout.send_all();
        if has_credit {
            checkout.receive(&credit(1, WINDOW));
            checkout.process(Duration::ZERO);
        }
        if is_taken {
            checkout.feed(call, 0, 1);
        }
        // The worker says that it has not begun anything. But it has asked for items.
        checkout.connection().handle_end(End::Closed { has_unread: true });
        checkout.process(Duration::ZERO);
        let (_, is_replaced) = checkout.returned();
        assert_eq!(is_replaced, expected, "{retries} {has_credit} {is_taken}");
        if !is_replaced {
            assert_eq!(may_have_run(checkout.outcome(call).as_ref()), Some(true));
            continue;
        }
        // The other one must ask for items itself.
        checkout.session.assign(connection());
        assert_eq!(messages_in(&checkout.send_all()), ["Sequential"]);
        assert!(!checkout.session.wants_input(call));
        checkout.receive(&credit(1, 1000));
        checkout.process(Duration::ZERO);
        checkout.feed(call, 0, 1);
        assert_eq!(messages_in(&checkout.send_all()), ["item of 1"]);
    }
}

#[test]
fn a_worker_without_inputs_gets_no_call_with_one() {
    let mut checkout = Checkout::new();
    checkout.session.assign(connection_to(PeerLimits { takes_input: false, ..LIMITS }));
    let call = checkout.input_call((0, 9, 0));
    assert!(checkout.send_all().is_empty());
    checkout.process(Duration::ZERO);
    let outcome = checkout.outcome(call);
    assert!(
        matches!(&outcome, Some(Outcome::Unsendable(reason)) if reason.contains("streams an input")),
        "{outcome:?}"
    );
}

/// How many bytes a socket holds that the worker has not read.
const SOCKET: usize = 64 << 10;

/// A worker that reads only while it waits for something.
#[derive(Default)]
struct ModelWorker {
    socket: Vec<u8>,
    inbox: BytesMut,
    calls: u64,
    waiting: VecDeque<(u64, Option<Args>)>,
    cancelled: Vec<u64>,
    running: Option<Running>,
}

struct Running {
    call: u64,
    /// How many items it sends and takes yet.
    sends: u64,
    takes: u64,
    /// In which order.
    order: u64,
    allowance: Allowance,
    window: Window,
    has_asked: bool,
    queue: VecDeque<(u64, u64)>,
    has_ended: bool,
    sent: u64,
    taken: u64,
}

impl ModelWorker {
    fn read(&mut self) {
        self.inbox.extend_from_slice(&std::mem::take(&mut self.socket));
        while let Some(body) = frame::take(&mut self.inbox, 1 << 20).unwrap() {
            let streams = |(_, args): &(u64, Option<Args>)| args.is_some();
            match FromClient::decode(&body).unwrap() {
                FromClient::Call { args, meta, .. } => {
                    assert!(self.running.is_none() && !self.waiting.iter().any(streams));
                    self.calls += 1;
                    let args = meta.input.then(|| args.parse::<Args>().unwrap());
                    self.waiting.push_back((self.calls, args));
                }
                FromClient::Credit { call, credit } => {
                    let running = self.running.as_mut().filter(|running| running.call == call);
                    running.into_iter().for_each(|it| it.allowance.grant(credit).unwrap());
                }
                FromClient::Item(item) => {
                    assert!(item.call.unwrap() <= self.calls);
                    let Some(running) = &mut self.running else { continue };
                    assert!(item.call == Some(running.call) && !running.has_ended);
                    running.window.receive(item.cost, body.len(), 0).unwrap();
                    let (number, _): (u64, serde_bytes::ByteBuf) =
                        rmp_serde::from_slice(item.value).unwrap();
                    running.queue.push_back((number, item.cost));
                }
                FromClient::InputEnd(end) => {
                    let running = self.running.as_mut().filter(|running| running.call == end.call);
                    running.into_iter().for_each(|running| running.has_ended = true);
                }
                FromClient::Cancel(call) => {
                    self.cancelled.push(call);
                    let running = self.running.as_mut().filter(|running| running.call == call);
                    running.into_iter().for_each(|it| (it.sends, it.takes) = (0, 0));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Does the next step. If it has to wait for the client, it reads instead.
    fn step(&mut self, length: usize) -> Option<Vec<u8>> {
        let Some(running) = &mut self.running else {
            match self.waiting.pop_front() {
                None => self.read(),
                Some((call, None)) => return Some(answer(call)),
                Some((call, Some((sends, takes, order)))) => {
                    let is_cancelled = self.cancelled.contains(&call);
                    let (sends, takes) = if is_cancelled { (0, 0) } else { (sends, takes) };
                    self.running = Some(Running {
                        call,
                        sends,
                        takes,
                        order,
                        allowance: Allowance::new(WINDOW),
                        window: Window::default(),
                        has_asked: false,
                        queue: VecDeque::new(),
                        has_ended: false,
                        sent: 0,
                        taken: 0,
                    });
                }
            }
            return None;
        };
        let call = running.call;
        if !std::mem::replace(&mut running.has_asked, true) {
            return Some(credit(call, WINDOW));
        }
        let turn = (running.order >> ((running.sent + running.taken) % 64)) & 1 == 0;
        match (running.sends > 0, running.takes > 0) {
            (false, false) => {
                self.running = None;
                return Some(answer(call));
            }
            (sends, takes) if sends && (turn || !takes) => {
                if running.allowance.allows() {
                    let (message, cost) = output(call, running.sent, length);
                    running.allowance.spend(cost);
                    (running.sent, running.sends) = (running.sent + 1, running.sends - 1);
                    return Some(message);
                }
            }
            _ => {
                if let Some((number, cost)) = running.queue.pop_front() {
                    assert_eq!(number, running.taken);
                    (running.taken, running.takes) = (running.taken + 1, running.takes - 1);
                    return running.window.take(cost).map(|total| credit(call, total));
                }
                if running.has_ended {
                    running.takes = 0;
                    return None;
                }
            }
        }
        self.read();
        None
    }
}

#[derive(Debug, Clone)]
enum Action {
    Call,
    /// A call whose caller has so many items, and whose method sends and takes so many.
    Input(u64, Args),
    /// The caller of one of the calls takes an item.
    Take(usize),
    /// It sends one of this length, if it may.
    Feed(usize, usize),
    Drop(usize),
    /// The worker takes a step, with items of this length.
    Step(usize),
    /// The system takes so many bytes.
    Send(usize),
}

/// A call with an input, as its caller sees it.
struct Made {
    seq: Seq,
    /// How many items of the input there are, and how many were sent.
    items: u64,
    fed: u64,
    is_over: bool,
    /// How many the method sends, and how many were taken.
    sends: u64,
    taken: u64,
}

proptest! {
    /// Whatever users make, read, send and drop, however long items are and however many the methods take: all calls end,
    /// and each that was not dropped has all its items in order.
    #[test]
    fn inputs_streams_and_pipelined_calls_never_wait_for_each_other(
        actions in prop::collection::vec(prop_oneof![
            1 => Just(Action::Call),
            1 => (0..40_u64, 0..20_u64, 0..60_u64, any::<u64>())
                .prop_map(|(items, sends, takes, order)| Action::Input(items, (sends, takes, order))),
            4 => (0..8_usize).prop_map(Action::Take),
            6 => (0..8_usize, prop_oneof![0..100_usize, 0..400_000_usize])
                .prop_map(|(which, length)| Action::Feed(which, length)),
            1 => (0..8_usize).prop_map(Action::Drop),
            6 => prop_oneof![0..100_usize, 0..400_000_usize].prop_map(Action::Step),
            3 => (1..100_000_usize).prop_map(Action::Send),
        ], 0..80),
    ) {
        let (mut checkout, mut worker) = (Checkout::assigned(), ModelWorker::default());
        let mut calls = Vec::new();
        let mut inputs: Vec<Made> = Vec::new();
        let settle = (0..).map(|step| match step % 5 {
            0 => Action::Step(100_000),
            1 => Action::Feed(step / 5, 50_000),
            2 => Action::Take(step / 5),
            3 => Action::Send(usize::MAX),
            _ => Action::Step(10),
        });
        for (number, action) in actions.into_iter().chain(settle).enumerate() {
            match action {
                Action::Call => calls.push(checkout.call(10)),
                Action::Input(items, args) => {
                    let seq = checkout.input_call(args);
                    let (sends, taken) = (args.0, 0);
                    inputs.push(Made { seq, items, fed: 0, is_over: false, sends, taken });
                }
                Action::Drop(which) if which < inputs.len() => {
                    let made = inputs.swap_remove(which);
                    checkout.session.abandon(made.seq);
                }
                Action::Drop(_) => {}
                Action::Step(length) => {
                    if let Some(message) = worker.step(length) {
                        checkout.receive(&message);
                    }
                }
                Action::Feed(which, length) if !inputs.is_empty() => {
                    let which = which % inputs.len();
                    let made = &mut inputs[which];
                    if checkout.session.wants_input(made.seq) {
                        prop_assert!(!made.is_over);
                        made.is_over = made.fed == made.items;
                        match made.is_over {
                            true => prop_assert!(checkout.session.end_input(made.seq, None)),
                            false => checkout.feed(made.seq, made.fed, length),
                        }
                        made.fed += u64::from(!made.is_over);
                    }
                }
                Action::Take(which) if !inputs.is_empty() => {
                    let which = which % inputs.len();
                    let made = &mut inputs[which];
                    if let Some(item) = checkout.session.take_item(made.seq) {
                        let (item, _): (u64, serde_bytes::ByteBuf) =
                            rmp_serde::from_slice(&item.value).unwrap();
                        prop_assert_eq!(item, made.taken);
                        made.taken += 1;
                    } else if let Some(outcome) = checkout.outcome(made.seq) {
                        prop_assert!(matches!(outcome, Outcome::Result { .. }), "{:?}", outcome);
                        prop_assert_eq!(made.taken, made.sends);
                        inputs.swap_remove(which);
                    }
                }
                Action::Feed(..) | Action::Take(_) => {}
                Action::Send(most) => {
                    let room = SOCKET - worker.socket.len();
                    let sent = checkout.send(most.min(SOCKET), room.min(most));
                    worker.socket.extend(sent);
                }
            }
            checkout.process(Duration::ZERO);
            calls.retain(|&call| checkout.outcome(call).is_none());
            if inputs.is_empty() && calls.is_empty() && number > 80 {
                break;
            }
            prop_assert!(number < 50_000, "{} inputs and {} calls wait", inputs.len(), calls.len());
        }
    }
}
