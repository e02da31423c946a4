//! Handshakes on connections that are in use: hellos that come late, in part or not at all.

use super::*;

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
    checkout.connection().handle_input_stopped(true);
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
    checkout.connection().handle_input_stopped(true);
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
        checkout.connection().handle_input_stopped(true);
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
        checkout.connection().handle_input_stopped(true);
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
fn the_time_of_a_call_that_may_have_begun_is_not_over_while_it_waits() {
    for (received, stage) in [(Some(hello()), Stage::Running), (None, Stage::Waiting)] {
        let mut checkout = Checkout::assigned_early();
        let call = checkout.call(1);
        checkout.send_all();
        let (after, limit, stage_before) = (TIMEOUT, TimeoutOption::Timeout, Stage::Waiting);
        let cause = FatalError::TimedOut { after, limit, stage: stage_before, hung: None };
        checkout.session.end(cause, Loss::Used);
        assert_eq!(checkout.process(Duration::ZERO), Some(Need::InputStop));
        checkout.connection().handle_input_stopped(true);
        match &received {
            Some(bytes) => checkout.receive(bytes),
            None => checkout.connection().handle_no_input(),
        }
        assert_eq!(checkout.process(Duration::ZERO), None);
        match checkout.outcome(call) {
            Some(Outcome::Fatal {
                cause: FatalError::TimedOut { stage: told, .. },
                may_have_run,
            }) => assert_eq!((told, may_have_run), (stage, received.is_some())),
            outcome => panic!("{outcome:?}"),
        }
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
        checkout.connection().handle_input_stopped(true);
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
        checkout.connection().handle_input_stopped(true);
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
