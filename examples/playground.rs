//! A server for trying faults and options by hand and from other programs:
//!
//! ```text
//! cargo run --example playground -- unix:/tmp/playground.sock
//! cargo run --example playground -- tcp:127.0.0.1:4000 --name faults --hung-worker-timeout 2.5
//! cargo run --example playground -- unix:/tmp/playground.sock --spare-workers 2 --max-calls 10
//! cargo run --example playground -- --help
//! ```
//!
//! In a crate of your own it needs:
//!
//! ```sh
//! cargo add taskfork
//! cargo add clap --features derive
//! cargo add tracing-subscriber
//! ```

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use taskfork::client::Value;
use taskfork::server::{Limit, Stderr};
use taskfork::worker::{Arguments, context, logger};
use taskfork::{BoxError, Methods, Server, ServerBuilder};

/// A server whose methods fail, hang, die and leak on demand.
#[derive(Debug, Parser)]
struct Options {
    /// Where to listen: unix:PATH, tcp:HOST:PORT or fd:NUMBER
    address: String,
    /// The name in `ps` and in logs
    #[arg(long, default_value = "playground")]
    name: String,
    /// Kill workers that have been in one call for longer than this [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of)]
    hung_worker_timeout: Option<Duration>,
    /// How long running checkouts may go on at a shutdown [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of)]
    shutdown_grace: Option<Duration>,
    /// Keep this number of spare workers, forked and set up
    #[arg(long, default_value_t = 0)]
    spare_workers: usize,
    /// The most workers for all clients together [default: 16384]
    #[arg(long)]
    max_workers: Option<usize>,
    /// Replace workers after this number of calls
    #[arg(long)]
    max_calls: Option<u64>,
    /// Replace workers at this age
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of)]
    max_age: Option<Duration>,
    /// End workers that have been idle for this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of)]
    max_idle: Option<Duration>,
    /// Replace workers that occupy more than this after a checkout
    #[arg(long, value_name = "MEBIBYTES")]
    max_memory: Option<u64>,
    /// Limit what each worker may use: address-space, cpu-time, open-files, core-size or processes
    #[arg(long, value_name = "NAME=VALUE", value_parser = limit_of)]
    limit: Vec<(Limit, u64)>,
    /// The niceness of workers
    #[arg(long, allow_hyphen_values = true)]
    niceness: Option<i32>,
    /// How soon the kernel chooses a worker when memory runs out, -1000 to 1000
    #[arg(long, allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Load a table of this size once, for all workers
    #[arg(long, value_name = "MEBIBYTES", default_value_t = 0)]
    preload: usize,
    /// How long the setup of a worker takes
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of, default_value = "0")]
    setup_takes: Duration,
    /// Have the setup of every worker fail with this message
    #[arg(long, value_name = "MESSAGE")]
    setup_fails: Option<String>,
    /// The path of the status socket [default: the listener's path with .status appended]
    #[arg(long, value_name = "PATH")]
    status_socket: Option<PathBuf>,
    /// Leave workers the server's own standard error
    #[arg(long)]
    inherit_stderr: bool,
    /// The permissions of the socket's file, in octal [default: 600]
    #[arg(long, value_name = "MODE", value_parser = mode_of)]
    socket_mode: Option<u32>,
    /// The most bytes of one message [default: 67108864]
    #[arg(long, value_name = "BYTES")]
    max_frame: Option<usize>,
    /// How long a client may stop in the middle of a message [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of)]
    stall_timeout: Option<Duration>,
}

