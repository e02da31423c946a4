//! Random sequences of events against what a pool must never do.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

const NO_LIMITS: PoolLimits = PoolLimits {
    min_workers: 0,
    max_workers: 1,
    max_checkouts: None,
    max_queue: None,
    overload: Overload::RefuseNewest,
    aging: Duration::from_secs(1),
};

fn worker<C, W>(checked_out: CheckedOut<C, W>) -> Lease<C> {
    match checked_out {
        CheckedOut::Worker(lease) => lease,
        _ => panic!("there is no idle worker"),
    }
}

fn pool(min_workers: usize, max_workers: usize) -> Pool<u64, u64, &'static str> {
    Pool::new(PoolLimits { min_workers, max_workers, ..NO_LIMITS })
}

#[derive(Debug, Clone)]
enum Event {
    CheckOut,
    GiveUp(prop::sample::Index),
    Permit,
    Connected(prop::sample::Index),
    Failed(prop::sample::Index),
    Release(prop::sample::Index),
    Decline(prop::sample::Index),
    Lose(prop::sample::Index),
    LoseAndWaitAgain(prop::sample::Index),
    HandshakeFailed(prop::sample::Index),
    IdleDeath(prop::sample::Index),
    Resize(usize, usize),
    CancelAttempts,
    Expire,
    Later(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => Just(Event::CheckOut),
        1 => index().prop_map(Event::GiveUp),
        4 => Just(Event::Permit),
        4 => index().prop_map(Event::Connected),
        1 => index().prop_map(Event::Failed),
        3 => index().prop_map(Event::Release),
        1 => index().prop_map(Event::Decline),
        1 => index().prop_map(Event::Lose),
        1 => index().prop_map(Event::LoseAndWaitAgain),
        1 => index().prop_map(Event::HandshakeFailed),
        1 => index().prop_map(Event::IdleDeath),
        1 => (0usize..3, 1usize..5).prop_map(|(min, more)| Event::Resize(min, min + more)),
        1 => Just(Event::CancelAttempts),
        1 => Just(Event::Expire),
        1 => (0u16..2000).prop_map(Event::Later),
    ]
}

/// The pool with all rights it has given out, and who must be waiting in which order.
struct Model {
    pool: Pool<u64, u64, &'static str>,
    limits: PoolLimits,
    now: Instant,
    permits: Vec<Permit>,
    leases: Vec<Lease<u64>>,
    idle: Vec<WorkerKey>,
    waiting: VecDeque<(QueuePlace, u64)>,
    /// Those that had a worker before. They wait in the order in which they came back.
    returned: BTreeSet<u64>,
    serial: u64,
    /// Workers that must not be used again.
    expired: Vec<WorkerKey>,
}

