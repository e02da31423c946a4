//! Short messages that go through memory which both sides have, while they are awake.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use log_defer::Log;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use taskfork::client::{BusyPoll, Value};
use taskfork::error::CallError;
use taskfork::{
    Blob, BoxError, Checkout, Client, Error, Methods, Server, ServerBuilder, ServerError,
};

use crate::files::{open_here, send_with};
use crate::support::raw::{Raw, agreed, frame, greet_as, map, of_call, text};
use crate::support::{address_in, roles, start, start_with, trial, until};

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    let methods = Methods::new()
        .function("echo", |value: Value| Ok(value))
        .function("blob", |blob: Blob| Ok(blob))
        .function("make", |length: usize| Ok("x".repeat(length)))
        .function("log", |line: String| {
            taskfork::worker::logger().info(line);
            Ok(())
        })
        .function("log_and_sleep", |milliseconds: u64| {
            taskfork::worker::logger().info("it takes long");
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        })
        .function("sleep", |milliseconds: u64| {
            std::thread::sleep(Duration::from_millis(milliseconds));
            Ok(())
        })
        .function("append", |file: String, text: String| {
            use std::io::Write;
            let file = std::fs::OpenOptions::new().create(true).append(true).open(file);
            Ok(file?.write_all(text.as_bytes())?)
        })
        .function("fail", || Err::<(), _>("no".into()))
        .function("abort", || -> Result<(), BoxError> { std::process::abort() })
        .function("mapped", || Ok(mapped()))
        .function("open_files", || Ok(open_here()));
    server.interface(methods).run()
}

/// How many rings this process has.
fn mapped() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:taskfork-ring")).count()
}

/// One that looks for its answers for so long that it never sleeps over one.
fn start_awake(entry: &str) -> (taskfork::server::ServerHandle, Client) {
    start_with(entry, |client| client.busy_poll(BusyPoll::Fixed(Duration::from_secs(5))))
}

/// Makes so many calls that there are rings; more than usual where the runtime has too much to do.
async fn warm(checkout: &Checkout) {
    for n in 0..10_000 {
        assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
        if n > 40 && checkout.call::<usize>("mapped", ()).await.unwrap() == 1 {
            return;
        }
    }
    panic!("there are none");
}

trial!(a_connection_with_many_calls_has_them, async || {
    let (_server, client) = start("rings");
    let checkout = client.checkout();
    for _ in 0..20 {
        assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 0);
    }
    warm(&checkout).await;
    drop(checkout);
    // The connection keeps them for the next checkout.
    assert_eq!(client.call::<usize>("mapped", ()).await.unwrap(), 1);
});

// Also where each call is a checkout's only one, whose end is said along with the next one's call.
trial!(a_connection_with_many_checkouts_has_them, async || {
    let (_server, client) = start_with("rings", |client| client.max_workers(1));
    let calls: Vec<_> = (0..200).map(|n: u64| client.call::<u64>("echo", (n,))).collect();
    let mapped = client.call::<usize>("mapped", ());
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), n as u64);
    }
    assert_eq!(mapped.await.unwrap(), 1);
});

trial!(there_are_none_where_they_cannot_be, async || {
    for (entry, memory) in [("rings_tcp", 1 << 20), ("rings_none", 1 << 20), ("rings", 0)] {
        let (_server, client) = start_with(entry, |client| client.shared_memory(memory));
        let checkout = client.checkout();
        for n in 0..100 {
            assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
        }
        assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 0, "{entry}");
    }
});

trial!(messages_keep_their_order_whichever_way_they_go, async || {
    for entry in ["rings", "rings_awake"] {
        let (_server, client) = start_awake(entry);
        let (messages, logged) = std::sync::mpsc::channel();
        let log = Log::new(move |message| messages.send(message).unwrap());
        let checkout = client.checkout().log(&log);
        warm(&checkout).await;
        let lengths = [0, 10, 5000, 100, 60_000, 4, 300_000, 4000, 1];
        let mut answers = Vec::new();
        for (n, &length) in lengths.iter().cycle().take(300).enumerate() {
            let said = "y".repeat(lengths[n * 7 % lengths.len()].min(20_000));
            let blob = Blob::from(vec![n as u8; said.len()]);
            answers.push((
                (length, said.clone(), blob.clone()),
                checkout.call::<String>("make", (length,)),
                checkout.call::<String>("echo", (said,)),
                checkout.call::<Blob>("blob", (blob,)),
                checkout.call::<()>("log", (n.to_string(),)),
            ));
        }
        for ((length, said, sent), made, echoed, blob, logged) in answers {
            assert_eq!(made.await.unwrap().len(), length);
            assert_eq!(echoed.await.unwrap(), said);
            assert_eq!(blob.await.unwrap(), sent);
            logged.await.unwrap();
        }
        drop((checkout, log));
        let logs = logged.recv().unwrap().logs;
        assert_eq!(logs.len(), 300);
        for (n, line) in logs.iter().enumerate() {
            assert!(format!("{line:?}").contains(&format!("{:?}", n.to_string())), "{line:?}");
        }
    }
});

