//! The server program of a real run: a copy of this binary.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use taskfork::blob::OpenFile;
use taskfork::server::ServerStatus;
use taskfork::{Blob, BoxError, Methods, Server, ServerError};

use super::caller::{fill, has_only, write_fill};
use super::cgroup::Cgroup;
use super::plan::ServerPlan;
use super::server_command::server_command;

/// The folder of the server's files, and its options.
const FOLDER: &str = "TASKFORK_SIMULATION_FOLDER";
const OPTIONS: &str = "TASKFORK_SIMULATION_OPTIONS";

/// The server's `shutdown_grace`.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Serves if this process was started as a server. Returns whether it was.
pub(crate) fn run_requested() -> bool {
    let Ok(folder) = std::env::var(FOLDER) else { return false };
    let ended = server(&folder, &std::env::var(OPTIONS).unwrap()).run();
    match ended {
        // It may have to kill what hangs.
        Ok(()) | Err(ServerError::Killed { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

fn server(folder: &str, options: &str) -> Server {
    let ServerPlan::Server { workers, spares, waiting, calls, age, idle, .. } =
        ServerPlan::parse(options).unwrap();
    let limit = |time: u64| (time > 0).then(|| Duration::from_millis(time));
    let begun = PathBuf::from(folder).join("begun");
    let log = move |call: u64| -> Result<(), BoxError> {
        // One write of a few bytes at the end of a file is atomic.
        let mut file = OpenOptions::new().append(true).open(&begun)?;
        Ok(file.write_all(&call.to_ne_bytes())?)
    };
    Server::builder()
        .listen(&*format!("unix:{folder}/s"))
        .max_workers(workers as usize)
        .spare_workers(spares as usize)
        .max_handshakes(waiting as usize)
        .max_calls((calls > 0).then_some(calls))
        .max_age(limit(age))
        .max_idle(limit(idle))
        .shutdown_grace(SHUTDOWN_GRACE)
        .restart_on_hangup(true)
        .interface(methods(log))
}

fn methods(
    log: impl Fn(u64) -> Result<(), BoxError> + Clone + Send + Sync + 'static,
) -> Methods<()> {
    let begin = move |call| log.clone()(call);
    let (echo, sleep, hang, die) = (begin.clone(), begin.clone(), begin.clone(), begin.clone());
    let (fail, send, get) = (begin.clone(), begin.clone(), begin.clone());
    let (pass, open) = (begin.clone(), begin);
    Methods::new()
        .function("echo", move |call: u64| {
            echo(call)?;
            Ok(call)
        })
        .function("sleep", move |call: u64, milliseconds: u64| {
            sleep(call)?;
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(call)
        })
        .function("hang", move |call: u64| {
            hang(call)?;
            loop {
                std::thread::park();
            }
            #[allow(unreachable_code, reason = "it says what the method returns")]
            Ok(call)
        })
        .function("die", move |call: u64| -> Result<u64, BoxError> {
            die(call)?;
            std::process::abort()
        })
        .function("fail", move |call: u64| -> Result<u64, BoxError> {
            fail(call)?;
            Err(call.to_string().into())
        })
        .function("send", move |call: u64, bytes: Blob| -> Result<u64, BoxError> {
            send(call)?;
            Ok(if has_only(&bytes, fill(call)) { call } else { u64::MAX })
        })
        .function("get", move |call: u64, length: u64| {
            get(call)?;
            Ok(Blob::from(vec![fill(call); length as usize]))
        })
        .function("pass", move |call: u64, file: OpenFile| {
            pass(call)?;
            write_fill(file, call);
            Ok(call)
        })
        .function("open", move |call: u64| {
            open(call)?;
            Ok(OpenFile::from(OpenOptions::new().write(true).open("/dev/null")?))
        })
}

/// A server in a folder, and those that take over from it.
pub(crate) struct Program {
    folder: PathBuf,
    options: String,
    /// The process that was started last.
    child: Option<Child>,
    cgroup: Option<Cgroup>,
}

impl Program {
    pub(crate) fn start(folder: &Path, options: ServerPlan) -> Self {
        File::create(folder.join("begun")).unwrap();
        let options = options.to_string();
        let mut program = Self { folder: folder.to_owned(), options, child: None, cgroup: None };
        program.start_again();
        program
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// The process id of the server that listens now.
    pub(crate) fn pid(&self) -> Option<u32> {
        ServerStatus::read(self.folder.join("s.status")).ok().map(|status| status.pid)
    }

    /// Starts a server, and waits until it listens.
    pub(crate) fn start_again(&mut self) {
        let mut command = server_command();
        command.env(FOLDER, &self.folder).env(OPTIONS, &self.options);
        let child = command.spawn().unwrap();
        self.cgroup = Cgroup::of(child.id());
        self.child = Some(child);
        self.wait_until(|program| UnixStream::connect(program.socket()).is_ok());
    }

    /// Makes the kernel refuse forks of the server, or allow them. Returns whether it can.
    pub(crate) fn refuse_forks(&self, refuse: bool) -> bool {
        self.cgroup.as_ref().is_some_and(|cgroup| cgroup.allow(if refuse { "1" } else { "max" }))
    }

    /// Ends all servers of this folder, in order or at once, and waits until nothing of them is left.
    pub(crate) fn end(&mut self, signal_number: i32) {
        self.refuse_forks(false);
        if signal_number == libc::SIGKILL {
            // Without a guardian, what workers have started would survive the server.
            self.wait_until(|program| {
                let pids = program.processes();
                pids.is_empty()
                    || pids.iter().any(|pid| title(*pid).starts_with("taskfork-guardian:"))
            });
        }
        if signal_number == libc::SIGTERM {
            // A restart that has begun ends first: a server that only starts would leave its files.
            self.wait_until(|program| program.servers().len() <= 1);
        }
        // Each server is told once, because a second request would kill the workers.
        let told = std::cell::RefCell::new(Vec::new());
        self.wait_until(|program| {
            for pid in program.servers() {
                if !told.borrow().contains(&pid) {
                    signal(pid, signal_number);
                    told.borrow_mut().push(pid);
                }
            }
            let mut left = program.processes();
            left.retain(|pid| !is_zombie(*pid));
            left.is_empty()
        });
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
        self.cgroup = None;
    }

    /// The servers among the processes, and those that are about to be.
    fn servers(&self) -> Vec<u32> {
        let mut servers = self.processes();
        servers.retain(|pid| {
            let title = title(*pid);
            !title.starts_with("taskfork-guardian:") && !title.starts_with("taskfork-worker:")
        });
        servers
    }

    /// All processes that come from a server of this folder: they have it in their environment.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let variable = format!("{FOLDER}={}", self.folder.display());
        let processes = std::fs::read_dir("/proc").unwrap();
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let is_its = |pid: &u32| {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes())
        };
        pids.filter(is_its).collect()
    }

    /// The calls that workers have begun, in that order.
    pub(crate) fn begun(&self) -> Vec<u64> {
        let bytes = std::fs::read(self.folder.join("begun")).unwrap();
        bytes.chunks_exact(8).map(|call| u64::from_ne_bytes(call.try_into().unwrap())).collect()
    }

    fn wait_until(&mut self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if condition(self) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("nothing happens: {:?}", self.processes());
    }
}

impl Drop for Program {
    /// After a failure: nothing is left then either.
    fn drop(&mut self) {
        if self.child.is_some() {
            self.processes().into_iter().for_each(|pid| signal(pid, libc::SIGKILL));
            self.child.take().into_iter().for_each(|mut child| drop(child.wait()));
        }
    }
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// How `ps` calls a process.
pub(crate) fn title(pid: u32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).into_owned()
}

pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: it only sends a signal. A process that has ended in the meantime gets none.
    #[allow(unsafe_code)]
    unsafe {
        libc::kill(pid.cast_signed(), signal);
    }
}
