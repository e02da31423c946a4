//! What each level forbids, and what each opening allows: attempts in confined processes.
//!
//! Each attempt runs in a new process of this program, because a sandbox cannot be taken off. It runs as
//! the test's user, and as an ordinary user if that is root.

mod attempts;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode, Output};

use libtest_mimic::{Arguments, Failed, Trial};
use taskfork_sandbox::{
    ApplyError, Feature, KernelSupport, Level, Sandbox, Secret, system_call_name,
};

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
    for user in users() {
        for attempt in ATTEMPTS {
            for level in Level::ALL {
                let name = format!("{level}::{}::{}", attempt.name, user.name);
                let is_allowed = attempt.allowed.contains(&level);
                trials
                    .push(Trial::test(name, move || check(level, "-", attempt, is_allowed, user)));
            }
            for opening in OPENINGS {
                let name = format!("compute_{}::{}::{}", opening.name, attempt.name, user.name);
                let level = Level::Compute;
                let is_allowed =
                    attempt.allowed.contains(&level) || opening.allows.contains(&attempt.name);
                trials.push(Trial::test(name, move || {
                    check(level, opening.name, attempt, is_allowed, user)
                }));
            }
        }
    }
    trials.push(Trial::test("a_violation_is_recorded_before_it_kills", a_violation_is_recorded));
    trials.push(Trial::test("a_second_thread_is_an_error", a_second_thread_is_an_error));
    trials.push(Trial::test("a_missing_path_is_named", a_missing_path_is_named));
    trials.push(Trial::test("a_missing_feature_is_named", a_missing_feature_is_named));
    trials.push(Trial::test("a_forked_process_has_no_secrets", a_forked_process_has_no_secrets));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What is opened, and the attempts that succeed only with that.
struct Opening {
    name: &'static str,
    open: fn(Sandbox) -> Sandbox,
    allows: &'static [&'static str],
}

const OPENINGS: &[Opening] = &[
    Opening {
        name: "read",
        open: |sandbox| sandbox.read("/etc"),
        allows: &["read_a_file", "list_a_directory"],
    },
    Opening {
        name: "write",
        open: |sandbox| sandbox.write("/var/tmp"),
        allows: &["write_elsewhere"],
    },
    Opening {
        name: "connect_tcp",
        open: |sandbox| sandbox.connect_tcp(1),
        allows: &["connect_by_tcp"],
    },
    Opening {
        name: "accept_connections",
        open: Sandbox::accept_connections,
        allows: &["accept_a_connection"],
    },
    Opening {
        name: "unix_socket",
        open: |sandbox| sandbox.unix_socket("/run").best_effort(),
        allows: &[],
    },
    Opening { name: "spawn_programs", open: Sandbox::spawn_programs, allows: &["start_a_process"] },
    Opening {
        name: "execute",
        open: |sandbox| sandbox.execute("/bin/true"),
        allows: &["map_executable_memory", "make_executable_memory"],
    },
    Opening {
        name: "execute_and_spawn",
        open: |sandbox| sandbox.execute("/bin/true").spawn_programs(),
        allows: &[
            "map_executable_memory",
            "make_executable_memory",
            "start_a_process",
            "start_a_program",
        ],
    },
];

/// An opening for the test of `Sandbox::kill`.
const KILL: &str = "kill";

fn sandbox(level: Level, opening: &str) -> Sandbox {
    let sandbox = Sandbox::of_level(level);
    match OPENINGS.iter().find(|known| known.name == opening) {
        Some(known) => (known.open)(sandbox),
        None if opening == KILL => sandbox.kill(),
        None => sandbox,
    }
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

fn check(
    level: Level,
    opening: &str,
    attempt: &Attempt,
    is_allowed: bool,
    user: User,
) -> Result<(), Failed> {
    let output = start(level, opening, attempt.name, user)?;
    let expected = if is_allowed { SUCCEEDED } else { REFUSED };
    if output.status.code() == Some(expected.into()) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}, expected {expected}: {text}", output.status).into())
}

/// Makes an attempt in a new process and waits for its end.
fn start(level: Level, opening: &str, attempt: &str, user: User) -> io::Result<Output> {
    let scratch = tempfile::tempdir()?;
    std::os::unix::fs::chown(scratch.path(), user.id, None)?;
    let id = user.id.map_or(String::new(), |id| id.to_string());
    Command::new(std::env::current_exe()?)
        .env(VARIABLE, format!("{level} {opening} {attempt} {id}"))
        .current_dir(scratch.path())
        .output()
}

/// In the new process: confines it and makes the attempt.
fn run_attempt(description: &str) -> ExitCode {
    let mut words = description.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let level: Level = word().parse().expect("a level");
    let sandbox = sandbox(level, word());
    let name = word();
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).expect("an attempt");
    if let Ok(user) = word().parse() {
        attempts::change_user(user);
    }
    let _victim = attempts::Victim::start();
    attempts::listen();
    let prepared = sandbox.prepare().expect("a sandbox for this kernel").on_violation(record);
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

/// In a signal handler: writes the name of the forbidden system call.
fn record(number: i32) {
    let name = system_call_name(number.into()).unwrap_or("?");
    let _ = rustix::io::write(rustix::stdio::stderr(), name.as_bytes());
}

fn a_violation_is_recorded() -> Result<(), Failed> {
    let user = User { name: "own_user", id: None };
    for (attempt, call) in [("trace_another_process", "ptrace"), ("listen_on_tcp", "socket")] {
        let output = start(Level::Compute, KILL, attempt, user)?;
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), call);
    }
    // What the level allows, and what Landlock refuses, ends no process.
    for (attempt, status) in [("write_to_scratch", SUCCEEDED), ("read_a_file", REFUSED)] {
        let output = start(Level::Compute, KILL, attempt, user)?;
        assert_eq!(output.status.code(), Some(status.into()), "{output:?}");
    }
    Ok(())
}

fn a_second_thread_is_an_error() -> Result<(), Failed> {
    // This process has the threads of the tests.
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || receiver.recv());
    let error = Sandbox::compute().prepare()?.apply(None).expect_err("a second thread");
    assert!(matches!(error, ApplyError::Threads), "{error:?}");
    // Nothing was applied.
    assert!(std::fs::read("/etc/passwd").is_ok());
    Ok(())
}

fn a_forked_process_has_no_secrets() -> Result<(), Failed> {
    let secret = Secret::new(b"a key")?;
    assert!(attempts::fork(|| secret.expose().is_none())?);
    assert_eq!(secret.expose(), Some(&b"a key"[..]));
    Ok(())
}

fn a_missing_path_is_named() -> Result<(), Failed> {
    let error =
        Sandbox::compute().read("/does/not/exist").prepare().expect_err("no such path").to_string();
    let expected = "the sandbox cannot open `/does/not/exist`: No such file or directory";
    assert!(error.starts_with(expected), "{error}");
    Ok(())
}

fn a_missing_feature_is_named() -> Result<(), Failed> {
    let sandbox = Sandbox::compute().unix_socket("/dev/null");
    let has = KernelSupport::detect().has(Feature::UnixSocketRules);
    match sandbox.prepare() {
        Ok(prepared) => assert!(has && prepared.lacking().is_empty()),
        Err(error) => {
            assert!(!has);
            assert_eq!(
                error.to_string(),
                "the kernel lacks what the sandbox `compute` needs: rules for paths of unix \
                 sockets (Landlock 9, Linux 7.1); `best_effort` goes on without that"
            );
            let lacking = sandbox.best_effort().prepare()?;
            assert_eq!(lacking.lacking(), [Feature::UnixSocketRules]);
        }
    }
    Ok(())
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}
