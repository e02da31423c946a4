//! Sharing workers fairly among clients when all workers are in use.

use core::net::IpAddr;
use std::collections::BTreeMap;
use std::time::Duration;

/// The least age at which a worker that serves a checkout is asked to leave. Without it, a worker
/// would be forked for each checkout if there are fewer workers than clients.
const MIN_EVICTION_AGE: Duration = Duration::from_millis(250);

/// When a worker counts as idle. The second value is for a worker without a call so far.
const IDLE_AFTER: Duration = Duration::from_millis(20);
const UNUSED_IDLE_AFTER: Duration = Duration::from_millis(100);

/// The identity of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct ClientId {
    peer: PeerId,
    /// The client's own number from its hello, which distinguishes several clients of one program.
    /// 0 if unknown.
    number: u64,
}

/// Where a client connects from, as the kernel or a gateway reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum PeerId {
    #[default]
    Unknown,
    Process(u32),
    /// The processes of a user in another PID namespace, which have no process id here.
    User(u32),
    Host(IpAddr),
    /// A client of a gateway, as a number that its certificate, or the name that a client of NATS has given itself, determines.
    Relayed(u64),
}

impl ClientId {
    pub(crate) fn new(peer: PeerId, number: u64) -> Self {
        Self { peer, number }
    }
}

/// A worker with a client that has not been asked to leave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AssignedWorker {
    pub(crate) worker: u64,
    pub(crate) client: ClientId,
    pub(crate) age: Duration,
    /// How long it has been without a checkout. `None` during a checkout.
    pub(crate) idle: Option<Duration>,
    pub(crate) is_used: bool,
    pub(crate) checkouts: u64,
    /// Its client speaks the protocol of AnyEvent::Task, in which a late call fails.
    pub(crate) is_json: bool,
}

impl AssignedWorker {
    /// A place that is promised to a client in the queue.
    pub(crate) fn promised(client: ClientId) -> Self {
        Self {
            worker: u64::MAX,
            client,
            age: Duration::ZERO,
            idle: None,
            is_used: false,
            checkouts: 0,
            is_json: false,
        }
    }

    fn is_idle(&self) -> bool {
        let after = if self.is_used { IDLE_AFTER } else { UNUSED_IDLE_AFTER };
        self.idle.is_some_and(|idle| idle >= after)
    }
}

