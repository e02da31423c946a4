//! The credit for the items of a stream, in either direction: what an item costs, and how its receiver gives more.

/// How much a sender may be ahead of the reader, in bytes. One item may exceed it.
pub(crate) const WINDOW: u64 = 256 << 10;

/// How much credit an item uses beside its bytes, so that few short items are outstanding.
pub(crate) const ITEM_OVERHEAD: u64 = 256;

/// How much credit each descriptor of an item uses, so that few are outstanding: a process can have few of them open.
pub(crate) const FILE_COST: u64 = 4096;

/// How much credit an item uses whose message has `length` bytes, with those that do not travel in it, and `files`
/// descriptors.
pub(crate) fn item_cost(length: usize, files: usize) -> u64 {
    let files = (files as u64).saturating_mul(FILE_COST);
    (length as u64).saturating_add(ITEM_OVERHEAD).saturating_add(files)
}

/// The receiver's account of one stream.
#[derive(Debug)]
pub(crate) struct Window {
    /// How much credit the sender has been given in all.
    granted: u64,
    /// How much of that the received items have used.
    used: u64,
    /// How much of that the items have used that were taken.
    taken: u64,
    /// How much the sender may be ahead.
    size: u64,
}

impl Default for Window {
    /// One of [`WINDOW`] bytes.
    fn default() -> Self {
        Self::new(WINDOW)
    }
}

impl Window {
    /// One of this size, which the sender has been given.
    pub(crate) fn new(size: u64) -> Self {
        Self { granted: size, used: 0, taken: 0, size }
    }

    /// How much credit the sender has been given in all.
    pub(crate) fn granted(&self) -> u64 {
        self.granted
    }

    /// Counts an item whose message has `length` bytes and `files` descriptors.
    ///
    /// # Errors
    /// How the sender has broken the protocol.
    pub(crate) fn receive(&mut self, cost: u64, length: usize, files: usize) -> Result<(), String> {
        if self.used >= self.granted {
            return Err("an item without credit".to_owned());
        }
        if cost < item_cost(length, files) {
            return Err(format!(
                "an item of {length} bytes with {files} descriptors at the cost of {cost}"
            ));
        }
        self.used = self.used.saturating_add(cost);
        Ok(())
    }

    /// Counts an item of this cost as taken. Returns how much credit the sender is to have in all, if it is to have more.
    pub(crate) fn take(&mut self, cost: u64) -> Option<u64> {
        self.taken = self.taken.saturating_add(cost);
        let wanted = self.taken.saturating_add(self.size);
        // Few messages are enough: each gives at least half of the window.
        let gives = wanted - self.granted.min(wanted) >= self.size / 2;
        if gives {
            self.granted = wanted;
        }
        gives.then_some(wanted)
    }

    /// Whether an item has come.
    pub(crate) fn has_begun(&self) -> bool {
        self.used > 0
    }
}

/// The sender's account of one stream.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    /// How much credit the receiver has given in all.
    granted: u64,
    /// How much of that the sent items have used.
    used: u64,
}

impl Allowance {
    /// One that has this first credit.
    pub(crate) fn new(granted: u64) -> Self {
        Self { granted, used: 0 }
    }

    /// Whether an item may be sent.
    pub(crate) fn allows(&self) -> bool {
        self.used < self.granted
    }

    pub(crate) fn spend(&mut self, cost: u64) {
        self.used = self.used.saturating_add(cost);
    }

    /// Sets how much credit the receiver gives in all.
    ///
    /// # Errors
    /// How the receiver has broken the protocol.
    pub(crate) fn grant(&mut self, credit: u64) -> Result<(), &'static str> {
        if credit < self.granted {
            return Err("took credit back");
        }
        self.granted = credit;
        Ok(())
    }

    /// Whether the receiver has given any credit.
    pub(crate) fn has_begun(&self) -> bool {
        self.granted > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_cost_so_much_that_few_are_outstanding() {
        let mut window = Window::default();
        let mut files = 0;
        while window.receive(item_cost(10, 1), 10, 1).is_ok() {
            files += 1;
        }
        assert!(files <= 64, "{files}");
        let mut window = Window::default();
        let error = window.receive(item_cost(10, 2) - 1, 10, 2).unwrap_err();
        assert!(error.contains("with 2 descriptors at the cost of 8457"), "{error}");
    }

    #[test]
    fn credit_is_never_taken_back() {
        let mut allowance = Allowance::default();
        assert!(!allowance.allows() && !allowance.has_begun());
        allowance.grant(1000).unwrap();
        allowance.spend(2000);
        assert!(!allowance.allows());
        assert_eq!(allowance.grant(999), Err("took credit back"));
        allowance.grant(u64::MAX).unwrap();
        assert!(allowance.allows());
    }
}
