//! Which session makes room for a client that waits. No I/O; time is an argument.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::usage::Usage;

/// From when on a session counts as unused.
const UNUSED_AFTER: Duration = Duration::from_millis(100);

/// The least age of a session in use that is asked to leave. Without it, where there are more clients than room, each
/// checkout would need a session of its own.
const MIN_AGE: Duration = Duration::from_secs(1);

/// Who has a session, or waits for one.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Holder {
    /// The name that the client has given itself.
    pub(crate) client: String,
    /// Distinguishes holders with the same name. 0 if the client does not say it.
    pub(crate) number: u32,
}

/// A session that may be asked to leave.
#[derive(Clone, Debug)]
pub(super) struct Held<'a, I> {
    pub(super) id: I,
    pub(super) holder: &'a Holder,
    pub(super) began: Instant,
    pub(super) usage: Usage,
}

/// Chooses the session that makes room for a holder that waits, if one has to.
///
/// If sessions are unused, it is the one that has been unused longest, of the client with the most of them. If none is
/// unused, it is the oldest one of the client with the most sessions, which ends after its checkout.
///
/// A holder gets room only from one that has more. If it has sessions, here or at other nodes, it gets another one only if
/// it then has at most as many here as the one that loses it. All holders with one name count together against other names.
pub(super) fn choose<I: Copy>(
    now: Instant,
    sessions: &[Held<'_, I>],
    waiting: &Holder,
    has_sessions: bool,
) -> Option<I> {
    let (mut of_client, mut of_holder) = (HashMap::new(), HashMap::new());
    for session in sessions {
        *of_client.entry(&session.holder.client).or_insert(0_usize) += 1;
        *of_holder.entry(session.holder).or_insert(0_usize) += 1;
    }
    let in_client = |holder: &Holder| of_client.get(&holder.client).copied().unwrap_or(0);
    let in_holder = |holder: &Holder| of_holder.get(holder).copied().unwrap_or(0);
    let unused = |session: &Held<'_, I>| match session.usage {
        Usage::UnusedSince(since) => {
            let time = now.saturating_duration_since(since);
            (time >= UNUSED_AFTER).then_some(time)
        }
        Usage::Used | Usage::Unknown => None,
    };
    let age = |session: &Held<'_, I>| now.saturating_duration_since(session.began);
    let may_lose = |session: &&Held<'_, I>| {
        let (theirs, own) = match session.holder.client == waiting.client {
            true => (in_holder(session.holder), in_holder(waiting)),
            false => (in_client(session.holder), in_client(waiting)),
        };
        let enough = own + if has_sessions || in_holder(waiting) > 0 { 2 } else { 1 };
        session.holder != waiting
            && session.usage != Usage::Unknown
            && (unused(session).is_some() || age(session) >= MIN_AGE)
            && theirs >= enough
    };
    let chosen = sessions.iter().filter(may_lose).max_by_key(|session| {
        let most = (in_client(session.holder), in_holder(session.holder));
        (unused(session).is_some(), most, unused(session), Reverse(session.began))
    });
    chosen.map(|session| session.id)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(client: &str, number: u32) -> Holder {
        Holder { client: client.to_owned(), number }
    }

    /// Sessions with their holders, their ages and for how long they have been unused, in milliseconds, of which 0 is
    /// for one in use.
    fn chosen(
        sessions: &[(&Holder, u64, u64)],
        waiting: &Holder,
        has_sessions: bool,
    ) -> Option<usize> {
        let began = Instant::now();
        let now = began + Duration::from_secs(1000);
        let before = |ms| now - Duration::from_millis(ms);
        let held: Vec<_> = sessions
            .iter()
            .enumerate()
            .map(|(id, (holder, age, unused))| Held {
                id,
                holder,
                began: before(*age),
                usage: match unused {
                    0 => Usage::Used,
                    unused => Usage::UnusedSince(before(*unused)),
                },
            })
            .collect();
        choose(now, &held, waiting, has_sessions)
    }

    #[test]
    fn the_session_unused_longest_of_the_client_with_the_most_makes_room() {
        let (a, b, c) = (holder("a", 1), holder("b", 1), holder("c", 1));
        let sessions =
            [(&a, 9000, 5000), (&b, 9000, 200), (&b, 9000, 300), (&b, 9000, 0), (&a, 9000, 0)];
        assert_eq!(chosen(&sessions, &c, false), Some(2));
    }

    #[test]
    fn of_sessions_in_use_the_oldest_leaves_and_no_young_one() {
        let (a, b) = (holder("a", 1), holder("b", 1));
        assert_eq!(chosen(&[(&a, 1500, 0), (&a, 2500, 0), (&a, 900, 0)], &b, false), Some(1));
        assert_eq!(chosen(&[(&a, 900, 0), (&a, 900, 50)], &b, false), None);
    }

    #[test]
    fn a_session_of_which_nothing_was_said_stays() {
        let (a, b) = (holder("a", 1), holder("b", 1));
        let now = Instant::now() + Duration::from_secs(9);
        let held =
            Held { id: 0, holder: &a, began: now - Duration::from_secs(5), usage: Usage::Unknown };
        assert_eq!(choose(now, &[held], &b, false), None);
    }

    #[test]
    fn who_has_sessions_gets_no_more_than_others() {
        let (a, b, other) = (holder("a", 1), holder("b", 1), holder("a", 2));
        let two = [(&a, 9000, 9000), (&a, 9000, 8000)];
        // It has sessions at another node, but none here.
        assert_eq!(chosen(&two, &b, true), Some(0));
        assert_eq!(chosen(&two[..1], &b, true), None);
        assert_eq!(chosen(&two[..1], &b, false), Some(0));
        // Holders with one name take from each other.
        assert_eq!(chosen(&two, &other, false), Some(0));
        assert_eq!(chosen(&two, &a, false), None, "it takes nothing from itself");
        // They gain nothing by being two against another name.
        let full = [(&a, 9000, 8000), (&b, 9000, 9000)];
        assert_eq!(chosen(&full, &other, false), Some(0));
    }

    proptest! {
        /// Clients that wait and take turn after turn come to rest, and everybody who could have one has a session.
        #[test]
        fn takers_come_to_rest(places in 1..8_usize, clients in 1..6_usize, wanted in 1..4_usize) {
            let holders: Vec<_> = (0..clients).map(|number| holder(&number.to_string(), 1)).collect();
            let mut places: Vec<usize> = (0..places).map(|_| 0).collect();
            let counts = |places: &[usize], client| places.iter().filter(|place| **place == client).count();
            let mut moves = 0;
            while let Some((waiting, place)) = (0..clients).find_map(|client| {
                let has = counts(&places, client);
                // Whoever takes the last session of another only starts the turn again.
                let is_done = has >= wanted || has == 0 && places.len() < clients;
                let sessions: Vec<_> = places.iter().map(|client| (&holders[*client], 9000, 9000)).collect();
                let place = chosen(&sessions, &holders[client], has > 0).filter(|_| !is_done)?;
                Some((client, place))
            }) {
                places[place] = waiting;
                moves += 1;
                prop_assert!(moves <= 100, "{places:?}");
            }
            if places.len() >= clients {
                for client in 0..clients {
                    prop_assert!(counts(&places, client) > 0, "{places:?}");
                }
            }
        }
    }
}
