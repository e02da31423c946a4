//! Both sides of a slot.

use std::sync::atomic::Ordering::SeqCst;

use proptest::prelude::*;

use super::layout::{
    MAX_WAITING, METHOD_WORDS, PROGRESS, PROGRESS_TEXT, RETIRE, SINCE, SKIPPED, STACK, STACK_READY,
    STATE, pack,
};
use super::server_slot::{CLOCK_TOLERANCE, Corruption};
use super::*;
use crate::clock::now;
use crate::progress::Progress;
use crate::sys::MAX_STACK_FRAMES;

/// Both sides of a new slot.
fn slot(board: &mut Scoreboard) -> (ServerSlot, WorkerSlot) {
    let server = board.allocate().unwrap();
    let worker = board.worker_slot(&server);
    (server, worker)
}

#[test]
fn a_kill_that_was_decided_for_one_call_cannot_hit_the_next() {
    let (mut server, worker) = slot(&mut Scoreboard::new(false).unwrap());
    worker.enter(Phase::Busy).unwrap();
    let judged = server.read().unwrap();
    worker.enter(Phase::Answering).unwrap();
    worker.enter(Phase::Held).unwrap();
    worker.enter(Phase::Busy).unwrap();

    assert!(!server.try_stop(judged, StopRequest::Kill));
    assert_eq!(worker.enter(Phase::Answering), Ok(()));
}

#[test]
fn a_condemned_worker_begins_nothing() {
    let (mut server, worker) = slot(&mut Scoreboard::new(false).unwrap());
    worker.enter(Phase::Idle).unwrap();
    let view = server.read().unwrap();
    assert!(server.try_stop(view, StopRequest::Kill));
    assert_eq!(worker.enter(Phase::Busy), Err(StopRequest::Kill));
    let view = server.read().unwrap();
    assert_eq!((view.phase, view.calls), (Phase::KillPending, 0));
}

#[test]
fn a_worker_shows_nothing_of_the_one_that_had_its_slot_before() {
    let mut board = Scoreboard::new(false).unwrap();
    let (server, worker) = slot(&mut board);
    worker.set_program(77);
    assert_eq!(server.program(), Some(77));
    // A worker can write to all of them.
    worker.words[..STACK].iter().for_each(|word| word.store(7, SeqCst));
    let index = server.index();
    board.quarantine(server);
    board.release_quarantined();
    let (server, worker) = slot(&mut board);
    assert_eq!((server.index(), server.program()), (index, None));
    let left = |at: &usize| ![STATE, SINCE].contains(at) && worker.words[*at].load(SeqCst) != 0;
    assert_eq!((0..STACK).find(left), None);
}

#[test]
fn a_call_goes_on_after_a_long_item_unless_the_server_has_stopped_it() {
    let (mut server, worker) = slot(&mut Scoreboard::new(false).unwrap());
    worker.enter(Phase::Busy).unwrap();
    let begun = server.read().unwrap();
    worker.enter(Phase::SendingItem).unwrap();
    assert_eq!(worker.resume_call(), Ok(()));
    assert_eq!(server.read(), Ok(begun));
    worker.enter(Phase::SendingItem).unwrap();
    let view = server.read().unwrap();
    assert!(server.try_stop(view, StopRequest::Kill));
    assert_eq!(worker.resume_call(), Err(StopRequest::Kill));
}

#[test]
fn the_server_reads_the_progress_of_the_current_call_only() {
    let (server, worker) = slot(&mut Scoreboard::new(false).unwrap());
    assert_eq!(server.progress(), None);
    for progress in [
        Progress::new(1, 3, "x".repeat(64)),
        Progress::new(2, None, "pages"),
        Progress::new(u64::MAX, u64::MAX - 1, ""),
    ] {
        worker.set_progress(&progress);
        assert_eq!(server.progress(), Some(progress));
    }
    worker.set_call("next", None, None);
    assert_eq!(server.progress(), None);
    // A worker that dies in the middle of a change, or changes it all the time, shows nothing.
    worker.set_progress(&Progress::new(1, 3, ""));
    worker.words[PROGRESS].store(7, SeqCst);
    assert_eq!(server.progress(), None);
    // One that writes nonsense shows text at least.
    worker.words[PROGRESS].store(8, SeqCst);
    worker.words[PROGRESS_TEXT..PROGRESS_TEXT + 8].iter().for_each(|it| it.store(!0, SeqCst));
    assert!(server.progress().is_some_and(|it| it.what.len() <= Progress::MAX_TEXT));
}

