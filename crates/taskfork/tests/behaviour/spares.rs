//! Workers that are there before anybody wants them.

use std::io::BufRead;
use std::process::Stdio;
use std::time::{Duration, Instant};

use taskfork::log_defer::Log;
use taskfork::server::ServerStatus;
use taskfork::{BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::support::processes::{Program, children, command_line, is_gone, signal};
use crate::support::{address_in, programs, start, start_with, trial, until};

/// Its workers tell who they are, and whether they were spares when they were set up.
pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .setup(|| {
            taskfork::worker::logger().info("set up");
            Ok::<_, BoxError>(Instant::now())
        })
        .interface(
            Methods::new()
                .function("pid", || Ok(std::process::id()))
                .method("milliseconds_since_setup", |setup: &mut Instant| {
                    Ok(setup.elapsed().as_millis() as u64)
                })
                .function("descriptors", || Ok(std::fs::read_dir("/proc/self/fd")?.count()))
                .function("hang", || -> Result<(), BoxError> {
                    loop {
                        std::thread::park();
                    }
                })
                .function("abort", || -> Result<(), BoxError> { std::process::abort() }),
        )
        .run()
}

pub(crate) fn failing(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .spare_workers(3)
        .setup(|| Err::<(), _>("no licence"))
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

/// Its workers set up until the file is there, and would be given an hour at a shutdown.
pub(crate) fn slow(server: ServerBuilder, file: &str) -> Result<(), ServerError> {
    let file = std::path::PathBuf::from(file);
    server
        .spare_workers(1)
        .shutdown_grace(Duration::from_secs(3600))
        .setup(move || {
            while !file.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, BoxError>(())
        })
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

/// Waits until this number of workers exists, and returns their process ids.
async fn workers(server: u32, count: usize) -> Vec<u32> {
    until("the workers", || {
        let workers = children(server);
        workers.len() == count && workers.iter().all(|&pid| command_line(pid).contains("worker"))
    })
    .await;
    children(server)
}

trial!(a_client_gets_a_worker_that_has_been_set_up, async || {
    let server = Server::spawn("spares").unwrap();
    let spares = workers(server.pid(), 2).await;
    // Long enough for a setup at the first call to be told from one before it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(1);
    let client = client.build().unwrap();
    let asked = Instant::now();
    let age: u64 = client.call("milliseconds_since_setup", ()).await.unwrap();
    let asked = asked.elapsed().as_millis();
    assert!(u128::from(age) > asked, "set up {age} ms ago, asked for {asked} ms ago");
    assert!(spares.contains(&client.call::<u32>("pid", ()).await.unwrap()));
});

trial!(every_spare_that_is_taken_or_dies_is_replaced, async || {
    let (server, client) = start_with("spares", |client| client.max_workers(3));
    let first = workers(server.pid(), 2).await;
    let held: Vec<_> = (0..3).map(|_| client.checkout()).collect();
    for checkout in &held {
        checkout.ready().await.unwrap();
    }
    let all = workers(server.pid(), 5).await;
    let mut taken = Vec::new();
    for checkout in &held {
        taken.push(checkout.call::<u32>("pid", ()).await.unwrap());
    }
    assert!(first.iter().any(|pid| taken.contains(pid)));
    let idle = *all.iter().find(|pid| !taken.contains(pid)).unwrap();
    signal(idle, libc::SIGKILL);
    until("the dead spare is gone", || is_gone(idle)).await;
    assert!(!workers(server.pid(), 5).await.contains(&idle));
    drop((held, client));
    // Those that had clients go, and spares stay.
    let left = workers(server.pid(), 2).await;
    assert!(left.iter().all(|pid| !taken.contains(pid)));
});

trial!(spares_are_used_when_there_can_be_no_other_worker, async || {
    let server = Server::spawn("spares_two_workers").unwrap();
    let client = Client::builder().address(server.address()).min_workers(0).max_workers(2);
    let client = client.build().unwrap();
    for _ in 0..10 {
        let held = [client.checkout(), client.checkout()];
        for checkout in &held {
            checkout.ready().await.unwrap();
            checkout.call::<()>("abort", ()).await.unwrap_err();
        }
    }
    workers(server.pid(), 2).await;
});

trial!(a_spare_that_is_too_old_is_replaced, async || {
    let server = Server::spawn("spares_aged").unwrap();
    let first = workers(server.pid(), 1).await;
    until("the old one is gone", || is_gone(first[0])).await;
    let second = workers(server.pid(), 1).await;
    assert_ne!(first, second);
    let client = Client::builder().address(server.address()).max_workers(1).build().unwrap();
    client.call::<u32>("pid", ()).await.unwrap();
});

trial!(spares_end_with_their_server, async || {
    for end in [libc::SIGTERM, libc::SIGKILL] {
        let server = Server::spawn("spares").unwrap();
        let spares = workers(server.pid(), 2).await;
        signal(server.pid(), end);
        until("all are gone", || spares.iter().all(|&pid| is_gone(pid))).await;
        server.close();
    }
});

trial!(a_spare_in_setup_ends_with_its_server, async || {
    let folder = tempfile::tempdir().unwrap();
    let (address, file) = (address_in(&folder), folder.path().join("go"));
    let program = programs::start(&["serve_slow_spares", &address, &file.display().to_string()]);
    let status = folder.path().join("s.status");
    let read = || ServerStatus::read(&status).ok();
    until("a spare that sets up", || {
        read().is_some_and(|status| status.workers.iter().any(|worker| worker.state == "setup"))
    })
    .await;
    signal(program.pid(), libc::SIGTERM);
    until("the shutdown", || read().is_none_or(|status| !status.accepting)).await;
    std::fs::write(file, "").unwrap();
    assert!(program.end().await.success());
});

trial!(a_spare_is_like_any_other_worker, async || {
    let (_server, client) = start("spares");
    let (sender, message) = std::sync::mpsc::channel();
    let log = Log::new(move |message| sender.send(message).unwrap());
    let checkout = client.checkout().log(&log);
    let open: usize = checkout.call("descriptors", ()).await.unwrap();
    assert!(open < 10, "{open} descriptors");
    drop(checkout);
    drop(log);
    let message = message.recv().unwrap();
    assert!(message.logs.iter().any(|line| format!("{line:?}").contains("set up")), "{message:?}");
    // It hangs, and is ended with its call.
    let hung = client.checkout().timeout(Duration::from_millis(200));
    let pid: u32 = hung.call("pid", ()).await.unwrap();
    let error = hung.call::<()>("hang", ()).await.unwrap_err();
    assert!(matches!(error, Error::Fatal { .. }), "{error}");
    until("the hung worker is gone", || is_gone(pid)).await;
    // A death is told.
    let error = client.call::<()>("abort", ()).await.unwrap_err().to_string();
    assert!(error.contains("was killed by SIGABRT during a call"), "{error}");
});

trial!(a_setup_that_fails_is_tried_again_later_and_later, async || {
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    let mut command = programs::command(&["serve_failing_spares", &address]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
    let _program = Program::new(child);
    let mut told = lines.map(Result::unwrap).filter(|line| line.contains("a spare worker failed"));
    let began = Instant::now();
    // Read from for as long as the server may write.
    let pauses: Vec<String> = told
        .by_ref()
        .take(4)
        .map(|line| {
            assert!(line.contains(": its setup failed: no licence"), "{line}");
            let (_, rest) = line.split_once("forked in ").unwrap();
            rest.split_once(':').unwrap().0.to_owned()
        })
        .collect();
    assert_eq!(pauses, ["0.1 seconds", "0.2 seconds", "0.4 seconds", "0.8 seconds"]);
    // The first three of them have passed before the fourth was told.
    assert!(began.elapsed() >= Duration::from_millis(650), "{:?}", began.elapsed());
    // Meanwhile a caller is told why.
    let client = Client::builder().address(&address).max_workers(1).build().unwrap();
    let error = client.call::<u32>("pid", ()).await.unwrap_err().to_string();
    assert!(error.contains("setup exception: no licence"), "{error}");
    let status = ServerStatus::read(folder.path().join("s.status")).unwrap();
    assert!(status.deaths["setup_failed"] >= 4, "{status:?}");
    // Three at first, then one at a time, and one for the caller.
    assert!(status.forked <= 3 + 4 + 1, "{status:?}");
});
