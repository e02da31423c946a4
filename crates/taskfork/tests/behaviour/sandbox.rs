//! Workers with a sandbox: when it applies, how they end by it, and what keeps working in it. What it
//! forbids is tested in `tests/escape`.

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use taskfork::error::{Death, End, FatalError};
use taskfork::sandbox::{Level, Sandbox};
use taskfork::server::ServerStatus;
use taskfork::{Blob, BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::support::access_control::peer_pid;
use crate::support::processes::{Program, signal};
use crate::support::{address_in, programs, start_with, trial, until};

const FILE: &str = "/etc/hostname";

/// The test program that is a server. `KEY=VALUE` sets one option; `KEY` is one of the sandbox.
pub(crate) fn serve(address: &str, level: &str, options: &[&str]) -> Result<(), ServerError> {
    let mut sandbox = Sandbox::of_level(level.parse::<Level>().unwrap());
    let mut server = Server::builder().listen(address);
    let mut setup = "reads";
    let mut is_program = false;
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "before_setup" => sandbox = sandbox.before_setup(),
            "kill" => sandbox = sandbox.kill(),
            "read" => sandbox = sandbox.read(value),
            "max_result" => sandbox = sandbox.max_result(value.parse().unwrap()),
            "setup" => setup = value,
            "user" => server = server.user(value),
            "program" => is_program = true,
            "max_memory" => server = server.max_memory(value.parse::<u64>().unwrap()),
            "spare_workers" => server = server.spare_workers(value.parse().unwrap()),
            "no_new_privs" => server = server.no_new_privs(value == "true"),
            other => panic!("no such option: {other}"),
        }
    }
    let server = server.sandbox(sandbox);
    if is_program {
        return crate::executable::server(server);
    }
    let setup = setup.to_owned();
    let fails = std::cell::Cell::new(setup == "fails_once");
    server
        .setup(move || -> Result<Option<String>, BoxError> {
            if fails.replace(false) {
                return Err("not yet".into());
            }
            if setup == "starts_thread" {
                std::thread::spawn(std::thread::park);
            }
            Ok(std::fs::read_to_string(FILE).ok())
        })
        .interface(methods())
        .run()
}

fn methods() -> Methods<Option<String>> {
    Methods::new()
        .method("read_in_setup", |read: &mut Option<String>| Ok(read.is_some()))
        .function("read", |path: String| Ok(std::fs::read_to_string(path)?))
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("ptrace", || {
            // SAFETY: the request has no effect but on this process.
            #[allow(unsafe_code)]
            match unsafe { libc::ptrace(libc::PTRACE_TRACEME) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error().into()),
            }
        })
        .function("raise_sigsys", || {
            // SAFETY: it signals this process.
            #[allow(unsafe_code)]
            Ok(unsafe { libc::raise(libc::SIGSYS) })
        })
        .function("spin", || -> Result<(), BoxError> { spin_for_ever() })
        .function("panic", || -> Result<(), BoxError> { panic_in_a_function() })
        .function("echo", |blob: Blob| Ok(blob))
        .function("fill", |bytes: usize| Ok(Blob::from(vec![7; bytes])))
        .function("log", |line: String| {
            taskfork::worker::logger().info(line);
            Ok(())
        })
        .function("leak", |bytes: usize| {
            std::mem::forget(vec![1_u8; bytes]);
            Ok(())
        })
        .function("peer", || Ok(peer_pid()))
        .function("thread", || Ok(std::thread::spawn(|| 5).join().map_err(|_| "it panicked")?))
        .function("wait_for_end", || -> Result<(), BoxError> {
            std::io::stdin().read_exact(&mut [0])?;
            Ok(())
        })
}

#[inline(never)]
fn spin_for_ever() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

#[inline(never)]
fn panic_in_a_function() -> ! {
    panic!("as asked")
}

/// A server with this sandbox, and its status socket and a client.
struct Confined {
    folder: tempfile::TempDir,
    _program: Program,
    client: Client,
}

