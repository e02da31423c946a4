//! Random events against a model of the kernel and of workers, in virtual time.

mod world;

use std::time::Duration;

use proptest::prelude::*;

use self::world::{Step, World};
use super::*;
use crate::server::limits::Recycling;

const MILLISECOND: Duration = Duration::from_millis(1);

fn config(max_workers: usize) -> Config {
    Config {
        max_workers,
        spare_workers: 0,
        max_waiting: 5,
        max_handshakes: 3,
        handshake_timeout: Some(Duration::from_secs(1)),
        hung_worker_timeout: Some(Duration::from_secs(2)),
        shutdown_grace: Some(Duration::from_secs(3)),
        recycling: Recycling::default(),
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let limit = |milliseconds: u64| {
        prop_oneof![
            Just(None),
            (1..milliseconds).prop_map(|limit| Some(Duration::from_millis(limit))),
        ]
    };
    let counts = (1..5_usize, 0..3_usize, 1..6_usize, 1..4_usize);
    (counts, limit(1000), limit(4000), limit(4000), limit(4000), limit(1000)).prop_map(
        |(
            (max_workers, spare_workers, max_waiting, max_handshakes),
            handshake,
            hung,
            grace,
            age,
            idle,
        )| Config {
            max_workers,
            spare_workers,
            max_waiting,
            max_handshakes,
            handshake_timeout: handshake,
            hung_worker_timeout: hung,
            shutdown_grace: grace,
            recycling: Recycling {
                max_age: age.into(),
                max_idle: idle.into(),
                ..Recycling::default()
            },
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4_u32).prop_map(Step::Connect),
        2 => any::<bool>().prop_map(Step::Open),
        1 => any::<usize>().prop_map(Step::SendByte),
        1 => any::<usize>().prop_map(Step::CloseHandshake),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(worker, choice)| Step::Work { worker, choice }),
        2 => (any::<usize>(), 1..3000_u64)
            .prop_map(|(worker, limit)| Step::Call { worker, limit }),
        4 => any::<usize>().prop_map(Step::Exit),
        2 => any::<usize>().prop_map(Step::CloseClient),
        2 => any::<usize>().prop_map(Step::LeaveQueue),
        1 => any::<usize>().prop_map(Step::Corrupt),
        1 => any::<usize>().prop_map(Step::Dismiss),
        1 => any::<bool>().prop_map(Step::FailForks),
        1 => any::<bool>().prop_map(Step::Race),
        1 => any::<bool>().prop_map(Step::IgnoreOrders),
        1 => any::<u8>().prop_map(Step::SetAlarmAction),
        1 => Just(Step::FailAccept),
        1 => Just(Step::Restart),
        1 => any::<bool>().prop_map(Step::EndSuccessor),
        6 => any::<bool>().prop_map(|had_events| Step::EndTurn { had_events }),
        5 => prop_oneof![4 => 1..1500_u64, 1 => 1..7000_u64].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// The checks are in [`World`]: after each action, each turn and each moment.
    #[test]
    fn whatever_happens_every_client_is_served_in_turn_and_no_deadline_is_late(
        config in configs(), steps in steps(),
    ) {
        let mut world = World::new(config);
        steps.into_iter().for_each(|step| world.run(step));
        world.shut_down();
    }
}

#[test]
fn a_client_that_comes_while_others_wait_does_not_overtake_them() {
    let mut world = World::new(config(1));
    for _ in 0..3 {
        world.run(Step::Connect(1));
    }
    assert_eq!((world.supervisor.workers(), world.supervisor.waiting()), (1, 2));
    world.run(Step::Exit(0));
    world.run(Step::Connect(2));
    world.run(Step::EndTurn { had_events: true });
    assert_eq!(world.served, [ClientKey(1), ClientKey(2)]);
}

#[test]
fn a_client_beyond_the_queue_is_refused() {
    let mut world = World::new(config(1));
    (0..8).for_each(|_| world.run(Step::Connect(1)));
    assert_eq!(world.refused, [ClientKey(7), ClientKey(8)]);
}

#[test]
fn the_oldest_of_too_many_silent_connections_ends() {
    let mut world = World::new(config(1));
    (0..5).for_each(|_| world.run(Step::Open(true)));
    assert_eq!(world.ended, [ConnectionKey(1), ConnectionKey(2)]);
    world.run(Step::SendByte(0));
    world.run(Step::Wait(2000));
    assert_eq!(world.ended.last(), Some(&ConnectionKey(3)), "its time began with its first byte");
    assert_eq!(world.ended.len(), 3);
}

#[test]
fn a_place_goes_to_the_client_that_it_was_made_for() {
    let mut world = World::new(config(2));
    // The first in the queue has as many workers as it may have, and the second has none.
    for program in [1, 1, 1, 2] {
        world.run(Step::Connect(program));
    }
    for worker in [0, 1] {
        world.run(Step::Work { worker, choice: 0 });
        world.run(Step::Call { worker, limit: 1000 });
        world.run(Step::Work { worker, choice: 2 });
    }
    world.run(Step::Wait(400));
    assert_eq!(world.evicted, 1);
    let retired = world.retired().unwrap();
    world.run(Step::Exit(retired));
    world.run(Step::EndTurn { had_events: false });
    assert_eq!(world.served, [ClientKey(1), ClientKey(2), ClientKey(4)]);
}

#[test]
fn a_place_is_made_for_the_client_that_has_waited_longest() {
    let mut world = World::new(config(1));
    world.run(Step::Connect(1));
    world.run(Step::Call { worker: 0, limit: 1000 });
    // Nobody makes room for it yet.
    world.run(Step::Connect(2));
    world.run(Step::Work { worker: 0, choice: 2 });
    world.run(Step::Work { worker: 0, choice: 1 });
    world.run(Step::Wait(30));
    assert_eq!(world.evicted, 0);
    world.run(Step::Connect(3));
    assert_eq!(world.evicted, 1);
    world.run(Step::Exit(0));
    world.run(Step::EndTurn { had_events: true });
    assert_eq!(world.served, [ClientKey(1), ClientKey(2)]);
}

#[test]
fn a_second_request_kills_and_the_first_lets_checkouts_end() {
    let mut world = World::new(config(2));
    world.run(Step::Connect(1));
    world.run(Step::Call { worker: 0, limit: 10_000 });
    world.supervisor.handle_end_request(false, world.now);
    world.drain();
    assert!(!world.is_killed(1));
    world.supervisor.handle_end_request(false, world.now);
    world.drain();
    assert!(!world.is_killed(1));
    world.supervisor.handle_end_request(true, world.now);
    world.drain();
    assert!(world.is_killed(1) && world.supervisor.killed() == 1);
    assert!(!world.supervisor.is_finished());
    world.run(Step::Exit(0));
    assert!(world.supervisor.is_finished());
}

#[test]
fn a_worker_that_ignores_its_clients_end_is_killed_though_no_slot_was_due() {
    let mut world = World::new(Config { hung_worker_timeout: None, ..config(2) });
    world.run(Step::IgnoreOrders(true));
    world.run(Step::Connect(1));
    world.run(Step::Work { worker: 0, choice: 1 });
    world.run(Step::Wait(1));
    world.run(Step::CloseClient(0));
    world.run(Step::Wait(6000));
    assert!(world.is_killed(1));
}

#[test]
fn the_end_of_the_grace_kills() {
    let mut world = World::new(config(2));
    world.run(Step::Connect(1));
    world.run(Step::Call { worker: 0, limit: 10_000 });
    world.supervisor.handle_control_end(world.now);
    world.drain();
    world.supervisor.handle_slots([], Duration::ZERO, world.now);
    let grace = Duration::from_secs(3);
    assert_eq!(world.supervisor.poll_timeout(world.now), Some(grace));
    world.supervisor.handle_timeout(world.now + grace - MILLISECOND);
    assert_eq!(world.supervisor.poll_action(), None);
    world.supervisor.handle_timeout(world.now + grace);
    assert_eq!(world.supervisor.poll_action(), Some(Action::Kill { worker: 1 }));
}

#[test]
fn a_request_to_restart_replaces_a_server_that_is_not_ready_and_reaches_one_that_is() {
    let mut supervisor = Supervisor::new(config(1));
    let actions = |supervisor: &mut Supervisor| {
        std::iter::from_fn(|| supervisor.poll_action()).collect::<Vec<_>>()
    };
    supervisor.handle_restart_request();
    assert_eq!(actions(&mut supervisor), [Action::StartSuccessor]);
    supervisor.handle_restart_request();
    let cancel = Action::CancelSuccessor { is_replaced: true };
    assert_eq!(actions(&mut supervisor), [cancel, Action::StartSuccessor]);
    supervisor.handle_successor_failed();
    assert!(supervisor.is_serving());
    supervisor.handle_restart_request();
    assert_eq!(actions(&mut supervisor), [Action::StartSuccessor]);
    supervisor.handle_successor_ready(MILLISECOND);
    assert_eq!(actions(&mut supervisor), [Action::CloseConnections]);
    supervisor.handle_restart_request();
    assert_eq!(actions(&mut supervisor), [Action::ForwardRestart]);
    assert!(supervisor.is_finished());
}

#[test]
fn a_shutdown_ends_a_new_server_that_is_not_ready() {
    let mut supervisor = Supervisor::new(config(1));
    supervisor.handle_restart_request();
    assert_eq!(supervisor.poll_action(), Some(Action::StartSuccessor));
    supervisor.handle_parent_exit(MILLISECOND);
    let cancel = Action::CancelSuccessor { is_replaced: false };
    for expected in [cancel, Action::NotifyStopping, Action::CloseConnections] {
        assert_eq!(supervisor.poll_action(), Some(expected));
    }
}

#[test]
fn a_spare_worker_is_forked_in_a_quiet_turn_and_gets_the_next_client() {
    let mut world = World::new(Config { spare_workers: 1, ..config(2) });
    world.run(Step::EndTurn { had_events: true });
    assert_eq!(world.supervisor.workers(), 0);
    world.run(Step::EndTurn { had_events: false });
    assert_eq!(world.supervisor.workers(), 1);
    // A fork is faster than the rest of its setup.
    world.run(Step::Connect(1));
    assert_eq!(world.supervisor.workers(), 2);
    world.run(Step::Work { worker: 0, choice: 0 });
    world.run(Step::Exit(1));
    world.run(Step::Connect(1));
    assert_eq!((world.supervisor.workers(), world.supervisor.forked()), (1, 2));
}

#[test]
fn a_worker_takes_little_memory() {
    assert!(size_of::<Worker>() <= 104, "{}", size_of::<Worker>());
}
