//! The servers that tests start.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use taskfork::client::Value;
use taskfork::error::Failure;
use taskfork::server::Entry;
use taskfork::worker::{Arguments, Function};
use taskfork::{BoxError, Methods, Server, ServerBuilder, ServerError};

pub(crate) const ENTRIES: &[(&str, Entry)] = &[
    ("replace_after_typed", crate::replace_after::typed),
    ("replace_after_untyped", crate::replace_after::untyped),
    ("retries", crate::retries::server),
    ("several_interfaces", crate::several_interfaces::server),
    ("typed_clients", crate::typed_clients::server),
    ("typed_clients_listening", crate::typed_clients::listening),
    ("typed_clients_untyped", crate::typed_clients::untyped),
    ("general", |server| serve(server.name("general"))),
    ("sandboxed", crate::sandbox::spawned),
    ("limited_memory", crate::limits::server_with_memory),
    ("hung", |server| serve(server.hung_worker_timeout(Duration::from_millis(300)))),
    ("looking", |server| {
        serve(server.busy_poll(taskfork::client::BusyPoll::Fixed(Duration::from_millis(2))))
    }),
    ("long_name", |server| serve(server.name("é".repeat(300)))),
    ("short_grace", |server| serve(server.shutdown_grace(Duration::from_millis(200)))),
    ("small_frames", |server| serve(server.max_frame(1000))),
    ("spawned_peer", super::access_control::spawned),
    ("tcp", |server| serve(server.listen("tcp:127.0.0.1:0"))),
    ("max_calls", |server| serve(server.max_calls(3))),
    ("max_age", |server| serve(server.max_age(Duration::from_millis(300)))),
    ("max_idle", |server| serve(server.max_idle(Duration::from_millis(100)))),
    ("max_memory", |server| serve(server.max_memory(200 << 20))),
    ("unbounded", |server| {
        let most = usize::MAX;
        let server = server.max_frame(most).max_blob(most).shared_memory(most).max_workers(most);
        serve(server.max_handshakes(most).max_calls(u64::MAX).max_memory(u64::MAX))
    }),
    ("max_workers", |server| serve(server.max_workers(2))),
    ("many_workers", |server| serve(server.max_workers(1000))),
    ("many_listening", |server| {
        let address: String = server.config()?;
        serve(server.listen(address).max_workers(1000))
    }),
    ("spares", |server| crate::spares::server(server.spare_workers(2))),
    ("spares_two_workers", |server| crate::spares::server(server.spare_workers(2).max_workers(2))),
    ("spares_aged", |server| {
        crate::spares::server(server.spare_workers(1).max_age(Duration::from_millis(200)))
    }),
    ("spares_without_setup", crate::spares::failing),
    ("max_calls_none", |server| serve(server.max_calls(0))),
    ("limited", crate::limits::server),
    ("preloaded", crate::preload::server),
    ("preload_fails", crate::preload::failing),
    ("bounds", crate::bounds::server),
    ("blobs", crate::blobs::server),
    ("blobs_tcp", |server| crate::blobs::server(server.listen("tcp:127.0.0.1:0"))),
    ("files", crate::files::server),
    ("files_small_blobs", |server| crate::files::server(server.max_blob(1 << 20))),
    ("files_tcp", |server| crate::files::server(server.listen("tcp:127.0.0.1:0"))),
    ("leaving", crate::leaving::server),
    ("shared_buffers", crate::shared_buffers::server),
    ("shared_buffers_tcp", |server| {
        crate::shared_buffers::server(server.listen("tcp:127.0.0.1:0"))
    }),
    ("shared_buffers_none", |server| crate::shared_buffers::server(server.shared_memory(0))),
    ("progress", crate::progress::server),
    ("inputs", crate::support::inputs::server),
    ("inputs_tcp", |server| crate::support::inputs::server(server.listen("tcp:127.0.0.1:0"))),
    ("streams", crate::streams::server),
    ("streams_tcp", |server| crate::streams::server(server.listen("tcp:127.0.0.1:0"))),
    ("rings", crate::rings::server),
    ("rings_awake", |server| {
        crate::rings::server(
            server.busy_poll(taskfork::client::BusyPoll::Fixed(Duration::from_millis(2))),
        )
    }),
    ("rings_worn_out", |server| {
        let awake = taskfork::client::BusyPoll::Fixed(Duration::from_millis(2));
        crate::rings::server(server.busy_poll(awake).max_calls(50))
    }),
    ("rings_tcp", |server| crate::rings::server(server.listen("tcp:127.0.0.1:0"))),
    ("rings_none", |server| crate::rings::server(server.shared_memory(0))),
    ("deadlines", crate::deadlines::server),
    ("map", crate::map::server),
    ("deadlines_hung", |server| {
        crate::deadlines::server(server.hung_worker_timeout(Duration::from_millis(200)))
    }),
    ("executable", crate::executable::server),
    ("executable_native", crate::executable::native),
    ("executable_missing", crate::executable::missing),
    ("executable_silent", crate::executable::silent),
    ("program_streams", crate::program_streams::server),
    ("perl", crate::perl::server),
    ("coderef", crate::perl::coderef),
    ("forks", crate::forks::server),
    ("forks_awake", |server| {
        crate::forks::server(
            server.busy_poll(taskfork::client::BusyPoll::Fixed(Duration::from_millis(2))),
        )
    }),
    ("forks_around_calls", crate::forks::around_calls),
    ("forks_spare", |server| crate::forks::around_calls(server.spare_workers(1))),
    ("forks_hung", |server| {
        crate::forks::server(server.hung_worker_timeout(Duration::from_millis(200)))
    }),
    ("json_bytes", crate::json_bytes::server),
    ("function", function),
    ("setup_second_time", setup_second_time),
    ("setup_panics", setup_panics),
    ("setup_dies", setup_dies),
    ("setup_hangs", setup_hangs),
    ("setup_waits", crate::setup::waiting),
    ("setup_waits_tcp", |server| crate::setup::waiting(server.listen("tcp:127.0.0.1:0"))),
    ("executable_waits", crate::executable::waiting),
    ("done_fails", done_fails),
    ("done_slow", done_slow),
    ("logs", crate::logs::server),
    ("logs_small_frames", |server| crate::logs::server(server.max_frame(1000))),
    #[cfg(feature = "spans")]
    ("spans", crate::spans::server),
    #[cfg(feature = "spans")]
    ("spans_own_subscriber", crate::spans::own_subscriber),
    ("traces", crate::traces::server),
    ("typed", crate::typed::server),
    ("typed files", crate::typed::files_server),
    ("scribbling", |server| crate::shared_memory::server(server, false)),
    ("scribbling_as_nobody", |server| crate::shared_memory::server(server, true)),
    ("configured", crate::spawn_config::configured),
    ("never_serves", crate::spawn_failures::never_serves),
    ("panics_later", crate::spawned::panics_later),
    ("never_runs", |_| Ok(())),
    ("refuses", |_| Err(ServerError::NoAddress)),
];

