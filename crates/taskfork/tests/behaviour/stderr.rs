//! What workers write to standard error.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use taskfork::error::{Death, FatalError};
use taskfork::{Client, Error};

use crate::support::processes::{Program, is_gone, signal};
use crate::support::{address_in, programs, start, trial, until};

/// A server in a program of its own whose standard error is this file.
fn serve(program: &str, folder: &tempfile::TempDir, stderr: File) -> (Program, Client) {
    let listen = address_in(folder);
    let mut command = programs::command(&[program, &listen]);
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

trial!(each_line_is_shown_with_the_workers_process_id, async || {
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
});

trial!(a_death_has_the_end_of_stderr, async || {
    let (_server, client) = start("general");
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
});

trial!(a_death_has_only_the_last_4_kib_of_stderr, async || {
    let (_server, client) = start("general");
    let text: String = (0..2000).map(|number| format!("line {number}\n")).collect();
    let error = client.call::<()>("complain_and_abort", (&text,)).await.unwrap_err();
    let kept = death(error).stderr.unwrap();
    assert!((4000..=4096).contains(&kept.len()), "{}", kept.len());
    assert!(text.trim_end().ends_with(&kept));
});

trial!(a_panic_that_kills_is_in_the_death, async || {
    let (_server, client) = start("general");
    let error = client.call::<()>("panic_twice", ()).await.unwrap_err();
    let stderr = death(error).stderr.unwrap();
    assert!(stderr.contains("panicked at"), "{stderr}");
});

trial!(a_flood_of_unread_stderr_blocks_no_worker, async || {
    let folder = tempfile::tempdir().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let writer = File::from(std::os::fd::OwnedFd::from(writer));
    let (program, client) = serve("serve", &folder, writer);
    let checkout = client.checkout();
    // Few lines, as the server shows no more than 10,000 in 10 s.
    let line_of_flood = format!("a line of the flood {}", "x".repeat(460));
    let flood = format!("{line_of_flood}\n").repeat(1000);
    for _ in 0..4 {
        checkout.call::<()>("complain", (&flood,)).await.unwrap();
    }
    // A later reader first gets a line that states how many lines were lost.
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
        line.ends_with(&format!("] {line_of_flood}"))
            || line.ends_with("] one more")
            || line.ends_with(" lost, as the log could not be written")
    };
    assert!(text.lines().all(whole), "a line was torn");
});

trial!(the_rate_of_stderr_is_limited, async || {
    let folder = tempfile::tempdir().unwrap();
    let log = File::create(folder.path().join("log")).unwrap();
    let (_program, client) = serve("serve", &folder, log);
    let checkout = client.checkout();
    checkout.call::<()>("complain", ("first\n",)).await.unwrap();
    // At most 256 KiB in 20 ms, less what lines count, and what the pipe takes.
    let flood = format!("{}\n", "x".repeat(1023)).repeat(8 << 10);
    let start = Instant::now();
    checkout.call::<()>("complain", (&flood,)).await.unwrap();
    let slices = start.elapsed().as_secs_f64() / 0.02 + 1.0;
    let most = slices * f64::from(256 << 10) + f64::from(64 << 10);
    assert!(flood.len() as f64 <= most, "{} bytes in {slices} slices", flood.len());
    // Another one does not wait for it.
    let flooding = tokio::spawn(checkout.call::<()>("complain", (flood,)));
    let other = client.checkout();
    for number in 0..10 {
        let line = format!("line {number}");
        let pid: u32 = other.call("pid", ()).await.unwrap();
        other.call::<()>("complain", (format!("{line}\n"),)).await.unwrap();
        let path = folder.path().join("log");
        until("its line", || lines(&path).iter().any(|it| *it == format!("[{pid}] {line}"))).await;
    }
    flooding.await.unwrap().unwrap();
});

trial!(lines_beyond_the_bound_are_counted_and_the_end_of_them_is_shown, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (_program, client) = serve("serve", &folder, File::create(&path).unwrap());
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let flood: String = (0..12_000).map(|number| format!("line {number}\n")).collect();
    checkout.call::<()>("complain", (&flood,)).await.unwrap();
    let error = checkout.call::<()>("complain_and_abort", ("the end\n",)).await.unwrap_err();
    assert!(death(error).stderr.unwrap().ends_with("line 11999\nthe end"));
    let end = format!("[{pid}] the end");
    until("the end", || lines(&path).contains(&end)).await;
    let shown = lines(&path);
    let notice = shown.iter().position(|line| line.contains("are left out")).unwrap();
    assert!(shown[notice].starts_with(&format!("[{pid}] 2001 lines of its standard error")));
    let of_worker = |line: &&String| line.starts_with(&format!("[{pid}] line "));
    assert_eq!(shown[..notice].iter().filter(of_worker).count(), 10_000);
    let after: usize = shown[notice + 1..].iter().filter(of_worker).map(String::len).sum();
    assert!((1000..8192).contains(&after), "{after}");
});

trial!(stderr_can_be_inherited, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (_program, client) = serve("serve_inheriting", &folder, File::create(&path).unwrap());
    let error = client.call::<()>("complain_and_abort", ("as it is\n",)).await.unwrap_err();
    assert_eq!(death(error).stderr, None);
    assert_eq!(lines(&path), ["as it is"]);
});

trial!(a_worker_may_close_its_stderr, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    checkout.call::<()>("complain", ("before\n",)).await.unwrap();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    let pipe = std::fs::read_link(format!("/proc/{worker}/fd/2")).unwrap();
    let is_open = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
        open.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|it| it == pipe))
    };
    assert!(is_open());
    assert_eq!(checkout.call::<i32>("close_stderr", ()).await.unwrap(), 0);
    until("the server's end to be closed", || !is_open()).await;
    assert_eq!(checkout.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    drop(checkout);
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
});

trial!(processes_that_hold_a_workers_stderr_open_end_with_it, async || {
    let (server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let survivor: u32 = checkout.call("escape", ()).await.unwrap();
    let error = checkout.call::<()>("abort", ()).await.unwrap_err();
    assert!(error.to_string().contains("SIGABRT"), "{error}");
    until("the worker to be gone", || is_gone(pid)).await;
    until("what it had started to be gone", || is_gone(survivor)).await;
    drop((checkout, client));
    server.close();
});
