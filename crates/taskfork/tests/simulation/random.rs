//! Random numbers, by xorshift.

#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    /// The numbers of a seed for one purpose.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        let mixed = (seed ^ purpose << 48).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Self(mixed | 1);
        for _ in 0..8 {
            random.below(1);
        }
        random
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub(crate) fn pick<const N: usize>(&mut self, choices: [u64; N]) -> u64 {
        choices[self.below(N as u64) as usize]
    }

    /// How many bytes a blob has: some are longer than a frame may be.
    pub(crate) fn length(&mut self) -> u64 {
        let limit = self.pick([10, 10, 500, 500, 500, 5000, 5000, 70_000]);
        self.below(limit)
    }
}