/// The state of a worker.
#[derive(Default)]
pub(crate) struct Worker {
    checkouts: u64,
    note: String,
}

/// Writes the log of this process to the log output of the server.
pub(crate) fn log() {
    tracing_subscriber::fmt().with_ansi(false).with_writer(taskfork::server::LogWriter::new).init();
}

/// Runs a server with the general-purpose methods of [`methods`].
pub(crate) fn serve(server: ServerBuilder) -> Result<(), ServerError> {
    describe(server).run()
}

pub(crate) fn describe(server: ServerBuilder) -> Server {
    server
        .setup(|| Ok::<_, BoxError>(Worker::default()))
        .checkout_done(|worker: &mut Worker| {
            worker.checkouts += 1;
            worker.note.clear();
            Ok::<_, BoxError>(())
        })
        .interface(methods())
}

struct Unencodable;

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("a handle of this process"))
    }
}

pub(crate) fn methods() -> Methods<Worker> {
    inspection(failures(Methods::new()))
        .without_method(|_, arguments| Ok(arguments.parse::<Vec<Value>>()?))
        .variadic("args", |_, arguments| Ok(arguments.parse::<Vec<Value>>()?))
        .function("echo", |value: Value| Ok(value))
        .function("add", |a: i64, b: i64| Ok(a + b))
        .function("nothing", || Ok(()))
        .function("blob", |bytes: usize| Ok(Value::Binary(vec![b'x'; bytes])))
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        })
        .function("wait_for", |path: String| Ok(crate::signals::wait_for(&path)?))
        .method("checkouts", |worker: &mut Worker| Ok(worker.checkouts))
        .method("remember", |worker: &mut Worker, note: String| {
            worker.note = note;
            Ok(())
        })
        .method("note", |worker: &mut Worker| Ok(worker.note.clone()))
        .function("append", |file: String, text: String| {
            use std::io::Write;
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file)?;
            file.write_all(text.as_bytes())?;
            Ok(())
        })
}

