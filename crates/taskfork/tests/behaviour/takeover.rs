//! Programs that take the places of their workers. The program is this binary, with the functions that the package for Python
//! uses.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use taskfork::__private::{Inherited, offer};
use taskfork::blob::{Blob, BlobMut};
use taskfork::client::Protocol;
use taskfork::error::{CallError, End, Failure, FatalError};
use taskfork::sandbox::Sandbox;
use taskfork::server::ServerStatus;
use taskfork::worker::{Executable, context};
use taskfork::{BoxError, Client, Error, Methods, Server, ServerError};

use crate::support::processes::{Program, all_children, is_gone, signal};
use crate::support::raw::{Raw, greet_as};
use crate::support::{address_in, programs, trial, until};

/// Serves with this program, which notes in the folder what it does.
pub(crate) fn serve(address: &str, folder: &str, options: &[&str]) -> Result<(), ServerError> {
    let own = std::env::current_exe().unwrap();
    let script = format!("TASKFORK_TEST_PROGRAM='takes_over {folder}' exec '{}'", own.display());
    let mut server = Server::builder().listen(address);
    for option in options {
        server = match option.split_once('=').unwrap() {
            ("spare_workers", count) => server.spare_workers(count.parse().unwrap()),
            ("max_calls", count) => server.max_calls(count.parse::<u64>().unwrap()),
            ("max_memory", bytes) => server.max_memory(bytes.parse::<u64>().unwrap()),
            ("max_workers", count) => server.max_workers(count.parse().unwrap()),
            ("sandbox", "no-network") => {
                let own = own.parent().unwrap();
                server.sandbox(Sandbox::no_network().read(own).write(folder))
            }
            // The program is a script of the test's.
            ("script", path) => {
                return server.executable(Executable::new(path)).run();
            }
            ("stays", "parent") => {
                let script = script.replace(" exec ", " ");
                return server
                    .executable(Executable::new("sh").arg("-c").arg(script + "; exit $?"))
                    .run();
            }
            other => panic!("{other:?}"),
        };
    }
    server.executable(Executable::new("sh").arg("-c").arg(script)).run()
}

fn note(folder: &Path, what: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(folder.join("notes")).unwrap();
    file.write_all(format!("{what}\n").as_bytes()).unwrap();
}

fn noted(folder: &Path, what: &str) -> usize {
    let notes = std::fs::read_to_string(folder.join("notes")).unwrap_or_default();
    notes.lines().filter(|line| *line == what).count()
}

/// What the program does. Files in the folder change it.
pub(crate) fn work(folder: &str) {
    let folder = PathBuf::from(folder);
    note(&folder, "started");
    let has = |file: &str| folder.join(file).exists();
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse().unwrap());
    let Some(state) = number("TASKFORK_WORKER") else {
        // SAFETY: the descriptor is this program's own.
        #[allow(unsafe_code)]
        let connection = unsafe { OwnedFd::from_raw_fd(number("TASKFORK_FD").unwrap()) };
        if has("other_version") {
            let mut raw = Raw(UnixStream::from(connection));
            greet_as(&mut raw, &[("takes_over", "0.0.0".into())]);
            raw.receive();
        } else {
            offer(connection).unwrap();
        }
        return note(&folder, "offered");
    };
    while has("wait") {
        std::thread::sleep(Duration::from_millis(2));
    }
    if has("refuse") {
        eprintln!("it is not in the mood");
        std::process::exit(5);
    }
    if has("child") && std::env::var_os("TASKFORK_TEST_CHILD").is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let ended = child.env("TASKFORK_TEST_CHILD", "yes").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(
            !ended.status.success() && said.contains("have it executed in the place"),
            "{said}"
        );
        note(&folder, "refused");
    }
    // SAFETY: as above.
    #[allow(unsafe_code)]
    let worker = unsafe { Inherited::take(state) }.unwrap();
    let interface = Methods::<u32>::new()
        .function("pid", || Ok(std::process::id()))
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("length", |bytes: Blob| Ok(bytes.len()))
        .function("echo", |text: String| Ok(text))
        .function("peer", || Ok(context().peer().map(|peer| peer.to_string())))
        .function("descriptors", || Ok(std::fs::read_dir("/proc/self/fd")?.count()))
        .function("occupy", |bytes: usize| {
            std::mem::forget(vec![1_u8; bytes]);
            Ok(())
        })
        .function("abort", || -> Result<(), BoxError> {
            eprintln!("about to abort");
            std::process::abort()
        })
        .function("hang", || -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        })
        .function("start_child", || {
            let child = std::process::Command::new("sleep").arg("1000").spawn()?;
            Ok(child.id())
        });
    let of_setup = folder.clone();
    let setup = move || {
        note(&of_setup, "setup");
        match std::fs::remove_file(of_setup.join("fail_once")) {
            Ok(()) => Err(Failure::new("not yet")),
            Err(_) => Ok(0),
        }
    };
    let status = worker.serve(setup, |_| Ok(()), &interface);
    note(&folder, "ended");
    while has("go_on") {
        std::thread::park();
    }
    std::process::exit(status);
}

