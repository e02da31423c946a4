//! The processes that are attacked: a server, and a program with a client. Each serves all cases of a group, unless
//! one of them fails.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use taskfork::client::{Protocol, Value};
use taskfork::{BoxError, Client, Methods, Server};

use crate::case::{Case, Expected, PATIENCE, is_ended, take_steps};
use crate::message::{PREAMBLE, call, client_hello, result_of, worker_hello};

const REQUESTED: &str = "TASKFORK_HOSTILE_TARGET";

/// Names a process: its group, and which of those of the group it is.
pub(crate) type Key = (&'static str, usize);

pub(crate) type Attack = fn(Key, &Case) -> Result<(), String>;

/// Runs this process as a target, if that is requested. Returns whether it was.
pub(crate) fn run_requested() -> bool {
    let requested = std::env::var(REQUESTED).unwrap_or_default();
    match requested.split_once(' ') {
        Some(("serve", address)) => serve(address),
        Some(("call", _)) => calls(),
        _ => return false,
    }
    true
}

fn serve(address: &str) {
    let methods = Methods::new()
        .function("echo", |value: Value| Ok(value))
        .function("nothing", || Ok(()))
        .function("pid", || Ok(std::process::id()))
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        });
    Server::builder()
        .listen(address)
        .stall_timeout(Duration::from_millis(500))
        .setup(|| Ok::<_, BoxError>(()))
        .interface(methods)
        .run()
        .unwrap();
}

/// For each line that comes, a protocol and an address, makes two calls and says what came of each.
fn calls() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (protocol, address) = line.split_once(' ').unwrap();
        let protocol = if protocol == "json" { Protocol::Perl } else { Protocol::Native };
        let (first, second) = runtime.block_on(async {
            let client = client(protocol, address);
            let first = outcome(client.call::<Value>("x", ()).await);
            // A client that is content with its worker keeps it.
            let next = if first.starts_with("error fatal") {
                client
            } else {
                self::client(protocol, address)
            };
            let again = next.checkout().timeout(PATIENCE / 2);
            let second = outcome(again.call::<Value>("x", ()).await);
            (first, second)
        });
        println!("{first}\t{second}");
    }
}

fn client(protocol: Protocol, address: &str) -> Client {
    Client::builder()
        .address(address)
        .protocol(protocol)
        .min_workers(0)
        .max_workers(1)
        .timeout(Duration::from_secs(1))
        .connect_timeout(Duration::from_millis(500))
        .build()
        .unwrap()
}

fn outcome(result: Result<Value, taskfork::Error>) -> String {
    match result {
        Ok(value) if value == Value::from(5) => "good".to_owned(),
        Ok(_) => "ok".to_owned(),
        Err(error) => {
            let kind = if error.is_fatal() { "error fatal" } else { "error" };
            // A report is what shows the most of an error.
            format!("{kind} {:.200}", error.report().to_string().escape_debug().to_string())
        }
    }
}

fn copy(request: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(REQUESTED, request).stdin(Stdio::null());
    command
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holds {
    descriptors: usize,
    children: usize,
    /// Of memory that is shared.
    mappings: usize,
}

/// A server keeps the page of each worker that it has ever had at one time, for later ones: on a busy machine some
/// may end late, when others have come. A mapping that each case leaves behind exceeds this soon.
const SPARE_PAGES: usize = 8;

fn holds(pid: u32) -> Holds {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    Holds {
        descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count),
        children: children.unwrap_or_default().split_whitespace().count(),
        mappings: maps.lines().filter(|line| line.contains("memfd:")).count(),
    }
}

/// Waits until it holds no more than before.
fn settles(pid: u32, before: Holds) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let now = holds(pid);
        if now.descriptors <= before.descriptors
            && now.children <= before.children
            && now.mappings <= before.mappings
        {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("it holds {now:?}, and held {before:?}"));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_alive(child: &mut Child) -> Result<(), String> {
    match child.try_wait().map_err(|error| error.to_string())? {
        None => Ok(()),
        Some(status) => Err(format!("it has ended: {status}")),
    }
}

/// A server in a process of its own, with a client that is connected all the time.
struct Attacked {
    folder: tempfile::TempDir,
    child: Child,
    bystander: UnixStream,
    before: Holds,
}

