//! A server for trying faults by hand and from other programs:
//!
//! ```text
//! cargo run --example playground -- unix:/tmp/playground.sock
//! cargo run --example playground -- tcp:127.0.0.1:4000 --name faults --hung-after 2.5
//! ```

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use taskfork::{Arguments, BoxError, Methods, Server, Value};

const USAGE: &str = "usage: playground ADDRESS [--name NAME] [--hung-after SECONDS]";

/// What a worker remembers.
#[derive(Default)]
struct Worker {
    checkouts: u64,
    leaked: Vec<Vec<u8>>,
}

struct Options {
    address: String,
    name: String,
    hung_after: Option<Duration>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match options().and_then(|options| serve(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("playground: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Options, BoxError> {
    let mut options =
        Options { address: String::new(), name: "playground".to_owned(), hung_after: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value; {USAGE}"));
        match argument.as_str() {
            "--name" => options.name = value()?,
            "--hung-after" => options.hung_after = Some(hung_after(&value()?)?),
            address if options.address.is_empty() && !address.starts_with("--") => {
                options.address = argument;
            }
            other => return Err(format!("unknown argument {other}; {USAGE}").into()),
        }
    }
    if options.address.is_empty() {
        return Err(USAGE.into());
    }
    Ok(options)
}

fn hung_after(text: &str) -> Result<Duration, BoxError> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("--hung-after takes a number of seconds, not `{text}`; {USAGE}"))?;
    seconds(number)
}

fn serve(options: &Options) -> Result<(), BoxError> {
    let mut server = Server::builder().listen(&options.address).name(&options.name);
    if let Some(hung_after) = options.hung_after {
        server = server.hung_worker_timeout(hung_after);
    }
    server
        .setup(|| Ok::<_, BoxError>(Worker::default()))
        .checkout_done(|worker: &mut Worker| {
            worker.checkouts += 1;
            Ok::<_, BoxError>(())
        })
        .interface(methods())
        .run()?;
    Ok(())
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
        .function("blob", |bytes: usize| {
            let mut blob = Vec::new();
            blob.try_reserve_exact(bytes)?;
            blob.resize(bytes, b'x');
            Ok(Value::Binary(blob))
        })
}

/// Memory that the kernel had to give, not only to promise.
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