/// Chooses the worker that makes room for a client in the queue, if one has to.
///
/// The worker belongs to the client with the most workers. The one that has been idle longest is
/// chosen. If none is idle, it is the one that has served the most checkouts, and it leaves after
/// its current checkout. A worker before its first call stays, because its setup may still run.
///
/// A client gets room only from a client that has more workers. A client with workers gets another
/// only if it then still has at most as many as the other client. The workers of one process, one
/// address or one client of a gateway count together, so a client gains nothing by using many client numbers.
pub(crate) fn choose_eviction(all: &[AssignedWorker], waiting: ClientId) -> Option<u64> {
    let (mut of_peer, mut of_client) = (BTreeMap::new(), BTreeMap::new());
    for assigned in all {
        *of_peer.entry(assigned.client.peer).or_insert(0_usize) += 1;
        *of_client.entry(assigned.client).or_insert(0_usize) += 1;
    }
    let in_peer = |client: ClientId| of_peer.get(&client.peer).copied().unwrap_or(0);
    let in_client = |client: ClientId| of_client.get(&client).copied().unwrap_or(0);
    let may_lose = |assigned: &&AssignedWorker| {
        let (theirs, own) = match assigned.client.peer == waiting.peer {
            true => (in_client(assigned.client), in_client(waiting)),
            false => (in_peer(assigned.client), in_peer(waiting)),
        };
        let is_new = in_client(waiting) == 0;
        assigned.client != waiting
            && (assigned.is_idle() || assigned.is_used && assigned.age >= MIN_EVICTION_AGE)
            && theirs >= own + if is_new { 1 } else { 2 }
    };
    let chosen = all.iter().filter(may_lose).max_by_key(|assigned| {
        let is_idle = assigned.is_idle();
        let most = (in_peer(assigned.client), in_client(assigned.client));
        let idle = assigned.idle.filter(|_| is_idle);
        // Of several equal ones, the oldest is chosen.
        (
            !assigned.is_json,
            is_idle,
            most,
            idle,
            assigned.checkouts,
            std::cmp::Reverse(assigned.worker),
        )
    });
    chosen.map(|assigned| assigned.worker)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client_id(process: u32, number: u64) -> ClientId {
        ClientId { peer: PeerId::Process(process), number }
    }

    /// A worker that has been idle for this many seconds, or is busy if that is 0.
    fn assigned(worker: u64, client: ClientId, idle: u64) -> AssignedWorker {
        AssignedWorker {
            worker,
            client,
            age: Duration::from_secs(100),
            idle: (idle > 0).then(|| Duration::from_secs(idle)),
            is_used: true,
            checkouts: 0,
            is_json: false,
        }
    }

    #[test]
    fn the_longest_idle_of_the_client_that_holds_most_makes_room() {
        let (few, many, new) = (client_id(1, 1), client_id(2, 1), client_id(3, 1));
        let all = [
            assigned(1, few, 90),
            assigned(2, many, 10),
            assigned(3, many, 20),
            assigned(4, many, 0),
            assigned(5, few, 0),
        ];
        assert_eq!(choose_eviction(&all, new), Some(3));
        // Then it has as many as the other, and no right to more.
        assert_eq!(choose_eviction(&all[..4], few), Some(3));
        assert_eq!(choose_eviction(&all, few), None);
        assert_eq!(choose_eviction(&all, many), None, "it would take from one that has less");
        assert_eq!(choose_eviction(&[], new), None);
    }

    #[test]
    fn without_an_idle_worker_one_leaves_after_its_checkout() {
        let (many, new) = (client_id(2, 1), client_id(3, 1));
        let quick = AssignedWorker { checkouts: 1000, ..assigned(2, many, 0) };
        let young =
            AssignedWorker { age: MIN_EVICTION_AGE / 2, checkouts: 2000, ..assigned(3, many, 0) };
        assert_eq!(choose_eviction(&[assigned(1, many, 0), quick, young], new), Some(2));
        assert_eq!(choose_eviction(&[young], new), None);
        let unused = AssignedWorker { is_used: false, ..assigned(5, many, 0) };
        assert_eq!(choose_eviction(&[unused], new), None);
        let json = AssignedWorker { is_json: true, ..assigned(4, many, 50) };
        assert_eq!(choose_eviction(&[json, quick], new), Some(2));
        assert_eq!(choose_eviction(&[json], new), Some(4));
    }

    #[test]
    fn many_numbers_of_one_process_gain_nothing() {
        let all: Vec<_> = (0..10).map(|number| assigned(number, client_id(1, number), 0)).collect();
        let all: Vec<_> =
            all.into_iter().chain((10..15).map(|n| assigned(n, client_id(2, 1), 5))).collect();
        // The eleventh client may not take a worker of the other process, which has fewer.
        let chosen = choose_eviction(&all, client_id(1, 99)).unwrap();
        assert!(chosen < 10, "{chosen}");
        assert!(choose_eviction(&all, client_id(3, 1)).unwrap() < 15);
    }

    proptest! {
        /// If all clients want more, the shares differ by one at most in the end, and no worker is
        /// evicted any more.
        #[test]
        fn shares_become_even_and_stay_so(
            clients in 1..6_u32, workers in prop::collection::vec(0..6_u32, 1..30),
        ) {
            let mut all: Vec<_> = workers
                .iter()
                .zip(0..)
                .map(|(client, number)| assigned(number, client_id(client % clients, 1), 1))
                .collect();
            let enough = all.len() * clients as usize + 1;
            let mut moved = true;
            let mut rounds = 0;
            while moved {
                moved = false;
                for client in 0..clients {
                    let has = all.iter().filter(|assigned| assigned.client == client_id(client, 1)).count();
                    // With fewer workers than clients the evictions never end.
                    if has == 0 && all.len() < clients as usize {
                        continue;
                    }
                    if let Some(worker) = choose_eviction(&all, client_id(client, 1)) {
                        let place = all.iter().position(|assigned| assigned.worker == worker).unwrap();
                        all[place].client = client_id(client, 1);
                        moved = true;
                    }
                }
                rounds += 1;
                prop_assert!(rounds <= enough);
            }
            if all.len() >= clients as usize {
                let shares: Vec<_> = (0..clients)
                    .map(|client| all.iter().filter(|it| it.client == client_id(client, 1)).count())
                    .collect();
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                prop_assert!(most - least <= 1 && *least > 0, "{:?}", shares);
            }
        }
    }
}
