//! Calls that are made again after their workers have died.

use super::*;
use crate::error::{Activity, End as ProcessEnd};
use crate::wire::death_notice::DeathNotice;

/// A call of its own that may be made again so many times, and was sent.
fn sent(retries: u32) -> (Checkout, Seq) {
    let mut checkout = Checkout::with(true);
    checkout.session.set_retries(retries);
    checkout.session.assign(connection());
    let call = checkout.call(1);
    checkout.session.close();
    checkout.send_all();
    (checkout, call)
}

/// The notice of a death, after the worker has begun so many calls.
fn death(calls: u64, timed_out: bool) -> Vec<u8> {
    let notice = DeathNotice {
        pid: 1,
        end: ProcessEnd::Signaled(9),
        during: Some(Activity::Call),
        calls,
        timed_out,
        ..DeathNotice::default()
    };
    framed(|out| notice.put(out))
}

fn die(checkout: &mut Checkout, notice: &[u8]) {
    checkout.receive(notice);
    checkout.process(Duration::ZERO);
}

#[test]
fn a_call_that_may_have_run_is_sent_to_another_worker_as_often_as_allowed() {
    let (mut checkout, call) = sent(2);
    for _ in 0..2 {
        die(&mut checkout, &death(1, false));
        assert!(matches!(checkout.returned(), (Some(Return::Lose(Loss::Used)), true)));
        checkout.session.assign(connection());
        assert_eq!(calls_in(&checkout.send_all()), 1);
    }
    die(&mut checkout, &death(1, false));
    assert!(matches!(checkout.returned(), (Some(Return::Lose(_)), false)));
    assert_eq!(may_have_run(checkout.outcome(call).as_ref()), Some(true));
}

#[test]
fn a_worker_that_has_not_begun_it_does_not_count() {
    let (mut checkout, call) = sent(1);
    for calls in [0, 1, 0] {
        die(&mut checkout, &death(calls, false));
        assert!(checkout.returned().1);
        checkout.session.assign(connection());
        checkout.send_all();
    }
    die(&mut checkout, &answer(1));
    assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
}

#[test]
fn a_call_whose_time_is_over_is_not_made_again() {
    let (mut checkout, call) = sent(9);
    die(&mut checkout, &death(1, true));
    let outcome = checkout.outcome(call);
    assert!(matches!(
        outcome,
        Some(Outcome::Fatal { cause: FatalError::TimedOut { .. }, may_have_run: true })
    ));
}

#[test]
fn a_peer_that_breaks_the_protocol_is_no_dead_worker() {
    let (mut checkout, call) = sent(9);
    die(&mut checkout, &answer(7));
    violation(checkout.outcome(call), true);
}

#[test]
fn an_error_is_an_answer() {
    let (mut checkout, call) = sent(9);
    die(&mut checkout, &failure(1));
    assert!(matches!(checkout.outcome(call), Some(Outcome::Error { .. })));
}

#[test]
fn a_call_that_waits_for_its_second_worker_may_have_run() {
    let (mut checkout, call) = sent(9);
    die(&mut checkout, &death(1, false));
    assert!(checkout.returned().1);
    checkout.session.enter_queue();
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    let event = checkout.session.poll_event();
    assert!(matches!(event, Some(Event::WaitTimedOut { .. })), "{event:?}");
    checkout.session.end(FatalError::ClientClosed, Loss::Used);
    assert_eq!(may_have_run(checkout.outcome(call).as_ref()), Some(true));
}

#[test]
fn what_becomes_of_the_worker_is_what_its_worst_error_says() {
    let failure = |call, keeps_worker| {
        let error = ErrorBody { kind: kind::INTERFACE, keeps_worker, ..Default::default() };
        framed(|out| native::put_error(out, Some(call), &error))
    };
    for keeps in [[true, true], [true, false], [false, true]] {
        let mut checkout = Checkout::replacing();
        checkout.session.assign(connection());
        for (number, keeps) in (1..).zip(keeps) {
            let call = checkout.call(1);
            checkout.send_all();
            die(&mut checkout, &failure(number, keeps));
            assert!(matches!(checkout.outcome(call), Some(Outcome::Error { .. })));
        }
        checkout.session.close();
        checkout.session.finish_if_done();
        checkout.process(Duration::ZERO);
        let (returned, _) = checkout.returned();
        let is_kept = matches!(returned, Some(Return::Release));
        assert_eq!(is_kept, keeps == [true, true], "{returned:?}");
    }
}