impl Confined {
    fn start(level: &str, options: &[&str]) -> Self {
        Self::start_in(level, options, &[])
    }

    fn start_in(level: &str, options: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let mut command =
            programs::command(&[&["serve_sandboxed", &address, level], options].concat());
        command.envs(variables.iter().copied());
        let program = Program::new(command.spawn().unwrap());
        let client = Client::builder().address(&address).min_workers(0).max_workers(1);
        Self { folder, _program: program, client: client.build().unwrap() }
    }

    fn status(&self) -> ServerStatus {
        ServerStatus::read(self.folder.path().join("s.status")).unwrap()
    }

    /// Whether a worker may open a file in a call.
    async fn may_read(&self) -> bool {
        match self.client.call::<String>("read", (FILE,)).await {
            Ok(_) => true,
            Err(error) => {
                assert!(matches!(error, Error::Call { .. }), "{error}");
                assert!(error.to_string().contains("denied"), "{error}");
                false
            }
        }
    }
}

fn death(error: Error) -> Death {
    match error {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => death,
        other => panic!("{other}"),
    }
}

trial!(a_sandbox_applies_after_setup_and_before_the_first_call, async || {
    for options in [&[][..], &["spare_workers=1"]] {
        let server = Confined::start("compute", options);
        assert!(!server.may_read().await, "{options:?}");
        assert!(server.client.call::<bool>("read_in_setup", ()).await.unwrap(), "{options:?}");
        assert_eq!(server.client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
    }
});

trial!(a_sandbox_can_apply_before_setup, async || {
    for options in [&["before_setup"][..], &["before_setup", "spare_workers=1"]] {
        let server = Confined::start("compute", options);
        assert!(!server.client.call::<bool>("read_in_setup", ()).await.unwrap(), "{options:?}");
        assert!(!server.may_read().await, "{options:?}");
    }
});

trial!(a_worker_confined_before_its_setup_logs_nothing_and_is_not_killed, async || {
    for options in [&["before_setup"][..], &["before_setup", "kill"]] {
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let arguments = [&["serve_sandboxed", &address, "compute"], options].concat();
        let mut command = programs::command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let client = Client::builder().address(&address).min_workers(0).max_workers(1);
        let client = client.build().unwrap();
        let sum = client.call::<i64>("add", (2, 3)).await;
        drop(client);
        signal(server.id(), libc::SIGTERM);
        let mut logged = String::new();
        let mut streams = server.stdout.take().unwrap().chain(server.stderr.take().unwrap());
        tokio::task::spawn_blocking(move || {
            streams.read_to_string(&mut logged).unwrap();
            assert!(!logged.contains("ERROR") && !logged.contains("PDEATHSIG"), "{logged}");
        })
        .await
        .unwrap();
        server.wait().unwrap();
        assert_eq!(sum.unwrap(), 5, "{options:?}");
    }
});

trial!(a_path_that_the_user_of_workers_cannot_open_keeps_the_server_from_starting, async || {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    // Only root may enter the folder.
    let inner = folder.path().join("inner").display().to_string();
    std::fs::create_dir(&inner).unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    let read = format!("read={inner}");
    let error = programs::output(&["serve_sandboxed", &address, "compute", "user=nobody", &read]);
    assert!(error.contains("`sandbox`") && error.contains("a worker cannot apply it"), "{error}");
    assert!(error.contains(&inner), "{error}");
});

trial!(the_level_off_and_an_opening_permit_it, async || {
    for (level, options) in [("off", &[][..]), ("compute", &["read=/etc"]), ("no-network", &[])] {
        assert!(Confined::start(level, options).may_read().await, "{level} {options:?}");
    }
});

trial!(a_worker_whose_setup_has_failed_is_confined_once_it_succeeds, async || {
    let server = Confined::start("compute", &["setup=fails_once"]);
    let checkout = server.client.checkout();
    let error = checkout.call::<i64>("add", (2, 3)).await.unwrap_err();
    assert!(error.to_string().contains("not yet"), "{error}");
    let options = |client: taskfork::client::ClientBuilder| client.reuse_after_error(true);
    let address = address_in(&server.folder);
    let client = options(Client::builder().address(address).max_workers(1)).build().unwrap();
    let checkout = client.checkout();
    checkout.call::<i64>("add", (2, 3)).await.unwrap_err();
    let error = checkout.call::<String>("read", (FILE,)).await.unwrap_err();
    assert!(error.to_string().contains("denied"), "{error}");
    assert!(checkout.call::<bool>("read_in_setup", ()).await.unwrap());
});

trial!(a_worker_with_threads_from_its_setup_is_not_confined_and_serves_nothing, async || {
    let server = Confined::start("compute", &["setup=starts_thread"]);
    let death = death(server.client.call::<i64>("add", (2, 3)).await.unwrap_err());
    assert_eq!(death.end, End::Exited(71));
    let stderr = death.stderr.unwrap();
    assert!(stderr.contains("cannot be confined") && stderr.contains("`before_setup`"), "{stderr}");
    // A thread that starts later is confined as well.
    let server = Confined::start("compute", &["setup=starts_thread", "before_setup"]);
    assert!(!server.may_read().await);
    assert_eq!(server.client.call::<i32>("thread", ()).await.unwrap(), 5);
});

trial!(a_forbidden_system_call_is_an_error_or_a_death_that_names_it, async || {
    let server = Confined::start("compute", &[]);
    let error = server.client.call::<()>("ptrace", ()).await.unwrap_err().to_string();
    assert!(error.contains("not permitted"), "{error}");
    let server = Confined::start("compute", &["kill"]);
    let died = death(server.client.call::<()>("ptrace", ()).await.unwrap_err());
    assert_eq!(died.end, End::Signaled(libc::SIGSYS));
    assert_eq!(died.reason.as_deref(), Some("it called `ptrace`, which its sandbox forbids"));
    until("the count", || server.status().deaths.get("sandbox") == Some(&1)).await;
});

trial!(the_level_is_part_of_the_status, async || {
    let level = |level: &'static str| async move {
        let server = Confined::start(level, &[]);
        server.client.call::<i64>("add", (2, 3)).await.unwrap();
        server.status().sandbox
    };
    assert_eq!(level("compute").await.as_deref(), Some("compute"));
    assert_eq!(level("no-network").await.as_deref(), Some("no-network"));
    assert_eq!(level("off").await, None);
});

