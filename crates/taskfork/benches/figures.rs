//! The figures that the project holds itself to, each as a ratio to its floor: the same work done
//! barely, in the same run, in turn. `cargo bench -p taskfork --bench figures` ends with one line a
//! figure: `NAME ratio VALUE goal GOAL`. With parts of names behind `--` it measures only those.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run stops")]
#![allow(missing_docs, reason = "nothing here is for users")]

#[path = "pure/mod.rs"]
mod pure;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use taskfork::sandbox::Sandbox;
use taskfork::{BoxError, Client, Methods, Server, ServerBuilder, ServerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

const ROLE: &str = "TASKFORK_BENCH_ROLE";
const ADDRESS: &str = "TASKFORK_BENCH_ADDRESS";

/// What a call of `echo` with 64 bytes of text takes on the wire, there and back.
const REQUEST: usize = 96;
const ANSWER: usize = 73;

fn main() {
    let role = std::env::var(ROLE);
    if role.is_ok() {
        // It must not stay behind when the benchmark is killed.
        let signal = Some(rustix::process::Signal::KILL);
        rustix::process::set_parent_process_death_signal(signal).unwrap();
    }
    match role.as_deref() {
        Ok("echo") => return echo_for_ever(),
        Ok("fork") => return fork_for_ever(),
        _ => {}
    }
    taskfork::init(&[
        ("echo", echo),
        ("confined", confined),
        ("listening", listening),
        ("preloaded", preloaded),
    ]);
    // Those whose names the command line has parts of, or all.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let figures: [(&str, Measure); 9] = [
        ("call_one_cpu", |name| one_call(name, 1.5, &[0], &[0], Peer { client: 0, peer: 0 })),
        ("call_two_cpus", |name| one_call(name, 1.5, &[0], &[1], Peer { client: 0, peer: 1 })),
        ("call_busy_polling", |name| {
            one_call(name, 0.3, &[0, 1], &[0, 1], Peer { client: 0, peer: 1 })
        }),
        ("pool_10_waiting", |name| pool_work(name, 10)),
        ("pool_100000_waiting", |name| pool_work(name, 100_000)),
        ("new_worker", new_worker),
        ("new_worker_sandboxed", new_worker_sandboxed),
        ("dead_client", dead_client),
        ("fork_preloaded", fork_preloaded),
    ];
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|it| name.contains(it));
    let figures: Vec<Figure> = figures
        .into_iter()
        .filter(|(name, _)| is_wanted(name))
        .map(|(name, measure)| measure(name))
        .collect();
    for Figure { name, ratio, goal } in figures {
        println!("{name} ratio {ratio:.2} goal {goal}");
    }
}

type Measure = fn(&'static str) -> Figure;

struct Figure {
    name: &'static str,
    ratio: f64,
    goal: f64,
}

/// With 500 MiB of ordinary heap.
fn preloaded(server: ServerBuilder) -> Result<(), ServerError> {
    server
        .preload(|| Ok::<_, BoxError>(vec![vec![1_u8; 1000]; 500_000]))
        .setup(Ok::<_, BoxError>)
        .interface(Methods::new().function("echo", |text: String| Ok(text)))
        .run()
}

fn echo(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |text: String| Ok(text))
        .function("pid", || Ok(std::process::id()))
        .function("spin", || -> Result<(), BoxError> {
            loop {
                std::hint::spin_loop();
            }
        });
    server.interface(methods).run()
}

/// The same, in workers that may do nothing else.
fn confined(server: ServerBuilder) -> Result<(), ServerError> {
    echo(server.sandbox(Sandbox::compute()))
}

/// At the address that its environment names.
fn listening(server: ServerBuilder) -> Result<(), ServerError> {
    echo(server.listen(std::env::var(ADDRESS).unwrap()))
}

/// The median of each series, and of the ratios of neighbours.
fn compare(name: &'static str, goal: f64, pairs: Vec<(Duration, Duration)>) -> Figure {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let micros = |time: &Duration| time.as_secs_f64() * 1e6;
    let ours = median(pairs.iter().map(|(ours, _)| micros(ours)).collect());
    let floor = median(pairs.iter().map(|(_, floor)| micros(floor)).collect());
    let ratio = median(pairs.iter().map(|(ours, floor)| micros(ours) / micros(floor)).collect());
    println!("{name}: {ours:.3} us, floor {floor:.3} us, median of {} pairs", pairs.len());
    Figure { name, ratio, goal }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Puts this thread, and the processes that it starts from now on, on these processors; on what
/// there is if they do not exist.
fn run_on(cpus: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        println!("cannot run on the processors {cpus:?}: {error}");
    }
}

