//! What workers may use, and what becomes of what they leave behind.

use std::path::PathBuf;
use std::time::Duration;

use taskfork::error::{Death, End, FatalError};
use taskfork::server::Limit;
use taskfork::{BoxError, Client, Error, Methods, Server, ServerBuilder, ServerError};

use crate::support::processes::{is_gone, signal};
use crate::support::{address_in, programs, start, start_with, trial, until};

fn settings(methods: Methods<()>) -> Methods<()> {
    methods.function("settings", || {
        let limits = std::fs::read_to_string("/proc/self/limits")?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let score = std::fs::read_to_string("/proc/self/oom_score_adj")?;
        let (_, after_name) = stat.rsplit_once(')').ok_or("no name")?;
        let nice = after_name.split_whitespace().nth(16).ok_or("no niceness")?.to_owned();
        Ok((limits, nice, score.trim().to_owned()))
    })
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = settings(Methods::new())
        .function("spin", || -> Result<(), BoxError> {
            loop {
                std::hint::spin_loop();
            }
        })
        .function("allocate", |bytes: usize| Ok(vec![1_u8; bytes].len()));
    server
        .limit(Limit::CpuTime, 1)
        .limit(Limit::AddressSpace, 4 << 30)
        .limit(Limit::OpenFiles, 99)
        .limit(Limit::OpenFiles, 100)
        .limit(Limit::CoreSize, 0)
        .limit(Limit::Processes, 5000)
        .niceness(3)
        .oom_score_adj(500)
        .interface(methods)
        .run()
}

fn death(error: Error) -> Death {
    match error {
        Error::Fatal { cause: FatalError::WorkerDied(death), .. } => death,
        other => panic!("{other}"),
    }
}

trial!(workers_have_the_limits_that_are_set, async || {
    let (_server, client) = start("limited");
    let (limits, nice, score) =
        client.call::<(String, String, String)>("settings", ()).await.unwrap();
    assert_eq!((&*nice, &*score), ("3", "500"));
    let values = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        values.join(" ")
    };
    assert_eq!(values("Max cpu time"), "1 2");
    assert_eq!(values("Max address space"), "4294967296 4294967296");
    assert_eq!(values("Max open files"), "100 100");
    assert_eq!(values("Max core file size"), "0 0");
    assert_eq!(values("Max processes"), "5000 5000");
});

trial!(a_limit_that_is_met_is_named_in_the_death, async || {
    let (_server, client) = start("limited");
    let spun = death(client.call::<()>("spin", ()).await.unwrap_err());
    assert_eq!(spun.end, End::Signaled(libc::SIGXCPU));
    assert_eq!(spun.reason.as_deref(), Some("its limit of processor time was reached"));
    let grown = death(client.call::<usize>("allocate", (8_u64 << 30,)).await.unwrap_err());
    assert_eq!(grown.end, End::Signaled(libc::SIGABRT));
    assert_eq!(grown.reason.as_deref(), Some("its limit of address space was reached"));
});

pub(crate) fn server_with_memory(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = settings(Methods::new())
        .function("allocate", |bytes: usize| Ok(vec![1_u8; bytes].len()))
        .function("map_shared", |bytes: usize| {
            Ok(taskfork::blob::BlobMut::new(bytes).map(|blob| blob.len())?)
        });
    server.limit(Limit::Memory, 512 << 20).interface(methods).run()
}

trial!(a_limit_of_private_memory_is_named_and_leaves_shared_memory_alone, async || {
    let (_server, client) = start("limited_memory");
    let checkout = client.checkout();
    let shared: usize = checkout.call("map_shared", (1_u64 << 30,)).await.unwrap();
    assert_eq!(shared, 1 << 30);
    let grown = death(checkout.call::<usize>("allocate", (1_u64 << 30,)).await.unwrap_err());
    assert_eq!(grown.end, End::Signaled(libc::SIGABRT));
    assert_eq!(grown.reason.as_deref(), Some("its limit of memory was reached"));
});

/// A group of processes with little memory, where one may be made.
struct SmallGroup(PathBuf);

impl SmallGroup {
    fn new() -> Option<Self> {
        let name = format!("taskfork-test-{}", std::process::id());
        for (root, limit) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let group = Self(PathBuf::from(root).join(&name));
            if std::fs::create_dir(&group.0).is_ok()
                && std::fs::write(group.0.join(limit), "64M").is_ok()
            {
                // Otherwise the kernel swaps what is over the limit. A system without swap has neither file.
                let _ = std::fs::write(group.0.join("memory.memsw.limit_in_bytes"), "64M");
                let _ = std::fs::write(group.0.join("memory.swap.max"), "0");
                return Some(group);
            }
        }
        None
    }
}

impl Drop for SmallGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

trial!(a_worker_killed_for_its_memory_limit_is_named, async || {
    let Some(group) = SmallGroup::new() else {
        eprintln!("not tried: no group of processes with limited memory can be made here");
        return;
    };
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    std::fs::write(group.0.join("cgroup.procs"), pid.to_string()).unwrap();
    let died = death(checkout.call::<()>("leak", (256_u64 << 20,)).await.unwrap_err());
    assert_eq!(died.end, End::Signaled(libc::SIGKILL));
    assert_eq!(died.reason.as_deref(), Some("out of memory"));
    until("the worker is reaped", || is_gone(pid)).await;
    // The server does not know the reason of a kill by another process.
    let checkout = client.checkout();
    let pid: u32 = checkout.call("pid", ()).await.unwrap();
    let call = checkout.call::<()>("hang", ());
    signal(pid, libc::SIGKILL);
    assert_eq!(death(call.await.unwrap_err()).reason, None);
});