trial!(a_confined_worker_still_has_what_calls_need, async || {
    let server = Confined::start("compute", &["kill"]);
    let address = address_in(&server.folder);
    let client = Client::builder().address(address).max_workers(1).min_workers(0);
    let client = client.build().unwrap();
    let checkout = client.checkout();
    // Enough for rings and shared buffers.
    for round in 0..200 {
        assert_eq!(checkout.call::<i64>("add", (round, 1)).await.unwrap(), round + 1);
    }
    let blob = Blob::from(vec![5; 1 << 20]);
    assert_eq!(checkout.call::<Blob>("echo", (blob,)).await.unwrap()[..], vec![5; 1 << 20]);
    assert_eq!(checkout.call::<Blob>("fill", (1 << 20,)).await.unwrap()[..], vec![7; 1 << 20]);
    let mut sealed = taskfork::blob::BlobMut::new(1 << 20).unwrap();
    sealed.fill(3);
    let sealed = sealed.freeze().unwrap();
    assert_eq!(checkout.call::<Blob>("echo", (sealed,)).await.unwrap()[..], vec![3; 1 << 20]);
    checkout.call::<()>("log", ("a line",)).await.unwrap();
    assert_eq!(checkout.call::<i32>("thread", ()).await.unwrap(), 5);
    let peer: Option<u32> = checkout.call("peer", ()).await.unwrap();
    assert_eq!(peer, Some(std::process::id()));
});

