use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use proptest::prelude::*;

use super::spsc::CAPACITY;
use super::*;
use crate::wire::frame::{self, DEFAULT_MAX_FRAME, HEADER_LEN};

pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_control(&mut out, |out| out.extend_from_slice(body)).unwrap();
    out
}

/// One side: rings, and what a connection does around them.
pub(super) struct Side<M = SharedAtomics> {
    pub(super) rings: Rings<M>,
    pub(super) inbox: Vec<u8>,
    pub(super) received: Vec<Vec<u8>>,
    pub(super) sleeps: bool,
}

impl<M: Memory> Side<M> {
    pub(super) fn new(mut rings: Rings<M>) -> Self {
        rings.activate(0);
        rings.set_awake();
        Self { rings, inbox: Vec::new(), received: Vec::new(), sleeps: false }
    }

    pub(super) fn send(&mut self, body: &[u8], socket: &mut impl Extend<u8>) -> Put {
        let frame = frame(body);
        let put = self.rings.put(&frame);
        let sent = match put {
            Put::Done => &[],
            Put::PeerAsleep => &DOORBELL[..],
            Put::Refused => &frame,
        };
        self.rings.record_sent(sent.len());
        socket.extend(sent.iter().copied());
        put
    }

    pub(super) fn receive(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.inbox.extend_from_slice(bytes);
            self.rings.record_received(bytes.len());
            self.rings.set_awake();
            self.sleeps = false;
        }
    }

    /// Takes one message, if there is one.
    pub(super) fn take(&mut self) -> bool {
        if let Some(place) = self.rings.take(self.inbox.len(), DEFAULT_MAX_FRAME).unwrap() {
            let body = self.rings.body(place).to_vec();
            self.received.extend((!body.is_empty()).then_some(body));
            return true;
        }
        let Some(body) = frame::find(&self.inbox, DEFAULT_MAX_FRAME).unwrap() else { return false };
        if !body.is_empty() {
            self.received.push(self.inbox[body.clone()].to_vec());
        }
        self.inbox.drain(..body.end);
        true
    }

    pub(super) fn sleep(&mut self) {
        while self.take() {}
        self.sleeps = self.rings.prepare_sleep(self.inbox.len());
    }
}

fn pair() -> [Side; 2] {
    let (first, file) = Rings::offer().unwrap();
    [Side::new(first), Side::new(Rings::accept(&file).unwrap())]
}

#[derive(Debug, Clone)]
enum Step {
    Send(usize, usize),
    Receive(usize, usize),
    Take(usize),
    Sleep(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let side = 0..2_usize;
    prop_oneof![
        4 => (side.clone(), prop_oneof![8 => 1..100_usize, 1 => 1..6000_usize])
            .prop_map(|(side, length)| Step::Send(side, length)),
        2 => (side.clone(), 1..300_usize).prop_map(|(side, most)| Step::Receive(side, most)),
        3 => side.clone().prop_map(Step::Take),
        2 => side.prop_map(Step::Sleep),
    ]
}

proptest! {
    /// Messages through rings and sockets are received in order, and no side sleeps while a message is there.
    #[test]
    fn messages_are_heard_in_order(steps in prop::collection::vec(step(), 1..400)) {
        let mut sides = pair();
        let mut sockets = [VecDeque::new(), VecDeque::new()];
        let mut said = [Vec::new(), Vec::new()];
        let receive = |side: &mut Side, socket: &mut VecDeque<u8>, most: usize| {
            let bytes: Vec<u8> = socket.drain(..most.min(socket.len())).collect();
            side.receive(&bytes);
        };
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                // A side that sleeps does nothing.
                Step::Send(side, _) | Step::Take(side) | Step::Sleep(side) if sides[side].sleeps => {}
                Step::Send(side, length) => {
                    let body = vec![number as u8; length];
                    sides[side].send(&body, &mut sockets[1 - side]);
                    said[side].push(body);
                }
                Step::Receive(side, most) => receive(&mut sides[side], &mut sockets[side], most),
                Step::Take(side) => {
                    sides[side].take();
                }
                Step::Sleep(side) => sides[side].sleep(),
            }
        }
        for side in 0..2 {
            receive(&mut sides[side], &mut sockets[side], usize::MAX);
            if !sides[side].sleeps {
                while sides[side].take() {}
            }
            prop_assert_eq!(&sides[side].received, &said[1 - side]);
            prop_assert_eq!(sides[1 - side].rings.has_unread(), false);
        }
    }

    /// Whatever the other process writes, this side neither leaves the ring nor loops without end.
    #[test]
    fn no_word_of_the_others_does_harm(
        words in prop::collection::vec((0..2 * WORDS, any::<u64>()), 1..50),
        small in prop::collection::vec((0..2 * WORDS, 0..5000_u64), 1..50),
        positions in prop::array::uniform3(0..3000_u64),
    ) {
        let [mut side, other] = pair();
        for (at, word) in words.into_iter().chain(small) {
            other.rings.words[at].store(word, Relaxed);
        }
        for (at, word) in positions.into_iter().enumerate() {
            other.rings.words[at * 8].store(word, Relaxed);
        }
        for unread in [0, 100] {
            let _ = side.rings.has_next(unread);
            while let Ok(Some(place)) = side.rings.take(unread, DEFAULT_MAX_FRAME) {
                prop_assert!(side.rings.body(place).len() <= CAPACITY * 8);
            }
            let _ = (side.rings.put(&[0; 100]), side.rings.has_unread(), side.rings.prepare_sleep(unread));
            side.rings.set_awake();
        }
    }
}

