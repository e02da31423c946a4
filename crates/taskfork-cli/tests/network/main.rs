//! A fleet in network namespaces, and what happens to it: processes that are killed or stopped, cables that are
//! unplugged, direct ways that are closed, slow links.
//!
//! Each seed draws a schedule of faults. Afterwards each call must have ended once, with its own right answer or
//! an error that fits, no call may have run twice, and nothing may be left on any host.
//!
//! `SEEDS=FIRST..END` chooses other seeds than the usual ones, and `SEED=N` one of them. These tests need root, for
//! namespaces. Elsewhere they say so and do nothing, unless `NETWORK=required` is set.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod client;
mod faults;
mod fleet;
mod leftovers;
mod network;
mod random;
mod seed;

use std::ops::Range;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// What runs without other instructions.
const USUAL: Range<u64> = 0..5;

/// How a process gets namespaces of its own. When it ends, the kernel kills all that it has started.
const UNSHARE: [&str; 7] =
    ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];

/// What shows that namespaces and bridges can be made.
const ATTEMPT: [&str; 3] = ["sh", "-c", "ip link add br0 type bridge && nft list ruleset"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run-client", url, name, record, long, route] => {
            client::run(url, name, record, long == "long", route)
        }
        ["run-seed", number] => seed::run(number.parse().unwrap()),
        _ if arguments.iter().any(|argument| argument == "--list") => println!("network: test"),
        _ => return run_seeds(),
    }
    ExitCode::SUCCESS
}

fn run_seeds() -> ExitCode {
    let allowed = Command::new("unshare").args(UNSHARE).args(ATTEMPT).output();
    if let Some(why) = match &allowed {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    } {
        println!(
            "network: not run. Network namespaces or bridges are not allowed here, or `unshare`, `ip` or `nft` is missing ({why}): run \
             as root, with util-linux, iproute2 and nftables"
        );
        let required = std::env::var("NETWORK").is_ok_and(|value| value == "required");
        return if required { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    for seed in seeds() {
        let began = Instant::now();
        // A test that is killed leaves nothing either.
        let status = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(UNSHARE)
            .arg(std::env::current_exe().unwrap())
            .args(["run-seed", &seed.to_string()])
            .status();
        if !status.is_ok_and(|status| status.success()) {
            println!(
                "network: seed {seed} has failed. Once more: SEED={seed} cargo test -p taskfork-cli --test network"
            );
            return ExitCode::FAILURE;
        }
        println!("network: seed {seed} took {:.1?}", began.elapsed());
    }
    ExitCode::SUCCESS
}

fn seeds() -> Range<u64> {
    let number = |text: &str| text.parse::<u64>().unwrap();
    if let Ok(seed) = std::env::var("SEED") {
        return number(&seed)..number(&seed) + 1;
    }
    match std::env::var("SEEDS") {
        Ok(range) => {
            let (first, end) = range.split_once("..").unwrap();
            number(first)..number(end)
        }
        Err(_) => USUAL,
    }
}