impl Attacked {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = copy(&format!("serve unix:{}", path.display())).stderr(log).spawn().unwrap();
        let start = Instant::now();
        let mut bystander = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < PATIENCE, "no server: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        greet(&mut bystander).unwrap();
        answered(&mut bystander).unwrap();
        // Once one has come and gone, nothing more is opened for the first time.
        let mut other = UnixStream::connect(&path).unwrap();
        greet(&mut other).unwrap();
        answered(&mut other).unwrap();
        drop(other);
        let pid = child.id();
        // The guardian and the bystander's worker.
        let settled = Holds { children: 2, ..holds(pid) };
        settles(pid, Holds { descriptors: usize::MAX, mappings: usize::MAX, ..settled }).unwrap();
        let mut before = holds(pid);
        before.mappings += SPARE_PAGES;
        Self { folder, child, bystander, before }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    fn attack(&mut self, case: &Case) -> Result<(), String> {
        let mut stream = UnixStream::connect(self.path()).map_err(|error| error.to_string())?;
        take_steps(&mut stream, &case.steps);
        match case.expected {
            Expected::Refused if !is_ended(&mut stream) => {
                return Err("the connection goes on".to_owned());
            }
            Expected::Served => answered(&mut stream)
                .map_err(|error| format!("the connection does not go on: {error}"))?,
            _ => {}
        }
        drop(stream);
        is_alive(&mut self.child)?;
        let good = UnixStream::connect(self.path()).and_then(|mut stream| {
            greet(&mut stream)?;
            answered(&mut stream)
        });
        good.map_err(|error| format!("a good client is not served: {error}"))?;
        answered(&mut self.bystander)
            .map_err(|error| format!("a client that was there is not served: {error}"))?;
        settles(self.child.id(), self.before)
    }
}

fn greet(stream: &mut UnixStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[PREAMBLE, &client_hello(&[])].concat())?;
    std::io::Read::read_exact(stream, &mut [0; 8])?;
    hear(stream).map(drop)
}

fn hear(stream: &mut UnixStream) -> std::io::Result<Value> {
    use std::io::Read;

    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body)?;
    rmpv::decode::read_value(&mut &body[..]).map_err(std::io::Error::other)
}

/// Calls once; there may be something else to hear before the answer.
fn answered(stream: &mut UnixStream) -> std::io::Result<()> {
    let number = 777_777;
    stream.write_all(&call("echo", &[number.into()]))?;
    loop {
        let message = hear(stream)?;
        let fields = message.as_array().map_or(&[][..], |fields| fields);
        if fields.len() == 3 && fields[0] == 1.into() && fields[2] == number.into() {
            return Ok(());
        }
        if fields.first() == Some(&3.into()) {
            return Err(std::io::Error::other(format!("the worker has died: {message}")));
        }
    }
}

/// A program with a client, in a process of its own.
struct Caller {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    before: Option<Holds>,
}

impl Caller {
    fn start() -> Self {
        let mut command = copy("call -");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (say, hear) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, say, hear: BufReader::new(hear), before: None }
    }

    fn attack(&mut self, case: &Case, json: bool) -> Result<(), String> {
        if self.before.is_none() {
            // What the first calls open stays.
            let good = Case { steps: Vec::new(), expected: Expected::Harmless, ..case.clone() };
            self.before =
                Some(Holds { descriptors: usize::MAX, children: 0, mappings: usize::MAX });
            self.calls(&good, json)?;
            settles_still(self.child.id());
            self.before = Some(holds(self.child.id()));
        }
        let start = Instant::now();
        let (first, second) = self.calls(case, json)?;
        let took = start.elapsed();
        match case.expected {
            Expected::Refused if !first.starts_with("error") => {
                return Err(format!("the call does not fail, but gives: {first}"));
            }
            Expected::Fails(text) if !first.starts_with("error") || !first.contains(text) => {
                return Err(format!("the call does not fail with `{text}`, but gives: {first}"));
            }
            Expected::Served if first != "good" => {
                return Err(format!("the call does not succeed, but gives: {first}"));
            }
            Expected::Answered if first != "ok" => {
                return Err(format!("the call gets no other result, but: {first}"));
            }
            _ => {}
        }
        if second != "good" {
            return Err(format!("a good server is not called: {second}"));
        }
        // A timeout of a second, on a busy machine.
        if took > PATIENCE {
            return Err(format!("two calls took {took:?}"));
        }
        is_alive(&mut self.child)?;
        self.before.map_or(Ok(()), |before| settles(self.child.id(), before))
    }

    fn wait_for_answer(&self) -> Result<(), String> {
        let most = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let mut watched = [PollFd::new(self.hear.get_ref(), PollFlags::IN)];
        match poll(&mut watched, Some(&most)) {
            Ok(0) => Err(format!("two calls are not over after {PATIENCE:?}")),
            _ => Ok(()),
        }
    }

    /// Has the program call a server whose first connection carries out the steps. Returns the results of both calls.
    fn calls(&mut self, case: &Case, json: bool) -> Result<(String, String), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let steps = Arc::new(case.steps.clone());
        std::thread::spawn(move || {
            for (place, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let steps = steps.clone();
                std::thread::spawn(move || {
                    let mut stream = stream;
                    if place == 0 && !steps.is_empty() {
                        take_steps(&mut stream, &steps);
                        is_ended(&mut stream);
                    } else if json {
                        serve_json(stream);
                    } else {
                        serve_well(stream);
                    }
                });
            }
        });
        let protocol = if json { "json" } else { "native" };
        writeln!(self.say, "{protocol} unix:{}", path.display()).map_err(|e| e.to_string())?;
        self.wait_for_answer()?;
        let mut line = String::new();
        self.hear.read_line(&mut line).map_err(|error| error.to_string())?;
        // So that the thread above ends.
        drop(folder);
        match line.trim_end().split_once('\t') {
            Some((first, second)) => Ok((first.to_owned(), second.to_owned())),
            None => Err(format!("the program with the client has ended: {:?}", self.child.wait())),
        }
    }
}