// What a call logs is sent while it runs, through the socket.
trial!(what_is_said_during_a_call_has_its_place, async || {
    let (_server, client) = start_with("rings_awake", |client| {
        client.busy_poll(BusyPoll::Fixed(Duration::from_secs(5))).timeout(Duration::from_secs(5))
    });
    let (messages, logged) = std::sync::mpsc::channel();
    let log = Log::new(move |message| messages.send(message).unwrap());
    let checkout = client.checkout().log(&log);
    warm(&checkout).await;
    checkout.call::<()>("log_and_sleep", (200,)).await.unwrap();
    for n in 0..100 {
        assert_eq!(checkout.call::<u64>("echo", (n,)).await.unwrap(), n);
    }
    drop((checkout, log));
    assert_eq!(logged.recv().unwrap().logs.len(), 1);
});

trial!(a_call_that_fails_takes_those_behind_it_with_it, async || {
    let (_server, client) = start_awake("rings_awake");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file").display().to_string();
    let checkout = client.checkout();
    warm(&checkout).await;
    for round in 0..50 {
        let before: Vec<_> = (0..round).map(|n| checkout.call::<u64>("echo", (n,))).collect();
        let fails = checkout.call::<()>("fail", ());
        let behind = checkout.call::<()>("append", (file.clone(), "x"));
        for (n, call) in before.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as u64);
        }
        assert!(!fails.await.unwrap_err().is_fatal());
        let dropped = behind.await.unwrap_err();
        assert!(matches!(dropped, Error::Call { error: CallError::Dropped { .. }, .. }));
    }
    assert_eq!(checkout.call::<usize>("mapped", ()).await.unwrap(), 1);
    assert!(!std::fs::exists(file).unwrap());
});

trial!(what_is_not_wanted_is_taken_back, async || {
    let (_server, client) = start_awake("rings_awake");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file").display().to_string();
    let checkout = client.checkout();
    warm(&checkout).await;
    let first = checkout.call::<()>("append", (file.clone(), "first"));
    let slow = checkout.call::<()>("sleep", (100,));
    let not_wanted = checkout.call::<()>("append", (file.clone(), "not wanted"));
    let last = checkout.call::<()>("append", (file.clone(), ", last"));
    // Those behind it have been sent along with it.
    first.await.unwrap();
    drop(not_wanted);
    slow.await.unwrap();
    last.await.unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "first, last");
});

// An answer that comes while its caller sleeps is heard at once, whatever the worker does next.
trial!(an_answer_does_not_wait_for_the_next_call, async || {
    let (_server, client) = start_with("rings_awake", |client| client.busy_poll(BusyPoll::Off));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let checkout = client.checkout();
    warm(&checkout).await;
    for round in 0..20 {
        let first = checkout.call::<u64>("echo", (round,));
        let second = checkout.call::<u64>("echo", (round,));
        let slow = checkout.call::<()>("sleep", (50,));
        let last = checkout.call::<()>("append", (file.display().to_string(), "x"));
        assert_eq!((first.await.unwrap(), second.await.unwrap()), (round, round));
        assert!(!file.exists());
        slow.await.unwrap();
        last.await.unwrap();
        std::fs::remove_file(&file).unwrap();
    }
});

trial!(a_death_is_told_behind_the_answers, async || {
    for entry in ["rings", "rings_awake"] {
        let (_server, client) = start_awake(entry);
        for before in [0, 1, 50, 500] {
            let checkout = client.checkout();
            warm(&checkout).await;
            let answered: Vec<_> =
                (0..before).map(|n| checkout.call::<u64>("echo", (n,))).collect();
            let dies = checkout.call::<()>("abort", ());
            let behind = checkout.call::<u64>("echo", (7,));
            for (n, call) in answered.into_iter().enumerate() {
                assert_eq!(call.await.unwrap(), n as u64);
            }
            let died = dies.await.unwrap_err();
            assert!(died.may_have_run() && died.to_string().contains("SIGABRT"), "{died}");
            let behind = behind.await.unwrap_err();
            assert!(behind.is_fatal() && !behind.may_have_run(), "{behind}");
        }
    }
});