/// Sets what the processes that are started from now on have in their environment.
#[allow(unsafe_code, reason = "there is no other way to the environment")]
fn set_variable(name: &str, value: &str) {
    // SAFETY: no thread of this program reads the environment.
    unsafe { std::env::set_var(name, value) };
}

/// A process of this program, ended with this value.
struct Role(Child);

impl Role {
    fn start(role: &str, stdin: OwnedFd) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self(command.env(ROLE, role).stdin(Stdio::from(stdin)).spawn().unwrap())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Where the two sides of the bare ping-pong run.
struct Peer {
    client: usize,
    peer: usize,
}

/// One call at a time of a warm worker, against a bare ping-pong of as many bytes between a tokio
/// client and a blocking process.
///
/// The bare pair is put on one processor each: left to the scheduler, it often shares one, which
/// makes a difference of four times. So are client and worker, unless the figure is about polling
/// before sleeping: they poll only if they find more than one processor.
fn one_call(
    name: &'static str,
    goal: f64,
    client_cpus: &[usize],
    worker_cpus: &[usize],
    bare_cpus: Peer,
) -> Figure {
    const BATCH: u32 = 200;
    run_on(&[bare_cpus.peer]);
    let (ours, theirs) = StdUnixStream::pair().unwrap();
    let _role = Role::start("echo", theirs.into());
    run_on(worker_cpus);
    let server = Server::spawn("echo").unwrap();
    let text = "x".repeat(64);
    run_on(client_cpus);
    let pairs = runtime().block_on(async {
        ours.set_nonblocking(true).unwrap();
        let mut bare = UnixStream::from_std(ours).unwrap();
        let client = Client::builder().address(server.address()).build().unwrap();
        let checkout = client.checkout();
        let mut pairs = Vec::new();
        for _ in 0..150 {
            run_on(client_cpus);
            let start = Instant::now();
            for _ in 0..BATCH {
                let back: String = checkout.call("echo", (&text,)).await.unwrap();
                assert_eq!(back.len(), 64);
            }
            let call = start.elapsed() / BATCH;
            run_on(&[bare_cpus.client]);
            let start = Instant::now();
            for _ in 0..BATCH {
                let mut answer = [0; ANSWER];
                bare.write_all(&[b'x'; REQUEST]).await.unwrap();
                bare.read_exact(&mut answer).await.unwrap();
            }
            pairs.push((call, start.elapsed() / BATCH));
        }
        pairs
    });
    run_on(&[0, 1]);
    compare(name, goal, pairs)
}

fn echo_for_ever() {
    let mut socket = StdUnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut request = [0; REQUEST];
    while socket.read_exact(&mut request).is_ok() {
        socket.write_all(&[b'x'; ANSWER]).unwrap();
    }
}

/// The pool's work for a checkout and a release while `waiting` checkouts wait, its lock included. The
/// floor is a push and a pop on a queue of that length behind a lock.
fn pool_work(name: &'static str, waiting: u64) -> Figure {
    const BATCH: u32 = 20_000;
    let turns = Mutex::new(pure::Turns::new(waiting));
    let queue: Mutex<VecDeque<u64>> = Mutex::new((0..waiting).collect());
    let pairs = (0..200)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..BATCH {
                turns.lock().unwrap().wait();
                turns.lock().unwrap().pass_on();
            }
            let ours = start.elapsed();
            let start = Instant::now();
            for number in 0..u64::from(BATCH) {
                queue.lock().unwrap().push_back(std::hint::black_box(number));
                std::hint::black_box(queue.lock().unwrap().pop_front());
            }
            (ours / BATCH, start.elapsed() / BATCH)
        })
        .collect();
    compare(name, 10.0, pairs)
}