#[test]
fn a_full_ring_takes_no_more_until_it_is_read() {
    let [mut here, mut there] = pair();
    let mut socket = Vec::new();
    let mut sent = 0;
    while here.send(&[7; 100], &mut socket) == Put::Done {
        sent += 1;
    }
    assert_eq!(sent, CAPACITY / (1 + 104_usize.div_ceil(8)));
    there.sleep();
    assert_eq!((there.received.len(), there.sleeps), (sent, true));
    assert_eq!(here.send(&[7; 100], &mut socket), Put::Refused, "it sleeps");
    assert!(!here.rings.producer.ring.is_awake_after_put(&here.rings.words));
    there.receive(&socket);
    assert_eq!(here.send(&[7; 100], &mut socket), Put::Done);
    assert_eq!(
        here.send(&[7; MAX_RECORD - HEADER_LEN + 1], &mut socket),
        Put::Refused,
        "it is too long"
    );
    assert_eq!(here.send(&[7; MAX_RECORD - HEADER_LEN], &mut socket), Put::Done);
}

#[test]
fn nothing_is_put_there_before_the_other_side_has_it() {
    let (mut here, file) = Rings::offer().unwrap();
    assert_eq!(here.put(b"early"), Put::Refused);
    let mut there = Rings::accept(&file).unwrap();
    there.activate(0);
    assert_eq!(there.put(b"early"), Put::Refused);
    there.set_awake();
    here.activate(0);
    assert_eq!(here.put(&frame(b"now")), Put::Done);
    let place = there.take(0, DEFAULT_MAX_FRAME).unwrap().unwrap();
    assert_eq!(there.body(place), b"now");
}

#[test]
fn a_side_that_looks_by_itself_is_known_until_it_sleeps() {
    let [mut here, mut there] = pair();
    assert!(!here.rings.is_peer_looking());
    there.rings.set_looking();
    assert!(here.rings.is_peer_looking());
    assert_eq!(here.rings.put(&frame(b"answer")), Put::Done);
    there.rings.set_awake();
    assert!(here.rings.is_peer_awake() && !here.rings.is_peer_looking());
    there.rings.set_looking();
    assert!(!there.rings.prepare_sleep(0), "a record is there");
    assert!(there.take());
    there.rings.set_looking();
    assert!(there.rings.prepare_sleep(0));
    assert!(!here.rings.is_peer_awake() && !here.rings.is_peer_looking());
    assert_eq!(here.rings.put(&frame(b"answer")), Put::Refused);
}

#[test]
fn a_record_is_whole_frames() {
    let [mut here, mut there] = pair();
    let two = [frame(b"first"), frame(b"second")].concat();
    assert_eq!(here.rings.put(&two), Put::Done);
    there.sleep();
    assert_eq!(there.received, [&b"first"[..], b"second"]);
    there.rings.set_awake();
    assert_eq!(here.rings.put(&two[..two.len() - 1]), Put::Done);
    assert!(there.take());
    assert!(there.rings.take(0, DEFAULT_MAX_FRAME).is_err());
    let [mut here, mut there] = pair();
    assert_eq!(here.rings.put(&frame(&[7; 100])), Put::Done);
    assert!(there.rings.take(0, 99).is_err(), "it is over the limit");
}

/// A frame of the socket that is incomplete is not mixed with records of the ring.
#[test]
fn what_comes_through_the_ring_leaves_the_unread_bytes_of_the_socket_alone() {
    let [mut here, mut there] = pair();
    there.receive(&u32::MAX.to_le_bytes());
    let before = there.inbox.as_ptr();
    for number in 0..1000_u32 {
        assert_eq!(here.rings.put(&frame(&number.to_le_bytes())), Put::Done);
        // The record comes first, because nothing had been sent through the socket before it.
        let place = there.rings.take(there.inbox.len(), DEFAULT_MAX_FRAME).unwrap().unwrap();
        assert_eq!(there.rings.body(place), number.to_le_bytes());
    }
    assert_eq!((there.inbox.as_ptr(), there.inbox.len()), (before, 4));
}

/// One thread sends, and another one receives and sleeps again and again, with a socket between them.
#[test]
fn nobody_sleeps_over_a_message() {
    const MESSAGES: u64 = 100_000;
    let [here, there] = pair();
    let (mut sender, mut receiver) = UnixStream::pair().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut here = here;
            for number in 0..MESSAGES {
                let mut socket = Vec::new();
                here.send(&number.to_le_bytes(), &mut socket);
                sender.write_all(&socket).unwrap();
                // The other side gets time to fall asleep.
                while number % 4 == 0 && answered.load(Relaxed) < number {
                    std::hint::spin_loop();
                }
            }
        });
        let mut there = there;
        while (there.received.len() as u64) < MESSAGES {
            there.sleep();
            answered.store(there.received.len() as u64, Relaxed);
            if there.sleeps && (there.received.len() as u64) < MESSAGES {
                let mut bytes = [0; 4096];
                let length = receiver.read(&mut bytes).expect("it is woken");
                there.receive(&bytes[..length]);
            }
        }
        let said = (0..MESSAGES).map(|number| number.to_le_bytes().to_vec());
        assert!(said.eq(there.received));
    });
}