fn failures(methods: Methods<Worker>) -> Methods<Worker> {
    methods
        .function("boom", |message: String| Err::<(), _>(message.into()))
        .function("chain", || {
            let error = std::io::Error::other(Failure::new("inner").caused_by("innermost"));
            Err::<(), _>(Box::new(Outer(error)).into())
        })
        .function("panic", |message: String| -> Result<(), BoxError> { panic!("{message}") })
        .function("complain", |text: String| {
            eprint!("{text}");
            Ok(())
        })
        .function("complain_and_abort", |text: String| -> Result<(), BoxError> {
            eprint!("{text}");
            std::process::abort()
        })
        .function("close_stderr", || {
            // SAFETY: no other code of this process owns the descriptor.
            #[allow(unsafe_code)]
            Ok(unsafe { libc::close(2) })
        })
        .function("escape", || {
            use std::os::unix::process::CommandExt;
            let mut command = std::process::Command::new("sleep");
            Ok(command.arg("600").process_group(0).spawn()?.id())
        })
        .function("deep_panic", || -> Result<(), BoxError> {
            panic_far_below(3);
            Ok(())
        })
        .function("panic_twice", || -> Result<(), BoxError> {
            struct PanicsAgain;
            impl Drop for PanicsAgain {
                fn drop(&mut self) {
                    panic!("in a drop");
                }
            }
            let _again = PanicsAgain;
            panic!("at first")
        })
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("exit", |code: i32| -> Result<(), BoxError> { std::process::exit(code) })
        .function("segv", || -> Result<(), BoxError> {
            // SAFETY: none: the signal is the purpose.
            #[allow(unsafe_code)]
            Err(unsafe { (std::hint::black_box(8) as *const u8).read_volatile() }
                .to_string()
                .into())
        })
        .function("hang", || -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        })
        .function("spin", || -> Result<(), BoxError> {
            loop {
                std::hint::spin_loop();
            }
        })
        .function("unencodable", || Ok(Unencodable))
}

#[inline(never)]
fn panic_far_below(depth: u32) {
    assert!(depth > 0, "at the bottom");
    panic_far_below(std::hint::black_box(depth - 1));
}

#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] std::io::Error);