impl Model {
    fn new(limits: PoolLimits) -> Self {
        Self {
            pool: Pool::new(limits),
            limits,
            now: Instant::now(),
            permits: Vec::new(),
            leases: Vec::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            returned: BTreeSet::new(),
            serial: 0,
            expired: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        let startable = match self.pool.backoff.next {
            Some(_) => self.permits.len(),
            None => self.limits.max_workers.saturating_sub(self.leases.len()),
        };
        self.limits.max_queue.is_some_and(|most| self.waiting.len() >= most + startable)
    }

    /// How many of those that wait had a worker before. They are the first ones.
    fn ahead(&self) -> usize {
        self.waiting.iter().take_while(|(_, waiter)| self.returned.contains(waiter)).count()
    }

    fn apply(&mut self, event: Event) {
        self.serial += 1;
        let serial = self.serial;
        match event {
            Event::CheckOut => match self.pool.check_out(0, || (serial, self.now)) {
                CheckedOut::Worker(lease) => {
                    assert!(self.waiting.is_empty(), "overtook those who wait");
                    self.take(lease);
                }
                CheckedOut::Queued(ticket, evicted) => {
                    let full = self.is_full();
                    let first = self.ahead();
                    let oldest = full.then(|| self.waiting.remove(first)).flatten();
                    assert_eq!(evicted, oldest.map(|(_, waiter)| waiter));
                    assert!(!full || self.limits.overload == Overload::DropOldest);
                    self.waiting.push_back((ticket, serial));
                }
                CheckedOut::Refused => {
                    assert!(self.is_full(), "refused though there is room");
                    let drops = self.limits.overload == Overload::DropOldest;
                    assert!(!drops || self.waiting.len() == self.ahead());
                }
                CheckedOut::Closed => panic!("the pool is open"),
            },
            Event::GiveUp(index) if !self.waiting.is_empty() => {
                let (ticket, waiter) =
                    self.waiting.remove(index.index(self.waiting.len())).unwrap();
                assert_eq!(self.pool.leave_queue(ticket), Some(waiter));
                assert_eq!(self.pool.leave_queue(ticket), None);
            }
            Event::Permit => self.permits.extend(self.pool.permit(self.now)),
            Event::Connected(index) if !self.permits.is_empty() => {
                let permit = self.permits.swap_remove(index.index(self.permits.len()));
                let key = permit.key();
                let released = self.pool.connected(permit, serial, self.now);
                self.settle(released, key);
            }
            Event::Failed(index) if !self.permits.is_empty() => {
                let permit = self.permits.swap_remove(index.index(self.permits.len()));
                self.pool.failed(permit, "no", self.now);
                assert!(self.pool.unreachable().is_some());
            }
            Event::Release(index) if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(index.index(self.leases.len()));
                let key = lease.key;
                let released = self.pool.release(lease);
                self.settle(released, key);
            }
            Event::Decline(index) if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(index.index(self.leases.len()));
                let key = lease.key;
                let released = self.pool.decline(lease);
                self.settle(released, key);
            }
            Event::Lose(index) if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(index.index(self.leases.len()));
                self.pool.lose(lease, Loss::Used, self.now);
            }
            Event::LoseAndWaitAgain(index) if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(index.index(self.leases.len()));
                self.pool.lose(lease, Loss::Unused, self.now);
                match self.pool.check_out_again(serial, self.now) {
                    Ok((_, lease)) => self.take(lease),
                    Err(ticket) => {
                        let ahead = self.ahead();
                        self.returned.insert(serial);
                        self.waiting.insert(ahead, (ticket, serial));
                    }
                }
            }
            Event::HandshakeFailed(index) if !self.leases.is_empty() => {
                let lease = self.leases.swap_remove(index.index(self.leases.len()));
                self.pool.handshake_failed(lease, "no", self.now);
                assert!(self.pool.unreachable().is_some() && self.pool.permit(self.now).is_none());
            }
            Event::IdleDeath(index) if !self.idle.is_empty() => {
                let key = self.idle.swap_remove(index.index(self.idle.len()));
                assert!(self.pool.lose_idle(key, self.now).is_some());
                assert!(self.pool.lose_idle(key, self.now).is_none());
            }
            Event::Resize(min_workers, max_workers) => {
                (self.limits.min_workers, self.limits.max_workers) = (min_workers, max_workers);
                let before = self.idle.len() + self.leases.len();
                let closed = self.pool.resize(min_workers, max_workers).len();
                let surplus = before.saturating_sub(max_workers);
                assert_eq!(closed, surplus.min(self.idle.len()), "idle workers leave at once");
                self.idle.retain(|&key| self.pool.idle_mut(key).is_some());
            }
            Event::CancelAttempts if self.pool.has_surplus_attempt() => {
                self.permits.drain(..).for_each(|permit| self.pool.cancelled(permit));
            }
            Event::Expire => {
                assert_eq!(self.pool.expire_workers().len(), self.idle.len());
                self.idle.clear();
                self.expired.extend(self.leases.iter().map(|lease| lease.key));
                self.expired.extend(self.permits.iter().map(Permit::key));
            }
            Event::Later(millis) => self.now += Duration::from_millis(millis.into()),
            _ => {}
        }
        self.check();
    }

    fn take(&mut self, lease: Lease<u64>) {
        assert!(self.leases.iter().all(|held| held.key != lease.key), "held twice");
        self.idle.retain(|&key| key != lease.key);
        self.leases.push(lease);
    }

    fn settle(&mut self, released: Released<u64, u64>, key: WorkerKey) {
        let is_expired = self.expired.contains(&key);
        assert!(!is_expired || matches!(released, Released::Expired(_)), "an old worker is used");
        match released {
            Released::Idle => {
                assert!(self.waiting.is_empty(), "a worker idles while somebody waits");
                self.idle.push(key);
            }
            Released::Assigned(waiter, lease) => {
                let (_, first) = self.waiting.pop_front().expect("somebody waits");
                assert_eq!(waiter, first, "first come, first served");
                self.take(lease);
            }
            Released::Expired(_) => {
                let others = self.idle.len() + self.leases.len();
                let is_surplus = others >= self.limits.max_workers;
                assert!(is_expired || is_surplus || self.limits.max_checkouts.is_some());
            }
        }
    }

    fn check(&self) {
        let stats = self.pool.counts();
        assert_eq!(stats.busy, self.leases.len());
        assert_eq!(stats.connecting, self.permits.len());
        assert_eq!(stats.queued, self.waiting.len());
        assert_eq!(stats.idle, self.idle.len());
        // Only workers that are held, and attempts to connect, may be too many after a change.
        let most = self.limits.max_workers;
        assert!(stats.busy + stats.idle <= most || stats.idle == 0);
        let all = stats.busy + stats.connecting + stats.idle;
        assert!(all <= most || stats.connecting == 0 || self.pool.has_surplus_attempt());
        assert!(all < most || !self.pool.needs_worker());
        assert_eq!(self.pool.workers.len(), stats.busy + stats.connecting + stats.idle);
    }

    /// Every waiting checkout gets a worker once connections succeed.
    fn drain(mut self) {
        for _ in 0..10_000 {
            if self.waiting.is_empty() {
                return;
            }
            self.now += MAX_RETRY_DELAY;
            self.apply(Event::Permit);
            match (self.permits.pop(), self.leases.pop()) {
                (Some(permit), lease) => {
                    self.leases.extend(lease);
                    let key = permit.key();
                    let released = self.pool.connected(permit, 0, self.now);
                    self.settle(released, key);
                }
                (None, Some(lease)) => {
                    let key = lease.key;
                    let released = self.pool.release(lease);
                    self.settle(released, key);
                }
                (None, None) => {}
            }
        }
        panic!("{} still wait", self.waiting.len());
    }
}

