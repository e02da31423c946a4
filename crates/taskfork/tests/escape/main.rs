//! Attempts to escape from a worker, by code that has taken it over. The attempts are a table; each is a trial, which runs
//! it in a worker of a real server under each sandbox. Without a sandbox it succeeds: so the test can fail.
//!
//! If root runs the trials, an ordinary user runs them as well, in a second process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod attacks;
mod attempt;
mod attempts;
mod confinement;
mod kills;
mod scratch;
mod server;
mod surroundings;
mod system_call;
mod trials;

use std::os::unix::process::CommandExt;
use std::process::Command;

/// An ordinary user, who needs no name. A user namespace shows other users as 65534.
const ORDINARY: u32 = 60_021;

fn main() {
    let requested = std::env::var(surroundings::REQUESTED).unwrap_or_default();
    if requested == surroundings::BYSTANDER {
        return surroundings::stand_by();
    }
    if let Some(request) = requested.strip_prefix(server::SERVE) {
        return server::serve(request);
    }
    // What this process has inherited is open in no server, or attempts would find it there.
    let flags = libc::CLOSE_RANGE_CLOEXEC as usize;
    system_call::system_call(libc::SYS_close_range, &[3, u32::MAX as usize, flags]).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    let user = if is_root { "root" } else { "user" };
    let as_ordinary = is_root.then(|| {
        let files = surroundings::make_files_of_root();
        let mut command = Command::new("/proc/self/exe");
        command.env(surroundings::FILES_OF_ROOT, files.path());
        command.args(std::env::args_os().skip(1)).uid(ORDINARY).gid(ORDINARY);
        command.status().unwrap()
    });
    let mut arguments = libtest_mimic::Arguments::from_args();
    // Most of them wait for processes.
    arguments.test_threads.get_or_insert(4);
    let trials = attempts::all().into_iter().map(|attempt| {
        libtest_mimic::Trial::test(format!("{user}::{}", attempt.name), move || {
            Ok(trials::run(&attempt)?)
        })
    });
    let attacks = attacks::all().into_iter().map(|attack| {
        libtest_mimic::Trial::test(format!("{user}::server::{}", attack.name), move || {
            Ok(attacks::run(&attack)?)
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.chain(attacks).collect());
    server::end_all();
    surroundings::remove();
    if as_ordinary.is_some_and(|status| !status.success()) {
        std::process::exit(101);
    }
    conclusion.exit();
}