/// The first answer of a worker that is not there yet, against connecting to a process that forks,
/// and one round trip. Both processes are this program, executed again. Workers are ended between the batches, out of the measured time.
fn new_worker(name: &'static str) -> Figure {
    const BATCH: usize = 20;
    run_on(&[0]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bare");
    let role = Role::start("fork", UnixListener::bind(&path).unwrap().into());
    let address = format!("unix:{}", folder.path().join("ours").display());
    set_variable(ADDRESS, &address);
    let server = Server::spawn("listening").unwrap();
    let text = "x".repeat(64);
    let pairs = runtime().block_on(async {
        let options = Client::builder().address(server.address()).min_workers(0);
        let client = options.max_workers(BATCH).max_checkouts(1).build().unwrap();
        let mut pairs = Vec::new();
        for _ in 0..60 {
            let mut checkouts = Vec::with_capacity(BATCH);
            let start = Instant::now();
            for _ in 0..BATCH {
                let checkout = client.checkout();
                let back: String = checkout.call("echo", (&text,)).await.unwrap();
                assert_eq!(back.len(), 64);
                checkouts.push(checkout);
            }
            let call = start.elapsed() / BATCH as u32;
            drop(checkouts);
            no_children(server.pid(), 1).await;

            let mut connections = Vec::with_capacity(BATCH);
            let start = Instant::now();
            for _ in 0..BATCH {
                let mut answer = [0; ANSWER];
                let mut bare = UnixStream::connect(&path).await.unwrap();
                bare.write_all(&[b'x'; REQUEST]).await.unwrap();
                bare.read_exact(&mut answer).await.unwrap();
                connections.push(bare);
            }
            pairs.push((call, start.elapsed() / BATCH as u32));
            drop(connections);
            no_children(role.0.id(), 0).await;
        }
        pairs
    });
    run_on(&[0, 1]);
    compare(name, 2.0, pairs)
}

/// The first answer of a new worker under `Sandbox::compute()`, against that of a worker without a
/// sandbox.
fn new_worker_sandboxed(name: &'static str) -> Figure {
    run_on(&[0]);
    let figure = compare_new_workers(name, 1.3, ["confined", "echo"]);
    run_on(&[0, 1]);
    figure
}

/// The first answer of a new worker of a server that has loaded 500 MiB, against that of a server
/// that has loaded nothing.
fn fork_preloaded(name: &'static str) -> Figure {
    compare_new_workers(name, 3.0, ["preloaded", "echo"])
}

/// The first answer of a new worker of one server, against that of a new worker of the other.
fn compare_new_workers(name: &'static str, goal: f64, servers: [&str; 2]) -> Figure {
    let servers = servers.map(|name| Server::spawn(name).unwrap());
    let pairs = runtime().block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..200 {
            let mut times = [Duration::ZERO; 2];
            for (server, time) in servers.iter().zip(&mut times) {
                let client = Client::builder().address(server.address()).max_workers(1);
                let client = client.min_workers(0).build().unwrap();
                let start = Instant::now();
                client.call::<String>("echo", ("x",)).await.unwrap();
                *time = start.elapsed();
                drop(client);
                no_children(server.pid(), 1).await;
            }
            pairs.push(times.into());
        }
        pairs
    });
    compare(name, goal, pairs)
}

/// From the moment that a client closes its connection until the worker that was busy for it is no
/// more, as a part of ten milliseconds.
fn dead_client(name: &'static str) -> Figure {
    const FLOOR: Duration = Duration::from_millis(10);
    let server = Server::spawn("echo").unwrap();
    let pairs = runtime().block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..100 {
            let client = Client::builder().address(server.address()).max_workers(1);
            let client = client.min_workers(0).build().unwrap();
            let checkout = client.checkout();
            let pid: u32 = checkout.call("pid", ()).await.unwrap();
            let spinning = checkout.call::<()>("spin", ());
            let sent = tokio::time::timeout(Duration::from_millis(5), spinning).await;
            assert!(sent.is_err(), "it spins for ever");
            let start = Instant::now();
            drop((checkout, client));
            // The driver is to see that, and this is its thread.
            while std::fs::exists(format!("/proc/{pid}/fd/0")).unwrap() {
                tokio::task::yield_now().await;
            }
            pairs.push((start.elapsed(), FLOOR));
        }
        pairs
    });
    compare(name, 1.0, pairs)
}

/// Waits until a process has no more children than these: a server has its guardian.
async fn no_children(pid: u32, but: usize) {
    let children = format!("/proc/{pid}/task/{pid}/children");
    while std::fs::read_to_string(&children).unwrap().split_whitespace().count() > but {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Forks for each connection and answers one request in the child, which then waits for the end.
#[allow(unsafe_code, reason = "the floor is made of bare system calls")]
fn fork_for_ever() {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    // SAFETY: children are reaped by the kernel; no handler runs.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while let Ok((mut socket, _)) = listener.accept() {
        // SAFETY: this process has one thread.
        if unsafe { libc::fork() } == 0 {
            let mut request = [0; REQUEST];
            let done = socket
                .read_exact(&mut request)
                .and_then(|()| socket.write_all(&[b'x'; ANSWER]))
                .and_then(|()| socket.read(&mut request));
            // SAFETY: it ends this process.
            unsafe { libc::_exit(done.is_err().into()) };
        }
    }
}