#[test]
fn slots_are_used_again() {
    let mut board = Scoreboard::new(false).unwrap();
    let (server, worker) = slot(&mut board);
    worker.enter(Phase::Busy).unwrap();
    server.mark_client_gone();
    board.quarantine(server);
    let (other, _) = slot(&mut board);
    assert_eq!(board.used, 2, "its descendants may live");
    board.quarantine(other);
    board.release_quarantined();

    let (mut server, worker) = slot(&mut board);
    assert_eq!(server.read().unwrap().phase, Phase::Handshake);
    assert!(!worker.is_client_gone());
    assert_eq!((board.used, board.free.len()), (2, 1));
}

#[test]
fn no_two_workers_share_a_page() {
    let mut board = Scoreboard::new(false).unwrap();
    let [(mut first, _), (_, other)] = [(); 2].map(|()| slot(&mut board));
    other.words.iter().for_each(|word| word.store(u64::MAX, SeqCst));
    assert_eq!(first.read().unwrap().phase, Phase::Handshake);
    assert_eq!((first.method(), first.checkouts()), (String::new(), 0));
}

#[test]
fn what_cannot_be_is_named() {
    let mut board = Scoreboard::new(false).unwrap();
    let mut look = |word: usize, value: u64| {
        let (mut server, worker) = slot(&mut board);
        worker.enter(Phase::Busy).unwrap();
        server.read().unwrap();
        worker.words[word].store(value, SeqCst);
        server.read().unwrap_err()
    };
    assert_eq!(look(STATE, 1 << 8 | 77), Corruption::Phase(77));
    assert_eq!(
        look(STATE, pack(Phase::KillPending, 1)),
        Corruption::UnorderedKill(Phase::KillPending)
    );
    assert_eq!(look(STATE, pack(Phase::Busy, 0)), Corruption::Calls { before: 1, now: 0 });
    assert_eq!(look(SINCE, u64::MAX), Corruption::Future);
    assert_eq!(look(STACK_READY, 1000), Corruption::Stack(999));
    assert_eq!(look(RETIRE, 8), Corruption::Retirement(8));
    assert_eq!(look(SKIPPED, u64::MAX), Corruption::Counter(u64::MAX));
    let text = look(STATE, 1 << 8 | 77).to_string();
    assert_eq!(text, "its slot in shared memory is corrupt: there is no phase 77");
}

proptest! {
    #[test]
    fn whatever_stands_in_a_slot_can_be_read(
        words in prop::collection::vec(
            prop_oneof![any::<u64>(), 0..20_u64, Just(u64::MAX)], 32),
    ) {
        let mut board = Scoreboard::new(false).unwrap();
        let (mut server, worker) = slot(&mut board);
        for (word, &value) in worker.words.iter().zip(&words) {
            word.store(value, SeqCst);
        }
        if let Ok(view) = server.read() {
            prop_assert!(view.since <= now() + CLOCK_TOLERANCE);
            prop_assert!(view.calls <= MAX_COUNT && server.skipped() <= MAX_COUNT);
            prop_assert_ne!(view.phase, Phase::KillPending);
        }
        prop_assert!(server.stack().is_none_or(|stack| stack.len() <= MAX_STACK_FRAMES));
        prop_assert!(server.method().len() <= METHOD_WORDS * 8 * 3);
        prop_assert!(server.reported_queue().is_none_or(|(_, _, waiting)| waiting <= MAX_WAITING));
        let _ = (server.deadline(), server.hard_deadline(), server.retirement());
        let _ = worker.enter(Phase::Busy);
    }
}
