//! Calls: how they are sent, how they end, and whether another worker gets them.

use super::*;

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
        let is_error = matches!(checkout.outcome(first), Some(Outcome::Error { .. }));
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
    assert!(matches!(checkout.outcome(first), Some(Outcome::Error { .. })));
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

/// Ends a turn, in which no call runs any more, and another one of messages that nobody asked for.
fn end_turn(mut checkout: Checkout) {
    assert!(!checkout.session.handle_turn_over());
    checkout.session.begin_turn();
    checkout.receive(&announcement(0).repeat(1024));
    checkout.process(Duration::ZERO);
    assert!(checkout.session.handle_turn_over());
}

#[test]
fn an_answer_may_take_a_whole_turn() {
    let mut checkout = Checkout::assigned();
    let call = checkout.call(1);
    checkout.send_all();
    checkout.session.begin_turn();
    checkout.receive(&framed(|out| {
        native::put_ok(out, Some(1), ValueFormat::MessagePack);
        out.push(0xc6);
        // As long as a frame may be.
        let length = (1u32 << 20) - 64;
        out.extend(length.to_be_bytes());
        out.resize(out.len() + length as usize, 0);
    }));
    checkout.process(Duration::ZERO);
    assert!(checkout.outcome(call).is_some());
    end_turn(checkout);
}

/// The calls behind a failed one are skipped, and those that the client does not want any more.
#[test]
fn the_answers_of_many_skipped_calls_may_take_a_whole_turn() {
    for are_abandoned in [false, true] {
        let mut checkout = Checkout::assigned();
        checkout.call(1);
        let behind: Vec<_> = (0..2000).map(|_| checkout.call(1)).collect();
        let calls = calls_in(&checkout.send_all()) as u64;
        checkout.receive(&if are_abandoned { answer(1) } else { failure(1) });
        checkout.process(Duration::ZERO);
        if are_abandoned {
            behind.into_iter().for_each(|call| checkout.session.abandon(call));
        }
        checkout.session.begin_turn();
        for number in 2..=calls {
            checkout.receive(&framed(|out| native::put_skipped(out, Some(number))));
        }
        checkout.process(Duration::ZERO);
        end_turn(checkout);
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

#[test]
fn the_only_call_of_a_checkout_ends_it() {
    let done = || framed(native::put_done);
    for (is_single, is_accepted, length) in [
        (true, true, 10),
        (true, true, 100_000),
        (true, false, 10),
        (false, true, 10),
        (false, true, 100_000),
    ] {
        let mut checkout = Checkout::with(is_single);
        let limits = PeerLimits { accepts_single_calls: is_accepted, ..LIMITS };
        checkout.session.assign(connection_to(limits));
        let call = checkout.call(length);
        let sent = checkout.send_all();
        let mode = native::call_mode(&sent[frame::HEADER_LEN..]);
        let ends = is_single && is_accepted;
        assert_eq!(mode == Some(CallMode::Single), ends);
        checkout.receive(&answer(1));
        checkout.process(Duration::ZERO);
        assert!(is_result_of(checkout.outcome(call).as_ref(), 1));
        checkout.connection().put_done().unwrap();
        assert_eq!(checkout.send_all(), if ends { Vec::new() } else { done() });
        // The next checkout on the connection ends by itself.
        checkout.connection().put_done().unwrap();
        assert_eq!(checkout.send_all(), done());
    }
}

#[test]
fn an_error_has_the_time_limit_of_its_own_call() {
    for changed in [TimeLimit::NEVER, TimeLimit::new(Duration::from_secs(1))] {
        let mut checkout = Checkout::assigned();
        let call = checkout.call(1);
        checkout.send_all();
        checkout.session.set_timeout(changed);
        let last = TIMEOUT + GRACE + Duration::from_secs(2);
        for time in [TIMEOUT, last] {
            checkout.session.handle_timeout(&checkout.after(time));
        }
        let outcome = checkout.outcome(call);
        let is_right = matches!(
            outcome,
            Some(Outcome::Fatal { cause: FatalError::TimedOut { after: TIMEOUT, .. }, .. })
        );
        assert!(is_right, "{outcome:?}");
    }
}
