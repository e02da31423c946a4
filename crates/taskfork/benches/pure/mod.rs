//! The parts of a call that need nothing but the processor.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_imports,
    reason = "parts of the crate are included, of which a benchmark needs some"
)]

#[path = "../../src/client/pool/mod.rs"]
mod pool;

use std::hint::black_box;
use std::time::{Duration, Instant};

use pool::{CheckedOut, Lease, Overload, Pool, PoolLimits, Released};
use taskfork::__private::bench::{decode_answer, decode_call, encode_answer, encode_call};

/// What client and worker encode and decode for one call of `echo`.
pub struct Codec {
    text: String,
    call: Vec<u8>,
    answer: Vec<u8>,
}

impl Codec {
    pub fn new(bytes: usize) -> Self {
        Self { text: "x".repeat(bytes), call: Vec::new(), answer: Vec::new() }
    }

    pub fn there_and_back(&mut self) -> String {
        self.call.clear();
        self.answer.clear();
        assert!(encode_call(&mut self.call, "echo", (&self.text,)));
        let (text,): (String,) = decode_call(&self.call).unwrap();
        assert!(encode_answer(&mut self.answer, &text));
        decode_answer(&self.answer).unwrap()
    }
}

/// A pool of one worker with this number of waiting checkouts.
pub struct Turns {
    pool: Pool<u64, u64, ()>,
    held: Option<Lease<u64>>,
    now: Instant,
}

impl Turns {
    pub fn new(waiting: u64) -> Self {
        let mut pool = Pool::new(PoolLimits {
            min_workers: 0,
            max_workers: 1,
            max_checkouts: None,
            max_queue: None,
            overload: Overload::RefuseNewest,
            aging: Duration::from_secs(1),
        });
        let now = Instant::now();
        for number in 0..=waiting {
            assert!(matches!(pool.check_out(0, || (number, now)), CheckedOut::Queued(..)));
        }
        let permit = pool.permit(now).unwrap();
        let held = match pool.connected(permit, 0, now) {
            Released::Assigned(_, lease) => Some(lease),
            _ => None,
        };
        Self { pool, held, now }
    }

    /// One more waits, and the worker goes from one to the next.
    pub fn take_one(&mut self) {
        self.wait();
        self.pass_on();
    }

    /// One more waits.
    pub fn wait(&mut self) {
        assert!(matches!(
            black_box(self.pool.check_out(0, || (0, self.now))),
            CheckedOut::Queued(..)
        ));
    }

    /// The worker goes from one to the next.
    pub fn pass_on(&mut self) {
        let Released::Assigned(waiter, lease) = self.pool.release(self.held.take().unwrap()) else {
            panic!("nobody waits");
        };
        black_box(waiter);
        self.held = Some(lease);
    }
}
