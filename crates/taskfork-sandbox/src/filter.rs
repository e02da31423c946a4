//! A seccomp program: a decision for each system call, as instructions of classic BPF.
//!
//! The kernel compiles a filter for each process that installs it, and runs it once for each number of a
//! system call, to learn which calls it always allows; those cost nothing later. So the time that a new
//! process takes grows with the number of instructions, and with those on the way to a decision. A chain
//! of comparisons, as `seccompiler` makes of a list, takes 0.6 milliseconds for 200 calls. This module
//! makes a tree instead, by comparisons that halve the numbers. Its leaves are ranges of numbers with one
//! decision, and few exceptions from it. Equal decisions share their instructions. Where one branch of a
//! jump can follow the jump it does, because the kernel makes two jumps of another one.
//!
//! A table of bits would be shorter. But the kernel does not recognise its instructions when it looks for
//! calls that are always allowed, so each call would run the filter.

use std::collections::HashMap;

use seccompiler::{BpfProgram, sock_filter};

use crate::decision::{Decision, Policy, Test};
use crate::leaves::{Leaf, leaves, split};

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
        let mut builder = Builder::new(refuse);
        let root = builder.tree(&leaves(policy));
        debug_assert_eq!(root, builder.last(), "the tree's first instruction follows");
        builder.load(NUMBER);
        let number = builder.last();
        let refuse = builder.refuse;
        builder.jump(JUMP_EQUAL, architecture.audit_number(), number, refuse);
        builder.load(ARCHITECTURE);
        builder.finish()
    }

    /// Installs the program in this process, whose id is `own_process`.
    ///
    /// It copies the program to the stack: an allocation in a forked process writes to many pages of the
    /// heap, and the kernel copies each of them.
    pub(crate) fn install(&self, own_process: u32) -> seccompiler::Result<()> {
        let mut buffer = [const { sock_filter { code: 0, jt: 0, jf: 0, k: 0 } }; MAX_LENGTH];
        // `new` makes no longer programs.
        let program = &mut buffer[..self.program.len()];
        program.clone_from_slice(&self.program);
        for &place in &self.own_process {
            program[place].k = own_process;
        }
        seccompiler::apply_filter(program)
    }
}

/// More instructions than the largest program has. A test compares them.
const MAX_LENGTH: usize = 320;

// Instructions of classic BPF, and the offsets in `struct seccomp_data`.
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// An instruction, counted from the program's end.
type Place = usize;

/// A program that grows from its end to its start. All jumps are forward, as the kernel demands, so the
/// target of a jump is there before the jump.
struct Builder {
    reversed: BpfProgram,
    own_process: Vec<Place>,
    allow: Place,
    refuse: Place,
    missing: Place,
    /// The decisions that are there already, each for what is loaded when it begins.
    decisions: HashMap<(Decision, Option<u8>), Place>,
}

impl Builder {
    fn new(refuse: u32) -> Self {
        let actions = [errno(libc::ENOSYS), refuse, libc::SECCOMP_RET_ALLOW];
        let reversed = actions.map(|k| sock_filter { code: RETURN, jt: 0, jf: 0, k }).to_vec();
        let (missing, refuse, allow) = (0, 1, 2);
        Self {
            reversed,
            own_process: Vec::new(),
            allow,
            refuse,
            missing,
            decisions: HashMap::new(),
        }
    }

    fn finish(self) -> Filter {
        let last = self.last();
        let mut program = self.reversed;
        program.reverse();
        let own_process = self.own_process.into_iter().map(|place| last - place).collect();
        Filter { program, own_process }
    }

