//! What a seed decides.

use std::time::Duration;

use crate::client::io::transport::memory::Faults;

/// Random numbers, by xorshift.
#[derive(Debug, Clone, Copy)]
pub(super) struct Random(u64);

impl Random {
    /// The numbers of a seed for one purpose.
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        let mixed = (seed ^ purpose << 48).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Self(mixed | 1);
        for _ in 0..8 {
            random.below(1);
        }
        random
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    /// True once in `times`.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(super) fn milliseconds_below(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.below(limit))
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) workers: usize,
    pub(super) checkouts: u64,
    /// Of each checkout.
    pub(super) calls: u64,
    pub(super) timeout: Duration,
    pub(super) reuse_after_error: bool,
    /// How many bytes of unanswered calls a worker accepts.
    pub(super) pipeline_window: usize,
    /// Whether anything but success can happen.
    pub(super) has_faults: bool,
}

/// What a worker does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deed {
    Answers,
    Fails,
    Hangs,
    Dies,
    /// The server says that it has died.
    DiesWithNotice,
}

/// What a worker does.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerPlan {
    pub(super) random: Random,
    pub(super) pipeline_window: usize,
    pub(super) has_faults: bool,
    /// It takes this long before its hello.
    pub(super) greets_after: Duration,
    /// The server says that there is no worker yet.
    pub(super) is_queued: bool,
    pub(super) dies_before_its_hello: bool,
}

impl Plan {
    pub(super) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        Self {
            seed,
            workers: 1 + random.below(4) as usize,
            checkouts: 1 + random.below(6),
            calls: 1 + random.below(8),
            timeout: [Duration::from_secs(1), Duration::from_secs(60)][random.below(2) as usize],
            reuse_after_error: random.once_in(2),
            pipeline_window: [0, 60, 200, 1 << 16][random.below(4) as usize],
            has_faults: !random.once_in(4),
        }
    }

    /// What happens to the stream with this number.
    pub(super) fn faults(&self, number: u64) -> Faults {
        let mut random = Random::new(self.seed, 1000 + number);
        Faults {
            seed: random.below(u64::MAX),
            max_piece: 1 + random.below(80) as usize,
            capacity: 1 + random.below(400) as usize,
            bad_timing: random.once_in(3),
            // The hello has some 40 bytes.
            cut_after: (self.has_faults && random.once_in(4))
                .then_some(1 + random.below(200) as usize),
        }
    }

    /// What the worker with this number does.
    pub(super) fn worker(&self, number: u64) -> WorkerPlan {
        let mut random = Random::new(self.seed, 2000 + number);
        let has_faults = self.has_faults && random.once_in(2);
        let slow = [1, 50, 5000][random.below(3) as usize];
        WorkerPlan {
            pipeline_window: self.pipeline_window,
            has_faults,
            greets_after: if has_faults { random.milliseconds_below(slow) } else { Duration::ZERO },
            is_queued: has_faults && random.once_in(5),
            dies_before_its_hello: has_faults && random.once_in(8),
            random,
        }
    }
}

impl WorkerPlan {
    pub(super) fn deed(&mut self) -> Deed {
        if !self.has_faults {
            return Deed::Answers;
        }
        match self.random.below(20) {
            0 | 1 => Deed::Fails,
            2 => Deed::Hangs,
            3 => Deed::Dies,
            4 => Deed::DiesWithNotice,
            _ => Deed::Answers,
        }
    }
}
