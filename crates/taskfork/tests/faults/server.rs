//! The server: a copy of this binary.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::cgroup::Cgroup;
use super::server_command::server_command;
use taskfork::server::Limit;
use taskfork::{Blob, BoxError, Methods, Server, ServerError};

const ADDRESS: &str = "TASKFORK_FAULT_ADDRESS";

pub(crate) fn run_requested() -> bool {
    let Ok(address) = std::env::var(ADDRESS) else { return false };
    let methods = Methods::new()
        .function("echo", |value: u64| Ok(value))
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(milliseconds)
        })
        .function("spin", |milliseconds: u64| {
            let until = std::time::Instant::now() + Duration::from_millis(milliseconds);
            while std::time::Instant::now() < until {
                std::hint::spin_loop();
            }
            Ok(milliseconds)
        })
        .function("there_and_back", |blob: Blob| Ok(blob))
        .function("copy", |blob: Blob| Ok(Blob::from(blob.to_vec())))
        .function("blob", |bytes: usize, fill: u8| Ok(vec![fill; bytes]))
        .function("child", |value: u64| {
            Command::new("sleep").arg("3600").stdout(Stdio::null()).spawn()?;
            Ok(value)
        })
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("fail_with", |value: u64| Err::<u64, _>(value.to_string().into()))
        .function("fail", |message: String| Err::<(), _>(message.into()));
    let ended = Server::builder()
        .listen(&*address)
        .limit(Limit::CoreSize, 0)
        .hung_worker_timeout(Duration::from_secs(3))
        .shutdown_grace(Duration::from_secs(1))
        .max_calls(500)
        .setup(|| {
            // Now and then it fails, and now and then the worker dies of it.
            match std::process::id() % 50 {
                7 => Err(BoxError::from("the setup fails")),
                8 => std::process::abort(),
                _ => Ok(()),
            }
        })
        .spare_workers(2)
        .interface(methods)
        .run();
    match ended {
        // It may have to kill what hangs.
        Ok(()) | Err(ServerError::Killed { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

pub(crate) struct Program {
    child: Option<Child>,
    cgroup: Option<Cgroup>,
}

impl Program {
    /// Starts one, and waits until it listens.
    pub(crate) fn start(path: &Path) -> Self {
        let mut command = server_command();
        let child = command.env(ADDRESS, format!("unix:{}", path.display())).spawn().unwrap();
        let program = Self { cgroup: Cgroup::of(child.id()), child: Some(child) };
        while std::os::unix::net::UnixStream::connect(path).is_err() {
            std::thread::sleep(Duration::from_millis(2));
        }
        program
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Makes the kernel refuse or allow forks of the server. Returns false if there is no control group
    /// for it.
    pub(crate) fn refuse_forks(&self, refuse: bool) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup.allow(if refuse { "1" } else { "max" }))
    }

    pub(crate) fn signal(&self, signal: i32) {
        super::injection::signal(self.pid(), signal);
    }

    /// Shuts the server down gracefully, and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        assert!(self.child.take().unwrap().wait().unwrap().success());
    }

    /// Kills it, and waits until its workers are gone as well.
    pub(crate) fn kill(&mut self) {
        // Without a guardian, what workers have started would survive the server.
        let guarded = |&pid: &u32| title(pid).starts_with("taskfork-guardian:");
        while !super::children(self.pid()).iter().any(guarded) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let workers = super::children(self.pid());
        self.signal(libc::SIGKILL);
        self.child.take().unwrap().wait().unwrap();
        for worker in workers {
            while is_alive(worker) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Program {
    /// After a failure: nothing is left then either.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The processes that come from a server at `path`, itself included: all have its address in their
/// environment.
pub(crate) fn descendants(path: &Path) -> Vec<u32> {
    let variable = format!("{ADDRESS}=unix:{}", path.display());
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes())
    })
    .collect()
}

/// How `ps` calls a process.
pub(crate) fn title(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}

/// Whether the process exists and is not a zombie.
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
