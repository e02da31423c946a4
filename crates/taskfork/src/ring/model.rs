//! A model check of the rings. Two sides send each other a few messages and sleep in between, in all
//! interleavings that the memory model of the language allows. If a side sleeps although a message is there, it
//! never wakes, and the checker reports that.

use std::ops::Deref;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::spsc::{Memory, RingIndex, WORDS, Word};
use super::tests::Side;
use super::*;

/// The number of words for records in each ring, as many as the tests need.
const USED: usize = 8;

/// A word of the checker. Words that the tests do not use are left out, because they would cost time.
enum Checked {
    Used(AtomicU64),
    Unused,
}

impl Checked {
    fn word(&self) -> &AtomicU64 {
        match self {
            Self::Used(word) => word,
            Self::Unused => panic!("more words are used than the model has"),
        }
    }
}

impl Word for Checked {
    fn load(&self, order: Ordering) -> u64 {
        self.word().load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.word().store(value, order);
    }

    fn full_fence() {
        fence(Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Shared(Arc<Vec<Checked>>);

impl Shared {
    fn new() -> Self {
        let is_used = |at: usize| match at % WORDS {
            0 | 8 | 16 => true,
            at => (24..24 + USED).contains(&at),
        };
        let word = |at| match is_used(at) {
            true => Checked::Used(AtomicU64::new(0)),
            false => Checked::Unused,
        };
        Self(Arc::new((0..2 * WORDS).map(word).collect()))
    }
}

impl Deref for Shared {
    type Target = [Checked];

    fn deref(&self) -> &[Checked] {
        &self.0
    }
}

impl Memory for Shared {
    type Word = Checked;
}

/// The messages in a socket, in one direction.
#[derive(Default)]
struct Socket {
    bytes: Mutex<Vec<u8>>,
    filled: Condvar,
}

impl Socket {
    fn write(&self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.bytes.lock().unwrap().extend_from_slice(bytes);
            self.filled.notify_one();
        }
    }

    fn wait(&self) -> Vec<u8> {
        let mut bytes = self.bytes.lock().unwrap();
        while bytes.is_empty() {
            bytes = self.filled.wait(bytes).unwrap();
        }
        mem::take(&mut bytes)
    }
}

/// Both sides and their sockets.
fn pair() -> ([Side<Shared>; 2], [Arc<Socket>; 2]) {
    let words = Shared::new();
    let first = Rings::new(words.clone(), RingIndex::First, RingIndex::Second);
    let second = Rings::new(words, RingIndex::Second, RingIndex::First);
    ([Side::new(first), Side::new(second)], [Arc::default(), Arc::default()])
}

fn send(side: &mut Side<Shared>, to: &Socket, number: u8) {
    let mut sent = Vec::new();
    side.send(&[number], &mut sent);
    to.write(&sent);
}

/// Receives this number of messages, and sleeps while there is none.
fn receive_all(side: &mut Side<Shared>, from: &Socket, count: usize) {
    while side.received.len() < count {
        side.sleep();
        if side.received.len() < count && side.sleeps {
            side.receive(&from.wait());
        }
    }
    let expected: Vec<Vec<u8>> = (0..count).map(|number| vec![number as u8]).collect();
    assert_eq!(side.received, expected, "lost, doubled or out of order");
}

fn check(preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut checker = loom::model::Builder::new();
    checker.preemption_bound = preemptions;
    checker.max_branches = 10_000;
    checker.check(model);
}

/// One side sends, and the other receives and sleeps. Three messages would take minutes.
#[test]
fn no_message_is_slept_over() {
    check(Some(3), || {
        let ([mut here, mut there], [_, to_there]) = pair();
        let socket = to_there.clone();
        let sender = thread::spawn(move || {
            for number in 0..3 {
                send(&mut here, &socket, number);
            }
        });
        receive_all(&mut there, &to_there, 3);
        sender.join().unwrap();
    });
}

/// A call and its answer: each side sends once, and sleeps until it has received.
#[test]
fn both_sides_sleep_and_wake() {
    check(None, || {
        let ([mut here, mut there], [to_here, to_there]) = pair();
        let sockets = (to_here.clone(), to_there.clone());
        let worker = thread::spawn(move || {
            receive_all(&mut there, &sockets.1, 1);
            send(&mut there, &sockets.0, 0);
        });
        send(&mut here, &to_there, 0);
        receive_all(&mut here, &to_here, 1);
        worker.join().unwrap();
    });
}

/// Both sides send before they receive.
#[test]
fn messages_cross() {
    check(None, || {
        let ([mut here, mut there], [to_here, to_there]) = pair();
        let sockets = (to_here.clone(), to_there.clone());
        let worker = thread::spawn(move || {
            send(&mut there, &sockets.0, 0);
            receive_all(&mut there, &sockets.1, 1);
        });
        send(&mut here, &to_there, 0);
        receive_all(&mut here, &to_here, 1);
        worker.join().unwrap();
    });
}