trial!(a_call_that_a_worker_has_left_there_goes_to_another, async || {
    let (_server, client) = start_awake("rings_worn_out");
    for n in 0..2000_u64 {
        assert_eq!(client.call::<u64>("echo", (n,)).await.unwrap(), n);
    }
});

// Both sides go to sleep, for longer and for shorter times, and always hear of what comes.
trial!(sleeping_peers_are_woken, async || {
    let (_server, client) = start("rings");
    let (one, other) = (client.checkout(), client.checkout());
    warm(&one).await;
    warm(&other).await;
    for n in 0..300_u64 {
        let calls: Vec<_> = (0..n % 5).map(|n| one.call::<u64>("echo", (n,))).collect();
        let slow = other.call::<()>("sleep", (n % 3,));
        if n % 2 == 0 {
            tokio::time::sleep(Duration::from_micros(37 * n)).await;
        }
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), n as u64);
        }
        slow.await.unwrap();
    }
    // Calls that are not awaited run too.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    let name = file.display().to_string();
    let kept = ["a", "b", "c"].map(|text| one.call::<()>("append", (name.clone(), text)));
    until("all to have run", || std::fs::read_to_string(&file).is_ok_and(|it| it == "abc")).await;
    drop(kept);
});

trial!(no_memory_or_descriptor_of_rings_is_left, async || {
    // Other tests have rings and open files meanwhile.
    roles::run("rings_leave_nothing").await;
});

/// The role of that test's process.
pub(crate) async fn leave_nothing() {
    let (_server, client) = start_with("rings", |client| client.max_workers(1));
    let before: usize = client.call("open_files", ()).await.unwrap();
    // The runtime opens a few when the first connection has its second call.
    client.call::<usize>("open_files", ()).await.unwrap();
    let here = open_here();
    for _ in 0..5 {
        let checkout = client.checkout();
        warm(&checkout).await;
        assert_eq!((mapped(), open_here()), (1, here));
        assert_eq!(checkout.call::<usize>("open_files", ()).await.unwrap(), before);
        assert!(checkout.call::<()>("abort", ()).await.unwrap_err().is_fatal());
        drop(checkout);
        until("the rings of a dead worker to go", || mapped() == 0).await;
    }
}

