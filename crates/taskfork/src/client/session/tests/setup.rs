//! Workers that run `setup`: what is known of their calls when the time is over, or when they end.

use super::*;

/// How a call ended at its time limit: in which stage, and whether it may have run.
fn timed_out(outcome: Option<Outcome>) -> (Stage, bool) {
    match outcome {
        Some(Outcome::Fatal { cause: FatalError::TimedOut { stage, .. }, may_have_run }) => {
            (stage, may_have_run)
        }
        outcome => panic!("{outcome:?}"),
    }
}

/// A checkout whose call's time is over while its worker runs `setup`.
fn late(can_lose_answers: bool) -> (Checkout, Seq) {
    let mut checkout = Checkout::assigned_in_setup(can_lose_answers);
    let call = checkout.call(1);
    checkout.send_all();
    assert_eq!(checkout.process(Duration::ZERO), Some(Need::Input));
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    assert_eq!(checkout.process(TIMEOUT), Some(Need::InputStop));
    (checkout, call)
}

#[test]
fn a_call_whose_time_ends_during_setup_has_not_run() {
    let (mut checkout, call) = late(false);
    // The worker can send nothing more, and what it has sent by now is looked at.
    checkout.connection().handle_input_stopped(true);
    assert_eq!(checkout.process(TIMEOUT), Some(Need::ArrivedInput));
    checkout.connection().handle_no_input();
    assert_eq!(checkout.process(TIMEOUT), None);
    assert_eq!(timed_out(checkout.outcome(call)), (Stage::Setup, false));
    assert!(matches!(checkout.returned(), (Some(Return::Lose(Loss::Used)), false)));
}

#[test]
fn a_setup_that_ended_in_the_last_moment_counts() {
    for can_lose_answers in [false, true] {
        let (mut checkout, call) = late(can_lose_answers);
        checkout.connection().handle_input_stopped(!can_lose_answers);
        checkout.receive(&set_up());
        assert_eq!(checkout.process(TIMEOUT), None);
        assert_eq!(timed_out(checkout.outcome(call)), (Stage::Running, true));
    }
}

#[test]
fn a_server_far_away_says_what_has_begun() {
    for (calls, has_begun) in [(0, false), (1, true)] {
        let (mut checkout, call) = late(true);
        checkout.connection().handle_input_stopped(false);
        assert_eq!(checkout.process(TIMEOUT), Some(Need::Input));
        assert!(checkout.outcome(call).is_none());
        checkout.receive(&death_in_setup(calls));
        assert_eq!(checkout.process(TIMEOUT), None);
        assert_eq!(timed_out(checkout.outcome(call)).1, has_begun);
    }
}

#[test]
fn without_a_word_of_a_server_far_away_the_call_may_have_run() {
    let (mut checkout, call) = late(true);
    checkout.connection().handle_input_stopped(false);
    assert_eq!(checkout.process(TIMEOUT), Some(Need::Input));
    let due = checkout.session.poll_timeout().unwrap();
    assert!(due > checkout.start + TIMEOUT);
    checkout.session.handle_timeout(&Now::from(due));
    assert_eq!(checkout.process(TIMEOUT), None);
    assert!(timed_out(checkout.outcome(call)).1);

    let (mut checkout, call) = late(true);
    checkout.connection().handle_input_stopped(false);
    checkout.connection().handle_end(End::Closed { has_unread: false });
    assert_eq!(checkout.process(TIMEOUT), None);
    assert!(timed_out(checkout.outcome(call)).1);
}

#[test]
fn a_call_behind_setup_runs_as_any_other() {
    let mut checkout = Checkout::assigned_in_setup(false);
    let call = checkout.call(1);
    checkout.send_all();
    checkout.receive(&[set_up(), answer(1)].concat());
    checkout.process(Duration::ZERO);
    assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
    let call = checkout.call(1);
    checkout.send_all();
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    assert_eq!(checkout.process(TIMEOUT), Some(Need::Input));
    let end = TIMEOUT + GRACE + Duration::from_secs(2);
    checkout.session.handle_timeout(&checkout.after(end));
    assert_eq!(timed_out(checkout.outcome(call)), (Stage::Running, true));
}

#[test]
fn a_setup_that_fails_may_be_tried_again() {
    let mut checkout = Checkout::assigned_in_setup(false);
    let first = checkout.call(1);
    checkout.send_all();
    let error = ErrorBody { kind: kind::SETUP, message: "no", ..Default::default() };
    checkout.receive(&framed(|out| native::put_error(out, Some(1), &error)));
    checkout.process(Duration::ZERO);
    assert!(matches!(checkout.outcome(first), Some(Outcome::Error { .. })));
    let second = checkout.call(1);
    checkout.send_all();
    checkout.session.handle_timeout(&checkout.after(TIMEOUT));
    assert_eq!(checkout.process(TIMEOUT), Some(Need::InputStop));
    checkout.connection().handle_input_stopped(true);
    checkout.connection().handle_no_input();
    checkout.process(TIMEOUT);
    assert_eq!(timed_out(checkout.outcome(second)), (Stage::Setup, false));
}

#[test]
fn another_worker_gets_the_call_of_one_that_ends_during_setup() {
    for (can_lose_answers, is_moved) in [(false, true), (true, false)] {
        let mut checkout = Checkout::assigned_in_setup(can_lose_answers);
        let call = checkout.call(1);
        checkout.send_all();
        checkout.connection().handle_end(End::Closed { has_unread: false });
        checkout.process(Duration::ZERO);
        assert_eq!(checkout.returned().1, is_moved);
        let outcome = checkout.outcome(call);
        assert_eq!(may_have_run(outcome.as_ref()), (!is_moved).then_some(true));
    }
}

#[test]
fn a_worker_says_once_and_before_its_answers_that_its_setup_is_over() {
    let cases = [
        (true, [set_up(), set_up()].concat(), "which was not due"),
        (true, answer(1), "answered a call before it said that its setup is over"),
        (false, set_up(), "which was not due"),
    ];
    for (announces_setup, sent, expected) in cases {
        let mut checkout = Checkout::new();
        let config = ConnectionConfig { announces_setup, ..config() };
        checkout.session.assign(Box::new(Connection::new(config)));
        let call = checkout.call(1);
        checkout.send_all();
        checkout.receive(&sent);
        checkout.process(Duration::ZERO);
        let detail = violation(checkout.outcome(call), true);
        assert!(detail.contains(expected), "{detail}");
    }
}

#[test]
fn run_timeouts_begin_behind_setup() {
    let mut checkout = Checkout::assigned_in_setup(false);
    checkout.session.options.time_keeper = TimeKeeper::Client;
    checkout.session.set_timeout(TimeLimit::NEVER);
    checkout.session.set_run_timeout(TimeLimit::new(TIMEOUT));
    checkout.call(1);
    checkout.send_all();
    checkout.process(Duration::ZERO);
    assert_eq!(checkout.session.poll_timeout(), None);
    checkout.receive(&set_up());
    checkout.process(GRACE);
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + GRACE + TIMEOUT));
}