    fn last(&self) -> Place {
        self.reversed.len() - 1
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) {
        self.reversed.push(sock_filter { code, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(LOAD, offset, 0, 0);
    }

    /// Adds a conditional jump.
    fn jump(&mut self, code: u16, k: u32, then: Place, otherwise: Place) {
        let (then, otherwise) = (self.near(then), self.near(otherwise));
        let distance = |to: Place| u8::try_from(self.reversed.len() - to - 1).unwrap_or(u8::MAX);
        let (jt, jf) = (distance(then), distance(otherwise));
        self.push(code, k, jt, jf);
    }

    /// Returns a place that leads to `to` and that the next conditional jump reaches, even if another
    /// instruction comes before it. A conditional jump skips at most 255 instructions.
    fn near(&mut self, to: Place) -> Place {
        let distance = self.reversed.len() - to;
        if distance <= u8::MAX.into() {
            return to;
        }
        self.push(JUMP, (distance - 1) as u32, 0, 0);
        self.last()
    }

    /// Finds the leaf of the loaded number, by comparisons that halve the rest.
    fn tree(&mut self, leaves: &[Leaf<'_>]) -> Place {
        let middle = match leaves {
            [] => return self.refuse,
            [leaf] => return self.leaf(leaf),
            _ => split(leaves),
        };
        let (low, high) = leaves.split_at(middle);
        let start = high[0].start;
        // What is added last is next to the jump.
        let (high, low) = if let [Leaf { decision, exceptions, .. }] = low
            && decision.is_final()
            && exceptions.is_empty()
        {
            let low = self.tree(low);
            (self.tree(high), low)
        } else {
            (self.tree(high), self.tree(low))
        };
        self.jump(JUMP_AT_LEAST, start, high, low);
        self.last()
    }

    fn leaf(&mut self, leaf: &Leaf<'_>) -> Place {
        let exceptions = leaf.exceptions.iter();
        let others: Vec<_> =
            exceptions.map(|(number, decision)| (*number, self.decision(decision, None))).collect();
        let mut next = self.decision(leaf.decision, None);
        for (number, place) in others {
            self.jump(JUMP_EQUAL, number, place, next);
            next = self.last();
        }
        next
    }

    /// Adds a decision, unless it is there. `loaded` is the argument that is loaded when it begins.
    fn decision(&mut self, decision: &Decision, loaded: Option<u8>) -> Place {
        match decision {
            Decision::Allow => self.allow,
            Decision::Refuse => self.refuse,
            Decision::Missing => self.missing,
            Decision::If { argument, test, then, otherwise } => {
                let key = (decision.clone(), loaded);
                if let Some(place) = self.decisions.get(&key) {
                    return *place;
                }
                self.test(*argument, *test, then, otherwise, loaded);
                self.decisions.insert(key, self.last());
                self.last()
            }
        }
    }

    fn test(
        &mut self,
        argument: u8,
        test: Test,
        then: &Decision,
        otherwise: &Decision,
        loaded: Option<u8>,
    ) {
        let offset = ARGUMENTS + 8 * u32::from(argument);
        // What is loaded behind the test.
        let kept = match test {
            Test::Masked { .. } | Test::IsNull => None,
            _ => Some(argument),
        };
        let (then, otherwise) = if otherwise.is_final() {
            let otherwise = self.decision(otherwise, kept);
            (self.decision(then, kept), otherwise)
        } else {
            (self.decision(then, kept), self.decision(otherwise, kept))
        };
        match test {
            Test::Is(value) => self.jump(JUMP_EQUAL, value, then, otherwise),
            Test::IsBetween(first, last) => {
                self.jump(JUMP_ABOVE, last, otherwise, then);
                let within = self.last();
                self.jump(JUMP_AT_LEAST, first, within, otherwise);
            }
            Test::HasNone(mask) => self.jump(JUMP_IF_SET, mask, otherwise, then),
            Test::Masked { mask, value } => {
                self.jump(JUMP_EQUAL, value, then, otherwise);
                self.push(AND, mask, 0, 0);
            }
            Test::IsNull => {
                self.jump(JUMP_EQUAL, 0, then, otherwise);
                self.load(offset);
                let low = self.last();
                self.jump(JUMP_EQUAL, 0, low, otherwise);
                return self.load(offset + 4);
            }
            Test::IsOwnProcess => {
                self.jump(JUMP_EQUAL, 0, then, otherwise);
                self.own_process.push(self.last());
            }
        }
        if loaded != Some(argument) {
            self.load(offset);
        }
    }
}

/// What the kernel returns for a call that fails with this error.
pub(crate) const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::decision::X32_BIT;
    use crate::level::Level;
    use crate::policy::policy;
    use crate::sandbox::Sandbox;

    const OWN_PROCESS: u32 = 4_321;
    const REFUSED: u32 = errno(libc::EPERM);

    /// What the kernel passes to a filter.
    #[derive(Debug, Clone, Copy)]
    struct Call {
        number: u32,
        architecture: u32,
        arguments: [u64; 6],
    }

    /// Runs a program as the kernel does.
    fn run(program: &[sock_filter], call: &Call) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCHITECTURE => call.architecture,
            _ => {
                let place = (offset - ARGUMENTS) / 4;
                (call.arguments[place as usize / 2] >> (32 * (place % 2))) as u32
            }
        };
        let (mut next, mut loaded) = (0, 0);
        loop {
            let instruction = &program[next];
            next += 1;
            let operand = instruction.k;
            let is_true = match instruction.code {
                LOAD => {
                    loaded = word(operand);
                    continue;
                }
                AND => {
                    loaded &= operand;
                    continue;
                }
                JUMP => {
                    next += operand as usize;
                    continue;
                }
                RETURN => return operand,
                JUMP_EQUAL => loaded == operand,
                JUMP_ABOVE => loaded > operand,
                JUMP_AT_LEAST => loaded >= operand,
                JUMP_IF_SET => loaded & operand != 0,
                other => panic!("instruction {other:#x}"),
            };
            next += usize::from(if is_true { instruction.jt } else { instruction.jf });
        }
    }

