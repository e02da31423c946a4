//! A thousand nodes under load, of which a hundred are killed: answers, evenness, and the time of acquisitions.
//!
//! All run in one process with a NATS server of its own. `SEED`, `NODES`, `ROOM`, `CLIENTS`, `ACQUISITIONS` and
//! `HOLD_MS` change the plan.

#![expect(clippy::unwrap_used, reason = "a measurement that fails panics")]

use std::time::Duration;

#[path = "../tests/nats/server.rs"]
#[expect(dead_code, reason = "for tests")]
mod server;
#[path = "../tests/nats/simulated.rs"]
mod simulated;

fn main() {
    let nodes = number("NODES", 1000);
    let plan = simulated::Plan {
        seed: number("SEED", 1) as u64,
        nodes,
        killed: nodes / 10,
        room: number("ROOM", 64),
        clients: number("CLIENTS", 4500),
        connections: 8,
        acquisitions: number("ACQUISITIONS", 50_000),
        hold: Duration::from_millis(number("HOLD_MS", 4000) as u64),
        heartbeat: Duration::from_secs(2),
    };
    let acquisitions = plan.acquisitions;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = server::NatsServer::start();
    let mut outcome = runtime.block_on(plan.run(&server));

    for text in outcome.wrong.iter().take(10) {
        println!("wrong: {text}");
    }
    let (right, lost, wrong) = (outcome.right, outcome.lost, outcome.wrong.len());
    println!(
        "{acquisitions} acquisitions in {:.1?}: {right} right, {lost} lost with their nodes, {wrong} wrong",
        outcome.took
    );
    let (mean, shares) = outcome.loads();
    let [least, most, deviation] = shares.map(|share| share * 100.0);
    println!(
        "sessions at a time of a node that lives: {mean:.2} on average, least {least:.0} % and most {most:.0} % of \
         it, standard deviation {deviation:.1} %"
    );
    let acquired = median(&mut outcome.acquired);
    let bare = median(&mut outcome.bare);
    println!(
        "acquisition: median {acquired:.1?}; two round trips of NATS at the same time: {bare:.1?}; ratio {:.2}",
        acquired.as_secs_f64() / bare.as_secs_f64()
    );
    assert_eq!((wrong, right + lost), (0, acquisitions));
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
