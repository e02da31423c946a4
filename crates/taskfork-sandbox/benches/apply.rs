//! How long a process takes to start and to end with a sandbox, as a ratio to one without.
//!
//! `cargo bench -p taskfork-sandbox`. The rounds of all levels alternate, and each figure is the shortest
//! of many, so that load on the machine does not show.
#![expect(unsafe_code, reason = "fork")]

use std::path::Path;
use std::time::{Duration, Instant};

use taskfork_sandbox::{Level, PreparedSandbox, Sandbox};

const ROUNDS: usize = 3_000;

fn main() {
    let folder = std::env::temp_dir();
    let prepared = Level::ALL.map(|level| Sandbox::of_level(level).best_effort().prepare());
    let prepared = prepared.map(|prepared| prepared.expect("a sandbox for this kernel"));
    // Memory of the size that a server has, so that a fork takes as long as there.
    let memory = vec![1_u8; 8 << 20];
    let mut shortest = [Duration::MAX; Level::ALL.len()];
    for _ in 0..ROUNDS {
        for (prepared, shortest) in prepared.iter().zip(&mut shortest) {
            *shortest = (*shortest).min(time_of_process(prepared, &folder));
        }
    }
    drop(memory);
    let [off, ..] = shortest;
    for (level, time) in Level::ALL.into_iter().zip(shortest) {
        let ratio = time.as_secs_f64() / off.as_secs_f64();
        println!("{level:<12} {:>6.1} us  {ratio:.2}", time.as_secs_f64() * 1e6);
    }
}

fn time_of_process(prepared: &PreparedSandbox, scratch: &Path) -> Duration {
    let start = Instant::now();
    // SAFETY: this process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let status = i32::from(prepared.apply(Some(scratch)).is_err());
        // SAFETY: a forked process ends without the exit handlers of its parent.
        unsafe { libc::_exit(status) }
    }
    assert!(child > 0, "fork");
    let mut status = -1;
    // SAFETY: the kernel writes one number into a local variable.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(status, 0, "the sandbox is applied");
    start.elapsed()
}
