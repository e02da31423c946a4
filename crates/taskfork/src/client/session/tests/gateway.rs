//! What a gateway tells about the end of a worker's stream.

use super::*;

/// How the calls of a checkout ended whose worker had answered one and had so many more. `end` is made of what was sent.
fn ends(calls: usize, end: impl FnOnce(u64) -> Vec<u8>) -> Vec<Option<bool>> {
    let mut checkout = Checkout::assigned_remotely();
    checkout.call(1);
    let mut sent = checkout.send_all().len();
    checkout.receive(&answer(1));
    checkout.process(Duration::ZERO);
    let calls: Vec<_> = (0..calls).map(|_| checkout.call(1)).collect();
    sent += checkout.send_all().len();
    checkout.receive(&end(sent as u64));
    checkout.connection().handle_end(End::Closed { has_unread: false });
    checkout.process(Duration::ZERO);
    calls.into_iter().map(|call| may_have_run(checkout.outcome(call).as_ref())).collect()
}

#[test]
fn a_call_may_have_run_if_the_worker_has_read_it() {
    assert_eq!(ends(1, |sent| relay::end_message(sent, false)), [Some(true)]);
    assert_eq!(ends(1, |sent| relay::end_message(sent, true)), [Some(false)]);
    assert_eq!(ends(1, |sent| relay::end_message(sent - 1, false)), [Some(false)]);
    assert_eq!(ends(1, |_| Vec::new()), [Some(true)], "the gateway itself is gone");
}

#[test]
fn of_several_calls_only_the_first_may_have_run() {
    let first = [Some(true), Some(false), Some(false)];
    assert_eq!(ends(3, |sent| relay::end_message(sent, false)), first);
    // Which of them are unread is not known.
    assert_eq!(ends(3, |sent| relay::end_message(sent, true)), first);
    assert_eq!(ends(3, |sent| relay::end_message(sent - 1, false)), first);
    assert_eq!(ends(3, |_| Vec::new()), [Some(true); 3], "the gateway itself is gone");
}

#[test]
fn an_end_that_cannot_be_ends_the_connection() {
    let cases = [
        (Checkout::assigned_remotely as fn() -> Checkout, 1, "passed on more than was sent"),
        (Checkout::assigned, 0, "there is no gateway"),
    ];
    for (assigned, more, what) in cases {
        let mut checkout = assigned();
        let call = checkout.call(1);
        let sent = checkout.send_all().len() as u64;
        checkout.receive(&relay::end_message(sent + more, false));
        checkout.process(Duration::ZERO);
        let error = violation(checkout.outcome(call), true);
        assert!(error.contains(what), "{error}");
    }
}
