//! The time limit that counts from when a call begins to run.

use super::*;
use crate::error::TimeoutOption;
use crate::wire::death_notice::DeathNotice;

const RUN: Duration = Duration::from_secs(1);
const NOTICE_WAIT: Duration = Duration::from_secs(2);

/// A checkout whose calls have `RUN` to run, and `timeout` in all.
fn checkout(timeout: TimeLimit, time_keeper: TimeKeeper) -> Checkout {
    let options = SessionOptions {
        reuse_after_error: true,
        timeout,
        run_timeout: TimeLimit::new(RUN),
        grace: TimeLimit::new(GRACE),
        connect_timeout: TimeLimit::new(CONNECT_TIMEOUT),
        time_keeper,
    };
    Checkout { session: Session::new(options, false), events: Vec::new(), start: Instant::now() }
}

fn timed_out(outcome: Option<Outcome>) -> Option<(Duration, TimeoutOption)> {
    match outcome? {
        Outcome::Fatal { cause: FatalError::TimedOut { after, limit, .. }, .. } => {
            Some((after, limit))
        }
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn the_wait_for_a_worker_and_for_earlier_calls_does_not_count() {
    let mut checkout = checkout(TimeLimit::NEVER, TimeKeeper::Server);
    checkout.session.enter_queue();
    let (first, second) = (checkout.call(1), checkout.call(1));
    assert_eq!(checkout.session.poll_timeout(), None);
    checkout.session.assign(connection());
    checkout.send_all();
    // The worker may be in its setup, and only its server knows.
    checkout.process(RUN);
    assert_eq!(checkout.session.poll_timeout(), None);
    // From here on the second call runs, which was sent long before.
    let begun = RUN * 20;
    checkout.receive(&answer(1));
    checkout.process(begun);
    assert!(is_result_of(checkout.outcome(first).as_ref(), 1));
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + begun + RUN));
    let last = begun + RUN + GRACE + NOTICE_WAIT;
    checkout.session.handle_timeout(&checkout.after(begun + RUN));
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + last));
    checkout.session.handle_timeout(&checkout.after(last));
    let outcome = checkout.outcome(second);
    assert_eq!(timed_out(outcome), Some((RUN, TimeoutOption::RunTimeout)));
}

#[test]
fn a_call_that_is_not_sent_in_full_does_not_run() {
    let mut checkout = checkout(TimeLimit::NEVER, TimeKeeper::Server);
    checkout.session.assign(connection());
    checkout.call(1);
    checkout.send_all();
    checkout.receive(&answer(1));
    checkout.process(Duration::ZERO);
    checkout.call(9000);
    checkout.send(usize::MAX, 100);
    checkout.process(Duration::ZERO);
    assert_eq!(checkout.session.poll_timeout(), None);
    checkout.send_all();
    checkout.process(RUN);
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + RUN + RUN));
}

#[test]
fn a_server_without_time_limits_has_the_client_end_the_call() {
    let mut checkout = checkout(TimeLimit::NEVER, TimeKeeper::Client);
    checkout.session.assign(connection());
    let call = checkout.call(1);
    checkout.send_all();
    checkout.process(Duration::ZERO);
    checkout.session.handle_timeout(&checkout.after(RUN - Duration::from_nanos(1)));
    assert!(checkout.outcome(call).is_none());
    checkout.session.handle_timeout(&checkout.after(RUN));
    let outcome = checkout.outcome(call);
    assert_eq!(timed_out(outcome), Some((RUN, TimeoutOption::RunTimeout)));
}

#[test]
fn what_is_over_first_ends_the_call_and_is_named() {
    let soon = RUN / 2;
    for (timeout, after, limit) in
        [(soon, soon, TimeoutOption::Timeout), (RUN * 10, RUN, TimeoutOption::RunTimeout)]
    {
        let mut checkout = checkout(TimeLimit::new(timeout), TimeKeeper::Client);
        checkout.session.assign(connection());
        let call = checkout.call(1);
        checkout.send_all();
        checkout.process(Duration::ZERO);
        checkout.session.handle_timeout(&checkout.after(after));
        assert_eq!(timed_out(checkout.outcome(call)), Some((after, limit)));
    }
}

