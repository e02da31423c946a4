//! What happens in a run: the steps of callers and the faults. A seed expands to a plan, and a plan is plain
//! text that can be read back.

use std::fmt::{self, Write as _};

use super::random::Random;
use super::words::words;

/// How many steps a caller has, roughly. With these, a run has some 1,000 steps of all kinds.
const STEPS_OF_A_CALLER: u64 = 22;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) server: ServerPlan,
    pub(crate) clients: Vec<ClientPlan>,
    pub(crate) callers: Vec<CallerPlan>,
    pub(crate) faults: Vec<Fault>,
}

words! {
    /// The server's options.
    pub(crate) enum ServerPlan {
        /// `waiting` is the most clients that wait. `window` is how many bytes of unanswered calls a worker
        /// accepts. `calls`, `age` and `idle` say when a worker is replaced: times are in milliseconds, and
        /// 0 is no limit. With `sharing` 1, messages carry files and memory is shared, and with 2 rings as well.
        /// The setup of a worker takes `setup` milliseconds.
        Server "server" { workers, spares, waiting, window, calls, age, idle, sharing, setup },
    }
}

words! {
    /// A client's options.
    pub(crate) enum ClientPlan {
        /// `queue` is the longest queue, and 0 is no limit. `overload` is 1 if the oldest checkout is dropped
        /// then. `timeout` is in milliseconds. `reuse` is 1 if a worker serves on after an error. Before it sleeps, a
        /// task looks `polls` times for its answer.
        Client "client" { workers, checkouts, queue, overload, timeout, reuse, polls },
    }
}

/// One task that uses a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CallerPlan {
    pub(crate) client: usize,
    pub(crate) steps: Vec<Step>,
}

words! {
    /// What a caller does next. Times are in milliseconds.
    pub(crate) enum Step {
        /// Begins another checkout. Its calls have this time limit, or the client's if it is 0.
        Checkout "checkout" { timeout },
        /// Makes a call that returns its number.
        Echo "echo" {},
        /// Makes a call that fails.
        Fail "fail" {},
        /// Makes a call that takes this long.
        Sleep "sleep" { time },
        /// Makes a call that never ends.
        Hang "hang" {},
        /// Makes a call that ends its worker.
        Die "die" {},
        /// Makes a call with this many bytes, and one that returns them.
        Send "send" { length },
        Get "get" { length },
        /// Makes a call with an open file, and one that returns one.
        Pass "pass" {},
        Open "open" {},
        /// Makes a call whose method sends `sends` items. If `items` is not 0, it has an input of so many, of which the
        /// method takes `takes` at most. Each item has `length` bytes.
        Stream "items" { sends, items, takes, length },
        /// Takes the outcome of the oldest call.
        Take "take" {},
        /// The same, but drops the call after this time.
        TakeWithin "within" { time },
        /// Takes the outcome of the newest call.
        TakeNewest "newest" {},
        /// Takes the outcomes of the two oldest calls, as soon as each is there.
        TakeBoth "both" {},
        /// Changes the time limit of further calls of the checkout.
        Limit "limit" { timeout },
        /// Changes their time limit that counts from when they begin to run.
        RunLimit "run-limit" { timeout },
        /// Drops the call with this place among those whose outcome was not taken.
        Drop "drop" { place },
        /// Drops the checkout. Its calls go on.
        Release "release" {},
        Abort "abort" {},
        Pause "pause" { time },
        /// Closes the client.
        Close "close" {},
    }
}

words! {
    /// Something that goes wrong. Connections are numbered from 0 and workers from 1 on, calls of a
    /// worker from 1 on. Times are in milliseconds; those of workers count from the fork, others from the start.
    pub(crate) enum Fault {
        /// The bytes of this connection come in pieces, and few of them wait. If `timing` is 1, readiness comes late
        /// or without bytes. If it is more, the client's task is woken `timing - 1` milliseconds late.
        Stream "stream" { connection, piece, capacity, timing },
        /// The connection ends after this number of bytes for the client.
        Cut "cut" { connection, bytes },
        /// Files on this connection are lost, as if their receivers could open no more.
        LoseFiles "lose-files" { connection },
        /// The worker takes this long before its hello.
        Slow "slow" { worker, time },
        /// The worker dies before its hello, right behind it, or in its setup.
        DieUngreeted "die-ungreeted" { worker },
        DieGreeted "die-greeted" { worker },
        DieInSetup "die-setup" { worker },
        /// Its setup takes so much longer.
        SlowSetup "slow-setup" { worker, time },
        /// It dies when it has read a call, when it runs it, in the middle of the answer, and behind the answer.
        DieBefore "die-before" { worker, call },
        DieRunning "die-running" { worker, call },
        DieAnswering "die-answering" { worker, call },
        DieAfter "die-after" { worker, call },
        /// The worker gets SIGKILL, at whatever it does.
        Kill "kill" { worker, at },
        /// The worker stands still for some time.
        Stop "stop" { worker, at, time },
        /// The notice of its death is lost.
        LoseNotice "lose" { worker },
        /// SIGCHLD for it comes late.
        LateReap "reap" { worker, time },
        /// It sends wrong bytes instead of an answer: what `kind` says.
        Garbage "garbage" { worker, call, kind },
        /// It writes an impossible value to its slot in this call.
        Corrupt "corrupt" { worker, call },
        /// The kernel refuses some forks from this one on.
        Refuse "refuse" { fork, count },
        /// No descriptor is free for some connections from this one on.
        Exhaust "exhaust" { connection, count },
        /// The clock jumps.
        Jump "jump" { at, time },
        /// The server is asked to restart, and the new one comes up if `fails` is 0.
        Restart "restart" { at, fails },
        /// The server is told to end, and another one starts some time later.
        Shutdown "shutdown" { at, time },
        /// The server is killed, and another one starts some time later.
        Crash "crash" { at, time },
        /// A stranger connects and sends wrong bytes.
        Stranger "stranger" { at, kind },
    }
}