proptest! {
    #[test]
    fn no_sequence_of_events_breaks_the_pool(
        min_workers in 0usize..3,
        more in 1usize..5,
        max_checkouts in prop_oneof![Just(None), (1u64..4).prop_map(Some)],
        max_queue in proptest::option::of(0usize..6),
        drop_oldest in any::<bool>(),
        events in proptest::collection::vec(event(), 0..300),
    ) {
        let overload =
            if drop_oldest { Overload::DropOldest } else { Overload::RefuseNewest };
        let max_workers = min_workers + more;
        let limits = PoolLimits { min_workers, max_workers, max_checkouts, max_queue, overload, ..NO_LIMITS };
        let mut model = Model::new(limits);
        for event in events {
            model.apply(event);
        }
        model.drain();
    }
}

#[test]
fn a_closed_pool_connects_and_lends_nothing_and_is_drained_when_all_have_come_back() {
    let now = Instant::now();
    let mut pool = pool(4, 4);
    let mut connect = |number| {
        let permit = pool.permit(now).unwrap();
        assert!(matches!(pool.connected(permit, number, now), Released::Idle));
    };
    connect(1);
    connect(2);
    let late = pool.permit(now).unwrap();
    let (held, cancelled) = (worker(pool.check_out(0, || (0, now))), pool.permit(now).unwrap());

    assert_eq!(pool.close(), [1]);
    assert!(matches!(pool.check_out(0, || (0, now)), CheckedOut::Closed));
    assert!(pool.check_out_idle().is_none() && pool.permit(now).is_none());
    assert!(pool.has_surplus_attempt() && pool.retry_at().is_none());

    assert!(matches!(pool.connected(late, 3, now), Released::Expired(3)));
    pool.cancelled(cancelled);
    assert!(!pool.has_surplus_attempt() && !pool.is_drained());
    assert!(matches!(pool.release(held), Released::Expired(2)));
    assert!(pool.is_drained());
}

#[test]
fn with_one_worker_deaths_never_make_room_for_two() {
    let now = Instant::now();
    let mut pool = pool(1, 1);
    for _ in 0..10 {
        let permit = pool.permit(now).unwrap();
        assert!(pool.permit(now).is_none());
        assert!(matches!(pool.connected(permit, 0, now), Released::Idle));
        let lease = worker(pool.check_out(0, || (0, now)));
        pool.lose(lease, Loss::Used, now);
    }
}

#[test]
fn retries_begin_with_milliseconds_and_double_up_to_a_second() {
    let mut now = Instant::now();
    let mut pool = pool(1, 20);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let permit = pool.permit(now).unwrap();
        pool.failed(permit, "refused", now);
        let next = pool.retry_at().unwrap();
        assert!(pool.permit(now).is_none());
        waits.push((next - now).as_millis());
        now = next;
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000]);
}