/// The memory of rings, by the description of the protocol alone.
pub(crate) struct Rings(&'static [AtomicU64]);

const WORDS: usize = 4144;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

impl Rings {
    fn new(length: usize, seals: SealFlags) -> (Self, OwnedFd) {
        let file = memfd_create("taskfork-ring", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, length as u64).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        (Self::of(&file), file)
    }

    fn of(file: &OwnedFd) -> Self {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: it is mapped anew, and stays until this process ends.
        #[allow(unsafe_code)]
        let words = unsafe {
            let start = mmap(std::ptr::null_mut(), WORDS * 8, access, MapFlags::SHARED, file, 0);
            std::slice::from_raw_parts(start.unwrap().cast(), WORDS)
        };
        Self(words)
    }

    fn put(&self, half: usize, at: u64, sent: u64, frame: &[u8]) {
        let words = &self.0[half * WORDS / 2..];
        let mut bytes = (sent << 16 | frame.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for (place, word) in (at..).zip(bytes.as_chunks().0) {
            words[24 + place as usize % 2048].store(u64::from_le_bytes(*word), SeqCst);
        }
        words[0].store(at + bytes.len() as u64 / 8, SeqCst);
    }

    /// The record at this word: what was sent before, and its bytes.
    fn record(&self, half: usize, at: usize) -> (u64, Vec<u8>) {
        let words = &self.0[half * WORDS / 2 + 24..];
        let first = words[at].load(SeqCst);
        let length = (first & 0xffff) as usize;
        let rest = words[at + 1..].iter().flat_map(|word| word.load(SeqCst).to_le_bytes());
        (first >> 16, rest.take(length).collect())
    }

    /// Has this frame come again and again through the ring of the worker's messages, behind many that only wake.
    pub(crate) fn fill_for_ever(&self, frame: &[u8], mut goes_on: impl FnMut() -> bool) {
        // Eight such records fill the ring, and stay right however often they are said to be there again.
        let wakes = 2040_usize.saturating_sub(frame.len()) / 4 * 4;
        let record = [vec![0; wakes], frame.to_vec()].concat();
        assert_eq!(1 + record.len().div_ceil(8), 256);
        (0..8).for_each(|place| self.put(1, 256 * place, 0, &record));
        while goes_on() {
            for _ in 0..1000 {
                self.0[WORDS / 2].store(self.0[WORDS / 2 + 8].load(SeqCst) + 2048, SeqCst);
            }
        }
    }

    fn set_awake(&self, half: usize, awake: bool) {
        self.0[half * WORDS / 2 + 16].store(u64::from(awake), SeqCst);
    }

    fn there(&self, half: usize) -> u64 {
        self.0[half * WORDS / 2].load(SeqCst)
    }
}

fn offer() -> Vec<u8> {
    frame(vec![8.into(), map(&[])])
}

/// Offers rings to this worker.
pub(crate) fn offer_to(raw: &Raw) {
    send_with(raw, &offer(), &[Rings::new(WORDS * 8, SEALS).1]);
}

fn call(method: &str) -> Vec<u8> {
    frame(vec![1.into(), map(&[]), text(method), Value::Array(vec![])])
}

/// A server of this program, and where it listens.
async fn serve(
    folder: &tempfile::TempDir,
) -> (crate::support::processes::Program, std::path::PathBuf) {
    let program = roles::start(&["serve_rings", &address_in(folder)]);
    (program, folder.path().join("s"))
}

trial!(a_worker_answers_through_a_ring_while_the_client_is_awake, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, path) = serve(&folder).await;
    let (mut raw, agreed) = Raw::sharing(&path, 1000, "mapped").await;
    assert!(agreed.is_some());
    let (rings, file) = Rings::new(WORDS * 8, SEALS);
    send_with(&raw, &offer(), &[file]);
    assert_eq!(raw.receive().unwrap().to_string(), "[8, {}]");
    // Asleep: through the socket.
    raw.send(&call("mapped"));
    assert_eq!(raw.receive(), Some(Value::Array(answer(2))));
    let third = frame(answer(3));
    assert_eq!(rings.there(1), 0);
    // Awake: one answer may still go through the socket, as the worker would sleep after it; several do not.
    rings.set_awake(1, true);
    let sent = call("mapped").len() as u64;
    raw.send(&[call("mapped"), call("mapped"), call("mapped")].concat());
    until("an answer in the ring", || rings.there(1) > 0).await;
    assert_eq!(rings.record(1, 0), (third.len() as u64, third.clone()));
    // The worker is about to sleep, and nothing of it has been taken: an empty frame comes, or the last answer and one.
    let mut woken = false;
    while !woken {
        let mut length = [0; 4];
        raw.0.read_exact(&mut length).unwrap();
        woken = length == [0; 4];
        let mut rest = vec![0; u32::from_le_bytes(length) as usize];
        raw.0.read_exact(&mut rest).unwrap();
    }
    // A call through the ring, behind all four that went through the socket, and what wakes the worker.
    rings.set_awake(1, false);
    rings.put(0, 0, 4 * sent, &call("mapped"));
    raw.send(&[0; 4]);
    assert_eq!(raw.receive(), Some(Value::Array(answer(6))));
    assert_eq!(rings.0[8].load(SeqCst), 1 + sent.div_ceil(8));
});

/// Whether the connection ends, and that not by the worker's death.
fn ends(raw: &mut Raw) -> bool {
    raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut last = Vec::new();
    let end = raw.0.read_to_end(&mut last).map_err(|error| error.kind());
    let died = String::from_utf8_lossy(&last).contains("signal");
    !died && matches!(end, Ok(_) | Err(std::io::ErrorKind::ConnectionReset))
}