impl Plan {
    /// The plan of a seed. Its run has some 1,000 steps.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed, 1);
        let workers = 1 + random.below(4);
        let server = ServerPlan::Server {
            workers: random.pick([workers, 8]),
            spares: random.pick([0, 0, 1, 2]),
            waiting: random.pick([1000, 1000, 2]),
            window: random.pick([0, 60, 200, 1 << 16]),
            calls: random.pick([0, 0, 0, 5]),
            age: random.pick([0, 0, 0, 300]),
            idle: random.pick([0, 0, 0, 20]),
            sharing: random.pick([0, 1, 2, 2, 2, 2]),
            setup: random.pick([0, 0, 2, 30]),
        };
        let has_faults = !random.once_in(5);
        let clients: Vec<_> = (0..1 + random.below(3))
            .map(|_| ClientPlan::Client {
                workers: 1 + random.below(4),
                checkouts: random.pick([0, 0, 3]),
                queue: random.pick([0, 0, 1, 4]),
                overload: random.below(2),
                timeout: random.pick([1000, 60_000]),
                reuse: random.below(2),
                polls: random.pick([0, 0, 1, 5]),
            })
            .collect();
        let callers = (0..6 + random.below(6))
            .map(|_| {
                let client = random.below(clients.len() as u64) as usize;
                CallerPlan { client, steps: steps(&mut random, has_faults) }
            })
            .collect();
        let mut faults = Vec::new();
        streams(&mut random, &mut faults);
        if has_faults {
            for _ in 0..random.below(14) {
                faults.push(Fault::random(&mut random));
            }
        }
        Self { server, clients, callers, faults }
    }

    /// The number of steps and faults.
    pub(crate) fn len(&self) -> usize {
        let steps = self.callers.iter().map(|caller| caller.steps.len());
        steps.sum::<usize>() + self.faults.len()
    }

    /// Whether everything goes on within a minute: no call hangs, and the clock does not jump.
    pub(crate) fn is_brisk(&self) -> bool {
        let mut steps = self.callers.iter().flat_map(|caller| &caller.steps);
        !steps.any(|step| *step == Step::Hang {})
            && !self.faults.iter().any(|fault| matches!(fault, Fault::Jump { .. }))
    }

    /// Reads what [`Display`](fmt::Display) has written.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut server = None;
        let (mut clients, mut callers, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        for word in text.split_whitespace() {
            if let Some(plan) = ServerPlan::parse(word) {
                server = Some(plan);
            } else if let Some(client) = ClientPlan::parse(word) {
                clients.push(client);
            } else if let Some(number) = word.strip_prefix("caller:") {
                let client = number.parse().map_err(|error| format!("{word}: {error}"))?;
                callers.push(CallerPlan { client, steps: Vec::new() });
            } else if let Some(fault) = Fault::parse(word) {
                faults.push(fault);
            } else {
                let step = Step::parse(word).ok_or_else(|| format!("what is {word}?"))?;
                let caller = callers.last_mut().ok_or("the first step has no caller")?;
                caller.steps.push(step);
            }
        }
        let server = server.ok_or("there is no server")?;
        if callers.iter().any(|caller: &CallerPlan| caller.client >= clients.len()) {
            return Err("a caller has no client".to_owned());
        }
        Ok(Self { server, clients, callers, faults })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.server)?;
        self.clients.iter().try_for_each(|client| write!(out, " {client}"))?;
        for caller in &self.callers {
            write!(out, " caller:{}", caller.client)?;
            caller.steps.iter().try_for_each(|step| write!(out, " {step}"))?;
        }
        self.faults.iter().try_for_each(|fault| {
            out.write_char(' ')?;
            fault.fmt(out)
        })
    }
}

