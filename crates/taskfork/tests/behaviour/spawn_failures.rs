//! Servers that do not start: programs that never call `taskfork::init`, or fail before it.

use std::time::Duration;

use taskfork::server::Spawn;
use taskfork::{Client, ServerBuilder, ServerError};

use crate::support::processes::{command_line, is_alive};
use crate::support::{programs, trial};

pub(crate) fn never_serves(_: ServerBuilder) -> Result<(), ServerError> {
    loop {
        std::thread::park();
    }
}

trial!(a_process_that_never_calls_init_is_killed_and_described, async || {
    let said = programs::output(&["before_init", "hang"]);
    let own = std::env::current_exe().unwrap().display().to_string();
    assert!(said.contains("`general` did not start within 0.5 seconds (start_timeout)"), "{said}");
    assert!(said.contains("has not called `taskfork::init`"), "{said}");
    assert!(said.contains("sleeping") && said.contains(&own), "{said}");
    assert!(said.contains("it wrote:\n    loading the tables"), "{said}");
    assert!(said.ends_with("\nnothing is left\n"), "{said}");
});

trial!(an_argument_parser_before_init_is_detected, async || {
    let said = programs::output(&["before_init", "parse"]);
    assert!(said.contains("exited with status 2 before it called `taskfork::init`"), "{said}");
    assert!(said.contains("argument parser"), "{said}");
    assert!(said.contains("\n    Usage: app <FILE>\n    error: <FILE> is missing"), "{said}");
    assert_eq!(said.matches("Usage").count(), 1, "it is shown with the error only: {said}");
});

trial!(a_death_before_init_is_reported, async || {
    let said = programs::output(&["before_init", "abort"]);
    assert!(said.contains("was killed by SIGABRT before it called `taskfork::init`"), "{said}");
    assert!(!said.contains("argument parser"), "{said}");
    // A program that closes the line, and one that writes without end.
    let said = programs::output(&["before_init", "close"]);
    assert!(said.contains("did not start within 0.5 seconds"), "{said}");
    let said = programs::output(&["before_init", "flood"]);
    assert!(said.contains("did not start within 0.5 seconds"), "{}", said.len());
});

trial!(output_before_init_is_shown, async || {
    let said = programs::output(&["before_init", "write"]);
    assert!(said.contains("a line before init\n") && said.contains("5\n"), "{said}");
});

/// What a copy of this program does before it calls `init` to become a server.
pub(crate) fn before_init(what: &str) {
    if std::env::var_os("TASKFORK_SERVER").is_none() {
        return;
    }
    match what {
        "hang" => {
            eprintln!("loading the tables");
            std::thread::sleep(Duration::from_secs(600));
        }
        "parse" => {
            eprintln!("error: <FILE> is missing");
            println!("Usage: app <FILE>");
            std::process::exit(2);
        }
        "abort" => std::process::abort(),
        "close" => {
            let nothing = std::fs::File::open("/dev/null").unwrap();
            replace_stdin(&nothing);
            std::thread::sleep(Duration::from_secs(600));
        }
        "flood" => loop {
            println!("{}", "x".repeat(1000));
        },
        "write" => println!("a line before init"),
        other => panic!("no such thing: {other}"),
    }
}

fn replace_stdin(file: &std::fs::File) {
    use std::os::fd::AsRawFd;
    // SAFETY: no other code uses the descriptor.
    #[allow(unsafe_code)]
    unsafe {
        libc::dup2(file.as_raw_fd(), 0);
    }
}

/// The test program that starts such a server.
pub(crate) fn spawn_failing_server() {
    let spawn = Spawn::new("general").start_timeout(Duration::from_millis(500));
    let spawn = match programs::has_argument("write") {
        true => spawn.start_timeout(None),
        false => spawn,
    };
    match spawn.start() {
        Ok(server) => {
            let options = Client::builder().address(server.address());
            let client = options.build_blocking().unwrap();
            println!("{}", client.call::<i64>("add", (2, 3)).unwrap());
            drop(client);
            server.close();
        }
        Err(error) => println!("{error}"),
    }
    let own = std::process::id();
    let left = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap();
    println!("{}", if left.is_empty() { "nothing is left" } else { &left });
}

trial!(a_server_that_never_serves_is_killed, async || {
    let spawn = Spawn::new("never_serves").start_timeout(Duration::from_millis(300));
    let error = tokio::task::spawn_blocking(|| spawn.start()).await.unwrap().unwrap_err();
    let ServerError::StartTimedOut { process, initialised: true, .. } = &error else {
        panic!("{error}")
    };
    let pid: u32 = process.split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!(!is_alive(pid), "{}", command_line(pid));
    assert!(error.to_string().contains("raise `start_timeout`"), "{error}");
});

trial!(a_main_that_returns_an_error_shows_its_text, async || {
    let output = tokio::task::spawn_blocking(|| {
        programs::command(&["return_error"]).stderr(std::process::Stdio::piped()).output().unwrap()
    });
    let said = String::from_utf8(output.await.unwrap().stderr).unwrap();
    assert!(said.starts_with("Error: `taskfork::init` knows no server `nobody`"), "{said}");
});
