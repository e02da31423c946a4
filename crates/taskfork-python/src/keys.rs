//! Bounds the time in which a `dict` is made of a map that a peer has sent.
//!
//! The hashes of numbers and of tuples of numbers are known beforehand. So a peer could choose keys that all compete for the same
//! places, and each insertion would look at all of those before it. The places in which a `dict` looks follow from the hash
//! alone: they are followed here, in a table without keys, and counted.

use pyo3::prelude::*;

/// A map with fewer keys takes no time worth mentioning.
pub(crate) const FEW: usize = 32;

/// So many steps are allowed in all, and for each key. Multiples of powers of two need up to 35.
const FEW_STEPS: usize = 4096;
const STEPS_PER_KEY: usize = 64;

/// The places of a `dict`, which has twice as many again as it needs, or fewer.
#[derive(Default)]
pub(crate) struct Places {
    taken: Vec<bool>,
    hashes: Vec<u64>,
    steps: usize,
}

/// More steps than any map needs by chance.
#[derive(Debug)]
pub(crate) struct Collisions;

impl Places {
    /// Looks for a key with this hash.
    pub(crate) fn look_for(&mut self, hash: u64) -> Result<(), Collisions> {
        self.find(hash).map(drop)
    }

    /// Inserts a key with this hash, which is not there.
    pub(crate) fn insert(&mut self, hash: u64) -> Result<(), Collisions> {
        self.hashes.push(hash);
        if self.hashes.len() > self.taken.len() * 2 / 3 {
            // As a `dict` does: three times as many as it had.
            let size = ((self.hashes.len() - 1) * 3).next_power_of_two().max(8);
            self.taken = vec![false; size];
            for index in 0..self.hashes.len() {
                self.take_place(self.hashes[index])?;
            }
            return Ok(());
        }
        self.take_place(hash)
    }

    fn take_place(&mut self, hash: u64) -> Result<(), Collisions> {
        let place = self.find(hash)?;
        if let Some(taken) = self.taken.get_mut(place) {
            *taken = true;
        }
        Ok(())
    }

    /// The first free place for a hash.
    fn find(&mut self, hash: u64) -> Result<usize, Collisions> {
        let mask = (self.taken.len().max(1) - 1) as u64;
        let (mut place, mut rest) = (hash & mask, hash);
        while self.taken.get(place as usize).is_some_and(|taken| *taken) {
            self.steps += 1;
            if self.steps > FEW_STEPS + STEPS_PER_KEY * self.hashes.len() {
                return Err(Collisions);
            }
            rest >>= 5;
            place = place.wrapping_mul(5).wrapping_add(rest).wrapping_add(1) & mask;
        }
        Ok(place as usize)
    }
}

/// Whether a map or a set whose keys have these hashes would take too long. They are all different.
#[pyfunction]
pub(crate) fn are_colliding(hashes: Vec<i64>) -> bool {
    let mut places = Places::default();
    hashes.into_iter().any(|hash| places.insert(hash as u64).is_err())
}