/// The state of a worker.
struct Worker {
    checkouts: u64,
    leaked: Vec<Vec<u8>>,
    table: &'static [u8],
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(taskfork::server::LogWriter::new).init();
    match serve(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("playground: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seconds_of(text: &str) -> Result<Duration, BoxError> {
    let number: f64 = text.parse().map_err(|_| "it is not a number of seconds")?;
    seconds(number)
}

fn mode_of(text: &str) -> Result<u32, BoxError> {
    Ok(u32::from_str_radix(text, 8)?)
}

fn limit_of(text: &str) -> Result<(Limit, u64), BoxError> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE")?;
    let limit = match name {
        "address-space" => Limit::AddressSpace,
        "cpu-time" => Limit::CpuTime,
        "open-files" => Limit::OpenFiles,
        "core-size" => Limit::CoreSize,
        "processes" => Limit::Processes,
        _ => return Err(format!("there is no limit `{name}`").into()),
    };
    Ok((limit, value.parse()?))
}

fn serve(options: Options) -> Result<(), BoxError> {
    let (mebibytes, takes, fails) =
        (options.preload, options.setup_takes, options.setup_fails.clone());
    build(options)
        .preload(move || touched(mebibytes))
        .setup(move |table| {
            thread::sleep(takes);
            match &fails {
                Some(message) => Err(BoxError::from(message.clone())),
                None => Ok(Worker { checkouts: 0, leaked: Vec::new(), table }),
            }
        })
        .checkout_done(|worker: &mut Worker| {
            worker.checkouts += 1;
            Ok::<_, BoxError>(())
        })
        .interface(methods())
        .run()?;
    Ok(())
}

/// Builds the server from the options.
fn build(options: Options) -> ServerBuilder {
    let mut server = Server::builder()
        .listen(&*options.address)
        // Every client sees all details of errors, also over TCP: this server is for experiments.
        .share_details(true)
        .name(options.name)
        .spare_workers(options.spare_workers)
        .max_calls(options.max_calls)
        .max_age(options.max_age)
        .max_idle(options.max_idle)
        .max_memory(options.max_memory.map(|mebibytes| mebibytes << 20));
    if options.inherit_stderr {
        server = server.stderr(Stderr::Inherit);
    }
    for (limit, value) in options.limit {
        server = server.limit(limit, value);
    }
    server = set_if_some(server, options.hung_worker_timeout, ServerBuilder::hung_worker_timeout);
    server = set_if_some(server, options.shutdown_grace, ServerBuilder::shutdown_grace);
    server = set_if_some(server, options.max_workers, ServerBuilder::max_workers);
    server = set_if_some(server, options.niceness, ServerBuilder::niceness);
    server = set_if_some(server, options.oom_score_adj, ServerBuilder::oom_score_adj);
    server = set_if_some(server, options.status_socket, ServerBuilder::status_socket);
    server = set_if_some(server, options.socket_mode, ServerBuilder::socket_mode);
    server = set_if_some(server, options.max_frame, ServerBuilder::max_frame);
    set_if_some(server, options.stall_timeout, ServerBuilder::stall_timeout)
}

/// Sets an option that has a value.
fn set_if_some<T>(
    server: ServerBuilder,
    value: Option<T>,
    set: impl FnOnce(ServerBuilder, T) -> ServerBuilder,
) -> ServerBuilder {
    match value {
        Some(value) => set(server, value),
        None => server,
    }
}

fn methods() -> Methods<Worker> {
    plain(faults(memory(Methods::new()))).without_method(list)
}

fn list(_: &mut Worker, arguments: Arguments<'_>) -> Result<Vec<Value>, BoxError> {
    Ok(arguments.parse()?)
}

fn plain(methods: Methods<Worker>) -> Methods<Worker> {
    methods
        .function("echo", |value: Value| Ok(value))
        .variadic("args", list)
        .variadic("count", |_, arguments| Ok(arguments.len()))
        .function("add", add)
        .function("nothing", || Ok(()))
        .function("pid", || Ok(std::process::id()))
        .method("checkouts", |worker: &mut Worker| Ok(worker.checkouts))
        .function("sleep", |time: f64| {
            thread::sleep(seconds(time)?);
            Ok(())
        })
        .function("spin", |time: f64| {
            let (start, time) = (Instant::now(), seconds(time)?);
            while start.elapsed() < time {
                std::hint::spin_loop();
            }
            Ok(())
        })
}

/// Whole numbers stay whole.
fn add(a: Value, b: Value) -> Result<Value, BoxError> {
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return Ok(a.checked_add(b).ok_or("the sum is out of range")?.into());
    }
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => Ok((a + b).into()),
        _ => Err(format!("add takes two numbers, not {a} and {b}").into()),
    }
}

fn faults(methods: Methods<Worker>) -> Methods<Worker> {
    methods
        .function("boom", |message: String| Err::<(), _>(message.into()))
        .function("panic", |message: String| -> Result<(), BoxError> { panic!("{message}") })
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("segv", || -> Result<(), BoxError> { segv() })
        .function("exit", |code: i32| -> Result<(), BoxError> { std::process::exit(code) })
        .function("hang", || -> Result<(), BoxError> {
            loop {
                thread::park();
            }
        })
        .function("until_cancelled", || -> Result<(), BoxError> {
            while !context().is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            Err("asked to stop at the deadline".into())
        })
        .function("child", |time: f64| {
            let child = Command::new("sleep").arg(time.to_string()).spawn()?;
            Ok(child.id())
        })
        .function("daemon", |time: f64| {
            let script = format!("setsid sleep {time} >/dev/null & echo $!");
            let output = Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).output()?;
            Ok(String::from_utf8(output.stdout)?.trim().parse::<u32>()?)
        })
        .function("complain", |text: String| {
            eprintln!("{text}");
            Ok(())
        })
        .function("log", |text: String| {
            logger().info(text);
            Ok(())
        })
}

#[allow(unsafe_code, reason = "the fault is the purpose")]
fn segv() -> Result<(), BoxError> {
    let nowhere = std::hint::black_box(8 as *const u8);
    // SAFETY: none: nothing is mapped there, and the kernel ends the process with SIGSEGV.
    let byte = unsafe { nowhere.read_volatile() };
    Err(format!("the unmapped byte is {byte}").into())
}

fn memory(methods: Methods<Worker>) -> Methods<Worker> {
    methods
        .function("alloc", |mebibytes: usize| Ok(std::hint::black_box(touched(mebibytes)?).len()))
        .method("leak", |worker: &mut Worker, mebibytes: usize| {
            worker.leaked.push(touched(mebibytes)?);
            Ok(worker.leaked.iter().map(Vec::len).sum::<usize>())
        })
        .method("table", |worker: &mut Worker, index: usize| {
            Ok((worker.table.len(), worker.table.get(index).copied()))
        })
        .function("blob", |bytes: usize| {
            let mut blob = Vec::new();
            blob.try_reserve_exact(bytes)?;
            blob.resize(bytes, b'x');
            Ok(Value::Binary(blob))
        })
}

/// Memory that is written, so that the kernel has really allocated it.
fn touched(mebibytes: usize) -> Result<Vec<u8>, BoxError> {
    let bytes = mebibytes.checked_mul(1 << 20).ok_or("that many bytes cannot be counted")?;
    let mut memory = Vec::new();
    memory.try_reserve_exact(bytes)?;
    memory.resize(bytes, 1);
    Ok(memory)
}

fn seconds(time: f64) -> Result<Duration, BoxError> {
    Ok(Duration::try_from_secs_f64(time)?)
}