trial!(the_stack_of_a_hung_confined_worker_has_names, async || {
    let server = Confined::start("compute", &["kill"]);
    server.client.call::<i64>("add", (2, 3)).await.unwrap();
    loop {
        let checkout = server.client.checkout().timeout(Duration::from_millis(200));
        let error = checkout.call::<()>("spin", ()).await.unwrap_err();
        let report = error.report().to_string();
        if report.contains("spin_for_ever") {
            break;
        }
        // A busy machine may not find the names in time.
        assert!(report.contains("its stack is not known"), "{report}");
    }
});

trial!(the_stack_of_a_panic_in_a_confined_worker_has_names, async || {
    let variables = [("RUST_BACKTRACE", "1")];
    let server = Confined::start_in("compute", &["kill"], &variables);
    let error = server.client.call::<()>("panic", ()).await.unwrap_err();
    let report = error.report().to_string();
    assert!(report.contains("panic_in_a_function") && report.contains("sandbox.rs"), "{report}");
});

trial!(a_confined_worker_is_replaced_for_its_memory, async || {
    let server = Confined::start("compute", &["kill", &format!("max_memory={}", 200 << 20)]);
    server.client.call::<i64>("add", (2, 3)).await.unwrap();
    server.client.call::<()>("leak", (300 << 20,)).await.unwrap();
    until("the replacement", || server.status().deaths.get("max_memory") == Some(&1)).await;
});

trial!(a_result_over_the_limit_of_the_sandbox_is_an_error, async || {
    let server = Confined::start("compute", &["max_result=1000"]);
    let blob: Blob = server.client.call("fill", (900,)).await.unwrap();
    assert_eq!(blob.len(), 900);
    for bytes in [1001, 1 << 20] {
        let error = server.client.call::<Blob>("fill", (bytes,)).await.unwrap_err().to_string();
        assert!(error.contains("the sandbox allows 1000 (max_result)"), "{error}");
    }
    assert_eq!(server.client.call::<i64>("add", (2, 3)).await.unwrap(), 5);
});

trial!(a_program_has_the_sandbox_when_it_is_executed, async || {
    // The program is this binary, started by a shell.
    let folder = std::env::current_exe().unwrap().parent().unwrap().display().to_string();
    let open = [format!("read={folder}"), "program".to_owned()];
    let options: Vec<&str> = open.iter().map(String::as_str).collect();
    let server = Confined::start("no-network", &options);
    let status: String = server.client.call("status", ()).await.unwrap();
    let seccomp = status.lines().find(|line| line.starts_with("Seccomp:")).unwrap();
    assert_eq!(seccomp.split_whitespace().nth(1), Some("2"));
    // The sandbox does not permit to execute it.
    let server = Confined::start("compute", &["program"]);
    let error = server.client.call::<String>("status", ()).await.unwrap_err().to_string();
    assert!(error.contains("cannot start the program") && error.contains("`execute`"), "{error}");
});

trial!(a_sandbox_that_cannot_be_prepared_keeps_the_server_from_starting, async || {
    for (options, expected) in [
        (&["read=/nonexistent/folder"][..], "the sandbox cannot open `/nonexistent/folder`"),
        (&["no_new_privs=false"], "`no_new_privs` cannot be so: a sandbox needs it"),
    ] {
        let arguments = [&["serve_sandboxed", "unix:/nonexistent/s", "compute"], options].concat();
        let error = programs::output(&arguments);
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
});

/// A spawned server with a sandbox.
pub(crate) fn spawned(server: ServerBuilder) -> Result<(), ServerError> {
    server.sandbox(Sandbox::compute()).setup(|| Ok::<_, BoxError>(None)).interface(methods()).run()
}

trial!(a_spawned_server_has_a_sandbox_too, async || {
    let (_server, client) = start_with("sandboxed", |client| client);
    let error = client.call::<String>("read", (FILE,)).await.unwrap_err().to_string();
    assert!(error.contains("denied"), "{error}");
});