/// Waits until it has been the same for a moment.
fn settles_still(pid: u32) {
    let (mut before, mut same) = (holds(pid), 0);
    while same < 50 {
        std::thread::sleep(Duration::from_millis(2));
        let now = holds(pid);
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
}

fn serve_well(mut stream: UnixStream) {
    let _ = stream.write_all(&[PREAMBLE, &worker_hello(&[])].concat());
    if std::io::Read::read_exact(&mut stream, &mut [0; 8]).is_err() {
        return;
    }
    let mut calls = 0;
    while let Ok(message) = hear(&mut stream) {
        let kind = message.as_array().and_then(|fields| fields.first()?.as_u64());
        if kind == Some(1) {
            calls += 1;
            if stream.write_all(&result_of(calls, 5.into())).is_err() {
                return;
            }
        }
    }
}

fn serve_json(mut stream: UnixStream) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut message = Vec::new();
    while let Ok(1..) = reader.read_until(b']', &mut message) {
        if message.starts_with(b"[\"do\"") && stream.write_all(b"[\"ok\",{},5]").is_err() {
            return;
        }
        message.clear();
    }
}

enum Target {
    Server(Attacked),
    Client(Caller),
}

type Shared = Arc<Mutex<Option<Target>>>;

static TARGETS: LazyLock<Mutex<HashMap<Key, Shared>>> = LazyLock::new(Mutex::default);

fn with_target(
    key: Key,
    start: fn() -> Target,
    attack: impl FnOnce(&mut Target) -> Result<(), String>,
) -> Result<(), String> {
    let shared = TARGETS.lock().unwrap().entry(key).or_default().clone();
    let mut target = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let outcome = attack(target.get_or_insert_with(start));
    if outcome.is_err() {
        // The next case gets a new one.
        end(target.take());
    }
    outcome
}

pub(crate) fn attack_server(key: Key, case: &Case) -> Result<(), String> {
    let start = || Target::Server(Attacked::start());
    with_target(key, start, |target| match target {
        Target::Server(server) => server.attack(case),
        Target::Client(_) => unreachable!("groups are of one kind"),
    })
}

pub(crate) fn attack_client(key: Key, case: &Case) -> Result<(), String> {
    let start = || Target::Client(Caller::start());
    with_target(key, start, |target| match target {
        Target::Client(client) => client.attack(case, key.0.ends_with("json")),
        Target::Server(_) => unreachable!("groups are of one kind"),
    })
}

fn end(target: Option<Target>) {
    let mut child = match target {
        Some(Target::Server(server)) => server.child,
        Some(Target::Client(client)) => client.child,
        None => return,
    };
    let _ = child.kill();
    let _ = child.wait();
}

/// Ends all processes that have been started.
pub(crate) fn end_all() {
    for shared in TARGETS.lock().unwrap().values() {
        end(shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take());
    }
}
