//! Checks that client and server do not grow: a million calls, and ten thousand workers that die and
//! are replaced. `cargo bench -p taskfork --bench memory` prints a line for each: `NAME ratio VALUE
//! goal GOAL`. The ratio is the memory at the end to that after a tenth of the run. The benchmark fails
//! if a ratio is above its goal.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

use std::process::ExitCode;

use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};

const DEATHS: u32 = 10_000;
const CALLS_EACH: u32 = 100;
const GOAL: f64 = 1.10;

fn main() -> ExitCode {
    taskfork::init(&[("server", server)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if runtime.block_on(run()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .interface(
            Methods::new()
                .function("echo", |text: String| Ok(text))
                .function("die", || -> Result<(), BoxError> { std::process::exit(1) }),
        )
        .run()
}

/// Tells whether both stayed as they were.
async fn run() -> bool {
    let server = Server::spawn("server").unwrap();
    let client = Client::builder().address(server.address()).max_workers(2).build().unwrap();
    let processes = [("memory_client", std::process::id()), ("memory_server", server.pid())];
    let mut before = [0; 2];
    let text = "x".repeat(64);
    for death in 0..DEATHS {
        if death == DEATHS / 10 {
            before = processes.map(|(_, pid)| resident(pid));
        }
        let checkout = client.checkout();
        // Some wait for their turn, some are sent one by one.
        let queued: Vec<_> =
            (0..CALLS_EACH / 2).map(|_| checkout.call::<String>("echo", (&text,))).collect();
        for call in queued {
            assert_eq!(call.await.unwrap().len(), 64);
        }
        for _ in 0..CALLS_EACH / 2 {
            client.call::<String>("echo", (&text,)).await.unwrap();
        }
        checkout.call::<()>("die", ()).await.unwrap_err();
    }
    let after = processes.map(|(_, pid)| resident(pid));
    println!("{} calls, {DEATHS} workers died", DEATHS * CALLS_EACH);
    let mut kept = true;
    for ((name, _), (before, after)) in processes.into_iter().zip(before.into_iter().zip(after)) {
        let ratio = after as f64 / before as f64;
        println!("{name}: {before} KiB after a tenth, {after} KiB at the end");
        println!("{name} ratio {ratio:.2} goal {GOAL:.2}");
        kept &= ratio <= GOAL;
    }
    kept
}

/// What a process occupies, in KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
