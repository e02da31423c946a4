//! Logs that cannot be written, are to be opened again, or repeat themselves.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use taskfork::Client;
use taskfork::server::ServerStatus;

use crate::support::processes::{Program, is_gone, set_limit, signal};
use crate::support::{address_in, programs, trial, until};

/// A server in a program of its own that logs to this, and a client of it.
fn serve(folder: &tempfile::TempDir, stderr: impl Into<std::process::Stdio>) -> (Program, Client) {
    let listen = address_in(folder);
    let mut command = programs::command(&["serve_logging", &listen]);
    let program = Program::new(command.stderr(stderr).spawn().unwrap());
    let client = Client::builder().address(listen).min_workers(0).max_workers(2).build().unwrap();
    (program, client)
}

/// Makes the server log this number of lines, each about the death of a worker.
async fn deaths(client: &Client, count: usize) {
    for _ in 0..count {
        client.call::<()>("abort", ()).await.unwrap_err();
    }
}

fn status(folder: &tempfile::TempDir) -> ServerStatus {
    ServerStatus::read(folder.path().join("s.status")).unwrap()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

async fn ends_well(program: Program) {
    signal(program.pid(), libc::SIGTERM);
    assert!(program.end().await.success());
}

trial!(a_server_outlives_the_reader_of_its_log, async || {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let (program, client) = serve(&folder, OwnedFd::from(writer));
    client.call::<()>("nothing", ()).await.unwrap();
    drop(reader);
    deaths(&client, 3).await;
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    assert_eq!(status(&folder).pid, program.pid());
    ends_well(program).await;
});

trial!(a_server_outlives_a_full_disk, async || {
    let folder = tempfile::tempdir().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (program, client) = serve(&folder, full);
    deaths(&client, 3).await;
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    assert_eq!(status(&folder).pid, program.pid());
    ends_well(program).await;
});

/// Fills what a pipe or a socket takes.
fn fill(writer: &OwnedFd) {
    use plain::{set_nonblocking, write};
    set_nonblocking(writer, true);
    while write(writer, &[b'.'; 4096]) > 0 {}
    while write(writer, b".") > 0 {}
    set_nonblocking(writer, false);
}

/// Plain system calls on a descriptor that another process has as well.
mod plain {
    use std::os::fd::{AsRawFd, OwnedFd};

    pub(super) fn set_nonblocking(file: &OwnedFd, on: bool) {
        let on = libc::c_int::from(on);
        // SAFETY: it reads one number that is there.
        #[allow(unsafe_code)]
        let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::FIONBIO, &raw const on) };
        assert_eq!(set, 0);
    }

    pub(super) fn write(file: &OwnedFd, bytes: &[u8]) -> isize {
        // SAFETY: `write` reads `bytes.len()` bytes, the length of `bytes`.
        #[allow(unsafe_code)]
        unsafe {
            libc::write(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len())
        }
    }
}

/// Lines of a worker, fewer than are shown at most, and more than wait in memory.
const LINES: usize = 8000;

/// How many lines of a worker are in the log, and how many it says were lost.
fn shown_and_lost(log: &str) -> usize {
    let shown = log.lines().filter(|line| line.ends_with("a line a line")).count();
    let lost = log.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix("taskfork: ")?.split_once(' ')?;
        rest.ends_with("lost, as the log could not be written")
            .then(|| number.parse::<usize>())?
            .ok()
    });
    shown + lost.sum::<usize>()
}

trial!(a_server_waits_for_no_reader_of_its_log, async || {
    let pipe = std::io::pipe().map(|(reader, writer)| (reader.into(), writer.into())).unwrap();
    let socket = std::os::unix::net::UnixStream::pair().unwrap();
    let pairs: [(OwnedFd, OwnedFd); 2] = [pipe, (socket.0.into(), socket.1.into())];
    for (reader, writer) in pairs {
        let folder = tempfile::tempdir().unwrap();
        let (program, client) = serve(&folder, writer.try_clone().unwrap());
        client.call::<()>("nothing", ()).await.unwrap();
        fill(&writer);
        deaths(&client, 5).await;
        // It accepts, keeps deadlines, reads what workers print, and tells its status.
        let late = client.checkout().timeout(Duration::from_millis(50));
        late.call::<()>("hang", ()).await.unwrap_err();
        let line = format!("{}\n", "a line ".repeat(60).trim_end());
        client.call::<()>("complain", (line.repeat(LINES),)).await.unwrap();
        assert_eq!(status(&folder).deaths.get("timed_out"), Some(&1));
        // A new reader gets the lines that were kept in memory, and the number of those lost.
        let mut reader = File::from(reader);
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            let mut piece = [0; 65536];
            while shown_and_lost(&String::from_utf8_lossy(&text)) < LINES {
                let length = reader.read(&mut piece).unwrap();
                text.extend_from_slice(&piece[..length]);
            }
            (text, reader)
        });
        let (text, _reader) = read.await.unwrap();
        let text = String::from_utf8_lossy(&text);
        let deaths = text.lines().filter(|line| line.contains("was killed by SIGABRT")).count();
        assert_eq!(deaths, 5);
        assert!(text.contains("lost, as the log could not be written"));
        // The lost lines can include lines of the server itself.
        let shown_and_lost = shown_and_lost(&text);
        assert!(shown_and_lost < LINES + 20, "{shown_and_lost}");
        ends_well(program).await;
    }
});

