use std::collections::VecDeque;
use std::io::IoSlice;

use proptest::prelude::*;

use super::*;
use crate::wire::{HEADER, MIN_WINDOW, Reason, encode_piece};

const HEARTBEAT: Duration = Duration::from_secs(2);

fn offer(window: u32) -> Offer {
    Offer::new(window, 1024, HEARTBEAT)
}

/// One side, what it has sent, and what its user has got.
struct Side {
    link: Link,
    sent: VecDeque<Bytes>,
    /// What the user of this side has written.
    written: Vec<u8>,
    unread: VecDeque<Bytes>,
    /// What the user of this side has read.
    read: Vec<u8>,
    finished: bool,
}

impl Side {
    fn new(now: Instant) -> Self {
        Self {
            link: Link::new(offer(MIN_WINDOW), offer(MIN_WINDOW), now),
            sent: VecDeque::new(),
            written: Vec::new(),
            unread: VecDeque::new(),
            read: Vec::new(),
            finished: false,
        }
    }

    /// A side whose window grows.
    fn growing(now: Instant) -> Self {
        let side = Self::new(now);
        Self { link: side.link.with_growth(), ..side }
    }

    fn write(&mut self, now: Instant, data: &[u8]) {
        if let Some((bytes, length)) = self.link.piece(now, &mut Gather::new(&[IoSlice::new(data)]))
        {
            self.written.extend_from_slice(&data[..length]);
            self.sent.push_back(bytes);
        }
    }

    fn receive(&mut self, now: Instant, bytes: Bytes) -> Result<(), Violation> {
        match self.link.receive(now, bytes)? {
            Received::Bytes(bytes) => self.unread.push_back(bytes),
            Received::Finished => self.finished = true,
            Received::Credit | Received::Heartbeat | Received::Ended(_) => {}
        }
        Ok(())
    }

    fn read(&mut self, now: Instant) {
        if let Some(bytes) = self.unread.pop_front() {
            self.link.consume(bytes.len());
            self.read.extend_from_slice(&bytes);
            if let Some(growth) = self.link.growth(now) {
                self.link.grow(growth);
            }
            self.sent.extend(self.link.credit(now));
        }
    }

    fn unread(&self) -> u64 {
        self.unread.iter().map(|bytes| cost(bytes.len())).sum()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write { side: bool, length: usize },
    Deliver { side: bool },
    Read { side: bool },
    Wait { milliseconds: u64 },
    Finish { side: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<bool>(), 0usize..3000).prop_map(|(side, length)| Step::Write { side, length }),
        4 => any::<bool>().prop_map(|side| Step::Deliver { side }),
        3 => any::<bool>().prop_map(|side| Step::Read { side }),
        1 => (0u64..1500).prop_map(|milliseconds| Step::Wait { milliseconds }),
        1 => prop::bool::weighted(0.1).prop_map(|side| Step::Finish { side }),
    ]
}

