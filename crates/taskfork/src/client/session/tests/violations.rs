//! Messages that no worker may send: each ends the connection, and its error names it.

use super::*;

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
        assert!(matches!(checkout.outcome(first), Some(Outcome::Error { .. })));
        let next = checkout.call(3);
        checkout.send_all();
        checkout.receive(&message);
        checkout.process(Duration::ZERO);
        let error = violation(checkout.outcome(next), true);
        assert!(error.contains(what), "{what}: {error}");
    }
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