#[test]
fn the_notice_of_a_kill_says_which_time_was_over() {
    let both = TimeLimit::new(TIMEOUT);
    for (timeout, ran, expected) in [
        (TimeLimit::NEVER, RUN + GRACE, (RUN, TimeoutOption::RunTimeout)),
        (both, RUN + GRACE, (RUN, TimeoutOption::RunTimeout)),
        // It had waited for most of its time.
        (both, RUN / 2 + GRACE, (TIMEOUT, TimeoutOption::Timeout)),
    ] {
        let mut checkout = checkout(timeout, TimeKeeper::Server);
        checkout.session.assign(connection());
        let call = checkout.call(1);
        checkout.send_all();
        let notice = DeathNotice {
            calls: 1,
            ran: Some(ran.as_secs_f64()),
            timed_out: true,
            ..DeathNotice::default()
        };
        checkout.receive(&framed(|out| notice.put(out)));
        checkout.process(Duration::ZERO);
        assert_eq!(timed_out(checkout.outcome(call)), Some(expected));
    }
}

#[test]
fn a_worker_that_nobody_can_kill_has_the_grace() {
    let mut checkout = checkout(TimeLimit::NEVER, TimeKeeper::ClientAfterGrace);
    checkout.session.assign(connection());
    let call = checkout.call(1);
    checkout.send_all();
    checkout.process(Duration::ZERO);
    checkout.session.handle_timeout(&checkout.after(RUN));
    assert!(checkout.outcome(call).is_none());
    assert_eq!(checkout.session.poll_timeout(), Some(checkout.start + RUN + GRACE));
    checkout.session.handle_timeout(&checkout.after(RUN + GRACE));
    let outcome = checkout.outcome(call);
    assert_eq!(timed_out(outcome), Some((RUN, TimeoutOption::RunTimeout)));
}

#[test]
fn a_call_whose_code_was_interrupted_at_its_deadline_has_timed_out() {
    let interrupted = |ran: Duration| {
        let body = ErrorBody {
            kind: kind::INTERFACE,
            message: "DeadlineExceeded",
            stack: Some("in work"),
            timed_out: Some(ran.as_micros() as u64),
            ..Default::default()
        };
        framed(|out| native::put_error(out, Some(1), &body))
    };
    let timeout = TimeLimit::new(TIMEOUT);
    for (ran, expected) in
        [(RUN, (RUN, TimeoutOption::RunTimeout)), (RUN / 2, (TIMEOUT, TimeoutOption::Timeout))]
    {
        let mut checkout = checkout(timeout, TimeKeeper::Server);
        checkout.session.assign(connection());
        let (call, behind) = (checkout.call(1), checkout.call(1));
        checkout.send_all();
        checkout.receive(&interrupted(ran));
        checkout.process(Duration::ZERO);
        let outcome = checkout.outcome(call);
        let Some(Outcome::Fatal { cause: FatalError::TimedOut { hung: Some(hung), .. }, .. }) =
            &outcome
        else {
            panic!("{outcome:?}");
        };
        assert_eq!((hung.ran_for, hung.stack.as_deref()), (ran, Some("in work")));
        assert_eq!(timed_out(outcome), Some(expected));
        assert!(matches!(checkout.outcome(behind), Some(Outcome::Fatal { .. })));
        assert!(matches!(checkout.returned().0, Some(Return::Lose(Loss::Used))));
    }
    // The worker has a limit of its own.
    let mut checkout = checkout(TimeLimit::NEVER, TimeKeeper::Server);
    checkout.session.set_run_timeout(TimeLimit::NEVER);
    checkout.session.assign(connection());
    let call = checkout.call(1);
    checkout.send_all();
    checkout.receive(&interrupted(RUN));
    checkout.process(Duration::ZERO);
    assert!(matches!(checkout.outcome(call), Some(Outcome::Error { .. })));
}
