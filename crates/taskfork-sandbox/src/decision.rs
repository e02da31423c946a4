//! What a sandbox decides about each system call.

use std::collections::BTreeMap;

/// What an argument is compared with. The kernel reads an `int` argument from the low 32 bits, so all
/// tests but `IsNull` ignore the high ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Test {
    Is(u32),
    /// At least the first and at most the last value.
    IsBetween(u32, u32),
    /// None of these bits is set.
    HasNone(u32),
    /// The bits in `mask` have this value.
    Masked {
        mask: u32,
        value: u32,
    },
    /// All 64 bits are 0.
    IsNull,
    /// The id of the process that installs the filter.
    IsOwnProcess,
}

/// What happens to a system call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    Allow,
    /// It fails or ends the process, as the sandbox says.
    Refuse,
    /// It fails with ENOSYS. Libraries try an older call then.
    Missing,
    /// The decision depends on an argument.
    If {
        argument: u8,
        test: Test,
        then: Box<Decision>,
        otherwise: Box<Decision>,
    },
}

impl Decision {
    /// Goes on with `self` if the argument passes one of `tests`, and refuses the call otherwise.
    pub(crate) fn if_any(self, argument: u8, tests: impl IntoIterator<Item = Test>) -> Self {
        let tests: Vec<_> = tests.into_iter().collect();
        tests.into_iter().rev().fold(Self::Refuse, |otherwise, test| Self::If {
            argument,
            test,
            then: Box::new(self.clone()),
            otherwise: Box::new(otherwise),
        })
    }

    /// Goes on with `self` if the argument passes `test`, and refuses the call otherwise.
    pub(crate) fn only_if(self, argument: u8, test: Test) -> Self {
        self.if_any(argument, [test])
    }

    /// Refuses the call if the argument passes one of `tests`, and goes on with `self` otherwise.
    pub(crate) fn unless_any(self, argument: u8, tests: impl IntoIterator<Item = Test>) -> Self {
        tests.into_iter().fold(self, |otherwise, test| Self::If {
            argument,
            test,
            then: Box::new(Self::Refuse),
            otherwise: Box::new(otherwise),
        })
    }

    /// Whether it does not depend on an argument.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(self, Self::If { .. })
    }

    /// Goes on with `self` if `test` is true, and with `other` otherwise.
    pub(crate) fn or(self, argument: u8, test: Test, other: Self) -> Self {
        Self::If { argument, test, then: Box::new(self), otherwise: Box::new(other) }
    }
}

/// The decisions for all system calls. Numbers that are not in `calls` are refused up to `last_known`, and
/// missing above it.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) calls: BTreeMap<u32, Decision>,
    pub(crate) last_known: u32,
}

impl Policy {
    /// The decision for the system call with this number.
    pub(crate) fn decision(&self, number: u32) -> &Decision {
        let is_known = number <= self.last_known || number >= X32_BIT;
        let otherwise = if is_known { &Decision::Refuse } else { &Decision::Missing };
        self.calls.get(&number).unwrap_or(otherwise)
    }
}

/// System calls of the x32 architecture have this bit in their number.
pub(crate) const X32_BIT: u32 = 0x4000_0000;