proptest! {
    /// Whatever two good sides do, and however late messages arrive, neither sees a violation, what is
    /// read is what was written, and no more than a window is unread.
    #[test]
    fn good_sides_get_on(steps in prop::collection::vec(any_step(), 0..600)) {
        let mut now = Instant::now();
        let mut sides = [Side::new(now), Side::growing(now)];
        for step in steps {
            match step {
                Step::Write { side, length } => {
                    let data: Vec<u8> = (0..length).map(|n| n as u8).collect();
                    sides[usize::from(side)].write(now, &data);
                }
                Step::Deliver { side } => {
                    if let Some(bytes) = sides[usize::from(!side)].sent.pop_front() {
                        prop_assert_eq!(sides[usize::from(side)].receive(now, bytes), Ok(()));
                    }
                }
                Step::Read { side } => sides[usize::from(side)].read(now),
                Step::Wait { milliseconds } => {
                    now += Duration::from_millis(milliseconds);
                    for side in &mut sides {
                        if let Timeout::Heartbeat(bytes) = side.link.timeout(now) {
                            side.sent.push_back(bytes);
                        }
                    }
                }
                Step::Finish { side } => {
                    let side = &mut sides[usize::from(side)];
                    side.sent.extend(side.link.finish(now));
                }
            }
            for side in &sides {
                prop_assert!(side.unread() <= side.link.window());
            }
        }
        // Everything arrives in the end, and then each side can send again.
        for _ in 0..2 {
            for index in 0..2 {
                while let Some(bytes) = sides[index].sent.pop_front() {
                    prop_assert_eq!(sides[1 - index].receive(now, bytes), Ok(()));
                }
                while !sides[1 - index].unread.is_empty() {
                    sides[1 - index].read(now);
                }
            }
        }
        for index in 0..2 {
            prop_assert_eq!(&sides[index].written, &sides[1 - index].read);
            prop_assert_eq!(sides[1 - index].finished, sides[index].link.has_finished());
            prop_assert!(sides[index].link.has_finished() || sides[index].link.room() > 0);
        }
    }

    /// If messages are lost, repeated or exchanged, what is read is a beginning of what was written.
    #[test]
    fn a_bad_way_never_changes_the_stream(
        lengths in prop::collection::vec(1usize..500, 1..20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..3), 1..4),
    ) {
        let now = Instant::now();
        let (mut sender, mut receiver) = (Side::new(now), Side::new(now));
        for (index, length) in lengths.into_iter().enumerate() {
            sender.write(now, &vec![index as u8; length]);
        }
        let mut way: Vec<Bytes> = sender.sent.drain(..).collect();
        let good = way.clone();
        for (index, change) in changes {
            if way.is_empty() {
                break;
            }
            let index = index.index(way.len());
            match change {
                0 => drop(way.remove(index)),
                1 => way.insert(index, way[index].clone()),
                _ => { let last = way.len() - 1; way.swap(index, last); }
            }
        }
        let same = way.len() >= good.len() && way[..good.len()] == good[..];
        let short = good.starts_with(&way);

        let result = way.into_iter().try_for_each(|bytes| receiver.receive(now, bytes));
        while !receiver.unread.is_empty() {
            receiver.read(now);
        }

        prop_assert!(sender.written.starts_with(&receiver.read));
        prop_assert!(result.is_err() || same || short);
        // What is missing at the end shows with the next heartbeat.
        if result.is_ok() && short && !same {
            let next = receiver.link.receive(now, sender.link.heartbeat(now));
            let gap = matches!(next, Err(Violation::Gap { .. }));
            prop_assert!(gap);
        }
    }

    #[test]
    fn any_bytes_are_taken_without_a_panic(
        messages in prop::collection::vec(
            (0u8..7, 0u64..4, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let now = Instant::now();
        let mut link = Link::new(offer(MIN_WINDOW), offer(MIN_WINDOW), now);
        for (kind, number, rest) in messages {
            let mut bytes = vec![kind];
            bytes.extend(number.to_le_bytes());
            bytes.extend(rest);
            let _ = link.receive(now, bytes.into());
            let _ = link.piece(now, &mut Gather::new(&[IoSlice::new(b"more")]));
            link.consume(10);
            let _ = link.credit(now);
        }
    }
}

fn pair() -> (Side, Side, Instant) {
    let now = Instant::now();
    (Side::new(now), Side::new(now), now)
}

#[test]
fn a_missing_message_is_a_gap_and_a_second_one_a_repetition() {
    let (mut sender, mut receiver, now) = pair();
    let messages = [(); 3].map(|()| sender.link.heartbeat(now));

    let first = receiver.receive(now, messages[0].clone());
    let again = receiver.receive(now, messages[0].clone());
    let later = receiver.receive(now, messages[2].clone());

    assert_eq!(first, Ok(()));
    assert_eq!(again, Err(Violation::Repeated { expected: 1, received: 0 }));
    assert_eq!(later, Err(Violation::Gap { expected: 1, received: 2 }));
}

#[test]
fn more_than_the_credit_is_an_overrun() {
    let (mut sender, mut receiver, now) = pair();
    // A sender that believes in a window four times as large.
    sender.link = Link::new(offer(MIN_WINDOW), offer(4 * MIN_WINDOW), now);
    let result = (0..100).try_for_each(|_| {
        sender.write(now, &[7; 1000]);
        sender.sent.pop_front().map_or(Ok(()), |bytes| receiver.receive(now, bytes))
    });

    assert!(matches!(result, Err(Violation::Overrun { .. })), "{result:?}");
}

/// Sends and reads windows of a growing side, each in this time, and returns the last window.
fn window_after(windows: usize, time: Duration, grows: bool) -> u64 {
    let mut now = Instant::now();
    let (mut sender, mut receiver) = (Side::new(now), Side::new(now));
    if grows {
        receiver = Side::growing(now);
    }
    for _ in 0..windows {
        let (window, read) = (receiver.link.window() as usize, receiver.read.len());
        now += time;
        while receiver.read.len() < read + window {
            sender.write(now, &[7; 1024]);
            while let Some(bytes) = sender.sent.pop_front() {
                receiver.receive(now, bytes).unwrap();
                receiver.read(now);
            }
            while let Some(bytes) = receiver.sent.pop_front() {
                sender.receive(now, bytes).unwrap();
            }
        }
    }
    receiver.link.window()
}

#[test]
fn a_window_grows_only_while_it_is_read_quickly() {
    let (first, quick) = (u64::from(MIN_WINDOW), GROWTH_TIME / 4);
    assert!(window_after(3, quick, true) >= 4 * first);
    assert_eq!(window_after(16, quick, true), u64::from(MAX_WINDOW));
    assert_eq!(window_after(3, GROWTH_TIME, true), first);
    assert_eq!(window_after(3, quick, false), first);
}

#[test]
fn short_pieces_use_up_the_window_by_their_number() {
    let (mut sender, _, now) = pair();

    for _ in 0..2 * MIN_WINDOW {
        sender.write(now, b"x");
    }

    assert_eq!(sender.sent.len() as u64, u64::from(MIN_WINDOW) / (PIECE_COST + 1));
}

#[test]
fn a_piece_longer_than_agreed_is_a_violation() {
    let (_, mut receiver, now) = pair();
    let bytes = encode_piece(0, &[0; 1024 - HEADER + 1]);

    let result = receiver.receive(now, bytes);

    assert_eq!(result, Err(Violation::LongPiece { length: 1016, limit: 1015 }));
}

#[test]
fn a_credit_that_shrinks_or_is_too_large_is_a_violation() {
    for limit in [0, u64::from(MIN_WINDOW) - 1, u64::from(MAX_WINDOW) + 1, u64::MAX] {
        let (_, mut receiver, now) = pair();

        let result = receiver.receive(now, Message::Credit(limit).encode(0));

        assert!(matches!(result, Err(Violation::Credit { .. })), "{limit}: {result:?}");
    }
}

#[test]
fn nothing_may_follow_the_end_of_the_stream() {
    for message in [Message::Finish, Message::Piece(Bytes::from_static(b"x"))] {
        let (_, mut receiver, now) = pair();
        let _ = receiver.receive(now, Message::Finish.encode(0));

        assert_eq!(receiver.receive(now, message.encode(1)), Err(Violation::AfterFinish));
    }
}

#[test]
fn a_side_that_is_silent_for_two_heartbeats_is_lost() {
    let (mut side, _, start) = pair();

    let first = side.link.timeout(start + HEARTBEAT);
    let before = side.link.timeout(start + 2 * HEARTBEAT - Duration::from_millis(1));
    let at = side.link.timeout(start + 2 * HEARTBEAT);

    assert!(matches!(first, Timeout::Heartbeat(_)));
    assert_eq!(before, Timeout::Nothing);
    assert_eq!(at, Timeout::Lost(2 * HEARTBEAT));
}

#[test]
fn a_side_that_was_stopped_itself_waits_one_heartbeat_more() {
    let (mut side, mut other, start) = pair();
    let late = start + 10 * HEARTBEAT;

    let first = side.link.timeout(late);
    let bytes = other.link.heartbeat(late);
    let heard = side.receive(late, bytes);

    assert!(matches!(first, Timeout::Heartbeat(_)));
    assert_eq!(heard, Ok(()));
    assert_eq!(side.link.timeout(late + HEARTBEAT / 2), Timeout::Nothing);

    let (mut side, _, start) = pair();
    let late = start + 10 * HEARTBEAT;
    side.link.timeout(late);
    let lost = side.link.timeout(late + HEARTBEAT);
    assert_eq!(lost, Timeout::Lost(2 * HEARTBEAT));
}

#[test]
fn data_counts_as_a_heartbeat() {
    let (mut side, _, start) = pair();
    side.link.timeout(start);
    side.write(start + HEARTBEAT / 2, b"data");

    let timeout = side.link.timeout(start + HEARTBEAT);

    assert_eq!(timeout, Timeout::Nothing);
    assert_eq!(side.link.next_timeout(), start + HEARTBEAT * 3 / 2);
}

#[test]
fn an_end_arrives_with_its_reason() {
    let (mut sender, mut receiver, now) = pair();
    let end = End { reason: Reason::Draining, text: "the node shuts down".into() };

    let bytes = sender.link.end(now, end.clone());

    assert_eq!(receiver.link.receive(now, bytes), Ok(Received::Ended(end)));
}