    /// What a policy says about a call, without a program.
    fn expected(policy: &Policy, call: &Call) -> u32 {
        if call.architecture != Architecture::X86_64.audit_number() {
            return REFUSED;
        }
        let mut decision = policy.decision(call.number);
        loop {
            decision = match decision {
                Decision::Allow => return libc::SECCOMP_RET_ALLOW,
                Decision::Refuse => return REFUSED,
                Decision::Missing => return errno(libc::ENOSYS),
                Decision::If { argument, test, then, otherwise } => {
                    let whole = call.arguments[usize::from(*argument)];
                    if passes(*test, whole) { then } else { otherwise }
                }
            }
        }
    }

    fn passes(test: Test, whole: u64) -> bool {
        let low = whole as u32;
        match test {
            Test::Is(value) => low == value,
            Test::IsBetween(first, last) => (first..=last).contains(&low),
            Test::HasNone(mask) => low & mask == 0,
            Test::Masked { mask, value } => low & mask == value,
            Test::IsNull => whole == 0,
            Test::IsOwnProcess => low == OWN_PROCESS,
        }
    }

    /// The program as a process installs it.
    fn program(policy: &Policy) -> BpfProgram {
        let filter = Filter::new(policy, Architecture::X86_64, REFUSED);
        let mut program = filter.program;
        for place in filter.own_process {
            program[place].k = OWN_PROCESS;
        }
        program
    }

    /// The policies of all levels, without openings and with all of them, and their programs.
    static LEVELS: LazyLock<Vec<(Policy, BpfProgram)>> = LazyLock::new(|| {
        let all = |level| {
            let sandbox = Sandbox::of_level(level).connect_tcp(1).unix_socket("/s").execute("/p");
            sandbox.accept_connections().spawn_programs().kill()
        };
        let sandboxes = Level::ALL.map(Sandbox::of_level).into_iter().chain(Level::ALL.map(all));
        let policies = sandboxes.map(|sandbox| policy(&sandbox));
        policies.map(|policy| (policy.clone(), program(&policy))).collect()
    });

    #[test]
    fn a_program_is_short_enough_to_be_installed() {
        for (_, program) in &*LEVELS {
            let length = program.len();
            assert!(length <= MAX_LENGTH, "{length} instructions");
        }
    }

