//! What each level forbids, and what each opening allows: attempts in confined processes.
//!
//! Each attempt runs in a new process of this program, because a sandbox cannot be taken off. It runs as
//! the test's user, and as an ordinary user if that is root.

mod attempts;

use std::io;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use taskfork_sandbox::{Level, Sandbox};

use attempts::{ATTEMPTS, Attempt};

/// Describes the attempt that a new process of this program makes: its sandbox, its name, its user.
const VARIABLE: &str = "TASKFORK_SANDBOX_ATTEMPT";

/// The user of attempts that do not run as root.
const ORDINARY_USER: u32 = 65_534;

/// What became of an attempt, as an exit status.
const SUCCEEDED: u8 = 10;
const REFUSED: u8 = 11;
const FAILED: u8 = 12;

fn main() -> ExitCode {
    if let Ok(description) = std::env::var(VARIABLE) {
        return run_attempt(&description);
    }
    let mut trials = Vec::new();
    for level in Level::ALL {
        for attempt in ATTEMPTS {
            for user in users() {
                let name = format!("{level}::{}::{}", attempt.name, user.name);
                trials.push(Trial::test(name, move || check(level, attempt, user)));
            }
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

#[derive(Clone, Copy)]
struct User {
    name: &'static str,
    id: Option<u32>,
}

fn users() -> Vec<User> {
    let own = User { name: "own_user", id: None };
    let ordinary = User { name: "ordinary_user", id: Some(ORDINARY_USER) };
    if rustix::process::geteuid().is_root() { vec![own, ordinary] } else { vec![own] }
}

fn check(level: Level, attempt: &'static Attempt, user: User) -> Result<(), Failed> {
    let scratch = tempfile::tempdir()?;
    std::os::unix::fs::chown(scratch.path(), user.id, None)?;
    let id = user.id.map_or(String::new(), |id| id.to_string());
    let output = Command::new(std::env::current_exe()?)
        .env(VARIABLE, format!("{level} {} {id}", attempt.name))
        .current_dir(scratch.path())
        .output()?;
    let is_allowed = attempt.allowed.contains(&level);
    let expected = if is_allowed { SUCCEEDED } else { REFUSED };
    if output.status.code() == Some(expected.into()) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}, expected {expected}: {text}", output.status).into())
}

/// In the new process: confines it and makes the attempt.
fn run_attempt(description: &str) -> ExitCode {
    let mut words = description.split(' ');
    let level: Level = words.next().unwrap_or_default().parse().expect("a level");
    let name = words.next().unwrap_or_default();
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).expect("an attempt");
    if let Some(user) = words.next().and_then(|id| id.parse().ok()) {
        attempts::change_user(user);
    }
    let _victim = attempts::Victim::start();
    let sandbox = Sandbox::of_level(level).best_effort();
    let prepared = sandbox.prepare().expect("a sandbox for this kernel");
    prepared.apply(Some(Path::new("."))).expect("a confined process");
    match (attempt.run)() {
        Ok(()) => ExitCode::from(SUCCEEDED),
        Err(error) if is_refusal(&error) => ExitCode::from(REFUSED),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(FAILED)
        }
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}
