//! A seccomp program: a decision for each system call, as instructions of classic BPF.
//!
//! When a filter is installed, the kernel runs it once for each system call of the architecture, to learn
//! which calls it always allows; those cost nothing later. So the time that a new process takes grows with
//! the instructions on the way to a decision. A chain of comparisons, as `seccompiler` makes of a list,
//! takes about 600 microseconds for 200 calls. This module makes a tree of ranges instead, in which
//! frequent numbers are near the root.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// A comparison of one argument of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) argument: u8,
    pub(crate) test: Test,
}

/// What an argument is compared with. The kernel reads an `int` argument from the low 32 bits, so all
/// tests but `IsNull` ignore the high ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    Is(u32),
    IsNot(u32),
    AtMost(u32),
    AtLeast(u32),
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Allow,
    /// It fails or ends the process, as the level says.
    Refuse,
    /// It fails with ENOSYS. Libraries try an older call then.
    Missing,
    /// It is allowed if all conditions of one alternative are true, and refused otherwise.
    AllowIf(Vec<Vec<Condition>>),
}

/// The decisions for all system calls. Numbers that are not in `calls` are refused up to `last_known`, and
/// missing above it.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) calls: BTreeMap<u32, Decision>,
    pub(crate) last_known: u32,
}

/// The architecture of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86_64,
    Aarch64,
}

impl Architecture {
    /// The architecture of this program, if there are filters for it.
    pub(crate) const OWN: Option<Self> = if cfg!(target_arch = "x86_64") {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else {
        None
    };

    /// The kernel's number of the architecture, `AUDIT_ARCH_…`.
    pub(crate) const fn audit_number(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
        }
    }
}

/// System calls of the x32 architecture have this bit in their number.
const X32_BIT: u32 = 0x4000_0000;

/// A program for the kernel.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: BpfProgram,
    /// The instructions whose operand is the id of the process.
    own_process: Vec<usize>,
}

impl Filter {
    /// Builds the program. `refuse` is what the kernel does to refused calls, `SECCOMP_RET_…`.
    pub(crate) fn new(policy: &Policy, architecture: Architecture, refuse: u32) -> Self {
        let mut builder = Builder { program: Vec::new(), own_process: Vec::new(), refuse };
        builder.load(ARCHITECTURE);
        builder.jump(JUMP_EQUAL, architecture.audit_number(), 1, 0);
        builder.decide(refuse);
        builder.load(NUMBER);
        builder.append_tree(&ranges(policy));
        Self { program: builder.program, own_process: builder.own_process }
    }

    /// The program for the process with this id.
    pub(crate) fn for_process(&self, id: u32) -> BpfProgram {
        let mut program = self.program.clone();
        for &place in &self.own_process {
            program[place].k = id;
        }
        program
    }
}

/// Consecutive numbers with the same decision, up to the next range's start.
#[derive(Debug, PartialEq)]
struct Range<'a> {
    start: u32,
    decision: &'a Decision,
    /// How many numbers there are that programs use.
    width: u32,
}

fn ranges(policy: &Policy) -> Vec<Range<'_>> {
    let mut ranges: Vec<Range<'_>> = Vec::new();
    for number in 0..=policy.last_known {
        let decision = policy.calls.get(&number).unwrap_or(&Decision::Refuse);
        match ranges.last_mut() {
            Some(last) if last.decision == decision => last.width += 1,
            _ => ranges.push(Range { start: number, decision, width: 1 }),
        }
    }
    let start = policy.last_known + 1;
    ranges.push(Range { start, decision: &Decision::Missing, width: 1 });
    ranges.push(Range { start: X32_BIT, decision: &Decision::Refuse, width: 1 });
    ranges
}

// Instructions of classic BPF, and the offsets in `struct seccomp_data`.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// A program that grows. All jumps are forward, as the kernel demands.
struct Builder {
    program: BpfProgram,
    own_process: Vec<usize>,
    refuse: u32,
}

impl Builder {
    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> usize {
        self.program.push(sock_filter { code, jt, jf, k });
        self.program.len() - 1
    }

    fn load(&mut self, offset: u32) {
        self.push(LOAD, offset, 0, 0);
    }

    fn jump(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> usize {
        self.push(code, k, jt, jf)
    }

    fn decide(&mut self, action: u32) {
        self.push(RETURN, action, 0, 0);
    }

    /// Finds the range of the loaded number, by comparisons that halve the rest.
    fn append_tree(&mut self, ranges: &[Range<'_>]) {
        let [first, rest @ ..] = ranges else { return };
        if rest.is_empty() {
            return self.append_decision(first.decision);
        }
        let middle = split(ranges);
        let (low, high) = ranges.split_at(middle);
        // A conditional jump reaches 255 instructions, the unconditional one any.
        self.jump(JUMP_AT_LEAST, high[0].start, 0, 1);
        let to_high = self.push(JUMP, 0, 0, 0);
        self.append_tree(low);
        let distance = self.program.len() - to_high - 1;
        self.program[to_high].k = distance as u32;
        self.append_tree(high);
    }

    fn append_decision(&mut self, decision: &Decision) {
        match decision {
            Decision::Allow => self.decide(libc::SECCOMP_RET_ALLOW),
            Decision::Refuse => self.decide(self.refuse),
            Decision::Missing => self.decide(errno(libc::ENOSYS)),
            Decision::AllowIf(alternatives) => {
                for conditions in alternatives {
                    self.append_alternative(conditions);
                }
                self.decide(self.refuse);
            }
        }
    }

    /// Allows the call if all conditions are true. Goes on behind itself otherwise.
    fn append_alternative(&mut self, conditions: &[Condition]) {
        // The jumps to the end, and whether they are taken when the comparison is true.
        let mut exits = Vec::new();
        for Condition { argument, test } in conditions {
            let offset = ARGUMENTS + 8 * u32::from(*argument);
            if *test == Test::IsNull {
                self.load(offset + 4);
                exits.push((self.jump(JUMP_EQUAL, 0, 0, 0), false));
            }
            self.load(offset);
            if let Test::Masked { mask, .. } = test {
                self.push(AND, *mask, 0, 0);
            }
            let (code, operand, exits_if) = match *test {
                Test::Is(value) | Test::Masked { value, .. } => (JUMP_EQUAL, value, false),
                Test::IsNot(value) => (JUMP_EQUAL, value, true),
                Test::AtMost(value) => (JUMP_ABOVE, value, true),
                Test::AtLeast(value) => (JUMP_AT_LEAST, value, false),
                Test::IsNull | Test::IsOwnProcess => (JUMP_EQUAL, 0, false),
            };
            let place = self.jump(code, operand, 0, 0);
            exits.push((place, exits_if));
            if *test == Test::IsOwnProcess {
                self.own_process.push(place);
            }
        }
        self.decide(libc::SECCOMP_RET_ALLOW);
        for (place, exits_if) in exits {
            // At most four instructions for each of six arguments.
            let distance = (self.program.len() - place - 1) as u8;
            let instruction = &mut self.program[place];
            *(if exits_if { &mut instruction.jt } else { &mut instruction.jf }) = distance;
        }
    }
}

/// What the kernel returns for a call that fails with this error.
pub(crate) const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

/// The number of ranges in the low half: both halves have as many numbers as possible.
fn split(ranges: &[Range<'_>]) -> usize {
    let total: u32 = ranges.iter().map(|range| range.width).sum();
    let mut low = 0;
    let mut best = (u32::MAX, 1);
    for middle in 1..ranges.len() {
        low += ranges[middle - 1].width;
        best = best.min((low.abs_diff(total - low), middle));
    }
    best.1
}