    #[test]
    fn a_call_of_another_architecture_is_refused() {
        let i386 = 0x4000_0003;
        for (_, program) in &*LEVELS {
            let call = Call { number: 0, architecture: i386, arguments: [0; 6] };
            assert_eq!(run(program, &call), REFUSED);
        }
    }

    #[test]
    fn a_call_of_x32_is_refused_and_one_of_a_later_kernel_is_missing() {
        for (_, program) in &*LEVELS {
            let architecture = Architecture::X86_64.audit_number();
            let call = |number| Call { number, architecture, arguments: [0; 6] };
            assert_eq!(run(program, &call(X32_BIT)), REFUSED);
            assert_eq!(run(program, &call(u32::MAX)), REFUSED);
            assert_eq!(run(program, &call(900)), errno(libc::ENOSYS));
        }
    }

    fn value() -> impl Strategy<Value = u32> {
        const OFTEN: &[u32] =
            &[0, 1, 2, 4, 8, 10, 31, 100, 101, 1030, OWN_PROCESS, 0x5412, 0x2_0000];
        prop_oneof![
            proptest::sample::select(OFTEN),
            0..64_u32,
            any::<u32>(),
            (0..32_u32).prop_map(|bit| 1 << bit),
        ]
    }

    fn any_test() -> impl Strategy<Value = Test> {
        prop_oneof![
            value().prop_map(Test::Is),
            (value(), value()).prop_map(|(a, b)| Test::IsBetween(a.min(b), a.max(b))),
            value().prop_map(Test::HasNone),
            (value(), value()).prop_map(|(mask, value)| Test::Masked { mask, value: value & mask }),
            Just(Test::IsNull),
            Just(Test::IsOwnProcess),
        ]
    }

    fn any_decision() -> impl Strategy<Value = Decision> {
        let leaf =
            prop_oneof![Just(Decision::Allow), Just(Decision::Refuse), Just(Decision::Missing)];
        leaf.prop_recursive(5, 16, 2, |inner| {
            (0..6_u8, any_test(), inner.clone(), inner).prop_map(|(argument, test, a, b)| {
                Decision::If { argument, test, then: Box::new(a), otherwise: Box::new(b) }
            })
        })
    }

    /// An argument that is often a value of the tests, with or without high bits.
    fn any_argument() -> impl Strategy<Value = u64> {
        (value(), prop_oneof![4 => Just(0), 1 => any::<u32>()])
            .prop_map(|(low, high)| u64::from(high) << 32 | u64::from(low))
    }

    fn any_call() -> impl Strategy<Value = Call> {
        let number = prop_oneof![20 => 0..480_u32, 1 => any::<u32>()];
        let arguments = proptest::array::uniform6(any_argument());
        let architecture = Architecture::X86_64.audit_number();
        (number, arguments).prop_map(move |(number, arguments)| Call {
            number,
            architecture,
            arguments,
        })
    }

    proptest! {
        #[test]
        fn a_program_decides_as_the_policy_of_its_level(
            calls in proptest::collection::vec(any_call(), 200),
        ) {
            for (policy, program) in &*LEVELS {
                for call in &calls {
                    prop_assert_eq!(run(program, call), expected(policy, call), "{:?}", call);
                }
            }
        }

        /// With many decisions, so that conditional jumps do not reach far enough.
        #[test]
        fn a_program_decides_as_any_policy(
            calls in proptest::collection::btree_map(0..472_u32, any_decision(), 0..120),
            tried in proptest::collection::vec(any_call(), 50),
        ) {
            let policy = Policy { calls, last_known: 471 };
            let program = program(&policy);
            for call in &tried {
                prop_assert_eq!(run(&program, call), expected(&policy, call), "{:?}", call);
            }
            for &number in policy.calls.keys() {
                let call = Call { number, ..tried[0] };
                prop_assert_eq!(run(&program, &call), expected(&policy, &call), "{:?}", call);
            }
        }
    }
}