fn steps(random: &mut Random, has_faults: bool) -> Vec<Step> {
    let count = 10 + random.below(2 * STEPS_OF_A_CALLER);
    (0..count).map(|_| Step::random(random, has_faults)).collect()
}

impl Step {
    fn random(random: &mut Random, has_faults: bool) -> Self {
        match random.below(if has_faults { 100 } else { 80 }) {
            0..15 => Self::Checkout { timeout: random.pick([0, 0, 0, 500]) },
            15..35 => Self::Echo {},
            // Some calls end in the instant in which their time and the grace are over.
            35..36 => Self::Sleep { time: random.pick([20, 100, 120, 400, 600]) },
            36..40 => Self::Sleep { time: random.below(30) },
            40..43 => Self::Send { length: random.length() },
            43..45 => Self::Get { length: random.length() },
            45..46 => random_file(random),
            46..49 => random_stream(random),
            49..62 => Self::Take {},
            62..63 => Self::TakeNewest {},
            63..64 => Self::TakeBoth {},
            64..69 => Self::Release {},
            69..80 => Self::Pause { time: random.below(40) },
            80..86 => Self::Fail {},
            86..87 if random.once_in(2) => Self::Hang {},
            86..88 => Self::Die {},
            88..89 => Self::Echo {},
            89..92 => Self::TakeWithin { time: random.below(20) },
            92..96 => Self::Drop { place: random.below(3) },
            96..97 => Self::Checkout { timeout: 1 + random.below(40) },
            97..98 if random.once_in(2) => Self::Limit { timeout: random.pick([20, 300, 2000]) },
            97..98 => Self::RunLimit { timeout: random.pick([20, 300, 2000]) },
            98..99 => Self::Abort {},
            _ if random.once_in(6) => Self::Close {},
            _ => Self::Fail {},
        }
    }
}

fn random_stream(random: &mut Random) -> Step {
    // Long ones exceed the credit, so that each side waits for the other.
    let length = random.pick([10, 10, 300, 300, 3000, 20_000]);
    let most = if length > 1000 { 30 } else { 60 };
    let items = if random.once_in(3) { 0 } else { 1 + random.below(most) };
    let sends = if items > 0 && random.once_in(2) { 0 } else { random.below(most) };
    Step::Stream { sends, items, takes: random.below(2 * most), length: random.below(length) }
}

fn random_file(random: &mut Random) -> Step {
    if random.once_in(2) { Step::Pass {} } else { Step::Open {} }
}

/// Connections differ in how their bytes come, even if nothing goes wrong.
fn streams(random: &mut Random, faults: &mut Vec<Fault>) {
    for connection in 0..12 {
        if random.once_in(2) {
            // A server looks at the whole hello before it forks, so that must have room.
            let (piece, capacity) = (1 + random.below(80), 100 + random.below(400));
            let timing = random.pick([0, 0, 0, 1, 1, 1, 2, 4]);
            faults.push(Fault::Stream { connection, piece, capacity, timing });
        }
    }
}

impl Fault {
    fn random(random: &mut Random) -> Self {
        let (worker, connection) = (1 + random.below(10), random.below(10));
        let call = 1 + random.below(4);
        let limit = random.pick([10, 100, 1000]);
        let at = random.below(limit);
        let limit = random.pick([10, 300, 8000]);
        let time = random.below(limit);
        match random.below(26) {
            // The hello has some 40 bytes.
            0 | 1 => Self::Cut { connection, bytes: 1 + random.below(200) },
            2 => Self::Slow { worker, time },
            3 => Self::DieUngreeted { worker },
            4 => Self::DieGreeted { worker },
            5 => Self::DieInSetup { worker },
            6 => Self::DieBefore { worker, call },
            7 => Self::DieRunning { worker, call },
            8 => Self::DieAnswering { worker, call },
            9 => Self::DieAfter { worker, call },
            10 | 11 => Self::Kill { worker, at },
            12 => Self::Stop { worker, at, time },
            13 => Self::LoseNotice { worker },
            14 => Self::LateReap { worker, time: random.below(100) },
            15 => Self::Garbage { worker, call, kind: random.below(5) },
            16 => Self::Refuse { fork: worker, count: 1 + random.below(3) },
            17 => Self::Exhaust { connection, count: 1 + random.below(3) },
            18 => Self::Jump { at, time },
            19 => Self::Crash { at, time },
            20 => Self::Corrupt { worker, call },
            21 => Self::Restart { at, fails: random.below(2) },
            22 => Self::Shutdown { at, time },
            23 => Self::LoseFiles { connection },
            24 => Self::SlowSetup { worker, time },
            _ => Self::Stranger { at, kind: random.below(5) },
        }
    }
}