#[test]
fn while_nobody_answers_one_attempt_at_a_time_is_made() {
    let now = Instant::now();
    let mut pool = pool(0, 20);
    for number in 0..10 {
        assert!(matches!(pool.check_out(0, || (number, now)), CheckedOut::Queued(_, None)));
    }
    let permit = pool.permit(now).unwrap();
    pool.failed(permit, "refused", now);

    let later = pool.retry_at().unwrap();
    let probe = pool.permit(later).unwrap();
    assert!(pool.permit(later).is_none());
    assert!(matches!(pool.connected(probe, 0, later), Released::Assigned(0, _)));
    let permits: Vec<_> = std::iter::from_fn(|| pool.permit(later)).collect();
    assert_eq!(permits.len(), 9);
}

#[test]
fn workers_that_die_young_and_unused_slow_their_replacement_down() {
    let mut now = Instant::now();
    let mut pool = pool(1, 1);
    let mut waits = Vec::new();
    for _ in 0..5 {
        let permit = pool.permit(now).unwrap();
        let key = permit.key();
        assert!(matches!(pool.connected(permit, 0, now), Released::Idle));
        pool.lose_idle(key, now);
        waits.push((pool.retry_at().unwrap() - now).as_millis());
        now = pool.retry_at().unwrap();
    }
    assert_eq!(waits, [5, 10, 20, 40, 80]);
}

#[test]
fn an_attempt_under_way_does_not_end_the_wait_after_a_death() {
    let limits = PoolLimits {
        min_workers: 2,
        max_workers: 2,
        max_checkouts: None,
        max_queue: None,
        overload: Overload::RefuseNewest,
        aging: Duration::ZERO,
    };
    let mut pool: Pool<u32, u32, &'static str> = Pool::new(limits);
    let now = Instant::now();
    let (first, second) = (pool.permit(now).unwrap(), pool.permit(now).unwrap());
    let key = first.key();
    assert!(matches!(pool.connected(first, 1, now), Released::Idle));
    assert_eq!(pool.lose_idle(key, now), Some(1));
    assert!(matches!(pool.connected(second, 2, now), Released::Idle));
    assert!(pool.permit(now).is_none(), "the one that died young is waited for");
    assert!(pool.permit(now + MIN_RETRY_DELAY).is_some());
}

#[test]
fn a_smaller_pool_closes_idle_workers_at_once_and_others_when_they_come_back() {
    let now = Instant::now();
    let mut pool = pool(0, 4);
    for number in 0..4 {
        assert!(matches!(pool.check_out(0, || (number, now)), CheckedOut::Queued(..)));
    }
    let mut leases = Vec::new();
    for number in 0..4 {
        let permit = pool.permit(now).unwrap();
        match pool.connected(permit, number, now) {
            Released::Assigned(_, lease) => leases.push(lease),
            released => panic!("{released:?}"),
        }
    }
    assert!(matches!(pool.check_out(0, || (4, now)), CheckedOut::Queued(..)));
    assert!(pool.resize(0, 2).is_empty());
    // Two too many leave, though somebody waits; the next one serves.
    assert!(matches!(pool.release(leases.remove(0)), Released::Expired(0)));
    assert!(matches!(pool.release(leases.remove(0)), Released::Expired(1)));
    let Released::Assigned(4, lease) = pool.release(leases.remove(0)) else { panic!("nobody") };
    assert!(matches!(pool.release(lease), Released::Idle));
    assert!(matches!(pool.release(leases.remove(0)), Released::Idle));
    // The one that has not been used for longest leaves.
    assert_eq!(pool.resize(0, 1), [2]);
    assert_eq!(pool.counts().idle, 1);
    pool.resize(3, 8);
    assert_eq!(std::iter::from_fn(|| pool.permit(now)).count(), 2);
}

#[test]
fn attempts_to_connect_are_given_up_if_they_are_too_many() {
    let now = Instant::now();
    let mut pool = pool(3, 3);
    let permits: Vec<_> = std::iter::from_fn(|| pool.permit(now)).collect();
    pool.resize(1, 2);
    assert!(pool.has_surplus_attempt());
    permits.into_iter().for_each(|permit| pool.cancelled(permit));
    assert_eq!(std::iter::from_fn(|| pool.permit(now)).count(), 1);
    assert!(!pool.has_surplus_attempt());
}
