//! A server for trying faults by hand and from other programs:
//!
//! ```text
//! cargo run -p taskfork-more-examples --example playground -- unix:/tmp/playground.sock
//! cargo run -p taskfork-more-examples --example playground -- tcp:127.0.0.1:4000 --name faults --setup-takes 2.5
//! cargo run -p taskfork-more-examples --example playground -- unix:/tmp/playground.sock --spare-workers 2 --preload 100
//! cargo run -p taskfork-more-examples --example playground -- unix:/tmp/playground.sock --streams
//! cargo run -p taskfork-more-examples --example playground -- --help
//! ```
//!
//! Its options are those of faults. The server's own options are those of `Server::builder()`; try them with the
//! command `taskfork serve`, or add them in `serve` below.
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
use taskfork::worker::{Arguments, context, logger};
use taskfork::{Blob, BoxError, Emitter, Methods, Receiver, Server, ServerBuilder};

/// A server whose methods fail, hang, die and leak on demand.
#[derive(Debug, Parser)]
struct Options {
    /// Where to listen: unix:PATH, tcp:HOST:PORT or fd:NUMBER
    address: String,
    /// The name in `ps` and in logs
    #[arg(long, default_value = "playground")]
    name: String,
    /// Keep this number of spare workers, forked and set up
    #[arg(long, default_value_t = 0)]
    spare_workers: usize,
    /// Load a table of this size once, for all workers
    #[arg(long, value_name = "MEBIBYTES", default_value_t = 0)]
    preload: usize,
    /// How long the setup of a worker takes
    #[arg(long, value_name = "SECONDS", value_parser = seconds_of, default_value = "0")]
    setup_takes: Duration,
    /// Have the setup of every worker fail with this message
    #[arg(long, value_name = "MESSAGE")]
    setup_fails: Option<String>,
    /// Serve methods that stream, and none of the others
    #[arg(long)]
    streams: bool,
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

fn serve(options: Options) -> Result<(), BoxError> {
    let Options {
        address,
        name,
        spare_workers,
        preload: mebibytes,
        setup_takes,
        setup_fails,
        streams,
    } = options;
    let server = Server::builder()
        .listen(&*address)
        // Every client sees all details of errors, also over TCP: this server is for experiments.
        .share_details(true)
        .name(name)
        .spare_workers(spare_workers);
    if streams {
        return serve_streams(server);
    }
    server
        .preload(move || touched(mebibytes))
        .setup(move |table| {
            thread::sleep(setup_takes);
            match &setup_fails {
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

/// What streams can do, and how they can fail.
#[taskfork::interface]
trait Streams {
    /// The numbers below `count`. Returns `count`.
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError>;
    /// Numbers until nobody wants them.
    fn endless(&mut self, out: &mut Emitter<u64>) -> Result<(), BoxError>;
    /// How many numbers the last `endless` has sent.
    fn sent(&mut self) -> u64;
    /// Blobs of these lengths.
    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>) -> Result<(), BoxError>;
    /// Two numbers, and then this fault: `fail`, `panic`, `abort` or `hang`.
    fn two_and_then(&mut self, fault: String, out: &mut Emitter<u64>) -> Result<(), BoxError>;
    /// Reports that 1 of 3 steps is done, and sends a number once there is a file of this name.
    fn steps(&mut self, file: PathBuf, out: &mut Emitter<u64>) -> Result<(), BoxError>;
    /// Adds the numbers of the input to `start`.
    fn total(&mut self, start: u64, numbers: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// Twice each number of the input. Returns how many there were.
    fn doubled(
        &mut self,
        numbers: &mut Receiver<u64>,
        out: &mut Emitter<u64>,
    ) -> Result<u64, BoxError>;
    /// Adds the first `count` numbers of the input, and leaves the others.
    fn first(&mut self, count: usize, numbers: &mut Receiver<u64>) -> Result<u64, BoxError>;
    /// The lengths of the blobs of the input.
    fn lengths(&mut self, blobs: &mut Receiver<Blob>) -> Result<Vec<usize>, BoxError>;
    /// Takes nothing of the input until there is a file of this name. Returns how many items there were.
    fn wait_for(&mut self, file: PathBuf, items: &mut Receiver<Value>) -> Result<u64, BoxError>;
    /// Takes two numbers of the input, and then aborts.
    fn die(&mut self, numbers: &mut Receiver<u64>) -> Result<(), BoxError>;
    fn pid(&mut self) -> u32;
    fn echo(&mut self, text: String) -> String;
}

/// How many numbers the last `endless` has sent.
struct Streaming(u64);

fn serve_streams(server: ServerBuilder) -> Result<(), BoxError> {
    Ok(server.setup(|| Ok::<_, BoxError>(Streaming(0))).interface(StreamsInterface).run()?)
}

impl Streams for Streaming {
    fn numbers(&mut self, count: u64, out: &mut Emitter<u64>) -> Result<u64, BoxError> {
        for number in 0..count {
            out.send(&number)?;
        }
        Ok(count)
    }

    fn endless(&mut self, out: &mut Emitter<u64>) -> Result<(), BoxError> {
        self.0 = 0;
        while out.send(&self.0).is_ok() {
            self.0 += 1;
        }
        Ok(())
    }

    fn sent(&mut self) -> u64 {
        self.0
    }

    fn blobs(&mut self, lengths: Vec<usize>, out: &mut Emitter<Blob>) -> Result<(), BoxError> {
        for length in lengths {
            out.send(&Blob::from(vec![b'x'; length]))?;
        }
        Ok(())
    }

    fn two_and_then(&mut self, fault: String, out: &mut Emitter<u64>) -> Result<(), BoxError> {
        out.send(&1)?;
        out.send(&2)?;
        match &*fault {
            "fail" => Err("failed".into()),
            "panic" => panic!("panicked"),
            "abort" => std::process::abort(),
            _ => loop {
                thread::park();
            },
        }
    }

    fn steps(&mut self, file: PathBuf, out: &mut Emitter<u64>) -> Result<(), BoxError> {
        context().progress(1, 3, "steps");
        while !file.exists() {
            thread::sleep(Duration::from_millis(2));
        }
        Ok(out.send(&2)?)
    }

    fn total(&mut self, start: u64, numbers: &mut Receiver<u64>) -> Result<u64, BoxError> {
        let mut total = start;
        for number in numbers {
            total += number?;
        }
        Ok(total)
    }

    fn doubled(
        &mut self,
        numbers: &mut Receiver<u64>,
        out: &mut Emitter<u64>,
    ) -> Result<u64, BoxError> {
        let mut count = 0;
        while let Some(number) = numbers.next()? {
            out.send(&(2 * number))?;
            count += 1;
        }
        Ok(count)
    }

    fn first(&mut self, count: usize, numbers: &mut Receiver<u64>) -> Result<u64, BoxError> {
        Ok(numbers.take(count).sum::<Result<u64, _>>()?)
    }

    fn lengths(&mut self, blobs: &mut Receiver<Blob>) -> Result<Vec<usize>, BoxError> {
        Ok(blobs.map(|blob| blob.map(|blob| blob.len())).collect::<Result<_, _>>()?)
    }

    fn wait_for(&mut self, file: PathBuf, items: &mut Receiver<Value>) -> Result<u64, BoxError> {
        while !file.exists() {
            thread::sleep(Duration::from_millis(2));
        }
        let mut count = 0;
        while items.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    fn die(&mut self, numbers: &mut Receiver<u64>) -> Result<(), BoxError> {
        for number in numbers.take(2) {
            number?;
        }
        std::process::abort()
    }

    fn pid(&mut self) -> u32 {
        std::process::id()
    }

    fn echo(&mut self, text: String) -> String {
        text
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
