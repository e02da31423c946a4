//! How many instructions one call takes, outside of the kernel, in the client's and in the worker's
//! process: both are stepped through one by one, a measure that no neighbour on the machine
//! disturbs. What a feature costs is the difference between two builds of it.
//! `cargo bench -p taskfork --bench instructions` prints `call instructions COUNT client COUNT worker
//! COUNT`.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};

const CALLS: &str = "TASKFORK_BENCH_CALLS";
const ADDRESS: &str = "TASKFORK_BENCH_ADDRESS";

/// What both runs have in common falls out of the difference.
const FEW: i64 = 20;
const MANY: i64 = 120;

fn main() {
    taskfork::init(&[("echo", echo)]);
    if let Ok(calls) = std::env::var(CALLS) {
        return make_calls(calls.parse().unwrap(), &std::env::var(ADDRESS).unwrap());
    }
    let (few, many) = (count(FEW), count(MANY));
    let [client, worker] = [0, 1].map(|side| (many[side] - few[side]) / (MANY - FEW));
    println!("call instructions {} client {client} worker {worker}", client + worker);
}

fn echo(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new();
    let methods = methods.function("echo", |text: String| Ok(text));
    server
        .listen("tcp:127.0.0.1:0")
        .interface(methods.function("pid", || Ok(std::process::id())))
        .run()
}

/// The instructions of a client that makes `calls` calls and exits, and of its worker.
#[expect(clippy::zombie_processes, reason = "the client is waited for by its id")]
fn count(calls: i64) -> [i64; 2] {
    let server = Server::spawn("echo").unwrap();
    let mut client = Command::new(std::env::current_exe().unwrap())
        .env(CALLS, calls.to_string())
        .env(ADDRESS, server.address().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut worker = String::new();
    BufReader::new(client.stdout.take().unwrap()).read_line(&mut worker).unwrap();
    let both = [Pid::from_raw(client.id() as i32), Pid::from_raw(worker.trim().parse().unwrap())];
    both.into_iter().for_each(|pid| ptrace::attach(pid).unwrap());
    client.stdin.take().unwrap().write_all(b"go\n").unwrap();

    // The worker goes first whenever it can, as what a client does depends on whether the answer is
    // there when it looks.
    let [client, worker] = both.map(|pid| Stepped { pid, count: 0, runs: true, ended: false });
    let mut both = [worker, client];
    while both.iter().any(|process| !process.ended) {
        let moved = both.iter_mut().find_map(|process| process.step().then_some(()));
        if moved.is_none() {
            std::hint::spin_loop();
        }
    }
    let counts = [both[1].count, both[0].count];
    server.close();
    counts
}

struct Stepped {
    pid: Pid,
    count: i64,
    /// It moved the last time it was looked at.
    runs: bool,
    ended: bool,
}

impl Stepped {
    /// Makes the process execute one instruction, unless it is executing one. Waits 50 microseconds
    /// for a process that is executing. If it has not stopped by then, it is blocked in the kernel.
    fn step(&mut self) -> bool {
        let until = Instant::now() + Duration::from_micros(if self.runs { 50 } else { 0 });
        while !self.ended {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Stopped(pid, signal)) => {
                    self.count += i64::from(signal == Signal::SIGTRAP);
                    let ours = matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP);
                    ptrace::step(pid, (!ours).then_some(signal)).unwrap();
                    self.runs = true;
                    return true;
                }
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => self.ended = true,
                Ok(_) if Instant::now() >= until => break,
                Ok(_) => {}
            }
        }
        self.runs = false;
        false
    }
}

fn make_calls(calls: u64, address: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Client::builder().address(address).min_workers(0).max_workers(1);
        let client = options.build().unwrap();
        let text = "x".repeat(64);
        let checkout = client.checkout();
        println!("{}", checkout.call::<u32>("pid", ()).await.unwrap());
        std::io::stdin().read_line(&mut String::new()).unwrap();
        for _ in 0..calls {
            assert_eq!(checkout.call::<String>("echo", (&text,)).await.unwrap(), text);
        }
    });
}