/// A running server of such programs.
struct Programs {
    folder: tempfile::TempDir,
    server: Program,
}

impl Programs {
    fn start(options: &[&str]) -> Self {
        Self::start_with(options, &[])
    }

    /// Starts one whose folder has these files.
    fn start_with(options: &[&str], files: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let (address, path) = (address_in(&folder), folder.path().display().to_string());
        let arguments = [&["serve_takeover", &*address, &*path], options].concat();
        Self { server: programs::start_detached(&arguments), folder }
    }

    fn client(&self) -> Client {
        let client = Client::builder().address(address_in(&self.folder)).min_workers(0);
        client.max_workers(4).build().unwrap()
    }

    fn noted(&self, what: &str) -> usize {
        noted(self.folder.path(), what)
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.folder.path().join(file)).unwrap();
    }

    fn add(&self, file: &str) {
        std::fs::write(self.folder.path().join(file), "").unwrap();
    }

    fn status(&self) -> ServerStatus {
        ServerStatus::read(self.folder.path().join("s.status")).unwrap()
    }

    /// Waits until the next program is executed at once, because the server knows that it takes over.
    async fn learns(&self) {
        loop {
            // Each attempt makes another worker.
            let before = self.noted("offered");
            self.client().call::<u32>("pid", ()).await.unwrap();
            if self.noted("offered") == before {
                return;
            }
        }
    }
}