trial!(a_subscriber_that_fails_or_would_wait_ends_nothing, async || {
    for is_gone in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let (mut reader, writer) = (Some(reader), OwnedFd::from(writer));
        let mut command = programs::command(&["serve_logging_plainly", &address_in(&folder)]);
        command.stderr(writer.try_clone().unwrap());
        let program = Program::new(command.spawn().unwrap());
        drop(command);
        let client = Client::builder().address(address_in(&folder)).min_workers(0);
        let client = client.build().unwrap();
        client.call::<()>("nothing", ()).await.unwrap();
        match is_gone {
            true => drop(reader.take()),
            false => fill(&writer),
        }
        drop(writer);
        deaths(&client, 3).await;
        assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
        assert_eq!(status(&folder).pid, program.pid());
        if let Some(mut reader) = reader {
            let mut piece = [0; 65536];
            let mut text = String::new();
            while !text.contains("lines of the log were lost") {
                // It has read something before, so that there is room.
                let length = reader.read(&mut piece).unwrap();
                text.push_str(&String::from_utf8_lossy(&piece[..length]));
                let client = client.clone();
                tokio::spawn(async move { client.call::<()>("abort", ()).await });
            }
        }
        drop(client);
        signal(program.pid(), libc::SIGTERM);
        assert!(program.end().await.code().is_some());
    }
});

trial!(lost_lines_are_reported_when_the_log_can_be_written_again, async || {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    let both = File::options().read(true).write(true).open(&fifo).unwrap();
    let writer = File::options().write(true).open(&fifo).unwrap();
    let (program, client) = serve(&folder, writer);
    client.call::<()>("nothing", ()).await.unwrap();
    drop(both);
    deaths(&client, 3).await;
    // There is no other event: a timer of the server writes again.
    let reading = tokio::task::spawn_blocking(move || {
        let mut reader = File::open(&fifo).unwrap();
        let mut text = String::new();
        let mut piece = [0; 4096];
        while !text.contains("lost, as the log could not be written\n") {
            let length = reader.read(&mut piece).unwrap();
            assert!(length > 0);
            text.push_str(std::str::from_utf8(&piece[..length]).unwrap());
        }
        (text, reader)
    });
    let (text, _reader) = reading.await.unwrap();
    // The deaths, and a line of each worker that aborted.
    let notice = text.lines().last().unwrap().strip_prefix("taskfork: ").unwrap();
    assert!(notice.split_once(' ').unwrap().0.parse::<u64>().unwrap() >= 3, "{text}");
    ends_well(program).await;
});

/// A server that logs to a file.
fn serve_to(folder: &tempfile::TempDir) -> (Program, Client, std::path::PathBuf) {
    let (listen, file) = (address_in(folder), folder.path().join("log"));
    let program = programs::start(&["serve_logging_to", file.to_str().unwrap(), &listen]);
    let client = Client::builder().address(listen).min_workers(0).max_workers(2).build().unwrap();
    (program, client, file)
}

trial!(a_worker_does_not_inherit_the_log_file, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    let open: Vec<String> = client.call("descriptors", ()).await.unwrap();
    let file = file.display().to_string();
    assert!(!open.is_empty() && !open.iter().any(|target| target.contains(&file)), "{open:?}");
    ends_well(program).await;
});

trial!(a_log_file_is_opened_again, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    client.call::<()>("complain", ("first\n",)).await.unwrap();
    until("the worker's line", || text(&file).contains("] first")).await;
    let old = folder.path().join("log.1");
    std::fs::rename(&file, &old).unwrap();
    let before = text(&old);
    signal(program.pid(), libc::SIGUSR1);
    until("the new file", || text(&file).contains("opened again")).await;
    client.call::<()>("complain", ("second\n",)).await.unwrap();
    client.call::<()>("abort", ()).await.unwrap_err();
    until("the death", || text(&file).contains("SIGABRT")).await;
    assert!(text(&file).contains("] second") && before.contains("listening at"));
    assert_eq!(text(&old), before);
    ends_well(program).await;
});

trial!(a_log_file_that_cannot_be_opened_again_is_kept, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    client.call::<()>("nothing", ()).await.unwrap();
    let old = folder.path().join("log.1");
    std::fs::rename(&file, &old).unwrap();
    std::fs::create_dir(&file).unwrap();
    signal(program.pid(), libc::SIGUSR1);
    until("an error", || text(&old).contains("cannot open the log file again")).await;
    client.call::<()>("abort", ()).await.unwrap_err();
    until("the death", || text(&old).contains("SIGABRT")).await;
    ends_well(program).await;
});