trial!(a_client_that_offers_invalid_rings_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let (_program, path) = serve(&folder).await;
    let good = || Rings::new(WORDS * 8, SEALS).1;
    let bad = [
        ("memory that can shrink", 1000, offer(), vec![Rings::new(WORDS * 8, SealFlags::GROW).1]),
        ("too little of it", 1000, offer(), vec![Rings::new(WORDS * 8 - 8, SEALS).1]),
        ("no memory", 1000, offer(), vec![std::fs::File::open("/dev/null").unwrap().into()]),
        ("nothing", 1000, offer(), vec![]),
        ("rings twice", 1000, [offer(), offer()].concat(), vec![good(), good()]),
        ("rings that were not asked for", 0, offer(), vec![good()]),
    ];
    for (what, lent, said, files) in bad {
        let (mut raw, _) = Raw::sharing(&path, lent, "mapped").await;
        send_with(&raw, &said, &files);
        assert!(ends(&mut raw), "{what}");
    }
    let hello = [("files", 16.into()), ("lent", 1000.into())];
    let (mut raw, _) = Raw::greeted_with(&path, &hello).await;
    send_with(&raw, &offer(), &[good()]);
    assert!(ends(&mut raw), "rings before the worker has agreed to share memory");
    let nonsense = [(1, 0, u64::MAX), (0, 0, u64::MAX), (0, 24, 0xffff), (0, 24, 300)];
    for (awake, at, word) in nonsense {
        let (mut raw, _) = Raw::sharing(&path, 1000, "mapped").await;
        let (rings, file) = Rings::new(WORDS * 8, SEALS);
        send_with(&raw, &offer(), &[file]);
        raw.receive().unwrap();
        rings.set_awake(1, awake == 1);
        rings.0[0].store(5, SeqCst);
        rings.0[at].store(word, SeqCst);
        raw.send(&call("mapped"));
        assert!(ends(&mut raw), "{at} {word}");
    }
    let client = Client::builder().address(address_in(&folder)).build().unwrap();
    assert_eq!(client.call::<u64>("echo", (3,)).await.unwrap(), 3);
});

/// A worker that greets and answers calls until the client offers rings, and takes them; with the number of the next call.
pub(crate) fn agree(listener: &UnixListener) -> (Raw, Rings, u64) {
    let mut raw = Raw::accept(listener);
    greet_as(&mut raw, &[("files", 16.into())]);
    let (mut first, mut call) = (agreed(1000), 1);
    let file = loop {
        let (message, file) = crate::files::receive_with(&raw);
        if let Some(file) = file {
            break file;
        }
        assert_eq!(message[4..6], [0x94, 1], "{message:?}");
        first.append(&mut frame(answer(call)));
        call += 1;
        raw.send(&std::mem::take(&mut first));
    };
    raw.send(&offer());
    (raw, Rings::of(&file), call)
}

fn answer(call: u64) -> Vec<Value> {
    vec![1.into(), of_call(call), 1.into()]
}

/// Calls such a worker again and again, until that fails.
pub(crate) async fn call_until_it_fails(client: &Client) -> Error {
    let checkout = client.checkout();
    loop {
        match checkout.call::<u64>("anything", ()).await {
            Ok(answer) => assert_eq!(answer, 1),
            Err(error) => return error,
        }
    }
}

trial!(a_worker_that_writes_invalid_data_to_a_ring_is_disconnected, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let client = Client::builder().address(address_in(&folder)).min_workers(0);
    let client = client.busy_poll(BusyPoll::Fixed(Duration::from_millis(100))).build().unwrap();
    let worker = tokio::task::spawn_blocking(move || {
        let (mut raw, rings, call) = agree(&listener);
        // Of the call that came with the offer, or after it.
        rings.put(1, 0, 0, &frame(answer(call)));
        raw.send(&[0; 4]);
        rings.0[WORDS / 2].store(1 << 60, SeqCst);
        raw.send(&[0; 4]);
        raw.drain();
    });
    let error = call_until_it_fails(&client).await;
    assert!(error.is_fatal() && error.to_string().contains("ring"), "{error}");
    worker.await.unwrap();
});

// What comes without end is taken without end, but not in one go: whoever waits for it can stop.
trial!(a_worker_that_never_stops_keeps_no_task, async || {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let client = Client::builder().address(address_in(&folder)).min_workers(0);
    let client = client.timeout(Duration::from_millis(300)).grace(Duration::ZERO).build().unwrap();
    let worker = tokio::task::spawn_blocking(move || {
        let (raw, rings, _) = agree(&listener);
        raw.0.set_nonblocking(true).unwrap();
        // One that says that no file comes with the next.
        let nothing = frame(vec![6.into(), map(&[]), 0.into()]);
        rings.fill_for_ever(&nothing, || !matches!((&raw.0).read(&mut [0; 100]), Ok(0)));
        // More than there is room for at a time.
        assert!(rings.0[WORDS / 2 + 8].load(SeqCst) > 2048);
    });
    let error = call_until_it_fails(&client).await;
    assert!(error.to_string().contains("timed out"), "{error}");
    drop(client);
    worker.await.unwrap();
});

/// The role of a program that serves.
pub(crate) fn serve_at(address: &str) -> Result<(), ServerError> {
    server(Server::builder().listen(address).socket_mode(0o666))
}