/// Adds methods that report on the worker's process or start others.
pub(crate) fn inspection(methods: Methods<Worker>) -> Methods<Worker> {
    methods
        .function("pid", || Ok(std::process::id()))
        .function("descriptors", || {
            let mut open = Vec::new();
            for entry in std::fs::read_dir("/proc/self/fd")? {
                let path = entry?.path();
                if let Ok(target) = std::fs::read_link(&path) {
                    open.push(target.display().to_string());
                }
            }
            open.retain(|target| !target.starts_with("/proc/"));
            Ok(open)
        })
        .function("tcp_options", || {
            let option = |socket, level, name| {
                let (mut value, mut size) = (0i32, size_of::<i32>() as u32);
                // SAFETY: the kernel writes at most `size` bytes to `value`.
                #[allow(unsafe_code)]
                let done = unsafe {
                    libc::getsockopt(socket, level, name, (&raw mut value).cast(), &raw mut size)
                };
                (done == 0).then_some(value != 0)
            };
            Ok((3..64)
                .filter_map(|socket| {
                    let nodelay = option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY)?;
                    Some((nodelay, option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE)?))
                })
                .collect::<Vec<_>>())
        })
        .function("variables", || {
            Ok(std::env::vars_os()
                .map(|(name, _)| name.to_string_lossy().into_owned())
                .collect::<Vec<_>>())
        })
        .function("variable", |name: String| Ok(std::env::var(name)?))
        .function("folder", || Ok(std::env::current_dir()?))
        .function("status", || Ok(std::fs::read_to_string("/proc/self/status")?))
        .function("random", || {
            // SAFETY: C's generator has no other user in this process.
            #[allow(unsafe_code)]
            Ok((0..4).map(|_| unsafe { libc::rand() }).collect::<Vec<i32>>())
        })
        .function("write_to_closed_pipe", || {
            use std::io::Write;
            let (reader, mut writer) = std::io::pipe()?;
            drop(reader);
            Ok(writer.write_all(b"x").unwrap_err().kind().to_string())
        })
        .function("print", |text: String| {
            print!("{text}");
            println!("{text}");
            Ok(())
        })
        .function("read_stdin", || Ok(std::io::read_to_string(std::io::stdin())?))
        .function("leak", |bytes: usize| {
            std::mem::forget(vec![1_u8; bytes]);
            Ok(())
        })
        .function("start_daemons", || {
            // A shell that ends at once, and leaves a shell with a child in a session of its own.
            let script = "setsid sh -c 'echo $$; sleep 1000 & echo $!; wait' &";
            let mut shell = std::process::Command::new("sh")
                .args(["-c", script])
                .stdout(std::process::Stdio::piped())
                .spawn()?;
            let out = shell.stdout.take().ok_or("no output")?;
            let lines = std::io::BufRead::lines(std::io::BufReader::new(out)).take(2);
            shell.wait()?;
            let pids = lines.map(|line| Ok(line?.parse()?));
            pids.collect::<Result<Vec<u32>, BoxError>>()
        })
        .function("fork_daemon", || {
            // SAFETY: this process has one thread.
            #[allow(unsafe_code)]
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: it makes system calls only.
                #[allow(unsafe_code)]
                unsafe {
                    libc::setsid();
                    loop {
                        libc::pause();
                    }
                }
            }
            Ok(pid)
        })
        .function("fork_hidden_daemon", || {
            // What tells a server its descendants: the file of a mapping.
            let maps = std::fs::read_to_string("/proc/self/maps")?;
            let marks = maps.lines().filter(|line| line.contains("memfd:taskfork-server"));
            let ranges = marks.filter_map(|line| {
                let (start, end) = line.split_whitespace().next()?.split_once('-')?;
                let address = |text| usize::from_str_radix(text, 16).ok();
                Some((address(start)?, address(end)?))
            });
            let ranges: Vec<(usize, usize)> = ranges.collect();
            // SAFETY: this process has one thread. The child only makes system calls, and uses none of
            // the memory that it unmaps.
            #[allow(unsafe_code)]
            let pid = unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    for (start, end) in ranges {
                        libc::munmap(start as *mut libc::c_void, end - start);
                    }
                    libc::setsid();
                    loop {
                        libc::pause();
                    }
                }
                pid
            };
            Ok(pid)
        })
        .function("start_child", || {
            let child = std::process::Command::new("sleep").arg("1000").spawn()?;
            Ok(child.id())
        })
}

fn function(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .interface(Function::new(|_: &mut (), method: Option<&str>, args: Arguments<'_>| {
            let (number,): (i64,) = args.parse()?;
            match method {
                Some("double") => Ok(2 * number),
                Some(other) => Err(format!("cannot {other}").into()),
                None => Ok(number),
            }
        }))
        .run()
}

static SETUPS: AtomicU32 = AtomicU32::new(0);

fn setup_second_time(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .setup(|| match SETUPS.fetch_add(1, Ordering::SeqCst) {
            0 => Err(BoxError::from(Outer(std::io::Error::other("no licence")))),
            tries => Ok(tries),
        })
        .interface(Methods::new().method("tries", |tries: &mut u32| Ok(*tries)))
        .run()
}

fn setup_panics(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .setup(|| -> Result<(), BoxError> { panic!("no driver") })
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

pub(crate) fn setup_dies(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .setup(|| -> Result<(), BoxError> { std::process::exit(7) })
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

fn setup_hangs(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .hung_worker_timeout(Duration::from_millis(200))
        .setup(|| -> Result<(), BoxError> {
            loop {
                std::thread::park();
            }
        })
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

fn done_fails(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .checkout_done(|_| Err::<(), _>("cannot clean up"))
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

/// Each clean-up appends the worker's process id to a file.
pub(crate) fn appending(server: ServerBuilder, file: &str) -> Result<(), ServerError> {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().append(true).create(true).open(file);
    let file = file.map_err(|error| ServerError::Preload(Failure::new(error.to_string())))?;
    server
        .checkout_done(move |_| writeln!(&file, "{}", std::process::id()))
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}

/// The first clean-up of each worker takes long.
fn done_slow(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .checkout_done(|_| {
            std::thread::sleep(Duration::from_millis(500));
            Ok::<_, BoxError>(())
        })
        .interface(Methods::new().function("pid", || Ok(std::process::id())))
        .run()
}