trial!(options_that_cannot_be_keep_the_server_from_starting, async || {
    let wrong = [
        ("`niceness` cannot be so: 20 is not between", Server::builder().niceness(20)),
        ("`oom_score_adj` cannot be so: -1001 is", Server::builder().oom_score_adj(-1001)),
    ];
    for (expected, server) in wrong {
        let error = server.interface(Methods::new()).run().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
});

/// A server whose workers set this, in a program that drops its privileges before it runs the server, or in `setup`.
pub(crate) fn serve_limited(option: &str, value: i64, drops: &str, address: &str) {
    let server = Server::builder().listen(address);
    let server = match option {
        "niceness" => server.niceness(value as i32),
        "oom_score_adj" => server.oom_score_adj(value as i32),
        _ => server.limit(Limit::OpenFiles, value as u64),
    };
    if drops == "before" {
        drop_privileges().unwrap();
    }
    let in_setup = drops == "in_setup";
    let server = server.setup(move || if in_setup { drop_privileges() } else { Ok(()) });
    let served = server.interface(settings(Methods::new())).run();
    if let Err(error) = served {
        println!("{error}");
    }
}

/// Becomes another user, where this one is root.
fn drop_privileges() -> std::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    // SAFETY: it changes nothing but the users of this process.
    #[allow(unsafe_code)]
    match unsafe { libc::setresuid(65_534, 65_534, 65_534) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

trial!(an_option_that_the_system_refuses_keeps_the_server_from_starting, async || {
    // No process may have more open files than that.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap();
    let too_many = (most.trim().parse::<u64>().unwrap() + 1).to_string();
    for (option, value, drops, expected) in [
        (
            "niceness",
            "-5",
            "before",
            "`niceness` cannot be so: a worker may not set -5 (Permission",
        ),
        (
            "oom_score_adj",
            "-500",
            "before",
            "`oom_score_adj` cannot be so: a worker may not set -5",
        ),
        ("limit", &too_many, "never", "`limit` cannot be so: "),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["serve_limited", option, value, drops, &address_in(&folder)];
        let error = programs::output(&arguments);
        assert!(error.contains(expected), "{error}");
        assert!(option == "limit" || error.contains("drops its privileges"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
});

trial!(privileges_can_be_dropped_after_the_options_are_set, async || {
    for (option, value, script) in [
        ("niceness", "-5", "renice -n -5 $$"),
        ("oom_score_adj", "-500", "echo -500 > /proc/self/oom_score_adj"),
    ] {
        let tried = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
        if !tried.status.success() {
            eprintln!("not tried: this process may not lower its {option}");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let address = address_in(&folder);
        let _program = programs::start(&["serve_limited", option, value, "in_setup", &address]);
        let client = Client::builder().address(&address).build().unwrap();
        let (_, nice, score) =
            client.call::<(String, String, String)>("settings", ()).await.unwrap();
        assert_eq!(if option == "niceness" { nice } else { score }, value);
    }
});

trial!(children_that_left_the_group_die_with_their_worker, async || {
    let (_server, client) = start("general");
    let checkout = client.checkout();
    let worker: u32 = checkout.call("pid", ()).await.unwrap();
    // One whose parent has ended, in a session of its own, and the child of such a one.
    let away: Vec<u32> = checkout.call("start_daemons", ()).await.unwrap();
    assert_eq!(away.len(), 2);
    assert!(away.iter().all(|&pid| !is_gone(pid)));
    signal(worker, libc::SIGKILL);
    for pid in away {
        until("a descendant is gone", || is_gone(pid)).await;
    }
});

trial!(children_die_with_a_call_that_timed_out, async || {
    let (_server, client) = start_with("general", |client| client.max_workers(1));
    let away: Vec<u32> = client.call("start_daemons", ()).await.unwrap();
    let checkout = client.checkout().timeout(Duration::from_millis(50));
    checkout.call::<()>("hang", ()).await.unwrap_err();
    for pid in away {
        until("a descendant is gone", || is_gone(pid)).await;
    }
});

trial!(processes_started_before_the_server_live_on, async || {
    assert_eq!(programs::output(&["serve_with_a_child"]), "the child lives\n");
});

/// A server in a program that has a child of its own.
pub(crate) fn serve_with_a_child() {
    let (mut line, reader) = (std::process::Command::new("cat"), std::process::Stdio::piped());
    let mut child = line.stdin(reader).spawn().unwrap();
    let pid = child.id();
    let folder = tempfile::tempdir().unwrap();
    let address = address_in(&folder);
    // Ends it after some workers have come and gone.
    let program = programs::start(&["call_and_stop", &address, &std::process::id().to_string()]);
    crate::support::servers::serve(Server::builder().listen(&*address)).unwrap();
    println!("{}", if is_gone(pid) { "the child is gone" } else { "the child lives" });
    drop(program);
    drop(child.stdin.take());
    child.wait().unwrap();
}

pub(crate) fn call_and_stop(address: &str, server: u32) {
    let options = Client::builder().address(address).max_workers(1).max_checkouts(1);
    let client = options.build_blocking().unwrap();
    for _ in 0..3 {
        let _ = client.call::<()>("abort", ()).unwrap_err();
    }
    signal(server, libc::SIGTERM);
}