/// The parent of a process.
fn parent(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn death(error: Error) -> taskfork::error::Death {
    match error {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => death,
        other => panic!("{other}"),
    }
}

trial!(a_program_takes_the_place_of_its_worker, async || {
    let programs = Programs::start(&[]);
    let client = programs.client();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    assert_eq!(parent(pid), programs.server.pid());
    assert_eq!(all_children(pid).len(), 0);
    let status = programs.status();
    let worker = &status.workers[0];
    assert_eq!((worker.pid, worker.program), (pid, None));
    // The first one is started twice, and only one of the two has done anything.
    let counts = || ["started", "offered", "setup"].map(|what| programs.noted(what));
    assert_eq!(counts(), [2, 1, 1]);
    let peer: Option<String> = checkout.call("peer", ()).await.unwrap();
    assert!(peer.unwrap().contains(&format!("process {}", std::process::id())));
    drop(checkout);
    programs.learns().await;
    let before = counts();
    let other = programs.client();
    assert_ne!(other.call::<u32>("pid", ()).await.unwrap(), pid);
    assert_eq!(counts(), [before[0] + 1, before[1], before[2] + 1]);
});

trial!(what_a_client_has_sent_before_the_program_is_there_is_not_lost, async || {
    let programs = Programs::start_with(&[], &["wait"]);
    for known in [false, true] {
        let client = programs.client();
        let mut bytes = BlobMut::new(1 << 20).unwrap();
        bytes.fill(7);
        let checkout = client.checkout();
        let length = checkout.call::<usize>("length", (bytes.freeze().unwrap(),));
        let sum = checkout.call::<i64>("add", (1, 2));
        until("the program has started", || programs.noted("started") > 0).await;
        if !known {
            programs.remove("wait");
        }
        assert_eq!((length.await.unwrap(), sum.await.unwrap()), (1 << 20, 3));
        drop(checkout);
        programs.learns().await;
    }
});

trial!(a_client_that_speaks_json_is_served_by_the_program_itself, async || {
    let programs = Programs::start(&[]);
    for _ in 0..2 {
        let client = Client::builder().address(address_in(&programs.folder)).min_workers(0);
        let client = client.protocol(Protocol::Perl).build().unwrap();
        let pid: u32 = client.call("pid", ()).await.unwrap();
        assert_eq!(parent(pid), programs.server.pid());
        assert_eq!(client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
        programs.learns().await;
    }
});

trial!(spare_workers_are_programs_that_have_taken_over, async || {
    let programs = Programs::start(&["spare_workers=2"]);
    for _ in 0..3 {
        until("the spares are there", || {
            ServerStatus::read(programs.folder.path().join("s.status")).is_ok_and(|status| {
                status.workers.iter().filter(|worker| worker.state == "spare").count() == 2
            })
        })
        .await;
        let spares: Vec<u32> = programs.status().workers.iter().map(|it| it.pid).collect();
        let client = programs.client();
        let pid: u32 = client.call("pid", ()).await.unwrap();
        assert!(spares.contains(&pid), "{pid} {spares:?}");
        assert_eq!(parent(pid), programs.server.pid());
    }
    // The others have begun before that was known.
    assert!(programs.noted("offered") <= 3);
});

trial!(a_program_leaves_after_its_calls_and_for_its_memory, async || {
    let programs = Programs::start(&["max_calls=3", &format!("max_memory={}", 300 << 20)]);
    let client = programs.client();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    for _ in 0..2 {
        client.call::<i64>("add", (1, 1)).await.unwrap();
    }
    until("its end", || is_gone(pid)).await;
    let pid: u32 = client.call("pid", ()).await.unwrap();
    client.call::<()>("occupy", (400 << 20,)).await.unwrap();
    until("the end of the large one", || is_gone(pid)).await;
    until("both ends are counted", || {
        let deaths = programs.status().deaths;
        deaths.get("max_calls") == Some(&1) && deaths.get("max_memory") == Some(&1)
    })
    .await;
    // They have ended in order.
    assert_eq!(programs.noted("ended"), 2);
});

trial!(deaths_and_deadlines_of_a_program_are_those_of_its_worker, async || {
    let programs = Programs::start(&[]);
    let client = programs.client();
    for _ in 0..2 {
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let death = death(checkout.call::<()>("abort", ()).await.unwrap_err());
        assert_eq!((death.pid, death.end), (pid, End::Signaled(libc::SIGABRT)));
        assert_eq!(death.stderr.as_deref(), Some("about to abort"));
        let short = client.with_timeout(Duration::from_millis(300));
        let checkout = short.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        let error = checkout.call::<()>("hang", ()).await.unwrap_err();
        assert!(
            matches!(error, Error::Fatal { cause: FatalError::TimedOut { .. }, .. }),
            "{error}"
        );
        until("it is killed", || is_gone(pid)).await;
    }
});

trial!(a_program_with_another_version_is_a_failed_setup, async || {
    let programs = Programs::start_with(&[], &["other_version"]);
    let client = programs.client();
    let error = client.call::<u32>("pid", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
    let own = env!("CARGO_PKG_VERSION");
    let expected = format!("this side has version {own} of taskfork, and the other one 0.0.0");
    assert!(error.to_string().contains(&expected), "{error}");
    programs.remove("other_version");
    client.call::<u32>("pid", ()).await.unwrap();
});

trial!(a_program_that_does_not_take_over_ends_as_its_worker, async || {
    let programs = Programs::start_with(&[], &["refuse"]);
    let mut older = None;
    for known in [false, true] {
        let counts = || ["started", "offered"].map(|what| programs.noted(what));
        let before = counts();
        for _ in 0..if known { 5 } else { 1 } {
            // One worker at a time.
            let client = Client::builder().address(address_in(&programs.folder)).min_workers(0);
            let client = client.max_workers(1).build().unwrap();
            let death = death(client.call::<u32>("pid", ()).await.unwrap_err());
            assert_eq!(death.end, End::Exited(5));
            assert_eq!(death.stderr.as_deref(), Some("it is not in the mood"));
        }
        until("all have ended", || programs.status().workers.len() == usize::from(known)).await;
        // A client tries it more than once, because the call has not run.
        let [started, offered] = counts();
        let executed = (started - before[0]) - (offered - before[1]);
        assert_eq!(offered - before[1], executed - usize::from(known));
        programs.remove("refuse");
        if known {
            // The next one has to say again that it takes over.
            let offered = programs.noted("offered");
            programs.client().call::<u32>("pid", ()).await.unwrap();
            assert_eq!(programs.noted("offered"), offered + 1);
        } else {
            programs.learns().await;
            // This one goes on to serve, and says nothing of those that are executed later.
            let checkout = older.insert(programs.client().checkout());
            checkout.call::<u32>("pid", ()).await.unwrap();
            until("the others have left", || programs.status().workers.len() == 1).await;
            programs.add("refuse");
        }
    }
});

trial!(a_call_that_a_failed_start_has_answered_never_runs, async || {
    let folder = tempfile::tempdir().unwrap();
    let (script, hidden) = (folder.path().join("program"), folder.path().join("hidden"));
    let programs = Programs::start(&[&format!("script={}", script.display())]);
    let own = std::env::current_exe().unwrap();
    let (own, notes) = (own.display(), programs.folder.path().display());
    let text = format!("#!/bin/sh\nTASKFORK_TEST_PROGRAM='takes_over {notes}' exec '{own}'\n");
    std::fs::write(&hidden, text).unwrap();
    std::fs::set_permissions(&hidden, PermissionsExt::from_mode(0o700)).unwrap();
    let client = Client::builder().address(address_in(&programs.folder)).min_workers(0);
    let client = client.max_workers(1).reuse_after_error(true).build().unwrap();
    for is_known in [false, true] {
        let checkout = client.checkout();
        let setup_error = async |text: &str| {
            let error = checkout.call::<i64>("add", (1, 1)).await.unwrap_err();
            assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        };
        setup_error("cannot start the program").await;
        std::fs::rename(&hidden, &script).unwrap();
        // The worker has read the first call. A program would read it once more, and answer this one by its result.
        setup_error("check out another worker").await;
        setup_error("check out another worker").await;
        drop(checkout);
        assert_eq!(client.call::<i64>("add", (2, 2)).await.unwrap(), 4);
        if !is_known {
            programs.learns().await;
            let before = client.call::<u32>("pid", ()).await.unwrap();
            signal(before, libc::SIGKILL);
            until("it is gone", || is_gone(before)).await;
            std::fs::rename(&script, &hidden).unwrap();
        }
    }
});

trial!(the_state_of_a_worker_is_for_its_own_process, async || {
    let programs = Programs::start_with(&[], &["child"]);
    programs.client().call::<u32>("pid", ()).await.unwrap();
    assert_eq!(programs.noted("refused"), 1);
});

trial!(a_program_behind_another_process_is_a_failed_setup, async || {
    let programs = Programs::start(&["stays=parent"]);
    let error = programs.client().call::<u32>("pid", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
    assert!(error.to_string().contains("have it executed in the place of that"), "{error}");
});

trial!(a_program_that_goes_on_after_its_connection_is_ended, async || {
    let programs = Programs::start_with(&["max_workers=1"], &["go_on"]);
    programs.client().call::<u32>("pid", ()).await.unwrap();
    // Its client has left.
    programs.client().call::<u32>("pid", ()).await.unwrap();
    let deaths = programs.status().deaths;
    assert_eq!(deaths.get("hung"), None, "{deaths:?}");
});

trial!(a_setup_that_fails_runs_again_in_the_same_program, async || {
    let programs = Programs::start_with(&[], &["fail_once"]);
    let client = Client::builder().address(address_in(&programs.folder)).min_workers(0);
    let client = client.reuse_after_error(true).build().unwrap();
    let checkout = client.checkout();
    let error = checkout.call::<u32>("pid", ()).await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Setup { .. }, .. }), "{error}");
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    assert_eq!(parent(pid), programs.server.pid());
    assert_eq!(programs.noted("setup"), 2);
});

trial!(the_signal_of_a_deadline_does_not_end_a_program_that_starts, async || {
    let programs = Programs::start_with(&[], &["wait"]);
    let client = programs.client();
    let call = client.call::<u32>("pid", ());
    until("the program is executed", || programs.noted("started") == 2).await;
    let worker = programs.status().workers[0].pid;
    signal(worker, libc::SIGALRM);
    programs.remove("wait");
    assert_eq!(call.await.unwrap(), worker);
});

trial!(programs_and_what_they_have_started_end_with_a_killed_server, async || {
    let programs = Programs::start(&[]);
    let client = programs.client();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let child: u32 = checkout.call("start_child", ()).await.unwrap();
    signal(programs.server.pid(), libc::SIGKILL);
    until("the program's end", || is_gone(pid)).await;
    until("its child's end", || is_gone(child)).await;
});

trial!(a_program_has_no_descriptors_of_other_workers, async || {
    let programs = Programs::start(&[]);
    programs.learns().await;
    let clients: Vec<_> = (0..6).map(|_| programs.client()).collect();
    let mut counts = Vec::new();
    for client in &clients {
        counts.push(client.call::<usize>("descriptors", ()).await.unwrap());
    }
    assert_eq!(counts, vec![counts[0]; clients.len()]);
});

trial!(a_program_serves_under_the_sandbox_of_its_worker, async || {
    let programs = Programs::start(&["sandbox=no-network", &format!("max_memory={}", 300 << 20)]);
    for _ in 0..2 {
        let client = programs.client();
        let checkout = client.checkout();
        let pid: u32 = checkout.call("pid", ()).await.unwrap();
        assert_eq!(parent(pid), programs.server.pid());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let seccomp = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
        assert_eq!(seccomp.split_whitespace().nth(1), Some("2"));
        let long = "x".repeat(1 << 20);
        assert_eq!(checkout.call::<String>("echo", (&long,)).await.unwrap(), long);
        drop(checkout);
        programs.learns().await;
    }
    let client = programs.client();
    let pid: u32 = client.call("pid", ()).await.unwrap();
    client.call::<()>("occupy", (400 << 20,)).await.unwrap();
    until("the end of the large one", || is_gone(pid)).await;
    until("it is counted", || programs.status().deaths.get("max_memory") == Some(&1)).await;
});

trial!(a_new_version_of_the_server_asks_its_first_program_again, async || {
    let programs = Programs::start(&[]);
    let client = programs.client();
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let (before, offered) = (programs.status().pid, programs.noted("offered"));
    signal(before, libc::SIGHUP);
    until("the successor serves", || {
        ServerStatus::read(programs.folder.path().join("s.status"))
            .is_ok_and(|status| status.pid != before)
    })
    .await;
    assert_eq!(checkout.call::<u32>("pid", ()).await.unwrap(), pid);
    drop(checkout);
    let other = programs.client();
    assert_ne!(other.call::<u32>("pid", ()).await.unwrap(), pid);
    assert_eq!(programs.noted("offered"), offered + 1);
    signal(programs.status().pid, libc::SIGTERM);
});
