//! What workers write to standard error.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};

use taskfork::error::{Death, FatalError};
use taskfork::{Client, Error};

use crate::support::processes::{Program, descriptors, is_gone, signal};
use crate::support::{address_in, roles, start, trials, until};

trials! {
    each_line_is_shown_with_the_workers_process_id,
    the_end_of_it_is_attached_to_a_death,
    of_much_the_last_four_kibibytes_are_attached,
    a_panic_that_kills_is_in_the_death,
    a_flood_that_nobody_reads_holds_no_worker_up,
    it_can_be_inherited,
    a_worker_may_close_it,
    what_holds_a_workers_standard_error_open_ends_with_it,
}

/// A server in a program of its own whose standard error is this file.
fn serve(role: &str, folder: &tempfile::TempDir, stderr: File) -> (Program, Client) {
    let listen = address_in(folder);
    let mut command = roles::command(&[role, &listen]);
    let program = Program::new(command.stderr(stderr).spawn().unwrap());
    let client = Client::builder().address(listen).min_workers(0).build().unwrap();
    (program, client)
}

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap();
    String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
}

fn death(error: Error) -> Death {
    match error {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => death,
        other => panic!("{other}"),
    }
}

async fn each_line_is_shown_with_the_workers_process_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (_program, client) = serve("serve", &folder, File::create(&path).unwrap());
    let (one, two) = (client.checkout(), client.checkout());
    for checkout in [&one, &two] {
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        checkout.call::<()>("complain", ("first\r\nsecond é\nthi",)).await.unwrap();
        checkout.call::<()>("complain", ("rd\n",)).await.unwrap();
        let shown = ["first", "second é", "third"].map(|line| format!("[{pid}] {line}"));
        until("three lines", || lines(&path).iter().any(|line| *line == shown[2])).await;
        let own: Vec<_> =
            lines(&path).into_iter().filter(|line| line.contains(&format!("[{pid}]"))).collect();
        assert_eq!(own, shown);
    }
}

async fn the_end_of_it_is_attached_to_a_death() {
    let (_server, client) = start("faults");
    let error =
        client.call::<()>("complain_and_abort", ("one\nmalloc(): corrupted",)).await.unwrap_err();
    let report = error.report().to_string();
    assert!(
        report.contains("\n  standard error:\n  one\n  malloc(): corrupted\ntaskfork -> "),
        "{report}"
    );
    assert_eq!(error.to_string().lines().count(), 1);
    assert_eq!(death(error).stderr.unwrap(), "one\nmalloc(): corrupted");

    let silent = client.call::<()>("abort", ()).await.unwrap_err();
    assert_eq!(death(silent).stderr, None);
}

async fn of_much_the_last_four_kibibytes_are_attached() {
    let (_server, client) = start("faults");
    let text: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    let error = client.call::<()>("complain_and_abort", (&text,)).await.unwrap_err();
    let kept = death(error).stderr.unwrap();
    assert!((4000..=4096).contains(&kept.len()), "{}", kept.len());
    assert!(text.trim_end().ends_with(&kept));
}

async fn a_panic_that_kills_is_in_the_death() {
    let (_server, client) = start("faults");
    let error = client.call::<()>("panic_twice", ()).await.unwrap_err();
    let stderr = death(error).stderr.unwrap();
    assert!(stderr.contains("panicked at"), "{stderr}");
}

async fn a_flood_that_nobody_reads_holds_no_worker_up() {
    let folder = tempfile::tempdir().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = File::from(std::os::fd::OwnedFd::from(writer));
    let (program, client) = serve("serve", &folder, writer);
    let checkout = client.checkout();
    let flood = "a line of the flood\n".repeat(1 << 16);
    for _ in 0..4 {
        checkout.call::<()>("complain", (&flood,)).await.unwrap();
    }
    // Whoever comes to read it later is told what is missing, before anything new.
    let text = Arc::new(Mutex::new(String::new()));
    let seen = text.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut piece) {
            seen.lock().unwrap().push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
    });
    while !text.lock().unwrap().contains("] one more\n") {
        checkout.call::<()>("complain", ("one more\n",)).await.unwrap();
    }
    drop((checkout, client));
    signal(program.pid(), libc::SIGTERM);
    program.end().await;
    reading.await.unwrap();
    let text = text.lock().unwrap();
    let told = text.find("lost, as the log could not be written");
    assert!(told.is_some() && told < text.find("] one more\n"), "{}", text.len());
    let whole = |line: &str| {
        line.ends_with("] a line of the flood")
            || line.ends_with("] one more")
            || line.ends_with(" lost, as the log could not be written")
    };
    assert!(text.lines().all(whole), "a line was torn");
}

async fn it_can_be_inherited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (_program, client) = serve("serve_inheriting", &folder, File::create(&path).unwrap());
    let error = client.call::<()>("complain_and_abort", ("as it is\n",)).await.unwrap_err();
    assert_eq!(death(error).stderr, None);
    assert_eq!(lines(&path), ["as it is"]);
}

async fn a_worker_may_close_it() {
    let (server, client) = start("faults");
    let checkout = client.checkout();
    checkout.call::<()>("complain", ("before\n",)).await.unwrap();
    let before = descriptors(server.pid());
    assert_eq!(checkout.call::<i32>("close_stderr", ()).await.unwrap(), 0);
    until("the server's end to be closed", || descriptors(server.pid()) == before - 1).await;
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(checkout);
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
}

async fn what_holds_a_workers_standard_error_open_ends_with_it() {
    let (server, client) = start("faults");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let survivor: u32 = checkout.call("escape", ()).await.unwrap();
    let error = checkout.call::<()>("abort", ()).await.unwrap_err();
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    until("the worker to be gone", || is_gone(pid)).await;
    until("what it had started to be gone", || is_gone(survivor)).await;
    drop((checkout, client));
    server.close();
}
