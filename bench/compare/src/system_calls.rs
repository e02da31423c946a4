//! How many system calls one call takes while both sides sleep in between, by `perf stat`.
//!
//! A debugger would count them too, but it slows both sides down, and whether a side finds the other one
//! asleep depends on their speed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use taskfork::Client;
use taskfork::client::BusyPoll;
use tokio::runtime::Builder;

use crate::pools::text;
use crate::sample::Sample;

/// What a process does before its first call and after its last is in both runs, so it is not in their
/// difference.
const FEW: u64 = 100;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Side {
    Client,
    Worker,
}

pub fn measure(side: Side, calls: usize) -> Sample {
    let many = FEW + calls as u64;
    match count(side, FEW).and_then(|few| Ok(count(side, many)?.saturating_sub(few))) {
        Ok(more) => Sample::of(more as f64 / calls as f64),
        Err(why) => Sample::failed(format!("not measured: {why}")),
    }
}

/// The system calls of one side in a run of `calls` calls.
fn count(side: Side, calls: u64) -> Result<u64, String> {
    let mut caller = Caller::start(calls)?;
    let pid = match side {
        Side::Client => caller.process.id(),
        Side::Worker => caller.worker,
    };
    let perf = Command::new("perf")
        .args(["stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()])
        .env("LC_ALL", "C")
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("perf cannot run: {error}"))?;
    // It does not say when it has begun to count. What it misses is before the first call.
    std::thread::sleep(Duration::from_millis(300));
    caller.go();
    await_end(pid);
    // SAFETY: a plain system call on a process of this program's own, which has not been waited for.
    unsafe { libc::kill(perf.id().cast_signed(), libc::SIGINT) };
    let output = perf.wait_with_output().map_err(|error| error.to_string())?;
    parse(&String::from_utf8_lossy(&output.stderr))
        .ok_or("perf cannot count system calls".to_owned())
}

/// Waits until a process has ended; the worker ends after its client.
fn await_end(pid: u32) {
    for _ in 0..1000 {
        if !std::fs::exists(format!("/proc/{pid}")).unwrap_or(false) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The count in what perf prints: values with commas between them.
fn parse(output: &str) -> Option<u64> {
    let line = output.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

/// A client in a process of its own, which waits for the word to begin.
struct Caller {
    process: Child,
    input: Option<ChildStdin>,
    worker: u32,
}

impl Caller {
    fn start(calls: u64) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut process = Command::new(program)
            .args(["calls", &calls.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let mut caller = Self { process, input, worker: 0 };
        let mut line = String::new();
        let read = output.map(|output| BufReader::new(output).read_line(&mut line));
        read.transpose().map_err(|error| error.to_string())?;
        caller.worker = line.trim().parse().map_err(|_| "the client did not start".to_owned())?;
        Ok(caller)
    }

    /// Lets the client begin, and waits until it has ended. The count is too small if it has died before.
    fn go(&mut self) {
        drop(self.input.take().map(|mut input| input.write_all(b"go\n")));
        let _ = self.process.wait();
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the client's process runs: a checkout for each call. Neither side spins.
pub fn make_calls(calls: u64) {
    let server = taskfork::Server::spawn("asleep").expect("a server");
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::builder().address(server.address()).min_workers(1).max_workers(1);
        let client = client.busy_poll(BusyPoll::Off).build().expect("a client");
        println!("{}", client.call::<u32>("pid", ()).await.expect("an answer"));
        std::io::stdin().read_line(&mut String::new()).expect("the word to begin");
        for _ in 0..calls {
            let _: String = client.call("echo", (text(),)).await.expect("an answer");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_value_of_its_line() {
        assert_eq!(parse("3,,raw_syscalls:sys_enter,47559,100.00,,\n"), Some(3));
        assert_eq!(parse("\n<not counted>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(parse("Error: no permission\n"), None);
    }
}