trial!(signals_that_ask_for_something_end_nothing, async || {
    let folder = tempfile::tempdir().unwrap();
    let listen = address_in(&folder);
    let program = programs::start(&["serve", &listen]);
    let client = Client::builder().address(listen).max_workers(1).build().unwrap();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    let checkout = client.checkout();
    checkout.call::<()>("nothing", ()).await.unwrap();
    let running = checkout.call::<()>("sleep", (300,));
    for number in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGXFSZ, libc::SIGPIPE] {
        signal(program.pid(), number);
    }
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
    // Nor do they count as a second wish for its end.
    signal(program.pid(), libc::SIGTERM);
    until("the listener's end", || !folder.path().join("s").exists()).await;
    signal(program.pid(), libc::SIGUSR1);
    signal(program.pid(), libc::SIGUSR2);
    running.await.unwrap();
    drop((checkout, client));
    assert!(program.end().await.success());
    assert!(is_gone(pid));
});

trial!(what_each_worker_does_is_logged, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    let (busy, held) = (client.checkout(), client.checkout());
    let pid: u32 = held.call("pid", ()).await.unwrap();
    let hanging = busy.call::<()>("hang", ());
    until("a busy worker", || status(&folder).workers.iter().any(|worker| worker.state == "busy"))
        .await;
    signal(program.pid(), libc::SIGUSR2);
    until("the workers", || {
        let text = text(&file);
        text.contains("a worker is busy") && text.contains("a worker is held")
    })
    .await;
    let text = text(&file);
    let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap();
    let (busy_line, held_line) = (line("a worker is busy"), line("a worker is held"));
    let own = format!("client=\"process {} of user ", std::process::id());
    assert!(busy_line.contains("method=\"hang\"") && busy_line.contains(&own), "{busy_line}");
    assert!(held_line.contains(&format!("pid={pid} ")), "{held_line}");
    assert!(busy_line.contains("seconds=0."), "{busy_line}");
    drop((hanging, busy, held, client));
    ends_well(program).await;
});

trial!(a_service_manager_that_does_not_read_holds_nothing_up, async || {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let other = std::os::unix::net::UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    let mut full = 0;
    while other.send_to(b"FULL=1", &path).is_ok() {
        full += 1;
    }
    let mut command = programs::command(&["serve", &address_in(&folder)]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "20000");
    let program = Program::new(command.spawn().unwrap());
    let client = Client::builder().address(address_in(&folder)).max_workers(1).build().unwrap();
    assert_eq!(client.call::<i64>("add", (1, 2)).await.unwrap(), 3);
    let late = client.checkout().timeout(Duration::from_millis(100));
    late.call::<()>("hang", ()).await.unwrap_err();
    assert_eq!(status(&folder).deaths.get("timed_out"), Some(&1));
    // What it did not take before comes when it reads.
    let heard = tokio::task::spawn_blocking(move || {
        let mut message = [0; 500];
        for _ in 0..full {
            manager.recv(&mut message).unwrap();
        }
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    });
    let heard = heard.await.unwrap();
    let own = format!("MAINPID={}", program.pid());
    assert!(["READY=1", &own, "WATCHDOG=1"].iter().all(|word| heard.contains(word)), "{heard}");
    ends_well(program).await;
});

trial!(a_line_that_repeats_is_counted, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    client.call::<()>("nothing", ()).await.unwrap();
    // It has more open already, so that it cannot accept anybody.
    set_limit(program.pid(), libc::RLIMIT_NOFILE, 5);
    let other = std::os::unix::net::UnixStream::connect(folder.path().join("s")).unwrap();
    until("the number", || text(&file).contains("could not accept connections more often")).await;
    let log = text(&file);
    let lines = log.lines().filter(|line| line.contains("cannot accept connections for a while"));
    assert!((1..=2).contains(&lines.count()), "{log}");
    set_limit(program.pid(), libc::RLIMIT_NOFILE, 1000);
    drop(other);
    client.call::<()>("nothing", ()).await.unwrap();
    drop(client);
    ends_well(program).await;
});

trial!(the_status_socket_accepts_again_after_descriptors_ran_out, async || {
    let folder = tempfile::tempdir().unwrap();
    let (program, client, file) = serve_to(&folder);
    client.call::<()>("nothing", ()).await.unwrap();
    // The server has more open already, so that it cannot accept anybody.
    set_limit(program.pid(), libc::RLIMIT_NOFILE, 5);
    let path = folder.path().join("s.status");
    let asked = tokio::task::spawn_blocking(move || ServerStatus::read(path));
    let told = "cannot accept connections to the status socket for a while";
    until(told, || text(&file).contains(told)).await;
    set_limit(program.pid(), libc::RLIMIT_NOFILE, 1000);
    assert_eq!(asked.await.unwrap().unwrap().pid, program.pid());
    assert_eq!(status(&folder).pid, program.pid());
    drop(client);
    ends_well(program).await;
});
