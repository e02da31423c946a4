//! The limit of open files: a server's own and its workers'.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use taskfork::Client;
use taskfork::server::ServerStatus;

use crate::support::processes::{Program, is_gone, signal};
use crate::support::{address_in, programs, trial, until};

/// Ends a server that is no child of this process.
struct Next(u32);

impl Drop for Next {
    fn drop(&mut self) {
        if !is_gone(self.0) {
            signal(self.0, libc::SIGKILL);
        }
    }
}

/// The command of a test program whose limits of open files are changed first.
fn limited(limits: &str, arguments: &[&str]) -> Command {
    let template = programs::command(arguments);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{limits} && exec \"$0\"")).arg(template.get_program());
    for (name, value) in template.get_envs() {
        command.env(name, value.unwrap());
    }
    command.stdin(Stdio::null());
    command
}

/// The soft and the hard limit of a process.
fn limits(pid: u32) -> (String, String) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let mut values = line.unwrap_or_default().split_whitespace().map(str::to_owned);
    (values.next().unwrap_or_default(), values.next().unwrap_or_default())
}

trial!(a_server_raises_its_limit_and_workers_have_the_one_before, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let limits_are = "ulimit -S -n 40 && ulimit -H -n 300";
    let program = Program::new(limited(limits_are, &["serve", &address]).spawn().unwrap());
    let client = Client::builder().address(&address).max_workers(50).build().unwrap();
    let pair = |soft: &str| (soft.to_owned(), "300".to_owned());
    // More than the server could have with the limit before.
    let checkouts: Vec<_> = (0..50).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        assert_eq!(limits(pid), pair("40"));
    }
    assert_eq!(limits(program.pid()), pair("300"));
    drop((checkouts, client));
    // So do the workers of a server that takes over.
    let path = folder.path().join("s.status");
    let server = || ServerStatus::read(&path).ok().map(|status| status.pid);
    until("the server", || server() == Some(program.pid())).await;
    signal(program.pid(), libc::SIGHUP);
    until("the next server", || server().is_some_and(|pid| pid != program.pid())).await;
    let next = Next(server().unwrap());
    until("the end of the one before", || is_gone(program.pid())).await;
    let client = Client::builder().address(&address).max_workers(1).build().unwrap();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    assert_eq!((limits(next.0), limits(pid)), (pair("300"), pair("40")));
    drop(client);
    signal(next.0, libc::SIGTERM);
    until("the end of the next server", || is_gone(next.0)).await;
});

trial!(a_server_says_how_many_workers_its_limit_allows, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let mut command = limited("ulimit -n 60", &["serve_logging", &address]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let program = Program::new(child);
    let said = tokio::task::spawn_blocking(move || {
        let mut lines = log.lines();
        let said = lines.find_map(|line| line.ok().filter(|line| line.contains("open files")));
        // What comes later is read as well, so that the server need not wait.
        std::thread::spawn(move || lines.for_each(drop));
        said
    });
    let said = said.await.unwrap().unwrap();
    let (_, rest) = said.split_once("the hard limit of 60 open files allows ").unwrap();
    let count: usize = rest.split_once(" workers").unwrap().0.parse().unwrap();
    assert!(rest.contains("fewer than max_workers (64)"), "{said}");
    assert!((10..30).contains(&count), "{said}");
    let client = Client::builder().address(&address).max_workers(count).build().unwrap();
    let checkouts: Vec<_> = (0..count).map(|_| client.checkout()).collect();
    for checkout in &checkouts {
        checkout.call::<()>("nothing", ()).await.unwrap();
    }
    drop(checkouts);
    drop(program);
});
