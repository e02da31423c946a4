//! Peers that lie, spoken by hand: clients against a real server, servers against a real client. The cases are
//! tables; each is a trial. After each the other side is alive, serves a good peer, and holds nothing more
//! than before.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod case;
mod client_cases;
mod client_fields;
mod client_memory;
mod json_cases;
mod message;
mod server_cases;
mod server_fields;
mod targets;

use case::Case;

/// How many cases run at a time, and how many of one group share a process.
const THREADS: usize = 12;
const SHARE: usize = 48;

fn main() {
    if targets::run_requested() {
        return;
    }
    let mut arguments = libtest_mimic::Arguments::from_args();
    // Most of them wait most of the time.
    arguments.test_threads.get_or_insert(THREADS);
    // Cases that share a process attack it one after the other.
    let groups: Vec<(&'static str, Vec<Case>, targets::Attack)> = vec![
        ("client", client_cases::cases(), targets::attack_server),
        ("client_cut", client_cases::cut_short(), targets::attack_server),
        ("client_fields", client_fields::cases(), targets::attack_server),
        ("client_memory", client_memory::cases(), targets::attack_server),
        ("client_json", json_cases::of_clients(), targets::attack_server),
        ("server", server_cases::cases(), targets::attack_client),
        ("server_cut", server_cases::cut_short(), targets::attack_client),
        ("server_fields", server_fields::cases(), targets::attack_client),
        ("server_json", json_cases::of_servers(), targets::attack_client),
    ];
    let mut trials: Vec<(usize, libtest_mimic::Trial)> = Vec::new();
    for (group, cases, attack) in groups {
        for (place, case) in cases.into_iter().enumerate() {
            let name = format!("{group}::{}", case.name.replace(' ', "_"));
            let target = (group, place / SHARE);
            let trial = libtest_mimic::Trial::test(name, move || Ok(attack(target, &case)?));
            trials.push((place % SHARE, trial));
        }
    }
    // In turns, so that groups run beside each other.
    trials.sort_by_key(|(place, _)| *place);
    let trials = trials.into_iter().map(|(_, trial)| trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    targets::end_all();
    conclusion.exit();
}
